//! DeleteTopics, versions 1 to 6 (by id from version 6, KIP-516).

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;
use uuid::Uuid;

use super::Context;
use super::kafka::delete_topics_request::DeleteTopicState;
use super::kafka::delete_topics_response::{DeletableTopicResult, DeleteTopicsResponse};
use super::kafka::{DeleteTopicsRequest, TopicName};
use super::metadata::topic_name;
use crate::controller::decide::{Refusal, is_internal};
use crate::controller::image::Image;
use crate::controller::record::MetadataRecord;

/// First version that may name topics by id, and has the list of states.
const TOPIC_STATE_VERSION: i16 = 6;

pub async fn handle(context: Context, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let wanted: Vec<DeleteTopicState> = match context.version >= TOPIC_STATE_VERSION {
        true => request.topics,
        false => request
            .topic_names
            .into_iter()
            .map(|name| DeleteTopicState::default().with_name(Some(name)))
            .collect(),
    };
    let enabled = context.broker.config.delete_topic_enable;
    let asked = wanted.clone();
    let decided = context
        .broker
        .controller
        .write(move |image| decide(image, &asked, enabled))
        .await;
    let responses = match decided {
        Ok(responses) => responses,
        Err(refusal) => wanted
            .into_iter()
            .map(|topic| refused(topic.name, topic.topic_id, &refusal))
            .collect(),
    };
    DeleteTopicsResponse::default().with_responses(responses)
}

fn decide(
    image: &Image,
    wanted: &[DeleteTopicState],
    enabled: bool,
) -> (Vec<MetadataRecord>, Vec<DeletableTopicResult>) {
    let mut records = Vec::new();
    let mut responses = Vec::with_capacity(wanted.len());
    let mut seen = std::collections::HashSet::new();
    for topic in wanted {
        match find(image, topic, enabled) {
            Ok((name, topic_id)) => {
                if seen.insert(topic_id) {
                    records.push(MetadataRecord::TopicRemoved { topic_id });
                }
                responses.push(
                    DeletableTopicResult::default()
                        .with_name(Some(name))
                        .with_topic_id(topic_id),
                );
            }
            Err(refusal) => responses.push(refused(topic.name.clone(), topic.topic_id, &refusal)),
        }
    }
    (records, responses)
}

fn find(
    image: &Image,
    topic: &DeleteTopicState,
    enabled: bool,
) -> Result<(TopicName, Uuid), Refusal> {
    if !enabled {
        return Err(Refusal::new(
            ErrorCode::TopicDeletionDisabled,
            "delete.topic.enable is false",
        ));
    }
    let found = match &topic.name {
        Some(_) if !topic.topic_id.is_nil() => {
            return Err(Refusal::new(
                ErrorCode::InvalidRequest,
                "You may not specify both topic name and topic id.",
            ));
        }
        Some(name) => image.topic(name).ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownTopicOrPartition,
                "This server does not host this topic-partition.",
            )
        })?,
        None => image.topic_by_id(topic.topic_id).ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownTopicId,
                "This server does not host this topic ID.",
            )
        })?,
    };
    if is_internal(&found.name) {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("Topic '{}' is internal and cannot be deleted.", found.name),
        ));
    }
    Ok((topic_name(&found.name), found.topic_id))
}

fn refused(name: Option<TopicName>, topic_id: Uuid, refusal: &Refusal) -> DeletableTopicResult {
    DeletableTopicResult::default()
        .with_name(name)
        .with_topic_id(topic_id)
        .with_error_code(refusal.code.code())
        .with_error_message(Some(StrBytes::from_string(refusal.message.clone())))
}
