//! AlterPartitionReassignments, versions 0 and 1 (KIP-455, KIP-860).
//!
//! Answered when the move is logged; it goes on until the partition's group has the new members. One that is cancelled is over
//! for clients with the answer, as in Kafka, while the group comes back to the members that it had.

use streamgauge_protocol::messages::protocol::StrBytes;

use super::Context;
use super::kafka::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use super::kafka::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};
use super::metadata::topic_name;
use crate::controller::decide::{Placement, Refusal};
use crate::controller::image::Image;
use crate::controller::reassign::{Wish, alter};
use crate::controller::record::MetadataRecord;

pub async fn handle(
    context: Context,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let placement = context.broker.placement();
    let may_change_factor = context.version < 1 || request.allow_replication_factor_change;
    let decided = context
        .broker
        .controller
        .write(move |image| decide(image, &placement, &request, may_change_factor))
        .await;
    match decided {
        Ok(topics) => AlterPartitionReassignmentsResponse::default()
            .with_allow_replication_factor_change(may_change_factor)
            .with_responses(topics),
        Err(refusal) => AlterPartitionReassignmentsResponse::default()
            .with_error_code(refusal.code.code())
            .with_error_message(Some(StrBytes::from_string(refusal.message))),
    }
}

fn decide(
    image: &Image,
    placement: &Placement,
    request: &AlterPartitionReassignmentsRequest,
    may_change_factor: bool,
) -> (Vec<MetadataRecord>, Vec<ReassignableTopicResponse>) {
    let mut records = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            let target = partition.replicas.as_ref();
            let wish = Wish {
                topic: topic.name.to_string(),
                partition: partition.partition_index,
                target: target.map(|replicas| replicas.iter().map(|id| id.0).collect()),
            };
            let outcome = alter(image, placement, &wish, may_change_factor);
            let outcome = outcome.map(|decided| records.extend(decided));
            partitions.push(result(partition.partition_index, outcome));
        }
        let topic = topic_name(&topic.name);
        topics.push(
            ReassignableTopicResponse::default()
                .with_name(topic)
                .with_partitions(partitions),
        );
    }
    (records, topics)
}

fn result(partition: i32, outcome: Result<(), Refusal>) -> ReassignablePartitionResponse {
    let result = ReassignablePartitionResponse::default().with_partition_index(partition);
    match outcome {
        Ok(()) => result,
        Err(refusal) => result
            .with_error_code(refusal.code.code())
            .with_error_message(Some(StrBytes::from_string(refusal.message))),
    }
}
