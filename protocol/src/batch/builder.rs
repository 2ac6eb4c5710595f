//! Builds a record batch: for our own clients, the derived topics, the coordinators' topics, and recompression.

use bytes::{BufMut, Bytes, BytesMut};

use super::header::{
    ATTRIBUTE_CONTROL, ATTRIBUTE_LOG_APPEND_TIME, ATTRIBUTE_TRANSACTIONAL, BATCH_HEADER_BYTES,
    BATCH_PREFIX_BYTES, BatchHeader, LOG_OVERHEAD_BYTES, MAGIC_V2, NO_PRODUCER_EPOCH,
    NO_PRODUCER_ID, NO_SEQUENCE, NO_TIMESTAMP, TimestampType, crc32c,
};
use super::{BatchError, Header};
use crate::compression::{self, Compression};

/// Collects records and writes them as one batch. Records are encoded as they come, so memory is what the batch will take uncompressed.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    base_offset: i64,
    leader_epoch: i32,
    attributes: i16,
    compression: Compression,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
    records: BytesMut,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder::new()
    }
}

impl BatchBuilder {
    /// No compression, CreateTime, base offset 0, leader epoch -1, no producer.
    pub fn new() -> BatchBuilder {
        BatchBuilder {
            base_offset: 0,
            leader_epoch: -1,
            attributes: 0,
            compression: Compression::None,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
            base_timestamp: NO_TIMESTAMP,
            max_timestamp: NO_TIMESTAMP,
            count: 0,
            records: BytesMut::new(),
        }
    }

    pub fn compression(mut self, compression: Compression) -> BatchBuilder {
        self.compression = compression;
        self
    }

    pub fn base_offset(mut self, base_offset: i64) -> BatchBuilder {
        self.base_offset = base_offset;
        self
    }

    pub fn leader_epoch(mut self, leader_epoch: i32) -> BatchBuilder {
        self.leader_epoch = leader_epoch;
        self
    }

    /// Identity and first sequence number of an idempotent producer.
    pub fn producer(
        mut self,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
    ) -> BatchBuilder {
        self.producer_id = producer_id;
        self.producer_epoch = producer_epoch;
        self.base_sequence = base_sequence;
        self
    }

    pub fn transactional(mut self) -> BatchBuilder {
        self.attributes |= ATTRIBUTE_TRANSACTIONAL;
        self
    }

    pub fn control(mut self) -> BatchBuilder {
        self.attributes |= ATTRIBUTE_CONTROL;
        self
    }

    pub fn timestamp_type(mut self, timestamp_type: TimestampType) -> BatchBuilder {
        match timestamp_type {
            TimestampType::CreateTime => self.attributes &= !ATTRIBUTE_LOG_APPEND_TIME,
            TimestampType::LogAppendTime => self.attributes |= ATTRIBUTE_LOG_APPEND_TIME,
        }
        self
    }

    /// Adds a record without headers; see [`BatchBuilder::push`] for a builder held by reference.
    pub fn record(
        mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> BatchBuilder {
        self.push(timestamp, key, value, &[]);
        self
    }

    pub fn record_with_headers(
        mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> BatchBuilder {
        self.push(timestamp, key, value, headers);
        self
    }

    /// Adds a record; its offset delta is the number of records before it.
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) {
        if self.count == 0 {
            self.base_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);

        let mut length = 1 + varint_bytes(timestamp_delta) + varint_bytes(i64::from(self.count));
        length += nullable_bytes(key) + nullable_bytes(value) + varint_bytes(headers.len() as i64);
        for header in headers {
            length += nullable_bytes(Some(header.key.as_bytes())) + nullable_bytes(header.value);
        }

        let out = &mut self.records;
        out.reserve(length + 5);
        put_varint(out, length as i64);
        out.put_i8(0);
        put_varint(out, timestamp_delta);
        put_varint(out, i64::from(self.count));
        put_nullable(out, key);
        put_nullable(out, value);
        put_varint(out, headers.len() as i64);
        for header in headers {
            put_nullable(out, Some(header.key.as_bytes()));
            put_nullable(out, header.value);
        }
        self.count += 1;
    }

    /// How many records have been added.
    pub fn records_count(&self) -> usize {
        self.count as usize
    }

    /// Size of the batch were it built now without compression.
    pub fn size_in_bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.records.len()
    }

    /// Writes the batch. Errors: the codec failed, or the batch does not fit its length field.
    pub fn build(self) -> Result<Bytes, BatchError> {
        let header = BatchHeader {
            base_offset: self.base_offset,
            batch_length: 0,
            partition_leader_epoch: self.leader_epoch,
            magic: MAGIC_V2,
            crc: 0,
            attributes: self.attributes,
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            records_count: self.count,
        };
        assemble(header, self.compression, &self.records)
    }
}

/// Compresses `records`, sets codec bits, length and checksum of `header`, and joins both. All other fields stay as they are.
pub(crate) fn assemble(
    mut header: BatchHeader,
    codec: Compression,
    records: &[u8],
) -> Result<Bytes, BatchError> {
    let compressed;
    let block = match codec {
        Compression::None => records,
        codec => {
            compressed = compression::compress(codec, records)?;
            &compressed
        }
    };
    let size = BATCH_HEADER_BYTES + block.len();
    header.attributes =
        header.attributes & !super::header::ATTRIBUTE_COMPRESSION_MASK | codec.code();
    header.batch_length =
        i32::try_from(size - LOG_OVERHEAD_BYTES).map_err(|_| BatchError::TooLarge(size))?;
    let mut out = BytesMut::with_capacity(size);
    out.put_slice(&header.to_bytes());
    out.put_slice(block);
    write_crc(&mut out);
    Ok(out.freeze())
}

/// Computes the checksum of a whole batch and writes it in its place.
pub(crate) fn write_crc(batch: &mut [u8]) {
    let crc = crc32c(&batch[BATCH_PREFIX_BYTES..]);
    batch[BATCH_PREFIX_BYTES - 4..BATCH_PREFIX_BYTES].copy_from_slice(&crc.to_be_bytes());
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.put_u8(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.put_u8(raw as u8);
}

fn varint_bytes(value: i64) -> usize {
    (64 - (zigzag(value) | 1).leading_zeros() as usize).div_ceil(7)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
    }
}

fn nullable_bytes(bytes: Option<&[u8]>) -> usize {
    match bytes {
        None => 1,
        Some(bytes) => varint_bytes(bytes.len() as i64) + bytes.len(),
    }
}
