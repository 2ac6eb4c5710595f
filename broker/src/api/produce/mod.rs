//! Produce, versions 3 to 13.
//!
//! Each partition's part holds exactly one batch of format 2. It is checked here, on the
//! connection's task, and stamped and appended by its shard; the order of requests is the order in
//! the log. `acks=0` gets no answer, and an error then closes the connection, so that the client
//! looks up its leaders again. Leader hints (KIP-951) come with NOT_LEADER_OR_FOLLOWER from
//! version 10 on; topics are named by id from version 13 on. Transactional producers: [`transactional`].

pub mod transactional;

use std::sync::Arc;

use streamgauge_protocol::batch::validate::{ValidationError, ValidationRules, validate};
use streamgauge_protocol::batch::{BatchHeader, TimestampType as BatchTimestampType};
use streamgauge_protocol::compression::Compression;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;

use super::kafka::produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData};
use super::kafka::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse,
    ProduceResponse, TopicProduceResponse,
};
use super::kafka::{BrokerId, TopicName};
use super::{Answer, Context, Handling, Request, RequestError, encode};
use crate::clock;
use crate::config::{CompressionType, TimestampType, TopicConfig};
use crate::shard::event::{Acks, AppendError, Appended};
use crate::shard::handle::PendingAppend;
use crate::topics::TopicHandle;
use streamgauge_storage::producer_state::VerificationGuard;
use transactional::{Turn, Verified};

/// First version that names topics by id.
const TOPIC_ID_VERSION: i16 = 13;
/// First version whose errors may come with the leader to go to.
const LEADER_HINT_VERSION: i16 = 10;

/// What became of one partition's part so far.
enum Part {
    Pending(PendingAppend),
    Failed(Failure),
}

#[derive(Debug, Clone)]
pub struct Failure {
    code: ErrorCode,
    message: Option<String>,
    records: Vec<(i32, String)>,
}

impl Failure {
    fn new(code: ErrorCode) -> Self {
        Self {
            code,
            message: None,
            records: Vec::new(),
        }
    }

    fn saying(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..Self::new(code)
        }
    }
}

/// Sends every part to its partition before it returns; the answer waits for their commits.
pub fn handle(request: Request) -> Result<Handling, RequestError> {
    let produce: ProduceRequest = request.decode()?;
    let (name, codec_version) = (
        request.api.name,
        request.api.codec_version(request.context.version),
    );
    let context = request.context;
    let acks = produce.acks;
    let sent = Sent::begin(&context, produce);
    Ok(Handling {
        answer: Box::pin(async move {
            let topics = sent.finish(&context).await;
            let response = collect(&context, topics).await;
            if acks == 0 {
                let failed = response
                    .responses
                    .iter()
                    .flat_map(|topic| &topic.partition_responses)
                    .any(|partition| partition.error_code != 0);
                return Ok(Answer {
                    pieces: Vec::new(),
                    close_after: failed,
                });
            }
            encode(name, context.correlation_id, codec_version, &response)
        }),
    })
}

/// A request on its way to its partitions.
enum Sent {
    /// It has reached them.
    All(Vec<SentTopic>),
    /// Its transaction's coordinator is to be asked first, and requests before it are to be sent.
    Unverified(ProduceRequest, Turn),
}

impl Sent {
    fn begin(context: &Context, request: ProduceRequest) -> Self {
        if request.transactional_id.is_some() {
            return Self::Unverified(request, context.peer.turns.take());
        }
        let verified = match transactional::lacks_transactional_id(&request) {
            true => Err(Failure::new(ErrorCode::TransactionalIdAuthorizationFailed)),
            false => Ok(Verified::new()),
        };
        Self::All(send(context, request, verified))
    }

    async fn finish(self, context: &Context) -> Vec<SentTopic> {
        match self {
            Self::All(topics) => topics,
            Self::Unverified(request, mut turn) => {
                turn.comes().await;
                let verified = transactional::verified(context, &request).await;
                send(context, request, verified)
            }
        }
    }
}

