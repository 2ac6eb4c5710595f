//! What combine appends to the internal log and merge reads from it: covers, partial rows, whole records.
//!
//! One flush appends one record batch to an internal partition, so that it is there entirely or not at all:
//!
//! ```text
//! record 0   header:  version u8 = 2 | combiner signed32 | source partitions of the job unsigned | watermark limit signed
//!                     | records that follow unsigned | covers: count, then each
//!                       source signed32 | leader epoch signed32 | from signed | to - from unsigned | watermark signed
//!                       | flags u8 (1 idle, 2 initial)
//! record 1…  u8 = 1   rows until the record's end, each
//!                       window start signed | window length unsigned | group bytes | accumulators (see accumulator.rs)
//!            u8 = 2   a late candidate: judged at signed | event time signed | its row as above | the source record
//!            u8 = 3   a dead letter: reason bytes | the source record
//! source record       source signed32 | offset signed | timestamp signed | key optional bytes | value optional bytes
//!                     | headers: count, each: name bytes, value optional bytes
//! ```
//!
//! A [`Cover`] says which offsets of a source partition the batch accounts for, also where they hold no records. For each internal
//! partition the covers of a source follow one another without gap or overlap; merge takes a batch only if all its covers do.
//! Version 1 has no watermark limit.

use bytes::Bytes;

use crate::codec::{CodecError, Reader, put_bytes, put_optional_bytes, put_signed, put_unsigned};
use crate::window::Window;

const VERSION: u8 = 2;
const VERSION_WITHOUT_LIMIT: u8 = 1;
const KIND_ROWS: u8 = 1;
const KIND_LATE_CANDIDATE: u8 = 2;
const KIND_DEAD_LETTER: u8 = 3;

/// Rows are packed into records of about this size.
const ROWS_RECORD_BYTES: usize = 32 * 1024;

/// The offsets `[from_offset, to_offset)` of a source partition, and where its event time stood after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cover {
    pub source_partition: i32,
    /// The epoch in which the combining broker led the source partition.
    pub leader_epoch: i32,
    pub from_offset: i64,
    pub to_offset: i64,
    /// The source partition's own watermark at `to_offset`.
    pub watermark: i64,
    /// The source partition must not hold the job's watermark back until a cover says otherwise.
    pub idle: bool,
    /// The sender was told that merge has nothing of this source partition yet. Only such a cover may be the first: were it enough that
    /// merge has none, a batch whose predecessor was lost would be taken.
    pub initial: bool,
}

/// The first record of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialHeader {
    /// Who combined this: sources of one combiner share one job watermark.
    pub combiner_id: i32,
    /// How many partitions the source topic has, as far as the combiner knows: the job's watermark waits for all of them.
    pub source_partition_count: i32,
    /// The rows are of windows that are open at this watermark of merge's. If merge has come further, by the covers of another
    /// combiner of the same sources, it must not take them. The end of time if merge's watermark need not be known.
    pub watermark_limit: i64,
    /// How many records follow in the batch.
    pub records: u32,
    pub covers: Vec<Cover>,
}

/// A record of the source topic, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRecord {
    pub source_partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// One group's partial aggregates in one window; the accumulators are still in their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowBytes<'a> {
    pub window: Window,
    pub group: &'a [u8],
    pub accumulators: &'a [u8],
}

/// A record whose window was over as far as the combiner could tell. Merge, which alone knows the whole job's watermark,
/// either sends it to the late topic or adds its row after all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateCandidate<'a> {
    /// The least watermark over the combiner's sources when the record came.
    pub judged_at: i64,
    pub event_time: i64,
    pub row: RowBytes<'a>,
    pub record: SourceRecord,
}

/// A record that could not be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub reason: String,
    pub record: SourceRecord,
}

/// One record after the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partial<'a> {
    Rows(Rows<'a>),
    LateCandidate(LateCandidate<'a>),
    DeadLetter(DeadLetter),
}

/// The rows of one record, decoded one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows<'a> {
    bytes: &'a [u8],
}

/// One flush to one internal partition: to be appended as one record batch whose records have these values and no keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialBatch {
    pub internal_partition: i32,
    pub records: Vec<Bytes>,
}

