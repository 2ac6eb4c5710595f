//! The `.lock` file that keeps two brokers off one data directory, as Kafka's `FileLock`. The lock
//! is the operating system's: it goes with the process, however that ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

/// The name of the lock file, as Kafka's, so that the two shut each other out as well.
pub const LOCK_FILE_NAME: &str = ".lock";

/// A data directory that is this process's own while the value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    directory: PathBuf,
    _file: File,
}

#[derive(Debug, Error)]
pub enum LockError {
    #[error(
        "data directory {} is in use by another process; stop that one or choose another directory",
        directory.display()
    )]
    InUse { directory: PathBuf },
    #[error("cannot lock data directory {}: {source}", directory.display())]
    Io {
        directory: PathBuf,
        source: io::Error,
    },
}

impl DirectoryLock {
    /// Takes the directory, which must exist, or says that somebody else has it. Does not wait.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            directory: directory.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(LOCK_FILE_NAME))
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                directory: directory.to_owned(),
                _file: file,
            }),
            Err(Errno::WOULDBLOCK) => Err(LockError::InUse {
                directory: directory.to_owned(),
            }),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_and_free_again_when_the_lock_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::acquire(directory.path()).unwrap();
        let error = DirectoryLock::acquire(directory.path()).unwrap_err();
        assert!(matches!(error, LockError::InUse { .. }));
        assert!(
            error
                .to_string()
                .contains(directory.path().to_str().unwrap())
        );
        drop(lock);
        DirectoryLock::acquire(directory.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = DirectoryLock::acquire(&missing).unwrap_err();
        assert!(error.to_string().contains("missing"));
    }
}
