//! The Raft hard states of all groups of one shard, in one file.
//!
//! A vote or a new term must be durable before it is spoken of. Thousands of groups that each sync
//! a file of their own at a start would take seconds, so all write to one: records are appended,
//! one sync covers them, and when most of the file is superseded it is written anew beside and
//! renamed over.
//!
//! ```text
//! raft-state
//!   record  crc32 u32 | length u32 | durable bytes u64 | topic id 16 bytes | partition i32 | flags u8 |
//!           term u64 | vote u64 | commit u64 | applied conf index u64 | auto leave u8 |
//!           voters, learners, outgoing voters, next learners: count u32 each, then their ids u64 … |
//!           epoch of the last assignment reached, of the one to join after: u64 each, absent if both are 0
//! ```
//!
//! Numbers are big-endian; the checksum covers all that follows it. The last record of a group
//! counts; flag 1 says that the group is gone, flag 2 that the record is of no group.
//!
//! Every record tells how much of the file was known to be durable when it was written; after a
//! sync and at each opening a record of no group is written that says so. At a record that is not
//! whole, reading looks for whole ones behind it: if one of them says that the place was durable,
//! this is damage and an error. Otherwise it is the tail of what was never synced, of which a crash
//! leaves any part, and is cut off. (What cannot be told apart: damage to what the very last sync
//! made durable, if the record that says so did not reach the disk either.)

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, DiskFile};
use crate::error::{Corruption, StorageError};
use crate::log::SyncTicket;
use crate::segment::read_whole;

const FILE_NAME: &str = "raft-state";
const PREFIX_BYTES: usize = 8;
const COUNTS_BYTES: usize = 4 * 4;
const BODY_BYTES_MIN: usize = 8 + 16 + 4 + 1 + 4 * 8 + 1 + COUNTS_BYTES;
const FLAG_REMOVED: u8 = 1;
const FLAG_NO_GROUP: u8 = 2;

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
    /// Empty until it is saved for the first time.
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// Voters of the old membership while it changes to a new one (joint consensus).
    pub voters_outgoing: Vec<u64>,
    pub learners_next: Vec<u64>,
    pub auto_leave: bool,
    /// The epoch of the last assignment that the group has reached.
    pub settled: u64,
    /// The epoch of an assignment that did without this replica. Until the group is known to have
    /// reached it, memberships that the log tells of are older than the replica.
    pub joins_after: u64,
}

impl SavedState {
    fn lists(&self) -> [&Vec<u64>; 4] {
        [
            &self.voters,
            &self.learners,
            &self.voters_outgoing,
            &self.learners_next,
        ]
    }
}

