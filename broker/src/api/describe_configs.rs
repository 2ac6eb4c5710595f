//! DescribeConfigs, versions 1 to 4 (KIP-133, 226, 569): the settings of topics and brokers with
//! value, source, synonyms, type and documentation. UIs, Connect and Streams read these closely;
//! every setting is always listed unless the request names keys.
//!
//! As Kafka's `ConfigHelper`, but that a coarser broker setting (`log.retention.hours`) is listed
//! as a synonym even when the finer one is not set; Kafka drops it.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::{
    DescribeConfigsRequest, DescribeConfigsResource,
};
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResponse, DescribeConfigsResult,
    DescribeConfigsSynonym,
};
use kafka_protocol::protocol::StrBytes;

use crate::config::{
    BROKER_DEFINITIONS, BrokerConfig, BrokerLayers, ConfigImage, ConfigMap, ConfigSource,
    Definition, TOPIC_DEFINITIONS, TopicDefinition, inherited_value, is_dynamic,
};

/// Kafka's `ConfigResource.Type`.
pub const RESOURCE_TOPIC: i8 = 2;
pub const RESOURCE_BROKER: i8 = 4;
pub const RESOURCE_BROKER_LOGGER: i8 = 8;

/// Answers a request from the metadata and this broker's settings. Authorization is the caller's.
pub fn describe(
    request: &DescribeConfigsRequest,
    image: &dyn ConfigImage,
    config: &BrokerConfig,
) -> DescribeConfigsResponse {
    let describer = Describer {
        image,
        layers: BrokerLayers::new(image, config.node_id, &config.settings),
        node_id: config.node_id,
        include_synonyms: request.include_synonyms,
        include_documentation: request.include_documentation,
    };
    let results = request
        .resources
        .iter()
        .map(|resource| describer.resource(resource))
        .collect();
    DescribeConfigsResponse::default().with_results(results)
}

/// A broker resource's name: a broker's id, or empty for all brokers' defaults.
pub(super) fn parse_broker_name(name: &str, node_id: i32) -> Result<Option<i32>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    match name.parse::<i32>() {
        Ok(id) if id == node_id => Ok(Some(id)),
        Ok(_) => Err(format!(
            "Unexpected broker id, expected {node_id} or empty string, but received {name}"
        )),
        Err(_) => Err(format!("Broker id must be an integer, but it is: {name}")),
    }
}

type Failure = (ResponseError, Option<String>);

struct Describer<'a> {
    image: &'a dyn ConfigImage,
    layers: BrokerLayers<'a>,
    node_id: i32,
    include_synonyms: bool,
    include_documentation: bool,
}

