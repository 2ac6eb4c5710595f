//! The metadata of the cluster: a log of typed records and the image that it makes.
//!
//! One task writes: it runs a decision on the image, appends its records to `__cluster_metadata`,
//! waits for the commit, opens or removes what the records name, applies them, and only then
//! answers. Everybody else reads the image.

pub mod decide;
pub mod image;
pub mod record;
mod writer;

use std::sync::{Arc, PoisonError, RwLock};

use streamgauge_protocol::error::ErrorCode;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use decide::Refusal;
use image::Image;
use record::MetadataRecord;

pub use writer::{ControllerError, Placed, Writer, open};

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
}

impl Controller {
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

    /// Takes `count` producer ids that nobody else has or will have.
    pub async fn allocate_producer_ids(&self, count: i64) -> Result<i64, Refusal> {
        self.write(move |image| {
            let first = image.next_producer_id();
            let record = MetadataRecord::ProducerIds {
                next_producer_id: first + count,
            };
            (vec![record], first)
        })
        .await
    }
}
