//! DescribeTopicPartitions, version 0 (KIP-966): topics in the order of their names, in pages.

use std::collections::BTreeSet;

use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::kafka::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponse, DescribeTopicPartitionsResponsePartition,
    DescribeTopicPartitionsResponseTopic,
};
use super::kafka::{BrokerId, DescribeTopicPartitionsRequest};
use super::metadata::{TOPIC_OPERATIONS, describe, topic_name};

/// Most partitions in one answer (`max.request.partition.size.limit`).
const PARTITIONS_MAX: usize = 2000;

pub async fn handle(
    context: Context,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let broker = &context.broker;
    let (from_topic, from_partition) = match &request.cursor {
        Some(cursor) => (cursor.topic_name.to_string(), cursor.partition_index.max(0)),
        None => (String::new(), 0),
    };
    let names: BTreeSet<String> = match request.topics.is_empty() {
        true => broker
            .controller
            .read(|image| image.topics().map(|topic| topic.name.clone()).collect()),
        false => request
            .topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect(),
    };
    let limit = usize::try_from(request.response_partition_limit).unwrap_or(0);
    let mut left = limit.clamp(1, PARTITIONS_MAX);
    let mut topics = Vec::new();
    for name in names.range(from_topic.clone()..) {
        let skip = match *name == from_topic {
            true => usize::try_from(from_partition).unwrap_or(0),
            false => 0,
        };
        let Some(topic) = broker.controller.read(|image| image.topic(name).cloned()) else {
            topics.push(
                DescribeTopicPartitionsResponseTopic::default()
                    .with_error_code(ErrorCode::UnknownTopicOrPartition.code())
                    .with_name(Some(topic_name(name))),
            );
            continue;
        };
        let described = describe(broker, &topic);
        let mut partitions: Vec<_> = described
            .partitions
            .into_iter()
            .skip(skip)
            .map(|partition| {
                DescribeTopicPartitionsResponsePartition::default()
                    .with_error_code(partition.error_code)
                    .with_partition_index(partition.partition_index)
                    .with_leader_id(partition.leader_id)
                    .with_leader_epoch(partition.leader_epoch)
                    .with_replica_nodes(partition.replica_nodes)
                    .with_isr_nodes(partition.isr_nodes)
                    .with_eligible_leader_replicas(Some(Vec::<BrokerId>::new()))
                    .with_last_known_elr(Some(Vec::<BrokerId>::new()))
                    .with_offline_replicas(partition.offline_replicas)
            })
            .collect();
        let next = (partitions.len() > left).then(|| skip + left);
        partitions.truncate(left);
        left -= partitions.len();
        topics.push(
            DescribeTopicPartitionsResponseTopic::default()
                .with_name(described.name)
                .with_topic_id(described.topic_id)
                .with_is_internal(described.is_internal)
                .with_partitions(partitions)
                .with_topic_authorized_operations(TOPIC_OPERATIONS),
        );
        let cursor = match next {
            Some(index) => Some((name.clone(), index)),
            None if left == 0 => {
                let after = (
                    std::ops::Bound::Excluded(name.clone()),
                    std::ops::Bound::Unbounded,
                );
                names.range(after).next().map(|next| (next.clone(), 0))
            }
            None => None,
        };
        if let Some((name, index)) = cursor {
            let cursor = Cursor::default()
                .with_topic_name(topic_name(&name))
                .with_partition_index(i32::try_from(index).unwrap_or(i32::MAX));
            return DescribeTopicPartitionsResponse::default()
                .with_topics(topics)
                .with_next_cursor(Some(cursor));
        }
        if left == 0 {
            break;
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics)
}
