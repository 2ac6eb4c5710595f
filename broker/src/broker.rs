//! A running broker: what the handlers of requests reach.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use uuid::Uuid;

use crate::api::create_topics;
use crate::api::fetch::session::FetchSessions;
use crate::api::init_producer_id::ProducerIds;
use crate::cluster::leaders::Leadership;
use crate::cluster::{Cluster, ClusterAnswer, ClusterRequest, HandOver};
use crate::config::BrokerConfig;
use crate::controller::Controller;
use crate::controller::command::{self, Command, CommandAnswer};
use crate::controller::decide::{Placement, Refusal};
use crate::controller::image::BrokerInfo;
use crate::coordinator::host::Coordinating;
use crate::group::service::GroupCoordinator;
use crate::jobs::StatusRegistry;
use crate::server::memory::MemoryBudget;
use crate::shard::handle::PartitionHandle;
use crate::shard::view::PartitionKey;
use crate::topics::TopicRegistry;
use crate::transaction::service::TransactionCoordinator;
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
    pub transactions: TransactionCoordinator,
    /// The partitions whose groups, and those whose transactions, this broker coordinates.
    pub coordinating: Coordinating,
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
        if let Some(told) = &told
            && told.leader_epoch > leader_epoch
        {
            // Elected since this replica last heard of its group: it may be full, or failed.
            return Some(told.clone());
        }
        if leader == self.id() && !view.is_serving() {
            // Elected, and yet to learn what is committed.
            return None;
        }
        if leader < 0 {
            // Who was told of may have gone; one whom only this broker does not reach has not.
            return told.filter(|told| {
                told.leader_epoch == leader_epoch && self.cluster.is_there_for_others(told.leader)
            });
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

    /// Whether a replica cannot take part: its broker is not there, or could not open it.
    pub fn is_offline(&self, replica: i32, topic_id: Uuid, index: i32) -> bool {
        if replica == self.id() {
            let topic = self.topics.by_id(topic_id);
            return topic.is_some_and(|topic| topic.is_closed(index));
        }
        let key = PartitionKey { topic_id, index };
        !self.cluster.is_alive(replica) || self.cluster.told_offline(replica, key)
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

    /// Whether this broker reaches a majority of those who vote on the metadata. Else it knows neither who leads nor who is there.
    pub fn reaches_majority(&self) -> bool {
        let voters = self.voters();
        let reached = voters.iter().filter(|id| self.cluster.is_alive(**id));
        reached.count() > voters.len() / 2
    }

    /// The brokers that are there, for clients: they forget those that they are not told of, so what
    /// counts is not whom this broker alone can reach. One without a majority knows neither that nor
    /// who leads, and names all but itself: a client that it keeps may ask nobody else, ever.
    pub fn brokers_alive(&self) -> Vec<BrokerInfo> {
        let has_majority = self.reaches_majority();
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

    /// Waits until the image here shows what the controller had done before this was called.
    pub async fn catch_up(&self) -> Result<(), Refusal> {
        if !self.controller.is_active() {
            self.ask_controller(&ClusterRequest::CatchUp).await?;
        }
        Ok(())
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
}
