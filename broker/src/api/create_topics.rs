//! CreateTopics, versions 2 to 7 (KIP-464 defaults, KIP-525 configs in the answer, KIP-516 ids).
//!
//! A topic with a config that is not valid is not created. The answer comes when the partitions
//! are open and led.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::Context;
use super::describe_configs::{self, RESOURCE_TOPIC};
use super::kafka::create_topics_request::CreatableTopic;
use super::kafka::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponse,
};
use super::kafka::describe_configs_request::{DescribeConfigsRequest, DescribeConfigsResource};
use super::kafka::{CreateTopicsRequest, TopicName};
use crate::broker::Broker;
use crate::config::{AGGREGATION, BrokerLayers, TopicConfig};
use crate::controller::command::Command;
use crate::controller::decide::{
    GROUP_METADATA_TOPIC, NewTopic, Refusal, TRANSACTION_STATE_TOPIC, create_topic,
};
use crate::controller::image::{Image, Topic};
use crate::controller::record::MetadataRecord;
use crate::jobs::check_aggregation;

/// How long the creation of a topic waits until its partitions are led, and how often it looks.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
const LEADER_LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What was decided about one topic: the topic as it will be.
type Decided = Result<Arc<Topic>, Refusal>;

pub async fn handle(context: Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let broker = &context.broker;
    let mut wanted = Vec::with_capacity(request.topics.len());
    let mut answers: BTreeMap<TopicName, CreatableTopicResult> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for topic in &request.topics {
        if !seen.insert(topic.name.clone()) {
            twice.insert(topic.name.clone());
        }
    }
    for topic in request.topics {
        if twice.contains(&topic.name) {
            let refusal = Refusal::new(
                ErrorCode::InvalidRequest,
                "Duplicate topic name in the request.",
            );
            answers.insert(topic.name.clone(), refused(topic.name, refusal));
            continue;
        }
        wanted.push(new_topic(topic));
    }
    let decided = create_here(broker, wanted, request.validate_only).await;
    for (name, decided) in decided {
        let name = super::metadata::topic_name(&name);
        let answer = match decided {
            Ok(topic) => created(&context, &topic),
            Err(refusal) => refused(name.clone(), refusal),
        };
        answers.insert(name, answer);
    }
    CreateTopicsResponse::default().with_topics(answers.into_values().collect())
}

fn new_topic(topic: CreatableTopic) -> NewTopic {
    NewTopic {
        name: topic.name.to_string(),
        partitions: topic.num_partitions,
        replication_factor: topic.replication_factor,
        assignments: topic
            .assignments
            .into_iter()
            .map(|assignment| {
                let brokers = assignment.broker_ids.iter().map(|broker| broker.0);
                (assignment.partition_index, brokers.collect())
            })
            .collect(),
        configs: topic
            .configs
            .into_iter()
            .filter_map(|config| Some((config.name.to_string(), config.value?.to_string())))
            .collect(),
        internal: false,
    }
}

/// Creates topics on the controller, which this broker is: all that can be, each with its own
/// outcome. Waits until they have leaders.
pub async fn create_here(
    broker: &Arc<Broker>,
    wanted: Vec<NewTopic>,
    validate_only: bool,
) -> Vec<(String, Decided)> {
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let for_decision = Arc::clone(broker);
    let decided = broker
        .controller
        .write(move |image| decide(&for_decision, image, wanted, validate_only))
        .await;
    match decided {
        Ok(decided) => {
            if !validate_only {
                for topic in decided
                    .iter()
                    .filter_map(|(_, decided)| decided.as_ref().ok())
                {
                    await_leaders(broker, topic).await;
                }
            }
            decided
        }
        Err(refusal) => names
            .into_iter()
            .map(|name| (name, Err(refusal.clone())))
            .collect(),
    }
}

/// Waits until the partitions of a topic are led, so that its creator need not ask twice.
async fn await_leaders(broker: &Broker, topic: &Topic) {
    let deadline = Instant::now() + LEADER_PATIENCE;
    for index in 0..i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX) {
        while broker.leadership(topic.topic_id, index).is_none() && Instant::now() < deadline {
            tokio::time::sleep(LEADER_LOOK_INTERVAL).await;
        }
    }
}

