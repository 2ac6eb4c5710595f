//! ListPartitionReassignments, version 0 (KIP-455): the moves that are under way.

use std::sync::Arc;

use super::Context;
use super::kafka::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use super::kafka::{
    BrokerId, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};
use super::metadata::topic_name;
use crate::controller::image::Topic;

pub async fn handle(
    context: Context,
    request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let topics: Vec<(Arc<Topic>, Option<Vec<i32>>)> =
        context
            .broker
            .controller
            .read(|image| match request.topics {
                None => image
                    .topics()
                    .map(|topic| (Arc::clone(topic), None))
                    .collect(),
                Some(wanted) => wanted
                    .into_iter()
                    .filter_map(|wanted| {
                        let topic = image.topic(&wanted.name)?;
                        Some((Arc::clone(topic), Some(wanted.partition_indexes)))
                    })
                    .collect(),
            });
    let ongoing = topics.into_iter().filter_map(|(topic, wanted)| {
        let partitions: Vec<_> = topic
            .reassignments()
            .map(|(index, _)| index)
            .filter(|index| topic.is_reassigning(*index))
            .filter(|index| wanted.as_ref().is_none_or(|wanted| wanted.contains(index)))
            .map(|index| ongoing(&topic, index))
            .collect();
        (!partitions.is_empty()).then(|| {
            OngoingTopicReassignment::default()
                .with_name(topic_name(&topic.name))
                .with_partitions(partitions)
        })
    });
    ListPartitionReassignmentsResponse::default().with_topics(ongoing.collect())
}

fn ongoing(topic: &Topic, index: i32) -> OngoingPartitionReassignment {
    let ids = |brokers: Vec<i32>| brokers.into_iter().map(BrokerId).collect();
    OngoingPartitionReassignment::default()
        .with_partition_index(index)
        .with_replicas(ids(topic.replicas_told(index)))
        .with_adding_replicas(ids(topic.adding(index)))
        .with_removing_replicas(ids(topic.removing(index)))
}
