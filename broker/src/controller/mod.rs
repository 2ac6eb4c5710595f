//! The metadata of the cluster: a log of typed records and the image that it makes.
//!
//! The log is a Raft group like any partition; the broker that leads it is the controller. Its writer
//! runs a decision on the image, appends the records to `__cluster_metadata` and waits until they are
//! committed and applied. On every broker an applier follows the log: it opens or removes what the
//! records name on this broker, and makes them part of the image. Everybody else reads the image.

mod applier;
pub mod assignment;
pub mod command;
pub mod decide;
pub mod image;
pub mod reassign;
pub mod record;
mod reopen;
mod writer;

use std::sync::{Arc, PoisonError, RwLock};

use streamgauge_protocol::error::ErrorCode;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use decide::Refusal;
use image::Image;
use record::MetadataRecord;

use crate::shard::handle::PartitionHandle;

pub use applier::{Applier, Placed};
pub use writer::{ControllerError, Writer, open};

/// The topic of the metadata log; clients do not see it in Metadata.
pub const METADATA_TOPIC: &str = "__cluster_metadata";

/// The id that Kafka gives to that topic (`Uuid.METADATA_TOPIC_ID`).
pub const METADATA_TOPIC_ID: Uuid = Uuid::from_u128(1);

/// How many decisions may wait.
const QUEUE_LENGTH_MAX: usize = 1024;

type Decide = Box<dyn FnOnce(&Image) -> Vec<MetadataRecord> + Send>;

/// One decision, and who wants to know that it is done.
pub(crate) struct Write {
    decide: Decide,
    done: oneshot::Sender<Result<(), Refusal>>,
}

/// Reads the image and asks for changes.
#[derive(Clone)]
pub struct Controller {
    image: Arc<RwLock<Image>>,
    writes: mpsc::Sender<Write>,
    changes: watch::Receiver<u64>,
    log: PartitionHandle,
    /// The offset after the last record in the image.
    applied: watch::Receiver<i64>,
}

impl Controller {
    /// Whether this broker is the controller: it leads the metadata log.
    pub fn is_active(&self) -> bool {
        self.log.view().is_serving()
    }

    /// The broker that is the controller, as far as known; -1 if there is none.
    pub fn leader(&self) -> i32 {
        self.log.view().leader()
    }

    pub fn leader_epoch(&self) -> i32 {
        self.log.view().leader_epoch()
    }

    /// The metadata log's replica here.
    pub fn log(&self) -> &PartitionHandle {
        &self.log
    }

    /// The offset after the last record in the image.
    pub fn applied_offset(&self) -> i64 {
        *self.applied.borrow()
    }

    /// Waits until the image holds all records below that offset.
    pub async fn wait_applied(&self, offset: i64) {
        // A controller that has stopped applies nothing more.
        drop(
            self.applied
                .clone()
                .wait_for(|applied| *applied >= offset)
                .await,
        );
    }

    /// Looks at the image. Keep it short: the writer waits.
    pub fn read<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes when the image does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Runs a decision on the newest image and makes its records part of it.
    ///
    /// What `decide` returns beside the records comes back once they are committed and applied,
    /// and the partitions that they name are open.
    pub async fn write<T, F>(&self, decide: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Image) -> (Vec<MetadataRecord>, T) + Send + 'static,
    {
        let (answer_tx, answer_rx) = oneshot::channel();
        let (done_tx, done_rx) = oneshot::channel();
        let decide: Decide = Box::new(move |image| {
            let (records, answer) = decide(image);
            drop(answer_tx.send(answer));
            records
        });
        let stopping = || {
            Refusal::new(
                ErrorCode::NotController,
                "the controller is stopping; ask again",
            )
        };
        self.writes
            .send(Write {
                decide,
                done: done_tx,
            })
            .await
            .map_err(|_| stopping())?;
        done_rx.await.map_err(|_| stopping())??;
        answer_rx.await.map_err(|_| stopping())
    }
}
