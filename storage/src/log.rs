//! A partition's log, which is at once Kafka's log and Raft's.
//!
//! A Raft entry is one batch, stored as it goes over the wire; entries without records (a leader's
//! no-op, a membership change) are frames of the same shape that take no Kafka offset. Each is a
//! frame of a segment file, so the files alone tell the whole Raft log again.
//!
//! The owner (a shard) appends, rolls, truncates and deletes through [`Log`]. Readers hold a
//! [`LogReader`] and never wait for the owner. Writing goes to the page cache; what makes it
//! durable is a [`SyncTicket`], which can be run on another thread and together with others.
//!
//! ```text
//! topic-0/
//!   00000000000000000000.log        batches, Kafka's format
//!   00000000000000000000.index      \
//!   00000000000000000000.timeindex   > written when the segment is sealed or the log closed
//!   00000000000000000000.ridx       /
//!   00000000000000000042.snapshot   producers at offset 42
//!   00000000000000000000.txnindex   aborted transactions that end in the segment, if there are any
//!   leader-epoch-checkpoint, log-start-checkpoint, partition.metadata
//! ```

mod aborted;
mod append;
mod checkpoints;
#[cfg(test)]
mod crash_tests;
mod create;
#[cfg(test)]
mod index_tests;
#[cfg(test)]
mod kafka_tool_tests;
#[cfg(test)]
mod many_tests;
mod places;
pub mod producers;
#[cfg(test)]
mod property_tests;
mod read;
mod recovery;
mod retention;
mod sync;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transaction_tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use bytes::Bytes;
use streamgauge_protocol::batch::StampedBatch;

use crate::disk::{Disk, DiskFile};
use crate::epochs::EpochTable;
use crate::error::StorageError;
use crate::ids::{RaftIndex, Term};
use crate::raft_index::EntryPlace;
use crate::segment::Segment;

use places::Places;
pub use read::{LogReader, ReadError, ReadSlices, TimestampOffset};
pub use recovery::RecoveryReport;
pub use sync::SyncTicket;

/// The configs of a topic that its logs follow; Kafka's names and meanings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub segment_bytes: u64,
    pub segment_ms: i64,
    pub index_interval_bytes: u32,
    /// Largest size of an offset index; a full one rolls the segment.
    pub segment_index_bytes: u32,
    /// `cleanup.policy` contains `delete`.
    pub delete: bool,
    /// -1 for no limit.
    pub retention_bytes: i64,
    /// -1 for no limit.
    pub retention_ms: i64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1024 * 1024 * 1024,
            segment_ms: 7 * 24 * 3600 * 1000,
            index_interval_bytes: 4096,
            segment_index_bytes: 10 * 1024 * 1024,
            delete: true,
            retention_bytes: -1,
            retention_ms: 7 * 24 * 3600 * 1000,
        }
    }
}

/// What lies before the first entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStart {
    /// The entry before the first.
    pub index: RaftIndex,
    /// The term of that entry.
    pub term: Term,
    /// The Kafka offset after that entry.
    pub offset: i64,
}

/// An entry to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub index: RaftIndex,
    pub term: Term,
    pub batch: StampedBatch,
}

/// An entry without its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryStub {
    pub index: RaftIndex,
    pub term: Term,
    /// Kind and payload of an entry that has no records.
    pub internal: Option<(u8, Bytes)>,
}

/// Why the term of an index is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TermError {
    #[error("the entry is before the log's start")]
    Compacted,
    #[error("the entry is after the log's end")]
    Unavailable,
}

/// Sealed segments of one log that keep their sparse index and mapping in memory (and, where files
/// are not mapped, a file descriptor). The active segment's are not counted.
const LOADED_SEGMENTS_MAX: usize = 8;

/// What readers and the owner share.
struct Shared {
    segments: ArcSwap<Vec<Arc<Segment>>>,
    log_start_offset: AtomicI64,
    /// The sealed segments that were read last, the latest at the end.
    loaded: Mutex<VecDeque<Weak<Segment>>>,
}

impl Shared {
    fn new(segments: Vec<Arc<Segment>>, log_start_offset: i64) -> Self {
        Self {
            segments: ArcSwap::from_pointee(segments),
            log_start_offset: AtomicI64::new(log_start_offset),
            loaded: Mutex::default(),
        }
    }

    /// A segment is about to be read: one that has not been for long is let go in its stead.
    fn touch(&self, segment: &Arc<Segment>) {
        if !segment.is_sealed() {
            return;
        }
        let is_it = |other: &Weak<Segment>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(segment));
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.back().is_some_and(is_it) {
            return;
        }
        loaded.retain(|other| !is_it(other));
        loaded.push_back(Arc::downgrade(segment));
        if loaded.len() > LOADED_SEGMENTS_MAX
            && let Some(oldest) = loaded.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.unload();
        }
    }
}

