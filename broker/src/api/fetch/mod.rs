//! Fetch, versions 4 to 18.
//!
//! Partitions are read in the order of the request up to its limits, the first batch whole
//! whatever its size. A request with too little to send waits for commits, for at most its
//! `max_wait_ms`; an error in any partition ends the wait. Records go from the log's mapping to
//! the socket without a copy; what may not be in memory is first brought in on a thread that may
//! block. With `read_committed` they end at the last stable offset and come with the list of aborted
//! transactions (KIP-98), from followers as well. Sessions: [`session`] (KIP-227). Leader hints: KIP-951. Brokers replicate with Raft, so
//! a request that gives a replica id is told that nobody leads here.
//!
//! Consumers may read from any replica from version 11 on (KIP-392). The leader sends those that
//! give a rack to a replica in it, if `replica.selector.class` says so: [`selector`]. A follower
//! serves what it knows to be committed, and as Kafka's it answers with no records up to its log's
//! end and with OFFSET_OUT_OF_RANGE beyond, on which a consumer asks the leader again.

mod read;
mod selector;
pub mod session;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::fetch_response::{
    self, CurrentLeader, FetchPartition, FetchResponse, FetchTopic, NodeEndpoint,
};
use streamgauge_protocol::messages::protocol::StrBytes;
use streamgauge_storage::AbortedTransaction;
use streamgauge_storage::log::ReadError;
use tokio::time::Instant;
use uuid::Uuid;

use super::kafka::FetchRequest;
use super::{Answer, Context, Handling, Request, RequestError};
use crate::clock;
use crate::shard::handle::PartitionHandle;
use crate::shard::view::PartitionView;
use crate::topics::TopicHandle;
pub use read::{Committed, read, read_committed};
use session::{NO_SESSION, PartitionKey, Plan, SessionRequest, Told, TopicKey, Wanted};

const SESSION_VERSION: i16 = 7;
const RACK_VERSION: i16 = 11;
const TOPIC_ID_VERSION: i16 = 13;
const LEADER_HINT_VERSION: i16 = 12;
const REPLICA_STATE_VERSION: i16 = 15;
const NODE_ENDPOINT_VERSION: i16 = 16;
const READ_COMMITTED: i8 = 1;

pub fn handle(request: Request) -> Result<Handling, RequestError> {
    let fetch: FetchRequest = request.decode()?;
    let context = request.context;
    Ok(Handling {
        answer: Box::pin(async move {
            let response = answer(&context, fetch).await;
            Ok(Answer {
                pieces: response.encode(context.correlation_id, context.version)?,
                close_after: false,
            })
        }),
    })
}

/// The limits of one request.
struct Limits {
    min_bytes: usize,
    max_bytes: usize,
    read_committed: bool,
    from_replica: bool,
    /// A replica that does not lead will do.
    from_any_replica: bool,
    /// Empty if the consumer does not say.
    rack: StrBytes,
    deadline: Instant,
}

/// One partition's part of the answer.
struct Part {
    key: PartitionKey,
    answer: FetchPartition,
    /// The partition's own limit stopped it: waiting would not bring more.
    limited: bool,
}

impl Part {
    fn bytes(&self) -> usize {
        self.answer.records.iter().map(bytes::Bytes::len).sum()
    }

    fn failed(&self) -> bool {
        self.answer.error_code != 0
    }

    fn is_sent_elsewhere(&self) -> bool {
        self.answer.preferred_read_replica >= 0
    }

    fn ends_the_wait(&self) -> bool {
        self.failed() || self.limited || self.is_sent_elsewhere()
    }
}

type Topics = HashMap<TopicKey, Option<Arc<TopicHandle>>>;

async fn answer(context: &Context, request: FetchRequest) -> FetchResponse {
    let broker = &context.broker;
    let limits = limits(context, &request);
    let planned = broker
        .fetch_sessions
        .plan(session_request(context, request), clock::now_ms());
    let plan = match planned {
        Ok(plan) => plan,
        Err(code) => {
            return FetchResponse {
                error_code: code.code(),
                ..FetchResponse::default()
            };
        }
    };
    let mut topics = Topics::new();
    for ((topic, _), _) in &plan.partitions {
        if !topics.contains_key(topic) {
            let found = match topic {
                TopicKey::Name(name) => broker.topics.by_name(name),
                TopicKey::Id(id) => broker.topics.by_id(*id),
            };
            topics.insert(topic.clone(), found);
        }
    }
    let parts = read_until_enough(context, &plan, &topics, &limits).await;
    respond(context, &plan, &topics, parts)
}

