//! Opening a log again.
//!
//! Sealed segments were durable before the next was begun; their `.ridx` tells what they hold, and
//! one whose `.ridx` is missing is scanned, where any damage is corruption. The last segment is
//! trusted if the log was closed cleanly (its `.ridx` is there and fits), and scanned otherwise: a
//! frame counts if its checksum is right, its offset follows and its term does not fall. A torn
//! tail is cut off only past the recovery point, up to which the file is known to have been synced;
//! damage before it is not a crash's. (What was never synced may survive in any order, so whole
//! frames behind the damage prove nothing.)

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use streamgauge_protocol::batch::{BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES};

use super::append::{frame_of, place_of, reserve_bytes};
use super::checkpoints::{
    RECOVERY_POINT_FILE, RecoveryPoint, StartCheckpoint, read_recovery_point,
};
use super::create::{METADATA_FILE, remove_log};
use super::{Log, LogConfig, LogStart, Shared, SyncedPoint};
use crate::disk::Disk;
use crate::epochs::EpochTable;
use crate::error::{Corruption, StorageError};
use crate::frames::Frames;
use crate::ids::{RaftIndex, Term};
use crate::raft_index::{self, EntryPlace, SegmentSummary};
use crate::segment::{
    AppendedFrame, NO_TIMESTAMP, Segment, base_offset_of, file_name, read_whole, replace_file,
};
use crate::segment_index::SparseIndex;

/// Read at once when looking whether a tail is nothing but zeros.
const TAIL_READ_BYTES: usize = 256 * 1024;

/// What opening found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Bytes of a torn tail that were cut off.
    pub truncated_bytes: u64,
    /// Entries that were scanned because the log was not closed cleanly.
    pub scanned_entries: u64,
    /// Damage that is not a torn tail. The log ends before it and must not be written to: the
    /// rest of the file is still there.
    pub corruption: Option<Corruption>,
}

impl Log {
    /// Opens a log, recovers its tail and says what that took.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        config: LogConfig,
        now_ms: i64,
    ) -> Result<(Self, RecoveryReport), StorageError> {
        Opening {
            directory,
            config,
            recovery_point: read_recovery_point(&*disk, directory),
            disk,
            aborted_files: BTreeSet::new(),
            report: RecoveryReport::default(),
        }
        .open(now_ms)
    }
}

/// The largest timestamp of the batches before `end`, and the last offset of the first that has it.
pub(super) fn max_timestamp(segment: &Segment, end: u64) -> io::Result<(i64, i64)> {
    let mut largest = (NO_TIMESTAMP, -1);
    let mut frames = Frames::new(segment, 0, usize::MAX);
    while let Some(frame) = frames.next()? {
        if frame.position >= end {
            break;
        }
        if !frame.header.is_internal() && frame.header.max_timestamp > largest.0 {
            largest = (frame.header.max_timestamp, frame.header.last_offset());
        }
    }
    Ok(largest)
}

/// An open under way.
struct Opening<'a> {
    disk: Arc<dyn Disk>,
    directory: &'a Path,
    config: LogConfig,
    recovery_point: RecoveryPoint,
    /// The segments that have a file of aborted transactions.
    aborted_files: BTreeSet<i64>,
    report: RecoveryReport,
}

/// A segment as opening found it.
struct Found {
    segment: Segment,
    places: Vec<EntryPlace>,
    /// Bytes of the log that have no index entry yet.
    bytes_since_index: u32,
    first_timestamp: Option<i64>,
    file_bytes: u64,
}

