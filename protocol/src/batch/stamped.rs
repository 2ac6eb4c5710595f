//! A batch as the leader stamps it: offset and epoch set, records untouched and uncopied.
//!
//! ```text
//! prefix (21 bytes, ours)                        body (a slice of the frame that was received)
//! ┌─────────────┬────────┬───────┬───────┬─────┐ ┌────────────────────────────┐
//! │ base offset │ length │ epoch │ magic │ crc │ │ attributes … records       │
//! └─────────────┴────────┴───────┴───────┴─────┘ └────────────────────────────┘
//!
//! An internal frame (a Raft entry without records) has records_count 0, last_offset_delta -1,
//! the attribute bits `internal` and `control`, and after the header: kind u8, payload…
//! ```

use bytes::{Bytes, BytesMut};

use super::header::{
    ATTRIBUTE_CONTROL, ATTRIBUTE_INTERNAL, BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, BatchHeader,
    LOG_OVERHEAD_BYTES, MAGIC_V2, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, NO_TIMESTAMP,
    crc32c,
};
use super::{BatchError, TransactionMarker};

/// One whole batch in two pieces; see the drawing above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampedBatch {
    prefix: [u8; BATCH_PREFIX_BYTES],
    body: Bytes,
}

impl StampedBatch {
    /// Takes exactly one batch and sets its base offset and leader epoch. The checksum does not cover these.
    ///
    /// Errors: not a v2 batch, or `batch` is shorter or longer than its length field says.
    pub fn stamp(
        batch: Bytes,
        base_offset: i64,
        leader_epoch: i32,
    ) -> Result<StampedBatch, BatchError> {
        let mut stamped = StampedBatch::from_bytes(batch)?;
        stamped.prefix[0..8].copy_from_slice(&base_offset.to_be_bytes());
        stamped.prefix[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
        Ok(stamped)
    }

    /// Puts together what [`Self::prefix`] and [`Self::body`] took apart.
    ///
    /// Errors: the two are not one v2 batch.
    pub fn from_parts(
        prefix: [u8; BATCH_PREFIX_BYTES],
        body: Bytes,
    ) -> Result<StampedBatch, BatchError> {
        let header = BatchHeader::parse_parts(&prefix, &body)?;
        let available = BATCH_PREFIX_BYTES + body.len();
        if header.size_in_bytes() != available {
            return Err(BatchError::Truncated {
                needed: header.size_in_bytes(),
                available,
            });
        }
        Ok(StampedBatch { prefix, body })
    }

    /// Takes exactly one batch as it is, for instance one that was read back or came from another broker.
    pub fn from_bytes(batch: Bytes) -> Result<StampedBatch, BatchError> {
        let header = BatchHeader::parse(&batch)?;
        if header.size_in_bytes() != batch.len() {
            return Err(BatchError::Truncated {
                needed: header.size_in_bytes(),
                available: batch.len(),
            });
        }
        let mut prefix = [0; BATCH_PREFIX_BYTES];
        prefix.copy_from_slice(&batch[..BATCH_PREFIX_BYTES]);
        Ok(StampedBatch {
            prefix,
            body: batch.slice(BATCH_PREFIX_BYTES..),
        })
    }

    /// A frame of our own that takes no Kafka offset: the log goes on at `next_offset` after it as before it.
    ///
    /// Panics if the payload does not fit the 4-byte length field, which no caller's payload approaches.
    pub fn internal(kind: u8, payload: &[u8], next_offset: i64, leader_epoch: i32) -> StampedBatch {
        let size = BATCH_HEADER_BYTES + 1 + payload.len();
        let batch_length = i32::try_from(size - LOG_OVERHEAD_BYTES)
            .unwrap_or_else(|_| panic!("internal frame of {size} bytes"));
        let mut header = BatchHeader {
            base_offset: next_offset,
            batch_length,
            partition_leader_epoch: leader_epoch,
            magic: MAGIC_V2,
            crc: 0,
            attributes: ATTRIBUTE_INTERNAL | ATTRIBUTE_CONTROL,
            last_offset_delta: -1,
            base_timestamp: NO_TIMESTAMP,
            max_timestamp: NO_TIMESTAMP,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
            records_count: 0,
        };
        let mut body = BytesMut::with_capacity(size - BATCH_PREFIX_BYTES);
        body.extend_from_slice(&header.to_bytes()[BATCH_PREFIX_BYTES..]);
        body.extend_from_slice(&[kind]);
        body.extend_from_slice(payload);
        header.crc = crc32c(&body);
        let mut prefix = [0; BATCH_PREFIX_BYTES];
        prefix.copy_from_slice(&header.to_bytes()[..BATCH_PREFIX_BYTES]);
        StampedBatch {
            prefix,
            body: body.freeze(),
        }
    }

    /// The marker of a control batch that ends a transaction.
    pub fn transaction_marker(&self) -> Option<TransactionMarker> {
        let header = self.header();
        if !header.is_control() || header.is_internal() {
            return None;
        }
        // Markers are small and few: joining the pieces costs nothing that counts.
        TransactionMarker::of_batch(&[&self.prefix, &self.body[..]].concat().into())
    }

    /// Kind and payload of an internal frame, `None` for a batch of records.
    pub fn internal_payload(&self) -> Option<(u8, Bytes)> {
        if !self.header().is_internal() {
            return None;
        }
        const KIND_AT: usize = BATCH_HEADER_BYTES - BATCH_PREFIX_BYTES;
        let kind = *self.body.get(KIND_AT)?;
        Some((kind, self.body.slice(KIND_AT + 1..)))
    }

    pub fn header(&self) -> BatchHeader {
        match BatchHeader::parse_parts(&self.prefix, &self.body) {
            Ok(header) => header,
            // Every constructor has parsed these very bytes.
            Err(error) => unreachable!("stamped batch lost its header: {error}"),
        }
    }

    /// The two pieces to write one after the other.
    pub fn as_slices(&self) -> [&[u8]; 2] {
        [&self.prefix, &self.body]
    }

    /// The first 21 bytes, those that the batch's own checksum does not cover.
    pub fn prefix(&self) -> &[u8; BATCH_PREFIX_BYTES] {
        &self.prefix
    }

    /// The bytes from 21 on; shares memory with the frame that they came in.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Size of the whole batch in bytes; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        BATCH_PREFIX_BYTES + self.body.len()
    }

