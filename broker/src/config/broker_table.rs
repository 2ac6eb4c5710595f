//! The table of broker settings: Kafka's names, types, bounds and defaults where Kafka has the
//! setting (a deliberate other default is told in its documentation), ours under `streamgauge.`.

use super::definition::{ConfigType, Definition, Validator};

use ConfigType::{Boolean, Double, Int, List, Long, Short, String};
use Validator::{Any, AtLeast, Between, BetweenOr, EachOneOf, NotEmpty, OneOf, Only};

const fn setting(
    name: &'static str,
    config_type: ConfigType,
    default: &'static str,
    validator: Validator,
    documentation: &'static str,
) -> Definition {
    Definition::new(name, config_type, Some(default), validator, documentation)
}

const fn unset(
    name: &'static str,
    config_type: ConfigType,
    validator: Validator,
    documentation: &'static str,
) -> Definition {
    Definition::new(name, config_type, None, validator, documentation)
}

const LONG_MAX: &str = "9223372036854775807";
const INT_MAX: &str = "2147483647";

/// Bytes a second; see [`crate::replication::throttle`].
pub const LEADER_THROTTLED_RATE: &str = "leader.replication.throttled.rate";
/// As [`LEADER_THROTTLED_RATE`].
pub const FOLLOWER_THROTTLED_RATE: &str = "follower.replication.throttled.rate";

