//! The Raft hard states of all groups of one shard, in one file.
//!
//! A vote or a new term must be durable before it is spoken of. Thousands of groups that each sync
//! a file of their own at a start would take seconds, so all write to one: records are appended,
//! one sync covers them, and when most of the file is superseded it is written anew beside and
//! renamed over.
//!
//! ```text
//! raft-state
//!   record  crc32 u32 | length u32 | topic id 16 bytes | partition i32 | flags u8 |
//!           term u64 | vote u64 | commit u64 | applied conf index u64 | voters: count u32, id u64 …
//! ```
//!
//! Numbers are big-endian; the checksum covers all that follows it. The last record of a group
//! counts; flag 1 says that the group is gone. Reading ends at the first record that is not whole:
//! it was never synced, or an error is reported because whole records follow.

use std::collections::HashMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::error::StorageError;
use crate::log::SyncTicket;
use crate::segment::read_whole;

const FILE_NAME: &str = "raft-state";
const PREFIX_BYTES: usize = 8;
const BODY_BYTES_MIN: usize = 16 + 4 + 1 + 4 * 8 + 4;
const FLAG_REMOVED: u8 = 1;

/// The file is rewritten when it is larger than this and less than a quarter of it counts.
const REWRITE_BYTES_MIN: u64 = 1024 * 1024;

/// Names a group: a partition of a topic, which another topic of the same name does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub topic_id: [u8; 16],
    pub partition: i32,
}

/// What a group must not forget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedState {
    pub term: u64,
    pub vote: u64,
    /// A hint: it is brought inside the log when the group starts.
    pub commit: u64,
    /// The last membership change that `voters` includes.
    pub conf_index: u64,
    /// Empty until a membership change has been applied.
    pub voters: Vec<u64>,
}

/// The hard states of one shard.
pub struct HardStates {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    file: Arc<dyn DiskFile>,
    end: u64,
    /// Bytes of the records that count.
    live_bytes: u64,
    states: HashMap<GroupKey, SavedState>,
    dirty: bool,
    /// The file's name is not durable yet.
    new_name: bool,
}

impl HardStates {
    /// Reads the file of a shard's directory, or makes it.
    pub fn open(disk: Arc<dyn Disk>, directory: &Path) -> Result<Self, StorageError> {
        let path = directory.join(FILE_NAME);
        let failed = |error| StorageError::io("open", &path, error);
        disk.create_dir_all(directory).map_err(failed)?;
        let exists = disk.exists(&path).map_err(failed)?;
        let bytes = if exists {
            read_whole(&*disk, &path).map_err(failed)?
        } else {
            Vec::new()
        };
        let file = if exists {
            disk.open(&path)
        } else {
            disk.create(&path)
        }
        .map_err(failed)?;
        let mut opened = Self {
            disk: Arc::clone(&disk),
            directory: directory.to_owned(),
            file,
            end: 0,
            live_bytes: 0,
            states: HashMap::new(),
            dirty: false,
            new_name: !exists,
        };
        let mut rest = &bytes[..];
        while let Some((key, state, size)) = decode(rest) {
            opened.remember(key, state);
            opened.end += size as u64;
            rest = &rest[size..];
        }
        if !rest.is_empty() {
            tracing::warn!(path = %path.display(), bytes = rest.len(), "cut a torn record off the raft state");
            opened.file.set_len(opened.end).map_err(failed)?;
            opened.dirty = true;
        }
        Ok(opened)
    }

    pub fn get(&self, key: GroupKey) -> Option<&SavedState> {
        self.states.get(&key)
    }

    /// Writes a group's state; durable after the next ticket.
    pub fn put(&mut self, key: GroupKey, state: SavedState) -> Result<(), StorageError> {
        self.write(&encode(key, Some(&state)))?;
        self.remember(key, Some(state));
        self.rewrite_if_stale()
    }