/// The topic that a part of a request names.
fn find_topic(context: &Context, data: &TopicProduceData) -> Option<Arc<TopicHandle>> {
    match context.version >= TOPIC_ID_VERSION {
        true => context.broker.topics.by_id(data.topic_id),
        false => context.broker.topics.by_name(&data.name),
    }
}

struct SentTopic {
    name: TopicName,
    topic_id: uuid::Uuid,
    partitions: Vec<(i32, Part)>,
}

/// Sends every part to its partition, or refuses it as `verified` says.
fn send(
    context: &Context,
    request: ProduceRequest,
    mut verified: Result<Verified, Failure>,
) -> Vec<SentTopic> {
    let acks = match request.acks {
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        -1 => Some(Acks::All),
        _ => None,
    };
    let wait_ms_max = i64::from(request.timeout_ms.max(0));
    let now_ms = clock::now_ms();
    request
        .topic_data
        .into_iter()
        .enumerate()
        .map(|(topic_at, data)| {
            let by_id = context.version >= TOPIC_ID_VERSION;
            let topic = find_topic(context, &data);
            let partitions = data
                .partition_data
                .into_iter()
                .enumerate()
                .map(|(at, partition)| {
                    let index = partition.index;
                    let guard = match &mut verified {
                        Ok(verified) => verified.remove(&(topic_at, at)).unwrap_or(Ok(None)),
                        Err(failure) => Err(failure.clone()),
                    };
                    let part = match (&topic, acks) {
                        (_, None) => Part::Failed(Failure::new(ErrorCode::InvalidRequiredAcks)),
                        (None, _) if by_id => Part::Failed(Failure::new(ErrorCode::UnknownTopicId)),
                        (None, _) => Part::Failed(Failure::new(ErrorCode::UnknownTopicOrPartition)),
                        (Some(topic), Some(acks)) => guard
                            .and_then(|guard| {
                                let within = (acks, wait_ms_max);
                                send_part(context, topic, partition, within, guard, now_ms)
                            })
                            .map_or_else(Part::Failed, Part::Pending),
                    };
                    (index, part)
                })
                .collect();
            SentTopic {
                name: data.name,
                topic_id: data.topic_id,
                partitions,
            }
        })
        .collect()
}

fn send_part(
    context: &Context,
    topic: &Arc<TopicHandle>,
    data: PartitionProduceData,
    (acks, wait_ms_max): (Acks, i64),
    guard: Option<VerificationGuard>,
    now_ms: i64,
) -> Result<PendingAppend, Failure> {
    if topic.is_internal() {
        return Err(Failure::saying(
            ErrorCode::InvalidTopicException,
            format!("Cannot append to internal topic {}", topic.name),
        ));
    }
    let partition = topic.open_partition(data.index).map_err(Failure::new)?;
    let batch = data.records.filter(|records| !records.is_empty());
    let batch = batch.ok_or_else(|| {
        Failure::saying(
            ErrorCode::InvalidRecord,
            "a produce request must hold exactly one record batch for each partition",
        )
    })?;
    let config = topic.config();
    let header = BatchHeader::parse(&batch)
        .map_err(|error| Failure::saying(ErrorCode::CorruptMessage, error.to_string()))?;
    if header.size_in_bytes() < batch.len() {
        return Err(Failure::saying(
            ErrorCode::InvalidRecord,
            "a produce request must hold exactly one record batch for each partition",
        ));
    }
    let rules = rules(&config, context.version);
    let validated = validate(batch, &rules, now_ms).map_err(refused)?;
    Ok(partition.append_verified(validated.batch, acks, wait_ms_max, guard))
}

fn rules(config: &TopicConfig, produce_version: i16) -> ValidationRules {
    ValidationRules {
        batch_bytes_max: usize::try_from(config.max_message_bytes).unwrap_or(0),
        compression: match config.compression_type {
            CompressionType::Producer => None,
            CompressionType::Uncompressed => Some(Compression::None),
            CompressionType::Gzip => Some(Compression::Gzip),
            CompressionType::Snappy => Some(Compression::Snappy),
            CompressionType::Lz4 => Some(Compression::Lz4),
            CompressionType::Zstd => Some(Compression::Zstd),
        },
        timestamp_type: match config.message_timestamp_type {
            TimestampType::CreateTime => BatchTimestampType::CreateTime,
            TimestampType::LogAppendTime => BatchTimestampType::LogAppendTime,
        },
        timestamp_before_max_ms: config.message_timestamp_before_max_ms,
        timestamp_after_max_ms: config.message_timestamp_after_max_ms,
        compacted: config.cleanup_policy.compact,
        produce_version,
    }
}

