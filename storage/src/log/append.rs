//! Appending, rolling, truncating, closing.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use streamgauge_protocol::batch::BatchHeader;

use super::checkpoints::RECOVERY_POINT_FILE;
use super::{Entry, Log, SyncedPoint};
use crate::error::StorageError;
use crate::ids::RaftIndex;
use crate::raft_index::{EntryPlace, SegmentSummary};
use crate::segment::{AppendedFrame, NO_TIMESTAMP, Segment};
use crate::segment_index::{OFFSET_ENTRY_BYTES, TIME_ENTRY_BYTES};

const EPOCHS_FILE: &str = "leader-epoch-checkpoint";

/// A relative offset in Kafka's indexes is a positive `int`.
const RELATIVE_OFFSET_MAX: i64 = i32::MAX as i64;

impl Log {
    /// Appends entries to the page cache. They must follow the last one, with offsets stamped.
    ///
    /// On an error none of them is in the log.
    pub fn append(&mut self, entries: &[Entry], now_ms: i64) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Failed);
        }
        let before = self.last_index();
        let mut rest = entries;
        while !rest.is_empty() {
            match self.append_some(rest, now_ms) {
                Ok(count) => rest = &rest[count..],
                Err(error) => {
                    if self.last_index() > before && self.cut_from(before.next()).is_err() {
                        self.failed = true;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Appends as many entries as the active segment takes, in one write, and says how many.
    fn append_some(&mut self, entries: &[Entry], now_ms: i64) -> Result<usize, StorageError> {
        let mut frames = Vec::with_capacity(entries.len());
        let mut slices = Vec::with_capacity(entries.len() * 2);
        let mut position = self.active.end();
        let mut next_offset = self.next_offset();
        for (ordinal, entry) in entries.iter().enumerate() {
            let header = entry.batch.header();
            assert_eq!(
                entry.index.0,
                self.last_index().0 + 1 + ordinal as u64,
                "entries must follow each other"
            );
            assert_eq!(
                header.base_offset, next_offset,
                "offsets must follow each other"
            );
            if self.must_roll(position, entry.batch.len() as u64, &header, now_ms) {
                if !frames.is_empty() {
                    break;
                }
                self.roll(now_ms)?;
                position = 0;
            }
            frames.push(frame_of(position, &header));
            slices.extend(entry.batch.as_slices().map(IoSlice::new));
            position += entry.batch.len() as u64;
            next_offset = header.next_offset();
        }
        if let Err(failure) = self.active.write(&slices) {
            // What is left of it could later be taken for entries.
            self.failed |= !failure.undone;
            let path = self.active.path("log");
            return Err(StorageError::io("append to", &path, failure.error));
        }
        for (entry, frame) in entries.iter().zip(&frames) {
            self.note(entry, frame);
        }
        self.active.publish(
            &frames,
            self.config.index_interval_bytes,
            &mut self.bytes_since_index,
        );
        let file = self
            .active
            .file()
            .map_err(|error| self.io_error("open", error))?;
        self.mark_dirty(file);
        Ok(frames.len())
    }

    fn note(&mut self, entry: &Entry, frame: &AppendedFrame) {
        if !frame.is_internal {
            self.first_timestamp.get_or_insert(frame.max_timestamp);
        }
        let prefix_crc = crc32fast::hash(entry.batch.prefix());
        self.places
            .push(place_of(frame, self.active.base_offset(), prefix_crc));
        self.epochs
            .observe(entry.term, entry.index, entry.batch.header().base_offset);
    }

    /// `LogSegment.shouldRoll`.
    fn must_roll(&self, position: u64, bytes: u64, header: &BatchHeader, now_ms: i64) -> bool {
        // A segment is named by its base offset, so the next one needs another: one that holds only
        // entries without records is not rolled.
        if header.base_offset == self.active.base_offset() {
            return false;
        }
        let waited_ms = match self.first_timestamp {
            Some(first) if first != NO_TIMESTAMP && header.max_timestamp != NO_TIMESTAMP => {
                header.max_timestamp.saturating_sub(first)
            }
            _ => now_ms.saturating_sub(self.active_since_ms),
        };
        let index_full = self.active.with_index(|index| {
            let bytes_max = self.config.segment_index_bytes as usize;
            (index.offset_entries() + 1) * OFFSET_ENTRY_BYTES > bytes_max
                || (index.time_entries() + 2) * TIME_ENTRY_BYTES > bytes_max
        });
        position + bytes > self.config.segment_bytes
            || position + bytes > i32::MAX as u64
            || waited_ms > self.config.segment_ms
            || index_full
            || header.next_offset() - self.active.base_offset() > RELATIVE_OFFSET_MAX
    }

    /// Seals the active segment and begins a new one at the log's end.
    ///
    /// What a sealed segment holds is durable before the next one exists: recovery scans only the
    /// last segment and takes damage in any other for corruption.
    pub(super) fn roll(&mut self, now_ms: i64) -> Result<(), StorageError> {
        let synced = self
            .active
            .file()
            .and_then(|file| file.sync_data())
            // The name of the segment, too. A ticket that covers it may have been handed out and not
            // been run yet, so that nothing here says whether it is durable.
            .and_then(|()| self.disk.sync_dir(&self.directory));
        synced.map_err(|error| {
            self.failed = true;
            StorageError::io("sync", &self.active.path("log"), error)
        })?;
        self.active
            .write_index_files(self.epochs.since(self.active.first_index()), &self.places)
            .map_err(|error| StorageError::io("write", &self.active.path("index"), error))?;
        self.write_epochs()?;
        let base_offset = self.next_offset();
        let first_index = self.last_index().next();
        let created = Segment::create(
            Arc::clone(&self.disk),
            &self.directory,
            base_offset,
            first_index,
            reserve_bytes(self.config.segment_bytes),
        );
        let created = created.map_err(|error| self.io_error("create a segment in", error))?;
        self.begin(Arc::new(created), now_ms);
        Ok(())
    }

    fn begin(&mut self, created: Arc<Segment>, now_ms: i64) {
        self.places = Vec::new();
        self.active.seal();
        self.active = Arc::clone(&created);
        self.first_timestamp = None;
        self.active_since_ms = now_ms;
        self.bytes_since_index = 0;
        let mut segments = self.shared.segments.load().as_ref().clone();
        segments.push(created);
        self.publish_segments(segments);
        self.dirty_directories.push(self.directory.clone());
    }

    fn write_epochs(&self) -> Result<(), StorageError> {
        // Nothing is read back from it.
        self.replace_unsynced(EPOCHS_FILE, self.epochs.encode_offsets().as_bytes())
    }

    /// Removes all entries from `index` on: they were never committed, so no reader has them.
    ///
    /// A file is not made shorter while it may be mapped; what lies behind the new end is zeroed
    /// and synced, so that a later scan cannot take it for entries. If that fails, the log takes no
    /// more writes: what it holds is only known again once it is opened.
    pub fn truncate_from(&mut self, index: RaftIndex) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Failed);
        }
        self.cut_from(index).inspect_err(|_| self.failed = true)
    }

    fn cut_from(&mut self, index: RaftIndex) -> Result<(), StorageError> {
        assert!(
            index > self.start.index,
            "the log's start cannot be cut off"
        );
        while self.active.first_index() > index {
            self.drop_active()?;
        }
        let kept = usize::try_from(index.0 - self.active.first_index().0).unwrap_or(usize::MAX);
        if kept >= self.places.len() {
            return Ok(());
        }
        let end = self.active.end();
        let position = self
            .places
            .get(kept)
            .map_or(end, |place| u64::from(place.position));
        // The file keeps its length, so an index of the old entries would still fit it: neither
        // that nor the old recovery point may come back after a power failure.
        self.active.set_index_files(None);
        self.remove_if_there(&self.active.path("ridx"))?;
        self.lower_synced(position)?;
        self.disk
            .sync_dir(&self.directory)
            .map_err(|error| self.io_error("sync", error))?;
        self.places.truncate(kept);
        self.epochs.truncate_from(index);
        let next_offset = self
            .places
            .last()
            .map_or(self.active.base_offset(), |place| {
                self.active.base_offset() + i64::from(place.relative_next_offset)
            });
        let (max_timestamp, max_timestamp_offset) =
            super::recovery::max_timestamp(&self.active, position)
                .map_err(|error| StorageError::io("read", &self.active.path("log"), error))?;
        self.active.truncate_to(&SegmentSummary {
            log_bytes: position,
            next_offset,
            max_timestamp,
            max_timestamp_offset,
            ..self.active.summary()
        });
        self.active
            .zero_behind(end)
            .and_then(|()| self.reset_first_timestamp())
            .map_err(|error| StorageError::io("truncate", &self.active.path("log"), error))
    }

    /// As after opening. How long the segment has been active counts on from the later roll: only
    /// batches without timestamps go by that, and Kafka's truncation does so too.
    fn reset_first_timestamp(&mut self) -> std::io::Result<()> {
        self.first_timestamp = super::recovery::first_timestamp(&self.active)?;
        Ok(())
    }

    /// What is cut off must not count as known to be durable, before it is cut.
    fn lower_synced(&mut self, position: u64) -> Result<(), StorageError> {
        let end = SyncedPoint {
            base_offset: self.active.base_offset(),
            position,
        };
        self.synced = self.synced.min(end);
        self.truncations += 1;
        if self.recovery_point > end {
            if self.replace_recovery_point(true).is_err() {
                // A full disk may have no room for it, and a truncation frees none. Without a
                // recovery point the next opening is more lenient, which is safe.
                self.remove_if_there(&self.directory.join(RECOVERY_POINT_FILE))?;
                self.recovery_point = SyncedPoint::default();
            }
            self.disk
                .sync_dir(&self.directory)
                .map_err(|error| self.io_error("sync", error))?;
        }
        Ok(())
    }

    /// Takes back the last roll: the active segment goes, the one before becomes active.
    fn drop_active(&mut self) -> Result<(), StorageError> {
        let mut segments = self.shared.segments.load().as_ref().clone();
        let dropped = segments.pop();
        let Some(last) = segments.last().cloned() else {
            return Ok(());
        };
        let places = self.all_places(&last)?;
        // Another segment may get the same name: what was synced of this one says nothing of it.
        self.lower_synced(0)?;
        self.publish_segments(segments);
        if let Some(dropped) = dropped {
            dropped
                .remove_files()
                .map_err(|error| self.io_error("remove a segment of", error))?;
        }
        // If the name came back after a crash, the segment before it would count as sealed, and
        // what is about to be cut off it as damage.
        self.disk.sync_dir(&self.directory).map_err(|error| {
            self.failed = true;
            self.io_error("sync", error)
        })?;
        self.epochs.truncate_from(self.active.first_index());
        // Loads the sparse index before its files are stale.
        last.with_index(|_| ());
        // A sealed segment keeps its places for good; as the active one it gets a new identity.
        let reopened = Arc::new(Segment::with_summary(
            Arc::clone(&self.disk),
            &self.directory,
            &last.summary(),
            reserve_bytes(self.config.segment_bytes),
        ));
        reopened.set_index(last.with_index(Clone::clone));
        reopened.keep_zeros_of(&last);
        reopened.share_aborted(last.aborted());
        self.remove_if_there(&reopened.path("ridx"))?;
        self.places = places;
        self.active = Arc::clone(&reopened);
        let mut segments = self.shared.segments.load().as_ref().clone();
        segments.pop();
        segments.push(reopened);
        self.publish_segments(segments);
        self.bytes_since_index = 0;
        self.reset_first_timestamp()
            .map_err(|error| StorageError::io("read", &last.path("log"), error))
    }

    pub(super) fn remove_if_there(&self, path: &Path) -> Result<(), StorageError> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StorageError::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    /// Syncs everything and writes the index files, so that the next open need not scan.
    pub fn close(&mut self) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Failed);
        }
        if let Some(ticket) = self.sync_ticket() {
            ticket.run().inspect_err(|_| self.failed = true)?;
            self.synced(ticket.cover());
        }
        self.write_recovery_point()?;
        self.write_epochs()?;
        self.active
            .write_index_files(self.epochs.since(self.active.first_index()), &self.places)
            .map_err(|error| StorageError::io("write", &self.active.path("index"), error))
    }
}

pub(super) fn reserve_bytes(segment_bytes: u64) -> u64 {
    segment_bytes.min(i32::MAX as u64)
}

pub(super) fn frame_of(position: u64, header: &BatchHeader) -> AppendedFrame {
    AppendedFrame {
        position: u32::try_from(position).unwrap_or(u32::MAX),
        size: u32::try_from(header.size_in_bytes()).unwrap_or(u32::MAX),
        last_offset: header.last_offset(),
        next_offset: header.next_offset(),
        max_timestamp: header.max_timestamp,
        is_internal: header.is_internal(),
    }
}

pub(super) fn place_of(frame: &AppendedFrame, base_offset: i64, prefix_crc: u32) -> EntryPlace {
    EntryPlace {
        position: frame.position,
        relative_next_offset: u32::try_from(frame.next_offset - base_offset).unwrap_or(u32::MAX),
        prefix_crc,
    }
}
