//! What a job needs of a partition's log, so that jobs run over the broker's partitions and over logs in memory alike.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Notify;

/// The log of one partition, wherever it is led.
pub trait JobLog: Send + Sync + 'static {
    /// Appends one record batch (magic v2, base offset 0). Batches enter the log in call order, whether or not the futures are polled;
    /// each future resolves once its batch has committed, to the batch's first offset.
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, LogError>>;

    /// Whole batches from the one that holds `offset`, below [`JobLog::stable_offset`], without those of aborted transactions: about
    /// `bytes_max` bytes, one batch at least.
    fn read(&self, offset: i64, bytes_max: usize) -> BoxFuture<'static, Result<Chunk, LogError>>;

    /// Resolves once the positions here are at least those that the leader has now.
    fn catch_up(&self) -> BoxFuture<'static, Result<(), LogError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The first offset that is not both committed and decided: read below it.
    fn stable_offset(&self) -> i64;

    /// The offset up to which the log goes for certain: it may have been heard of appends that
    /// [`JobLog::stable_offset`] does not show yet.
    fn appended_end(&self) -> i64 {
        self.stable_offset()
    }

    /// The offset after the last committed record.
    fn high_watermark(&self) -> i64;

    /// The first offset that there still is.
    fn start_offset(&self) -> i64;

    /// The epoch in which the partition is led.
    fn leader_epoch(&self) -> i32;

    /// The partition has a leader that can be asked.
    fn is_serving(&self) -> bool;

    /// Registers `waiter` for one notification of the next commit or change of state; register before looking.
    fn wake(&self, waiter: &Arc<Notify>);

    /// Moves the start of the log up to `before_offset`.
    fn delete_records(&self, before_offset: i64) -> BoxFuture<'static, Result<(), LogError>>;

    /// The last committed sequence of a producer; `None` if the partition knows nothing of it.
    fn last_sequence(&self, producer_id: i64) -> BoxFuture<'static, Result<Option<i32>, LogError>>;
}

/// A piece of a log.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// Whole batches, one after another in each slice.
    pub slices: Vec<Bytes>,
    /// Where to read on; the offset asked for if there was nothing.
    pub next_offset: i64,
    /// The stable offset at the time of reading.
    pub stable_offset: i64,
}

/// Why a log did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogError {
    #[error("the partition has another leader, or none")]
    NotLeader,
    #[error("offset {offset} is outside the log, which starts at {start_offset}")]
    OutOfRange { offset: i64, start_offset: i64 },
    #[error("{0}")]
    Failed(String),
}
