//! Follows the metadata log on every broker: keeps image, registry and shards in step with it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use streamgauge_protocol::batch::{BatchIter, BatchRecords};
use streamgauge_storage::StorageError;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::image::{Image, Topic};
use super::record::MetadataRecord;
use super::reopen::Reopen;
use super::writer::ControllerError;
use crate::config::{BrokerConfig, BrokerLayers, TopicConfig};
use crate::replication::membership::Target;
use crate::replication::raft_id;
use crate::shard::event::{Event, OpenPartition, OpenedPartition};
use crate::shard::handle::{PartitionHandle, ShardHandle};
use crate::shard::view::{PartitionKey, PartitionView};
use crate::topics::{Slot, TopicHandle, TopicRegistry};

/// The metadata log is read in pieces of this size.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// The largest batch of metadata records, unpacked; they are written uncompressed.
const RECORDS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Partitions of a shard that are asked to be opened at once.
const OPENINGS_PER_SHARD_MAX: usize = 32;

/// Where partitions are put.
#[derive(Clone)]
pub struct Placed {
    pub shards: Vec<ShardHandle>,
    pub config: Arc<BrokerConfig>,
    /// The data directory.
    pub directory: PathBuf,
}

impl Placed {
    /// The number of the shard of a partition: neighbours go to different ones.
    pub fn shard_number(&self, key: PartitionKey) -> usize {
        let hash =
            (key.topic_id.as_u128() as u64).wrapping_add(u64::from(key.index.unsigned_abs()));
        (hash % self.shards.len().max(1) as u64) as usize
    }

    fn shard(&self, key: PartitionKey) -> Option<&ShardHandle> {
        self.shards.get(self.shard_number(key))
    }

    fn directory(&self, topic: &str, index: i32) -> PathBuf {
        self.directory.join(format!("{topic}-{index}"))
    }

    /// Asks the shard to open a partition; the answer can be awaited later.
    pub(super) fn open(
        &self,
        topic: &Arc<str>,
        key: PartitionKey,
        config: Arc<TopicConfig>,
        members: Members,
    ) -> Opening {
        let (reply, answer) = oneshot::channel();
        let alone = members.are_alone();
        let Some(shard) = self.shard(key) else {
            return Opening {
                topic: Arc::clone(topic),
                key,
                alone,
                shard: None,
                answer,
            };
        };
        shard.send(Event::Open(Box::new(OpenPartition {
            key,
            topic: Arc::clone(topic),
            directory: self.directory(topic, key.index),
            config,
            founders: members.founders,
            target: members.target,
            may_be_removed: members.may_be_removed,
            reply,
        })));
        Opening {
            topic: Arc::clone(topic),
            key,
            alone,
            shard: Some(shard.clone()),
            answer,
        }
    }
}

/// Who takes part in a partition's group.
pub(super) struct Members {
    /// The brokers that it was founded with.
    pub founders: Vec<i32>,
    pub target: Target,
    may_be_removed: bool,
}

impl Members {
    /// Of a partition that has not moved.
    fn of_founders(founders: Vec<i32>) -> Self {
        Self {
            founders,
            target: Target::default(),
            may_be_removed: true,
        }
    }

    /// Of the metadata log, which every broker follows that is once registered.
    pub fn of_the_metadata(founders: Vec<i32>) -> Self {
        Self {
            may_be_removed: false,
            ..Self::of_founders(founders)
        }
    }

    fn of(topic: &Topic, index: i32) -> Self {
        Self {
            target: target_of(topic, index),
            ..Self::of_founders(topic.founders(index).to_vec())
        }
    }

    /// Whether the only replica there is and was is the one here.
    fn are_alone(&self) -> bool {
        self.founders.len() == 1 && self.target.epoch == 0
    }
}

fn target_of(topic: &Topic, index: i32) -> Target {
    let (epoch, brokers) = topic.target(index);
    Target {
        epoch,
        voters: brokers.iter().map(|broker| raft_id(*broker)).collect(),
        learners: Vec::new(),
    }
}

