//! The 61-byte header of a record batch, magic 2 (Kafka's `DefaultRecordBatch`). All integers are big endian.
//!
//! ```text
//!  0 base_offset            i64 ┐
//!  8 batch_length           i32 │ outside the checksum: the leader sets offset and epoch
//! 12 partition_leader_epoch i32 │ in place, nothing is encoded again
//! 16 magic                  i8  │
//! 17 crc                    u32 ┘ CRC-32C of every byte from 21 on
//! 21 attributes             i16   0-2 compression, 3 timestamp type, 4 transactional,
//! 23 last_offset_delta      i32   5 control, 6 delete horizon, 15 internal (ours)
//! 27 base_timestamp         i64
//! 35 max_timestamp          i64
//! 43 producer_id            i64
//! 51 producer_epoch         i16
//! 53 base_sequence          i32
//! 57 records_count          i32
//! 61 records…                     compressed as one block when bits 0-2 say so
//! ```

use super::BatchError;
use crate::compression::Compression;

/// Bytes before the first record.
pub const BATCH_HEADER_BYTES: usize = 61;
/// Bytes before the part that the checksum covers.
pub const BATCH_PREFIX_BYTES: usize = 21;
/// Bytes that `batch_length` does not count: base offset and the length itself.
pub const LOG_OVERHEAD_BYTES: usize = 12;
pub const MAGIC_V2: i8 = 2;
pub const NO_TIMESTAMP: i64 = -1;
pub const NO_PRODUCER_ID: i64 = -1;
pub const NO_PRODUCER_EPOCH: i16 = -1;
pub const NO_SEQUENCE: i32 = -1;

pub(crate) const ATTRIBUTE_COMPRESSION_MASK: i16 = 0x07;
pub(crate) const ATTRIBUTE_LOG_APPEND_TIME: i16 = 0x08;
pub(crate) const ATTRIBUTE_TRANSACTIONAL: i16 = 0x10;
pub(crate) const ATTRIBUTE_CONTROL: i16 = 0x20;
pub(crate) const ATTRIBUTE_DELETE_HORIZON: i16 = 0x40;
/// Ours: a Raft entry that carries no records and takes no Kafka offset.
pub(crate) const ATTRIBUTE_INTERNAL: i16 = i16::MIN;

/// Whose clock a record's timestamp is from (topic config `message.timestamp.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestampType {
    CreateTime,
    LogAppendTime,
}

/// A parsed batch header; see the drawing above for the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Bytes after this field; the whole batch is 12 more, see [`BatchHeader::size_in_bytes`].
    pub batch_length: i32,
    pub partition_leader_epoch: i32,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub records_count: i32,
}

impl BatchHeader {
    /// Parses the first 61 bytes of `batch`. The rest of the batch need not be there, and the checksum is not looked at.
    ///
    /// Errors: fewer than 61 bytes, a magic other than 2, or a length field smaller than a header.
    pub fn parse(batch: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some((prefix, rest)) = batch.split_first_chunk::<BATCH_PREFIX_BYTES>() else {
            return Err(BatchError::Truncated {
                needed: BATCH_HEADER_BYTES,
                available: batch.len(),
            });
        };
        BatchHeader::parse_parts(prefix, rest)
    }

    /// As [`BatchHeader::parse`], for a batch held as its 21-byte prefix and the bytes from 21 on.
    pub fn parse_parts(
        prefix: &[u8; BATCH_PREFIX_BYTES],
        body: &[u8],
    ) -> Result<BatchHeader, BatchError> {
        let Some((fields, _)) =
            body.split_first_chunk::<{ BATCH_HEADER_BYTES - BATCH_PREFIX_BYTES }>()
        else {
            return Err(BatchError::Truncated {
                needed: BATCH_HEADER_BYTES,
                available: BATCH_PREFIX_BYTES + body.len(),
            });
        };
        let magic = prefix[16] as i8;
        if magic != MAGIC_V2 {
            return Err(BatchError::Magic(magic));
        }
        let batch_length = i32::from_be_bytes(part(prefix, 8));
        if batch_length < (BATCH_HEADER_BYTES - LOG_OVERHEAD_BYTES) as i32 {
            return Err(BatchError::Length(batch_length));
        }
        Ok(BatchHeader {
            base_offset: i64::from_be_bytes(part(prefix, 0)),
            batch_length,
            partition_leader_epoch: i32::from_be_bytes(part(prefix, 12)),
            magic,
            crc: u32::from_be_bytes(part(prefix, 17)),
            attributes: i16::from_be_bytes(part(fields, 0)),
            last_offset_delta: i32::from_be_bytes(part(fields, 2)),
            base_timestamp: i64::from_be_bytes(part(fields, 6)),
            max_timestamp: i64::from_be_bytes(part(fields, 14)),
            producer_id: i64::from_be_bytes(part(fields, 22)),
            producer_epoch: i16::from_be_bytes(part(fields, 30)),
            base_sequence: i32::from_be_bytes(part(fields, 32)),
            records_count: i32::from_be_bytes(part(fields, 36)),
        })
    }

