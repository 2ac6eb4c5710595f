//! The records of a batch, read without copying.
//!
//! ```text
//! length varint │ attributes i8 │ timestamp delta varlong │ offset delta varint
//! key length varint (-1 null) │ key │ value length varint (-1 null) │ value
//! header count varint │ ( key length varint │ key │ value length varint (-1 null) │ value )…
//! ```
//!
//! Varints are zigzag. [`RecordRef`] borrows and parses headers only when asked, for loops over millions of records;
//! [`RecordView`] owns slices of the same memory. Both keep duplicate header keys and their order.

use bytes::Bytes;

use super::header::{BATCH_HEADER_BYTES, BatchHeader, TimestampType};
use super::{BatchError, RecordError};
use crate::compression::{self, Compression};

/// A batch's records, decompressed.
#[derive(Debug, Clone)]
pub struct BatchRecords {
    header: BatchHeader,
    records: Bytes,
}

impl BatchRecords {
    /// Parses the header of one whole batch and decompresses its records to at most `decompressed_bytes_max` bytes. An uncompressed batch
    /// is not copied. The checksum is not looked at: storage and validation do that. An internal frame has no records.
    pub fn open(batch: &Bytes, decompressed_bytes_max: usize) -> Result<BatchRecords, BatchError> {
        let header = BatchHeader::parse(batch)?;
        if batch.len() < header.size_in_bytes() {
            return Err(BatchError::Truncated {
                needed: header.size_in_bytes(),
                available: batch.len(),
            });
        }
        if header.is_internal() {
            return Ok(BatchRecords {
                header,
                records: Bytes::new(),
            });
        }
        let block = batch.slice(BATCH_HEADER_BYTES..header.size_in_bytes());
        let records = match header.compression()? {
            Compression::None => block,
            codec => compression::decompress(codec, &block, decompressed_bytes_max)?.into(),
        };
        Ok(BatchRecords { header, records })
    }

    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The decompressed records, one after another.
    pub fn as_bytes(&self) -> &Bytes {
        &self.records
    }

    /// Borrowed records; no allocation per record.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter::new(&self.header, &self.records)
    }

    /// Records that own slices of the batch's memory, with their headers parsed.
    pub fn views(&self) -> impl Iterator<Item = Result<RecordView, RecordError>> + '_ {
        self.iter()
            .map(|record| RecordView::of(&self.records, record?))
    }
}

/// One record, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    pub offset: i64,
    /// Milliseconds since the epoch: the record's own, or the batch's append time when the topic says LogAppendTime.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// One record whose parts are slices of the batch's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordView {
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<HeaderView>,
}

impl RecordView {
    fn of(memory: &Bytes, record: RecordRef<'_>) -> Result<RecordView, RecordError> {
        let mut headers = Vec::new();
        for header in record.headers {
            let header = header?;
            let key = memory.slice_ref(header.key.as_bytes());
            headers.push(HeaderView {
                key,
                value: header.value.map(|value| memory.slice_ref(value)),
            });
        }
        Ok(RecordView {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(|key| memory.slice_ref(key)),
            value: record.value.map(|value| memory.slice_ref(value)),
            headers,
        })
    }
}

/// An owned record header. The key is UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderView {
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// A borrowed record header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    pub key: &'a str,
    pub value: Option<&'a [u8]>,
}

/// The headers of a record, parsed as they are asked for; ends after the first error.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: i32,
}

impl Headers<'_> {
    /// How many headers the record says it has.
    pub fn count(&self) -> usize {
        self.left.max(0) as usize
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<Header<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left <= 0 {
            return None;
        }
        self.left -= 1;
        let mut reader = Reader { rest: self.rest };
        let header = reader.header();
        match header {
            Ok(_) if self.left == 0 && !reader.rest.is_empty() => {
                self.rest = &[];
                Some(Err(RecordError::Trailing))
            }
            Ok(_) => {
                self.rest = reader.rest;
                Some(header)
            }
            Err(_) => {
                self.left = 0;
                Some(header)
            }
        }
    }
}

