//! Coordinator records to and from record batches.

use super::records::{CoordinatorRecord, RecordError};
use bytes::Bytes;
use streamgauge_protocol::batch::{BatchBuilder, BatchError, BatchIter, BatchRecords};

/// What one stored batch may decompress to. The coordinator writes far smaller, uncompressed ones; a log that Kafka wrote may be compressed.
const DECOMPRESSED_BYTES_MAX: usize = 64 << 20;

/// A batch that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorBatchError {
    #[error("record batch of a group coordinator: {0}")]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The records in order, as uncompressed batches of at most `batch_bytes_max` bytes each; a larger record has a batch of its own.
pub fn encode(
    records: &[CoordinatorRecord],
    timestamp_ms: i64,
    batch_bytes_max: usize,
) -> Result<Vec<Bytes>, CoordinatorBatchError> {
    let mut batches = Vec::new();
    let mut builder = BatchBuilder::new();
    for record in records {
        let (key, value) = (record.encode_key(), record.encode_value());
        let record_bytes =
            RECORD_OVERHEAD_BYTES_MAX + key.len() + value.as_ref().map_or(0, Bytes::len);
        let is_full = builder.size_in_bytes() + record_bytes > batch_bytes_max;
        if is_full && builder.records_count() > 0 {
            batches.push(std::mem::take(&mut builder).build()?);
        }
        builder.push(timestamp_ms, Some(&key), value.as_deref(), &[]);
    }
    if builder.records_count() > 0 {
        batches.push(builder.build()?);
    }
    Ok(batches)
}

/// Lengths, deltas and attributes of a record, each at its longest.
const RECORD_OVERHEAD_BYTES_MAX: usize = 32;

/// The coordinator records in a run of whole batches, oldest first; control records and unknown kinds are left out.
pub fn decode(batches: Bytes) -> Result<Vec<CoordinatorRecord>, CoordinatorBatchError> {
    let mut decoded = Vec::new();
    for batch in BatchIter::new(batches) {
        let (header, bytes) = batch?;
        if header.is_control() || header.is_internal() {
            continue;
        }
        for record in BatchRecords::open(&bytes, DECOMPRESSED_BYTES_MAX)?.iter() {
            let record = record.map_err(BatchError::from)?;
            let Some(key) = record.key else { continue };
            decoded.extend(CoordinatorRecord::decode(key, record.value)?);
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::offsets::tombstone;

    fn tombstones(count: i32) -> Vec<CoordinatorRecord> {
        (0..count)
            .map(|index| tombstone("g", "topic", index))
            .collect()
    }

    #[test]
    fn records_come_back_in_order_from_batches_within_the_bound() {
        let records = tombstones(1_000);
        let batches = encode(&records, 5, 1_024).unwrap();
        assert!(batches.len() > 10);
        assert!(batches.iter().all(|batch| batch.len() <= 1_024));
        assert_eq!(decode(batches.concat().into()).unwrap(), records);
    }

    #[test]
    fn a_record_larger_than_the_bound_has_its_own_batch() {
        let records = tombstones(3);
        assert_eq!(encode(&records, 5, 1).unwrap().len(), 3);
        assert!(encode(&[], 5, 1).unwrap().is_empty());
    }

    #[test]
    fn damaged_batches_are_errors() {
        let batch = encode(&tombstones(3), 5, 1_024).unwrap().concat();
        for length in 1..batch.len() {
            assert!(
                decode(Bytes::copy_from_slice(&batch[..length])).is_err(),
                "cut at {length}"
            );
        }
        for at in 0..batch.len() {
            let mut damaged = batch.clone();
            damaged[at] ^= 0xff;
            // Whatever comes out, it ends and does not panic.
            let _ = decode(damaged.into());
        }
    }
}
