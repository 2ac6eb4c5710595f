//! The read side: what fetches and time queries need, on any thread, without the log's owner.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use streamgauge_protocol::batch::BatchRecords;

use super::Shared;
use crate::frames::{Frame, Frames, Run};
use crate::segment::{NO_TIMESTAMP, Segment};

/// A tail of this many bytes of the active segment is taken to be in the page cache.
const HOT_TAIL_BYTES: u64 = 64 * 1024 * 1024;

/// A batch that decompresses to more than this is not looked into for its timestamps.
const DECOMPRESSED_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Reads a log below an offset that its user names (the high watermark or the last stable offset).
#[derive(Clone)]
pub struct LogReader {
    pub(super) shared: Arc<Shared>,
}

/// What a read found: whole batches, one after another.
#[derive(Debug, Clone, Default)]
pub struct ReadSlices {
    /// The batches' bytes. More than one slice where frames that are not for consumers lie between.
    pub slices: Vec<Bytes>,
    pub bytes: usize,
    /// The offset after the last batch; the offset asked for if nothing was found.
    pub next_offset: i64,
    /// The limit on bytes stopped the read: there is more.
    pub limited: bool,
}

impl ReadSlices {
    /// Touches every page, so that a later write to a socket does not wait for the disk. For
    /// threads that may block.
    pub fn populate(&self) {
        const PAGE_BYTES: usize = 4096;
        let touched = self
            .slices
            .iter()
            .flat_map(|slice| slice.iter().step_by(PAGE_BYTES))
            .fold(0u8, |sum, byte| sum ^ byte);
        // The sum is of no use, but without one the compiler may leave out the reads.
        std::hint::black_box(touched);
    }
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(
        "offset {offset} is outside the log, which holds {log_start_offset} to {log_end_offset}"
    )]
    OffsetOutOfRange {
        offset: i64,
        log_start_offset: i64,
        log_end_offset: i64,
    },
    #[error("the log cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// A record found by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampOffset {
    pub timestamp: i64,
    pub offset: i64,
    pub leader_epoch: i32,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub fn log_start_offset(&self) -> i64 {
        self.shared.log_start_offset.load(Ordering::Acquire)
    }

    /// The offset after the last record that is written, committed or not.
    pub fn log_end_offset(&self) -> i64 {
        self.shared
            .segments
            .load()
            .last()
            .map_or(0, |segment| segment.next_offset())
    }

    /// The bytes of all segments.
    pub fn size_in_bytes(&self) -> u64 {
        self.shared
            .segments
            .load()
            .iter()
            .map(|segment| segment.end())
            .sum()
    }

    /// Whether reading from `offset` may have to wait for the disk, so that it belongs on a thread
    /// that may block.
    pub fn is_cold(&self, offset: i64) -> bool {
        let segments = self.shared.segments.load();
        let Some(active) = segments.last() else {
            return false;
        };
        if !active.reads_may_wait() {
            return false;
        }
        if offset < active.base_offset() {
            return true;
        }
        let relative = u32::try_from(offset - active.base_offset()).unwrap_or(u32::MAX);
        let position = active.with_index(|index| index.position_before(relative));
        active.end().saturating_sub(u64::from(position)) > HOT_TAIL_BYTES
    }

    /// Reads whole batches from the one that contains `offset`, up to `offset_limit` (not
    /// included) and `bytes_max` bytes; the first batch comes whatever its size if `at_least_one`.
    pub fn read(
        &self,
        offset: i64,
        bytes_max: usize,
        offset_limit: i64,
        at_least_one: bool,
    ) -> Result<ReadSlices, ReadError> {
        let segments = self.shared.segments.load();
        let (log_start_offset, log_end_offset) = (self.log_start_offset(), self.log_end_offset());
        if offset < log_start_offset || offset > log_end_offset {
            return Err(ReadError::OffsetOutOfRange {
                offset,
                log_start_offset,
                log_end_offset,
            });
        }
        let mut found = ReadSlices {
            next_offset: offset,
            ..ReadSlices::default()
        };
        if offset >= offset_limit {
            return Ok(found);
        }
        for segment in segments.iter().skip(segment_at(&segments, offset)) {
            self.shared.touch(segment);
            read_segment(
                segment,
                offset,
                bytes_max,
                offset_limit,
                at_least_one,
                &mut found,
            )?;
            if !found.slices.is_empty() || found.limited {
                break;
            }
        }
        Ok(found)
    }

    /// The first record at or after the log's start whose timestamp is at least `timestamp`, below
    /// `offset_limit` (`UnifiedLog.fetchOffsetByTimestamp`).
    pub fn offset_for_timestamp(
        &self,
        timestamp: i64,
        offset_limit: i64,
    ) -> Result<Option<TimestampOffset>, ReadError> {
        let start = self.log_start_offset();
        let segments = self.shared.segments.load();
        let candidates = segments.iter().filter(|segment| {
            let (max_timestamp, _) = segment.max_timestamp();
            max_timestamp >= timestamp && segment.next_offset() > start
        });
        for segment in candidates {
            self.shared.touch(segment);
            let (from, from_offset) = segment.with_index(|index| {
                index.time_before(timestamp).map_or((0, 0), |entry| {
                    let position = index.position_before(entry.relative_offset);
                    (position, i64::from(entry.relative_offset))
                })
            });
            // What lies behind the limit may be cut off at any time: it is not even looked at.
            let mut next_offset = segment.base_offset() + from_offset;
            let mut frames = Frames::new(segment, u64::from(from), usize::MAX);
            loop {
                if next_offset >= offset_limit {
                    return Ok(None);
                }
                let Some(frame) = frames.next()? else {
                    break;
                };
                next_offset = frame.header.next_offset();
                let may_hold = !frame.header.is_internal()
                    && frame.header.max_timestamp >= timestamp
                    && frame.header.last_offset() >= start;
                if !may_hold {
                    continue;
                }
                let found = record_where(&frame, |offset, at| offset >= start && at >= timestamp)?;
                if found.is_some() {
                    return Ok(found.filter(|found| found.offset < offset_limit));
                }
            }
        }
        Ok(None)
    }

    /// The first record that has the largest timestamp of the log (KIP-734).
    pub fn max_timestamp(&self, offset_limit: i64) -> Result<Option<TimestampOffset>, ReadError> {
        let start = self.log_start_offset();
        let segments = self.shared.segments.load();
        let mut largest: Option<(i64, &Arc<Segment>)> = None;
        for segment in segments.iter() {
            let (timestamp, _) = segment.max_timestamp();
            let larger = largest.is_none_or(|(other, _)| timestamp > other);
            if timestamp != NO_TIMESTAMP && larger && segment.next_offset() > start {
                largest = Some((timestamp, segment));
            }
        }
        let Some((timestamp, _)) = largest else {
            return Ok(None);
        };
        self.offset_for_timestamp(timestamp, offset_limit)
    }
}

