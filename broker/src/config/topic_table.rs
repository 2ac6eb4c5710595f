//! The table of topic settings: all of Apache Kafka 4.1's (`TopicConfig`, `LogConfig`) and ours.

use super::definition::{ConfigType, Definition, Validator};

/// A topic setting and where its default comes from.
#[derive(Debug)]
pub struct TopicDefinition {
    pub definition: Definition,
    /// Broker settings that give the default, the first that is set deciding
    /// (Kafka's `ServerTopicConfigSynonyms`).
    pub synonyms: &'static [Synonym],
}

/// A broker setting and what one unit of it is in the topic setting's unit.
#[derive(Debug)]
pub struct Synonym {
    pub name: &'static str,
    pub factor: i64,
}

const fn same(name: &'static str) -> Synonym {
    Synonym { name, factor: 1 }
}

const fn minutes(name: &'static str) -> Synonym {
    Synonym {
        name,
        factor: 60_000,
    }
}

const fn hours(name: &'static str) -> Synonym {
    Synonym {
        name,
        factor: 3_600_000,
    }
}

const fn topic(definition: Definition, synonyms: &'static [Synonym]) -> TopicDefinition {
    TopicDefinition {
        definition,
        synonyms,
    }
}

/// The topic setting that carries a derived topic's declaration.
pub const AGGREGATION: &str = "aggregation";

const NO_TIERED_STORAGE: &str = "Tiered storage is not supported";
const LONG_MAX: &str = "9223372036854775807";

use ConfigType::{Boolean, Double, Int, List, Long, String};
use Validator::{Any, AtLeast, Between, BetweenOr, EachOneOf, OneOf, Only, ThrottledReplicas};

