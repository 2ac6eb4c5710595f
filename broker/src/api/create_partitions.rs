//! CreatePartitions, versions 0 to 3 (KIP-195).

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;

use super::Context;
use super::kafka::CreatePartitionsRequest;
use super::kafka::create_partitions_request::CreatePartitionsTopic;
use super::kafka::create_partitions_response::{
    CreatePartitionsResponse, CreatePartitionsTopicResult,
};
use crate::config::AGGREGATION;
use crate::controller::decide::{Placement, Refusal, create_partitions, is_internal};
use crate::controller::image::Image;
use crate::controller::record::MetadataRecord;
use crate::jobs::check_partition_growth;

pub async fn handle(
    context: Context,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let placement = context.broker.placement();
    let (wanted, validate_only) = (request.topics, request.validate_only);
    let asked = wanted.clone();
    let decided = context
        .broker
        .controller
        .write(move |image| {
            let mut records = Vec::new();
            let results = wanted
                .iter()
                .map(|topic| {
                    let outcome = decide(image, &placement, topic);
                    let outcome = outcome.map(|record| records.push(record));
                    result(topic, outcome)
                })
                .collect();
            if validate_only {
                records.clear();
            }
            (records, results)
        })
        .await;
    let results = decided.unwrap_or_else(|refusal| {
        asked
            .iter()
            .map(|topic| result(topic, Err(refusal.clone())))
            .collect()
    });
    CreatePartitionsResponse::default().with_results(results)
}

fn decide(
    image: &Image,
    placement: &Placement,
    wanted: &CreatePartitionsTopic,
) -> Result<MetadataRecord, Refusal> {
    let topic = image.topic(&wanted.name).ok_or_else(|| {
        Refusal::new(
            ErrorCode::UnknownTopicOrPartition,
            "This server does not host this topic-partition.",
        )
    })?;
    if is_internal(&topic.name) {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("Topic '{}' is internal and cannot be changed.", topic.name),
        ));
    }
    let declared = topic.configs.get(AGGREGATION).map(String::as_str);
    check_partition_growth(&topic.name, declared)
        .map_err(|reason| Refusal::new(ErrorCode::InvalidPartitions, reason))?;
    let assignments: Option<Vec<Vec<i32>>> = wanted.assignments.as_ref().map(|assignments| {
        assignments
            .iter()
            .map(|assignment| assignment.broker_ids.iter().map(|id| id.0).collect())
            .collect()
    });
    create_partitions(topic, placement, wanted.count, assignments.as_deref())
}

fn result(
    topic: &CreatePartitionsTopic,
    outcome: Result<(), Refusal>,
) -> CreatePartitionsTopicResult {
    let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
    match outcome {
        Ok(()) => result,
        Err(refusal) => result
            .with_error_code(refusal.code.code())
            .with_error_message(Some(StrBytes::from_string(refusal.message))),
    }
}