/// Whether a record makes or removes files. It must be known to be committed after every restart then: what is made or removed by it,
/// or by what comes after it, would else be taken for what an earlier one means. (A topic may have the name of a deleted one, and a
/// replica may have come back.)
fn has_effects(record: &MetadataRecord) -> bool {
    matches!(
        record,
        MetadataRecord::Topic { .. }
            | MetadataRecord::PartitionsAdded { .. }
            | MetadataRecord::TopicRemoved { .. }
            | MetadataRecord::PartitionReassigning { .. }
            | MetadataRecord::PartitionReassigned { .. }
    )
}

/// Why a partition stays closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpeningError {
    #[error("the shard has stopped")]
    NoShard,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A partition that is being opened.
pub(super) struct Opening {
    topic: Arc<str>,
    key: PartitionKey,
    /// The only replica is here.
    alone: bool,
    shard: Option<ShardHandle>,
    answer: oneshot::Receiver<Result<OpenedPartition, StorageError>>,
}

impl Opening {
    /// The partition's handle, or the reason why it stays closed.
    pub(super) async fn finish(self) -> Result<PartitionHandle, OpeningError> {
        let shard = self.shard.ok_or(OpeningError::NoShard)?;
        let opened = self.answer.await.map_err(|_| OpeningError::NoShard)??;
        Ok(PartitionHandle::new(shard, opened.id, opened.view))
    }

    /// As [`Self::finish`], but an error is logged and leaves the partition offline.
    async fn finish_or_offline(self) -> Slot {
        let (topic, index) = (Arc::clone(&self.topic), self.key.index);
        match self.finish().await {
            Ok(handle) => Slot::Here(handle),
            Err(error) => {
                tracing::error!(%topic, partition = index, %error, "partition is offline");
                match error {
                    OpeningError::Storage(StorageError::Corrupt(_)) => Slot::Damaged,
                    _ => Slot::Offline,
                }
            }
        }
    }
}

/// Applies the metadata log; run by one task.
pub struct Applier {
    log: PartitionHandle,
    image: Arc<RwLock<Image>>,
    topics: Arc<TopicRegistry>,
    placed: Placed,
    version: watch::Sender<u64>,
    applied: watch::Sender<i64>,
    /// What the image holds before this runs.
    read_to: i64,
}

impl Applier {
    pub(super) fn new(
        log: PartitionHandle,
        image: Arc<RwLock<Image>>,
        topics: Arc<TopicRegistry>,
        placed: Placed,
        version: watch::Sender<u64>,
        applied: watch::Sender<i64>,
    ) -> Self {
        Self {
            log,
            image,
            topics,
            placed,
            version,
            applied,
            read_to: 0,
        }
    }

    /// Makes the image of what is known to be committed. The partitions that it names are opened when
    /// this runs: the metadata's own group answers others meanwhile.
    pub(super) fn read_image(&mut self) -> Result<i64, ControllerError> {
        let end = self.log.view().high_watermark();
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        read_records(self.log.view(), 0, end, |record| image.apply(record))?;
        self.read_to = end;
        Ok(end)
    }