/// Walks the records of a batch in order. Ends after the first error; when it ends without one, the count and every length were right,
/// save for headers, which are checked when they are read.
#[derive(Debug, Clone)]
pub struct RecordIter<'a> {
    reader: Reader<'a>,
    base_offset: i64,
    base_timestamp: i64,
    append_time: Option<i64>,
    declared: i32,
    found: i32,
    last_delta: i32,
    max_delta: i32,
}

impl<'a> RecordIter<'a> {
    /// `records` are the decompressed records of the batch that `header` heads.
    pub fn new(header: &BatchHeader, records: &'a [u8]) -> RecordIter<'a> {
        RecordIter {
            reader: Reader { rest: records },
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            append_time: (header.timestamp_type() == TimestampType::LogAppendTime)
                .then_some(header.max_timestamp),
            declared: header.records_count,
            found: 0,
            last_delta: -1,
            max_delta: header.last_offset_delta,
        }
    }

    #[inline]
    fn read(&mut self) -> Result<RecordRef<'a>, RecordError> {
        let length = self.reader.varint()?;
        let mut record = Reader {
            rest: self.reader.take(length)?,
        };
        record.take(1)?; // attributes: no bit of them has a meaning yet
        let timestamp_delta = record.varlong()?;
        let offset_delta = record.varint()?;
        // Compaction leaves gaps, so only the order is checked here; validation of a produced batch wants every delta.
        if offset_delta <= self.last_delta || offset_delta > self.max_delta {
            return Err(RecordError::OffsetDelta {
                found: offset_delta,
                above: self.last_delta,
                max: self.max_delta,
            });
        }
        self.last_delta = offset_delta;
        let key = record.nullable()?;
        let value = record.nullable()?;
        let headers = record.varint()?;
        // A header takes two bytes at least.
        if headers < 0 || headers as usize > record.rest.len() / 2 {
            return Err(RecordError::Length);
        }
        if headers == 0 && !record.rest.is_empty() {
            return Err(RecordError::Trailing);
        }
        Ok(RecordRef {
            offset: self.base_offset.wrapping_add(i64::from(offset_delta)),
            timestamp: self
                .append_time
                .unwrap_or_else(|| self.base_timestamp.wrapping_add(timestamp_delta)),
            key,
            value,
            headers: Headers {
                rest: record.rest,
                left: headers,
            },
        })
    }

    fn end(&mut self) {
        self.reader.rest = &[];
        self.found = self.declared;
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordRef<'a>, RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.found >= self.declared {
            if self.reader.rest.is_empty() {
                return None;
            }
            self.end();
            return Some(Err(RecordError::TrailingRecords));
        }
        if self.reader.rest.is_empty() {
            let error = RecordError::Count {
                declared: self.declared,
                found: self.found,
            };
            self.end();
            return Some(Err(error));
        }
        let record = self.read();
        match record {
            Ok(_) => self.found += 1,
            Err(_) => self.end(),
        }
        Some(record)
    }
}

