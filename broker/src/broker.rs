//! A running broker: what the handlers of requests reach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::api::create_topics;
use crate::api::fetch::session::FetchSessions;
use crate::api::init_producer_id::ProducerIds;
use crate::cluster::leaders::Leadership;
use crate::cluster::{Cluster, ClusterAnswer, ClusterRequest, HandOver};
use crate::config::BrokerConfig;
use crate::controller::Controller;
use crate::controller::command::{self, Command, CommandAnswer};
use crate::controller::decide::{GROUP_METADATA_TOPIC, NewTopic, Placement, Refusal};
use crate::controller::image::BrokerInfo;
use crate::group::coordinator::DeletedTopic;
use crate::group::service::GroupCoordinator;
use crate::jobs::StatusRegistry;
use crate::offsets_log::OffsetsLog;
use crate::server::memory::MemoryBudget;
use crate::shard::handle::PartitionHandle;
use crate::shard::view::PartitionKey;
use crate::topics::TopicRegistry;
use streamgauge_protocol::error::ErrorCode;

/// How long a broker waits until its image shows what the controller has done for it.
const APPLY_PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries to make this broker known.
const REGISTER_RETRY: Duration = Duration::from_millis(100);

/// How long another broker has to say that it heard of a hand-over.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// Where clients reach a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

/// Everything that a request may need. Shared by all connections.
pub struct Broker {
    pub config: Arc<BrokerConfig>,
    pub endpoint: Endpoint,
    pub directory: PathBuf,
    pub controller: Controller,
    pub topics: Arc<TopicRegistry>,
    pub groups: GroupCoordinator,
    pub fetch_sessions: FetchSessions,
    pub producer_ids: ProducerIds,
    pub memory: MemoryBudget,
    /// What each aggregation is doing.
    pub job_statuses: Arc<StatusRegistry>,
    pub stopping: watch::Receiver<bool>,
    pub cluster: Arc<Cluster>,
    /// The partitions of the offsets topic whose groups this broker coordinates, and the epoch in
    /// which it leads them.
    pub coordinating: Mutex<HashMap<i32, i32>>,
}

impl Broker {
    pub fn id(&self) -> i32 {
        self.config.node_id
    }

    pub fn data_directory(&self) -> &Path {
        &self.directory
    }

    /// Returns when the broker begins to stop.
    pub async fn stopping(&self) {
        let mut stopping = self.stopping.clone();
        // A sender that is gone has stopped as well.
        drop(stopping.wait_for(|stop| *stop).await);
    }

    /// Where new partitions may go: to the brokers that are there, racks taking turns.
    pub fn placement(&self) -> Placement {
        let mut by_rack: BTreeMap<Option<String>, Vec<i32>> = BTreeMap::new();
        let mut fenced = Vec::new();
        self.controller.read(|image| {
            for known in image.brokers() {
                if self.cluster.is_alive(known.node_id) {
                    let rack = by_rack.entry(known.rack.clone()).or_default();
                    rack.push(known.node_id);
                } else {
                    fenced.push(known.node_id);
                }
            }
        });
        let deepest = by_rack.values().map(Vec::len).max().unwrap_or(0);
        let brokers = (0..deepest)
            .flat_map(|depth| by_rack.values().filter_map(move |rack| rack.get(depth)))
            .copied()
            .collect();
        Placement {
            brokers,
            fenced,
            partitions_default: self.config.num_partitions,
            replication_factor_default: self.config.default_replication_factor,
        }
    }

    /// Who leads a partition, its epoch and in-sync replicas, as far as this broker knows.
    pub fn leadership(&self, topic_id: Uuid, index: i32) -> Option<Leadership> {
        let key = PartitionKey { topic_id, index };
        let here = self
            .topics
            .by_id(topic_id)
            .and_then(|topic| topic.partition(index));
        let told = self.cluster.told_leader(key);
        let Some(view) = here.as_ref().map(PartitionHandle::view) else {
            return told;
        };
        let (leader, leader_epoch) = (view.leader(), view.leader_epoch());
        if leader == self.id() && !view.is_serving() {
            // Elected, and yet to learn what is committed.
            return None;
        }
        if leader < 0 {
            // Who was told of may have gone; a newer epoch than this replica's has not.
            return told.filter(|told| told.leader_epoch > leader_epoch);
        }
        let in_sync = match told {
            _ if leader == self.id() => view.in_sync().as_ref().clone(),
            Some(told) if told.leader == leader => told.in_sync,
            _ => vec![leader],
        };
        Some(Leadership {
            leader,
            leader_epoch,
            in_sync,
        })
    }

    /// Asks the broker that leads these partitions to hand them over. Whether it does is seen when
    /// the other leads.
    pub async fn hand_over(&self, from: i32, to: i32, partitions: Vec<PartitionKey>) {
        let hand_over = HandOver::new(to, &partitions);
        if from == self.id() {
            self.hand_over_here(&hand_over);
            return;
        }
        let request = ClusterRequest::HandOver(hand_over);
        if let Err(error) = self.cluster.ask(from, &request, HAND_OVER_PATIENCE).await {
            tracing::debug!(from, %error, "a leader was not reached to hand over");
        }
    }

