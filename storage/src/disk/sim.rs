//! A disk in memory that can lose, tear, refuse and fail, for tests and the simulator.
//!
//! Writes and directory changes are visible at once, as through a page cache, and durable only
//! after a sync. [`SimDisk::crash`] keeps what is durable and, of what is not, a random part:
//! sectors of 512 bytes of the file's last state or the one before, and names or none.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Disk, DiskFile};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// What the disk shall do wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes fail, after a part of them is written, once all files together would exceed this.
    pub capacity_bytes: Option<u64>,
    pub fail_writes: bool,
    pub fail_syncs: bool,
    /// Changing a file's length fails.
    pub fail_set_len: bool,
    pub fail_reads: bool,
    /// The disk "loses power" at this many writes, syncs and directory changes from now: that one
    /// and all later ones fail, until [`SimDisk::crash`].
    pub stop_after: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    operations: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
}

/// Cheap to clone; all clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// What all files hold.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Writes, syncs and directory changes so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Flips one bit of a file, on the platter and in the cache.
    pub fn flip_bit(&self, path: &Path, bit: usize) {
        let mut state = self.lock();
        if let Some(inode) = state.names.get(path).copied() {
            let Inode { current, durable } = &mut state.inodes[inode];
            for bytes in [current, durable] {
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
    }

    /// A sector was written to another place, maybe of another file, on the platter and in the cache: its own holds zeros, as if it
    /// had never been written, and the other's content is lost.
    pub fn misdirect(&self, from: (&Path, usize), to: (&Path, usize)) {
        let mut state = self.lock();
        let inode = |path| state.names.get(path).copied();
        let (Some(from_inode), Some(to_inode)) = (inode(from.0), inode(to.0)) else {
            return;
        };
        let (from, to) = (from.1 * SECTOR_BYTES, to.1 * SECTOR_BYTES);
        for of in [
            |inode: &mut Inode| &mut inode.current,
            |inode: &mut Inode| &mut inode.durable,
        ] as [fn(&mut Inode) -> &mut Vec<u8>; 2]
        {
            let own = of(&mut state.inodes[from_inode]);
            let Some(own) = own.get_mut(from..from + SECTOR_BYTES) else {
                return;
            };
            let sector = own.to_vec();
            own.fill(0);
            let other = of(&mut state.inodes[to_inode]);
            if let Some(other) = other.get_mut(to..to + SECTOR_BYTES) {
                other.copy_from_slice(&sector);
            }
        }
    }

    /// Loses power: what was not synced survives in part, as `random` (any source of numbers)
    /// says. Faults are gone afterwards.
    pub fn crash(&self, random: &mut dyn FnMut() -> u64) {
        let mut state = self.lock();
        for inode in &mut state.inodes {
            let survived = torn(&inode.durable, &inode.current, random);
            inode.current = survived.clone();
            inode.durable = survived;
        }
        let mut names = state.durable_names.clone();
        for (path, inode) in &state.names {
            // A name that was not synced may have reached the disk all the same.
            if !names.contains_key(path) && random().is_multiple_of(2) {
                names.insert(path.clone(), *inode);
            }
        }
        for path in state.durable_names.keys() {
            if !state.names.contains_key(path) && random().is_multiple_of(2) {
                names.remove(path);
            }
        }
        // A rename is one change: whichever of the two names an inode had last wins if both did.
        state.names = names.clone();
        state.durable_names = names;
        state.faults = Faults::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file whose sectors are each in the old or the new state.
fn torn(durable: &[u8], current: &[u8], random: &mut dyn FnMut() -> u64) -> Vec<u8> {
    if durable == current {
        return current.to_vec();
    }
    let longer = durable.len().max(current.len());
    let shorter = durable.len().min(current.len());
    // The length, too, may be anything between the two.
    let len = shorter + (random() as usize) % (longer - shorter + 1);
    let mut survived = vec![0; len];
    for (number, sector) in survived.chunks_mut(SECTOR_BYTES).enumerate() {
        let source = if random().is_multiple_of(2) {
            durable
        } else {
            current
        };
        let from = number * SECTOR_BYTES;
        let count = source.len().saturating_sub(from).min(sector.len());
        if count > 0 {
            sector[..count].copy_from_slice(&source[from..from + count]);
        }
    }
    survived
}

fn refused(what: &str) -> io::Error {
    io::Error::other(format!("simulated failure: {what}"))
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} is not there", path.display()),
    )
}

impl State {
    /// Counts a change and fails it if the disk has lost power.
    fn change(&mut self) -> io::Result<()> {
        self.operations += 1;
        match &mut self.faults.stop_after {
            Some(0) => Err(refused("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .filter_map(|inode| self.inodes.get(*inode))
            .map(|inode| inode.current.len() as u64)
            .sum()
    }
}

impl Disk for SimDisk {
    fn reads_may_wait(&self) -> bool {
        false
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.lock();
        let inode = *state.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(Arc::new(SimFile {
            state: Arc::clone(&self.state),
            inode,
        }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.change()?;
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.names.insert(path.to_owned(), inode);
                inode
            }
        };
        state.inodes[inode].current.clear();
        Ok(Arc::new(SimFile {
            state: Arc::clone(&self.state),
            inode,
        }))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.lock();
        Ok(state.names.keys().any(|name| name.starts_with(path)))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let names = state
            .names
            .keys()
            .filter(|path| path.parent() == Some(directory))
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        Ok(names.collect())
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        let inode = state.names.remove(from).ok_or_else(|| not_found(from))?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        state
            .names
            .remove(path)
            .map(|_| ())
            .ok_or_else(|| not_found(path))
    }

    fn remove_dir_all(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        state.names.retain(|path, _| !path.starts_with(directory));
        Ok(())
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        if state.faults.fail_syncs {
            return Err(refused("sync"));
        }
        let inside = |path: &PathBuf| path.parent() == Some(directory);
        state.durable_names.retain(|path, _| !inside(path));
        let now: Vec<_> = state
            .names
            .iter()
            .filter(|(path, _)| inside(path))
            .map(|(path, inode)| (path.clone(), *inode))
            .collect();
        state.durable_names.extend(now);
        Ok(())
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    inode: usize,
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().inodes[self.inode].current.len() as u64)
    }

    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        if state.faults.fail_reads {
            return Err(refused("read"));
        }
        let from = usize::try_from(position).map_err(io::Error::other)?;
        let bytes = state.inodes[self.inode]
            .current
            .get(from..)
            .and_then(|rest| rest.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.lock();
        let powered = state.change();
        let bytes: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        let from = usize::try_from(position).map_err(io::Error::other)?;
        let grown = (from + bytes.len()).saturating_sub(state.inodes[self.inode].current.len());
        // Writing over what is there takes no space.
        let full = grown > 0
            && state
                .faults
                .capacity_bytes
                .is_some_and(|capacity| state.used_bytes() + grown as u64 > capacity);
        let failed = powered.is_err() || full || state.faults.fail_writes;
        // A write that fails may have written a part.
        let count = if failed { bytes.len() / 2 } else { bytes.len() };
        let current = &mut state.inodes[self.inode].current;
        if current.len() < from + count {
            current.resize(from + count, 0);
        }
        current[from..from + count].copy_from_slice(&bytes[..count]);
        powered?;
        if full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if failed {
            return Err(refused("write"));
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        if state.faults.fail_set_len {
            return Err(refused("set_len"));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        state.inodes[self.inode].current.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        if state.faults.fail_syncs {
            return Err(refused("sync"));
        }
        let inode = &mut state.inodes[self.inode];
        inode.durable.clone_from(&inode.current);
        Ok(())
    }

    fn map(&self, _: u64) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}