    /// Applies what is committed, as it is, until the log is gone.
    pub async fn run(mut self) {
        self.open_all().await;
        self.applied.send_replace(self.read_to);
        let changed = Arc::new(Notify::new());
        let mut reopen = Reopen::new(Instant::now());
        loop {
            self.log.view().wake(&changed);
            if self.log.view().is_deleted() {
                return;
            }
            let (from, end) = (*self.applied.borrow(), self.log.view().high_watermark());
            if from >= end {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(reopen.at()), if self.has_offline() => {
                        self.open_offline().await;
                        reopen.tried(self.has_offline(), Instant::now());
                    }
                    () = changed.notified() => {}
                }
                continue;
            }
            let mut records = Vec::new();
            if let Err(error) =
                read_records(self.log.view(), from, end, |record| records.push(record))
            {
                // Nothing that comes later can be applied without it.
                tracing::error!(%error, "this broker cannot follow the cluster's metadata");
                return;
            }
            if records.iter().any(has_effects)
                && let Err(error) = self.log.save_commit().await
            {
                // A full disk: what is done now may be done again.
                tracing::warn!(%error, "what is committed of the metadata could not be saved");
            }
            for record in records {
                self.take_effect(record).await;
            }
            self.version.send_modify(|version| *version += 1);
            self.applied.send_replace(end);
        }
    }

    /// Applies one committed record: what it names is opened before the image shows it, and
    /// removed after the image has forgotten it.
    async fn take_effect(&mut self, record: MetadataRecord) {
        let removed = match &record {
            MetadataRecord::Topic {
                name,
                topic_id,
                partitions,
                configs,
            } => {
                let topic = Topic {
                    name: name.clone(),
                    topic_id: *topic_id,
                    partitions: partitions.clone(),
                    configs: configs.clone(),
                    aggregation_producer_id: None,
                    moved: BTreeMap::new(),
                };
                self.open_topics(&[Arc::new(topic)]).await;
                None
            }
            MetadataRecord::PartitionsAdded {
                topic_id,
                partitions,
            } => {
                self.grow_topic(*topic_id, partitions).await;
                None
            }
            MetadataRecord::PartitionReassigning {
                topic_id,
                partition,
                target,
                ..
            } => {
                self.take_up(*topic_id, *partition, target).await;
                None
            }
            MetadataRecord::TopicRemoved { topic_id } => Some(*topic_id),
            _ => None,
        };
        let moved = match &record {
            MetadataRecord::PartitionReassigned {
                topic_id,
                partition,
                ..
            } => Some((*topic_id, *partition)),
            _ => None,
        };
        let reconfigured = match &record {
            MetadataRecord::TopicConfigs { topic_id, .. } => Some(*topic_id),
            _ => None,
        };
        let all_reconfigured = matches!(record, MetadataRecord::BrokerConfigs { .. });
        self.image
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(record);
        if let Some(topic_id) = removed {
            self.remove_topic(topic_id).await;
        }
        if let Some((topic_id, partition)) = moved {
            self.give_up(topic_id, partition).await;
        }
        if let Some(topic_id) = reconfigured {
            self.reconfigure(topic_id);
        }
        if all_reconfigured {
            for topic in self.topics.all() {
                self.reconfigure(topic.topic_id);
            }
        }
    }

    async fn open_all(&mut self) {
        let topics: Vec<Arc<Topic>> = {
            let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
            image.topics().cloned().collect()
        };
        for topic in &topics {
            self.remove_leftovers(topic);
        }
        self.open_topics(&topics).await;
    }

    /// Opens what is here of these topics, a bounded number of partitions at a time: enough for the
    /// shards to work side by side, and few enough that they turn to other brokers between.
    async fn open_topics(&self, topics: &[Arc<Topic>]) {
        let at_once = OPENINGS_PER_SHARD_MAX * self.placed.shards.len().max(1);
        let mut under_way = VecDeque::new();
        let mut finishing = topics.iter();
        let mut slots = Vec::new();
        for topic in topics {
            let config = self.topic_config(topic);
            let name: Arc<str> = Arc::from(topic.name.as_str());
            for (index, replicas) in (0..).zip(&topic.partitions) {
                let here = replicas.contains(&self.placed.config.node_id);
                let key = PartitionKey {
                    topic_id: topic.topic_id,
                    index,
                };
                under_way.push_back(here.then(|| {
                    let members = Members::of(topic, index);
                    self.placed.open(&name, key, Arc::clone(&config), members)
                }));
                if under_way.len() >= at_once
                    && let Some(opening) = under_way.pop_front()
                {
                    slots.push(finish(opening).await);
                    self.register_opened(&mut finishing, &mut slots);
                }
            }
        }
        for opening in under_way {
            slots.push(finish(opening).await);
            self.register_opened(&mut finishing, &mut slots);
        }
    }

    /// Takes the slots of the next topic if they are all there.
    fn register_opened(&self, next: &mut std::slice::Iter<'_, Arc<Topic>>, slots: &mut Vec<Slot>) {
        let is_complete = |topic: &Arc<Topic>| topic.partitions.len() <= slots.len();
        let Some(topic) = next.as_slice().first().filter(|topic| is_complete(topic)) else {
            return;
        };
        next.next();
        let handle = TopicHandle::new(
            Arc::from(topic.name.as_str()),
            topic.topic_id,
            self.topic_config(topic),
            std::mem::take(slots),
        );
        self.topics.insert(Arc::new(handle));
    }

    /// A replica that was moved away may have been stopped in its removal.
    fn remove_leftovers(&self, topic: &Topic) {
        for index in topic.moved.keys().copied() {
            let replicas = usize::try_from(index)
                .ok()
                .and_then(|at| topic.partitions.get(at));
            let key = PartitionKey {
                topic_id: topic.topic_id,
                index,
            };
            if replicas.is_some_and(|replicas| !replicas.contains(&self.placed.config.node_id)) {
                self.remove_files(topic, key);
            }
        }
    }

    /// The files of a replica that is not open, and is not wanted here any more.
    fn remove_files(&self, topic: &Topic, key: PartitionKey) {
        if let Some(shard) = self.placed.shard(key) {
            shard.send(Event::RemoveLeftovers {
                key,
                directory: self.placed.directory(&topic.name, key.index),
                epoch: topic.settled(key.index),
            });
        }
    }

    async fn grow_topic(&self, topic_id: Uuid, added: &[Vec<i32>]) {
        let Some(topic) = self.topics.by_id(topic_id) else {
            return;
        };
        let first = topic.partition_count();
        let openings = (first..)
            .zip(added)
            .map(|(index, replicas)| {
                if !replicas.contains(&self.placed.config.node_id) {
                    return None;
                }
                let key = PartitionKey { topic_id, index };
                Some(self.placed.open(
                    &topic.name,
                    key,
                    topic.config(),
                    Members::of_founders(replicas.clone()),
                ))
            })
            .collect();
        topic.add_partitions(finish_all(openings).await);
    }

    async fn remove_topic(&self, topic_id: Uuid) {
        let Some(topic) = self.topics.remove(topic_id) else {
            return;
        };
        for partition in topic.handles() {
            partition.delete(None).await;
        }
    }

    /// A partition is to have other replicas: the one here is told, or opened if it is one of them.
    async fn take_up(&self, topic_id: Uuid, index: i32, target: &[i32]) {
        let (Some(mut topic), Some(handle)) =
            (self.declared(topic_id), self.topics.by_id(topic_id))
        else {
            return;
        };
        topic.reassign(index, target.to_vec(), None);
        if let Some(partition) = handle.partition(index) {
            partition.assign(target_of(&topic, index));
            return;
        }
        // One that could not be opened before is not wanted less now.
        if !target.contains(&self.placed.config.node_id) {
            return;
        }
        let key = PartitionKey { topic_id, index };
        let members = Members::of(&topic, index);
        let opening = self
            .placed
            .open(&handle.name, key, handle.config(), members);
        handle.set_slot(index, opening.finish_or_offline().await);
    }

    fn has_offline(&self) -> bool {
        let all = self.topics.all();
        all.iter().any(|topic| !topic.offline().is_empty())
    }

    /// Tries again what could not be opened: a disk may have room by now, or the process files.
    async fn open_offline(&self) {
        for handle in self.topics.all() {
            let Some(topic) = self.declared(handle.topic_id) else {
                continue;
            };
            for index in handle.offline() {
                let key = PartitionKey {
                    topic_id: handle.topic_id,
                    index,
                };
                let members = Members::of(&topic, index);
                let opening = self
                    .placed
                    .open(&handle.name, key, handle.config(), members);
                handle.set_slot(index, opening.finish_or_offline().await);
            }
        }
    }

    /// A partition has its new replicas: the one here goes if it is none of them.
    async fn give_up(&self, topic_id: Uuid, index: i32) {
        let (Some(topic), Some(handle)) = (self.declared(topic_id), self.topics.by_id(topic_id))
        else {
            return;
        };
        if topic.target(index).1.contains(&self.placed.config.node_id) {
            return;
        }
        let partition = handle.partition(index);
        let epoch = topic.settled(index);
        if let Some(partition) = &partition
            && partition.view().has_come_after(epoch)
        {
            // Heard again after a restart, by a broker that did not know yet that this was committed. What follows has it come back.
            return;
        }
        handle.set_slot(index, Slot::Elsewhere);
        if let Some(partition) = partition {
            tracing::info!(topic = %handle.name, partition = index, "replica moved away");
            partition.delete(Some(epoch)).await;
        } else {
            // It could not be opened. The shard comes to this before it is asked to open another.
            self.remove_files(&topic, PartitionKey { topic_id, index });
        }
    }

    fn declared(&self, topic_id: Uuid) -> Option<Topic> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        image
            .topic_by_id(topic_id)
            .map(|topic| topic.as_ref().clone())
    }

    fn reconfigure(&self, topic_id: Uuid) {
        let declared = {
            let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
            image.topic_by_id(topic_id).cloned()
        };
        if let (Some(declared), Some(handle)) = (declared, self.topics.by_id(topic_id)) {
            handle.configure(self.topic_config(&declared));
        }
    }

    /// The topic's effective config. Configs are checked before they are logged; one that an older
    /// version of the program took and this one does not is left at its default, and said.
    fn topic_config(&self, topic: &Topic) -> Arc<TopicConfig> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        let config = &self.placed.config;
        let layers = BrokerLayers::new(&*image, config.node_id, &config.settings);
        match TopicConfig::resolve(&topic.configs, &layers) {
            Ok(config) => Arc::new(config),
            Err(error) => {
                tracing::error!(topic = %topic.name, %error, "topic config is not valid; using defaults");
                Arc::new(config.topic_defaults.clone())
            }
        }
    }
}