/// Builds a [`PartialBatch`].
#[derive(Debug, Default)]
pub struct PartialBatchBuilder {
    records: Vec<Bytes>,
    rows: Vec<u8>,
}

impl PartialBatchBuilder {
    /// Adds a row; `accumulators` appends their bytes.
    pub fn add_row(
        &mut self,
        window: Window,
        group: &[u8],
        accumulators: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.rows.is_empty() {
            self.rows.push(KIND_ROWS);
        }
        put_row(&mut self.rows, window, group, accumulators);
        if self.rows.len() >= ROWS_RECORD_BYTES {
            self.records
                .push(Bytes::from(std::mem::take(&mut self.rows)));
        }
    }

    /// Adds the bytes of a late candidate or a dead letter.
    pub fn add_encoded(&mut self, record: Bytes) {
        self.records.push(record);
    }

    /// The header is that of the batch but for the count of its records, which is set here.
    pub fn finish(mut self, internal_partition: i32, header: PartialHeader) -> PartialBatch {
        if !self.rows.is_empty() {
            self.records
                .push(Bytes::from(std::mem::take(&mut self.rows)));
        }
        let mut records = Vec::with_capacity(self.records.len() + 1);
        records.push(Bytes::from(encode_header(&header, self.records.len())));
        records.append(&mut self.records);
        PartialBatch {
            internal_partition,
            records,
        }
    }
}

fn encode_header(header: &PartialHeader, records: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + header.covers.len() * 24);
    out.push(VERSION);
    put_signed(&mut out, i64::from(header.combiner_id));
    put_signed(&mut out, i64::from(header.source_partition_count));
    put_signed(&mut out, header.watermark_limit);
    put_unsigned(&mut out, records as u64);
    put_unsigned(&mut out, header.covers.len() as u64);
    for cover in &header.covers {
        put_cover(&mut out, cover);
    }
    out
}

pub(crate) fn put_cover(out: &mut Vec<u8>, cover: &Cover) {
    debug_assert!(
        cover.from_offset <= cover.to_offset,
        "{cover:?} runs backwards"
    );
    put_signed(out, i64::from(cover.source_partition));
    put_signed(out, i64::from(cover.leader_epoch));
    put_signed(out, cover.from_offset);
    put_unsigned(out, (cover.to_offset - cover.from_offset) as u64);
    put_signed(out, cover.watermark);
    out.push(u8::from(cover.idle) | u8::from(cover.initial) << 1);
}

pub(crate) fn read_cover(reader: &mut Reader<'_>) -> Result<Cover, CodecError> {
    let source_partition = reader.signed32()?;
    let leader_epoch = reader.signed32()?;
    let from_offset = reader.signed()?;
    let length = reader.unsigned()?;
    let to_offset = from_offset
        .checked_add_unsigned(length)
        .ok_or_else(|| reader.invalid("a cover past the last offset"))?;
    let watermark = reader.signed()?;
    let flags = reader.byte()?;
    if flags > 3 {
        return Err(reader.unknown(u64::from(flags)));
    }
    Ok(Cover {
        source_partition,
        leader_epoch,
        from_offset,
        to_offset,
        watermark,
        idle: flags & 1 != 0,
        initial: flags & 2 != 0,
    })
}

fn put_row(
    out: &mut Vec<u8>,
    window: Window,
    group: &[u8],
    accumulators: impl FnOnce(&mut Vec<u8>),
) {
    put_window(out, window);
    put_bytes(out, group);
    // The length stands before the bytes, but is known only after them: accumulators are short, so moving them costs little.
    let start = out.len();
    accumulators(out);
    let mut length = out.len() - start;
    let mut prefix = [0u8; 10];
    let mut prefix_bytes = 1;
    while length >= 0x80 {
        prefix[prefix_bytes - 1] = (length as u8) | 0x80;
        length >>= 7;
        prefix_bytes += 1;
    }
    prefix[prefix_bytes - 1] = length as u8;
    out.splice(start..start, prefix[..prefix_bytes].iter().copied());
}

fn read_row<'a>(reader: &mut Reader<'a>) -> Result<RowBytes<'a>, CodecError> {
    let window = read_window(reader)?;
    Ok(RowBytes {
        window,
        group: reader.bytes()?,
        accumulators: reader.bytes()?,
    })
}