    /// Forgets a group.
    pub fn remove(&mut self, key: GroupKey) -> Result<(), StorageError> {
        if !self.states.contains_key(&key) {
            return Ok(());
        }
        self.write(&encode(key, None))?;
        self.remember(key, None);
        self.rewrite_if_stale()
    }

    /// What must be synced for all that was put to be durable.
    pub fn sync_ticket(&mut self) -> Option<SyncTicket> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let directories = match std::mem::take(&mut self.new_name) {
            true => vec![self.directory.clone()],
            false => Vec::new(),
        };
        Some(SyncTicket::for_files(
            Arc::clone(&self.disk),
            self.directory.join(FILE_NAME),
            vec![Arc::clone(&self.file)],
            directories,
        ))
    }

    fn write(&mut self, record: &[u8]) -> Result<(), StorageError> {
        self.file
            .write_at(self.end, &[IoSlice::new(record)])
            .map_err(|error| StorageError::io("write", &self.directory.join(FILE_NAME), error))?;
        self.end += record.len() as u64;
        self.dirty = true;
        Ok(())
    }

    fn remember(&mut self, key: GroupKey, state: Option<SavedState>) {
        let size = |state: &SavedState| record_bytes(state) as u64;
        let before = match state {
            Some(state) => {
                self.live_bytes += size(&state);
                self.states.insert(key, state)
            }
            None => self.states.remove(&key),
        };
        self.live_bytes -= before.as_ref().map_or(0, size);
    }

    fn rewrite_if_stale(&mut self) -> Result<(), StorageError> {
        if self.end < REWRITE_BYTES_MIN || self.live_bytes * 4 > self.end {
            return Ok(());
        }
        let path = self.directory.join(FILE_NAME);
        let temporary = path.with_extension("tmp");
        let failed = |error| StorageError::io("rewrite", &path, error);
        let bytes: Vec<u8> = self
            .states
            .iter()
            .flat_map(|(key, state)| encode(*key, Some(state)))
            .collect();
        let file = self.disk.create(&temporary).map_err(failed)?;
        file.write_at(0, &[IoSlice::new(&bytes)]).map_err(failed)?;
        // Durable before it takes the place of what is.
        file.sync_data().map_err(failed)?;
        self.disk.rename(&temporary, &path).map_err(failed)?;
        self.file = file;
        self.end = bytes.len() as u64;
        self.live_bytes = self.end;
        self.dirty = true;
        self.new_name = true;
        Ok(())
    }
}

fn record_bytes(state: &SavedState) -> usize {
    PREFIX_BYTES + BODY_BYTES_MIN + state.voters.len() * 8
}

fn encode(key: GroupKey, state: Option<&SavedState>) -> Vec<u8> {
    let gone = SavedState::default();
    let flags = if state.is_none() { FLAG_REMOVED } else { 0 };
    let state = state.unwrap_or(&gone);
    let mut body = Vec::with_capacity(record_bytes(state));
    body.extend_from_slice(&key.topic_id);
    body.extend_from_slice(&key.partition.to_be_bytes());
    body.push(flags);
    for number in [state.term, state.vote, state.commit, state.conf_index] {
        body.extend_from_slice(&number.to_be_bytes());
    }
    body.extend_from_slice(&(state.voters.len() as u32).to_be_bytes());
    for voter in &state.voters {
        body.extend_from_slice(&voter.to_be_bytes());
    }
    let length = (body.len() as u32).to_be_bytes();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(&body);
    let mut record = hasher.finalize().to_be_bytes().to_vec();
    record.extend_from_slice(&length);
    record.extend_from_slice(&body);
    record
}