/// Sorted by name.
#[rustfmt::skip]
pub static BROKER_DEFINITIONS: &[Definition] = &[
    setting("add.partitions.to.txn.retry.backoff.max.ms", Int, "100", AtLeast(0),
        "How long a transaction's coordinator is asked about a partition while it ends the producer's transaction before, in milliseconds."),
    setting("add.partitions.to.txn.retry.backoff.ms", Int, "20", AtLeast(1),
        "Between two such questions, in milliseconds."),
    unset("advertised.listeners", List, Any,
        "What clients are told to connect to, as NAME://host:port; by default what listeners says."),
    setting("auto.create.topics.enable", Boolean, "true", Any,
        "Whether a topic that a client asks for and that does not exist is created."),
    setting("auto.leader.rebalance.enable", Boolean, "true", Any,
        "Whether partitions are led by their preferred replicas again when those are back and in sync."),
    unset("broker.rack", String, Any, "The rack or zone that this broker stands in."),
    unset("cluster.id", String, NotEmpty, "The cluster's id; by default one is made up when the data directory is first used."),
    setting("compression.gzip.level", Int, "-1", BetweenOr(1, 9, -1), "Default of the topic setting of this name."),
    setting("compression.lz4.level", Int, "9", Between(1, 17), "Default of the topic setting of this name."),
    setting("compression.type", String, "producer", OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]),
        "Default of the topic setting of this name."),
    setting("compression.zstd.level", Int, "3", Between(-131_072, 22), "Default of the topic setting of this name."),
    setting("connections.max.idle.ms", Long, "600000", AtLeast(1), "A connection idle for so long is closed."),
    unset("controller.quorum.voters", List, NotEmpty,
        "The brokers that found the cluster and vote on its metadata, as id@host:port, the same on each. At that port brokers talk to \
         each other. Without it, a broker is a cluster of its own."),
    setting("default.replication.factor", Int, "1", AtLeast(1), "Replicas of a topic that is created without saying how many."),
    setting("delete.topic.enable", Boolean, "true", Any, "Whether topics can be deleted."),
    setting("fetch.max.bytes", Int, "57671680", AtLeast(1_024), "The most that one fetch response holds, but for a first batch that is larger."),
    setting(FOLLOWER_THROTTLED_RATE, Long, LONG_MAX, AtLeast(0),
        "Bytes a second that this broker is sent for replicas that lag and are named in follower.replication.throttled.replicas. Set at run time only."),
    setting("group.initial.rebalance.delay.ms", Int, "3000", AtLeast(0),
        "How long a new group waits for more members before its first rebalance. Development mode sets 0."),
    setting("group.max.session.timeout.ms", Int, "1800000", AtLeast(1), "The longest session timeout that a group member may ask for."),
    setting("group.max.size", Int, INT_MAX, AtLeast(1), "The most members of one group."),
    setting("group.min.session.timeout.ms", Int, "6000", AtLeast(1), "The shortest session timeout that a group member may ask for."),
    setting("leader.imbalance.check.interval.seconds", Long, "300", AtLeast(1),
        "How often it is looked for partitions that their preferred replica could lead and does not."),
    setting(LEADER_THROTTLED_RATE, Long, LONG_MAX, AtLeast(0),
        "Bytes a second that this broker sends to replicas that lag, of partitions that leader.replication.throttled.replicas names it for. \
         Set at run time only."),
    setting("listeners", List, "PLAINTEXT://127.0.0.1:9092", NotEmpty,
        "Where the broker listens, as NAME://host:port; no host is every interface. Kafka listens on every interface by default."),
    setting("log.cleaner.backoff.ms", Long, "15000", AtLeast(0), "Pause between two looks for a log to compact."),
    setting("log.cleaner.dedupe.buffer.size", Long, "134217728", AtLeast(1_048_576), "Memory for the keys of the log that is being compacted."),
    setting("log.cleaner.delete.retention.ms", Long, "86400000", AtLeast(0), "Default of the topic setting delete.retention.ms."),
    setting("log.cleaner.enable", Boolean, "true", Any, "Whether compacted topics are compacted."),
    setting("log.cleaner.max.compaction.lag.ms", Long, LONG_MAX, AtLeast(1), "Default of the topic setting max.compaction.lag.ms."),
    setting("log.cleaner.min.cleanable.ratio", Double, "0.5", Between(0, 1), "Default of the topic setting min.cleanable.dirty.ratio."),
    setting("log.cleaner.min.compaction.lag.ms", Long, "0", AtLeast(0), "Default of the topic setting min.compaction.lag.ms."),
    setting("log.cleanup.policy", List, "delete", EachOneOf(&["compact", "delete"]), "Default of the topic setting cleanup.policy."),
    setting("log.dirs", List, "./data", NotEmpty, "Directories that hold the broker's data. Also called data-dir."),
    setting("log.flush.interval.messages", Long, LONG_MAX, AtLeast(1), "Default of the topic setting flush.messages."),
    unset("log.flush.interval.ms", Long, AtLeast(0), "Default of the topic setting flush.ms."),
    setting("log.flush.scheduler.interval.ms", Long, LONG_MAX, AtLeast(1), "Default of log.flush.interval.ms."),
    setting("log.index.interval.bytes", Int, "4096", AtLeast(0), "Default of the topic setting index.interval.bytes."),
    setting("log.index.size.max.bytes", Int, "10485760", AtLeast(4), "Default of the topic setting segment.index.bytes."),
    setting("log.local.retention.bytes", Long, "-2", AtLeast(-2), "Default of the topic setting local.retention.bytes."),
    setting("log.local.retention.ms", Long, "-2", AtLeast(-2), "Default of the topic setting local.retention.ms."),
    setting("log.message.timestamp.after.max.ms", Long, "3600000", AtLeast(0), "Default of the topic setting message.timestamp.after.max.ms."),
    setting("log.message.timestamp.before.max.ms", Long, LONG_MAX, AtLeast(0), "Default of the topic setting message.timestamp.before.max.ms."),
    setting("log.message.timestamp.type", String, "CreateTime", OneOf(&["CreateTime", "LogAppendTime"]), "Default of the topic setting message.timestamp.type."),
    setting("log.preallocate", Boolean, "false", Any, "Default of the topic setting preallocate."),
    setting("log.retention.bytes", Long, "-1", Any, "Default of the topic setting retention.bytes."),
    setting("log.retention.check.interval.ms", Long, "300000", AtLeast(1), "How often it is looked for segments to delete."),
    setting("log.retention.hours", Int, "168", AtLeast(-1), "Default of the topic setting retention.ms, in hours."),
    unset("log.retention.minutes", Int, AtLeast(-1), "Default of the topic setting retention.ms, in minutes; goes before hours."),
    unset("log.retention.ms", Long, AtLeast(-1), "Default of the topic setting retention.ms; goes before minutes and hours."),
    setting("log.roll.hours", Int, "168", AtLeast(1), "Default of the topic setting segment.ms, in hours."),
    setting("log.roll.jitter.hours", Int, "0", AtLeast(0), "Default of the topic setting segment.jitter.ms, in hours."),
    unset("log.roll.jitter.ms", Long, AtLeast(0), "Default of the topic setting segment.jitter.ms; goes before hours."),
    unset("log.roll.ms", Long, AtLeast(1), "Default of the topic setting segment.ms; goes before hours."),
    setting("log.segment.bytes", Int, "1073741824", AtLeast(1_048_576), "Default of the topic setting segment.bytes."),
    setting("log.segment.delete.delay.ms", Long, "60000", AtLeast(0), "Default of the topic setting file.delete.delay.ms."),
    setting("max.connections", Int, "10000", AtLeast(1), "The most connections at a time. Kafka sets no limit by default."),
    setting("max.connections.per.ip", Int, INT_MAX, AtLeast(0), "The most connections at a time from one address."),
    setting("max.connections.per.ip.overrides", List, "", Any, "Addresses with their own limit, as address:count."),
    setting("max.incremental.fetch.session.cache.slots", Int, "1000", AtLeast(0), "The most fetch sessions that are remembered."),
    setting("message.max.bytes", Int, "1048588", AtLeast(0), "Default of the topic setting max.message.bytes."),
    setting("min.insync.replicas", Int, "1", AtLeast(1), "Default of the topic setting of this name."),
    setting("node.id", Int, "1", AtLeast(0), "This broker's number in its cluster. Kafka has no default."),
    setting("num.network.threads", Int, "3", AtLeast(1), "Threads that read, decode, encode and write for connections."),
    setting("num.partitions", Int, "1", AtLeast(1), "Partitions of a topic that is created without saying how many."),
    setting("offset.metadata.max.bytes", Int, "4096", AtLeast(0), "The longest metadata text of a committed offset."),
    setting("offsets.commit.timeout.ms", Int, "5000", AtLeast(1), "How long an offset commit waits to be replicated."),
    setting("offsets.retention.check.interval.ms", Long, "600000", AtLeast(1), "How often it is looked for committed offsets to forget."),
    setting("offsets.retention.minutes", Int, "10080", AtLeast(1), "How long the offsets of a group without members are kept."),
    setting("offsets.topic.num.partitions", Int, "50", AtLeast(1), "Partitions of __consumer_offsets. Cannot change once the topic exists."),
    setting("offsets.topic.replication.factor", Short, "3", AtLeast(1), "Replicas of __consumer_offsets; fewer if there are fewer brokers when it is created."),
    setting("offsets.topic.segment.bytes", Int, "104857600", AtLeast(1), "Segment size of __consumer_offsets."),
    setting("producer.id.expiration.check.interval.ms", Int, "600000", AtLeast(1), "How often it is looked for producers to forget."),
    setting("producer.id.expiration.ms", Int, "86400000", AtLeast(1), "A producer silent for so long is forgotten, and with it which of its batches are duplicates."),
    setting("queued.max.request.bytes", Long, "268435456", AtLeast(-1),
        "Memory for requests that have been read and not been answered; reading stops when it is full. -1 is no limit, which is Kafka's default."),
    unset("replica.selector.class", String, OneOf(&[
            "RackAwareReplicaSelector",
            "org.apache.kafka.common.replica.RackAwareReplicaSelector",
            "org.apache.kafka.common.replica.LeaderSelector",
        ]),
        "RackAwareReplicaSelector sends consumers that give a client.rack to a replica in it; by default they read from the leader."),
    setting("request.timeout.ms", Int, "30000", AtLeast(1), "How long brokers wait for one another's answers."),
    setting("socket.listen.backlog.size", Int, "50", AtLeast(1), "Connections that wait to be accepted."),
    setting("socket.receive.buffer.bytes", Int, "102400", AtLeast(-1), "SO_RCVBUF of a connection; -1 leaves it to the system."),
    setting("socket.request.max.bytes", Int, "104857600", AtLeast(1), "The largest request; a larger one closes its connection."),
    setting("socket.send.buffer.bytes", Int, "102400", AtLeast(-1), "SO_SNDBUF of a connection; -1 leaves it to the system."),
    setting("streamgauge.aggregation.combine.interval.ms", Int, "50", AtLeast(1),
        "How often partial aggregates are passed on from a source partition."),
    unset("streamgauge.declarations.dir", String, NotEmpty, "A directory of declarations (*.yaml) that are applied at start."),
    setting("streamgauge.log.filter", String, "info", NotEmpty, "Which log lines are written: a level, or target=level pairs."),
    setting("streamgauge.log.format", String, "text", OneOf(&["text", "json"]), "How log lines are written."),
    unset("streamgauge.peer.listener", String, NotEmpty,
        "Where a broker that controller.quorum.voters does not name talks to the others, as host:port. With it the broker joins the cluster."),
    setting("streamgauge.shards", Int, "0", Between(0, 1_024), "Threads that own partitions; 0 is one for each core."),
    setting("streamgauge.shutdown.timeout.ms", Int, "30000", AtLeast(0), "How long a stop waits for requests in progress."),
    setting("transaction.abort.timed.out.transaction.cleanup.interval.ms", Int, "10000", AtLeast(1),
        "How often it is looked for transactions that have been open for longer than their timeout."),
    setting("transaction.max.timeout.ms", Int, "900000", AtLeast(1), "The longest transaction timeout that a producer may ask for."),
    setting("transaction.remove.expired.transaction.cleanup.interval.ms", Int, "3600000", AtLeast(1),
        "How often it is looked for transactional ids to forget."),
    setting("transaction.state.log.min.isr", Int, "2", AtLeast(1),
        "min.insync.replicas of __transaction_state; fewer if it has fewer replicas."),
    setting("transaction.state.log.num.partitions", Int, "50", AtLeast(1), "Partitions of __transaction_state. Cannot change once the topic exists."),
    setting("transaction.state.log.replication.factor", Short, "3", AtLeast(1), "Replicas of __transaction_state; fewer if there are fewer brokers when it is created."),
    setting("transaction.state.log.segment.bytes", Int, "104857600", AtLeast(1), "Segment size of __transaction_state."),
    setting("transactional.id.expiration.ms", Int, "604800000", AtLeast(1), "A transactional id unused for so long is forgotten."),
    setting("unclean.leader.election.enable", Boolean, "false",
        Only("false", "A leader needs a majority of the replicas; unclean election is not supported"),
        "Default of the topic setting of this name."),
];