pub(crate) fn put_window(out: &mut Vec<u8>, window: Window) {
    put_signed(out, window.start());
    put_unsigned(out, window.end().abs_diff(window.start()));
}

pub(crate) fn read_window(reader: &mut Reader<'_>) -> Result<Window, CodecError> {
    let start = reader.signed()?;
    let length = reader.unsigned()?;
    start
        .checked_add_unsigned(length)
        .and_then(|end| Window::new(start, end))
        .ok_or_else(|| reader.invalid("not a window"))
}

fn put_source_record(out: &mut Vec<u8>, record: &SourceRecord) {
    put_signed(out, i64::from(record.source_partition));
    put_signed(out, record.offset);
    put_signed(out, record.timestamp);
    put_optional_bytes(out, record.key.as_deref());
    put_optional_bytes(out, record.value.as_deref());
    put_unsigned(out, record.headers.len() as u64);
    for (name, value) in &record.headers {
        put_bytes(out, name);
        put_optional_bytes(out, value.as_deref());
    }
}

fn read_source_record(reader: &mut Reader<'_>) -> Result<SourceRecord, CodecError> {
    let source_partition = reader.signed32()?;
    let offset = reader.signed()?;
    let timestamp = reader.signed()?;
    let key = reader.optional_bytes()?.map(Bytes::copy_from_slice);
    let value = reader.optional_bytes()?.map(Bytes::copy_from_slice);
    let header_count = reader.count()?;
    let mut headers = Vec::new();
    for _ in 0..header_count {
        let name = reader.owned_bytes()?;
        headers.push((name, reader.optional_bytes()?.map(Bytes::copy_from_slice)));
    }
    Ok(SourceRecord {
        source_partition,
        offset,
        timestamp,
        key,
        value,
        headers,
    })
}

/// The bytes of a late candidate; `accumulators` appends those of its one-record row.
pub fn encode_late_candidate(
    judged_at: i64,
    event_time: i64,
    window: Window,
    group: &[u8],
    accumulators: impl FnOnce(&mut Vec<u8>),
    record: &SourceRecord,
) -> Bytes {
    let mut out = vec![KIND_LATE_CANDIDATE];
    put_signed(&mut out, judged_at);
    put_signed(&mut out, event_time);
    put_row(&mut out, window, group, accumulators);
    put_source_record(&mut out, record);
    Bytes::from(out)
}

/// The bytes of a dead letter.
pub fn encode_dead_letter(reason: &str, record: &SourceRecord) -> Bytes {
    let mut out = vec![KIND_DEAD_LETTER];
    put_bytes(&mut out, reason.as_bytes());
    put_source_record(&mut out, record);
    Bytes::from(out)
}

/// Reads the first record of a batch.
pub fn decode_header(bytes: &[u8]) -> Result<PartialHeader, CodecError> {
    let mut reader = Reader::new("partial header", bytes);
    let version = reader.byte()?;
    if !(VERSION_WITHOUT_LIMIT..=VERSION).contains(&version) {
        return Err(reader.unknown(u64::from(version)));
    }
    let combiner_id = reader.signed32()?;
    let source_partition_count = reader.signed32()?;
    let watermark_limit = match version {
        VERSION_WITHOUT_LIMIT => i64::MAX,
        _ => reader.signed()?,
    };
    let records = reader.unsigned32()?;
    let mut covers = Vec::new();
    for _ in 0..reader.count()? {
        covers.push(read_cover(&mut reader)?);
    }
    reader.finish()?;
    Ok(PartialHeader {
        combiner_id,
        source_partition_count,
        watermark_limit,
        records,
        covers,
    })
}

/// Reads a record after the first.
pub fn decode_partial(bytes: &[u8]) -> Result<Partial<'_>, CodecError> {
    let mut reader = Reader::new("partial record", bytes);
    match reader.byte()? {
        KIND_ROWS => Ok(Partial::Rows(Rows {
            bytes: reader.exact(reader.remaining())?,
        })),
        KIND_LATE_CANDIDATE => {
            let judged_at = reader.signed()?;
            let event_time = reader.signed()?;
            let row = read_row(&mut reader)?;
            let record = read_source_record(&mut reader)?;
            reader.finish()?;
            Ok(Partial::LateCandidate(LateCandidate {
                judged_at,
                event_time,
                row,
                record,
            }))
        }
        KIND_DEAD_LETTER => {
            let reason = reader.text()?.to_owned();
            let record = read_source_record(&mut reader)?;
            reader.finish()?;
            Ok(Partial::DeadLetter(DeadLetter { reason, record }))
        }
        other => Err(reader.unknown(u64::from(other))),
    }
}

