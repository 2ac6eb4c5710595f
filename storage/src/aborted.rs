//! The aborted transactions that end in a segment: what consumers with `read_committed` pass over.
//!
//! `<base offset, 20 digits>.txnindex` is in Kafka's format (`AbortedTxn`), big-endian, 34 bytes a
//! transaction, in the order of their markers:
//!
//! ```text
//! version i16 = 0 | producer id i64 | first offset i64 | last offset i64 | last stable offset i64
//! ```
//!
//! The last offset is the abort marker's; the last stable offset is where it stood with this
//! transaction out of the way. The file is written before a snapshot of the producers that knows the
//! transactions as ended; what has ended since is found again by the replay of the producers. Only what
//! is committed gets here, so that nothing is ever taken back.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::disk::Disk;
use crate::segment::{read_whole, replace_file};

const VERSION: i16 = 0;
const ENTRY_BYTES: usize = 34;

/// A transaction that was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
    /// Of the marker.
    pub last_offset: i64,
    pub last_stable_offset: i64,
}

/// Those that end in one segment, by their last offsets.
#[derive(Debug)]
pub struct AbortedIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while they are in the file alone.
    entries: Option<Arc<Vec<AbortedTransaction>>>,
    unsaved: bool,
}

impl AbortedIndex {
    /// Of a segment without a file.
    pub fn empty() -> Self {
        Self {
            state: RwLock::new(State {
                entries: Some(Arc::default()),
                unsaved: false,
            }),
        }
    }

    /// Of a segment that has a file, which is read when it is needed.
    pub fn saved() -> Self {
        Self {
            state: RwLock::default(),
        }
    }

    /// The transactions, from memory or from the file at `path`.
    ///
    /// Errors: the file cannot be read, or is not what was written.
    pub fn entries(
        &self,
        disk: &dyn Disk,
        path: &Path,
    ) -> io::Result<Arc<Vec<AbortedTransaction>>> {
        if let Some(entries) = &self.read().entries {
            return Ok(Arc::clone(entries));
        }
        let read = Arc::new(decode(&read_whole(disk, path)?).ok_or_else(|| {
            let reason = format!("{} is not what was written", path.display());
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })?);
        let mut state = self.write();
        Ok(Arc::clone(state.entries.get_or_insert(read)))
    }

    /// Adds one that ends after all that are known; one that is known already is passed over.
    pub fn push(
        &self,
        aborted: AbortedTransaction,
        disk: &dyn Disk,
        path: &Path,
    ) -> io::Result<()> {
        let known = self.entries(disk, path)?;
        if known
            .last()
            .is_some_and(|last| last.last_offset >= aborted.last_offset)
        {
            return Ok(());
        }
        drop(known);
        let mut state = self.write();
        let entries = state.entries.get_or_insert_default();
        Arc::make_mut(entries).push(aborted);
        state.unsaved = true;
        Ok(())
    }

    /// Writes the file if it does not hold all, and says whether it did. Durable once the directory is
    /// synced.
    pub fn save(&self, disk: &dyn Disk, path: &Path) -> io::Result<bool> {
        let entries = {
            let state = self.read();
            match &state.entries {
                Some(entries) if state.unsaved => Arc::clone(entries),
                _ => return Ok(false),
            }
        };
        replace_file(disk, path, &encode(&entries))?;
        // The owner of the log alone adds and saves: nothing came between.
        self.write().unsaved = false;
        Ok(true)
    }

    /// Takes back what ends at `end_offset` or later: the log has lost it. Says whether anything was.
    pub fn truncate(&self, end_offset: i64, disk: &dyn Disk, path: &Path) -> io::Result<bool> {
        let known = self.entries(disk, path)?;
        let kept = known.partition_point(|aborted| aborted.last_offset < end_offset);
        if kept == known.len() {
            return Ok(false);
        }
        drop(known);
        let mut state = self.write();
        Arc::make_mut(state.entries.get_or_insert_default()).truncate(kept);
        state.unsaved = true;
        Ok(true)
    }

    /// Lets go of what the file holds.
    pub fn unload(&self) {
        let mut state = self.write();
        if !state.unsaved
            && state
                .entries
                .as_ref()
                .is_some_and(|known| !known.is_empty())
        {
            state.entries = None;
        }
    }

