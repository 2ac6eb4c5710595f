//! Coordinator records to and from record batches.

use super::records::{CoordinatorRecord, RecordError};
use bytes::{Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, Record,
    RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

/// A batch that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("record batch of a group coordinator: {0}")]
    Batch(String),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// One uncompressed batch that holds the records in order.
pub fn encode(records: &[CoordinatorRecord], timestamp_ms: i64) -> Result<Bytes, BatchError> {
    let records: Vec<Record> = (0..)
        .zip(records)
        .map(|(offset, record)| plain(offset, record, timestamp_ms))
        .collect();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut buffer = BytesMut::new();
    RecordBatchEncoder::encode(&mut buffer, &records, &options)
        .map_err(|error| BatchError::Batch(error.to_string()))?;
    Ok(buffer.freeze())
}

fn plain(offset: i64, record: &CoordinatorRecord, timestamp_ms: i64) -> Record {
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
        producer_id: NO_PRODUCER_ID,
        producer_epoch: NO_PRODUCER_EPOCH,
        timestamp_type: TimestampType::Creation,
        offset,
        // Consecutive, or the encoder would begin a batch at each record; a batch without producer has -1.
        sequence: NO_SEQUENCE.wrapping_add(offset as i32),
        timestamp: timestamp_ms,
        key: Some(record.encode_key()),
        value: record.encode_value(),
        headers: IndexMap::new(),
    }
}

/// The coordinator records in a run of batches, oldest first; control records and unknown kinds are left out.
pub fn decode(mut batches: Bytes) -> Result<Vec<CoordinatorRecord>, BatchError> {
    let mut decoded = Vec::new();
    for set in RecordBatchDecoder::decode_all(&mut batches)
        .map_err(|error| BatchError::Batch(error.to_string()))?
    {
        for record in set.records.into_iter().filter(|record| !record.control) {
            let Some(key) = record.key else { continue };
            decoded.extend(CoordinatorRecord::decode(&key, record.value.as_deref())?);
        }
    }
    Ok(decoded)
}
