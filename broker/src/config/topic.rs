//! A topic's settings with types: its overrides over the broker's defaults (Kafka's `LogConfig`).

use thiserror::Error;

use super::definition::{ConfigValue, InvalidValue};
use super::settings::{BrokerLayers, ConfigMap};
use super::topic_table::{AGGREGATION, TopicDefinition, topic_definition};
use crate::replication::throttle::ThrottledReplicas;

/// The settings in force for one topic. Settings that nothing reads by type (tiered storage)
/// are checked and kept as text only.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    /// The aggregation declaration, YAML; `None` for an ordinary topic.
    pub aggregation: Option<String>,
    pub cleanup_policy: CleanupPolicy,
    pub compression_type: CompressionType,
    pub compression_gzip_level: i32,
    pub compression_lz4_level: i32,
    pub compression_zstd_level: i32,
    pub delete_retention_ms: i64,
    pub file_delete_delay_ms: i64,
    /// Replicas that catch up no faster than their brokers' `follower.replication.throttled.rate`.
    pub follower_throttled: ThrottledReplicas,
    pub flush: Flush,
    pub index_interval_bytes: i32,
    /// Replicas that, where they lead, send to those that catch up no faster than
    /// `leader.replication.throttled.rate`.
    pub leader_throttled: ThrottledReplicas,
    pub max_compaction_lag_ms: i64,
    pub max_message_bytes: i32,
    pub message_timestamp_after_max_ms: i64,
    pub message_timestamp_before_max_ms: i64,
    pub message_timestamp_type: TimestampType,
    pub min_cleanable_dirty_ratio: f64,
    pub min_compaction_lag_ms: i64,
    pub min_insync_replicas: i32,
    pub preallocate: bool,
    /// -1: no limit.
    pub retention_bytes: i64,
    /// -1: no limit.
    pub retention_ms: i64,
    pub segment_bytes: i32,
    pub segment_index_bytes: i32,
    pub segment_jitter_ms: i64,
    pub segment_ms: i64,
}

/// Neither is allowed too, as in Kafka 4.1: nothing is ever removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    pub compact: bool,
    pub delete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Batches are kept as the producer compressed them.
    Producer,
    Uncompressed,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    CreateTime,
    LogAppendTime,
}

/// When an append is synced to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Before it is acknowledged: the default, unlike Kafka.
    BeforeAcknowledge,
    /// After so many records or milliseconds, whichever comes first: `flush.messages` or
    /// `flush.ms` was set. `i64::MAX` is never.
    Relaxed { messages: i64, ms: i64 },
}

/// Why a topic cannot have these settings. The Kafka error code is `INVALID_CONFIG`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopicConfigError {
    #[error("Unknown topic config name: {0}")]
    Unknown(String),
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
    #[error(
        "conflict topic config setting min.compaction.lag.ms ({min_ms}) > max.compaction.lag.ms ({max_ms})"
    )]
    CompactionLags { min_ms: i64, max_ms: i64 },
}

