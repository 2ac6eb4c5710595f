//! DescribeConfigs, AlterConfigs and IncrementalAlterConfigs: the pure parts of
//! [`super::describe_configs`] and [`super::alter_configs`] on the metadata image.

use super::alter_configs::{self, AlterDecision, ConfigChange, ConfigResource};
use super::kafka::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, alter_configs_response,
    incremental_alter_configs_response,
};
use super::{Context, describe_configs};
use crate::config::{AGGREGATION, ConfigMap};
use crate::controller::image::Image;
use crate::controller::record::MetadataRecord;
use streamgauge_protocol::messages::protocol::StrBytes;

pub async fn describe(
    context: Context,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let broker = &context.broker;
    broker
        .controller
        .read(|image| describe_configs::describe(&request, image, &broker.config))
}

pub async fn incremental_alter(
    context: Context,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let asked = request.clone();
    let config = context.broker.config.clone();
    let decided = context
        .broker
        .controller
        .write(move |image| {
            let check_topic =
                |topic: &str, old: &ConfigMap, new: &ConfigMap| check(image, topic, old, new);
            let AlterDecision { response, changes } =
                alter_configs::incremental_alter(&asked, image, &config, &check_topic);
            (records(image, changes), response)
        })
        .await;
    decided.unwrap_or_else(|refusal| {
        tracing::warn!(%refusal, "configs were not altered");
        let responses = request.resources.into_iter().map(|resource| {
            incremental_alter_configs_response::AlterConfigsResourceResponse::default()
                .with_error_code(refusal.code.code())
                .with_error_message(Some(StrBytes::from_string(refusal.message.clone())))
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name)
        });
        IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
    })
}

pub async fn alter(context: Context, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let asked = request.clone();
    let config = context.broker.config.clone();
    let decided = context
        .broker
        .controller
        .write(move |image| {
            let check_topic =
                |topic: &str, old: &ConfigMap, new: &ConfigMap| check(image, topic, old, new);
            let AlterDecision { response, changes } =
                alter_configs::alter(&asked, image, &config, &check_topic);
            (records(image, changes), response)
        })
        .await;
    decided.unwrap_or_else(|refusal| {
        tracing::warn!(%refusal, "configs were not altered");
        let responses = request.resources.into_iter().map(|resource| {
            alter_configs_response::AlterConfigsResourceResponse::default()
                .with_error_code(refusal.code.code())
                .with_error_message(Some(StrBytes::from_string(refusal.message.clone())))
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name)
        });
        AlterConfigsResponse::default().with_responses(responses.collect())
    })
}

/// Which changes a running aggregation takes.
fn check(image: &Image, topic: &str, old: &ConfigMap, new: &ConfigMap) -> Result<(), String> {
    let partitions = image.topic(topic).map_or(0, |topic| {
        i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX)
    });
    let declaration = |configs: &ConfigMap| configs.get(AGGREGATION).cloned();
    let (old, new) = (declaration(old), declaration(new));
    crate::jobs::check_aggregation(topic, old.as_deref(), new.as_deref(), partitions)
}

fn records(image: &Image, changes: Vec<ConfigChange>) -> Vec<MetadataRecord> {
    changes
        .into_iter()
        .flat_map(|change| match change.resource {
            ConfigResource::Topic(name) => image
                .topic(&name)
                .map(|topic| {
                    vec![MetadataRecord::TopicConfigs {
                        topic_id: topic.topic_id,
                        configs: change.overrides,
                    }]
                })
                .unwrap_or_default(),
            ConfigResource::Broker(broker_id) => vec![MetadataRecord::BrokerConfigs {
                broker_id: Some(broker_id),
                configs: change.overrides,
            }],
            ConfigResource::BrokerDefault => vec![MetadataRecord::BrokerConfigs {
                broker_id: None,
                configs: change.overrides,
            }],
        })
        .collect()
}
