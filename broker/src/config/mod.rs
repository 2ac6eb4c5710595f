//! Settings of the broker and of topics, with the names, types and defaults of Kafka.
//!
//! `definition` is one setting, `topic_table` and `broker_table` are all of them, `settings` is
//! their text form in layers, `topic` and `broker` their typed form, `load` where they come from.

pub mod broker;
mod broker_table;
pub mod definition;
pub mod load;
pub mod settings;
pub mod topic;
mod topic_table;
mod yaml;

#[cfg(test)]
mod tests;

pub use broker::{BrokerConfig, Listener, LogFormat, local_hostname};
pub use broker_table::{
    BROKER_DEFINITIONS, FOLLOWER_THROTTLED_RATE, LEADER_THROTTLED_RATE, broker_definition,
    is_dynamic, is_dynamic_only,
};
pub use definition::{ConfigType, ConfigValue, Definition, InvalidValue, Validator};
pub use load::{ConfigError, ConfigLoader, ConfigProblem, ENVIRONMENT_PREFIX};
pub use settings::{
    BrokerLayers, ConfigImage, ConfigMap, ConfigSource, Origin, StaticSettings, StaticValue,
    dynamic_long,
};
pub use topic::{
    CleanupPolicy, CompressionType, Flush, TimestampType, TopicConfig, TopicConfigError,
    inherited_value,
};
pub use topic_table::{AGGREGATION, Synonym, TOPIC_DEFINITIONS, TopicDefinition, topic_definition};