    /// Hands over what of it is led here.
    pub fn hand_over_here(&self, hand_over: &HandOver) {
        for key in hand_over.partitions() {
            let topic = self.topics.by_id(key.topic_id);
            let partition = topic.and_then(|topic| topic.partition(key.index));
            if let Some(partition) = partition.filter(|found| found.view().is_serving()) {
                partition.transfer(Some(hand_over.to));
            }
        }
    }

    /// Gives the partitions that are led here back to their preferred replicas, where those are in
    /// sync. Runs until the broker stops.
    pub async fn balance_leaders(self: Arc<Self>) {
        let config = &self.config;
        if !config.auto_leader_rebalance_enable {
            return;
        }
        let interval = config.leader_imbalance_check_interval_seconds;
        let interval = Duration::from_secs(interval.unsigned_abs());
        loop {
            tokio::select! {
                biased;
                () = self.stopping() => return,
                () = tokio::time::sleep(interval) => {}
            }
            for (preferred, partition) in self.led_for_others() {
                tracing::info!(partition = ?partition.view().key(), preferred, "leadership goes back");
                partition.transfer(Some(preferred));
            }
        }
    }

    /// The partitions led here whose preferred replica is another's and in sync.
    fn led_for_others(&self) -> Vec<(i32, PartitionHandle)> {
        let declared: Vec<_> = self
            .controller
            .read(|image| image.topics().cloned().collect());
        let mut found = Vec::new();
        for topic in declared {
            let Some(handle) = self.topics.by_id(topic.topic_id) else {
                continue;
            };
            for (index, replicas) in (0..).zip(&topic.partitions) {
                let preferred = replicas
                    .first()
                    .copied()
                    .filter(|first| *first != self.id());
                if let (Some(preferred), Some(partition)) = (preferred, handle.partition(index))
                    && partition.view().is_serving()
                    && partition.view().in_sync().contains(&preferred)
                {
                    found.push((preferred, partition));
                }
            }
        }
        found
    }

    /// Where clients reach a broker.
    pub fn endpoint_of(&self, broker: i32) -> Option<BrokerInfo> {
        self.controller.read(|image| image.broker(broker).cloned())
    }

    /// The brokers that are there, for clients: they forget those that they are not told of, so what
    /// counts is not whom this broker alone can reach. One without a majority knows neither that nor
    /// who leads, and names all but itself: a client that it keeps may ask nobody else, ever.
    pub fn brokers_alive(&self) -> Vec<BrokerInfo> {
        let voters = self.voters();
        let reached = voters.iter().filter(|id| self.cluster.is_alive(**id));
        let has_majority = reached.count() > voters.len() / 2;
        self.controller.read(|image| {
            image
                .brokers()
                .filter(|known| match has_majority {
                    true => self.cluster.is_there(known.node_id),
                    false => known.node_id != self.id(),
                })
                .cloned()
                .collect()
        })
    }

    /// Has the controller do something, wherever it is, and waits until this broker's image shows it.
    pub async fn command(self: &Arc<Self>, command: Command) -> Result<Option<i64>, Refusal> {
        let answer = match self.controller.is_active() {
            true => self.run_command(command).await,
            false => {
                let answer = self
                    .ask_controller(&ClusterRequest::Command(command))
                    .await?;
                serde_json::from_slice(&answer).map_err(|error| {
                    Refusal::new(ErrorCode::UnknownServerError, error.to_string())
                })?
            }
        };
        answer.into_result()
    }

    /// Sends a request to the controller; what it did is in the image when this returns.
    pub async fn ask_controller(&self, request: &ClusterRequest) -> Result<Bytes, Refusal> {
        let not_there = |message: String| Refusal::new(ErrorCode::NotController, message);
        let leader = self.controller.leader();
        if leader < 0 || leader == self.id() {
            return Err(not_there("the cluster has no controller; ask again".into()));
        }
        let time_max = Duration::from_millis(self.config.request_timeout_ms.unsigned_abs());
        let answer = self
            .cluster
            .ask(leader, request, time_max)
            .await
            .map_err(|error| not_there(error.to_string()))?;
        let answer = ClusterAnswer::decode(answer)
            .ok_or_else(|| not_there("the controller is changing; ask again".into()))?;
        let applied = self.controller.wait_applied(answer.metadata_offset);
        // A broker that lags that much answers all the same.
        let _ = tokio::time::timeout(APPLY_PATIENCE, applied).await;
        Ok(answer.payload)
    }

    /// Who votes on the metadata.
    pub fn voters(&self) -> Vec<i32> {
        let named = self.controller.read(|image| image.voters().cloned());
        named.unwrap_or_else(|| self.config.voters())
    }

    /// Runs a command on the controller, which this broker is.
    pub async fn run_command(self: &Arc<Self>, command: Command) -> CommandAnswer {
        if let Command::CreateTopic(new) = command {
            return match create_topics::create_here(self, vec![new], false)
                .await
                .pop()
            {
                Some((_, Err(refusal))) => CommandAnswer::refused(refusal),
                _ => CommandAnswer::Done,
            };
        }
        let decided = self
            .controller
            .write(move |image| command::decide(image, command))
            .await;
        decided.unwrap_or_else(CommandAnswer::refused)
    }