/// Sorted by name.
#[rustfmt::skip]
pub static TOPIC_DEFINITIONS: &[TopicDefinition] = &[
    topic(Definition::new(AGGREGATION, String, Some(""), Any,
        "The declaration, in YAML, of the aggregation whose results this topic holds. Empty: an ordinary topic."), &[]),
    topic(Definition::new("cleanup.policy", List, Some("delete"), EachOneOf(&["compact", "delete"]),
        "What becomes of old data: \"delete\" removes whole segments by age or size, \"compact\" keeps the newest record of every key. Both may be given."),
        &[same("log.cleanup.policy")]),
    topic(Definition::new("compression.gzip.level", Int, Some("-1"), BetweenOr(1, 9, -1),
        "Compression level when compression.type is gzip; -1 is the codec's own default."), &[same("compression.gzip.level")]),
    topic(Definition::new("compression.lz4.level", Int, Some("9"), Between(1, 17),
        "Compression level when compression.type is lz4."), &[same("compression.lz4.level")]),
    topic(Definition::new("compression.type", String, Some("producer"), OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]),
        "Codec that batches are stored with; \"producer\" keeps whatever the producer chose."), &[same("compression.type")]),
    topic(Definition::new("compression.zstd.level", Int, Some("3"), Between(-131_072, 22),
        "Compression level when compression.type is zstd."), &[same("compression.zstd.level")]),
    topic(Definition::new("delete.retention.ms", Long, Some("86400000"), AtLeast(0),
        "How long a compacted topic keeps a delete marker, so that a reader from the start has time to see it."), &[same("log.cleaner.delete.retention.ms")]),
    topic(Definition::new("file.delete.delay.ms", Long, Some("60000"), AtLeast(0),
        "How long a segment's files stay after the segment is removed from the log."), &[same("log.segment.delete.delay.ms")]),
    topic(Definition::new("flush.messages", Long, Some(LONG_MAX), AtLeast(1),
        "Unset, every acknowledged write has been synced to disk. Set on a topic, syncs may wait until this many records are unsynced: faster, and a power failure may lose acknowledged records."),
        &[same("log.flush.interval.messages")]),
    topic(Definition::new("flush.ms", Long, Some(LONG_MAX), AtLeast(0),
        "Unset, every acknowledged write has been synced to disk. Set on a topic, syncs may wait this many milliseconds: faster, and a power failure may lose acknowledged records."),
        &[same("log.flush.interval.ms"), same("log.flush.scheduler.interval.ms")]),
    topic(Definition::new("follower.replication.throttled.replicas", List, Some(""), ThrottledReplicas,
        "Replicas whose catching up is throttled on the follower's side, as partition:broker pairs, or * for all."), &[]),
    topic(Definition::new("index.interval.bytes", Int, Some("4096"), AtLeast(0),
        "About how many log bytes lie between two entries of the offset index."), &[same("log.index.interval.bytes")]),
    topic(Definition::new("leader.replication.throttled.replicas", List, Some(""), ThrottledReplicas,
        "Replicas whose catching up is throttled on the leader's side, as partition:broker pairs, or * for all."), &[]),
    topic(Definition::new("local.retention.bytes", Long, Some("-2"), AtLeast(-2),
        "With tiered storage, how many bytes of a partition stay on local disk; -2 follows retention.bytes."), &[same("log.local.retention.bytes")]),
    topic(Definition::new("local.retention.ms", Long, Some("-2"), AtLeast(-2),
        "With tiered storage, how long a segment stays on local disk; -2 follows retention.ms."), &[same("log.local.retention.ms")]),
    topic(Definition::new("max.compaction.lag.ms", Long, Some(LONG_MAX), AtLeast(1),
        "The longest that a record may stay uncompacted."), &[same("log.cleaner.max.compaction.lag.ms")]),
    topic(Definition::new("max.message.bytes", Int, Some("1048588"), AtLeast(0),
        "The largest record batch, as sent, that is accepted."), &[same("message.max.bytes")]),
    topic(Definition::new("message.timestamp.after.max.ms", Long, Some("3600000"), AtLeast(0),
        "How far a record's timestamp may lie ahead of the broker's clock. Also bounds how far one record can push an aggregation's watermark."),
        &[same("log.message.timestamp.after.max.ms")]),
    topic(Definition::new("message.timestamp.before.max.ms", Long, Some(LONG_MAX), AtLeast(0),
        "How far a record's timestamp may lie behind the broker's clock."), &[same("log.message.timestamp.before.max.ms")]),
    topic(Definition::new("message.timestamp.type", String, Some("CreateTime"), OneOf(&["CreateTime", "LogAppendTime"]),
        "Whether a record's timestamp is the producer's or the time of its append."), &[same("log.message.timestamp.type")]),
    topic(Definition::new("min.cleanable.dirty.ratio", Double, Some("0.5"), Between(0, 1),
        "Compaction starts when at least this share of the log is uncompacted."), &[same("log.cleaner.min.cleanable.ratio")]),
    topic(Definition::new("min.compaction.lag.ms", Long, Some("0"), AtLeast(0),
        "How long a record is safe from compaction."), &[same("log.cleaner.min.compaction.lag.ms")]),
    topic(Definition::new("min.insync.replicas", Int, Some("1"), AtLeast(1),
        "With acks=all, a write is refused unless at least this many replicas are in sync. A majority is always needed."), &[same("min.insync.replicas")]),
    topic(Definition::new("preallocate", Boolean, Some("false"), Any,
        "Whether a new segment's file is allocated at its full size."), &[same("log.preallocate")]),
    topic(Definition::new("remote.log.copy.disable", Boolean, Some("false"), Only("false", NO_TIERED_STORAGE),
        "With tiered storage, stops copying to remote storage. Not supported: false only."), &[]),
    topic(Definition::new("remote.log.delete.on.disable", Boolean, Some("false"), Only("false", NO_TIERED_STORAGE),
        "With tiered storage, deletes remote data when it is switched off. Not supported: false only."), &[]),
    topic(Definition::new("remote.storage.enable", Boolean, Some("false"), Only("false", NO_TIERED_STORAGE),
        "Tiered storage. Not supported: false only."), &[]),
    topic(Definition::new("retention.bytes", Long, Some("-1"), Any,
        "How large a partition may grow before its oldest segments are deleted; -1 is no limit."), &[same("log.retention.bytes")]),
    topic(Definition::new("retention.ms", Long, Some("604800000"), AtLeast(-1),
        "How old a segment's newest record may be before the segment is deleted; -1 is no limit."),
        &[same("log.retention.ms"), minutes("log.retention.minutes"), hours("log.retention.hours")]),
    topic(Definition::new("segment.bytes", Int, Some("1073741824"), AtLeast(1_048_576),
        "The size at which a new segment is begun. Retention and compaction work on whole segments."), &[same("log.segment.bytes")]),
    topic(Definition::new("segment.index.bytes", Int, Some("10485760"), AtLeast(4),
        "The largest size of a segment's offset index; when it is full a new segment is begun."), &[same("log.index.size.max.bytes")]),
    topic(Definition::new("segment.jitter.ms", Long, Some("0"), AtLeast(0),
        "The most by which segment.ms is shortened at random, so that segments do not all roll at once."),
        &[same("log.roll.jitter.ms"), hours("log.roll.jitter.hours")]),
    topic(Definition::new("segment.ms", Long, Some("604800000"), AtLeast(1),
        "The age at which a new segment is begun even if the old one is not full."), &[same("log.roll.ms"), hours("log.roll.hours")]),
    topic(Definition::new("unclean.leader.election.enable", Boolean, Some("false"), Only("false",
        "A leader needs a majority of the replicas; unclean election is not supported"),
        "Whether a replica that lacks acknowledged records may lead. Not supported: false only."), &[same("unclean.leader.election.enable")]),
];

/// The definition of a topic setting.
pub fn topic_definition(name: &str) -> Option<&'static TopicDefinition> {
    TOPIC_DEFINITIONS
        .binary_search_by(|candidate| candidate.definition.name.cmp(name))
        .ok()
        .and_then(|index| TOPIC_DEFINITIONS.get(index))
}