fn decide(
    broker: &Broker,
    image: &Image,
    wanted: Vec<NewTopic>,
    validate_only: bool,
) -> (Vec<MetadataRecord>, Vec<(String, Decided)>) {
    let placement = broker.placement();
    // Topics of one request must not collide with each other either.
    let mut after = image.clone();
    let mut records = Vec::new();
    let mut outcomes = Vec::with_capacity(wanted.len());
    for new in wanted {
        let outcome = check_configs(broker, image, &new)
            .and_then(|()| create_topic(&after, &placement, &new, crate::ids::new_id()))
            .and_then(|record| {
                after.apply(record.clone());
                let topic = after.topic(&new.name).cloned().ok_or_else(|| {
                    Refusal::new(ErrorCode::UnknownTopicOrPartition, "the topic was not made")
                })?;
                check_declaration(&topic).inspect_err(|_| {
                    after.apply(MetadataRecord::TopicRemoved {
                        topic_id: topic.topic_id,
                    });
                })?;
                records.push(record);
                Ok(topic)
            });
        outcomes.push((new.name, outcome));
    }
    if validate_only {
        records.clear();
    }
    (records, outcomes)
}

fn check_configs(broker: &Broker, image: &Image, new: &NewTopic) -> Result<(), Refusal> {
    let layers = BrokerLayers::new(image, broker.id(), &broker.config.settings);
    TopicConfig::resolve(&new.configs, &layers)
        .map_err(|error| Refusal::new(ErrorCode::InvalidConfig, error.to_string()))?;
    Ok(())
}

/// A derived topic is made only with a declaration that can run.
fn check_declaration(topic: &Topic) -> Result<(), Refusal> {
    let partitions = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let declared = topic.configs.get(AGGREGATION).map(String::as_str);
    check_aggregation(&topic.name, None, declared, partitions)
        .map_err(|reason| Refusal::new(ErrorCode::InvalidConfig, reason))
}

/// Creates the topic that a client asked metadata for.
pub async fn auto_create(broker: &Arc<Broker>, name: &str) -> Result<Arc<Topic>, Refusal> {
    if name == GROUP_METADATA_TOPIC {
        broker.coordinate_groups().await?;
    } else if name == TRANSACTION_STATE_TOPIC {
        broker.coordinate_transactions().await?;
    } else {
        let new = NewTopic {
            name: name.to_owned(),
            partitions: -1,
            replication_factor: -1,
            assignments: Vec::new(),
            configs: BTreeMap::new(),
            internal: false,
        };
        match broker.command(Command::CreateTopic(new)).await {
            // Somebody else was faster.
            Err(refusal) if refusal.code == ErrorCode::TopicAlreadyExists => {}
            Err(refusal) => return Err(refusal),
            Ok(_) => {}
        }
    }
    broker
        .controller
        .read(|image| image.topic(name).cloned())
        .ok_or_else(|| Refusal::new(ErrorCode::LeaderNotAvailable, "the topic is being created"))
}

fn created(context: &Context, topic: &Topic) -> CreatableTopicResult {
    let replicas = topic.partitions.first().map_or(0, Vec::len);
    CreatableTopicResult::default()
        .with_name(super::metadata::topic_name(&topic.name))
        .with_topic_id(topic.topic_id)
        .with_num_partitions(i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX))
        .with_replication_factor(i16::try_from(replicas).unwrap_or(i16::MAX))
        .with_configs(Some(configs(context, topic)))
}

/// The configs of a new topic, as DescribeConfigs would list them.
fn configs(context: &Context, topic: &Topic) -> Vec<CreatableTopicConfigs> {
    let broker = &context.broker;
    let request = DescribeConfigsRequest::default().with_resources(vec![
        DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(StrBytes::from_string(topic.name.clone())),
    ]);
    let described = broker.controller.read(|image| {
        let seen = image.with_topic(topic);
        describe_configs::describe(&request, &seen, &broker.config)
    });
    described
        .results
        .into_iter()
        .flat_map(|result| result.configs)
        .map(|config| {
            CreatableTopicConfigs::default()
                .with_name(config.name)
                .with_value(config.value)
                .with_read_only(config.read_only)
                .with_config_source(config.config_source)
                .with_is_sensitive(config.is_sensitive)
        })
        .collect()
}

fn refused(name: TopicName, refusal: Refusal) -> CreatableTopicResult {
    CreatableTopicResult::default()
        .with_name(name)
        .with_topic_id(Uuid::nil())
        .with_error_code(refusal.code.code())
        .with_error_message(Some(StrBytes::from_string(refusal.message)))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_configs(None)
        .with_topic_config_error_code(0)
}