/// The hard states of one shard.
pub struct HardStates {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    file: Arc<dyn DiskFile>,
    end: u64,
    /// The end of the last record that has to be durable.
    written: u64,
    /// Bytes of the records that count.
    live_bytes: u64,
    states: HashMap<GroupKey, SavedState>,
    /// How much of the file is durable; raised by the tickets that sync it.
    durable: Arc<AtomicU64>,
    /// What the file says of that.
    durable_noted: u64,
    /// A rewrite that found no room is tried again when the file is this large.
    rewrite_bytes_min: u64,
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
            written: 0,
            live_bytes: 0,
            states: HashMap::new(),
            durable: Arc::default(),
            durable_noted: 0,
            rewrite_bytes_min: REWRITE_BYTES_MIN,
            dirty: false,
            new_name: !exists,
        };
        let mut rest = &bytes[..];
        while let Some(record) = decode(rest) {
            rest = &rest[record.size..];
            opened.end += record.size as u64;
            opened.durable_noted = opened.durable_noted.max(record.durable);
            if let Some(key) = record.key {
                opened.remember(key, record.state);
            }
        }
        if !rest.is_empty() {
            if let Some(durable) = durable_behind(rest, opened.end) {
                return Err(StorageError::Corrupt(Corruption {
                    file: path,
                    position: opened.end,
                    reason: format!("bytes up to position {durable} were synced"),
                }));
            }
            tracing::warn!(path = %path.display(), bytes = rest.len(), "cut a torn record off the raft state");
            opened.file.set_len(opened.end).map_err(failed)?;
        }
        if opened.end > opened.durable_noted {
            // After a crash of the process alone this may be in the page cache only.
            opened.file.sync_data().map_err(failed)?;
            opened.durable = Arc::new(AtomicU64::new(opened.end));
            opened.note_durable();
        }
        Ok(opened)
    }

    pub fn get(&self, key: GroupKey) -> Option<&SavedState> {
        self.states.get(&key)
    }

    /// Writes a group's state; durable after the next ticket.
    pub fn put(&mut self, key: GroupKey, state: SavedState) -> Result<(), StorageError> {
        self.write(&encode(self.durable_bytes(), Some(key), Some(&state)))?;
        self.remember(key, Some(state));
        self.rewrite_if_stale();
        Ok(())
    }

    /// Forgets a group.
    pub fn remove(&mut self, key: GroupKey) -> Result<(), StorageError> {
        if !self.states.contains_key(&key) {
            return Ok(());
        }
        self.write(&encode(self.durable_bytes(), Some(key), None))?;
        self.remember(key, None);
        self.rewrite_if_stale();
        Ok(())
    }

    /// What must be synced for all that was put to be durable.
    pub fn sync_ticket(&mut self) -> Option<SyncTicket> {
        if !std::mem::take(&mut self.dirty) {
            self.note_durable();
            return None;
        }
        let directories = match std::mem::take(&mut self.new_name) {
            true => vec![self.directory.clone()],
            false => Vec::new(),
        };
        let ticket = SyncTicket::for_files(
            Arc::clone(&self.disk),
            self.directory.join(FILE_NAME),
            vec![Arc::clone(&self.file)],
            directories,
        );
        Some(ticket.marking(Arc::clone(&self.durable), self.end))
    }

    /// Whether all that was put is durable.
    pub fn is_durable(&self) -> bool {
        !self.dirty && self.durable_bytes() >= self.written
    }

    fn durable_bytes(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Writes into the file how much of it is durable. Needs no sync and may fail: without it less
    /// damage is told from a torn tail.
    fn note_durable(&mut self) {
        let durable = self.durable_bytes();
        if durable <= self.durable_noted {
            return;
        }
        let record = encode(durable, None, None);
        if self
            .file
            .write_at(self.end, &[IoSlice::new(&record)])
            .is_ok()
        {
            self.end += record.len() as u64;
            self.durable_noted = durable;
        }
    }

    fn write(&mut self, record: &[u8]) -> Result<(), StorageError> {
        self.file
            .write_at(self.end, &[IoSlice::new(record)])
            .map_err(|error| StorageError::io("write", &self.directory.join(FILE_NAME), error))?;
        self.end += record.len() as u64;
        self.written = self.end;
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

    /// Until it succeeds, the old file goes on to count.
    fn rewrite_if_stale(&mut self) {
        if self.end < self.rewrite_bytes_min || self.live_bytes * 4 > self.end {
            return;
        }
        match self.rewrite() {
            Ok(()) => self.rewrite_bytes_min = REWRITE_BYTES_MIN,
            Err(error) => {
                let path = self.directory.join(FILE_NAME);
                tracing::warn!(path = %path.display(), %error, "cannot write the raft state anew");
                self.rewrite_bytes_min = self.end * 2;
            }
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let path = self.directory.join(FILE_NAME);
        let temporary = path.with_extension("tmp");
        let mut bytes: Vec<u8> = self
            .states
            .iter()
            .flat_map(|(key, state)| encode(0, Some(*key), Some(state)))
            .collect();
        let live_bytes = bytes.len() as u64;
        // True before anybody can read it: the file is synced before it gets its name.
        bytes.extend(encode(live_bytes, None, None));
        let file = self.disk.create(&temporary)?;
        file.write_at(0, &[IoSlice::new(&bytes)])?;
        file.sync_data()?;
        self.disk.rename(&temporary, &path)?;
        self.file = file;
        self.end = bytes.len() as u64;
        self.written = self.end;
        self.live_bytes = live_bytes;
        // Tickets for the old file are still under way.
        self.durable = Arc::new(AtomicU64::new(live_bytes));
        self.durable_noted = live_bytes;
        self.dirty = true;
        self.new_name = true;
        Ok(())
    }
}

/// How much of the file is durable, as a whole record behind damage at `position` says, if that
/// includes the damage. The bodies hold nothing but numbers of ours, so none can pass for a record.
fn durable_behind(damaged: &[u8], position: u64) -> Option<u64> {
    (1..damaged.len())
        .filter_map(|at| decode(&damaged[at..]))
        .map(|record| record.durable)
        .find(|durable| *durable > position)
}

fn has_epochs(state: &SavedState) -> bool {
    (state.settled, state.joins_after) != (0, 0)
}

fn record_bytes(state: &SavedState) -> usize {
    let members: usize = state.lists().iter().map(|list| list.len()).sum();
    let numbers = members + if has_epochs(state) { 2 } else { 0 };
    PREFIX_BYTES + BODY_BYTES_MIN + numbers * 8
}

/// A record of a group, or of none.
fn encode(durable: u64, key: Option<GroupKey>, state: Option<&SavedState>) -> Vec<u8> {
    let flags = match (key, state) {
        (None, _) => FLAG_NO_GROUP,
        (Some(_), None) => FLAG_REMOVED,
        (Some(_), Some(_)) => 0,
    };
    let nothing = SavedState::default();
    let state = state.unwrap_or(&nothing);
    let key = key.unwrap_or(GroupKey {
        topic_id: [0; 16],
        partition: 0,
    });
    let mut body = Vec::with_capacity(record_bytes(state));
    body.extend_from_slice(&durable.to_be_bytes());
    body.extend_from_slice(&key.topic_id);
    body.extend_from_slice(&key.partition.to_be_bytes());
    body.push(flags);
    for number in [state.term, state.vote, state.commit, state.conf_index] {
        body.extend_from_slice(&number.to_be_bytes());
    }
    body.push(u8::from(state.auto_leave));
    for list in state.lists() {
        body.extend_from_slice(&(list.len() as u32).to_be_bytes());
    }
    for id in state.lists().into_iter().flatten() {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if has_epochs(state) {
        body.extend_from_slice(&state.settled.to_be_bytes());
        body.extend_from_slice(&state.joins_after.to_be_bytes());
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

/// A record as it was read.
struct Record {
    durable: u64,
    key: Option<GroupKey>,
    state: Option<SavedState>,
    size: usize,
}

/// The first record of `bytes`; `None` if there is no whole one.
fn decode(bytes: &[u8]) -> Option<Record> {
    let mut rest = bytes;
    let crc = u32::from_be_bytes(take(&mut rest)?);
    let covered = rest;
    let length = u32::from_be_bytes(take(&mut rest)?) as usize;
    // Before the checksum, which would be dear at every place of a long file.
    if length < BODY_BYTES_MIN || !(length - BODY_BYTES_MIN).is_multiple_of(8) {
        return None;
    }
    let mut body = rest.get(..length)?;
    let numbers = (length - BODY_BYTES_MIN) / 8;
    let mut counts = body.get(BODY_BYTES_MIN - COUNTS_BYTES..BODY_BYTES_MIN)?;
    let mut count = || Some(u32::from_be_bytes(take(&mut counts)?) as usize);
    let counts = [count()?, count()?, count()?, count()?];
    let sum = counts
        .iter()
        .fold(0usize, |sum, count| sum.saturating_add(*count));
    if !(sum == numbers || sum.checked_add(2) == Some(numbers))
        || crc32fast::hash(covered.get(..4 + length)?) != crc
    {
        return None;
    }
    let durable = u64::from_be_bytes(take(&mut body)?);
    let key = GroupKey {
        topic_id: take(&mut body)?,
        partition: i32::from_be_bytes(take(&mut body)?),
    };
    let [flags] = take(&mut body)?;
    let mut number = || Some(u64::from_be_bytes(take(&mut body)?));
    let (term, vote, commit, conf_index) = (number()?, number()?, number()?, number()?);
    let [auto_leave] = take(&mut body)?;
    let mut ids = body
        .get(COUNTS_BYTES..)?
        .chunks_exact(8)
        .filter_map(|id| Some(u64::from_be_bytes(id.try_into().ok()?)));
    let [voters, learners, voters_outgoing, learners_next] =
        counts.map(|count| ids.by_ref().take(count).collect());
    let settled = ids.next().unwrap_or(0);
    let joins_after = ids.next().unwrap_or(0);
    let state = SavedState {
        settled,
        joins_after,
        term,
        vote,
        commit,
        conf_index,
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave: auto_leave != 0,
    };
    Some(Record {
        durable,
        key: (flags & FLAG_NO_GROUP == 0).then_some(key),
        state: (flags & FLAG_REMOVED == 0).then_some(state),
        size: PREFIX_BYTES + length,
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*field)
}

#[cfg(test)]
mod tests;