fn limits(context: &Context, request: &FetchRequest) -> Limits {
    let max_wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let max_bytes = request.max_bytes.min(context.broker.config.fetch_max_bytes);
    let replica_id = match context.version >= REPLICA_STATE_VERSION {
        true => request.replica_state.replica_id,
        false => request.replica_id,
    };
    Limits {
        min_bytes: usize::try_from(request.min_bytes).unwrap_or(0),
        max_bytes: usize::try_from(max_bytes).unwrap_or(0),
        read_committed: request.isolation_level == READ_COMMITTED,
        from_replica: replica_id.0 >= 0,
        from_any_replica: context.version >= RACK_VERSION,
        rack: request.rack_id.clone(),
        deadline: Instant::now() + max_wait,
    }
}

fn session_request(context: &Context, request: FetchRequest) -> SessionRequest {
    let uses_ids = context.version >= TOPIC_ID_VERSION;
    let topic_key = |name: &str, id: Uuid| match uses_ids {
        true => TopicKey::Id(id),
        false => TopicKey::Name(name.to_owned()),
    };
    let mut partitions = Vec::new();
    for topic in request.topics {
        let key = topic_key(&topic.topic, topic.topic_id);
        partitions.extend(topic.partitions.into_iter().map(|partition| {
            let wanted = Wanted {
                current_leader_epoch: partition.current_leader_epoch,
                fetch_offset: partition.fetch_offset,
                partition_max_bytes: partition.partition_max_bytes,
            };
            ((key.clone(), partition.partition), wanted)
        }));
    }
    let mut forgotten = Vec::new();
    for topic in request.forgotten_topics_data {
        let key = topic_key(&topic.topic, topic.topic_id);
        let indexes = topic.partitions.into_iter();
        forgotten.extend(indexes.map(|index| (key.clone(), index)));
    }
    let (session_id, epoch) = match context.version >= SESSION_VERSION {
        true => (request.session_id, request.session_epoch),
        false => (NO_SESSION, session::FINAL_EPOCH),
    };
    SessionRequest {
        session_id,
        epoch,
        partitions,
        forgotten,
        uses_ids,
    }
}

async fn read_until_enough(
    context: &Context,
    plan: &Plan,
    topics: &Topics,
    limits: &Limits,
) -> Vec<Part> {
    let changed = &context.peer.changed;
    loop {
        // Registered before looking, so that a commit in between is not missed.
        for (key, _) in &plan.partitions {
            if let Some(partition) = find(topics, key) {
                partition.view().wake(changed);
            }
        }
        let parts = read_all(context, plan, topics, limits).await;
        let bytes: usize = parts.iter().map(Part::bytes).sum();
        let done = bytes >= limits.min_bytes
            || parts.iter().any(Part::ends_the_wait)
            || parts.is_empty()
            || Instant::now() >= limits.deadline;
        if done {
            return parts;
        }
        tokio::select! {
            biased;
            () = context.broker.stopping() => return parts,
            () = changed.notified() => {}
            () = tokio::time::sleep_until(limits.deadline) => {}
        }
    }
}

fn find(topics: &Topics, (topic, index): &PartitionKey) -> Option<PartitionHandle> {
    topics.get(topic)?.as_ref()?.partition(*index)
}

async fn read_all(context: &Context, plan: &Plan, topics: &Topics, limits: &Limits) -> Vec<Part> {
    let mut parts = Vec::with_capacity(plan.partitions.len());
    let mut bytes_left = limits.max_bytes;
    let mut any = false;
    for (key, wanted) in &plan.partitions {
        let part = read_part(context, topics, key, wanted, limits, bytes_left, !any).await;
        let bytes = part.bytes();
        any |= bytes > 0;
        bytes_left = bytes_left.saturating_sub(bytes);
        parts.push(part);
    }
    parts
}

fn failed_part(index: i32, code: ErrorCode) -> FetchPartition {
    FetchPartition {
        partition_index: index,
        error_code: code.code(),
        ..FetchPartition::default()
    }
}

