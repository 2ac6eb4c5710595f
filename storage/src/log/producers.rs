//! Producer state beside the log: snapshots in Kafka's format, and replay of what came after.

use std::io;

use streamgauge_protocol::batch::TransactionMarker;

use super::Log;
use crate::error::{Corruption, StorageError};
use crate::frames::Frames;
use crate::producer_state::{ProducerBatch, ProducerState};
use crate::segment::{base_offset_of, file_name, read_whole, replace_file};

const SUFFIX: &str = "snapshot";

/// Snapshots kept: the newest, and one more in case that one is damaged.
const SNAPSHOTS_KEPT: usize = 2;

/// Which batches are to be replayed.
struct Replay {
    from: i64,
    /// The producers know those before already.
    known_to: i64,
    /// Those from here on are in flight.
    committed_offset: i64,
}

impl Log {
    /// Saves the state at `offset`, up to which all batches have been applied to it.
    pub fn write_producer_snapshot(
        &self,
        state: &ProducerState,
        offset: i64,
    ) -> Result<(), StorageError> {
        // Once the snapshot is there nobody finds out again which transactions before it were aborted.
        self.save_aborted()?;
        let path = self.directory.join(file_name(offset, SUFFIX));
        replace_file(&*self.disk, &path, &state.to_snapshot())
            .map_err(|error| StorageError::io("write", &path, error))?;
        let mut offsets = self.snapshot_offsets()?;
        offsets.truncate(offsets.len().saturating_sub(SNAPSHOTS_KEPT));
        for old in offsets {
            self.remove_if_there(&self.directory.join(file_name(old, SUFFIX)))?;
        }
        Ok(())
    }

    /// The state that the log's batches make: the newest usable snapshot and the batches after it;
    /// those from `committed_offset` on are in flight. Snapshots are of what is committed, so that
    /// one past `committed_offset` knows better. Readers are told of the transactions that are found to
    /// have been aborted.
    pub fn recover_producers(
        &self,
        committed_offset: i64,
        now_ms: i64,
    ) -> Result<ProducerState, StorageError> {
        let end = self.next_offset();
        let mut state = ProducerState::new();
        let mut from = self.start.offset;
        self.remove_snapshots_after(end)?;
        self.forget_lost_aborted()?;
        for offset in self.snapshot_offsets()?.into_iter().rev() {
            if offset < self.start.offset {
                continue;
            }
            let path = self.directory.join(file_name(offset, SUFFIX));
            let snapshot = read_whole(&*self.disk, &path)
                .ok()
                .and_then(|bytes| ProducerState::from_snapshot(&bytes, offset, now_ms).ok());
            match snapshot {
                Some(snapshot) => {
                    (state, from) = (snapshot, offset);
                    break;
                }
                None => tracing::warn!(path = %path.display(), "producer snapshot is not usable"),
            }
        }
        // Only what is committed is deleted: the log start may know of more commits than the caller.
        let log_start_offset = self.log_start_offset();
        let committed_offset = committed_offset.max(from).max(log_start_offset);
        let replay_from = match self.producers_offset > self.start.offset {
            // What the leader knew of the producers tells nothing of the transactions that had ended.
            true => self.start.offset,
            false => from,
        };
        let replay = Replay {
            from: replay_from,
            known_to: from,
            committed_offset,
        };
        self.replay_producers(&mut state, &replay, now_ms)?;
        state.advance_log_start(log_start_offset);
        Ok(state)
    }

    /// The newest usable snapshot of the producers, for a replica that is to begin where this log
    /// does: its offset and its bytes.
    pub fn newest_producer_snapshot(&self) -> Result<Option<(i64, Vec<u8>)>, StorageError> {
        for offset in self.snapshot_offsets()?.into_iter().rev() {
            let path = self.directory.join(file_name(offset, SUFFIX));
            let bytes = read_whole(&*self.disk, &path)
                .map_err(|error| StorageError::io("read", &path, error))?;
            if ProducerState::from_snapshot(&bytes, offset, 0).is_ok() {
                return Ok(Some((offset, bytes)));
            }
        }
        Ok(None)
    }

    /// The offset of the newest snapshot; -1 if there is none.
    pub fn producer_snapshot_offset(&self) -> Result<i64, StorageError> {
        Ok(self.snapshot_offsets()?.last().copied().unwrap_or(-1))
    }

    /// A topic with a looser flush policy may lose its tail with the power. A snapshot of what was
    /// lost must be gone for good before the log grows past it with other records.
    fn remove_snapshots_after(&self, end: i64) -> Result<(), StorageError> {
        let lost: Vec<i64> = self
            .snapshot_offsets()?
            .into_iter()
            .filter(|offset| *offset > end && *offset != self.producers_offset)
            .collect();
        for offset in &lost {
            self.remove_if_there(&self.directory.join(file_name(*offset, SUFFIX)))?;
        }
        if lost.is_empty() {
            return Ok(());
        }
        self.disk
            .sync_dir(&self.directory)
            .map_err(|error| self.io_error("sync", error))
    }

    fn replay_producers(
        &self,
        state: &mut ProducerState,
        replay: &Replay,
        now_ms: i64,
    ) -> Result<(), StorageError> {
        let from = replay.from;
        for segment in self.shared.segments.load().iter() {
            if segment.next_offset() <= from {
                continue;
            }
            self.shared.touch(segment);
            let path = segment.path("log");
            let failed = |error: io::Error| StorageError::io("read", &path, error);
            let relative = u32::try_from(from - segment.base_offset()).unwrap_or(0);
            let position = segment.with_index(|index| index.position_before(relative));
            let corrupt = |position, reason: &str| {
                StorageError::Corrupt(Corruption {
                    file: path.clone(),
                    position,
                    reason: reason.into(),
                })
            };
            let mut frames = Frames::new(segment, u64::from(position), usize::MAX);
            let mut next_offset = None;
            while let Some(frame) = frames.next().map_err(failed)? {
                let (base_offset, end) = (frame.header.base_offset, frame.header.next_offset());
                // A log that was closed cleanly has not been scanned.
                if next_offset.is_some_and(|next| next != base_offset)
                    || base_offset < segment.base_offset()
                    || end > segment.next_offset()
                {
                    return Err(corrupt(frame.position, "a batch's offset does not follow"));
                }
                next_offset = Some(end);
                if frame.header.base_offset < from || !frame.header.has_producer_id() {
                    continue;
                }
                let marker = match frame.header.is_control() {
                    true => TransactionMarker::of_batch(&frame.bytes()),
                    false => None,
                };
                let batch = ProducerBatch::from_header(&frame.header, marker).ok_or_else(|| {
                    corrupt(frame.position, "a control batch without a readable marker")
                })?;
                // Batches commit whole, but the log may start within one.
                let completed = if batch.base_offset < replay.known_to {
                    state.note_past(&batch)
                } else if batch.base_offset < replay.committed_offset {
                    state.apply_committed(&batch, now_ms)
                } else {
                    state.append_in_flight(batch);
                    None
                };
                if let Some(completed) = completed {
                    self.note_completed(&completed)?;
                }
            }
        }
        Ok(())
    }

    fn snapshot_offsets(&self) -> Result<Vec<i64>, StorageError> {
        let names = self
            .disk
            .list(&self.directory)
            .map_err(|error| self.io_error("list", error))?;
        let mut offsets: Vec<i64> = names
            .iter()
            .filter_map(|name| base_offset_of(name, SUFFIX))
            .collect();
        offsets.sort_unstable();
        Ok(offsets)
    }
}