    pub fn verify_crc(&self) -> Result<(), BatchError> {
        self.header().verify_crc(&self.body)
    }

    /// Copies both pieces into one.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.len());
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(&self.body);
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    #[test]
    fn stamping_changes_offset_and_epoch_and_copies_no_records() {
        let batch = BatchBuilder::new()
            .record(5, Some(b"k"), Some(b"v"))
            .build()
            .unwrap();
        let stamped = StampedBatch::stamp(batch.clone(), 1000, 3).unwrap();
        assert_eq!(stamped.header().base_offset, 1000);
        assert_eq!(stamped.header().partition_leader_epoch, 3);
        assert_eq!(stamped.verify_crc(), Ok(()));
        assert_eq!(
            stamped.body().as_ptr(),
            batch[BATCH_PREFIX_BYTES..].as_ptr()
        );
        assert_eq!(StampedBatch::from_bytes(stamped.to_bytes()), Ok(stamped));
    }

    #[test]
    fn a_batch_with_bytes_too_few_or_too_many_is_not_stamped() {
        let batch = BatchBuilder::new()
            .record(5, None, Some(b"v"))
            .build()
            .unwrap();
        assert!(StampedBatch::stamp(batch.slice(..batch.len() - 1), 0, 0).is_err());
        let mut longer = batch.to_vec();
        longer.push(0);
        assert!(StampedBatch::stamp(longer.into(), 0, 0).is_err());
    }

    #[test]
    fn an_internal_frame_takes_no_offset() {
        let frame = StampedBatch::internal(2, b"conf", 17, 5);
        assert_eq!(frame.header().next_offset(), 17);
        assert_eq!(frame.verify_crc(), Ok(()));
        assert_eq!(
            frame.internal_payload(),
            Some((2, Bytes::from_static(b"conf")))
        );
        assert_eq!(StampedBatch::from_bytes(frame.to_bytes()), Ok(frame));
    }
}
