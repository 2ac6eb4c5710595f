//! Why the log could not do something.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of the storage, saying what failed on what.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The disk or the quota is full; nothing of the write remains.
    #[error("no space left to write {}", path.display())]
    DiskFull { path: PathBuf },
    #[error("{0}")]
    Corrupt(Corruption),
    #[error("the log failed earlier and takes no more writes")]
    Failed,
    #[error("{0}")]
    Raft(String),
    #[error("thread: {0}")]
    Thread(io::Error),
}

/// Bytes that were synced once and are not what was written: not a torn tail, so nothing is cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is corrupt at position {position}: {reason}", file.display())]
pub struct Corruption {
    pub file: PathBuf,
    pub position: u64,
    pub reason: String,
}

impl StorageError {
    /// Names what was done to which file. A full disk gets its own variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path: path.to_owned(),
            },
            _ => Self::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }
}

impl From<io::Error> for StorageError {
    fn from(error: io::Error) -> Self {
        Self::Thread(error)
    }
}
