//! What the group coordinator sees of the broker: its partition's log, and topics by name and id.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::log::ReadError;
use uuid::Uuid;

use crate::api::fetch;
use crate::controller::Controller;
use crate::group::log::{CommittedBatches, CoordinatorLog, TopicLookup};
use crate::shard::event::{Acks, AppendError};
use crate::shard::handle::PartitionHandle;

/// Bytes read at once when a coordinator loads.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// A partition of `__consumer_offsets`.
pub struct OffsetsLog {
    partition: PartitionHandle,
}

impl OffsetsLog {
    pub fn new(partition: PartitionHandle) -> Self {
        Self { partition }
    }
}

impl CoordinatorLog for OffsetsLog {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, ErrorCode>> {
        let pending = self.partition.append(batch, Acks::All);
        Box::pin(async move {
            match pending.answer().await {
                Ok(appended) => Ok(appended.last_offset),
                Err(AppendError::NotLeader | AppendError::UnknownPartition) => {
                    Err(ErrorCode::NotCoordinator)
                }
                Err(error) => {
                    tracing::warn!(%error, "group metadata could not be appended");
                    Err(ErrorCode::CoordinatorNotAvailable)
                }
            }
        })
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
                    tracing::error!(%error, "group metadata could not be read");
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

/// The image of the cluster as the coordinator asks it.
pub struct ImageLookup(pub Controller);

impl TopicLookup for ImageLookup {
    fn topic_id(&self, name: &str) -> Option<Uuid> {
        self.0
            .read(|image| image.topic(name).map(|topic| topic.topic_id))
    }

    fn topic_name(&self, id: Uuid) -> Option<String> {
        self.0
            .read(|image| image.topic_by_id(id).map(|topic| topic.name.clone()))
    }

    fn partition_count(&self, name: &str) -> Option<i32> {
        self.0.read(|image| {
            let topic = image.topic(name)?;
            i32::try_from(topic.partitions.len()).ok()
        })
    }
}
