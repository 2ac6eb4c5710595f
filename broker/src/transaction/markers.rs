//! The markers that end a transaction in its partitions, on their way to the leaders and into the logs.
//!
//! ```text
//! request   topic id 16 bytes │ partition i32 │ producer id i64 │ producer epoch i16 │ coordinator epoch i32 │
//!           committed u8 │ transaction version i8
//! answer    Kafka's error code i16
//! ```
//!
//! Numbers are big-endian. Writing a marker again does no harm, and is what a coordinator does that has no answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use streamgauge_protocol::batch::{TransactionMarker, TransactionResult};
use streamgauge_protocol::error::{ErrorCode, code_of};
use streamgauge_storage::producer_state::{AppendOrigin, ProducerBatch, ProducerBatchKind};
use uuid::Uuid;

use crate::broker::Broker;
use crate::clock;
use crate::cluster::ClusterRequest;
use crate::controller::decide::GROUP_METADATA_TOPIC;
use crate::coordinator::machine::EndMarker;
use crate::shard::handle::PartitionHandle;
use crate::shard::view::PartitionKey;

/// Ends a producer's transaction in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    pub producer_id: i64,
    /// From transaction version 2 on greater than that of the transaction's batches.
    pub producer_epoch: i16,
    /// The leader epoch of the coordinator's partition: a deposed coordinator's markers are refused.
    pub coordinator_epoch: i32,
    pub committed: bool,
    /// 0 and 1: the client keeps its epoch; 2: the coordinator raises it with each transaction (KIP-890).
    pub transaction_version: i8,
}

/// Writes a marker to a partition, here or on the broker that leads it. It is committed when this returns.
///
/// Errors: UNKNOWN_TOPIC_OR_PARTITION if the cluster has none such; INVALID_PRODUCER_EPOCH and
/// TRANSACTION_COORDINATOR_FENCED if another has gone on with the transaction; all else may pass, and is to be tried again.
pub async fn write_marker(
    broker: &Arc<Broker>,
    topic: &str,
    partition: i32,
    marker: Marker,
) -> Result<(), ErrorCode> {
    let known = broker.controller.read(|image| {
        let found = image.topic(topic)?;
        let index = usize::try_from(partition).ok()?;
        found.partitions.get(index).map(|_| found.topic_id)
    });
    let topic_id = known.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let key = PartitionKey {
        topic_id,
        index: partition,
    };
    if let Ok(here) = led_here(broker, key) {
        return append(broker, &here, marker).await;
    }
    let leader = broker
        .leadership(topic_id, partition)
        .map(|led| led.leader)
        .filter(|leader| *leader >= 0 && *leader != broker.id())
        .ok_or(ErrorCode::LeaderNotAvailable)?;
    let request = ClusterRequest::Marker(encode(key, &marker));
    let cluster = &broker.cluster;
    cluster.ask_code(leader, &request, patience(broker)).await
}

/// Writes a marker to a partition that is led here, as another broker's coordinator asks.
pub async fn serve(broker: &Arc<Broker>, request: Bytes) -> Bytes {
    let code = match decode(request) {
        Some((key, marker)) => match led_here(broker, key) {
            Ok(here) => append(broker, &here, marker).await.err(),
            Err(code) => Some(code),
        },
        None => Some(ErrorCode::InvalidRequest),
    };
    Bytes::copy_from_slice(&code_of(code).to_be_bytes())
}

/// The partition, if this broker may write to it.
fn led_here(broker: &Broker, key: PartitionKey) -> Result<PartitionHandle, ErrorCode> {
    let topic = broker
        .topics
        .by_id(key.topic_id)
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = topic.open_partition(key.index)?;
    match partition.view().is_serving() {
        true => Ok(partition),
        false => Err(ErrorCode::NotLeaderOrFollower),
    }
}

/// Appends a marker to a partition that is led here, and waits for its commit. In an offsets partition its group coordinator does
/// that, for offsets depend on it.
pub async fn append(
    broker: &Broker,
    partition: &PartitionHandle,
    marker: Marker,
) -> Result<(), ErrorCode> {
    let result = match marker.committed {
        true => TransactionResult::Commit,
        false => TransactionResult::Abort,
    };
    let key = partition.view().key();
    let offsets = broker.topics.by_name(GROUP_METADATA_TOPIC);
    if offsets.is_some_and(|offsets| offsets.topic_id == key.topic_id) {
        let marker = EndMarker {
            producer_id: marker.producer_id,
            producer_epoch: marker.producer_epoch,
            coordinator_epoch: marker.coordinator_epoch,
            result,
            transaction_version: marker.transaction_version,
        };
        let origin = AppendOrigin::Marker {
            transaction_version: marker.transaction_version,
        };
        let batch = ProducerBatch {
            kind: ProducerBatchKind::EndTransaction(marker.content()),
            ..ProducerBatch::unsequenced(marker.producer_id, marker.producer_epoch)
        };
        let judged = partition.judge(batch, origin, None).await;
        judged.map_err(|error| error.code())?;
        return broker.groups.end_transaction(key.index, marker).await;
    }
    let content = TransactionMarker {
        result,
        coordinator_epoch: marker.coordinator_epoch,
    };
    let batch = content
        .to_batch(marker.producer_id, marker.producer_epoch, clock::now_ms())
        .map_err(|_| ErrorCode::UnknownServerError)?;
    let wait_ms_max = broker.config.request_timeout_ms;
    let pending = partition.append_marker(batch, marker.transaction_version, wait_ms_max);
    match pending.answer().await {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!(partition = ?partition.view().key(), ?marker, %error, "marker refused");
            Err(error.code())
        }
    }
}

fn patience(broker: &Broker) -> Duration {
    Duration::from_millis(broker.config.request_timeout_ms.unsigned_abs())
}

fn encode(key: PartitionKey, marker: &Marker) -> Bytes {
    let mut bytes = BytesMut::with_capacity(40);
    bytes.put_slice(key.topic_id.as_bytes());
    bytes.put_i32(key.index);
    bytes.put_i64(marker.producer_id);
    bytes.put_i16(marker.producer_epoch);
    bytes.put_i32(marker.coordinator_epoch);
    bytes.put_u8(u8::from(marker.committed));
    bytes.put_i8(marker.transaction_version);
    bytes.freeze()
}

fn decode(mut bytes: Bytes) -> Option<(PartitionKey, Marker)> {
    let topic_id = Uuid::from_slice(bytes.get(..16)?).ok()?;
    bytes.advance(16);
    let key = PartitionKey {
        topic_id,
        index: bytes.try_get_i32().ok()?,
    };
    let marker = Marker {
        producer_id: bytes.try_get_i64().ok()?,
        producer_epoch: bytes.try_get_i16().ok()?,
        coordinator_epoch: bytes.try_get_i32().ok()?,
        committed: bytes.try_get_u8().ok()? != 0,
        transaction_version: bytes.try_get_i8().ok()?,
    };
    bytes.is_empty().then_some((key, marker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back_as_they_were_written_and_no_others_do() {
        let key = PartitionKey {
            topic_id: Uuid::from_u128(7),
            index: 3,
        };
        let marker = Marker {
            producer_id: 9,
            producer_epoch: 2,
            coordinator_epoch: 4,
            committed: true,
            transaction_version: 2,
        };
        let bytes = encode(key, &marker);
        assert_eq!(decode(bytes.clone()), Some((key, marker)));
        for length in 0..bytes.len() {
            assert_eq!(decode(bytes.slice(..length)), None, "{length} bytes");
        }
        assert_eq!(decode([&bytes[..], &[0]].concat().into()), None);
    }
}
