//! The only way from the log to files.
//!
//! Two implementations: [`real::RealDisk`] and, for tests and the simulator, [`sim::SimDisk`],
//! which keeps everything in memory, loses what was not synced when it "crashes", fills up and
//! fails on demand. The traits hold what the log needs and nothing more.

pub mod real;
pub mod sim;

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

/// A directory tree.
pub trait Disk: Send + Sync {
    /// Opens a file that exists, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a file, or empties the one that is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The names of a directory's entries, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;

    /// Replaces `to` if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove_file(&self, path: &Path) -> io::Result<()>;

    fn remove_dir_all(&self, directory: &Path) -> io::Result<()>;

    /// Makes the creations, renames and removals in a directory durable.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;

    /// Whether reading may have to wait for a device; then it belongs on a thread that may block.
    fn reads_may_wait(&self) -> bool {
        true
    }
}

/// An open file.
pub trait DiskFile: Send + Sync {
    fn len(&self) -> io::Result<u64>;

    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Fills `buffer` from `position`; fails with `UnexpectedEof` if the file ends before.
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all slices one after another from `position`, or fails with any part of them written.
    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()>;

    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's first `len` bytes as memory, or `None` where that is not to be had. The file may
    /// be shorter: what lies behind its end must not be touched until it has grown that far, and a
    /// file that is mapped must not shrink below what may be touched.
    fn map(&self, len: u64) -> io::Result<Option<Bytes>>;
}
