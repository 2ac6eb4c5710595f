//! OffsetForLeaderEpoch, versions 2 to 4 (KIP-320): where an epoch ended, so that a consumer can
//! tell that what it read was cut off.

use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::fetch::check_leader;
use super::kafka::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use super::kafka::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use super::kafka::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, TopicName};

pub async fn handle(
    context: Context,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let answer = EpochEndOffset::default()
                .with_partition(wanted.partition)
                .with_leader_epoch(-1)
                .with_end_offset(-1);
            partitions.push(match end_offset(&context, &topic.topic, wanted).await {
                Ok(Some(end)) => answer
                    .with_leader_epoch(end.leader_epoch)
                    .with_end_offset(end.end_offset),
                Ok(None) => answer,
                Err(code) => answer.with_error_code(code.code()),
            });
        }
        topics.push(
            OffsetForLeaderTopicResult::default()
                .with_topic(topic.topic)
                .with_partitions(partitions),
        );
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

async fn end_offset(
    context: &Context,
    topic: &TopicName,
    wanted: &OffsetForLeaderPartition,
) -> Result<Option<crate::shard::event::EpochEnd>, ErrorCode> {
    let topic = context
        .broker
        .topics
        .by_name(topic)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = topic.open_partition(wanted.partition)?;
    check_leader(partition.view(), wanted.current_leader_epoch)?;
    Ok(partition.epoch_end(wanted.leader_epoch).await)
}
