//! IncrementalAlterConfigs 0 to 1 (KIP-339) and AlterConfigs 0 to 2: decides the new overrides of
//! topics and brokers. As Kafka's `ConfigAdminManager` and `ConfigurationControlManager`. Decides
//! only: the caller has the controller commit the changes, and authorizes before.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_request::AlterConfigsRequest;
use kafka_protocol::messages::alter_configs_response::{self, AlterConfigsResponse};
use kafka_protocol::messages::incremental_alter_configs_request::IncrementalAlterConfigsRequest;
use kafka_protocol::messages::incremental_alter_configs_response::{
    self, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::describe_configs::{RESOURCE_BROKER, RESOURCE_TOPIC, parse_broker_name};
use crate::config::{
    BrokerConfig, BrokerLayers, ConfigImage, ConfigMap, ConfigType, Definition, TopicConfig,
    broker_definition, is_dynamic, topic_definition,
};

/// What a request comes to: the answer, and the changes to commit (none if `validate_only`).
#[derive(Debug)]
pub struct AlterDecision<Response> {
    pub response: Response,
    pub changes: Vec<ConfigChange>,
}

/// The whole new overrides of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    pub resource: ConfigResource,
    pub overrides: ConfigMap,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigResource {
    Topic(String),
    Broker(i32),
    /// All brokers' defaults.
    BrokerDefault,
}

/// Says why a topic may not go from the old overrides to the new ones, for rules that settings
/// alone do not know (which changes a running aggregation takes): `(topic, old, new)`.
pub type TopicCheck<'a> = &'a dyn Fn(&str, &ConfigMap, &ConfigMap) -> Result<(), String>;

/// Decides IncrementalAlterConfigs.
pub fn incremental_alter(
    request: &IncrementalAlterConfigsRequest,
    image: &dyn ConfigImage,
    config: &BrokerConfig,
    check_topic: TopicCheck<'_>,
) -> AlterDecision<IncrementalAlterConfigsResponse> {
    let resources: Vec<Resource<'_>> = request
        .resources
        .iter()
        .map(|resource| Resource {
            resource_type: resource.resource_type,
            name: &resource.resource_name,
            is_incremental: true,
            alterations: resource
                .configs
                .iter()
                .map(|alteration| Alteration {
                    name: &alteration.name,
                    operation: alteration.config_operation,
                    value: alteration.value.as_ref().map(StrBytes::as_str),
                })
                .collect(),
        })
        .collect();
    let mut changes = Vec::new();
    let mut responses = Vec::new();
    for (resource, outcome) in decide(&resources, image, config, check_topic) {
        let (code, message) = split(outcome, &mut changes);
        responses.push(
            incremental_alter_configs_response::AlterConfigsResourceResponse::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.name.clone())
                .with_error_code(code)
                .with_error_message(message),
        );
    }
    if request.validate_only {
        changes.clear();
    }
    AlterDecision {
        response: IncrementalAlterConfigsResponse::default().with_responses(responses),
        changes,
    }
}

/// Decides AlterConfigs, which replaces all of a resource's overrides.
pub fn alter(
    request: &AlterConfigsRequest,
    image: &dyn ConfigImage,
    config: &BrokerConfig,
    check_topic: TopicCheck<'_>,
) -> AlterDecision<AlterConfigsResponse> {
    let resources: Vec<Resource<'_>> = request
        .resources
        .iter()
        .map(|resource| Resource {
            resource_type: resource.resource_type,
            name: &resource.resource_name,
            is_incremental: false,
            alterations: resource
                .configs
                .iter()
                .map(|setting| Alteration {
                    name: &setting.name,
                    operation: SET,
                    value: setting.value.as_ref().map(StrBytes::as_str),
                })
                .collect(),
        })
        .collect();
    let mut changes = Vec::new();
    let mut responses = Vec::new();
    for (resource, outcome) in decide(&resources, image, config, check_topic) {
        let (code, message) = split(outcome, &mut changes);
        responses.push(
            alter_configs_response::AlterConfigsResourceResponse::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.name.clone())
                .with_error_code(code)
                .with_error_message(message),
        );
    }
    if request.validate_only {
        changes.clear();
    }
    AlterDecision {
        response: AlterConfigsResponse::default().with_responses(responses),
        changes,
    }
}

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

type Failure = (ResponseError, String);

/// Both requests' resource in one form.
struct Resource<'a> {
    resource_type: i8,
    name: &'a StrBytes,
    is_incremental: bool,
    alterations: Vec<Alteration<'a>>,
}

