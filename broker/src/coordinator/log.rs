//! What a coordinator needs of the partition that it lives on.

use super::machine::EndMarker;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use streamgauge_storage::producer_state::VerificationGuard;

/// The log of one coordinator's partition, as its leader sees it.
pub trait CoordinatorLog: Send + Sync + 'static {
    /// Appends one record batch (magic v2, base offset 0). Batches enter the log in call order, whether or not the
    /// futures are polled; each future resolves when its batch has committed, to the batch's last offset. After an
    /// error no later append of this coordinator may commit before the failed one has been answered.
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, ResponseError>>;

    /// As [`Self::append`], of a batch that is part of a producer's transaction. It is refused with what a client is told if the
    /// producer is fenced or its transaction not open.
    fn append_transactional(
        &self,
        batch: Bytes,
        guard: Option<VerificationGuard>,
    ) -> BoxFuture<'static, Result<i64, ResponseError>>;

    /// As [`Self::append`], of the end of a transaction. It is refused if the producer or its coordinator is fenced.
    fn append_marker(
        &self,
        marker: EndMarker,
        now_ms: i64,
    ) -> BoxFuture<'static, Result<i64, ResponseError>>;

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
