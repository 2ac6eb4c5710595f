//! The controller's pen: decisions become records of the metadata log.

use std::sync::{Arc, PoisonError, RwLock};

use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_protocol::error::ErrorCode;
use tokio::sync::{mpsc, watch};

use super::applier::{Applier, Members, Placed, wait_until_serving};
use super::decide::Refusal;
use super::image::Image;
use super::record::MetadataRecord;
use super::{Controller, METADATA_TOPIC, METADATA_TOPIC_ID, QUEUE_LENGTH_MAX, Write};
use crate::clock;
use crate::config::{BrokerConfig, TopicConfig};
use crate::shard::event::{Acks, AppendError};
use crate::shard::handle::PartitionHandle;
use crate::shard::view::{PartitionKey, PartitionView};
use crate::topics::TopicRegistry;

/// Why the metadata log could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("the metadata log cannot be opened: {0}")]
    Open(String),
    #[error("the metadata log cannot be read at offset {offset}: {reason}")]
    Read { offset: i64, reason: String },
    #[error(
        "this data directory belongs to cluster {found}, but the configuration names {expected}"
    )]
    OtherCluster { found: String, expected: String },
}

/// Writes the metadata log while this broker leads it; run by one task.
pub struct Writer {
    log: PartitionHandle,
    image: Arc<RwLock<Image>>,
    config: Arc<BrokerConfig>,
    writes: mpsc::Receiver<Write>,
    applied: watch::Receiver<i64>,
}

/// Opens the metadata log and builds the image from what is committed. The applier opens the
/// partitions that it names here before all else, and has applied up to the offset returned then.
pub async fn open(
    placed: Placed,
    topics: Arc<TopicRegistry>,
) -> Result<(Controller, Writer, Applier, i64), ControllerError> {
    let log = open_log(&placed).await?;
    let image = Arc::new(RwLock::new(Image::default()));
    let (write_tx, writes) = mpsc::channel(QUEUE_LENGTH_MAX);
    let (version, changes) = watch::channel(0);
    let (applied_tx, applied) = watch::channel(0);
    let controller = Controller {
        image: Arc::clone(&image),
        writes: write_tx,
        changes,
        log: log.clone(),
        applied: applied.clone(),
    };
    let writer = Writer {
        log: log.clone(),
        image: Arc::clone(&image),
        config: Arc::clone(&placed.config),
        writes,
        applied,
    };
    let mut applier = Applier::new(log, image, topics, placed, version, applied_tx);
    let read_to = applier.read_image()?;
    Ok((controller, writer, applier, read_to))
}

async fn open_log(placed: &Placed) -> Result<PartitionHandle, ControllerError> {
    let key = PartitionKey {
        topic_id: METADATA_TOPIC_ID,
        index: 0,
    };
    let config = Arc::new(metadata_log_config(&placed.config));
    let voters = placed.config.voters();
    let alone = voters == [placed.config.node_id];
    let handle = placed
        .open(
            &Arc::from(METADATA_TOPIC),
            key,
            config,
            Members::of_the_metadata(voters),
        )
        .finish()
        .await
        .map_err(|error| ControllerError::Open(error.to_string()))?;
    if alone {
        wait_until_serving(&handle).await;
    }
    Ok(handle)
}

/// The metadata log is kept whole: the image is made by replaying all of it.
fn metadata_log_config(broker: &BrokerConfig) -> TopicConfig {
    TopicConfig {
        retention_ms: -1,
        retention_bytes: -1,
        // A majority is what the cluster rests on, no more and no less.
        min_insync_replicas: 1,
        flush: crate::config::Flush::BeforeAcknowledge,
        max_message_bytes: i32::MAX,
        message_timestamp_type: crate::config::TimestampType::CreateTime,
        ..broker.topic_defaults.clone()
    }
}

impl Writer {
    /// Decides and writes until nobody can ask any more.
    pub async fn run(mut self) {
        // Whose term it is that the image was last brought up to date for, and the cluster claimed.
        let mut led_epoch = -1;
        let view = Arc::clone(self.log.view());
        loop {
            tokio::select! {
                // A term that cannot be taken over, as the disk is full, must not keep those who ask
                // from being told.
                biased;
                write = self.writes.recv() => {
                    let Some(write) = write else { return };
                    let result = self.write(write.decide).await;
                    // Whoever asked may have gone away.
                    drop(write.done.send(result));
                }
                () = until_leading(&view, led_epoch) => {
                    let epoch = view.leader_epoch();
                    if self.take_over().await.is_ok() {
                        tracing::info!(epoch, "this broker is the controller");
                        led_epoch = epoch;
                    }
                }
            }
        }
    }

    /// A new leader: what was committed before has to be in the image, and a new log gets the
    /// cluster's id.
    async fn take_over(&mut self) -> Result<(), Refusal> {
        self.catch_up().await;
        let has_id = {
            let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
            !image.cluster_id().is_empty()
        };
        if has_id {
            return Ok(());
        }
        let configured = self.config.cluster_id.clone();
        let cluster_id = configured.unwrap_or_else(|| crate::ids::to_base64(crate::ids::new_id()));
        self.commit(vec![MetadataRecord::Cluster { cluster_id }])
            .await
    }

    /// Waits until the image holds all that is committed.
    async fn catch_up(&mut self) {
        let end = self.log.view().high_watermark();
        // An applier that has stopped says so in the log.
        drop(self.applied.wait_for(|applied| *applied >= end).await);
    }

    async fn write(&mut self, decide: super::Decide) -> Result<(), Refusal> {
        if !self.log.view().is_serving() {
            return Err(not_controller());
        }
        // A decision of a leader that has just come must not be on an older image.
        self.catch_up().await;
        let records = {
            let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
            decide(&image)
        };
        self.commit(records).await
    }

    async fn commit(&mut self, records: Vec<MetadataRecord>) -> Result<(), Refusal> {
        if records.is_empty() {
            return Ok(());
        }
        let failed = |error: String| {
            tracing::error!(%error, "metadata could not be written");
            Refusal::new(ErrorCode::KafkaStorageError, error)
        };
        let mut batch = BatchBuilder::new();
        let now_ms = clock::now_ms();
        for record in &records {
            batch.push(now_ms, None, Some(&record.encode()), &[]);
        }
        let batch = batch.build().map_err(|error| failed(error.to_string()))?;
        let appended = match self.log.append(batch, Acks::All).answer().await {
            Ok(appended) => appended,
            Err(AppendError::NotLeader) => return Err(not_controller()),
            Err(error) => return Err(failed(error.to_string())),
        };
        let end = appended.last_offset + 1;
        drop(self.applied.wait_for(|applied| *applied >= end).await);
        Ok(())
    }
}

/// Returns when this broker leads the log in another term than that one.
async fn until_leading(view: &PartitionView, epoch: i32) {
    let changed = Arc::new(tokio::sync::Notify::new());
    loop {
        view.wake(&changed);
        if view.is_serving() && view.leader_epoch() != epoch {
            return;
        }
        changed.notified().await;
    }
}

fn not_controller() -> Refusal {
    Refusal::new(
        ErrorCode::NotController,
        "this broker is not the controller; ask again",
    )
}