impl Opening<'_> {
    fn open(mut self, now_ms: i64) -> Result<(Log, RecoveryReport), StorageError> {
        let mut checkpoint = StartCheckpoint::read(&*self.disk, self.directory)?;
        if checkpoint.replacing {
            self.finish_replacing(&mut checkpoint)?;
        }
        let StartCheckpoint {
            start,
            log_start_offset,
            ..
        } = checkpoint;
        let mut bases = self.segment_bases(start)?;
        let active_base = bases.pop().unwrap_or(start.offset);
        let mut segments = Vec::with_capacity(bases.len() + 1);
        let mut epochs = EpochTable::default();
        let mut next = (start.index.next(), start.offset);
        let mut cut_short = false;
        for base in bases {
            let segment = self.open_sealed(base, next, &mut epochs)?;
            next = (
                RaftIndex(segment.first_index().0 + segment.entry_count() as u64),
                segment.next_offset(),
            );
            segments.push(Arc::new(segment));
            if self.report.corruption.is_some() {
                cut_short = true;
                break;
            }
        }
        if !cut_short && active_base != next.1 {
            self.report.corruption = Some(self.missing_segment(active_base, next.1));
            cut_short = true;
        }
        let active_base = if cut_short { next.1 } else { active_base };
        let found = self.open_active(active_base, next, &mut epochs, cut_short)?;
        let active = Arc::new(found.segment);
        segments.push(Arc::clone(&active));
        let end = SyncedPoint {
            base_offset: active.base_offset(),
            position: active.end(),
        };
        let recovery_point = self.recovery_point.synced;
        let mut log = Log {
            disk: self.disk,
            directory: self.directory.to_owned(),
            config: self.config,
            shared: Arc::new(Shared::new(segments, log_start_offset.max(start.offset))),
            active,
            places: found.places,
            first_timestamp: found.first_timestamp,
            active_since_ms: now_ms,
            bytes_since_index: found.bytes_since_index,
            start,
            producers_offset: checkpoint.producers_offset,
            epochs,
            dirty_files: Vec::new(),
            dirty_directories: Vec::new(),
            failed: self.report.corruption.is_some(),
            synced: recovery_point.min(end),
            recovery_point,
            truncations: 0,
        };
        // With a looser flush policy records can be lost behind a start that was durable at once.
        // A log that replaced another may be behind its start for a while: its leader has the rest.
        if checkpoint.producers_offset < 0 {
            let end = log.next_offset();
            log.shared.log_start_offset.fetch_min(end, Ordering::AcqRel);
        }
        if self.report.corruption.is_none() {
            log.settle_tail(found.file_bytes, self.report.scanned_entries > 0)?;
        } else if let Err(error) = keep_recovery_point(&*log.disk, &log.directory) {
            let directory = log.directory.display();
            tracing::warn!(%directory, %error, "after a loss of power, damage may be taken for a torn tail");
        }
        Ok((log, self.report))
    }

    /// A crash came while the log was being replaced: nothing of the old one counts.
    fn finish_replacing(&mut self, checkpoint: &mut StartCheckpoint) -> Result<(), StorageError> {
        remove_log(&*self.disk, self.directory, checkpoint.producers_offset)
            .map_err(|error| StorageError::io("replace the log in", self.directory, error))?;
        self.recovery_point = RecoveryPoint::default();
        checkpoint.replacing = false;
        checkpoint.write(&*self.disk, self.directory)
    }

    /// The base offsets of the segments, rising, without those before the log's start: a crash may
    /// have come between moving the start and removing them.
    fn segment_bases(&mut self, start: LogStart) -> Result<Vec<i64>, StorageError> {
        let failed = |error| StorageError::io("list", self.directory, error);
        let mut bases: Vec<i64> = Vec::new();
        let names = self.disk.list(self.directory).map_err(failed)?;
        for name in &names {
            if name.ends_with(".tmp") {
                let path = self.directory.join(name);
                self.disk.remove_file(&path).map_err(failed)?;
            } else if let Some(base) = base_offset_of(name, "log") {
                bases.push(base);
            }
        }
        let (aborted_files, orphans) = super::aborted::index_files(&names, &bases);
        for name in orphans {
            let path = self.directory.join(name);
            self.disk.remove_file(&path).map_err(failed)?;
        }
        for base in bases.iter().filter(|base| **base < start.offset) {
            let summary = empty_summary(*base, RaftIndex::default());
            self.segment(&summary).remove_files().map_err(failed)?;
        }
        bases.sort_unstable();
        bases.retain(|base| *base >= start.offset);
        self.aborted_files = aborted_files;
        Ok(bases)
    }

    /// The `.ridx` of a segment, if it is whole and fits what came before and the file.
    fn trusted(
        &self,
        base: i64,
        next: (RaftIndex, i64),
        file_bytes: u64,
        epochs: &mut EpochTable,
    ) -> Option<Segment> {
        let path = self.directory.join(file_name(base, "ridx"));
        let file = self.disk.open(&path).ok()?;
        let head = raft_index::read_head(&*file).ok()??;
        let summary = head.summary;
        let fits = summary.base_offset == base
            && summary.first_index == next.0
            && base == next.1
            && summary.log_bytes <= file_bytes;
        if !fits {
            return None;
        }
        let segment = self.segment(&summary);
        // What a truncation left is not cut off while the segment may be mapped.
        if !self.is_zero(&segment, file_bytes).ok()? {
            return None;
        }
        if head.files.entries > 0 {
            epochs.extend(&head.epochs)?;
        }
        segment.set_index_files(Some(head.files));
        Some(segment)
    }

    fn open_sealed(
        &mut self,
        base: i64,
        next: (RaftIndex, i64),
        epochs: &mut EpochTable,
    ) -> Result<Segment, StorageError> {
        let path = self.directory.join(file_name(base, "log"));
        let file_bytes = self
            .disk
            .open(&path)
            .and_then(|file| file.len())
            .map_err(|error| StorageError::io("open", &path, error))?;
        if base != next.1 {
            self.report.corruption = Some(self.missing_segment(base, next.1));
        } else if let Some(segment) = self.trusted(base, next, file_bytes, epochs) {
            if segment.end() < file_bytes {
                segment
                    .file()
                    .and_then(|file| file.set_len(segment.end()))
                    .map_err(|error| StorageError::io("truncate", &path, error))?;
            }
            segment.seal();
            return Ok(segment);
        }
        let found = self.scan(base, next, file_bytes, epochs)?;
        let end = found.segment.end();
        if end < file_bytes
            && self.report.corruption.is_none()
            && self.is_zero(&found.segment, file_bytes)?
        {
            // What a truncation left when the segment was active; nobody has it mapped now.
            found
                .segment
                .file()
                .and_then(|file| file.set_len(end))
                .map_err(|error| StorageError::io("truncate", &path, error))?;
        } else if end < file_bytes && self.report.corruption.is_none() {
            // Sealed means synced: whatever is wrong here did not happen in a crash.
            self.report.corruption = Some(Corruption {
                file: path,
                position: end,
                reason: "a batch in a sealed segment is damaged".into(),
            });
        }
        let segment = found.segment;
        segment.seal();
        let since = epochs.since(segment.first_index());
        let is_written = self.report.corruption.is_none()
            && segment.write_index_files(since, &found.places).is_ok();
        if !is_written {
            segment.set_resident_places(found.places);
        }
        Ok(segment)
    }

    fn open_active(
        &mut self,
        base: i64,
        next: (RaftIndex, i64),
        epochs: &mut EpochTable,
        cut_short: bool,
    ) -> Result<Found, StorageError> {
        let path = self.directory.join(file_name(base, "log"));
        let exists = self
            .disk
            .exists(&path)
            .map_err(|error| StorageError::io("open", &path, error))?;
        if cut_short || !exists {
            // After corruption there is nothing to go on with; without a file the crash came
            // before the first segment's creation was durable.
            let segment = self.segment(&empty_summary(next.1, next.0));
            if !exists && !cut_short {
                let file = self
                    .disk
                    .create(&path)
                    .map_err(|error| StorageError::io("create", &path, error))?;
                segment.keep_file(file);
            }
            segment.set_index(SparseIndex::default());
            return Ok(Found {
                segment,
                places: Vec::new(),
                bytes_since_index: 0,
                first_timestamp: None,
                file_bytes: 0,
            });
        }
        let file = self
            .disk
            .open(&path)
            .map_err(|error| StorageError::io("open", &path, error))?;
        let file_bytes = file
            .len()
            .map_err(|error| StorageError::io("open", &path, error))?;
        let trusted = self.trusted(base, next, file_bytes, epochs);
        if let Some((segment, places)) = trusted.and_then(with_places) {
            segment.keep_file(file);
            segment.with_index(|_| ());
            let first_timestamp = first_timestamp(&segment)
                .map_err(|error| StorageError::io("read", &path, error))?;
            return Ok(Found {
                segment,
                places,
                // Unknown; the next batch gets an entry at the latest one interval on.
                bytes_since_index: 0,
                first_timestamp,
                file_bytes,
            });
        }
        let found = self.scan(base, next, file_bytes, epochs)?;
        found.segment.keep_file(file);
        let end = found.segment.end();
        self.report.scanned_entries += found.places.len() as u64;
        if end < file_bytes {
            let synced = self.synced_in(base);
            if end < synced {
                self.report.corruption = Some(Corruption {
                    file: path,
                    position: end,
                    reason: format!("bytes up to position {synced} were synced"),
                });
            } else {
                self.report.truncated_bytes = file_bytes - end;
            }
        }
        Ok(found)
    }

    /// Up to where a segment is known to have been synced.
    fn synced_in(&self, base: i64) -> u64 {
        let synced = self.recovery_point.synced;
        match synced.base_offset == base {
            true => synced.position,
            false => 0,
        }
    }

    fn missing_segment(&self, found: i64, expected: i64) -> Corruption {
        Corruption {
            file: self.directory.join(file_name(found, "log")),
            position: 0,
            reason: format!("the segment before it is missing: offset {expected} was expected"),
        }
    }

    fn segment(&self, summary: &SegmentSummary) -> Segment {
        Segment::with_summary(
            Arc::clone(&self.disk),
            self.directory,
            summary,
            reserve_bytes(self.config.segment_bytes),
        )
        .has_aborted_file(self.aborted_files.contains(&summary.base_offset))
    }

    /// Reads a segment from its beginning to the first frame that does not count.
    fn scan(
        &mut self,
        base: i64,
        next: (RaftIndex, i64),
        file_bytes: u64,
        epochs: &mut EpochTable,
    ) -> Result<Found, StorageError> {
        let (first_index, _) = next;
        epochs.truncate_from(first_index);
        let mut last_term = epochs.latest().map_or(Term(0), |latest| latest.term);
        // Scanned as if all were published; the end is set to what counts before anybody reads.
        let whole = self.segment(&SegmentSummary {
            log_bytes: file_bytes,
            ..empty_summary(base, first_index)
        });
        let failed = |error| StorageError::io("read", &whole.path("log"), error);
        let mut found = Found {
            segment: self.segment(&empty_summary(base, first_index)),
            places: Vec::new(),
            bytes_since_index: 0,
            first_timestamp: None,
            file_bytes,
        };
        let mut frames: Vec<AppendedFrame> = Vec::new();
        let mut next_offset = base;
        let synced = self.synced_in(base);
        let mut walk = Frames::new(&whole, 0, usize::MAX);
        loop {
            let frame = match walk.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) if is_torn(&error) => break,
                Err(error) => return Err(failed(error)),
            };
            let header = frame.header;
            let bytes = frame.bytes();
            let term = Term::from_leader_epoch(header.partition_leader_epoch);
            let index = RaftIndex(first_index.0 + found.places.len() as u64);
            let known_term = self.recovery_point.epochs.term_of(index);
            let counts = header.base_offset == next_offset
                && header.next_offset() >= next_offset
                && term >= last_term
                && (frame.position >= synced || known_term.is_none_or(|known| known == term))
                && header
                    .verify_crc(bytes.get(BATCH_PREFIX_BYTES..).unwrap_or_default())
                    .is_ok();
            if !counts {
                break;
            }
            let appended = frame_of(frame.position, &header);
            let prefix = bytes.get(..BATCH_PREFIX_BYTES).unwrap_or_default();
            found
                .places
                .push(place_of(&appended, base, crc32fast::hash(prefix)));
            epochs.observe(term, index, header.base_offset);
            if !header.is_internal() {
                found.first_timestamp.get_or_insert(header.max_timestamp);
            }
            frames.push(appended);
            last_term = term;
            next_offset = header.next_offset();
        }
        found.segment.set_index(SparseIndex::default());
        found.segment.publish(
            &frames,
            self.config.index_interval_bytes,
            &mut found.bytes_since_index,
        );
        Ok(found)
    }

    /// Whether there is nothing but zeros behind the segment's end.
    fn is_zero(&self, segment: &Segment, file_bytes: u64) -> Result<bool, StorageError> {
        let failed = |error| StorageError::io("read", &segment.path("log"), error);
        let mut position = segment.end();
        while position < file_bytes {
            let len = usize::try_from(file_bytes - position).unwrap_or(usize::MAX);
            let mut bytes = vec![0; len.min(TAIL_READ_BYTES)];
            let file = segment.file().map_err(failed)?;
            file.read_at(position, &mut bytes).map_err(failed)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            position += bytes.len() as u64;
        }
        Ok(true)
    }
}