    /// Whether it holds nothing, as far as memory tells.
    pub fn is_known_empty(&self) -> bool {
        let state = self.read();
        state.entries.as_ref().is_some_and(|known| known.is_empty())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds to `found` those that a reader of `from..to` has to know of. Says whether later segments
/// cannot hold any more of them (`TransactionIndex.collectAbortedTxns`).
pub fn collect(
    entries: &[AbortedTransaction],
    from: i64,
    to: i64,
    found: &mut Vec<AbortedTransaction>,
) -> bool {
    let first = entries.partition_point(|aborted| aborted.last_offset < from);
    for aborted in entries.get(first..).unwrap_or_default() {
        if aborted.first_offset < to {
            found.push(*aborted);
        }
        if aborted.last_stable_offset >= to {
            return true;
        }
    }
    false
}

fn encode(entries: &[AbortedTransaction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for aborted in entries {
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(aborted.producer_id.to_be_bytes());
        bytes.extend(aborted.first_offset.to_be_bytes());
        bytes.extend(aborted.last_offset.to_be_bytes());
        bytes.extend(aborted.last_stable_offset.to_be_bytes());
    }
    bytes
}

/// `None` if the bytes are not whole transactions in order.
fn decode(bytes: &[u8]) -> Option<Vec<AbortedTransaction>> {
    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() {
        return None;
    }
    let mut read: Vec<AbortedTransaction> = Vec::with_capacity(entries.len());
    for entry in entries {
        let (version, fields) = entry.split_first_chunk::<2>()?;
        let (fields, _) = fields.as_chunks::<8>();
        let mut numbers = fields.iter().map(|field| i64::from_be_bytes(*field));
        let aborted = AbortedTransaction {
            producer_id: numbers.next()?,
            first_offset: numbers.next()?,
            last_offset: numbers.next()?,
            last_stable_offset: numbers.next()?,
        };
        let follows = read
            .last()
            .is_none_or(|before| before.last_offset < aborted.last_offset);
        let is_sound = i16::from_be_bytes(*version) == VERSION
            && aborted.producer_id >= 0
            && aborted.first_offset >= 0
            && aborted.first_offset <= aborted.last_offset;
        if !follows || !is_sound {
            return None;
        }
        read.push(aborted);
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    fn aborted(first_offset: i64, last_offset: i64, last_stable_offset: i64) -> AbortedTransaction {
        AbortedTransaction {
            producer_id: 7,
            first_offset,
            last_offset,
            last_stable_offset,
        }
    }

    #[test]
    fn a_file_reads_back_as_it_was_written_and_nothing_else_does() {
        let entries = [aborted(0, 5, 3), aborted(3, 9, 10)];
        let bytes = encode(&entries);
        assert_eq!(bytes.len(), 68);
        assert_eq!(decode(&bytes).as_deref(), Some(&entries[..]));
        assert_eq!(decode(&[]).as_deref(), Some(&[][..]));
        for length in 1..bytes.len() {
            assert_eq!(decode(&bytes[..length]).is_some(), length == 34);
        }
        assert_eq!(
            decode(&encode(&[aborted(3, 9, 10), aborted(0, 5, 3)])),
            None
        );
        assert_eq!(decode(&encode(&[aborted(6, 5, 3)])), None);
    }

    #[test]
    fn readers_get_what_overlaps_and_stop_where_all_is_decided() {
        let entries = [aborted(0, 5, 3), aborted(3, 9, 10), aborted(12, 14, 15)];
        let collected = |from, to| {
            let mut found = Vec::new();
            let is_all = collect(&entries, from, to, &mut found);
            let lasts: Vec<i64> = found.iter().map(|aborted| aborted.last_offset).collect();
            (lasts, is_all)
        };
        assert_eq!(collected(0, 3), (vec![5], true));
        assert_eq!(collected(0, 10), (vec![5, 9], true));
        assert_eq!(collected(6, 10), (vec![9], true));
        assert_eq!(collected(10, 12), (vec![], true));
        assert_eq!(collected(10, 20), (vec![14], false));
        assert_eq!(collected(15, 20), (vec![], false));
    }

    #[test]
    fn what_is_saved_can_be_let_go_and_what_is_not_stays() {
        let disk = SimDisk::new();
        let path = Path::new("/00000000000000000000.txnindex");
        let index = AbortedIndex::empty();
        assert!(!index.save(&disk, path).unwrap());
        index.push(aborted(0, 5, 3), &disk, path).unwrap();
        index.push(aborted(0, 5, 3), &disk, path).unwrap();
        index.unload();
        assert!(index.read().entries.is_some(), "it is nowhere else");
        assert!(index.save(&disk, path).unwrap());
        index.unload();
        assert!(index.read().entries.is_none());
        index.push(aborted(3, 9, 10), &disk, path).unwrap();
        let known = index.entries(&disk, path).unwrap();
        assert_eq!(*known, [aborted(0, 5, 3), aborted(3, 9, 10)]);

        assert!(index.save(&disk, path).unwrap());
        let index = AbortedIndex::saved();
        assert!(!index.truncate(10, &disk, path).unwrap());
        assert!(index.truncate(9, &disk, path).unwrap());
        assert!(index.save(&disk, path).unwrap());
        let known = AbortedIndex::saved().entries(&disk, path).unwrap();
        assert_eq!(*known, [aborted(0, 5, 3)]);
    }
}