/// The first record of `bytes` and its size; `None` if there is no whole one.
fn decode(bytes: &[u8]) -> Option<(GroupKey, Option<SavedState>, usize)> {
    let mut rest = bytes;
    let crc = u32::from_be_bytes(take(&mut rest)?);
    let covered = rest;
    let length = u32::from_be_bytes(take(&mut rest)?) as usize;
    let mut body = rest.get(..length)?;
    if length < BODY_BYTES_MIN || crc32fast::hash(covered.get(..4 + length)?) != crc {
        return None;
    }
    let key = GroupKey {
        topic_id: take(&mut body)?,
        partition: i32::from_be_bytes(take(&mut body)?),
    };
    let [flags] = take(&mut body)?;
    let mut number = || Some(u64::from_be_bytes(take(&mut body)?));
    let mut state = SavedState {
        term: number()?,
        vote: number()?,
        commit: number()?,
        conf_index: number()?,
        voters: Vec::new(),
    };
    let _count = u32::from_be_bytes(take(&mut body)?);
    while !body.is_empty() {
        state.voters.push(u64::from_be_bytes(take(&mut body)?));
    }
    let state = (flags & FLAG_REMOVED == 0).then_some(state);
    Some((key, state, PREFIX_BYTES + length))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::sim::{Faults, SimDisk};

    fn key(partition: i32) -> GroupKey {
        GroupKey {
            topic_id: [7; 16],
            partition,
        }
    }

    fn state(term: u64) -> SavedState {
        SavedState {
            term,
            vote: 1,
            voters: vec![1, 2, 3],
            ..SavedState::default()
        }
    }

    fn open(disk: &SimDisk) -> HardStates {
        HardStates::open(Arc::new(disk.clone()), Path::new("/data")).unwrap()
    }

    #[test]
    fn states_are_there_after_reopening_and_removed_ones_are_not() {
        let disk = SimDisk::new();
        let mut states = open(&disk);
        states.put(key(0), state(1)).unwrap();
        states.put(key(1), state(2)).unwrap();
        states.put(key(0), state(3)).unwrap();
        states.remove(key(1)).unwrap();
        let states = open(&disk);
        assert_eq!(states.get(key(0)), Some(&state(3)));
        assert_eq!(states.get(key(1)), None);
    }

    #[test]
    fn a_file_of_superseded_states_is_written_anew() {
        let disk = SimDisk::new();
        let mut states = open(&disk);
        let mut largest = 0;
        for term in 0..40_000 {
            states.put(key((term % 3) as i32), state(term)).unwrap();
            largest = largest.max(states.end);
        }
        assert!(largest <= REWRITE_BYTES_MIN + 200);
        let again = open(&disk);
        assert_eq!(again.states, states.states);
    }

    proptest! {
        #[test]
        fn what_was_synced_survives_a_crash(
            steps in prop::collection::vec((0i32..4, 1u64..100, any::<bool>()), 1..40),
            stop_after in 0u64..60,
            seed in any::<u64>(),
        ) {
            let disk = SimDisk::new();
            let mut states = open(&disk);
            if let Some(ticket) = states.sync_ticket() {
                ticket.run().unwrap();
            }
            disk.set_faults(Faults { stop_after: Some(stop_after), ..Faults::default() });
            let mut written: Vec<Vec<SavedState>> = vec![Vec::new(); 4];
            let mut durable = [0; 4];
            for (partition, term, sync) in steps {
                if states.put(key(partition), state(term)).is_ok() {
                    written[partition as usize].push(state(term));
                }
                if sync && states.sync_ticket().is_some_and(|ticket| ticket.run().is_ok()) {
                    for (durable, written) in durable.iter_mut().zip(&written) {
                        *durable = written.len();
                    }
                }
            }
            let mut random = seed | 1;
            disk.crash(&mut || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            });
            let states = open(&disk);
            for (partition, (durable, written)) in durable.iter().zip(&written).enumerate() {
                let found = states.get(key(partition as i32));
                let allowed = &written[durable.saturating_sub(1)..];
                match found {
                    Some(found) => prop_assert!(allowed.contains(found)),
                    None => prop_assert_eq!(*durable, 0),
                }
            }
        }
    }
}
