//! One segment of a log: a file of batches and what is known about it.
//!
//! The owner of the log appends; readers on other threads see bytes only below [`Segment::end`],
//! which is published after them. A segment that has been sealed never changes again.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use streamgauge_protocol::batch::BATCH_HEADER_BYTES;

use crate::aborted::AbortedIndex;
use crate::disk::{Disk, DiskFile};
use crate::epochs::EpochEntry;
use crate::frames::Frames;
use crate::ids::RaftIndex;
use crate::raft_index::{self, BLOCK_ENTRIES, EntryPlace, IndexFiles, SegmentSummary};
use crate::segment_index::{OffsetEntry, SparseIndex, TimeEntry};

/// No batch of the segment has a timestamp.
pub const NO_TIMESTAMP: i64 = -1;

/// Kafka's default, for indexes that must be made again long after the log was written.
const REBUILT_INDEX_INTERVAL_BYTES: usize = 4096;

/// The name of a segment's file: its base offset in 20 digits, and a suffix.
pub fn file_name(base_offset: i64, suffix: &str) -> String {
    format!("{base_offset:020}.{suffix}")
}

/// The base offset in a file's name, if it is that of a segment's file with this suffix.
pub fn base_offset_of(file_name: &str, suffix: &str) -> Option<i64> {
    let (digits, rest) = file_name.split_once('.')?;
    if rest != suffix || digits.len() != 20 {
        return None;
    }
    digits.parse().ok()
}

/// What is known of one appended batch.
#[derive(Debug, Clone, Copy)]
pub struct AppendedFrame {
    pub position: u32,
    pub size: u32,
    /// -1 relative to the base offset for internal frames at the very start; they are not indexed.
    pub last_offset: i64,
    pub next_offset: i64,
    pub max_timestamp: i64,
    pub is_internal: bool,
}

/// A write did not succeed.
#[derive(Debug)]
pub struct WriteFailure {
    pub error: io::Error,
    /// Nothing of it is left in the file.
    pub undone: bool,
}

pub struct Segment {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    base_offset: i64,
    first_index: RaftIndex,
    /// Open while the segment is active; a sealed one is opened when it is first read.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    /// Published bytes.
    end: AtomicU64,
    next_offset: AtomicI64,
    max_timestamp: AtomicI64,
    max_timestamp_offset: AtomicI64,
    index: RwLock<Option<SparseIndex>>,
    mapping: ArcSwapOption<Bytes>,
    /// A truncation has left zeros up to here: the file must not become shorter.
    zeros_end: AtomicU64,
    /// How far to map: the file will not grow beyond.
    reserve_bytes: u64,
    /// It takes no more appends.
    sealed: AtomicBool,
    /// What is known of the index files, if they are there and fit.
    index_files: Mutex<Option<IndexFiles>>,
    /// The places of a sealed segment whose index files could not be written.
    resident_places: OnceLock<Vec<EntryPlace>>,
    /// The aborted transactions that end here.
    aborted: ArcSwap<AbortedIndex>,
}

impl Segment {
    /// An empty segment on a new file.
    pub fn create(
        disk: Arc<dyn Disk>,
        directory: &Path,
        base_offset: i64,
        first_index: RaftIndex,
        reserve_bytes: u64,
    ) -> io::Result<Self> {
        let file = disk.create(&directory.join(file_name(base_offset, "log")))?;
        let summary = SegmentSummary {
            base_offset,
            first_index,
            log_bytes: 0,
            next_offset: base_offset,
            max_timestamp: NO_TIMESTAMP,
            max_timestamp_offset: -1,
        };
        let segment = Self::with_summary(disk, directory, &summary, reserve_bytes);
        segment.keep_file(file);
        segment.set_index(SparseIndex::default());
        Ok(segment)
    }

    /// A segment that is there already; its file and indexes are opened when needed.
    pub fn with_summary(
        disk: Arc<dyn Disk>,
        directory: &Path,
        summary: &SegmentSummary,
        reserve_bytes: u64,
    ) -> Self {
        Self {
            disk,
            directory: directory.to_owned(),
            base_offset: summary.base_offset,
            first_index: summary.first_index,
            file: Mutex::new(None),
            end: AtomicU64::new(summary.log_bytes),
            next_offset: AtomicI64::new(summary.next_offset),
            max_timestamp: AtomicI64::new(summary.max_timestamp),
            max_timestamp_offset: AtomicI64::new(summary.max_timestamp_offset),
            index: RwLock::new(None),
            mapping: ArcSwapOption::empty(),
            zeros_end: AtomicU64::new(0),
            reserve_bytes,
            sealed: AtomicBool::new(false),
            index_files: Mutex::new(None),
            resident_places: OnceLock::new(),
            aborted: ArcSwap::from_pointee(AbortedIndex::empty()),
        }
    }

