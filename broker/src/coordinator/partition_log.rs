//! The log of a coordinator's partition, as the broker has it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::log::ReadError;
use streamgauge_storage::producer_state::{AppendOrigin, VerificationGuard};

use super::log::{CommittedBatches, CoordinatorLog};
use super::machine::EndMarker;
use crate::api::fetch;
use crate::shard::event::AppendError;
use crate::shard::handle::{PartitionHandle, PendingAppend};

/// Bytes read at once when a coordinator loads.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// A partition of an internal topic.
pub struct PartitionLog {
    partition: PartitionHandle,
    /// In which the coordinator has taken it up; it writes and reads in no other.
    leader_epoch: i32,
}

impl PartitionLog {
    pub fn new(partition: PartitionHandle, leader_epoch: i32) -> Self {
        Self {
            partition,
            leader_epoch,
        }
    }

    fn append_as(
        &self,
        batch: Bytes,
        origin: AppendOrigin,
        guard: Option<VerificationGuard>,
    ) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        let epoch = self.leader_epoch;
        let pending = self
            .partition
            .append_as_coordinator(batch, origin, guard, epoch);
        Box::pin(appended(pending))
    }
}

async fn appended(pending: PendingAppend) -> Result<i64, ErrorCode> {
    match pending.answer().await {
        Ok(appended) => Ok(appended.last_offset),
        Err(AppendError::NotLeader | AppendError::UnknownPartition) => {
            Err(ErrorCode::NotCoordinator)
        }
        Err(
            refused @ (AppendError::InvalidProducerEpoch(_)
            | AppendError::InvalidTxnState(_)
            | AppendError::TransactionCoordinatorFenced(_)),
        ) => Err(refused.code()),
        Err(error) => {
            tracing::warn!(%error, "what a coordinator decided could not be appended");
            Err(ErrorCode::CoordinatorNotAvailable)
        }
    }
}

impl CoordinatorLog for PartitionLog {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        self.append_as(batch, AppendOrigin::Client, None)
    }

    fn append_transactional(
        &self,
        batch: Bytes,
        guard: Option<VerificationGuard>,
    ) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        self.append_as(batch, AppendOrigin::Coordinator, guard)
    }

    fn append_marker(
        &self,
        marker: EndMarker,
        now_ms: i64,
    ) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        let batch = marker
            .content()
            .to_batch(marker.producer_id, marker.producer_epoch, now_ms);
        let Ok(batch) = batch else {
            return Box::pin(std::future::ready(Err(ErrorCode::UnknownServerError)));
        };
        let origin = AppendOrigin::Marker {
            transaction_version: marker.transaction_version,
        };
        self.append_as(batch, origin, None)
    }

    fn read_from(&self, offset: i64) -> BoxFuture<'static, Result<CommittedBatches, ErrorCode>> {
        let (view, epoch) = (Arc::clone(self.partition.view()), self.leader_epoch);
        Box::pin(async move {
            if !view.is_serving() || view.leader_epoch() != epoch {
                return Err(ErrorCode::NotCoordinator);
            }
            let high_watermark = view.high_watermark();
            let from = offset.max(view.log_start_offset());
            let read = fetch::read(&view, from, READ_BYTES_MAX, high_watermark, true)
                .await
                .map_err(|error| {
                    tracing::error!(%error, "a coordinator's partition could not be read");
                    match error {
                        ReadError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                            ErrorCode::CorruptMessage
                        }
                        _ => ErrorCode::KafkaStorageError,
                    }
                })?;
            let mut batches = BytesMut::with_capacity(read.bytes);
            for slice in &read.slices {
                batches.extend_from_slice(slice);
            }
            Ok(CommittedBatches {
                batches: batches.freeze(),
                next_offset: read.next_offset,
                high_watermark,
            })
        })
    }
}