struct Alteration<'a> {
    name: &'a str,
    operation: i8,
    value: Option<&'a str>,
}

fn decide<'a>(
    resources: &'a [Resource<'a>],
    image: &dyn ConfigImage,
    config: &BrokerConfig,
    check_topic: TopicCheck<'_>,
) -> Vec<(&'a Resource<'a>, Result<ConfigChange, Failure>)> {
    let mut keys: Vec<_> = resources
        .iter()
        .map(|resource| (resource.resource_type, resource.name.as_str()))
        .collect();
    keys.sort_unstable();
    let is_twice = |resource: &Resource<'_>| {
        let key = (resource.resource_type, resource.name.as_str());
        keys.windows(2).any(|pair| pair == [key, key])
    };
    resources
        .iter()
        .map(|resource| {
            let outcome = if is_twice(resource) {
                Err(invalid_request("Each resource must appear at most once."))
            } else {
                resource.decide(image, config, check_topic)
            };
            (resource, outcome)
        })
        .collect()
}

impl Resource<'_> {
    fn decide(
        &self,
        image: &dyn ConfigImage,
        config: &BrokerConfig,
        check_topic: TopicCheck<'_>,
    ) -> Result<ConfigChange, Failure> {
        self.check_shape()?;
        let layers = BrokerLayers::new(image, config.node_id, &config.settings);
        match self.resource_type {
            RESOURCE_TOPIC => {
                let topic = self.name.as_str();
                let old = image.topic_overrides(topic).ok_or_else(|| {
                    (
                        ResponseError::UnknownTopicOrPartition,
                        format!("The topic '{topic}' does not exist."),
                    )
                })?;
                let new = self.apply(old, |name| topic_definition(name).map(|t| &t.definition))?;
                TopicConfig::resolve(&new, &layers)
                    .map_err(|error| (ResponseError::InvalidConfig, error.to_string()))?;
                check_topic(topic, old, &new)
                    .map_err(|message| (ResponseError::InvalidConfig, message))?;
                Ok(ConfigChange {
                    resource: ConfigResource::Topic(topic.to_owned()),
                    overrides: new,
                })
            }
            RESOURCE_BROKER => {
                // The controller decides for all brokers.
                let named = self.name.parse().ok().filter(|id| image.knows_broker(*id));
                let broker = parse_broker_name(self.name, named.unwrap_or(config.node_id))
                    .map_err(|message| invalid_request(&message))?;
                let none = ConfigMap::new();
                let old = image.broker_overrides(broker).unwrap_or(&none);
                let new = self.apply(old, broker_definition)?;
                check_broker(old, &new)?;
                // Topics that override nothing must still come to settings that go together.
                let changed = match broker {
                    Some(_) => BrokerLayers {
                        dynamic_broker: &new,
                        ..layers
                    },
                    None => BrokerLayers {
                        dynamic_default: &new,
                        ..layers
                    },
                };
                TopicConfig::resolve(&ConfigMap::new(), &changed)
                    .map_err(|error| (ResponseError::InvalidConfig, error.to_string()))?;
                Ok(ConfigChange {
                    resource: broker.map_or(ConfigResource::BrokerDefault, ConfigResource::Broker),
                    overrides: new,
                })
            }
            other => Err(invalid_request(&format!(
                "Unsupported resource type: {other}"
            ))),
        }
    }

    fn check_shape(&self) -> Result<(), Failure> {
        let mut names: Vec<_> = self.alterations.iter().map(|a| a.name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(invalid_request("Error due to duplicate config keys"));
        }
        let nulls: Vec<_> = self
            .alterations
            .iter()
            .filter(|alteration| alteration.value.is_none() && alteration.operation != DELETE)
            .map(|alteration| alteration.name)
            .collect();
        if !nulls.is_empty() {
            return Err(invalid_request(&format!(
                "Null value not supported for : {}",
                nulls.join(", ")
            )));
        }
        match self
            .alterations
            .iter()
            .find(|a| !(SET..=SUBTRACT).contains(&a.operation))
        {
            Some(wrong) => Err(invalid_request(&format!(
                "Unknown operation {} for config {}",
                wrong.operation, wrong.name
            ))),
            None => Ok(()),
        }
    }

    fn apply(
        &self,
        old: &ConfigMap,
        definition: impl Fn(&str) -> Option<&'static Definition>,
    ) -> Result<ConfigMap, Failure> {
        let mut new = if self.is_incremental {
            old.clone()
        } else {
            ConfigMap::new()
        };
        for Alteration {
            name,
            operation,
            value,
        } in &self.alterations
        {
            let value = value.unwrap_or_default();
            match *operation {
                DELETE => {
                    new.remove(*name);
                }
                APPEND | SUBTRACT => {
                    let operation = if *operation == APPEND {
                        "APPEND"
                    } else {
                        "SUBTRACT"
                    };
                    let list = definition(name)
                        .filter(|definition| definition.config_type == ConfigType::List)
                        .ok_or_else(|| {
                            (
                                ResponseError::InvalidConfig,
                                format!(
                                    "Can't {operation} to key {name} because its type is not LIST."
                                ),
                            )
                        })?;
                    let before = new
                        .get(*name)
                        .map_or(list.default.unwrap_or_default(), String::as_str);
                    let after = edit_list(before, value, operation == "APPEND");
                    new.insert((*name).to_owned(), after);
                }
                _ => {
                    new.insert((*name).to_owned(), value.to_owned());
                }
            }
        }
        Ok(new)
    }
}