async fn read_part(
    context: &Context,
    topics: &Topics,
    key: &PartitionKey,
    wanted: &Wanted,
    limits: &Limits,
    bytes_left: usize,
    at_least_one: bool,
) -> Part {
    let without_records = |answer| Part {
        key: key.clone(),
        answer,
        limited: false,
    };
    let partition = match partition(topics, key) {
        Ok(partition) => partition,
        Err(code) => return without_records(failed_part(key.1, code)),
    };
    let view = partition.view();
    let led = match limits.from_replica {
        true => Err(ErrorCode::NotLeaderOrFollower),
        false if limits.from_any_replica => check_replica(view, wanted.current_leader_epoch),
        false => check_leader(view, wanted.current_leader_epoch),
    };
    if let Err(code) = led {
        let mut answer = failed_part(key.1, code);
        if context.version >= LEADER_HINT_VERSION
            && let Some(led) = context.broker.leadership(view.key().topic_id, key.1)
        {
            answer.current_leader = Some(CurrentLeader {
                leader_id: led.leader,
                leader_epoch: led.leader_epoch,
            });
        }
        return without_records(answer);
    }
    let partition_max = usize::try_from(wanted.partition_max_bytes).unwrap_or(0);
    let (high_watermark, last_stable_offset) = (view.high_watermark(), view.last_stable_offset());
    if view.is_serving()
        && let Some(preferred) = selector::preferred(&context.broker, view, &limits.rack)
        && (view.log_start_offset()..=high_watermark).contains(&wanted.fetch_offset)
    {
        return without_records(FetchPartition {
            partition_index: key.1,
            high_watermark,
            last_stable_offset,
            log_start_offset: view.log_start_offset(),
            aborted_transactions: limits.read_committed.then(Vec::new),
            preferred_read_replica: preferred,
            ..FetchPartition::default()
        });
    }
    let bytes_max = partition_max.min(bytes_left);
    let read = match limits.read_committed {
        true => read_committed(
            view,
            wanted.fetch_offset,
            bytes_max,
            last_stable_offset,
            at_least_one,
        )
        .await
        .map(|committed| (committed.read, Some(committed.aborted))),
        false => read(
            view,
            wanted.fetch_offset,
            bytes_max,
            high_watermark,
            at_least_one,
        )
        .await
        .map(|read| (read, None)),
    };
    let mut limited = false;
    let answer = match read {
        Ok((read, aborted)) => {
            limited = read.limited && partition_max <= bytes_left;
            FetchPartition {
                partition_index: key.1,
                high_watermark,
                last_stable_offset,
                log_start_offset: view.log_start_offset(),
                aborted_transactions: aborted.map(|aborted| aborted.iter().map(told).collect()),
                records: read.slices,
                ..FetchPartition::default()
            }
        }
        Err(ReadError::OffsetOutOfRange { .. }) => failed_part(key.1, ErrorCode::OffsetOutOfRange),
        Err(ReadError::Io(error)) => {
            tracing::error!(?key, %error, "partition cannot be read");
            failed_part(key.1, ErrorCode::KafkaStorageError)
        }
    };
    Part {
        key: key.clone(),
        answer,
        limited,
    }
}

fn told(aborted: &AbortedTransaction) -> fetch_response::AbortedTransaction {
    fetch_response::AbortedTransaction {
        producer_id: aborted.producer_id,
        first_offset: aborted.first_offset,
    }
}

fn partition(topics: &Topics, key: &PartitionKey) -> Result<PartitionHandle, ErrorCode> {
    let (topic, index) = key;
    let Some(found) = topics.get(topic).and_then(Option::as_ref) else {
        return Err(match topic {
            TopicKey::Id(_) => ErrorCode::UnknownTopicId,
            TopicKey::Name(_) => ErrorCode::UnknownTopicOrPartition,
        });
    };
    found.open_partition(*index)
}

/// Whether this broker may answer for the partition, at the epoch that the client knows (KIP-320).
pub fn check_leader(view: &PartitionView, current_leader_epoch: i32) -> Result<(), ErrorCode> {
    check_epoch(view, current_leader_epoch)?;
    match view.is_serving() {
        true => Ok(()),
        false => Err(ErrorCode::NotLeaderOrFollower),
    }
}

/// Whether the replica here may answer a consumer: one that follows nobody would let it wait for
/// nothing.
fn check_replica(view: &PartitionView, current_leader_epoch: i32) -> Result<(), ErrorCode> {
    check_epoch(view, current_leader_epoch)?;
    match view.is_serving() || view.follows() {
        true => Ok(()),
        false => Err(ErrorCode::NotLeaderOrFollower),
    }
}

