//! DescribeProducers, version 0 (KIP-664): the producers that a partition knows.

use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::fetch::check_leader;
use super::kafka::describe_producers_response::{
    DescribeProducersResponse, PartitionResponse, ProducerState, TopicResponse,
};
use super::kafka::{DescribeProducersRequest, ProducerId, TopicName};

pub async fn handle(
    context: Context,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partition_indexes.len());
        for index in topic.partition_indexes {
            let answer = PartitionResponse::default().with_partition_index(index);
            partitions.push(match producers(&context, &topic.name, index).await {
                Ok(producers) => answer.with_active_producers(producers),
                Err(code) => answer.with_error_code(code.code()),
            });
        }
        topics.push(
            TopicResponse::default()
                .with_name(topic.name)
                .with_partitions(partitions),
        );
    }
    DescribeProducersResponse::default().with_topics(topics)
}

async fn producers(
    context: &Context,
    topic: &TopicName,
    index: i32,
) -> Result<Vec<ProducerState>, ErrorCode> {
    let topic = context
        .broker
        .topics
        .by_name(topic)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = topic.open_partition(index)?;
    check_leader(partition.view(), -1)?;
    let producers = partition
        .producers()
        .await
        .ok_or(ErrorCode::NotLeaderOrFollower)?;
    Ok(producers
        .iter()
        .map(|producer| {
            ProducerState::default()
                .with_producer_id(ProducerId(producer.producer_id))
                .with_producer_epoch(i32::from(producer.producer_epoch))
                .with_last_sequence(producer.last_sequence())
                .with_last_timestamp(producer.last_timestamp)
                .with_coordinator_epoch(producer.coordinator_epoch)
                .with_current_txn_start_offset(
                    producer.current_transaction_first_offset.unwrap_or(-1),
                )
        })
        .collect())
}
