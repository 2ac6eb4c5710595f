//! The broker's settings with types, checked against one another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::definition::ConfigValue;
use super::load::ConfigProblem;
use super::settings::{BrokerLayers, Origin, StaticSettings};
use super::topic::TopicConfig;

/// The settings that a broker was started with. Field names are the settings' with underscores.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    pub node_id: i32,
    pub cluster_id: Option<String>,
    pub broker_rack: Option<String>,
    pub listeners: Vec<Listener>,
    /// One for each of `listeners` that clients may use, by name.
    pub advertised_listeners: Vec<Listener>,
    pub log_dirs: Vec<PathBuf>,
    /// Host and port for broker-to-broker traffic, by node id; empty for a broker alone.
    pub controller_quorum_voters: BTreeMap<i32, String>,
    /// Where other brokers connect to; absent on a broker that is a cluster of its own.
    pub peer_address: Option<String>,

    pub num_partitions: i32,
    pub default_replication_factor: i16,
    pub auto_create_topics_enable: bool,
    /// How long a leader asks a transaction's coordinator again, and how often.
    pub add_partitions_to_txn_retry_backoff_max_ms: i64,
    pub add_partitions_to_txn_retry_backoff_ms: i64,
    pub auto_leader_rebalance_enable: bool,
    pub leader_imbalance_check_interval_seconds: i64,
    pub delete_topic_enable: bool,

    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub max_connections_per_ip_overrides: BTreeMap<IpAddr, usize>,
    pub connections_max_idle_ms: i64,
    pub socket_request_max_bytes: usize,
    /// `None`: left to the system.
    pub socket_receive_buffer_bytes: Option<usize>,
    /// `None`: left to the system.
    pub socket_send_buffer_bytes: Option<usize>,
    pub socket_listen_backlog_size: i32,
    /// Memory of requests in flight; `None`: no limit.
    pub queued_max_request_bytes: Option<usize>,
    pub num_network_threads: usize,
    pub request_timeout_ms: i64,

    pub fetch_max_bytes: i32,
    /// `replica.selector.class` is Kafka's `RackAwareReplicaSelector`.
    pub selects_replicas_by_rack: bool,
    pub max_incremental_fetch_session_cache_slots: usize,

    pub group_initial_rebalance_delay_ms: i64,
    pub group_min_session_timeout_ms: i32,
    pub group_max_session_timeout_ms: i32,
    pub group_max_size: usize,
    pub offset_metadata_max_bytes: usize,
    pub offsets_commit_timeout_ms: i64,
    pub offsets_retention_check_interval_ms: i64,
    pub offsets_retention_minutes: i64,
    pub offsets_topic_num_partitions: i32,
    pub offsets_topic_replication_factor: i16,
    pub offsets_topic_segment_bytes: i32,

    pub producer_id_expiration_ms: i64,
    pub producer_id_expiration_check_interval_ms: i64,
    /// How often it is looked for transactions that have timed out.
    pub transaction_abort_interval_ms: i64,
    pub transaction_max_timeout_ms: i32,
    pub transaction_state_log_min_isr: i32,
    pub transaction_state_log_num_partitions: i32,
    pub transaction_state_log_replication_factor: i16,
    pub transaction_state_log_segment_bytes: i32,
    /// How often it is looked for transactional ids to forget.
    pub transactional_id_expiration_interval_ms: i64,
    pub transactional_id_expiration_ms: i64,

    pub log_retention_check_interval_ms: i64,
    pub log_cleaner_enable: bool,
    pub log_cleaner_backoff_ms: i64,
    pub log_cleaner_dedupe_buffer_size: usize,

    /// Threads that own partitions; `None`: one for each core.
    pub shards: Option<usize>,
    pub declarations_dir: Option<PathBuf>,
    pub aggregation_combine_interval_ms: i64,
    pub shutdown_timeout_ms: i64,
    pub log_filter: String,
    pub log_format: LogFormat,

    /// A topic's settings when it overrides none.
    pub topic_defaults: TopicConfig,
    /// The text form of all this, for DescribeConfigs and as the base layer of topic settings.
    pub settings: StaticSettings,
}