/// The position of the segment that holds an offset.
fn segment_at(segments: &[Arc<Segment>], offset: i64) -> usize {
    segments
        .partition_point(|segment| segment.base_offset() <= offset)
        .saturating_sub(1)
}

fn read_segment(
    segment: &Segment,
    offset: i64,
    bytes_max: usize,
    offset_limit: i64,
    at_least_one: bool,
    found: &mut ReadSlices,
) -> io::Result<()> {
    if segment.base_offset() >= offset_limit {
        return Ok(());
    }
    let relative = u32::try_from(offset.saturating_sub(segment.base_offset()).max(0));
    let from = segment.with_index(|index| index.position_before(relative.unwrap_or(u32::MAX)));
    let mut frames = Frames::new(segment, u64::from(from), bytes_max);
    let mut run = Run::default();
    let mut next_offset = None;
    // What lies behind the limit may be cut off at any time: it is not even looked at.
    while next_offset.is_none_or(|next| next < offset_limit)
        && let Some(frame) = frames.next()?
    {
        // The one part of a batch that its own checksum does not cover and that consumers go by.
        let base_offset = frame.header.base_offset;
        if next_offset.is_some_and(|next| next != base_offset)
            || base_offset < segment.base_offset()
            || frame.header.next_offset() > segment.next_offset()
        {
            let (path, position) = (segment.path("log"), frame.position);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "offset {base_offset} at position {position} of {} does not follow",
                    path.display()
                ),
            ));
        }
        next_offset = Some(frame.header.next_offset());
        if frame.header.is_internal() {
            found.slices.extend(run.take());
            continue;
        }
        if frame.header.last_offset() < offset {
            continue;
        }
        if frame.header.last_offset() >= offset_limit {
            break;
        }
        let first = found.bytes == 0;
        if found.bytes + frame.size() > bytes_max && !(first && at_least_one) {
            found.limited = true;
            break;
        }
        found.bytes += frame.size();
        found.next_offset = frame.header.next_offset();
        found.slices.extend(run.add(frame));
    }
    found.slices.extend(run.take());
    Ok(())
}

fn record_where(
    frame: &Frame,
    wanted: impl Fn(i64, i64) -> bool,
) -> io::Result<Option<TimestampOffset>> {
    let unreadable = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let records = BatchRecords::open(&frame.bytes(), DECOMPRESSED_BYTES_MAX)
        .map_err(|error| unreadable(error.to_string()))?;
    for record in records.iter() {
        let record = record.map_err(|error| unreadable(error.to_string()))?;
        if wanted(record.offset, record.timestamp) {
            return Ok(Some(TimestampOffset {
                timestamp: record.timestamp,
                offset: record.offset,
                leader_epoch: frame.header.partition_leader_epoch,
            }));
        }
    }
    Ok(None)
}