    /// Writes the header as it goes over the wire.
    pub fn to_bytes(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut out = [0; BATCH_HEADER_BYTES];
        out[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        out[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        out[12..16].copy_from_slice(&self.partition_leader_epoch.to_be_bytes());
        out[16] = self.magic as u8;
        out[17..21].copy_from_slice(&self.crc.to_be_bytes());
        out[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        out[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        out[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        out[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        out[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        out[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        out[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        out[57..61].copy_from_slice(&self.records_count.to_be_bytes());
        out
    }

    /// Size of the whole batch, header included.
    pub fn size_in_bytes(&self) -> usize {
        // `parse` has refused lengths under 49.
        self.batch_length.max(0) as usize + LOG_OVERHEAD_BYTES
    }

    /// Offset of the last record. One less than `base_offset` for an internal frame, which has none.
    pub fn last_offset(&self) -> i64 {
        self.base_offset
            .wrapping_add(i64::from(self.last_offset_delta))
    }

    /// Offset that the next batch starts with.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().wrapping_add(1)
    }

    /// The codec of the records. Codes 5 to 7 are unknown.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        let code = self.attributes & ATTRIBUTE_COMPRESSION_MASK;
        Compression::from_code(code).ok_or(BatchError::UnknownCompression(code))
    }

    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & ATTRIBUTE_LOG_APPEND_TIME != 0 {
            TimestampType::LogAppendTime
        } else {
            TimestampType::CreateTime
        }
    }

    pub fn is_transactional(&self) -> bool {
        self.attributes & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// A control batch takes an offset and is not given to consumers' applications (transaction markers). True also for internal frames.
    pub fn is_control(&self) -> bool {
        self.attributes & ATTRIBUTE_CONTROL != 0
    }

    /// With this bit `base_timestamp` is the time after which compaction may drop the batch's tombstones and markers (KIP-534).
    pub fn has_delete_horizon(&self) -> bool {
        self.attributes & ATTRIBUTE_DELETE_HORIZON != 0
    }

    /// A Raft entry of ours with no records and no Kafka offset; never sent to a client, never taken from one.
    pub fn is_internal(&self) -> bool {
        self.attributes & ATTRIBUTE_INTERNAL != 0
    }

    pub fn has_producer_id(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }

    /// The sequence number of the last record; wraps from 2^31-1 to 0 as Kafka's does. -1 without a producer's sequence.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == NO_SEQUENCE {
            return NO_SEQUENCE;
        }
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        (last & i64::from(i32::MAX)) as i32
    }

    /// Checks the checksum over `body`, the batch's bytes from 21 to its end (no more).
    pub fn verify_crc(&self, body: &[u8]) -> Result<(), BatchError> {
        let computed = crc32c(body);
        if computed != self.crc {
            return Err(BatchError::Crc {
                stored: self.crc,
                computed,
            });
        }
        Ok(())
    }
}

/// CRC-32C (Castagnoli), the checksum of v2 batches.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Parses the header of a batch, wants the whole batch to be there, and checks its checksum. Bytes after the batch are ignored.
pub fn parse_verified(batch: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(batch)?;
    let body = batch
        .get(BATCH_PREFIX_BYTES..header.size_in_bytes())
        .ok_or(BatchError::Truncated {
            needed: header.size_in_bytes(),
            available: batch.len(),
        })?;
    header.verify_crc(body)?;
    Ok(header)
}

/// `N` bytes at a fixed place of a fixed-size array; a wrong place is our own mistake, not the sender's.
fn part<const N: usize, const M: usize>(bytes: &[u8; M], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            base_offset: 42,
            batch_length: 49,
            partition_leader_epoch: 7,
            magic: 2,
            crc: 0xdead_beef,
            attributes: ATTRIBUTE_TRANSACTIONAL | 4,
            last_offset_delta: 9,
            base_timestamp: 1,
            max_timestamp: 2,
            producer_id: 3,
            producer_epoch: 4,
            base_sequence: i32::MAX - 1,
            records_count: 10,
        }
    }

    #[test]
    fn a_header_survives_its_own_bytes() {
        assert_eq!(BatchHeader::parse(&header().to_bytes()), Ok(header()));
    }

    #[test]
    fn short_and_foreign_headers_are_errors() {
        let bytes = header().to_bytes();
        for length in 0..bytes.len() {
            assert!(matches!(
                BatchHeader::parse(&bytes[..length]),
                Err(BatchError::Truncated { .. })
            ));
        }
        let old = BatchHeader {
            magic: 1,
            ..header()
        };
        assert_eq!(
            BatchHeader::parse(&old.to_bytes()),
            Err(BatchError::Magic(1))
        );
        let small = BatchHeader {
            batch_length: 48,
            ..header()
        };
        assert_eq!(
            BatchHeader::parse(&small.to_bytes()),
            Err(BatchError::Length(48))
        );
    }

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(header().last_sequence(), 7);
        assert_eq!(header().next_offset(), 52);
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
