//! Metadata, versions 0 to 13.
//!
//! Topics are asked for by name, from version 10 also by id; no list means all (version 0: an
//! empty list means all). Topics that do not exist are created if both the client and
//! `auto.create.topics.enable` want it. The metadata log's topic is not shown.

use std::collections::HashSet;
use std::sync::Arc;

use streamgauge_protocol::error::ErrorCode;
use uuid::Uuid;

use super::Context;
use super::kafka::metadata_response::{
    MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use super::kafka::{BrokerId, MetadataRequest, TopicName};
use crate::api::create_topics::auto_create;
use crate::broker::Broker;
use crate::controller::decide::check_topic_name;
use crate::controller::image::Topic;
use streamgauge_protocol::messages::protocol::StrBytes;

/// "Not asked for" in the authorized-operations fields (KIP-430).
pub const OPERATIONS_NOT_ASKED: i32 = i32::MIN;

/// All operations that a cluster or a topic knows; without an authorizer a client may do all.
pub const CLUSTER_OPERATIONS: i32 = operations(&[5, 7, 8, 9, 10, 11, 12]);
pub const TOPIC_OPERATIONS: i32 = operations(&[3, 4, 5, 6, 7, 8, 10, 11]);

/// Codes of `AclOperation` as a bit field.
const fn operations(codes: &[u8]) -> i32 {
    let mut bits = 0;
    let mut at = 0;
    while at < codes.len() {
        bits |= 1 << codes[at];
        at += 1;
    }
    bits
}

pub async fn handle(context: Context, request: MetadataRequest) -> MetadataResponse {
    let broker = &context.broker;
    let version = context.version;
    let wants_all = match &request.topics {
        None => true,
        Some(topics) => version == 0 && topics.is_empty(),
    };
    let mut topics = if wants_all {
        let all = broker
            .controller
            .read(|image| image.topics().cloned().collect::<Vec<_>>());
        all.iter().map(|topic| describe(broker, topic)).collect()
    } else {
        named_topics(&context, &request).await
    };
    if request.include_topic_authorized_operations && version >= 8 {
        for topic in &mut topics {
            if topic.error_code == 0 {
                topic.topic_authorized_operations = TOPIC_OPERATIONS;
            }
        }
    }
    let include_cluster =
        (8..=10).contains(&version) && request.include_cluster_authorized_operations;
    let cluster_id = broker
        .controller
        .read(|image| image.cluster_id().to_owned());
    MetadataResponse::default()
        .with_brokers(brokers(broker))
        .with_cluster_id(Some(StrBytes::from_string(cluster_id)))
        .with_controller_id(BrokerId(broker.controller.leader()))
        .with_topics(topics)
        .with_cluster_authorized_operations(if include_cluster {
            CLUSTER_OPERATIONS
        } else {
            OPERATIONS_NOT_ASKED
        })
}

fn brokers(broker: &Broker) -> Vec<MetadataResponseBroker> {
    let alive = broker.brokers_alive().into_iter().map(|known| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(known.node_id))
            .with_host(StrBytes::from_string(known.host))
            .with_port(i32::from(known.port))
            .with_rack(known.rack.map(StrBytes::from_string))
    });
    alive.collect()
}

async fn named_topics(context: &Context, request: &MetadataRequest) -> Vec<MetadataResponseTopic> {
    let broker = &context.broker;
    let asked = request.topics.as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    let mut answers = Vec::with_capacity(asked.len());
    let mut missing = Vec::new();
    for topic in asked {
        let by_id = (!topic.topic_id.is_nil()).then_some(topic.topic_id);
        if let Some(topic_id) = by_id {
            if seen.insert((None, topic_id)) {
                let found = broker
                    .controller
                    .read(|image| image.topic_by_id(topic_id).cloned());
                answers.push(match found {
                    Some(found) => describe(broker, &found),
                    None => unknown_id(topic_id),
                });
            }
            continue;
        }
        let Some(name) = &topic.name else {
            answers.push(failed(None, ErrorCode::InvalidTopicException));
            continue;
        };
        if !seen.insert((Some(name.clone()), Uuid::nil())) {
            continue;
        }
        match broker.controller.read(|image| image.topic(name).cloned()) {
            Some(found) => answers.push(describe(broker, &found)),
            None => missing.push(name.clone()),
        }
    }
    // Clients before version 4 cannot say; they expect creation.
    let may_create = (context.version < 4 || request.allow_auto_topic_creation)
        && broker.config.auto_create_topics_enable;
    answers.extend(absent_topics(broker, missing, may_create).await);
    answers
}

async fn absent_topics(
    broker: &Arc<Broker>,
    names: Vec<TopicName>,
    may_create: bool,
) -> Vec<MetadataResponseTopic> {
    let mut answers = Vec::with_capacity(names.len());
    for name in names {
        if check_topic_name(&name).is_err() {
            answers.push(failed(Some(name), ErrorCode::InvalidTopicException));
        } else if !may_create {
            answers.push(failed(Some(name), ErrorCode::UnknownTopicOrPartition));
        } else {
            // The partitions are open and led when this returns, so the client need not ask again.
            answers.push(match auto_create(broker, &name).await {
                Ok(topic) => describe(broker, &topic),
                Err(refusal) => failed(Some(name), refusal.code),
            });
        }
    }
    answers
}

/// What clients are told about a topic.
pub fn describe(broker: &Broker, topic: &Arc<Topic>) -> MetadataResponseTopic {
    let count = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let partitions = (0..count)
        .map(|index| {
            let replicas = topic.replicas_told(index);
            let brokers: Vec<BrokerId> = replicas.iter().copied().map(BrokerId).collect();
            let offline: Vec<BrokerId> = replicas
                .iter()
                .filter(|replica| broker.is_offline(**replica, topic.topic_id, index))
                .copied()
                .map(BrokerId)
                .collect();
            let answer = MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_replica_nodes(brokers)
                .with_offline_replicas(offline);
            match broker.leadership(topic.topic_id, index) {
                Some(led) if broker.cluster.is_there(led.leader) => answer
                    .with_leader_id(BrokerId(led.leader))
                    .with_leader_epoch(led.leader_epoch)
                    .with_isr_nodes(in_sync(led.in_sync, &replicas)),
                _ => answer
                    .with_error_code(ErrorCode::LeaderNotAvailable.code())
                    .with_leader_id(BrokerId(-1))
                    .with_leader_epoch(-1),
            }
        })
        .collect();
    MetadataResponseTopic::default()
        .with_name(Some(topic_name(&topic.name)))
        .with_topic_id(topic.topic_id)
        .with_is_internal(crate::controller::decide::is_internal(&topic.name))
        .with_partitions(partitions)
        .with_topic_authorized_operations(OPERATIONS_NOT_ASKED)
}

/// Members of the group that are to leave it, and were never more than on their way, are not told of.
fn in_sync(members: Vec<i32>, replicas: &[i32]) -> Vec<BrokerId> {
    let told = members.into_iter().filter(|id| replicas.contains(id));
    told.map(BrokerId).collect()
}

fn failed(name: Option<TopicName>, code: ErrorCode) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_error_code(code.code())
        // Before version 12 the name cannot be null; the empty one is what Kafka sends then.
        .with_name(Some(name.unwrap_or_default()))
        .with_topic_authorized_operations(OPERATIONS_NOT_ASKED)
}

fn unknown_id(topic_id: Uuid) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_error_code(ErrorCode::UnknownTopicId.code())
        .with_name(None)
        .with_topic_id(topic_id)
        .with_topic_authorized_operations(OPERATIONS_NOT_ASKED)
}

/// A topic's name in the form of the codec.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
