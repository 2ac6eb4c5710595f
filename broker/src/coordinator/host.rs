//! The broker as the host of its coordinators: their topics exist, and who leads a partition of one takes up the work there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Notify;

use super::leadership::Taken;
use super::partition_log::PartitionLog;
use crate::broker::Broker;
use crate::controller::command::Command;
use crate::controller::decide::{GROUP_METADATA_TOPIC, NewTopic, Refusal, TRANSACTION_STATE_TOPIC};
use crate::group::coordinator::DeletedTopic;
use crate::shard::handle::PartitionHandle;
use streamgauge_protocol::error::ErrorCode;

/// What of the coordinators' topics has been taken up here.
#[derive(Debug, Default)]
pub struct Coordinating {
    groups: Taken,
    transactions: Taken,
}

impl Broker {
    /// Makes sure that groups have coordinators: their topic exists. Who leads its partitions takes
    /// up their work by itself.
    pub async fn coordinate_groups(self: &Arc<Self>) -> Result<(), Refusal> {
        if self.topics.by_name(GROUP_METADATA_TOPIC).is_none() {
            self.create_internal(self.offsets_topic()).await?;
        }
        self.follow_coordinators();
        Ok(())
    }

    /// As [`Self::coordinate_groups`], for transactions.
    pub async fn coordinate_transactions(self: &Arc<Self>) -> Result<(), Refusal> {
        if self.topics.by_name(TRANSACTION_STATE_TOPIC).is_none() {
            self.create_internal(self.transaction_topic()).await?;
        }
        self.follow_coordinators();
        Ok(())
    }

    /// Takes up the work of the coordinators whose partitions are led here, and lays it down where
    /// they are no longer.
    pub fn follow_coordinators(&self) {
        let count = |topic| Some(self.topics.by_name(topic)?.partition_count());
        if let Some(count) = count(GROUP_METADATA_TOPIC) {
            self.groups.set_partition_count(count);
        }
        if let Some(count) = count(TRANSACTION_STATE_TOPIC) {
            self.transactions.set_partition_count(count);
        }
        self.coordinating.groups.follow(
            || self.partitions_here(GROUP_METADATA_TOPIC),
            |index, epoch, partition| {
                let log = Arc::new(PartitionLog::new(partition, epoch));
                self.groups.become_leader(index, log);
            },
            |index| self.groups.resign(index),
        );
        self.coordinating.transactions.follow(
            || self.partitions_here(TRANSACTION_STATE_TOPIC),
            |index, epoch, partition| {
                let log = Arc::new(PartitionLog::new(partition, epoch));
                self.transactions.become_leader(index, epoch, log);
            },
            |index| self.transactions.resign(index),
        );
    }

    fn partitions_here(&self, topic: &str) -> Vec<PartitionHandle> {
        let topic = self.topics.by_name(topic);
        topic.map_or_else(Vec::new, |topic| topic.handles())
    }

    /// Lays down the work of all coordinators here: members that wait are told to look elsewhere.
    pub fn resign_coordinators(&self) {
        let coordinating = &self.coordinating;
        let groups = |index| self.groups.resign(index);
        coordinating.groups.lay_down_all(groups);
        let transactions = |index| self.transactions.resign(index);
        coordinating.transactions.lay_down_all(transactions);
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

    /// Runs until the broker stops: see [`Self::follow_coordinators`]. Coordinators also forget the offsets of
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
            for topic in [GROUP_METADATA_TOPIC, TRANSACTION_STATE_TOPIC] {
                for partition in self.partitions_here(topic) {
                    partition.view().wake(&changed);
                }
            }
            self.follow_coordinators();
            tokio::select! {
                biased;
                () = self.stopping() => return,
                () = changed.notified() => {}
                _ = metadata.changed() => {}
            }
        }
    }

    /// The topic of the group coordinators, with Kafka's settings for it.
    fn offsets_topic(&self) -> NewTopic {
        let config = &self.config;
        let configs = [
            ("cleanup.policy", "compact".to_owned()),
            ("compression.type", "producer".to_owned()),
            (
                "segment.bytes",
                config.offsets_topic_segment_bytes.to_string(),
            ),
        ];
        internal_topic(
            GROUP_METADATA_TOPIC,
            config.offsets_topic_num_partitions,
            self.replicas_at_most(config.offsets_topic_replication_factor),
            configs,
        )
    }

    /// The topic of the transaction coordinators, with Kafka's settings for it (`TransactionStateManager.transactionTopicConfigs`).
    fn transaction_topic(&self) -> NewTopic {
        let config = &self.config;
        let replicas = self.replicas_at_most(config.transaction_state_log_replication_factor);
        // With fewer brokers than Kafka counts on, what it asks for could never be met.
        let in_sync = config
            .transaction_state_log_min_isr
            .min(i32::from(replicas));
        let configs = [
            ("cleanup.policy", "compact".to_owned()),
            ("compression.type", "uncompressed".to_owned()),
            ("min.insync.replicas", in_sync.to_string()),
            (
                "segment.bytes",
                config.transaction_state_log_segment_bytes.to_string(),
            ),
        ];
        internal_topic(
            TRANSACTION_STATE_TOPIC,
            config.transaction_state_log_num_partitions,
            replicas,
            configs,
        )
    }

    /// As many as the cluster has brokers, up to what is configured.
    fn replicas_at_most(&self, configured: i16) -> i16 {
        let voters = self.config.voters().len();
        configured.min(i16::try_from(voters).unwrap_or(i16::MAX))
    }

    async fn create_internal(self: &Arc<Self>, new: NewTopic) -> Result<(), Refusal> {
        match self.command(Command::CreateTopic(new)).await {
            Err(refusal) if refusal.code != ErrorCode::TopicAlreadyExists => Err(refusal),
            _ => Ok(()),
        }
    }
}

fn internal_topic<const N: usize>(
    name: &str,
    partitions: i32,
    replication_factor: i16,
    configs: [(&str, String); N],
) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        assignments: Vec::new(),
        configs: configs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
        internal: true,
    }
}