/// `NAME://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    /// Empty: every interface.
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The setting of a broker that joins a cluster.
const PEER_LISTENER: &str = "streamgauge.peer.listener";

impl BrokerConfig {
    /// The brokers that found the cluster, and vote on its metadata until others are made to.
    pub fn voters(&self) -> Vec<i32> {
        match self.controller_quorum_voters.is_empty() {
            true => vec![self.node_id],
            false => self.controller_quorum_voters.keys().copied().collect(),
        }
    }

    /// Gives the settings their types and checks what one definition alone cannot.
    pub(super) fn from_settings(
        settings: StaticSettings,
        hostname: &str,
    ) -> Result<Self, Vec<ConfigProblem>> {
        let mut read = Reader {
            settings: &settings,
            problems: Vec::new(),
        };
        let listeners = read.listeners("listeners");
        let advertised_listeners = read.advertised(&listeners, hostname);
        read.check_listeners(&listeners);
        read.check_bounds();
        let config = Self {
            node_id: read.number("node.id"),
            cluster_id: read.text("cluster.id"),
            broker_rack: read.text("broker.rack"),
            listeners,
            advertised_listeners,
            log_dirs: read.log_dirs(),
            controller_quorum_voters: read.voters(),
            peer_address: read.peer_address(),
            num_partitions: read.number("num.partitions"),
            default_replication_factor: read.replication_factor("default.replication.factor"),
            auto_create_topics_enable: read.bool("auto.create.topics.enable"),
            add_partitions_to_txn_retry_backoff_max_ms: read
                .number("add.partitions.to.txn.retry.backoff.max.ms"),
            add_partitions_to_txn_retry_backoff_ms: read
                .number("add.partitions.to.txn.retry.backoff.ms"),
            auto_leader_rebalance_enable: read.bool("auto.leader.rebalance.enable"),
            leader_imbalance_check_interval_seconds: read
                .number("leader.imbalance.check.interval.seconds"),
            delete_topic_enable: read.bool("delete.topic.enable"),
            max_connections: read.number("max.connections"),
            max_connections_per_ip: read.number("max.connections.per.ip"),
            max_connections_per_ip_overrides: read.connection_overrides(),
            connections_max_idle_ms: read.number("connections.max.idle.ms"),
            socket_request_max_bytes: read.number("socket.request.max.bytes"),
            socket_receive_buffer_bytes: read.limit("socket.receive.buffer.bytes"),
            socket_send_buffer_bytes: read.limit("socket.send.buffer.bytes"),
            socket_listen_backlog_size: read.number("socket.listen.backlog.size"),
            queued_max_request_bytes: read.limit("queued.max.request.bytes"),
            num_network_threads: read.number("num.network.threads"),
            request_timeout_ms: read.number("request.timeout.ms"),
            fetch_max_bytes: read.number("fetch.max.bytes"),
            selects_replicas_by_rack: read
                .text("replica.selector.class")
                .is_some_and(|class| class.ends_with("RackAwareReplicaSelector")),
            max_incremental_fetch_session_cache_slots: read
                .number("max.incremental.fetch.session.cache.slots"),
            group_initial_rebalance_delay_ms: read.number("group.initial.rebalance.delay.ms"),
            group_min_session_timeout_ms: read.number("group.min.session.timeout.ms"),
            group_max_session_timeout_ms: read.number("group.max.session.timeout.ms"),
            group_max_size: read.number("group.max.size"),
            offset_metadata_max_bytes: read.number("offset.metadata.max.bytes"),
            offsets_commit_timeout_ms: read.number("offsets.commit.timeout.ms"),
            offsets_retention_check_interval_ms: read.number("offsets.retention.check.interval.ms"),
            offsets_retention_minutes: read.number("offsets.retention.minutes"),
            offsets_topic_num_partitions: read.number("offsets.topic.num.partitions"),
            offsets_topic_replication_factor: read
                .replication_factor("offsets.topic.replication.factor"),
            offsets_topic_segment_bytes: read.number("offsets.topic.segment.bytes"),
            producer_id_expiration_ms: read.number("producer.id.expiration.ms"),
            producer_id_expiration_check_interval_ms: read
                .number("producer.id.expiration.check.interval.ms"),
            transaction_abort_interval_ms: read
                .number("transaction.abort.timed.out.transaction.cleanup.interval.ms"),
            transaction_max_timeout_ms: read.number("transaction.max.timeout.ms"),
            transaction_state_log_min_isr: read.number("transaction.state.log.min.isr"),
            transaction_state_log_num_partitions: read
                .number("transaction.state.log.num.partitions"),
            transaction_state_log_replication_factor: read
                .replication_factor("transaction.state.log.replication.factor"),
            transaction_state_log_segment_bytes: read.number("transaction.state.log.segment.bytes"),
            transactional_id_expiration_interval_ms: read
                .number("transaction.remove.expired.transaction.cleanup.interval.ms"),
            transactional_id_expiration_ms: read.number("transactional.id.expiration.ms"),
            log_retention_check_interval_ms: read.number("log.retention.check.interval.ms"),
            log_cleaner_enable: read.bool("log.cleaner.enable"),
            log_cleaner_backoff_ms: read.number("log.cleaner.backoff.ms"),
            log_cleaner_dedupe_buffer_size: read.number("log.cleaner.dedupe.buffer.size"),
            shards: read
                .limit("streamgauge.shards")
                .filter(|shards| *shards > 0),
            declarations_dir: read.text("streamgauge.declarations.dir").map(PathBuf::from),
            aggregation_combine_interval_ms: read
                .number("streamgauge.aggregation.combine.interval.ms"),
            shutdown_timeout_ms: read.number("streamgauge.shutdown.timeout.ms"),
            log_filter: read.text("streamgauge.log.filter").unwrap_or_default(),
            log_format: match read.text("streamgauge.log.format").as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Text,
            },
            topic_defaults: match TopicConfig::resolve(
                &BTreeMap::new(),
                &BrokerLayers::of_static(&settings),
            ) {
                Ok(defaults) => defaults,
                Err(error) => {
                    read.conflict(None, error.to_string());
                    return Err(read.problems);
                }
            },
            settings: StaticSettings::default(),
        };
        if !read.problems.is_empty() {
            return Err(read.problems);
        }
        Ok(Self { settings, ..config })
    }

    /// This broker's layers when no settings were made at run time.
    pub fn layers(&self) -> BrokerLayers<'_> {
        BrokerLayers::of_static(&self.settings)
    }
}