/// The log, for its owner.
pub struct Log {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    config: LogConfig,
    shared: Arc<Shared>,
    /// The last of the shared segments.
    active: Arc<Segment>,
    /// The entries of the active segment, in order.
    places: Vec<EntryPlace>,
    /// For rolling by time: when the active segment got its first batch, by its own timestamps if
    /// it has any, and when it was made.
    first_timestamp: Option<i64>,
    active_since_ms: i64,
    bytes_since_index: u32,
    start: LogStart,
    /// Offset of the producer snapshot that a leader sent with the start, or -1.
    producers_offset: i64,
    epochs: EpochTable,
    dirty_files: Vec<Arc<dyn DiskFile>>,
    dirty_directories: Vec<PathBuf>,
    failed: bool,
    synced: SyncedPoint,
    /// What the recovery point file says.
    recovery_point: SyncedPoint,
    /// How often entries were cut off. A sync that was asked for before says nothing of what stands
    /// in their place.
    truncations: u64,
}

/// A place in the log up to which a sync has made it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SyncedPoint {
    /// Of the segment.
    pub base_offset: i64,
    /// In the segment's file.
    pub position: u64,
}

/// What a sync covers of a log as it was when the sync was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct SyncCover {
    point: SyncedPoint,
    truncations: u64,
}

impl Log {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn configure(&mut self, config: LogConfig) {
        self.config = config;
    }

    /// A handle for readers; cheap to clone.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Whether the log takes no more writes: a sync failed, or what a failed write left is unknown.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// What lies before the first entry.
    pub fn start(&self) -> LogStart {
        self.start
    }

    /// The first entry that is there.
    pub fn first_index(&self) -> RaftIndex {
        self.start.index.next()
    }

    /// The last entry, or the one before the first if there is none.
    pub fn last_index(&self) -> RaftIndex {
        RaftIndex(self.active.first_index().0 + self.places.len() as u64 - 1)
    }

    /// The Kafka offset that the next record takes.
    pub fn next_offset(&self) -> i64 {
        self.active.next_offset()
    }

    /// The base offset of the segment that is appended to.
    pub fn active_base_offset(&self) -> i64 {
        self.active.base_offset()
    }

