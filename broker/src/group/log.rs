//! What a coordinator needs of the partition of `__consumer_offsets` that it lives on.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kafka_protocol::error::ResponseError;

/// The log of one offsets partition, as its leader sees it.
pub trait CoordinatorLog: Send + Sync + 'static {
    /// Appends one record batch (magic v2, base offset 0). Batches enter the log in call order, whether or not the
    /// futures are polled; each future resolves when its batch has committed, to the batch's last offset. After an
    /// error no later append of this coordinator may commit before the failed one has been answered.
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, ResponseError>>;

    /// Whole committed batches from `offset` (or from the log's start if that is later), a few MiB at most.
    fn read_from(&self, offset: i64)
    -> BoxFuture<'static, Result<CommittedBatches, ResponseError>>;
}

/// A piece of the committed log.
#[derive(Clone, Debug, Default)]
pub struct CommittedBatches {
    /// Concatenated record batches, uncut; empty at the end.
    pub batches: Bytes,
    /// Where to read on.
    pub next_offset: i64,
    /// Offset after the last committed record; loading ends there.
    pub high_watermark: i64,
}

/// What the coordinator asks the cluster's metadata.
pub trait TopicLookup: Send + Sync + 'static {
    /// The topic's id, `None` if there is no such topic.
    fn topic_id(&self, name: &str) -> Option<uuid::Uuid>;
    /// The topic's name, `None` if no topic has this id.
    fn topic_name(&self, id: uuid::Uuid) -> Option<String>;
    /// How many partitions the topic has, `None` if there is no such topic.
    fn partition_count(&self, name: &str) -> Option<i32>;
}