impl Log {
    /// Cuts off what recovery did not count and syncs what it did: after a crash of the process
    /// alone the tail may be in the page cache only, and what is served must not be lost later.
    fn settle_tail(&mut self, file_bytes: u64, scanned: bool) -> Result<(), StorageError> {
        let directory = self.directory.clone();
        let failed = |error| StorageError::io("recover", &directory, error);
        let end = self.active.end();
        // Nobody has mapped the file yet.
        if file_bytes > end {
            let file = self.active.file().map_err(failed)?;
            file.set_len(end).map_err(failed)?;
        }
        // From here on the segment grows, and a stale index file must not be trusted.
        self.remove_if_there(&self.active.path("ridx"))?;
        if scanned || file_bytes > end {
            let file = self.active.file().map_err(failed)?;
            self.mark_dirty(file);
        }
        // The process may have died before the first ticket was run: what tells whose directory it is
        // must not be lost after records in it are acknowledged. Costs nothing if it is durable.
        let metadata = self.directory.join(METADATA_FILE);
        if self.disk.exists(&metadata).map_err(failed)? {
            let file = self.disk.open(&metadata).map_err(failed)?;
            self.mark_dirty(file);
        }
        // A truncation may have been interrupted between removing a segment and making that
        // durable: it must not come back behind newer entries.
        self.dirty_directories.push(self.directory.clone());
        Ok(())
    }
}

