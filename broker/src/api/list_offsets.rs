//! ListOffsets, versions 1 to 11.
//!
//! Special timestamps: -1 latest (the last stable offset for `read_committed`), -2 earliest, -3 the
//! record of the largest timestamp (KIP-734), -4 earliest local (KIP-405), -5 latest tiered
//! (KIP-1005), -6 earliest pending upload (KIP-1023). Nothing is tiered, so -5 finds nothing and -6
//! is the earliest. Any other is a time: the first record at or after it, found inside its batch.
//! What is not found is offset -1 and timestamp -1.

use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::log::{LogReader, ReadError, TimestampOffset};

use super::Context;
use super::fetch::check_leader;
use super::kafka::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use super::kafka::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use super::kafka::{ListOffsetsRequest, TopicName};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;

const READ_COMMITTED: i8 = 1;

/// First version whose answer has room for an epoch.
const LEADER_EPOCH_VERSION: i16 = 4;

pub async fn handle(context: Context, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let read_committed = request.isolation_level == READ_COMMITTED;
    let mut topics = Vec::with_capacity(request.topics.len());
    for ListOffsetsTopic {
        name, partitions, ..
    } in request.topics
    {
        let mut answers = Vec::with_capacity(partitions.len());
        for partition in &partitions {
            let answer = ListOffsetsPartitionResponse::default()
                .with_partition_index(partition.partition_index);
            answers.push(
                match list(&context, &name, partition, read_committed).await {
                    Ok(Some(found)) => answer
                        .with_offset(found.offset)
                        .with_timestamp(found.timestamp)
                        .with_leader_epoch(match context.version >= LEADER_EPOCH_VERSION {
                            true => found.leader_epoch,
                            false => -1,
                        }),
                    Ok(None) => nothing(answer),
                    Err(code) => nothing(answer).with_error_code(code.code()),
                },
            );
        }
        topics.push(
            ListOffsetsTopicResponse::default()
                .with_name(name)
                .with_partitions(answers),
        );
    }
    ListOffsetsResponse::default().with_topics(topics)
}

fn nothing(answer: ListOffsetsPartitionResponse) -> ListOffsetsPartitionResponse {
    answer
        .with_offset(-1)
        .with_timestamp(-1)
        .with_leader_epoch(-1)
}

async fn list(
    context: &Context,
    topic: &TopicName,
    wanted: &ListOffsetsPartition,
    read_committed: bool,
) -> Result<Option<TimestampOffset>, ErrorCode> {
    let topic = context
        .broker
        .topics
        .by_name(topic)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = topic.open_partition(wanted.partition_index)?;
    let view = partition.view();
    check_leader(view, wanted.current_leader_epoch)?;
    let offset_limit = match read_committed {
        true => view.last_stable_offset(),
        false => view.high_watermark(),
    };
    let at = |offset| {
        Ok(Some(TimestampOffset {
            timestamp: -1,
            offset,
            leader_epoch: view.leader_epoch(),
        }))
    };
    match wanted.timestamp {
        LATEST => at(offset_limit),
        EARLIEST | EARLIEST_LOCAL | EARLIEST_PENDING_UPLOAD => at(view.log_start_offset()),
        LATEST_TIERED => Ok(None),
        MAX_TIMESTAMP => {
            search(view.reader(), move |reader| {
                reader.max_timestamp(offset_limit)
            })
            .await
        }
        timestamp => {
            search(view.reader(), move |reader| {
                reader.offset_for_timestamp(timestamp, offset_limit)
            })
            .await
        }
    }
}

/// Time queries walk indexes and batches that may be on disk only, and decompress.
async fn search(
    reader: &LogReader,
    look: impl FnOnce(&LogReader) -> Result<Option<TimestampOffset>, ReadError> + Send + 'static,
) -> Result<Option<TimestampOffset>, ErrorCode> {
    let reader = reader.clone();
    match tokio::task::spawn_blocking(move || look(&reader)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => {
            tracing::error!(%error, "log cannot be searched by time");
            Err(ErrorCode::KafkaStorageError)
        }
        Err(error) => {
            tracing::error!(%error, "search by time failed");
            Err(ErrorCode::KafkaStorageError)
        }
    }
}
