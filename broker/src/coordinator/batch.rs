//! Coordinator records to and from record batches.

use super::machine::{Entry, LogRecord, RecordError};
use bytes::Bytes;
use streamgauge_protocol::batch::{
    BatchBuilder, BatchError, BatchIter, BatchRecords, NO_SEQUENCE, TransactionMarker,
};

/// What one stored batch may decompress to. The coordinator writes far smaller, uncompressed ones; a log that Kafka wrote may be compressed.
const DECOMPRESSED_BYTES_MAX: usize = 64 << 20;

/// A batch that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorBatchError {
    #[error("record batch of a coordinator: {0}")]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The records in order, as uncompressed batches of at most `batch_bytes_max` bytes each; a larger record has a batch of its own.
pub fn encode<R: LogRecord>(
    records: &[R],
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

/// The records as one batch of a producer's transaction. Like Kafka's coordinators it has no sequence: it is not the producer that
/// sends it, and a repeated one does no harm.
pub fn encode_transactional<R: LogRecord>(
    records: &[R],
    timestamp_ms: i64,
    producer_id: i64,
    producer_epoch: i16,
) -> Result<Bytes, CoordinatorBatchError> {
    let mut builder = BatchBuilder::new()
        .producer(producer_id, producer_epoch, NO_SEQUENCE)
        .transactional();
    for record in records {
        let (key, value) = (record.encode_key(), record.encode_value());
        builder.push(timestamp_ms, Some(&key), value.as_deref(), &[]);
    }
    Ok(builder.build()?)
}

/// Lengths, deltas and attributes of a record, each at its longest.
const RECORD_OVERHEAD_BYTES_MAX: usize = 32;

/// What a run of whole batches holds, oldest first; unknown kinds of records are left out.
pub fn decode<R: LogRecord>(batches: Bytes) -> Result<Vec<Entry<R>>, CoordinatorBatchError> {
    let mut decoded = Vec::new();
    for batch in BatchIter::new(batches) {
        let (header, bytes) = batch?;
        if header.is_internal() {
            continue;
        }
        let producer_id = header.producer_id;
        if header.is_control() {
            let marker = TransactionMarker::of_batch(&bytes);
            decoded.extend(marker.map(|marker| Entry::Marker {
                producer_id,
                result: marker.result,
            }));
            continue;
        }
        for record in BatchRecords::open(&bytes, DECOMPRESSED_BYTES_MAX)?.iter() {
            let record = record.map_err(BatchError::from)?;
            let Some(key) = record.key else { continue };
            let record = R::decode(key, record.value)?;
            decoded.extend(record.map(|record| match header.is_transactional() {
                true => Entry::Pending {
                    producer_id,
                    record,
                },
                false => Entry::Record(record),
            }));
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::offsets::tombstone;
    use crate::group::records::CoordinatorRecord;
    use streamgauge_protocol::batch::TransactionResult;

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
        let records: Vec<_> = records.into_iter().map(Entry::Record).collect();
        assert_eq!(decode(batches.concat().into()).unwrap(), records);
    }

    #[test]
    fn records_of_a_transaction_are_pending_until_its_marker() {
        let record = tombstone("g", "topic", 1);
        let pending = encode_transactional(std::slice::from_ref(&record), 5, 7, 2).unwrap();
        let marker = TransactionMarker {
            result: TransactionResult::Commit,
            coordinator_epoch: 3,
        };
        let marker = marker.to_batch(7, 2, 6).unwrap();
        let read = decode::<CoordinatorRecord>([pending, marker].concat().into()).unwrap();
        let expected = [
            Entry::Pending {
                producer_id: 7,
                record,
            },
            Entry::Marker {
                producer_id: 7,
                result: TransactionResult::Commit,
            },
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn a_record_larger_than_the_bound_has_its_own_batch() {
        let records = tombstones(3);
        assert_eq!(encode(&records, 5, 1).unwrap().len(), 3);
        assert!(encode::<CoordinatorRecord>(&[], 5, 1).unwrap().is_empty());
    }

    #[test]
    fn damaged_batches_are_errors() {
        let batch = encode(&tombstones(3), 5, 1_024).unwrap().concat();
        for length in 1..batch.len() {
            assert!(
                decode::<CoordinatorRecord>(Bytes::copy_from_slice(&batch[..length])).is_err(),
                "cut at {length}"
            );
        }
        for at in 0..batch.len() {
            let mut damaged = batch.clone();
            damaged[at] ^= 0xff;
            // Whatever comes out, it ends and does not panic.
            let _ = decode::<CoordinatorRecord>(damaged.into());
        }
    }
}