    /// Makes this broker known, and goes on trying until it is. A cluster refuses one that comes with
    /// another's node id.
    pub async fn register(self: &Arc<Self>, info: BrokerInfo) -> Result<(), Refusal> {
        loop {
            let command = Command::RegisterBroker(info.clone());
            match self.command(command).await {
                Ok(_) => return Ok(()),
                Err(refusal) if refusal.code == ErrorCode::DuplicateBrokerRegistration => {
                    return Err(refusal);
                }
                Err(refusal) => tracing::debug!(%refusal, "not registered yet"),
            }
            tokio::select! {
                biased;
                () = self.stopping() => return Ok(()),
                () = tokio::time::sleep(REGISTER_RETRY) => {}
            }
        }
    }

    /// Makes sure that groups have coordinators: their topic exists. Who leads its partitions takes
    /// up their work by itself.
    pub async fn coordinate_groups(self: &Arc<Self>) -> Result<(), Refusal> {
        if self.topics.by_name(GROUP_METADATA_TOPIC).is_none() {
            self.create_offsets_topic().await?;
        }
        self.follow_offsets_topic();
        Ok(())
    }

    /// Takes up the work of the coordinators whose partitions are led here, and lays it down where
    /// they are no longer.
    pub fn follow_offsets_topic(&self) {
        let Some(topic) = self.topics.by_name(GROUP_METADATA_TOPIC) else {
            return;
        };
        let mut led = self
            .coordinating
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for partition in topic.handles() {
            let view = partition.view();
            let index = view.key().index;
            let epoch = view.is_serving().then(|| view.leader_epoch());
            match (led.get(&index).copied(), epoch) {
                (before, Some(epoch)) if before != Some(epoch) => {
                    if before.is_some() {
                        self.groups.resign(index);
                    }
                    let log = OffsetsLog::new(partition.clone());
                    self.groups.become_leader(index, Arc::new(log));
                    led.insert(index, epoch);
                }
                (Some(_), None) => {
                    self.groups.resign(index);
                    led.remove(&index);
                }
                _ => {}
            }
        }
    }

    /// Lays down the work of all coordinators here: members that wait are told to look elsewhere.
    pub fn resign_groups(&self) {
        let mut led = self
            .coordinating
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (index, _) in led.drain() {
            self.groups.resign(index);
        }
    }

    fn topic_names(&self) -> BTreeSet<DeletedTopic> {
        self.controller.read(|image| {
            let topics = image.topics().map(|topic| DeletedTopic {
                name: topic.name.clone(),
                id: topic.topic_id,
            });
            topics.collect()
        })
    }

    /// Runs until the broker stops: see [`Self::follow_offsets_topic`]. Coordinators also forget the offsets of
    /// topics that are gone, whichever broker was asked to delete them.
    pub async fn follow_leadership(self: Arc<Self>) {
        let changed = Arc::new(Notify::new());
        let mut metadata = self.controller.changes();
        let mut known = BTreeSet::new();
        loop {
            let there = self.topic_names();
            let gone: Vec<DeletedTopic> = known.difference(&there).cloned().collect();
            known = there;
            if !gone.is_empty() {
                let broker = Arc::clone(&self);
                // Its records wait for their commit, and this loop says who may have to give up waiting.
                drop(tokio::spawn(async move {
                    broker.groups.topics_deleted(gone).await;
                }));
            }
            if let Some(topic) = self.topics.by_name(GROUP_METADATA_TOPIC) {
                for partition in topic.handles() {
                    partition.view().wake(&changed);
                }
            }
            self.follow_offsets_topic();
            tokio::select! {
                biased;
                () = self.stopping() => return,
                () = changed.notified() => {}
                _ = metadata.changed() => {}
            }
        }
    }

    /// Makes the topic of the group coordinators, with Kafka's settings for it.
    async fn create_offsets_topic(self: &Arc<Self>) -> Result<(), Refusal> {
        let config = &self.config;
        let new = NewTopic {
            name: GROUP_METADATA_TOPIC.to_owned(),
            partitions: config.offsets_topic_num_partitions,
            // As many as the cluster has brokers, up to what is configured.
            replication_factor: config
                .offsets_topic_replication_factor
                .min(i16::try_from(config.voters().len()).unwrap_or(i16::MAX)),
            assignments: Vec::new(),
            configs: BTreeMap::from([
                ("cleanup.policy".into(), "compact".into()),
                ("compression.type".into(), "producer".into()),
                (
                    "segment.bytes".into(),
                    config.offsets_topic_segment_bytes.to_string(),
                ),
            ]),
            internal: true,
        };
        match self.command(Command::CreateTopic(new)).await {
            Err(refusal) if refusal.code != ErrorCode::TopicAlreadyExists => Err(refusal),
            _ => Ok(()),
        }
    }
}
