use super::*;

fn map(settings: &[(&str, &str)]) -> ConfigMap {
    settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn resolve(settings: &[(&str, &str)]) -> Result<TopicConfig, TopicConfigError> {
    let fixed = StaticSettings::default();
    TopicConfig::resolve(&map(settings), &BrokerLayers::of_static(&fixed))
}

fn load(yaml: &str) -> Result<BrokerConfig, ConfigError> {
    let mut loader = ConfigLoader::new();
    loader.yaml("s.yaml", yaml);
    loader.finish("here")
}

#[test]
fn tables_are_sorted_and_their_defaults_are_valid() {
    assert!(TOPIC_DEFINITIONS.is_sorted_by_key(|topic| topic.definition.name));
    assert!(BROKER_DEFINITIONS.is_sorted_by_key(|definition| definition.name));
    let topics = TOPIC_DEFINITIONS.iter().map(|topic| &topic.definition);
    for definition in topics.chain(BROKER_DEFINITIONS) {
        if let Some(default) = definition.default {
            definition.parse(default).unwrap();
        }
        assert!(!definition.documentation.is_empty());
    }
    for topic in TOPIC_DEFINITIONS {
        for synonym in topic.synonyms {
            assert!(
                broker_definition(synonym.name).is_some(),
                "{}",
                synonym.name
            );
        }
    }
}

#[test]
fn a_topic_without_overrides_has_kafkas_defaults() {
    let config = resolve(&[]).unwrap();
    assert_eq!(config.retention_ms, 604_800_000);
    assert_eq!(config.segment_bytes, 1 << 30);
    assert_eq!(config.max_message_bytes, 1_048_588);
    assert_eq!(config.flush, Flush::BeforeAcknowledge);
    assert_eq!(
        config.cleanup_policy,
        CleanupPolicy {
            compact: false,
            delete: true
        }
    );
    assert_eq!(config.aggregation, None);
}

/// The texts are what `LogConfig.validate` of Apache Kafka 4.1.0 answers.
#[test]
fn wrong_topic_settings_are_refused_in_kafkas_words() {
    for (name, value, message) in [
        (
            "retention.ms",
            "abc",
            "Invalid value abc for configuration retention.ms: Not a number of type LONG",
        ),
        (
            "retention.ms",
            "-5",
            "Invalid value -5 for configuration retention.ms: Value must be at least -1",
        ),
        (
            "retention.ms",
            "",
            "Invalid value  for configuration retention.ms: Not a number of type LONG",
        ),
        (
            "cleanup.policy",
            "foo",
            "Invalid value foo for configuration cleanup.policy: String must be one of: compact, delete",
        ),
        (
            "segment.bytes",
            "3",
            "Invalid value 3 for configuration segment.bytes: Value must be at least 1048576",
        ),
        (
            "segment.bytes",
            "99999999999",
            "Invalid value 99999999999 for configuration segment.bytes: Not a number of type INT",
        ),
        (
            "compression.type",
            "bar",
            "Invalid value bar for configuration compression.type: String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer",
        ),
        (
            "compression.gzip.level",
            "0",
            "Invalid value 0 for configuration compression.gzip.level: Value must be between 1 and 9 or equal to -1",
        ),
        (
            "compression.zstd.level",
            "23",
            "Invalid value 23 for configuration compression.zstd.level: Value must be no more than 22",
        ),
        (
            "min.cleanable.dirty.ratio",
            "2",
            "Invalid value 2.0 for configuration min.cleanable.dirty.ratio: Value must be no more than 1",
        ),
        (
            "min.cleanable.dirty.ratio",
            "x",
            "Invalid value x for configuration min.cleanable.dirty.ratio: Not a number of type DOUBLE",
        ),
        (
            "preallocate",
            "maybe",
            "Invalid value maybe for configuration preallocate: Expected value to be either true or false",
        ),
        (
            "follower.replication.throttled.replicas",
            "abc",
            "Invalid value [abc] for configuration follower.replication.throttled.replicas: follower.replication.throttled.replicas must be the literal '*' or a list of replicas in the following format: [partitionId]:[brokerId],[partitionId]:[brokerId],...",
        ),
        (
            "unknown.config",
            "1",
            "Unknown topic config name: unknown.config",
        ),
    ] {
        let error = resolve(&[(name, value)]).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(
        resolve(&[
            ("min.compaction.lag.ms", "100"),
            ("max.compaction.lag.ms", "50")
        ])
        .unwrap_err()
        .to_string(),
        "conflict topic config setting min.compaction.lag.ms (100) > max.compaction.lag.ms (50)"
    );
}

#[test]
fn what_kafka_takes_is_taken() {
    for (name, value) in [
        ("cleanup.policy", ""),
        ("cleanup.policy", "compact, delete"),
        ("preallocate", " TRUE "),
        ("retention.ms", " 5 "),
        ("follower.replication.throttled.replicas", "*"),
        ("follower.replication.throttled.replicas", "0:1,2:3"),
        ("leader.replication.throttled.replicas", ""),
        ("min.compaction.lag.ms", "9223372036854775807"),
        ("remote.storage.enable", "false"),
    ] {
        resolve(&[(name, value)]).unwrap();
    }
    assert!(resolve(&[("remote.storage.enable", "true")]).is_err());
}

#[test]
fn a_declaration_keeps_its_indentation() {
    let yaml = "  a:\n    b\n";
    let config = resolve(&[(AGGREGATION, yaml)]).unwrap();
    assert_eq!(config.aggregation.as_deref(), Some(yaml));
}

#[test]
fn asking_for_less_than_a_sync_a_write_is_told_from_the_default() {
    for (settings, expected) in [
        (&[("flush.messages", "1")][..], Flush::BeforeAcknowledge),
        (&[("flush.ms", "0")], Flush::BeforeAcknowledge),
        (
            &[("flush.messages", "1000")],
            Flush::Relaxed {
                messages: 1000,
                ms: i64::MAX,
            },
        ),
    ] {
        assert_eq!(resolve(settings).unwrap().flush, expected);
    }
}

#[test]
fn topic_defaults_come_from_the_finest_broker_setting_that_is_said() {
    let config = load("log.retention.hours: 2\nlog.roll.ms: 5\nlog.roll.hours: 9\n").unwrap();
    assert_eq!(config.topic_defaults.retention_ms, 7_200_000);
    assert_eq!(config.topic_defaults.segment_ms, 5);
    let unlimited = load("log.retention.hours: -1").unwrap();
    assert_eq!(unlimited.topic_defaults.retention_ms, -1);

    let dynamic = map(&[("log.retention.ms", "77")]);
    let layers = BrokerLayers {
        dynamic_default: &dynamic,
        ..config.layers()
    };
    let topic = TopicConfig::resolve(&ConfigMap::new(), &layers).unwrap();
    assert_eq!(topic.retention_ms, 77);
}

#[test]
fn a_broker_without_settings_listens_on_loopback_with_kafkas_defaults() {
    let config = load("").unwrap();
    assert_eq!(
        config.listeners[0].to_string(),
        "PLAINTEXT://127.0.0.1:9092"
    );
    assert_eq!(config.advertised_listeners, config.listeners);
    assert_eq!(config.group_initial_rebalance_delay_ms, 3_000);
    assert_eq!(config.shards, None);
}

#[test]
fn flags_win_over_environment_over_file_over_program() {
    let mut loader = ConfigLoader::new();
    for key in ["num.partitions", "node.id", "log.dirs", "group.max.size"] {
        loader.program(key, "10");
    }
    loader.yaml("s.yaml", "num.partitions: 20\nnode.id: 20\nlog.dirs: /20\n");
    loader.environment([
        ("STREAMGAUGE_NODE_ID".to_owned(), "30".to_owned()),
        ("STREAMGAUGE_DATA_DIR".to_owned(), "/30".to_owned()),
        ("STREAMGAUGE_SHARDS".to_owned(), "3".to_owned()),
        ("STREAMGAUGE_CONFIG".to_owned(), "s.yaml".to_owned()),
        ("HOME".to_owned(), "/".to_owned()),
    ]);
    loader.flag("--data-dir", "log.dirs", "/40");
    let config = loader.finish("here").unwrap();
    assert_eq!(config.group_max_size, 10);
    assert_eq!(config.num_partitions, 20);
    assert_eq!(config.node_id, 30);
    assert_eq!(config.log_dirs, [std::path::PathBuf::from("/40")]);
    assert_eq!(config.shards, Some(3));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let error = load(
        "num.partition: 3\nlog.dirs: /a\nlog:\n  dirs: /b\nnode.id: x\nlisteners: [foo, SSL://:1]\ngroup.min.session.timeout.ms: 2000000\n",
    )
    .unwrap_err();
    assert_eq!(
        error.to_string().lines().collect::<Vec<_>>(),
        [
            "s.yaml:1: unknown setting num.partition; did you mean num.partitions?",
            "s.yaml:4: log.dirs is set twice",
            "s.yaml:5: Invalid value x for configuration node.id: Not a number of type INT",
            "s.yaml:6: listeners holds \"foo\": expected NAME://host:port",
            "s.yaml:6: listeners holds \"SSL://:1\": SSL is not supported; PLAINTEXT is",
            "s.yaml:7: group.min.session.timeout.ms (2000000) > group.max.session.timeout.ms (1800000)",
        ]
    );
}

#[test]
fn a_listener_on_every_interface_is_advertised_by_host_name() {
    let config = load("listeners: PLAINTEXT://:9092,inside://[::1]:9093").unwrap();
    let advertised: Vec<_> = config
        .advertised_listeners
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(advertised, ["PLAINTEXT://here:9092", "INSIDE://[::1]:9093"]);
    for wrong in [
        "advertised.listeners: PLAINTEXT://0.0.0.0:9092",
        "advertised.listeners: OTHER://a:9092",
        "listeners: PLAINTEXT://::1:9092",
        "listeners: PLAINTEXT://a:99999",
        "listeners: A://:1,B://:1",
        "queued.max.request.bytes: 1000",
        "max.connections.per.ip.overrides: somewhere:1",
        "log.dirs: [/a, /a]",
        "default.replication.factor: 99999",
        "log.cleaner.min.compaction.lag.ms: 9\nlog.cleaner.max.compaction.lag.ms: 8",
    ] {
        assert!(load(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn only_topic_defaults_change_at_run_time() {
    assert!(is_dynamic("log.retention.ms"));
    assert!(is_dynamic("message.max.bytes"));
    assert!(!is_dynamic("log.retention.hours"));
    assert!(!is_dynamic("node.id"));
}