    pub fn log_start_offset(&self) -> i64 {
        self.shared.log_start_offset.load(Ordering::Acquire)
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

    /// The term of an entry, from memory.
    pub fn term(&self, index: RaftIndex) -> Result<Term, TermError> {
        if index == self.start.index {
            return Ok(self.start.term);
        }
        if index < self.start.index {
            return Err(TermError::Compacted);
        }
        if index > self.last_index() {
            return Err(TermError::Unavailable);
        }
        self.epochs.term_of(index).ok_or(TermError::Compacted)
    }

    /// The largest epoch at or below the one asked for, and where it ends; see
    /// [`EpochTable::end_offset_for`].
    pub fn end_offset_for_epoch(&self, leader_epoch: i32) -> Option<(i32, i64)> {
        self.epochs.end_offset_for(leader_epoch, self.next_offset())
    }

    /// The Kafka offset after an entry: the high watermark if that entry is the last committed.
    pub fn offset_after(&self, index: RaftIndex) -> Result<i64, StorageError> {
        if index <= self.start.index {
            return Ok(self.start.offset);
        }
        let (segment, ordinal) = self.segment_of(index);
        let Some(ordinal) = ordinal.checked_sub(1) else {
            return Ok(segment.base_offset());
        };
        let place = Places::new(self).get(&segment, ordinal)?;
        Ok(place.map_or(segment.next_offset(), |place| {
            segment.base_offset() + i64::from(place.relative_next_offset)
        }))
    }

    /// The segment that holds an entry at or before `index`, and how many of its entries end
    /// with it.
    fn segment_of(&self, index: RaftIndex) -> (Arc<Segment>, usize) {
        let count = |segment: &Segment| {
            usize::try_from((index.0 + 1).saturating_sub(segment.first_index().0))
                .unwrap_or(usize::MAX)
        };
        if index >= self.active.first_index() {
            return (Arc::clone(&self.active), count(&self.active));
        }
        let segments = self.shared.segments.load();
        let after = segments.partition_point(|segment| segment.first_index() <= index);
        let segment = after
            .checked_sub(1)
            .and_then(|at| segments.get(at))
            .unwrap_or(&self.active);
        (Arc::clone(segment), count(segment))
    }

    /// Entries `low..high` without their records.
    pub fn entry_stubs(
        &self,
        low: RaftIndex,
        high: RaftIndex,
    ) -> Result<Vec<EntryStub>, StorageError> {
        let mut places = Places::new(self);
        let mut stubs = Vec::with_capacity(usize::try_from(high.0 - low.0).unwrap_or(0));
        for index in low.0..high.0 {
            let index = RaftIndex(index);
            stubs.push(EntryStub {
                index,
                term: self.term(index).unwrap_or_default(),
                internal: self.internal_at(index, &mut places)?,
            });
        }
        Ok(stubs)
    }

    fn internal_at(
        &self,
        index: RaftIndex,
        places: &mut Places<'_>,
    ) -> Result<Option<(u8, Bytes)>, StorageError> {
        if !self.is_internal(index, places)? {
            return Ok(None);
        }
        let (segment, ordinal) = self.segment_of(index);
        match places.get(&segment, ordinal.saturating_sub(1))? {
            Some(place) => Ok(self.read_frame(&segment, &place)?.internal_payload()),
            None => Ok(None),
        }
    }

    /// Whether an entry has no records.
    fn is_internal(&self, index: RaftIndex, places: &mut Places<'_>) -> Result<bool, StorageError> {
        let (segment, ordinal) = self.segment_of(index);
        let Some(ordinal) = ordinal.checked_sub(1) else {
            return Ok(false);
        };
        let before = match ordinal.checked_sub(1) {
            Some(before) => places.get(&segment, before)?,
            None => None,
        };
        let offset_before = before.map_or(0, |before| before.relative_next_offset);
        let place = places.get(&segment, ordinal)?;
        Ok(place.is_some_and(|place| place.relative_next_offset == offset_before))
    }

    /// Entries from `low` up to `high` (not included), at most `bytes_max` bytes but at least one.
    pub fn entries(
        &self,
        low: RaftIndex,
        high: RaftIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let mut places = Places::new(self);
        let mut bytes = 0;
        for index in low.0..high.0 {
            let index = RaftIndex(index);
            let (segment, ordinal) = self.segment_of(index);
            let Some(ordinal) = ordinal.checked_sub(1) else {
                break;
            };
            let Some(place) = places.get(&segment, ordinal)? else {
                break;
            };
            let batch = self.read_frame(&segment, &place)?;
            bytes += batch.len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(Entry {
                index,
                term: self.term(index).unwrap_or_default(),
                batch,
            });
        }
        Ok(entries)
    }

    fn read_frame(
        &self,
        segment: &Arc<Segment>,
        place: &EntryPlace,
    ) -> Result<StampedBatch, StorageError> {
        self.shared.touch(segment);
        let corrupt = |reason: String| {
            StorageError::Corrupt(crate::error::Corruption {
                file: segment.path("log"),
                position: u64::from(place.position),
                reason,
            })
        };
        let frame = crate::frames::frame_at(segment, u64::from(place.position))
            .map_err(|error| StorageError::io("read", &segment.path("log"), error))?;
        let batch = StampedBatch::from_bytes(frame).map_err(|error| corrupt(error.to_string()))?;
        if crc32fast::hash(batch.prefix()) != place.prefix_crc {
            return Err(corrupt("the batch header is not what was written".into()));
        }
        batch
            .verify_crc()
            .map_err(|error| corrupt(error.to_string()))?;
        Ok(batch)
    }

    /// The files that must be synced for all appends so far to be durable; `None` if they are.
    pub fn sync_ticket(&mut self) -> Option<SyncTicket> {
        if self.dirty_files.is_empty() && self.dirty_directories.is_empty() {
            return None;
        }
        Some(SyncTicket {
            disk: Arc::clone(&self.disk),
            files: std::mem::take(&mut self.dirty_files),
            directories: std::mem::take(&mut self.dirty_directories),
            name: self.directory.clone(),
            cover: SyncCover {
                point: SyncedPoint {
                    base_offset: self.active.base_offset(),
                    position: self.active.end(),
                },
                truncations: self.truncations,
            },
            mark: None,
        })
    }

    /// A ticket's run has succeeded: what it covers is durable.
    pub fn synced(&mut self, cover: SyncCover) {
        if cover.truncations == self.truncations {
            self.synced = self.synced.max(cover.point);
        }
    }

    /// Notes for a later recovery how far the log is durable; cheap, to be done now and then.
    pub fn write_recovery_point(&mut self) -> Result<(), StorageError> {
        if self.synced == self.recovery_point {
            return Ok(());
        }
        self.replace_recovery_point(false)
    }

    /// Replaces a small file whose loss in a power failure does no harm.
    fn replace_unsynced(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.directory.join(name);
        let temporary = path.with_extension("tmp");
        self.disk
            .create(&temporary)
            .and_then(|file| file.write_at(0, &[io::IoSlice::new(bytes)]))
            .and_then(|()| self.disk.rename(&temporary, &path))
            .map_err(|error| StorageError::io("write", &path, error))
    }

    fn mark_dirty(&mut self, file: Arc<dyn DiskFile>) {
        if !self
            .dirty_files
            .iter()
            .any(|other| Arc::ptr_eq(other, &file))
        {
            self.dirty_files.push(file);
        }
    }

    fn publish_segments(&self, segments: Vec<Arc<Segment>>) {
        self.shared.segments.store(Arc::new(segments));
    }

    fn io_error(&self, action: &'static str, error: io::Error) -> StorageError {
        StorageError::io(action, &self.directory, error)
    }
}
