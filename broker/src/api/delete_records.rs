//! DeleteRecords, versions 0 to 2 (KIP-107): moves log start offsets up; -1 is the high watermark.

use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::fetch::check_leader;
use super::kafka::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsResponse, DeleteRecordsTopicResult,
};
use super::kafka::{DeleteRecordsRequest, TopicName};
use crate::shard::event::DeleteRecordsError;

pub async fn handle(context: Context, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in topic.partitions {
            let index = wanted.partition_index;
            let answer = DeleteRecordsPartitionResult::default().with_partition_index(index);
            partitions.push(
                match delete(&context, &topic.name, index, wanted.offset).await {
                    Ok(low_watermark) => answer.with_low_watermark(low_watermark),
                    Err(code) => answer.with_low_watermark(-1).with_error_code(code.code()),
                },
            );
        }
        topics.push(
            DeleteRecordsTopicResult::default()
                .with_name(topic.name)
                .with_partitions(partitions),
        );
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

async fn delete(
    context: &Context,
    topic: &TopicName,
    index: i32,
    offset: i64,
) -> Result<i64, ErrorCode> {
    let topic = context
        .broker
        .topics
        .by_name(topic)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if topic.is_internal() {
        return Err(ErrorCode::InvalidTopicException);
    }
    // As Kafka: records of a topic that is only compacted are not to be deleted by offset.
    if !topic.config().cleanup_policy.delete {
        return Err(ErrorCode::PolicyViolation);
    }
    let partition = topic.open_partition(index)?;
    check_leader(partition.view(), -1)?;
    partition
        .delete_records(offset)
        .await
        .map_err(|error| match error {
            DeleteRecordsError::OffsetOutOfRange => ErrorCode::OffsetOutOfRange,
            DeleteRecordsError::NotLeader => ErrorCode::NotLeaderOrFollower,
            DeleteRecordsError::Storage(_) => ErrorCode::KafkaStorageError,
        })
}