/// The places of a segment that is to be appended to; `None` if any is not what was written.
fn with_places(segment: Segment) -> Option<(Segment, Vec<EntryPlace>)> {
    let count = segment.entry_count();
    let mut places = Vec::with_capacity(count);
    while places.len() < count {
        let (_, block) = segment.places_around(places.len()).ok()??;
        places.extend(block);
    }
    Some((segment, places))
}

fn empty_summary(base_offset: i64, first_index: RaftIndex) -> SegmentSummary {
    SegmentSummary {
        base_offset,
        first_index,
        log_bytes: 0,
        next_offset: base_offset,
        max_timestamp: NO_TIMESTAMP,
        max_timestamp_offset: -1,
    }
}

/// Of the first batch that has records.
pub(super) fn first_timestamp(segment: &Segment) -> io::Result<Option<i64>> {
    let mut frames = Frames::new(segment, 0, BATCH_HEADER_BYTES);
    while let Some(frame) = frames.next()? {
        if !frame.header.is_internal() {
            return Ok(Some(frame.header.max_timestamp));
        }
    }
    Ok(None)
}

fn is_torn(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}
/// What tells damage from a torn tail may not be durable yet.
fn keep_recovery_point(disk: &dyn Disk, directory: &Path) -> std::io::Result<()> {
    let path = directory.join(RECOVERY_POINT_FILE);
    if disk.exists(&path)? {
        let bytes = read_whole(disk, &path)?;
        replace_file(disk, &path, &bytes)?;
        disk.sync_dir(directory)?;
    }
    Ok(())
}