/// Adds elements that are not there, or removes those that are; order is kept.
fn edit_list(before: &str, elements: &str, add: bool) -> String {
    let split = |text: &'_ str| -> Vec<String> {
        text.split(',')
            .map(|element| element.trim().to_owned())
            .filter(|element| !element.is_empty())
            .collect()
    };
    let mut list = split(before);
    for element in split(elements) {
        match list.iter().position(|present| *present == element) {
            None if add => list.push(element),
            Some(index) if !add => {
                list.remove(index);
            }
            _ => {}
        }
    }
    list.join(",")
}

fn check_broker(old: &ConfigMap, new: &ConfigMap) -> Result<(), Failure> {
    let fixed: Vec<_> = old
        .keys()
        .chain(new.keys())
        .filter(|name| old.get(*name) != new.get(*name) && !is_dynamic(name))
        .map(String::as_str)
        .collect();
    if !fixed.is_empty() {
        return Err(invalid_request(&format!(
            "Cannot update these configs dynamically: {}",
            fixed.join(", ")
        )));
    }
    for (name, text) in new {
        if let Some(definition) = broker_definition(name) {
            definition
                .parse(text)
                .map_err(|error| (ResponseError::InvalidConfig, error.to_string()))?;
        }
    }
    Ok(())
}

fn invalid_request(message: &str) -> Failure {
    (ResponseError::InvalidRequest, message.to_owned())
}

