//! The brokers of a cluster as one: who leads which partition, a connection to each, and retries.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::{Request, StrBytes};
use streamgauge_protocol::ErrorCode;

use super::TopicPartition;
use super::connection::Connection;
use super::error::{ClientError, check};
use super::retry::Retry;

/// Topics by name; later versions can ask by id too.
const METADATA_VERSION_MAX: i16 = 12;
pub(super) const ANY_VERSION: i16 = i16::MAX;

/// How a client reaches its cluster.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `host:port`, one or several with commas between.
    pub bootstrap_servers: String,
    pub client_id: String,
    /// For one request; Kafka's `request.timeout.ms`.
    pub request_timeout: Duration,
    /// For an operation with all its retries; Kafka's `default.api.timeout.ms`.
    pub operation_timeout: Duration,
    /// Whether asking about a topic may create it, if the broker's `auto.create.topics.enable` says so. A producer's default in Kafka.
    pub allow_auto_create_topics: bool,
}

impl ClientOptions {
    pub fn new(bootstrap_servers: &str) -> ClientOptions {
        ClientOptions {
            bootstrap_servers: bootstrap_servers.to_owned(),
            client_id: "streamgauge".to_owned(),
            request_timeout: Duration::from_secs(30),
            operation_timeout: Duration::from_secs(60),
            allow_auto_create_topics: false,
        }
    }
}

/// What a broker tells of a topic.
#[derive(Clone, Debug)]
pub struct TopicMetadata {
    pub name: String,
    pub is_internal: bool,
    /// By partition.
    pub partitions: BTreeMap<i32, PartitionMetadata>,
}

#[derive(Clone, Debug)]
pub struct PartitionMetadata {
    /// -1: none now.
    pub leader: i32,
    pub replicas: Vec<i32>,
    pub in_sync: Vec<i32>,
}

/// Connections to a cluster.
#[derive(Debug)]
pub struct Client {
    pub(super) options: ClientOptions,
    bootstrap: Option<Connection>,
    connections: HashMap<i32, Connection>,
    /// Addresses by broker id, from the last metadata.
    brokers: HashMap<i32, String>,
    controller: i32,
    topics: HashMap<String, TopicMetadata>,
}

impl Client {
    /// Connects to the first bootstrap server that answers; tries again until the operation's time is over.
    pub async fn connect(options: ClientOptions) -> Result<Client, ClientError> {
        let mut client = Client {
            options,
            bootstrap: None,
            connections: HashMap::new(),
            brokers: HashMap::new(),
            controller: -1,
            topics: HashMap::new(),
        };
        let mut retry = client.retry();
        while let Err(error) = client.refresh(Some(&[])).await {
            retry.after(error).await?;
        }
        Ok(client)
    }

    pub(super) fn retry(&self) -> Retry {
        Retry::within(self.options.operation_timeout)
    }

