//! The control batch that ends a transaction in a partition (KIP-98): one record, the marker.
//!
//! ```text
//! batch   attributes transactional | control, the producer's id and epoch, no sequence
//! key     version i16 = 0 │ type i16: 0 abort, 1 commit          Kafka's ControlRecordType
//! value   version i16 = 0 │ coordinator epoch i32                EndTxnMarker.json
//! ```

use bytes::Bytes;

use super::header::NO_SEQUENCE;
use super::{BatchBuilder, BatchError, BatchRecords};

const VERSION: i16 = 0;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// The content of a transaction's end marker (Kafka's `EndTransactionMarker`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionMarker {
    pub result: TransactionResult,
    /// Of the transaction coordinator that wrote it: the leader epoch of its state's partition.
    pub coordinator_epoch: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionResult {
    Commit,
    Abort,
}

impl TransactionMarker {
    /// The batch that holds the marker; `now_ms` is its timestamp.
    pub fn to_batch(
        &self,
        producer_id: i64,
        producer_epoch: i16,
        now_ms: i64,
    ) -> Result<Bytes, BatchError> {
        let kind = match self.result {
            TransactionResult::Abort => ABORT,
            TransactionResult::Commit => COMMIT,
        };
        let key = [VERSION.to_be_bytes(), kind.to_be_bytes()].concat();
        let value = [
            &VERSION.to_be_bytes()[..],
            &self.coordinator_epoch.to_be_bytes(),
        ]
        .concat();
        BatchBuilder::new()
            .producer(producer_id, producer_epoch, NO_SEQUENCE)
            .transactional()
            .control()
            .record(now_ms, Some(&key), Some(&value))
            .build()
    }

    /// The marker in a whole control batch; `None` if its first record is none. Newer versions of
    /// key and value may be longer, and begin as these do.
    pub fn of_batch(batch: &Bytes) -> Option<Self> {
        let records = BatchRecords::open(batch, batch.len()).ok()?;
        let record = records.iter().next()?.ok()?;
        let (_, kind) = record.key?.split_first_chunk::<2>()?;
        let result = match i16::from_be_bytes(*kind.first_chunk()?) {
            ABORT => TransactionResult::Abort,
            COMMIT => TransactionResult::Commit,
            _ => return None,
        };
        let (_, epoch) = record.value?.split_first_chunk::<2>()?;
        Some(Self {
            result,
            coordinator_epoch: i32::from_be_bytes(*epoch.first_chunk()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchHeader;

    #[test]
    fn markers_read_back_as_they_were_written() {
        for result in [TransactionResult::Commit, TransactionResult::Abort] {
            let marker = TransactionMarker {
                result,
                coordinator_epoch: 7,
            };
            let batch = marker.to_batch(9, 3, 1_000).unwrap();
            assert_eq!(TransactionMarker::of_batch(&batch), Some(marker));
            let header = BatchHeader::parse(&batch).unwrap();
            assert!(header.is_control() && header.is_transactional() && !header.is_internal());
            assert_eq!(
                (
                    header.producer_id,
                    header.producer_epoch,
                    header.base_sequence
                ),
                (9, 3, NO_SEQUENCE)
            );
            assert_eq!((header.records_count, header.max_timestamp), (1, 1_000));
        }
    }

    #[test]
    fn other_control_records_are_no_markers() {
        let batch = |key: &[u8], value: &[u8]| {
            let batch = BatchBuilder::new().control();
            batch.record(0, Some(key), Some(value)).build().unwrap()
        };
        for (key, value) in [
            // A leader change (KIP-595), and what is cut short.
            (&[0, 0, 0, 2][..], &[0, 0, 0, 0, 0, 1][..]),
            (&[0, 0, 0], &[0, 0, 0, 0, 0, 1]),
            (&[0, 0, 0, 1], &[0, 0, 0, 0, 0]),
        ] {
            assert_eq!(TransactionMarker::of_batch(&batch(key, value)), None);
        }
    }
}