    pub fn base_offset(&self) -> i64 {
        self.base_offset
    }

    pub fn first_index(&self) -> RaftIndex {
        self.first_index
    }

    pub fn path(&self, suffix: &str) -> PathBuf {
        self.directory.join(file_name(self.base_offset, suffix))
    }

    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub fn next_offset(&self) -> i64 {
        self.next_offset.load(Ordering::Acquire)
    }

    /// The largest timestamp of its batches and the last offset of the batch that has it.
    pub fn max_timestamp(&self) -> (i64, i64) {
        (
            self.max_timestamp.load(Ordering::Acquire),
            self.max_timestamp_offset.load(Ordering::Acquire),
        )
    }

    pub fn summary(&self) -> SegmentSummary {
        let (max_timestamp, max_timestamp_offset) = self.max_timestamp();
        SegmentSummary {
            base_offset: self.base_offset,
            first_index: self.first_index,
            log_bytes: self.end(),
            next_offset: self.next_offset(),
            max_timestamp,
            max_timestamp_offset,
        }
    }

    /// Whether reading may have to wait for a device.
    pub fn reads_may_wait(&self) -> bool {
        self.disk.reads_may_wait()
    }

    /// The segment's file, opened if it is not.
    pub fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*file {
            return Ok(Arc::clone(file));
        }
        let opened = self.disk.open(&self.path("log"))?;
        *file = Some(Arc::clone(&opened));
        Ok(opened)
    }

    pub fn keep_file(&self, opened: Arc<dyn DiskFile>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }

    /// It takes no more appends: lets the file go; a mapping keeps what it maps.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
        self.release_file();
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    fn release_file(&self) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Lets go of what a sealed segment can load again when it is next read. Readers that hold its
    /// bytes keep them.
    pub fn unload(&self) {
        self.mapping.store(None);
        self.release_file();
        self.aborted().unload();
        if self.index_files().is_some() {
            *self.index.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    pub fn index_files(&self) -> Option<IndexFiles> {
        *self
            .index_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_index_files(&self, files: Option<IndexFiles>) {
        *self
            .index_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = files;
    }

    /// As another handle of the same file has it.
    pub fn keep_zeros_of(&self, other: &Self) {
        let zeros_end = other.zeros_end.load(Ordering::Relaxed);
        self.zeros_end.fetch_max(zeros_end, Ordering::Relaxed);
    }

    pub fn aborted(&self) -> Arc<AbortedIndex> {
        self.aborted.load_full()
    }

    /// Takes what another handle of the same segment knows, or what opening found.
    pub fn share_aborted(&self, aborted: Arc<AbortedIndex>) {
        self.aborted.store(aborted);
    }

    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub fn set_index(&self, index: SparseIndex) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }

    /// Writes slices at the end. Nothing is published; see [`Self::publish`].
    pub fn write(&self, slices: &[IoSlice<'_>]) -> Result<(), WriteFailure> {
        let nothing_written = |error| WriteFailure {
            error,
            undone: true,
        };
        let file = self.file().map_err(nothing_written)?;
        let end = self.end();
        file.write_at(end, slices).map_err(|error| {
            // Part of it may be there, and must not come back after a power failure when other
            // entries have been promised in its place.
            let zeros_end = self.zeros_end.load(Ordering::Relaxed).max(end);
            let undone = file
                .set_len(zeros_end)
                .and_then(|()| self.zero_behind(zeros_end));
            WriteFailure {
                error,
                undone: undone.is_ok(),
            }
        })
    }

    /// Writes zeros from the end up to a position and syncs.
    pub fn zero_behind(&self, to: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let file = self.file()?;
        let to = self.zeros_end.fetch_max(to, Ordering::Relaxed).max(to);
        let mut position = self.end();
        while position < to {
            let count =
                usize::try_from(to - position).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            file.write_at(position, &[IoSlice::new(&ZEROS[..count])])?;
            position += count as u64;
        }
        file.sync_data()
    }

    /// Shows frames that have been written at the end, in order.
    pub fn publish(
        &self,
        frames: &[AppendedFrame],
        index_interval_bytes: u32,
        bytes_since_index: &mut u32,
    ) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let index = index.get_or_insert_default();
        let mut end = self.end();
        let mut next_offset = self.next_offset();
        for frame in frames {
            end = u64::from(frame.position) + u64::from(frame.size);
            next_offset = frame.next_offset;
            if frame.is_internal {
                continue;
            }
            if *bytes_since_index > index_interval_bytes {
                index.push_offset(OffsetEntry {
                    relative_offset: self.relative(frame.last_offset),
                    position: frame.position,
                });
                self.push_time(index);
                *bytes_since_index = 0;
            }
            *bytes_since_index = bytes_since_index.saturating_add(frame.size);
            if frame.max_timestamp > self.max_timestamp.load(Ordering::Relaxed) {
                self.max_timestamp_offset
                    .store(frame.last_offset, Ordering::Release);
                self.max_timestamp
                    .store(frame.max_timestamp, Ordering::Release);
            }
        }
        self.end.store(end, Ordering::Release);
        self.next_offset.store(next_offset, Ordering::Release);
    }

    fn push_time(&self, index: &mut SparseIndex) {
        self.push_time_of(index, self.max_timestamp());
    }

    fn push_time_of(&self, index: &mut SparseIndex, (timestamp, offset): (i64, i64)) {
        if timestamp != NO_TIMESTAMP {
            index.push_time(TimeEntry {
                timestamp,
                relative_offset: self.relative(offset),
            });
        }
    }

    fn relative(&self, offset: i64) -> u32 {
        u32::try_from(offset - self.base_offset).unwrap_or(u32::MAX)
    }

    /// Takes the end back to `summary` and forgets index entries beyond it. The caller has made
    /// sure that no reader uses what lies behind.
    pub fn truncate_to(&self, summary: &SegmentSummary) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = &mut *index {
            let position = u32::try_from(summary.log_bytes).unwrap_or(u32::MAX);
            index.truncate(self.relative(summary.next_offset), position);
        }
        self.end.store(summary.log_bytes, Ordering::Release);
        self.next_offset
            .store(summary.next_offset, Ordering::Release);
        self.max_timestamp
            .store(summary.max_timestamp, Ordering::Release);
        self.max_timestamp_offset
            .store(summary.max_timestamp_offset, Ordering::Release);
    }

    /// Writes the index files of a segment that takes no more appends.
    pub fn write_index_files(
        &self,
        epochs: &[EpochEntry],
        places: &[EntryPlace],
    ) -> io::Result<()> {
        let (offsets, times) = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            let index = index.get_or_insert_default();
            // As Kafka does at a roll: the last entry covers the whole segment.
            self.push_time(index);
            (index.encode_offsets(), index.encode_times())
        };
        self.write_file("index", &offsets)?;
        self.write_file("timeindex", &times)?;
        let (ridx, files) = raft_index::encode(&self.summary(), epochs, places, &offsets, &times);
        self.write_file("ridx", &ridx)?;
        self.set_index_files(Some(files));
        Ok(())
    }

    fn write_file(&self, suffix: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.disk.create(&self.path(suffix))?;
        file.write_at(0, &[IoSlice::new(bytes)])
    }

    #[cfg(test)]
    pub fn is_loaded(&self) -> bool {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.is_some() || self.mapping.load().is_some()
    }

    #[cfg(test)]
    pub fn has_open_file(&self) -> bool {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.is_some()
    }

    /// How many entries a sealed segment holds.
    pub fn entry_count(&self) -> usize {
        match self.resident_places.get() {
            Some(places) => places.len(),
            None => self.index_files().map_or(0, |files| files.entries),
        }
    }

    /// A block of the places of a sealed segment: those from the given ordinal's block on, and the
    /// ordinal of the first. `None` if they must be made again from the log.
    pub fn places_around(&self, ordinal: usize) -> io::Result<Option<(usize, Vec<EntryPlace>)>> {
        let first = ordinal - ordinal % BLOCK_ENTRIES;
        if let Some(places) = self.resident_places.get() {
            let to = places.len().min(first + BLOCK_ENTRIES);
            let block = places.get(first..to).unwrap_or_default();
            return Ok(Some((first, block.to_vec())));
        }
        let Some(files) = self.index_files() else {
            return Ok(None);
        };
        let file = match self.disk.open(&self.path("ridx")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let block = raft_index::read_block(&*file, &files, ordinal)?;
        Ok(block.map(|block| (first, block)))
    }

    pub fn set_resident_places(&self, places: Vec<EntryPlace>) {
        drop(self.resident_places.set(places));
    }

    /// Runs `look` on the sparse index, which is read from its files if it is not in memory, and
    /// made again from the log if those are not what was written.
    pub fn with_index<T>(&self, look: impl FnOnce(&SparseIndex) -> T) -> T {
        {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(index) = &*index {
                return look(index);
            }
        }
        let loaded = self.load_index().unwrap_or_else(|| {
            tracing::warn!(log = %self.path("log").display(), "made lost or damaged indexes again");
            self.rebuild_index()
        });
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        look(index.get_or_insert(loaded))
    }

    fn load_index(&self) -> Option<SparseIndex> {
        let files = self.index_files()?;
        let offsets = read_whole(&*self.disk, &self.path("index")).ok()?;
        let times = read_whole(&*self.disk, &self.path("timeindex")).ok()?;
        let as_written = crc32fast::hash(&offsets) == files.offset_index_crc
            && crc32fast::hash(&times) == files.time_index_crc;
        if !as_written {
            return None;
        }
        SparseIndex::decode(&offsets, &times, self.end())
    }

    /// Damage to the log ends the index early; whoever reads there finds it.
    fn rebuild_index(&self) -> SparseIndex {
        let mut index = SparseIndex::default();
        let mut bytes_since_index = 0;
        let mut largest = (NO_TIMESTAMP, -1);
        let mut frames = Frames::new(self, 0, BATCH_HEADER_BYTES);
        while let Ok(Some(frame)) = frames.next() {
            let header = frame.header;
            if header.is_internal() {
                continue;
            }
            if bytes_since_index > REBUILT_INDEX_INTERVAL_BYTES {
                index.push_offset(OffsetEntry {
                    relative_offset: self.relative(header.last_offset()),
                    position: u32::try_from(frame.position).unwrap_or(u32::MAX),
                });
                self.push_time_of(&mut index, largest);
                bytes_since_index = 0;
            }
            bytes_since_index += frame.size();
            if header.max_timestamp > largest.0 {
                largest = (header.max_timestamp, header.last_offset());
            }
        }
        self.push_time_of(&mut index, largest);
        index
    }

    /// Bytes of the file from `position`: all that is published if the file is mapped, and at most
    /// `bytes_max` where it must be read.
    pub fn bytes(&self, position: u64, bytes_max: usize) -> io::Result<Bytes> {
        let end = self.end();
        if position >= end {
            return Ok(Bytes::new());
        }
        if let Some(mapping) = self.mapping(end)?
            && let (Ok(from), Ok(to)) = (usize::try_from(position), usize::try_from(end))
        {
            return Ok(mapping.slice(from..to));
        }
        let available = usize::try_from(end - position).unwrap_or(usize::MAX);
        let mut buffer = vec![0; available.min(bytes_max)];
        self.file()?.read_at(position, &mut buffer)?;
        Ok(buffer.into())
    }

    fn mapping(&self, end: u64) -> io::Result<Option<Arc<Bytes>>> {
        if let Some(mapping) = self.mapping.load_full()
            && mapping.len() as u64 >= end
        {
            return Ok(Some(mapping));
        }
        let mapped = self.file()?.map(self.reserve_bytes.max(end))?;
        Ok(mapped.map(|bytes| {
            let bytes = Arc::new(bytes);
            self.mapping.store(Some(Arc::clone(&bytes)));
            if self.is_sealed() {
                self.release_file();
            }
            bytes
        }))
    }

    /// Removes the segment's files. Readers that hold its bytes keep them.
    pub fn remove_files(&self) -> io::Result<()> {
        // The log last: opening finds what is left by it.
        for suffix in ["index", "timeindex", "ridx", "snapshot", "txnindex", "log"] {
            match self.disk.remove_file(&self.path(suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads a small file.
pub fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Replaces a small file as a whole: written beside it and renamed over it. Durable only after the
/// directory is synced; a crash before leaves the old file or the new one.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = disk.create(&temporary)?;
    file.write_at(0, &[IoSlice::new(bytes)])?;
    file.sync_data()?;
    disk.rename(&temporary, path)
}
