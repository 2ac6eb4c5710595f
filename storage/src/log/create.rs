//! Making a new log.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::append::reserve_bytes;
use super::checkpoints::write_start;
use super::{Log, LogConfig, LogStart, Shared, SyncedPoint};
use crate::disk::Disk;
use crate::epochs::EpochTable;
use crate::error::StorageError;
use crate::ids::{RaftIndex, Term};
use crate::segment::{Segment, read_whole};

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
            write_start(&*disk, directory, start, start.offset)?;
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
            epochs: EpochTable::default(),
            dirty_files: vec![metadata_file, file],
            dirty_directories: directories,
            failed: false,
            synced: SyncedPoint::default(),
            recovery_point: SyncedPoint::default(),
        })
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