#[derive(Debug, Clone, Copy)]
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    fn take(&mut self, length: i32) -> Result<&'a [u8], RecordError> {
        let length = usize::try_from(length).map_err(|_| RecordError::Length)?;
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(RecordError::Length)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn nullable(&mut self) -> Result<Option<&'a [u8]>, RecordError> {
        match self.varint()? {
            -1 => Ok(None),
            length => self.take(length).map(Some),
        }
    }

    fn header(&mut self) -> Result<Header<'a>, RecordError> {
        let length = self.varint()?;
        let key = std::str::from_utf8(self.take(length)?).map_err(|_| RecordError::HeaderKey)?;
        Ok(Header {
            key,
            value: self.nullable()?,
        })
    }

    #[inline]
    fn varint(&mut self) -> Result<i32, RecordError> {
        // Lengths and deltas are mostly one byte.
        if let [byte, rest @ ..] = self.rest
            && *byte < 0x80
        {
            self.rest = rest;
            return Ok(i32::from(byte >> 1) ^ -i32::from(byte & 1));
        }
        let raw = u32::try_from(self.unsigned(5)?).map_err(|_| RecordError::Varint)?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    #[inline]
    fn varlong(&mut self) -> Result<i64, RecordError> {
        let raw = self.unsigned(10)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn unsigned(&mut self, bytes_max: usize) -> Result<u64, RecordError> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().take(bytes_max).enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if index == 9 && bits > 1 {
                return Err(RecordError::Varint);
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(RecordError::Varint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    #[test]
    fn duplicate_headers_and_nulls_are_kept_in_order() {
        let batch = BatchBuilder::new()
            .record_with_headers(
                100,
                None,
                Some(b""),
                &[
                    Header {
                        key: "a",
                        value: Some(b"1"),
                    },
                    Header {
                        key: "a",
                        value: None,
                    },
                    Header {
                        key: "",
                        value: Some(b""),
                    },
                ],
            )
            .record(90, Some(b"k"), None)
            .build()
            .unwrap();
        let records = BatchRecords::open(&batch, 1024).unwrap();
        let views: Vec<_> = records.views().collect::<Result<_, _>>().unwrap();
        assert_eq!(views.len(), 2);
        assert_eq!(
            (views[0].key.clone(), views[0].value.clone()),
            (None, Some(Bytes::new()))
        );
        assert_eq!(views[0].headers.len(), 3);
        assert_eq!(
            views[0].headers[1],
            HeaderView {
                key: Bytes::from_static(b"a"),
                value: None
            }
        );
        assert_eq!((views[1].offset, views[1].timestamp), (1, 90));
    }

    fn walk(records: &[u8], count: i32) -> Result<usize, RecordError> {
        let header = BatchHeader {
            records_count: count,
            last_offset_delta: count - 1,
            ..BatchHeader::parse(&sample()).unwrap()
        };
        let mut found = 0;
        for record in RecordIter::new(&header, records) {
            for header in record?.headers {
                header?;
            }
            found += 1;
        }
        Ok(found)
    }

    fn sample() -> Bytes {
        BatchBuilder::new().record(0, None, None).build().unwrap()
    }

    #[test]
    fn malformed_records_are_errors() {
        // length, attributes, timestamp, offset, key -1, value -1, no headers
        let good = [12, 0, 0, 0, 1, 1, 0];
        assert_eq!(walk(&good, 1), Ok(1));
        assert_eq!(
            walk(&good, 2),
            Err(RecordError::Count {
                declared: 2,
                found: 1
            })
        );
        assert_eq!(walk(&good, 0), Err(RecordError::TrailingRecords));
        assert_eq!(walk(&[14, 0, 0, 0, 1, 1, 0], 1), Err(RecordError::Length));
        assert_eq!(
            walk(&[14, 0, 0, 0, 1, 1, 0, 9], 1),
            Err(RecordError::Trailing)
        );
        assert_eq!(
            walk(&[12, 0, 0, 2, 1, 1, 0], 1),
            Err(RecordError::OffsetDelta {
                found: 1,
                above: -1,
                max: 0
            })
        );
        assert_eq!(walk(&[12, 0, 0, 0, 3, 1, 0], 1), Err(RecordError::Length));
        assert_eq!(walk(&[12, 0, 0, 0, 1, 1, 8], 1), Err(RecordError::Length));
        assert_eq!(
            walk(&[0xff, 0xff, 0xff, 0xff, 0xff, 1], 1),
            Err(RecordError::Varint)
        );
        assert_eq!(
            walk(&[0xff, 0xff, 0xff, 0xff, 0x1f], 1),
            Err(RecordError::Varint)
        );
    }
}