async fn finish_all(openings: Vec<Option<Opening>>) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(openings.len());
    for opening in openings {
        slots.push(finish(opening).await);
    }
    slots
}

/// Waits until a partition is open, if it is one that is here.
async fn finish(opening: Option<Opening>) -> Slot {
    let Some(opening) = opening else {
        return Slot::Elsewhere;
    };
    let alone = opening.alone;
    let slot = opening.finish_or_offline().await;
    if let (true, Slot::Here(handle)) = (alone, &slot) {
        // Its leader is elected as soon as its first entry is synced.
        wait_until_serving(handle).await;
    }
    slot
}

/// Waits until the partition's leader may answer: its term's first entry is committed, so the high
/// watermark covers all that was acknowledged before.
pub(super) async fn wait_until_serving(handle: &PartitionHandle) {
    let changed = Arc::new(tokio::sync::Notify::new());
    loop {
        handle.view().wake(&changed);
        if handle.view().is_serving() || handle.view().is_deleted() {
            return;
        }
        changed.notified().await;
    }
}

fn read_records(
    view: &PartitionView,
    from: i64,
    end: i64,
    mut take: impl FnMut(MetadataRecord),
) -> Result<(), ControllerError> {
    let mut offset = from.max(view.log_start_offset());
    while offset < end {
        let failed = |reason: String| ControllerError::Read { offset, reason };
        let read = view
            .reader()
            .read(offset, READ_BYTES_MAX, end, true)
            .map_err(|error| failed(error.to_string()))?;
        let mut next = offset;
        for slice in &read.slices {
            for batch in BatchIter::new(slice.clone()) {
                let (header, batch) = batch.map_err(|error| failed(error.to_string()))?;
                next = header.next_offset();
                let records = BatchRecords::open(&batch, RECORDS_BYTES_MAX)
                    .map_err(|error| failed(error.to_string()))?;
                for record in records.iter() {
                    let record = record.map_err(|error| failed(error.to_string()))?;
                    let value = record.value.unwrap_or_default();
                    let record =
                        MetadataRecord::decode(value).map_err(|error| failed(error.to_string()))?;
                    take(record);
                }
            }
        }
        if next == offset {
            return Err(failed("the log ends before its high watermark".into()));
        }
        offset = next;
    }
    Ok(())
}
