//! What Raft sees of a partition's log.
//!
//! Crate `raft` wants everything but entries answered from memory and without failing; the log
//! keeps its indexes and epochs there. Where Raft only looks at committed entries to pass them on,
//! it gets stubs: index, term and kind, but no record bytes, since a batch is already in its file
//! and is read from there by consumers. Entries for followers are read in full.

use std::cell::RefCell;

use bytes::Bytes;
use raft::eraftpb::{Entry as RaftEntry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError as RaftStorageError};
use streamgauge_protocol::batch::{BATCH_PREFIX_BYTES, StampedBatch};
use streamgauge_storage::log::{Entry, EntryStub, Log};
use streamgauge_storage::{RaftIndex, StorageError, Term};

use super::membership::Membership;

/// What an internal frame of the log stands for; the byte is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InternalKind {
    /// The entry with which a leader opens its term.
    NoOp = 0,
    /// A membership change, in Raft's own encoding.
    ConfChange = 1,
    /// The log start offset moves up to the offset in the payload (`DeleteRecords`).
    LogStart = 2,
    /// The members are those of the assignment whose epoch is the payload.
    Settled = 3,
}

impl InternalKind {
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::NoOp),
            1 => Some(Self::ConfChange),
            2 => Some(Self::LogStart),
            3 => Some(Self::Settled),
            _ => None,
        }
    }
}

/// A partition's log as Raft's storage.
pub struct LogStorage {
    pub log: Log,
    pub hard_state: HardState,
    pub membership: Membership,
    /// What could not be read for a follower. Raft can only be told to wait.
    pub unread: RefCell<Option<StorageError>>,
}

impl LogStorage {
    pub fn new(log: Log, hard_state: HardState, membership: Membership) -> Self {
        Self {
            log,
            hard_state,
            membership,
            unread: RefCell::new(None),
        }
    }
}

/// An entry of Raft's is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("raft entry {0} does not hold a record batch")]
pub struct NotABatch(pub u64);

/// Turns an entry that Raft hands out for appending into a frame of the log.
pub fn to_log_entry(entry: &RaftEntry, next_offset: i64) -> Result<Entry, NotABatch> {
    let term = Term(entry.term);
    let batch = match entry.entry_type {
        EntryType::EntryNormal if entry.data.is_empty() => StampedBatch::internal(
            InternalKind::NoOp as u8,
            &[],
            next_offset,
            term.leader_epoch(),
        ),
        EntryType::EntryNormal if internal_kind(entry).is_some() => StampedBatch::internal(
            entry.context.first().copied().unwrap_or_default(),
            &entry.data,
            next_offset,
            term.leader_epoch(),
        ),
        EntryType::EntryNormal => {
            // The leader put the prefix there when it proposed the batch; see `RaftGroup::propose`.
            let prefix = entry.context.first_chunk::<BATCH_PREFIX_BYTES>().copied();
            prefix
                .and_then(|prefix| StampedBatch::from_parts(prefix, entry.data.clone()).ok())
                .ok_or(NotABatch(entry.index))?
        }
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => StampedBatch::internal(
            InternalKind::ConfChange as u8,
            &entry.data,
            next_offset,
            term.leader_epoch(),
        ),
    };
    Ok(Entry {
        index: RaftIndex(entry.index),
        term,
        batch,
    })
}

/// The kind of a normal entry that has a payload but no records: its context is that one byte,
/// where that of a batch is the batch's prefix.
pub fn internal_kind(entry: &RaftEntry) -> Option<InternalKind> {
    match entry.context[..] {
        [kind] => InternalKind::from_byte(kind),
        _ => None,
    }
}

fn stub_to_raft(stub: EntryStub) -> RaftEntry {
    let mut entry = RaftEntry {
        index: stub.index.0,
        term: stub.term.0,
        ..RaftEntry::default()
    };
    if let Some((kind, payload)) = stub.internal {
        fill_internal(&mut entry, kind, payload);
    }
    entry
}

fn log_entry_to_raft(logged: Entry) -> RaftEntry {
    let mut entry = RaftEntry {
        index: logged.index.0,
        term: logged.term.0,
        ..RaftEntry::default()
    };
    match logged.batch.internal_payload() {
        Some((kind, payload)) => fill_internal(&mut entry, kind, payload),
        None => {
            entry.context = Bytes::copy_from_slice(logged.batch.prefix());
            entry.data = logged.batch.body().clone();
        }
    }
    entry
}

fn fill_internal(entry: &mut RaftEntry, kind: u8, payload: Bytes) {
    match InternalKind::from_byte(kind) {
        Some(InternalKind::ConfChange) => {
            entry.entry_type = EntryType::EntryConfChangeV2;
            entry.data = payload;
        }
        Some(InternalKind::LogStart) => {
            entry.context = Bytes::from_static(&[InternalKind::LogStart as u8]);
            entry.data = payload;
        }
        Some(InternalKind::Settled) => {
            entry.context = Bytes::from_static(&[InternalKind::Settled as u8]);
            entry.data = payload;
        }
        Some(InternalKind::NoOp) | None => {}
    }
}

impl Storage for LogStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.membership.conf.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        if low < self.log.first_index().0 {
            return Err(raft::Error::Store(RaftStorageError::Compacted));
        }
        if high > self.log.last_index().0 + 1 {
            return Err(raft::Error::Store(RaftStorageError::Unavailable));
        }
        let (low, high) = (RaftIndex(low), RaftIndex(high));
        if !context.can_async() {
            let stubs = self.log.entry_stubs(low, high);
            return match stubs {
                Ok(stubs) => Ok(stubs.into_iter().map(stub_to_raft).collect()),
                Err(error) => Err(storage_failure(error)),
            };
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        match self.log.entries(low, high, bytes_max) {
            Ok(entries) => Ok(entries.into_iter().map(log_entry_to_raft).collect()),
            Err(error) => {
                // Any other error would have the follower begin anew, which does not mend this log.
                self.unread.replace(Some(error));
                Err(raft::Error::Store(
                    RaftStorageError::LogTemporarilyUnavailable,
                ))
            }
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.log.term(RaftIndex(index)) {
            Ok(term) => Ok(term.0),
            Err(streamgauge_storage::log::TermError::Compacted) => {
                Err(raft::Error::Store(RaftStorageError::Compacted))
            }
            Err(streamgauge_storage::log::TermError::Unavailable) => {
                Err(raft::Error::Store(RaftStorageError::Unavailable))
            }
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index().0)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let start = self.log.start();
        let data = match super::start_here::encode(&self.log, &self.membership) {
            Ok(data) => data,
            Err(error) => {
                tracing::warn!(%error, "a replica that is far behind cannot be told where to begin");
                return Err(raft::Error::Store(
                    RaftStorageError::SnapshotTemporarilyUnavailable,
                ));
            }
        };
        let mut snapshot = Snapshot {
            data: data.into(),
            ..Snapshot::default()
        };
        let metadata = snapshot.mut_metadata();
        metadata.index = start.index.0;
        metadata.term = start.term.0;
        metadata.set_conf_state(self.membership.conf.clone());
        Ok(snapshot)
    }
}

fn storage_failure(error: streamgauge_storage::StorageError) -> raft::Error {
    raft::Error::Store(RaftStorageError::Other(Box::new(error)))
}