impl Describer<'_> {
    fn resource(&self, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match self.configs(resource) {
            Ok(configs) => result.with_configs(configs),
            Err((error, message)) => result
                .with_error_code(error.code())
                .with_error_message(message.map(StrBytes::from_string)),
        }
    }

    fn configs(
        &self,
        resource: &DescribeConfigsResource,
    ) -> Result<Vec<DescribeConfigsResourceResult>, Failure> {
        let name = resource.resource_name.as_str();
        let invalid = |message| (ResponseError::InvalidRequest, Some(message));
        let is_wanted = |setting: &str| {
            resource.configuration_keys.as_ref().is_none_or(|keys| {
                keys.is_empty() || keys.iter().any(|key| key.as_str() == setting)
            })
        };
        match resource.resource_type {
            RESOURCE_TOPIC => {
                let overrides = self
                    .image
                    .topic_overrides(name)
                    .ok_or((ResponseError::UnknownTopicOrPartition, None))?;
                Ok(TOPIC_DEFINITIONS
                    .iter()
                    .filter(|topic| is_wanted(topic.definition.name))
                    .map(|topic| self.topic_setting(topic, overrides))
                    .collect())
            }
            RESOURCE_BROKER => {
                let broker = parse_broker_name(name, self.node_id).map_err(invalid)?;
                Ok(BROKER_DEFINITIONS
                    .iter()
                    .filter(|definition| is_wanted(definition.name))
                    .filter_map(|definition| self.broker_setting(definition, broker.is_some()))
                    .collect())
            }
            RESOURCE_BROKER_LOGGER => match parse_broker_name(name, self.node_id) {
                Ok(Some(_)) => Ok(Vec::new()),
                Ok(None) => Err(invalid("Broker id must not be empty".to_owned())),
                Err(message) => Err(invalid(message)),
            },
            other => Err(invalid(format!("Unsupported resource type: {other}"))),
        }
    }

    fn topic_setting(
        &self,
        topic: &TopicDefinition,
        overrides: &ConfigMap,
    ) -> DescribeConfigsResourceResult {
        let definition = &topic.definition;
        let said = self
            .layers
            .said(topic.synonyms.iter().map(|synonym| synonym.name));
        let mut synonyms = Vec::new();
        let text = overrides.get(definition.name);
        if let Some(text) = text {
            synonyms.push(synonym(definition.name, Some(text), ConfigSource::Topic));
        }
        synonyms.extend(
            said.iter()
                .map(|(name, text, source)| synonym(name, Some(text), *source)),
        );
        synonyms.extend(topic.synonyms.iter().filter_map(|name| {
            let default = crate::config::broker_definition(name.name)?.default?;
            Some(synonym(name.name, Some(default), ConfigSource::Default))
        }));
        let source = match (text, said.first()) {
            (Some(_), _) => ConfigSource::Topic,
            (None, Some((_, _, source))) => *source,
            (None, None) => ConfigSource::Default,
        };
        let value = match text {
            Some(text) => normalized(definition, text),
            None => inherited_value(topic, &self.layers).map_or_else(
                |_| definition.default.unwrap_or_default().to_owned(),
                |value| value.to_string(),
            ),
        };
        self.setting(definition, Some(value), source, synonyms)
    }

    /// Of all brokers' defaults only what was said is listed, as Kafka does.
    fn broker_setting(
        &self,
        definition: &Definition,
        of_one_broker: bool,
    ) -> Option<DescribeConfigsResourceResult> {
        let mut said = self.layers.said(std::iter::once(definition.name));
        if !of_one_broker {
            said.retain(|(_, _, source)| *source == ConfigSource::DynamicDefaultBroker);
            said.first()?;
        }
        let mut synonyms: Vec<_> = said
            .iter()
            .map(|(name, text, source)| {
                synonym(
                    name,
                    Some(*text).filter(|_| !definition.is_sensitive()),
                    *source,
                )
            })
            .collect();
        if of_one_broker && let Some(default) = definition.default {
            synonyms.push(synonym(
                definition.name,
                Some(default),
                ConfigSource::Default,
            ));
        }
        let (value, source) = match said.first() {
            Some((_, text, source)) => (Some(normalized(definition, text)), *source),
            None => (definition.default.map(str::to_owned), ConfigSource::Default),
        };
        Some(
            self.setting(definition, value, source, synonyms)
                .with_read_only(!is_dynamic(definition.name)),
        )
    }

    fn setting(
        &self,
        definition: &Definition,
        value: Option<String>,
        source: ConfigSource,
        synonyms: Vec<DescribeConfigsSynonym>,
    ) -> DescribeConfigsResourceResult {
        let documentation = self
            .include_documentation
            .then(|| StrBytes::from_static_str(definition.documentation));
        let value = value.filter(|_| !definition.is_sensitive());
        DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(definition.name))
            .with_value(value.map(StrBytes::from_string))
            .with_config_source(source as i8)
            .with_is_sensitive(definition.is_sensitive())
            .with_synonyms(if self.include_synonyms {
                synonyms
            } else {
                Vec::new()
            })
            .with_config_type(definition.config_type as i8)
            .with_documentation(documentation)
    }
}

/// The value as Kafka would print it after parsing: " TRUE " is "true". What does not parse (an
/// older version took it) and texts are shown as they are.
fn normalized(definition: &Definition, text: &str) -> String {
    match definition.parse(text) {
        Ok(crate::config::ConfigValue::Text(_)) | Err(_) => text.to_owned(),
        Ok(value) => value.to_string(),
    }
}

