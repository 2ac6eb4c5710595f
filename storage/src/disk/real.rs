//! Files of the operating system.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

use super::{Disk, DiskFile};

/// The file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(directory)?
            .map(|entry| {
                entry?.file_name().into_string().map_err(|name| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{} is not a name in UTF-8", name.display()),
                    )
                })
            })
            .collect()
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, directory: &Path) -> io::Result<()> {
        fs::remove_dir_all(directory)
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, position)
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let mut position = position;
        let mut slices = slices.to_vec();
        let mut left = &mut slices[..];
        // Skips empty slices, with which a write of nothing would look like a full disk.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let written = match rustix::io::pwritev(&self.0, left, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            position += written as u64;
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn map(&self, len: u64) -> io::Result<Option<Bytes>> {
        let Ok(len) = usize::try_from(len) else {
            return Ok(None);
        };
        // SAFETY: the file is this process's alone (the data directory is locked), is only ever
        // appended to while mapped, and readers touch no byte behind the published end. Bytes below
        // it are never written again.
        let mapping = unsafe { MmapOptions::new().len(len).map(&self.0) };
        match mapping {
            Ok(mapping) => Ok(Some(Bytes::from_owner(Mapping(mapping)))),
            // Out of mappings or address space: reading still works.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOMEM.raw_os_error()) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

struct Mapping(Mmap);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