    /// Every topic of the cluster, by name.
    pub async fn list_topics(&mut self) -> Result<Vec<TopicMetadata>, ClientError> {
        let mut retry = self.retry();
        loop {
            match self.refresh(None).await {
                Ok(mut topics) => {
                    topics.sort_by(|a, b| a.name.cmp(&b.name));
                    return Ok(topics);
                }
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// What the cluster knows of a topic now; an error if it knows none.
    pub async fn describe_topic(&mut self, topic: &str) -> Result<TopicMetadata, ClientError> {
        let mut retry = self.retry();
        loop {
            match self.refresh(Some(&[topic])).await {
                Ok(topics) => {
                    return topics.into_iter().next().ok_or_else(|| unknown(topic));
                }
                Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {
                    return Err(error);
                }
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Partitions of a topic, from memory or from the cluster, whom it may take a moment to know a new topic.
    pub async fn partitions_of(&mut self, topic: &str) -> Result<Vec<i32>, ClientError> {
        let mut retry = self.retry();
        loop {
            if let Some(known) = self.topics.get(topic) {
                return Ok(known.partitions.keys().copied().collect());
            }
            if let Err(error) = self.refresh(Some(&[topic])).await {
                retry.after(error).await?;
            }
        }
    }

    /// The broker that leads the partition. `LeaderNotAvailable`: nobody does now.
    pub(super) async fn leader_of(
        &mut self,
        partition: &TopicPartition,
    ) -> Result<i32, ClientError> {
        if let Some(leader) = self.known_leader(partition) {
            return Ok(leader);
        }
        self.refresh(Some(&[&partition.topic])).await?;
        self.known_leader(partition)
            .ok_or_else(|| ClientError::Refused {
                what: partition.to_string(),
                code: ErrorCode::LeaderNotAvailable,
                message: None,
            })
    }

    fn known_leader(&self, partition: &TopicPartition) -> Option<i32> {
        let topic = self.topics.get(&partition.topic)?;
        let leader = topic.partitions.get(&partition.partition)?.leader;
        self.brokers.contains_key(&leader).then_some(leader)
    }

    /// Forgets what is known of a topic, so that the next use asks again.
    pub(super) fn forget(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    /// Any broker's answer.
    pub(super) async fn call_any<R: Request>(
        &mut self,
        request: &R,
        version_max: i16,
    ) -> Result<R::Response, ClientError> {
        let time_max = self.options.request_timeout;
        let mut connection = match self.bootstrap.take() {
            Some(connection) => connection,
            None => self.open_any().await?,
        };
        let response = connection.call(request, version_max, time_max).await?;
        self.bootstrap = Some(connection);
        Ok(response)
    }

    /// The controller's answer: for requests that change the cluster.
    pub(super) async fn call_controller<R: Request>(
        &mut self,
        request: &R,
        version_max: i16,
    ) -> Result<R::Response, ClientError> {
        if !self.brokers.contains_key(&self.controller) {
            self.refresh(Some(&[])).await?;
        }
        self.call_broker(self.controller, request, version_max)
            .await
    }

    pub(super) async fn call_broker<R: Request>(
        &mut self,
        broker: i32,
        request: &R,
        version_max: i16,
    ) -> Result<R::Response, ClientError> {
        let time_max = self.options.request_timeout;
        let mut connection = self.take(broker).await?;
        let response = connection.call(request, version_max, time_max).await?;
        self.connections.insert(broker, connection);
        Ok(response)
    }

    /// Sends each request to its broker, which must all be different, and waits for all answers together.
    pub(super) async fn call_each<R: Request>(
        &mut self,
        requests: Vec<(i32, R)>,
        version_max: i16,
        time_max: Duration,
    ) -> Vec<(i32, Result<R::Response, ClientError>)> {
        let mut calls = Vec::with_capacity(requests.len());
        let mut answers = Vec::with_capacity(requests.len());
        for (broker, request) in requests {
            match self.take(broker).await {
                Err(error) => answers.push((broker, Err(error))),
                Ok(mut connection) => calls.push(async move {
                    let answer = connection.call(&request, version_max, time_max).await;
                    (broker, connection, answer)
                }),
            }
        }
        for (broker, connection, answer) in join_all(calls).await {
            if answer.is_ok() {
                self.connections.insert(broker, connection);
            }
            answers.push((broker, answer));
        }
        answers
    }

    /// Sends a request that nobody answers.
    pub(super) async fn send_broker<R: Request>(
        &mut self,
        broker: i32,
        request: &R,
        version_max: i16,
    ) -> Result<(), ClientError> {
        let mut connection = self.take(broker).await?;
        connection.send(request, version_max).await?;
        self.connections.insert(broker, connection);
        Ok(())
    }

    /// A broker's connection, taken out: a call that fails or is dropped half-way leaves none behind.
    async fn take(&mut self, broker: i32) -> Result<Connection, ClientError> {
        if let Some(connection) = self.connections.remove(&broker) {
            return Ok(connection);
        }
        if !self.brokers.contains_key(&broker) {
            self.refresh(Some(&[])).await?;
        }
        let Some(address) = self.brokers.get(&broker) else {
            return Err(ClientError::Refused {
                what: format!("broker {broker}"),
                code: ErrorCode::BrokerNotAvailable,
                message: None,
            });
        };
        Connection::open(
            address,
            &self.options.client_id,
            self.options.request_timeout,
        )
        .await
    }

    async fn open_any(&self) -> Result<Connection, ClientError> {
        let mut reasons = Vec::new();
        let bootstrap = self.options.bootstrap_servers.split(',').map(str::trim);
        let known = self.brokers.values().map(String::as_str);
        for address in bootstrap.filter(|address| !address.is_empty()).chain(known) {
            match Connection::open(
                address,
                &self.options.client_id,
                self.options.request_timeout,
            )
            .await
            {
                Ok(connection) => return Ok(connection),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        reasons.dedup();
        Err(ClientError::Unreachable {
            servers: self.options.bootstrap_servers.clone(),
            reason: reasons.join("; "),
        })
    }

    /// Asks for the brokers and these topics (`None`: all). An error of a topic is an error, save while it is new.
    pub(super) async fn refresh(
        &mut self,
        topics: Option<&[&str]>,
    ) -> Result<Vec<TopicMetadata>, ClientError> {
        let asked = topics.map(|topics| {
            let one =
                |topic: &&str| MetadataRequestTopic::default().with_name(Some(name_of(topic)));
            topics.iter().map(one).collect()
        });
        let request = MetadataRequest::default()
            .with_topics(asked)
            .with_allow_auto_topic_creation(self.options.allow_auto_create_topics);
        let response: MetadataResponse = self.call_any(&request, METADATA_VERSION_MAX).await?;
        self.controller = response.controller_id.0;
        let told = |id: &i32| {
            response
                .brokers
                .iter()
                .any(|broker| broker.node_id.0 == *id)
        };
        self.brokers.retain(|id, _| told(id));
        self.connections.retain(|id, _| told(id));
        for broker in &response.brokers {
            let address = format!("{}:{}", broker.host, broker.port);
            let id = broker.node_id.0;
            if self.brokers.insert(id, address.clone()) != Some(address) {
                self.connections.remove(&id);
            }
        }
        let mut found = Vec::with_capacity(response.topics.len());
        for topic in response.topics {
            let name = topic.name.map(|name| name.to_string()).unwrap_or_default();
            if topic.error_code != 0 {
                self.topics.remove(&name);
            }
            check(topic.error_code, || format!("topic {name}"), None)?;
            let partitions = topic.partitions.into_iter().map(|partition| {
                let ids = |nodes: Vec<kafka_protocol::messages::BrokerId>| {
                    nodes.into_iter().map(|node| node.0).collect()
                };
                let metadata = PartitionMetadata {
                    leader: partition.leader_id.0,
                    replicas: ids(partition.replica_nodes),
                    in_sync: ids(partition.isr_nodes),
                };
                (partition.partition_index, metadata)
            });
            let metadata = TopicMetadata {
                name: name.clone(),
                is_internal: topic.is_internal,
                partitions: partitions.collect(),
            };
            self.topics.insert(name, metadata.clone());
            found.push(metadata);
        }
        Ok(found)
    }

    /// The ids of every broker.
    pub(super) fn broker_ids(&self) -> Vec<i32> {
        let mut ids: Vec<i32> = self.brokers.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Makes a broker's address known, as a coordinator's answer tells it.
    pub(super) fn learn_broker(&mut self, id: i32, address: String) {
        if self.brokers.insert(id, address.clone()) != Some(address) {
            self.connections.remove(&id);
        }
    }
}

pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub(super) fn name_of(topic: &str) -> TopicName {
    TopicName(text(topic))
}

fn unknown(topic: &str) -> ClientError {
    ClientError::Refused {
        what: format!("topic {topic}"),
        code: ErrorCode::UnknownTopicOrPartition,
        message: None,
    }
}