fn synonym(name: &str, value: Option<&str>, source: ConfigSource) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default()
        .with_name(StrBytes::from_string(name.to_owned()))
        .with_value(value.map(|value| StrBytes::from_string(value.to_owned())))
        .with_source(source as i8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::config_fixture::{Image, config, text};

    fn ask(resource_type: i8, name: &str, keys: Option<&[&str]>) -> DescribeConfigsResult {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(resource_type)
            .with_resource_name(text(name))
            .with_configuration_keys(keys.map(|keys| keys.iter().map(|key| text(key)).collect()));
        let request = DescribeConfigsRequest::default()
            .with_resources(vec![resource])
            .with_include_synonyms(true)
            .with_include_documentation(true);
        let image = Image::new()
            .topic(
                "t",
                &[
                    ("retention.ms", " 5 "),
                    ("cleanup.policy", "compact, delete"),
                ],
            )
            .broker(None, &[("message.max.bytes", "2000")]);
        let config = config("log.roll.hours: 2\nlog.segment.bytes: 2000000\n");
        describe(&request, &image, &config).results.remove(0)
    }

    fn shown(setting: &DescribeConfigsResourceResult) -> (String, i8, Vec<String>) {
        let synonyms = setting.synonyms.iter().map(|synonym| {
            let value = synonym.value.as_ref().map_or("", |value| value.as_str());
            format!("{}:{}={value}", synonym.source, synonym.name.as_str())
        });
        let value = setting
            .value
            .as_ref()
            .map_or("null", |value| value.as_str());
        (value.to_owned(), setting.config_source, synonyms.collect())
    }

    #[test]
    fn a_topic_lists_every_setting_with_value_type_and_documentation() {
        let result = ask(RESOURCE_TOPIC, "t", None);
        assert_eq!(result.error_code, 0);
        assert_eq!(result.configs.len(), TOPIC_DEFINITIONS.len());
        for setting in &result.configs {
            assert!(setting.value.is_some() && setting.config_type != 0);
            assert!(setting.documentation.is_some() && !setting.read_only);
        }
    }

    #[test]
    fn source_and_synonyms_say_where_a_value_comes_from() {
        let keys = [
            "retention.ms",
            "segment.ms",
            "max.message.bytes",
            "flush.ms",
            "cleanup.policy",
        ];
        let result = ask(RESOURCE_TOPIC, "t", Some(&keys));
        let shown: Vec<_> = result.configs.iter().map(shown).collect();
        let expected = |value: &str, source, synonyms: &[&str]| {
            let synonyms = synonyms
                .iter()
                .map(|synonym| (*synonym).to_owned())
                .collect();
            (value.to_owned(), source, synonyms)
        };
        assert_eq!(
            shown,
            [
                expected(
                    "compact,delete",
                    1,
                    &[
                        "1:cleanup.policy=compact, delete",
                        "5:log.cleanup.policy=delete"
                    ]
                ),
                expected(
                    "9223372036854775807",
                    5,
                    &["5:log.flush.scheduler.interval.ms=9223372036854775807"]
                ),
                expected(
                    "2000",
                    3,
                    &["3:message.max.bytes=2000", "5:message.max.bytes=1048588"]
                ),
                expected("5", 1, &["1:retention.ms= 5 ", "5:log.retention.hours=168"]),
                expected(
                    "7200000",
                    4,
                    &["4:log.roll.hours=2", "5:log.roll.hours=168"]
                ),
            ]
        );
    }

    #[test]
    fn a_broker_is_asked_by_its_own_id_or_for_all_brokers_defaults() {
        let own = ask(RESOURCE_BROKER, "1", None);
        assert_eq!(own.configs.len(), BROKER_DEFINITIONS.len());
        let find = |name: &str| {
            own.configs
                .iter()
                .find(|c| c.name.as_str() == name)
                .unwrap()
        };
        assert_eq!(shown(find("log.segment.bytes")).0, "2000000");
        assert!(!find("log.segment.bytes").read_only);
        assert!(find("node.id").read_only);

        let defaults = ask(RESOURCE_BROKER, "", None);
        assert_eq!(defaults.configs.len(), 1);
        for (name, message) in [
            (
                "2",
                "Unexpected broker id, expected 1 or empty string, but received 2",
            ),
            ("x", "Broker id must be an integer, but it is: x"),
        ] {
            let error = ask(RESOURCE_BROKER, name, None);
            assert_eq!(error.error_code, ResponseError::InvalidRequest.code());
            assert_eq!(error.error_message.unwrap().as_str(), message);
        }
    }

    #[test]
    fn unknown_topics_and_resource_types_are_errors_of_their_resource() {
        let code = |resource_type, name| ask(resource_type, name, None).error_code;
        assert_eq!(
            code(RESOURCE_TOPIC, "none"),
            ResponseError::UnknownTopicOrPartition.code()
        );
        assert_eq!(code(99, "t"), ResponseError::InvalidRequest.code());
        assert_eq!(code(RESOURCE_BROKER_LOGGER, "1"), 0);
    }
}
