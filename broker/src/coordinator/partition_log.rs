//! The log of a coordinator's partition, as the broker has it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use streamgauge_protocol::batch::TransactionMarker;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::log::ReadError;
use streamgauge_storage::producer_state::VerificationGuard;

use super::log::{CommittedBatches, CoordinatorLog};
use super::machine::EndMarker;
use crate::api::fetch;
use crate::shard::event::{Acks, AppendError};
use crate::shard::handle::{PartitionHandle, PendingAppend};

/// Bytes read at once when a coordinator loads.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// A partition of an internal topic.
pub struct PartitionLog {
    partition: PartitionHandle,
}

impl PartitionLog {
    pub fn new(partition: PartitionHandle) -> Self {
        Self { partition }
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
        Box::pin(appended(self.partition.append(batch, Acks::All)))
    }

    fn append_transactional(
        &self,
        batch: Bytes,
        guard: Option<VerificationGuard>,
    ) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        Box::pin(appended(self.partition.append_as_coordinator(batch, guard)))
    }

    fn append_marker(
        &self,
        marker: EndMarker,
        now_ms: i64,
    ) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        let content = TransactionMarker {
            result: marker.result,
            coordinator_epoch: marker.coordinator_epoch,
        };
        let Ok(batch) = content.to_batch(marker.producer_id, marker.producer_epoch, now_ms) else {
            return Box::pin(std::future::ready(Err(ErrorCode::UnknownServerError)));
        };
        let version = marker.transaction_version;
        Box::pin(appended(self.partition.append_marker(
            batch,
            version,
            i64::MAX,
        )))
    }

    fn read_from(&self, offset: i64) -> BoxFuture<'static, Result<CommittedBatches, ErrorCode>> {
        let view = Arc::clone(self.partition.view());
        Box::pin(async move {
            if !view.is_serving() {
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