fn split(
    outcome: Result<ConfigChange, Failure>,
    changes: &mut Vec<ConfigChange>,
) -> (i16, Option<StrBytes>) {
    match outcome {
        Ok(change) => {
            changes.push(change);
            (0, None)
        }
        Err((error, message)) => (error.code(), Some(StrBytes::from_string(message))),
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::incremental_alter_configs_request::{
        AlterConfigsResource, AlterableConfig,
    };

    use super::*;
    use crate::api::config_fixture::{Image, config, map, text};

    type Op<'a> = (&'a str, i8, Option<&'a str>);

    fn resource(resource_type: i8, name: &str, operations: &[Op<'_>]) -> AlterConfigsResource {
        let configs = operations.iter().map(|(name, operation, value)| {
            AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(*operation)
                .with_value(value.map(text))
        });
        AlterConfigsResource::default()
            .with_resource_type(resource_type)
            .with_resource_name(text(name))
            .with_configs(configs.collect())
    }

    fn run(
        resources: Vec<AlterConfigsResource>,
        validate_only: bool,
    ) -> AlterDecision<Vec<(i16, String)>> {
        let request = IncrementalAlterConfigsRequest::default()
            .with_resources(resources)
            .with_validate_only(validate_only);
        let image =
            Image::new().topic("t", &[("retention.ms", "5"), ("cleanup.policy", "compact")]);
        let refuse_aggregation = |_: &str, _: &ConfigMap, new: &ConfigMap| {
            new.contains_key("aggregation")
                .then_some(())
                .map_or(Ok(()), |()| Err("no".to_owned()))
        };
        let decision = incremental_alter(&request, &image, &config(""), &refuse_aggregation);
        let response = decision.response.responses.iter().map(|response| {
            let message = response.error_message.as_ref().map_or("", |m| m.as_str());
            (response.error_code, message.to_owned())
        });
        AlterDecision {
            response: response.collect(),
            changes: decision.changes,
        }
    }

    fn topic(operations: &[Op<'_>]) -> Result<ConfigMap, (i16, String)> {
        let mut decision = run(vec![resource(RESOURCE_TOPIC, "t", operations)], false);
        match decision.response.remove(0) {
            (0, _) => Ok(decision.changes.remove(0).overrides),
            error => Err(error),
        }
    }

    #[test]
    fn set_delete_append_and_subtract_change_only_what_they_name() {
        assert_eq!(
            topic(&[
                ("retention.ms", DELETE, None),
                ("segment.ms", SET, Some("9")),
                ("cleanup.policy", APPEND, Some("delete,compact")),
            ]),
            Ok(map(&[
                ("cleanup.policy", "compact,delete"),
                ("segment.ms", "9")
            ]))
        );
        assert_eq!(
            topic(&[("cleanup.policy", SUBTRACT, Some("compact"))]),
            Ok(map(&[("cleanup.policy", ""), ("retention.ms", "5")]))
        );
    }

    #[test]
    fn mistakes_get_kafkas_codes_and_messages() {
        let invalid_config = ResponseError::InvalidConfig.code();
        let invalid_request = ResponseError::InvalidRequest.code();
        for (operations, code, message) in [
            (
                &[("nope", SET, Some("1"))][..],
                invalid_config,
                "Unknown topic config name: nope",
            ),
            (
                &[("retention.ms", SET, Some("x"))],
                invalid_config,
                "Invalid value x for configuration retention.ms: Not a number of type LONG",
            ),
            (
                &[("retention.ms", APPEND, Some("1"))],
                invalid_config,
                "Can't APPEND to key retention.ms because its type is not LIST.",
            ),
            (
                &[("retention.ms", SET, None)],
                invalid_request,
                "Null value not supported for : retention.ms",
            ),
            (
                &[
                    ("retention.ms", SET, Some("1")),
                    ("retention.ms", DELETE, None),
                ],
                invalid_request,
                "Error due to duplicate config keys",
            ),
            (
                &[("retention.ms", 9, Some("1"))],
                invalid_request,
                "Unknown operation 9 for config retention.ms",
            ),
            (&[("aggregation", SET, Some("x"))], invalid_config, "no"),
        ] {
            assert_eq!(topic(operations), Err((code, message.to_owned())));
        }
    }

    #[test]
    fn one_resource_twice_is_refused_and_an_unknown_topic_named() {
        let same = || resource(RESOURCE_TOPIC, "t", &[]);
        let decision = run(
            vec![same(), resource(RESOURCE_TOPIC, "u", &[]), same()],
            false,
        );
        let codes: Vec<_> = decision.response.iter().map(|(code, _)| *code).collect();
        assert_eq!(
            codes,
            [
                ResponseError::InvalidRequest.code(),
                ResponseError::UnknownTopicOrPartition.code(),
                ResponseError::InvalidRequest.code(),
            ]
        );
        assert_eq!(decision.changes, []);
    }

    #[test]
    fn validate_only_answers_and_changes_nothing() {
        let decision = run(
            vec![resource(
                RESOURCE_TOPIC,
                "t",
                &[("retention.ms", SET, Some("1"))],
            )],
            true,
        );
        assert_eq!(decision.response, [(0, String::new())]);
        assert_eq!(decision.changes, []);
    }

    #[test]
    fn brokers_take_topic_defaults_and_refuse_what_needs_a_restart() {
        let set = |name, value| {
            run(
                vec![resource(RESOURCE_BROKER, "", &[(name, SET, Some(value))])],
                false,
            )
        };
        assert_eq!(
            set("message.max.bytes", "5").changes[0].resource,
            ConfigResource::BrokerDefault
        );
        assert_eq!(
            set("node.id", "5").response[0].0,
            ResponseError::InvalidRequest.code()
        );
        assert_eq!(
            set("message.max.bytes", "x").response[0].0,
            ResponseError::InvalidConfig.code()
        );
    }

    #[test]
    fn the_old_request_replaces_all_overrides() {
        use kafka_protocol::messages::alter_configs_request;
        let setting = alter_configs_request::AlterableConfig::default()
            .with_name(text("segment.ms"))
            .with_value(Some(text("9")));
        let resource = alter_configs_request::AlterConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(text("t"))
            .with_configs(vec![setting]);
        let request = AlterConfigsRequest::default().with_resources(vec![resource]);
        let image = Image::new().topic("t", &[("retention.ms", "5")]);
        let decision = alter(&request, &image, &config(""), &|_, _, _| Ok(()));
        assert_eq!(decision.changes[0].overrides, map(&[("segment.ms", "9")]));
    }
}