impl TopicConfig {
    /// The settings of a topic with these overrides on a broker with these layers.
    pub fn resolve(
        overrides: &ConfigMap,
        layers: &BrokerLayers<'_>,
    ) -> Result<Self, TopicConfigError> {
        for (name, text) in overrides {
            topic_definition(name)
                .ok_or_else(|| TopicConfigError::Unknown(name.clone()))?
                .definition
                .parse(text)?;
        }
        let read = Reader { overrides, layers };
        let config = Self {
            // Untrimmed: indentation means something in YAML.
            aggregation: overrides
                .get(AGGREGATION)
                .filter(|yaml| !yaml.trim().is_empty())
                .cloned(),
            cleanup_policy: read.cleanup_policy()?,
            compression_type: match read.text("compression.type")?.as_str() {
                "uncompressed" => CompressionType::Uncompressed,
                "gzip" => CompressionType::Gzip,
                "snappy" => CompressionType::Snappy,
                "lz4" => CompressionType::Lz4,
                "zstd" => CompressionType::Zstd,
                _ => CompressionType::Producer,
            },
            compression_gzip_level: read.int("compression.gzip.level")?,
            compression_lz4_level: read.int("compression.lz4.level")?,
            compression_zstd_level: read.int("compression.zstd.level")?,
            delete_retention_ms: read.long("delete.retention.ms")?,
            file_delete_delay_ms: read.long("file.delete.delay.ms")?,
            follower_throttled: read.replicas("follower.replication.throttled.replicas")?,
            flush: read.flush()?,
            index_interval_bytes: read.int("index.interval.bytes")?,
            leader_throttled: read.replicas("leader.replication.throttled.replicas")?,
            max_compaction_lag_ms: read.long("max.compaction.lag.ms")?,
            max_message_bytes: read.int("max.message.bytes")?,
            message_timestamp_after_max_ms: read.long("message.timestamp.after.max.ms")?,
            message_timestamp_before_max_ms: read.long("message.timestamp.before.max.ms")?,
            message_timestamp_type: match read.text("message.timestamp.type")?.as_str() {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            min_cleanable_dirty_ratio: read.double("min.cleanable.dirty.ratio")?,
            min_compaction_lag_ms: read.long("min.compaction.lag.ms")?,
            min_insync_replicas: read.int("min.insync.replicas")?,
            preallocate: read.bool("preallocate")?,
            retention_bytes: read.long("retention.bytes")?,
            retention_ms: read.long("retention.ms")?,
            segment_bytes: read.int("segment.bytes")?,
            segment_index_bytes: read.int("segment.index.bytes")?,
            segment_jitter_ms: read.long("segment.jitter.ms")?,
            segment_ms: read.long("segment.ms")?,
        };
        if config.min_compaction_lag_ms > config.max_compaction_lag_ms {
            return Err(TopicConfigError::CompactionLags {
                min_ms: config.min_compaction_lag_ms,
                max_ms: config.max_compaction_lag_ms,
            });
        }
        Ok(config)
    }
}

/// The value that a topic setting has when the topic does not say: the broker's, in the topic
/// setting's unit, or the default.
pub fn inherited_value(
    topic: &TopicDefinition,
    layers: &BrokerLayers<'_>,
) -> Result<ConfigValue, InvalidValue> {
    let said = layers.said(topic.synonyms.iter().map(|synonym| synonym.name));
    let Some((name, text, _)) = said.first() else {
        return topic
            .definition
            .parse(topic.definition.default.unwrap_or_default());
    };
    let factor = topic
        .synonyms
        .iter()
        .find(|synonym| synonym.name == *name)
        .map_or(1, |synonym| synonym.factor);
    if factor == 1 {
        return topic.definition.parse(text);
    }
    // A negative number of hours is "no limit", not minus so many hours.
    let value = match text.trim().parse::<i64>() {
        Ok(value) if value < 0 => -1,
        Ok(value) => value.saturating_mul(factor),
        Err(_) => return Err(topic.definition.invalid(text, "Not a number of type LONG")),
    };
    topic.definition.parse(&value.to_string())
}

struct Reader<'a> {
    overrides: &'a ConfigMap,
    layers: &'a BrokerLayers<'a>,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Result<ConfigValue, InvalidValue> {
        let topic = topic_definition(name)
            .unwrap_or_else(|| panic!("{name} is not in the table of topic settings"));
        match self.overrides.get(name) {
            Some(text) => topic.definition.parse(text),
            None => inherited_value(topic, self.layers),
        }
    }

    fn typed<T>(
        &self,
        name: &str,
        read: impl FnOnce(&ConfigValue) -> Option<T>,
    ) -> Result<T, InvalidValue> {
        let value = self.value(name)?;
        Ok(read(&value).unwrap_or_else(|| panic!("{name} is read as another type than it has")))
    }

    fn long(&self, name: &str) -> Result<i64, InvalidValue> {
        self.typed(name, ConfigValue::as_integer)
    }

    fn int(&self, name: &str) -> Result<i32, InvalidValue> {
        self.typed(name, |value| value.as_integer()?.try_into().ok())
    }

    fn double(&self, name: &str) -> Result<f64, InvalidValue> {
        self.typed(name, ConfigValue::as_double)
    }

    fn bool(&self, name: &str) -> Result<bool, InvalidValue> {
        self.typed(name, ConfigValue::as_bool)
    }

    fn text(&self, name: &str) -> Result<String, InvalidValue> {
        self.value(name).map(|value| value.to_string())
    }

    fn cleanup_policy(&self) -> Result<CleanupPolicy, InvalidValue> {
        self.typed("cleanup.policy", |value| {
            let list = value.as_list()?;
            Some(CleanupPolicy {
                compact: list.iter().any(|policy| policy == "compact"),
                delete: list.iter().any(|policy| policy == "delete"),
            })
        })
    }

    fn replicas(&self, name: &str) -> Result<ThrottledReplicas, InvalidValue> {
        self.typed(name, |value| value.as_list().map(ThrottledReplicas::parse))
    }

    fn flush(&self) -> Result<Flush, InvalidValue> {
        let messages = self.long("flush.messages")?;
        let ms = self.long("flush.ms")?;
        // Kafka's defaults, both without end, leave durability to replication and the page cache.
        // Here they mean that nobody asked for less than the full promise.
        let is_default = messages == i64::MAX && ms == i64::MAX;
        Ok(if is_default || messages == 1 || ms == 0 {
            Flush::BeforeAcknowledge
        } else {
            Flush::Relaxed { messages, ms }
        })
    }
}
