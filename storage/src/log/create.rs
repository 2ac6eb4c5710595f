//! Making a new log.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::append::reserve_bytes;
use super::checkpoints::StartCheckpoint;
use super::{Log, LogConfig, LogStart, Shared, SyncedPoint};
use crate::disk::Disk;
use crate::epochs::EpochTable;
use crate::error::StorageError;
use crate::ids::{RaftIndex, Term};
use crate::producer_state::ProducerState;
use crate::segment::{Segment, base_offset_of, file_name, read_whole};

/// Kafka's: the format's version and the topic's id, a line each.
pub(super) const METADATA_FILE: &str = "partition.metadata";

impl Log {
    /// Makes a new log. `topic_id` is Kafka's text form, for `partition.metadata`. All of it is
    /// durable after the first [`super::SyncTicket`], so that many logs can share their syncs.
    pub fn create(
        disk: Arc<dyn Disk>,
        directory: &Path,
        config: LogConfig,
        start: LogStart,
        topic_id: &str,
        now_ms: i64,
    ) -> Result<Self, StorageError> {
        let failed = |error| StorageError::io("create", directory, error);
        disk.create_dir_all(directory).map_err(failed)?;
        let metadata = format!("version: 0\ntopic_id: {topic_id}\n");
        let metadata_file = disk
            .create(&directory.join(METADATA_FILE))
            .map_err(failed)?;
        metadata_file
            .write_at(0, &[io::IoSlice::new(metadata.as_bytes())])
            .map_err(failed)?;
        if start != LogStart::of_new_partition() {
            StartCheckpoint::of(start).write(&*disk, directory)?;
        }
        let active = Segment::create(
            Arc::clone(&disk),
            directory,
            start.offset,
            start.index.next(),
            reserve_bytes(config.segment_bytes),
        )
        .map_err(failed)?;
        let mut directories = vec![directory.to_owned()];
        directories.extend(directory.parent().map(Path::to_owned));
        let active = Arc::new(active);
        let file = active.file().map_err(failed)?;
        Ok(Self {
            disk,
            directory: directory.to_owned(),
            config,
            shared: Arc::new(Shared::new(vec![Arc::clone(&active)], start.offset)),
            active,
            places: Vec::new(),
            first_timestamp: None,
            active_since_ms: now_ms,
            bytes_since_index: 0,
            start,
            producers_offset: -1,
            epochs: EpochTable::default(),
            dirty_files: vec![metadata_file, file],
            dirty_directories: directories,
            failed: false,
            synced: SyncedPoint::default(),
            recovery_point: SyncedPoint::default(),
            truncations: 0,
        })
    }

    /// Replaces the whole log by an empty one that begins elsewhere: this replica is so far behind
    /// that the leader has no entry left that would follow. `producers` is what the leader knows of
    /// the producers, all batches below `producers_offset` applied.
    ///
    /// Durable when this returns; after a crash the log is the old one or the new one.
    pub fn start_anew(
        &mut self,
        start: LogStart,
        log_start_offset: i64,
        producers: &ProducerState,
        now_ms: i64,
    ) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Failed);
        }
        // Of a log that has just been made not even the topic's id may be durable.
        if let Some(ticket) = self.sync_ticket() {
            ticket.run()?;
            self.synced(ticket.cover());
        }
        let mut checkpoint = StartCheckpoint {
            start,
            log_start_offset,
            producers_offset: producers.committed_end_offset(),
            replacing: true,
        };
        // True of the old log, too, if the crash comes now: it is what the group has committed.
        self.write_producer_snapshot(producers, checkpoint.producers_offset)?;
        checkpoint.write(&*self.disk, &self.directory)?;
        // From here on there is no way back to the old log.
        self.failed = true;
        let (disk, directory) = (Arc::clone(&self.disk), self.directory.clone());
        let failed = |error| StorageError::io("replace the log in", &directory, error);
        remove_log(&*disk, &directory, checkpoint.producers_offset).map_err(failed)?;
        let active = Segment::create(
            Arc::clone(&disk),
            &directory,
            start.offset,
            start.index.next(),
            reserve_bytes(self.config.segment_bytes),
        )
        .map_err(failed)?;
        checkpoint.replacing = false;
        checkpoint.write(&*disk, &directory)?;
        let active = Arc::new(active);
        self.active = Arc::clone(&active);
        self.places = Vec::new();
        self.first_timestamp = None;
        self.active_since_ms = now_ms;
        self.bytes_since_index = 0;
        self.start = start;
        self.producers_offset = checkpoint.producers_offset;
        self.epochs = EpochTable::default();
        self.dirty_files = Vec::new();
        self.dirty_directories = Vec::new();
        self.synced = SyncedPoint::default();
        self.recovery_point = SyncedPoint::default();
        self.truncations += 1;
        self.shared
            .log_start_offset
            .store(log_start_offset, Ordering::Release);
        self.publish_segments(vec![active]);
        self.failed = false;
        Ok(())
    }

    /// Removes a log and its directory, durably: a later one of the same topic in its place must not
    /// find its files after a crash.
    pub fn remove(disk: &dyn Disk, directory: &Path) -> Result<(), StorageError> {
        let failed = |error| StorageError::io("remove", directory, error);
        for name in disk.list(directory).map_err(failed)? {
            disk.remove_file(&directory.join(name)).map_err(failed)?;
        }
        disk.sync_dir(directory).map_err(failed)?;
        disk.remove_dir_all(directory).map_err(failed)
    }

    /// The topic id that a partition's directory was made for, in Kafka's text form; `None` if its
    /// creation was not finished.
    pub fn topic_id(disk: &dyn Disk, directory: &Path) -> Option<String> {
        let bytes = read_whole(disk, &directory.join(METADATA_FILE)).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        // Its end may not have reached the disk.
        let text = text.strip_suffix('\n')?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("topic_id: "))?;
        Some(line.trim().to_owned())
    }
}

/// Removes segments, recovery point and all snapshots but one; durable when this returns.
pub(super) fn remove_log(
    disk: &dyn Disk,
    directory: &Path,
    producers_offset: i64,
) -> io::Result<()> {
    let kept = file_name(producers_offset.max(0), "snapshot");
    for name in disk.list(directory)? {
        if name == kept {
            continue;
        }
        let is_of_log = ["log", "index", "timeindex", "ridx", "snapshot", "txnindex"]
            .iter()
            .any(|suffix| base_offset_of(&name, suffix).is_some());
        if is_of_log || name == super::checkpoints::RECOVERY_POINT_FILE {
            disk.remove_file(&directory.join(&name))?;
        }
    }
    disk.sync_dir(directory)
}

impl LogStart {
    /// Where the logs of new partitions begin. The index is not zero, so that an empty replica
    /// which joins later is behind every log's start and is told where to begin.
    pub const fn of_new_partition() -> Self {
        Self {
            index: RaftIndex(5),
            term: Term(0),
            offset: 0,
        }
    }
}