impl<'a> Rows<'a> {
    pub fn iter(&self) -> impl Iterator<Item = Result<RowBytes<'a>, CodecError>> + use<'a> {
        let mut reader = Reader::new("partial row", self.bytes);
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed || reader.is_empty() {
                return None;
            }
            let row = read_row(&mut reader);
            failed = row.is_err();
            Some(row)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SourceRecord {
        SourceRecord {
            source_partition: 3,
            offset: 77,
            timestamp: -5,
            key: None,
            value: Some(Bytes::from_static(b"{}")),
            headers: vec![
                (Bytes::from_static(b"a"), None),
                (Bytes::from_static(b"a"), Some(Bytes::from_static(b"b"))),
            ],
        }
    }

    fn batch() -> PartialBatch {
        let window = Window::new(-60_000, 0).unwrap();
        let mut builder = PartialBatchBuilder::default();
        builder.add_row(window, b"north", |out| out.extend_from_slice(b"abc"));
        builder.add_row(window, b"", |_| {});
        builder.add_encoded(encode_late_candidate(
            9,
            -7,
            window,
            b"south",
            |out| out.push(1),
            &record(),
        ));
        builder.add_encoded(encode_dead_letter("not JSON", &record()));
        let cover = Cover {
            source_partition: 3,
            leader_epoch: 2,
            from_offset: 70,
            to_offset: 78,
            watermark: i64::MIN,
            idle: true,
            initial: true,
        };
        let header = PartialHeader {
            combiner_id: 5,
            source_partition_count: 4,
            watermark_limit: -3,
            records: 0,
            covers: vec![cover],
        };
        builder.finish(1, header)
    }

    #[test]
    fn a_batch_is_read_back_as_written() {
        let batch = batch();
        let header = decode_header(&batch.records[0]).unwrap();
        assert_eq!(
            (
                header.combiner_id,
                header.source_partition_count,
                header.records
            ),
            (5, 4, 3)
        );
        assert_eq!(header.watermark_limit, -3);
        assert_eq!(header.covers[0].to_offset, 78);
        assert!(header.covers[0].idle);
        let mut rows = 0;
        for bytes in &batch.records[1..] {
            match decode_partial(bytes).unwrap() {
                Partial::Rows(packed) => {
                    let packed: Vec<_> = packed.iter().map(Result::unwrap).collect();
                    assert_eq!(
                        (packed[0].group, packed[0].accumulators),
                        (&b"north"[..], &b"abc"[..])
                    );
                    assert_eq!(packed[1].accumulators, b"");
                    rows += packed.len();
                }
                Partial::LateCandidate(late) => {
                    assert_eq!((late.judged_at, late.record), (9, record()))
                }
                Partial::DeadLetter(letter) => assert_eq!(
                    (letter.reason.as_str(), letter.record),
                    ("not JSON", record())
                ),
            }
        }
        assert_eq!(rows, 2);
    }

    #[test]
    fn a_header_of_the_first_version_has_no_watermark_limit() {
        let bytes = [1, 10, 8, 3, 0];
        let header = decode_header(&bytes).unwrap();
        assert_eq!(
            (header.combiner_id, header.watermark_limit, header.records),
            (5, i64::MAX, 3)
        );
    }

    #[test]
    fn a_truncated_record_is_an_error() {
        for bytes in &batch().records[1..] {
            for length in 0..bytes.len() {
                match decode_partial(&bytes[..length]) {
                    Ok(Partial::Rows(rows)) => drop(rows.iter().collect::<Vec<_>>()),
                    Ok(other) => panic!("{other:?} out of {length} of {} bytes", bytes.len()),
                    Err(_) => {}
                }
            }
        }
        let header = &batch().records[0];
        for length in 0..header.len() {
            assert!(decode_header(&header[..length]).is_err());
        }
    }
}
