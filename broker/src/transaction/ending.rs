//! Carries out what the coordinator has decided and committed: writes the markers of transactions that end, and says when all are in.

use super::coordinator::{Effect, Request, TransactionMachine};
use super::markers::Marker;
use super::state::TopicPartition;
use crate::coordinator::coordinators;
use crate::coordinator::runtime::Envelope;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kafka_protocol::error::ResponseError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Between two tries. Leaders that change are known soon; each later try waits twice as long.
const RETRY_BACKOFF: Duration = Duration::from_millis(20);
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Markers of one transaction that are written at a time.
const MARKERS_AT_A_TIME_MAX: usize = 256;
/// Tasks that have ended are forgotten once there are so many.
const ENDED_TASKS_MAX: usize = 1_024;

/// What the coordinator has others do.
pub trait Surroundings: Send + Sync + 'static {
    /// Writes a marker into a partition, wherever that is led; see [`super::markers::write_marker`].
    fn write_marker(
        &self,
        partition: TopicPartition,
        marker: Marker,
    ) -> BoxFuture<'static, Result<(), ResponseError>>;
    /// Whether the partition certainly does not exist any more.
    fn is_gone(&self, partition: TopicPartition) -> BoxFuture<'static, bool>;
    /// A producer id that nobody has been given.
    fn new_producer_id(&self) -> BoxFuture<'static, Result<i64, ResponseError>>;
}

/// The tasks of one partition's coordinator, in one leader epoch. They end with it.
pub struct Endings {
    surroundings: Arc<dyn Surroundings>,
    mailbox: mpsc::WeakSender<Envelope<TransactionMachine>>,
    /// The leader epoch of the coordinator's partition.
    coordinator_epoch: i32,
    running: HashMap<String, AbortHandle>,
}

impl Endings {
    pub fn new(
        surroundings: Arc<dyn Surroundings>,
        mailbox: mpsc::WeakSender<Envelope<TransactionMachine>>,
        coordinator_epoch: i32,
    ) -> Self {
        Self {
            surroundings,
            mailbox,
            coordinator_epoch,
            running: HashMap::new(),
        }
    }

    /// Begins to do it. Must be called within a tokio runtime.
    pub fn carry_out(&mut self, effect: Effect) {
        let (surroundings, mailbox) = (Arc::clone(&self.surroundings), self.mailbox.clone());
        let epoch = self.coordinator_epoch;
        let (transactional_id, task) = match effect {
            Effect::TimeOut { transactional_id } => {
                let id = transactional_id.clone();
                let task = tokio::spawn(async move {
                    // Else the next check finds it again.
                    if let Ok(new_producer_id) = surroundings.new_producer_id().await {
                        let request = Request::TimeOut {
                            transactional_id,
                            new_producer_id,
                        };
                        let _ = coordinators::ask(mailbox.upgrade(), request).await;
                    }
                });
                (id, task)
            }
            Effect::WriteMarkers {
                transactional_id,
                producer,
                committed,
                transaction_version,
                partitions,
                writing,
            } => {
                let marker = Marker {
                    producer_id: producer.id,
                    producer_epoch: producer.epoch,
                    coordinator_epoch: epoch,
                    committed,
                    transaction_version: i8::try_from(transaction_version).unwrap_or(i8::MAX),
                };
                let id = transactional_id.clone();
                let task = tokio::spawn(async move {
                    if write_all(&surroundings, partitions, marker).await {
                        tell(&mailbox, transactional_id, writing).await;
                    }
                });
                (id, task)
            }
        };
        if self.running.len() >= ENDED_TASKS_MAX {
            self.running.retain(|_, task| !task.is_finished());
        }
        // The same is decided anew after the coordinator has read its log again. A marker that came late would end the producer's
        // next transaction.
        if let Some(before) = self.running.insert(transactional_id, task.abort_handle()) {
            before.abort();
        }
    }
}

impl Drop for Endings {
    fn drop(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
    }
}

/// Says that the markers are in, until it is heard or there is no coordinator any more.
async fn tell(
    mailbox: &mpsc::WeakSender<Envelope<TransactionMachine>>,
    transactional_id: String,
    writing: u64,
) {
    let mut backoff = RETRY_BACKOFF;
    loop {
        let request = Request::MarkersWritten {
            transactional_id: transactional_id.clone(),
            writing,
        };
        match coordinators::ask(mailbox.upgrade(), request).await {
            Ok(_) | Err(ResponseError::NotCoordinator) => return,
            // One that has read its log again has these markers written once more.
            Err(error) => tracing::debug!(?error, "a coordinator did not hear of markers"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(RETRY_BACKOFF_MAX);
    }
}

/// Whether all partitions have the marker; if not, another coordinator sees to it.
async fn write_all(
    surroundings: &Arc<dyn Surroundings>,
    partitions: Vec<TopicPartition>,
    marker: Marker,
) -> bool {
    let mut waiting = partitions.into_iter();
    let mut writing: FuturesUnordered<_> = waiting
        .by_ref()
        .take(MARKERS_AT_A_TIME_MAX)
        .map(|partition| write(surroundings, partition, marker))
        .collect();
    while let Some(is_written) = writing.next().await {
        if !is_written {
            return false;
        }
        if let Some(partition) = waiting.next() {
            writing.push(write(surroundings, partition, marker));
        }
    }
    true
}

async fn write(
    surroundings: &Arc<dyn Surroundings>,
    partition: TopicPartition,
    marker: Marker,
) -> bool {
    let mut backoff = RETRY_BACKOFF;
    loop {
        let written = surroundings.write_marker(partition.clone(), marker).await;
        match written {
            Ok(()) => return true,
            Err(ResponseError::TransactionCoordinatorFenced) => {
                tracing::info!(
                    ?partition,
                    ?marker,
                    "another coordinator ends this transaction"
                );
                return false;
            }
            Err(ResponseError::InvalidProducerEpoch) => {
                // Its transaction cannot be open where a later epoch has been seen.
                tracing::info!(?partition, ?marker, "the producer has gone on already");
                return true;
            }
            Err(ResponseError::UnknownTopicOrPartition)
                if surroundings.is_gone(partition.clone()).await =>
            {
                return true;
            }
            Err(error) => {
                tracing::debug!(?partition, ?marker, ?error, "a marker is tried again");
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(RETRY_BACKOFF_MAX);
    }
}
