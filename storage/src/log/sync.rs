//! Making appends durable, apart from the log's owner.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SyncCover;
use crate::disk::{Disk, DiskFile};
use crate::error::StorageError;

/// Files and directories to sync. Running it may take as long as the device takes.
pub struct SyncTicket {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) files: Vec<Arc<dyn DiskFile>>,
    pub(super) directories: Vec<PathBuf>,
    pub(super) name: PathBuf,
    pub(super) cover: SyncCover,
    /// Where a successful run notes how much of a file is durable.
    pub(super) mark: Option<(Arc<AtomicU64>, u64)>,
}

impl SyncTicket {
    /// A ticket for files that do not belong to a partition's log.
    pub fn for_files(
        disk: Arc<dyn Disk>,
        name: PathBuf,
        files: Vec<Arc<dyn DiskFile>>,
        directories: Vec<PathBuf>,
    ) -> Self {
        Self {
            disk,
            files,
            directories,
            name,
            cover: SyncCover::default(),
            mark: None,
        }
    }

    /// Has a successful run raise `durable` to `bytes`.
    pub(crate) fn marking(mut self, durable: Arc<AtomicU64>, bytes: u64) -> Self {
        self.mark = Some((durable, bytes));
        self
    }

    /// What is durable once the ticket has been run.
    pub fn cover(&self) -> SyncCover {
        self.cover
    }

    /// Syncs. After an error nothing is known of what the files hold, and a second try that
    /// succeeds proves nothing.
    pub fn run(&self) -> Result<(), StorageError> {
        let failed = |error| StorageError::io("sync", &self.name, error);
        for file in &self.files {
            file.sync_data().map_err(failed)?;
        }
        for directory in &self.directories {
            self.disk.sync_dir(directory).map_err(failed)?;
        }
        if let Some((durable, bytes)) = &self.mark {
            durable.fetch_max(*bytes, Ordering::AcqRel);
        }
        Ok(())
    }
}