/// The name of this machine, for [`super::ConfigLoader::finish`].
pub fn local_hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

struct Reader<'a> {
    settings: &'a StaticSettings,
    problems: Vec<ConfigProblem>,
}

impl Reader<'_> {
    fn integer(&self, name: &str) -> i64 {
        self.settings
            .value(name)
            .and_then(|value| value.as_integer())
            .unwrap_or_else(|| panic!("{name} is read as a number"))
    }

    /// A number that its definition has bounded to `T`'s range.
    fn number<T: TryFrom<i64>>(&self, name: &str) -> T {
        T::try_from(self.integer(name))
            .unwrap_or_else(|_| panic!("the definition of {name} does not bound it to its type"))
    }

    /// A limit of which a negative one is none.
    fn limit(&self, name: &str) -> Option<usize> {
        usize::try_from(self.integer(name)).ok()
    }

    fn bool(&self, name: &str) -> bool {
        self.settings
            .value(name)
            .and_then(|value| value.as_bool())
            .unwrap_or_else(|| panic!("{name} is read as a truth value"))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.settings.value(name).map(|value| value.to_string())
    }

    fn list(&self, name: &str) -> Vec<String> {
        match self.settings.value(name) {
            Some(ConfigValue::List(list)) => list,
            _ => Vec::new(),
        }
    }

    fn conflict(&mut self, name: Option<&str>, reason: impl Into<String>) {
        let origin: Option<Origin> = name
            .and_then(|name| self.settings.get(name))
            .map(|value| value.origin.clone());
        self.problems.push(ConfigProblem::Conflict {
            origin,
            reason: reason.into(),
        });
    }

    fn replication_factor(&mut self, name: &str) -> i16 {
        let value = self.integer(name);
        i16::try_from(value).unwrap_or_else(|_| {
            self.conflict(
                Some(name),
                format!(
                    "{name} is {value}; a replication factor is at most {}",
                    i16::MAX
                ),
            );
            1
        })
    }

    fn log_dirs(&mut self) -> Vec<PathBuf> {
        let list = self.list("log.dirs");
        for (index, directory) in list.iter().enumerate() {
            if directory.is_empty() {
                self.conflict(Some("log.dirs"), "log.dirs holds an empty name");
            } else if list[..index].contains(directory) {
                self.conflict(
                    Some("log.dirs"),
                    format!("log.dirs names {directory} twice"),
                );
            }
        }
        list.into_iter().map(PathBuf::from).collect()
    }

    fn connection_overrides(&mut self) -> BTreeMap<IpAddr, usize> {
        let name = "max.connections.per.ip.overrides";
        let mut overrides = BTreeMap::new();
        for element in self.list(name) {
            let parsed = element.rsplit_once(':').and_then(|(address, count)| {
                let address = address.trim_start_matches('[').trim_end_matches(']');
                Some((address.parse::<IpAddr>().ok()?, count.parse().ok()?))
            });
            match parsed {
                Some((address, count)) => {
                    overrides.insert(address, count);
                }
                None => self.conflict(
                    Some(name),
                    format!("{name} holds {element:?}, expected address:count"),
                ),
            }
        }
        overrides
    }

    fn listeners(&mut self, name: &str) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for element in self.list(name) {
            match Listener::parse(&element) {
                Ok(listener) => listeners.push(listener),
                Err(reason) => {
                    self.conflict(Some(name), format!("{name} holds {element:?}: {reason}"));
                }
            }
        }
        listeners
    }

    /// Kafka's form: `1@host:port,2@host:port`.
    fn voters(&mut self) -> BTreeMap<i32, String> {
        let name = "controller.quorum.voters";
        if self.settings.get(name).is_none() {
            return BTreeMap::new();
        }
        let mut voters = BTreeMap::new();
        for element in self.list(name) {
            let parsed = element.split_once('@').and_then(|(id, address)| {
                let id: i32 = id.trim().parse().ok().filter(|id| *id >= 0)?;
                let (host, port) = address.rsplit_once(':')?;
                let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
                (!host.is_empty()).then(|| (id, format!("{host}:{port}")))
            });
            match parsed {
                Some((id, address)) => {
                    if voters.insert(id, address).is_some() {
                        self.conflict(Some(name), format!("{name} names broker {id} twice"));
                    }
                }
                None => self.conflict(
                    Some(name),
                    format!("{name} holds {element:?}: expected id@host:port"),
                ),
            }
        }
        let node_id: i32 = self.number("node.id");
        let joins = self.settings.get(PEER_LISTENER).is_some();
        if !voters.is_empty() && !voters.contains_key(&node_id) && !joins {
            self.conflict(
                Some(name),
                format!(
                    "{name} does not name this broker, whose node.id is {node_id}; to join a cluster that is \
                     there, set {PEER_LISTENER}"
                ),
            );
        }
        voters
    }

    /// Among the voters, or its own setting.
    fn peer_address(&mut self) -> Option<String> {
        let node_id: i32 = self.number("node.id");
        let mut problems = Vec::new();
        std::mem::swap(&mut problems, &mut self.problems);
        let voters = self.voters();
        // They have been told of already.
        self.problems = problems;
        if let Some(address) = voters.get(&node_id) {
            return Some(address.clone());
        }
        let address = self.text(PEER_LISTENER)?;
        let port = address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            self.conflict(
                Some(PEER_LISTENER),
                format!("{PEER_LISTENER} is {address:?}: expected host:port"),
            );
        }
        if voters.is_empty() {
            self.conflict(
                Some(PEER_LISTENER),
                format!("{PEER_LISTENER} asks for controller.quorum.voters, the cluster to join"),
            );
        }
        Some(address)
    }

    fn advertised(&mut self, listeners: &[Listener], hostname: &str) -> Vec<Listener> {
        let name = "advertised.listeners";
        if self.settings.get(name).is_none() {
            return listeners
                .iter()
                .map(|listener| Listener {
                    host: if listener.is_on_every_interface() {
                        hostname.to_owned()
                    } else {
                        listener.host.clone()
                    },
                    ..listener.clone()
                })
                .collect();
        }
        let advertised = self.listeners(name);
        for listener in &advertised {
            if listener.is_on_every_interface() {
                self.conflict(
                    Some(name),
                    format!("{name} must say a host that clients can connect to, not {listener}"),
                );
            }
            if !listeners.iter().any(|other| other.name == listener.name) {
                self.conflict(
                    Some(name),
                    format!("{name} names {}, which is not in listeners", listener.name),
                );
            }
        }
        advertised
    }

    fn check_listeners(&mut self, listeners: &[Listener]) {
        for (index, listener) in listeners.iter().enumerate() {
            for other in &listeners[..index] {
                if other.name == listener.name {
                    self.conflict(
                        Some("listeners"),
                        format!("listeners names {} twice", listener.name),
                    );
                }
                if other.port == listener.port && other.host == listener.host && other.port != 0 {
                    self.conflict(
                        Some("listeners"),
                        format!("listeners uses port {} twice", listener.port),
                    );
                }
            }
        }
    }

    fn check_bounds(&mut self) {
        let min = self.integer("group.min.session.timeout.ms");
        let max = self.integer("group.max.session.timeout.ms");
        if min > max {
            self.conflict(
                Some("group.min.session.timeout.ms"),
                format!(
                    "group.min.session.timeout.ms ({min}) > group.max.session.timeout.ms ({max})"
                ),
            );
        }
        let queued = self.integer("queued.max.request.bytes");
        let request = self.integer("socket.request.max.bytes");
        if (0..request).contains(&queued) {
            self.conflict(
                Some("queued.max.request.bytes"),
                format!(
                    "queued.max.request.bytes ({queued}) < socket.request.max.bytes ({request}): \
                     the largest request could never be read"
                ),
            );
        }
    }
}

impl Listener {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once("://").ok_or("expected NAME://host:port")?;
        let name = name.to_ascii_uppercase();
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if !is_name {
            return Err("expected NAME://host:port".to_owned());
        }
        if matches!(name.as_str(), "SSL" | "SASL_PLAINTEXT" | "SASL_SSL") {
            return Err(format!("{name} is not supported; PLAINTEXT is"));
        }
        let (host, port) = address
            .rsplit_once(':')
            .ok_or("expected a port, NAME://host:port")?;
        let port = port
            .parse()
            .map_err(|_| format!("{port:?} is not a port"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or("[ without ]")?,
            None if host.contains(':') => {
                return Err("an IPv6 address is written in brackets".to_owned());
            }
            None => host,
        };
        Ok(Self {
            name,
            host: host.to_owned(),
            port,
        })
    }

    /// Whether the host says "wherever": no address that a client could use.
    pub fn is_on_every_interface(&self) -> bool {
        matches!(self.host.as_str(), "" | "0.0.0.0" | "::")
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, host, port } = self;
        if host.contains(':') {
            write!(formatter, "{name}://[{host}]:{port}")
        } else {
            write!(formatter, "{name}://{host}:{port}")
        }
    }
}