fn refused(error: ValidationError) -> Failure {
    Failure {
        code: error.code(),
        message: Some(error.to_string()),
        records: error
            .record_errors()
            .map(|records| {
                records
                    .iter()
                    .map(|(index, message)| (*index, message.clone()))
                    .collect()
            })
            .unwrap_or_default(),
    }
}

async fn collect(context: &Context, topics: Vec<SentTopic>) -> ProduceResponse {
    let mut responses = Vec::with_capacity(topics.len());
    let mut misdirected = false;
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (index, part) in topic.partitions {
            let outcome = match part {
                Part::Failed(failure) => Err(failure),
                Part::Pending(pending) => pending.answer().await.map_err(append_failure),
            };
            let answer = PartitionProduceResponse::default().with_index(index);
            partitions.push(match outcome {
                Ok(appended) => succeeded(answer, &appended),
                Err(failure) => {
                    misdirected |= failure.code == ErrorCode::NotLeaderOrFollower;
                    failed(answer, failure)
                }
            });
        }
        responses.push(
            TopicProduceResponse::default()
                .with_name(topic.name)
                .with_topic_id(topic.topic_id)
                .with_partition_responses(partitions),
        );
    }
    let mut response = ProduceResponse::default().with_responses(responses);
    if misdirected && context.version >= LEADER_HINT_VERSION {
        hint_leaders(context, &mut response);
    }
    response
}

/// Tells where the leaders are of partitions that this request was wrong about.
fn hint_leaders(context: &Context, response: &mut ProduceResponse) {
    let broker = &context.broker;
    let mut leaders = std::collections::BTreeMap::new();
    for topic in &mut response.responses {
        let handle = match context.version >= TOPIC_ID_VERSION {
            true => broker.topics.by_id(topic.topic_id),
            false => broker.topics.by_name(&topic.name),
        };
        for partition in &mut topic.partition_responses {
            if partition.error_code == ErrorCode::NotLeaderOrFollower.code()
                && let Some(handle) = &handle
                && let Some(led) = broker.leadership(handle.topic_id, partition.index)
                && let Some(leader) = broker.endpoint_of(led.leader)
            {
                partition.current_leader = LeaderIdAndEpoch::default()
                    .with_leader_id(BrokerId(led.leader))
                    .with_leader_epoch(led.leader_epoch);
                leaders.insert(led.leader, leader);
            }
        }
    }
    response.node_endpoints = leaders
        .into_values()
        .map(|leader| {
            NodeEndpoint::default()
                .with_node_id(BrokerId(leader.node_id))
                .with_host(StrBytes::from_string(leader.host))
                .with_port(i32::from(leader.port))
                .with_rack(leader.rack.map(StrBytes::from_string))
        })
        .collect();
}

fn succeeded(answer: PartitionProduceResponse, appended: &Appended) -> PartitionProduceResponse {
    answer
        .with_base_offset(appended.base_offset)
        .with_log_append_time_ms(appended.log_append_time_ms)
        .with_log_start_offset(appended.log_start_offset)
}

fn failed(answer: PartitionProduceResponse, failure: Failure) -> PartitionProduceResponse {
    let records = failure
        .records
        .into_iter()
        .map(|(index, message)| {
            BatchIndexAndErrorMessage::default()
                .with_batch_index(index)
                .with_batch_index_error_message(Some(StrBytes::from_string(message)))
        })
        .collect();
    answer
        .with_error_code(failure.code.code())
        .with_base_offset(-1)
        .with_log_append_time_ms(-1)
        .with_log_start_offset(-1)
        .with_record_errors(records)
        .with_error_message(failure.message.map(StrBytes::from_string))
}

fn append_failure(error: AppendError) -> Failure {
    Failure::saying(error.code(), error.to_string())
}
