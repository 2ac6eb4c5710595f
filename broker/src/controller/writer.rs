//! The task that writes the metadata log and keeps shards and registry in step with it.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use streamgauge_protocol::batch::{BatchBuilder, BatchIter, BatchRecords};
use streamgauge_protocol::error::ErrorCode;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::decide::Refusal;
use super::image::{Image, Topic};
use super::record::MetadataRecord;
use super::{Controller, METADATA_TOPIC, METADATA_TOPIC_ID, QUEUE_LENGTH_MAX, Write};
use crate::clock;
use crate::config::{BrokerConfig, BrokerLayers, TopicConfig};
use crate::shard::event::{Acks, Event, OpenPartition};
use crate::shard::handle::{PartitionHandle, ShardHandle};
use crate::shard::view::PartitionKey;
use crate::topics::{TopicHandle, TopicRegistry};

/// The metadata log is read in pieces of this size at start.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// The largest batch of metadata records, unpacked; they are written uncompressed.
const RECORDS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why the metadata log could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("the metadata log cannot be opened: {0}")]
    Open(String),
    #[error("the metadata log cannot be read at offset {offset}: {reason}")]
    Read { offset: i64, reason: String },
    #[error("the metadata log cannot be written: {0}")]
    Append(String),
    #[error(
        "this data directory belongs to cluster {found}, but the configuration names {expected}"
    )]
    OtherCluster { found: String, expected: String },
}

/// Where partitions are put.
#[derive(Clone)]
pub struct Placed {
    pub shards: Vec<ShardHandle>,
    pub config: Arc<BrokerConfig>,
    /// The data directory.
    pub directory: PathBuf,
}

impl Placed {
    /// The shard of a partition: neighbours go to different ones.
    fn shard(&self, key: PartitionKey) -> Option<&ShardHandle> {
        let hash =
            (key.topic_id.as_u128() as u64).wrapping_add(u64::from(key.index.unsigned_abs()));
        self.shards
            .get((hash % self.shards.len().max(1) as u64) as usize)
    }

    fn directory(&self, topic: &str, index: i32) -> PathBuf {
        self.directory.join(format!("{topic}-{index}"))
    }

    /// Asks the shard to open a partition; the answer can be awaited later.
    fn open(
        &self,
        topic: &Arc<str>,
        key: PartitionKey,
        config: Arc<TopicConfig>,
        replicas: Vec<i32>,
    ) -> Opening {
        let (reply, answer) = oneshot::channel();
        let Some(shard) = self.shard(key) else {
            return Opening {
                topic: Arc::clone(topic),
                key,
                shard: None,
                answer,
            };
        };
        shard.send(Event::Open(Box::new(OpenPartition {
            key,
            topic: Arc::clone(topic),
            directory: self.directory(topic, key.index),
            config,
            replicas,
            reply,
        })));
        Opening {
            topic: Arc::clone(topic),
            key,
            shard: Some(shard.clone()),
            answer,
        }
    }
}

/// A partition that is being opened.
struct Opening {
    topic: Arc<str>,
    key: PartitionKey,
    shard: Option<ShardHandle>,
    answer: oneshot::Receiver<
        Result<crate::shard::event::OpenedPartition, streamgauge_storage::StorageError>,
    >,
}