fn check_epoch(view: &PartitionView, current_leader_epoch: i32) -> Result<(), ErrorCode> {
    if view.is_deleted() {
        return Err(ErrorCode::UnknownTopicOrPartition);
    }
    if current_leader_epoch >= 0 {
        let known = view.leader_epoch();
        if current_leader_epoch < known {
            return Err(ErrorCode::FencedLeaderEpoch);
        }
        if current_leader_epoch > known {
            return Err(ErrorCode::UnknownLeaderEpoch);
        }
    }
    Ok(())
}

fn respond(context: &Context, plan: &Plan, topics: &Topics, parts: Vec<Part>) -> FetchResponse {
    let told: Vec<_> = parts
        .iter()
        .map(|part| {
            let told = Told {
                high_watermark: part.answer.high_watermark,
                log_start_offset: part.answer.log_start_offset,
            };
            let is_news = part.failed() || part.is_sent_elsewhere() || part.bytes() > 0;
            (part.key.clone(), told, is_news)
        })
        .collect();
    let news = match plan.session_id {
        NO_SESSION => vec![true; parts.len()],
        session_id => context.broker.fetch_sessions.told(session_id, &told),
    };
    let mut answered: Vec<FetchTopic> = Vec::new();
    let mut hinted = BTreeSet::new();
    for (part, is_news) in parts.into_iter().zip(news) {
        if plan.incremental && !is_news {
            continue;
        }
        hinted.extend(part.answer.current_leader.as_ref().map(|led| led.leader_id));
        let (name, topic_id) = match &part.key.0 {
            TopicKey::Name(name) => (name.clone(), Uuid::nil()),
            TopicKey::Id(id) => {
                let known = topics.get(&part.key.0).and_then(Option::as_ref);
                (
                    known.map_or_else(String::new, |topic| topic.name.to_string()),
                    *id,
                )
            }
        };
        match answered.last_mut() {
            Some(last) if last.name.as_str() == name && last.topic_id == topic_id => {
                last.partitions.push(part.answer);
            }
            _ => answered.push(FetchTopic {
                name: StrBytes::from_string(name),
                topic_id,
                partitions: vec![part.answer],
            }),
        }
    }
    let broker = &context.broker;
    let node_endpoints = match context.version >= NODE_ENDPOINT_VERSION {
        true => hinted
            .into_iter()
            .filter_map(|leader| broker.endpoint_of(leader))
            .map(|leader| NodeEndpoint {
                node_id: leader.node_id,
                host: StrBytes::from_string(leader.host),
                port: i32::from(leader.port),
                rack: leader.rack.map(StrBytes::from_string),
            })
            .collect(),
        false => Vec::new(),
    };
    FetchResponse {
        throttle_time_ms: 0,
        error_code: 0,
        session_id: plan.session_id,
        topics: answered,
        node_endpoints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLoader;
    use crate::shard::partition::log_config;
    use crate::shard::view::PartitionKey;
    use streamgauge_storage::disk::real::RealDisk;
    use streamgauge_storage::log::{Log, LogStart};

    #[test]
    fn consumers_may_read_from_a_replica_that_follows_a_leader() {
        let directory = tempfile::tempdir().unwrap();
        let config = ConfigLoader::new().finish("test").unwrap().topic_defaults;
        let log = Log::create(
            Arc::new(RealDisk),
            &directory.path().join("t-0"),
            log_config(&config),
            LogStart::of_new_partition(),
            "AAAAAAAAAAAAAAAAAAAABw",
            0,
        )
        .unwrap();
        let key = PartitionKey {
            topic_id: Uuid::from_u128(7),
            index: 0,
        };
        let view = PartitionView::new(key, log.reader(), 0);
        let nobody = Err(ErrorCode::NotLeaderOrFollower);
        assert_eq!(check_replica(&view, -1), nobody);
        view.publish_leadership(2, 5, false);
        assert_eq!(check_replica(&view, -1), nobody, "it only knows one");
        view.publish_follows(true);
        assert_eq!(check_replica(&view, -1), Ok(()));
        assert_eq!(check_replica(&view, 5), Ok(()));
        assert_eq!(check_replica(&view, 4), Err(ErrorCode::FencedLeaderEpoch));
        assert_eq!(check_replica(&view, 6), Err(ErrorCode::UnknownLeaderEpoch));
        assert_eq!(check_leader(&view, 5), nobody);
        view.publish_follows(false);
        view.publish_leadership(-1, 6, false);
        assert_eq!(check_replica(&view, -1), nobody, "it follows nobody");
    }
}