/// Other names that are taken for a setting's.
pub static ALIASES: &[(&str, &str)] = &[
    ("broker.id", "node.id"),
    ("data-dir", "log.dirs"),
    ("data.dir", "log.dirs"),
    ("log.dir", "log.dirs"),
];

/// The definition of a broker setting, by its own name.
pub fn broker_definition(name: &str) -> Option<&'static Definition> {
    BROKER_DEFINITIONS
        .binary_search_by(|candidate| candidate.name.cmp(name))
        .ok()
        .and_then(|index| BROKER_DEFINITIONS.get(index))
}

/// Whether a setting is one of a running broker only, for each its own (Kafka's `QuotaConfig.brokerQuotaConfigs`).
pub fn is_dynamic_only(name: &str) -> bool {
    [LEADER_THROTTLED_RATE, FOLLOWER_THROTTLED_RATE].contains(&name)
}

/// Whether a running broker takes a change of the setting: those that are topic defaults, since
/// topics look them up in the metadata each time it changes, and those that are nothing else.
pub fn is_dynamic(name: &str) -> bool {
    is_dynamic_only(name) || is_topic_default(name)
}

fn is_topic_default(name: &str) -> bool {
    super::topic_table::TOPIC_DEFINITIONS
        .iter()
        .flat_map(|topic| topic.synonyms)
        // As in Kafka, only the finest unit of a setting can be changed at run time.
        .any(|synonym| synonym.name == name && synonym.factor == 1)
        && name != "log.flush.scheduler.interval.ms"
        && name != "unclean.leader.election.enable"
}