impl Opening {
    /// The partition's handle, or the reason why it stays closed.
    async fn finish(self) -> Result<PartitionHandle, String> {
        let shard = self.shard.ok_or("the broker has no shards")?;
        match self.answer.await {
            Ok(Ok(opened)) => Ok(PartitionHandle::new(shard, opened.id, opened.view)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the shard has stopped".into()),
        }
    }

    /// As [`Self::finish`], but an error is logged and leaves the partition offline.
    async fn finish_or_offline(self) -> Option<PartitionHandle> {
        let (topic, index) = (Arc::clone(&self.topic), self.key.index);
        match self.finish().await {
            Ok(handle) => Some(handle),
            Err(error) => {
                tracing::error!(%topic, partition = index, %error, "partition is offline");
                None
            }
        }
    }
}

/// Writes the metadata log; run by one task.
pub struct Writer {
    log: PartitionHandle,
    image: Arc<RwLock<Image>>,
    topics: Arc<TopicRegistry>,
    placed: Placed,
    writes: mpsc::Receiver<Write>,
    version: watch::Sender<u64>,
}

/// Opens the metadata log, builds the image and opens the partitions that it names.
pub async fn open(
    placed: Placed,
    topics: Arc<TopicRegistry>,
) -> Result<(Controller, Writer), ControllerError> {
    let log = open_log(&placed).await?;
    let mut image = Image::default();
    replay(&log, &mut image)?;
    let image = Arc::new(RwLock::new(image));
    let (write_tx, writes) = mpsc::channel(QUEUE_LENGTH_MAX);
    let (version, changes) = watch::channel(0);
    let controller = Controller {
        image: Arc::clone(&image),
        writes: write_tx,
        changes,
    };
    let mut writer = Writer {
        log,
        image,
        topics,
        placed,
        writes,
        version,
    };
    writer.claim_cluster().await?;
    writer.open_all().await;
    Ok((controller, writer))
}

async fn open_log(placed: &Placed) -> Result<PartitionHandle, ControllerError> {
    let key = PartitionKey {
        topic_id: METADATA_TOPIC_ID,
        index: 0,
    };
    let config = Arc::new(metadata_log_config(&placed.config));
    let handle = placed
        .open(
            &Arc::from(METADATA_TOPIC),
            key,
            config,
            vec![placed.config.node_id],
        )
        .finish()
        .await
        .map_err(ControllerError::Open)?;
    wait_until_serving(&handle).await;
    Ok(handle)
}

/// The metadata log is kept whole: the image is made by replaying all of it.
fn metadata_log_config(broker: &BrokerConfig) -> TopicConfig {
    TopicConfig {
        retention_ms: -1,
        retention_bytes: -1,
        flush: crate::config::Flush::BeforeAcknowledge,
        max_message_bytes: i32::MAX,
        message_timestamp_type: crate::config::TimestampType::CreateTime,
        ..broker.topic_defaults.clone()
    }
}

/// Waits until the partition's leader may answer: its term's first entry is committed, so the high
/// watermark covers all that was acknowledged before.
async fn wait_until_serving(handle: &PartitionHandle) {
    let changed = Arc::new(tokio::sync::Notify::new());
    loop {
        handle.view().wake(&changed);
        if handle.view().is_serving() || handle.view().is_deleted() {
            return;
        }
        changed.notified().await;
    }
}

fn replay(log: &PartitionHandle, image: &mut Image) -> Result<(), ControllerError> {
    let view = log.view();
    let end = view.high_watermark();
    let mut offset = view.log_start_offset();
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
                    image.apply(record);
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

impl Writer {
    /// Decides and writes until nobody can ask any more.
    pub async fn run(mut self) {
        while let Some(write) = self.writes.recv().await {
            let records = {
                let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
                (write.decide)(&image)
            };
            let result = self.commit(records).await.map_err(|error| {
                tracing::error!(%error, "metadata could not be written");
                Refusal::new(ErrorCode::KafkaStorageError, error.to_string())
            });
            // Whoever asked may have gone away.
            drop(write.done.send(result));
        }
    }

    /// A new log gets the cluster's id; an old one must be of the cluster that is configured.
    async fn claim_cluster(&mut self) -> Result<(), ControllerError> {
        let found = {
            let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
            image.cluster_id().to_owned()
        };
        if found.is_empty() {
            let configured = self.placed.config.cluster_id.clone();
            let cluster_id = configured.unwrap_or_else(|| crate::ids::to_base64(Uuid::new_v4()));
            return self
                .commit(vec![MetadataRecord::Cluster { cluster_id }])
                .await;
        }
        match &self.placed.config.cluster_id {
            Some(expected) if found != *expected => Err(ControllerError::OtherCluster {
                found,
                expected: expected.clone(),
            }),
            _ => Ok(()),
        }
    }

    async fn commit(&mut self, records: Vec<MetadataRecord>) -> Result<(), ControllerError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut batch = BatchBuilder::new();
        let now_ms = clock::now_ms();
        for record in &records {
            batch.push(now_ms, None, Some(&record.encode()), &[]);
        }
        let batch = batch
            .build()
            .map_err(|error| ControllerError::Append(error.to_string()))?;
        self.log
            .append(batch, Acks::All)
            .answer()
            .await
            .map_err(|error| ControllerError::Append(error.to_string()))?;
        for record in records {
            self.take_effect(record).await;
        }
        self.version.send_modify(|version| *version += 1);
        Ok(())
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
                };
                self.open_topic(&topic).await;
                None
            }
            MetadataRecord::PartitionsAdded {
                topic_id,
                partitions,
            } => {
                self.grow_topic(*topic_id, partitions).await;
                None
            }
            MetadataRecord::TopicRemoved { topic_id } => Some(*topic_id),
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
        // All are asked for before the first is awaited: the shards work side by side.
        let openings: Vec<_> = topics
            .iter()
            .map(|topic| self.start_opening(topic))
            .collect();
        for (topic, openings) in topics.iter().zip(openings) {
            self.register(topic, openings).await;
        }
    }

    async fn open_topic(&self, topic: &Topic) {
        let openings = self.start_opening(topic);
        self.register(topic, openings).await;
    }

    fn start_opening(&self, topic: &Topic) -> Vec<Opening> {
        let config = self.topic_config(topic);
        let name: Arc<str> = Arc::from(topic.name.as_str());
        (0..)
            .zip(&topic.partitions)
            .map(|(index, replicas)| {
                let key = PartitionKey {
                    topic_id: topic.topic_id,
                    index,
                };
                self.placed
                    .open(&name, key, Arc::clone(&config), replicas.clone())
            })
            .collect()
    }

    async fn register(&self, topic: &Topic, openings: Vec<Opening>) {
        let partitions = finish_all(openings).await;
        let handle = TopicHandle::new(
            Arc::from(topic.name.as_str()),
            topic.topic_id,
            self.topic_config(topic),
            partitions,
        );
        self.topics.insert(Arc::new(handle));
    }

    async fn grow_topic(&self, topic_id: Uuid, added: &[Vec<i32>]) {
        let Some(topic) = self.topics.by_id(topic_id) else {
            return;
        };
        let first = topic.partition_count();
        let openings = (first..)
            .zip(added)
            .map(|(index, replicas)| {
                let key = PartitionKey { topic_id, index };
                self.placed
                    .open(&topic.name, key, topic.config(), replicas.clone())
            })
            .collect();
        topic.add_partitions(finish_all(openings).await);
    }

    async fn remove_topic(&self, topic_id: Uuid) {
        let Some(topic) = self.topics.remove(topic_id) else {
            return;
        };
        for partition in topic.partitions().iter().flatten() {
            partition.delete().await;
        }
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

async fn finish_all(openings: Vec<Opening>) -> Vec<Option<PartitionHandle>> {
    let mut partitions = Vec::with_capacity(openings.len());
    for opening in openings {
        let handle = opening.finish_or_offline().await;
        if let Some(handle) = &handle {
            wait_until_serving(handle).await;
        }
        partitions.push(handle);
    }
    partitions
}
