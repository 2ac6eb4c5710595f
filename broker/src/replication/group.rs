//! One Raft group, driven step by step.
//!
//! Crate `raft` decides and asks its host to write, send and apply. [`RaftGroup::drive`] does the
//! writing (into the page cache, through the log) and reports the rest; the caller syncs when it
//! sees fit, together with other groups, and says so with [`RaftGroup::persisted`]. The order that
//! keeps this safe is that of research on raft-rs: nothing is proposed or stepped between taking a
//! `Ready` and `advance_append_async`, and votes and acknowledgements leave only after the sync of
//! the very `Ready` that they came with.

use protobuf::Message as _;
use std::collections::VecDeque;

use raft::eraftpb::{ConfChangeV2, ConfState, Entry as RaftEntry, HardState, Message, MessageType};
use raft::{Config, RawNode, StateRole};
use streamgauge_protocol::batch::StampedBatch;
use streamgauge_storage::log::Log;
use streamgauge_storage::{RaftIndex, StorageError, Term};

use super::log_storage::{LogStorage, NotABatch, to_log_entry};
use super::raft_logger;

/// Why a group could not go on.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("the group is not led by this broker")]
    NotLeader,
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("raft refused to start: {0}")]
    Start(raft::Error),
    #[error("raft refused a proposal: {0}")]
    Propose(raft::Error),
    #[error(transparent)]
    NotABatch(#[from] NotABatch),
    #[error("a logged membership change cannot be read: {0}")]
    ConfChange(String),
}

/// What one turn of [`RaftGroup::drive`] made.
#[derive(Debug, Default)]
pub struct Progress {
    /// To be given to [`RaftGroup::persisted`] once the log and the hard state are synced.
    /// Absent if there is nothing to wait for.
    pub ready_number: Option<u64>,
    /// To be saved before that sync.
    pub hard_state: Option<HardState>,
    /// The last entry that is now committed, if that moved.
    pub committed: Option<RaftIndex>,
    /// To be saved: membership changed with the entries just committed.
    pub conf_state: Option<ConfState>,
    /// To be sent at once.
    pub messages: Vec<Message>,
    /// To be sent after the sync.
    pub messages_after_sync: Vec<Message>,
}

/// A Raft group over a partition's log.
pub struct RaftGroup {
    raw: RawNode<LogStorage>,
    /// The first entry of the present term of leadership; until it is committed, this leader
    /// does not know all that is committed (Raft §8) and must not serve.
    term_start: Option<RaftIndex>,
    committed: RaftIndex,
    /// The number of the last `Ready` taken.
    last_ready: u64,
    /// The numbers of those that wait for their sync, in order. Telling Raft that one is persisted
    /// tells it so of all before: one that needs no sync must not speak for these.
    unsynced: VecDeque<u64>,
}

impl RaftGroup {
    /// Starts the group on a recovered log.
    ///
    /// `hard_state.commit` may be any hint: raft-rs panics on one outside the log, so it is
    /// brought inside first. A group of one voter has committed all that it has synced.
    pub fn start(
        raft_id: u64,
        log: Log,
        mut hard_state: HardState,
        conf_state: ConfState,
    ) -> Result<Self, GroupError> {
        let sole_voter = conf_state.voters == [raft_id] && conf_state.voters_outgoing.is_empty();
        let before_first = log.first_index().0 - 1;
        let last = log.last_index().0;
        hard_state.commit = if sole_voter {
            last
        } else {
            hard_state.commit.clamp(before_first, last)
        };
        // A log that was written before its hard state was saved knows the later term.
        let last_term = log.term(RaftIndex(last)).map_or(0, |term| term.0);
        if hard_state.term < last_term {
            hard_state.term = last_term;
            hard_state.vote = 0;
        }
        let committed = RaftIndex(hard_state.commit);
        let config = Config {
            id: raft_id,
            election_tick: 10,
            heartbeat_tick: 3,
            applied: hard_state.commit,
            max_size_per_msg: 1024 * 1024,
            max_inflight_msgs: 128,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // Stubs carry no data, so Raft's own count would never fall; partitions bound what is
            // in flight themselves.
            max_uncommitted_size: raft::NO_LIMIT,
            max_committed_size_per_ready: raft::NO_LIMIT,
            ..Config::default()
        };
        let storage = LogStorage {
            log,
            hard_state,
            conf_state,
        };
        let mut raw =
            RawNode::new(&config, storage, &raft_logger::logger()).map_err(GroupError::Start)?;
        if sole_voter {
            // Nobody else could be elected; waiting for a timeout would only delay the start.
            raw.campaign().map_err(GroupError::Start)?;
        }
        Ok(Self {
            raw,
            term_start: None,
            committed,
            last_ready: 0,
            unsynced: VecDeque::new(),
        })
    }

    pub fn log(&self) -> &Log {
        &self.raw.store().log
    }

    pub fn log_mut(&mut self) -> &mut Log {
        &mut self.raw.mut_store().log
    }

    /// Gives back the log, to start the group anew on it.
    pub fn into_parts(self) -> (Log, HardState, ConfState) {
        let storage = self.raw.raft.r.raft_log.store;
        (storage.log, storage.hard_state, storage.conf_state)
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether the group is led from here and the term's first entry is committed.
    pub fn may_serve(&self) -> bool {
        self.is_leader() && self.term_start.is_some_and(|start| start <= self.committed)
    }

    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    pub fn committed(&self) -> RaftIndex {
        self.committed
    }

    /// The index that the next proposed entry takes.
    pub fn next_index(&self) -> RaftIndex {
        RaftIndex(self.raw.raft.raft_log.last_index() + 1)
    }

    /// Proposes one batch that has been stamped with its offset and this leader's epoch.
    ///
    /// The stamped prefix travels in the entry's context and the rest, a slice of the client's
    /// frame, in its data: nothing is copied. A follower would forward a proposal to its leader,
    /// where the offset could be anybody's; so only a leader takes one.
    pub fn propose(&mut self, batch: StampedBatch) -> Result<RaftIndex, GroupError> {
        if !self.is_leader() {
            return Err(GroupError::NotLeader);
        }
        let index = self.next_index();
        let entry = RaftEntry {
            context: bytes::Bytes::copy_from_slice(batch.prefix()),
            data: batch.body().clone(),
            ..RaftEntry::default()
        };
        let mut message = Message {
            from: self.raw.raft.id,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry].into());
        self.raw.raft.step(message).map_err(GroupError::Propose)?;
        Ok(index)
    }

    /// Whether [`Self::drive`] has anything to do.
    pub fn has_ready(&self) -> bool {
        self.raw.has_ready()
    }

    /// Takes what Raft has ready: appends its entries to the log, applies membership changes and
    /// reports what the caller must save, sync and send.
    ///
    /// After an error the group must not be driven again; [`Self::into_parts`] gives its log back.
    pub fn drive(&mut self, now_ms: i64) -> Result<Progress, GroupError> {
        let mut progress = Progress::default();
        let mut ready = self.raw.ready();
        progress.messages = ready.take_messages();
        progress.messages_after_sync = ready.take_persisted_messages();
        let entries = ready.take_entries();
        if let Some(first) = entries.first() {
            self.append(first.index, &entries, now_ms)?;
        }
        if let Some(hard_state) = ready.hs() {
            self.raw.mut_store().hard_state = hard_state.clone();
            if ready.must_sync() {
                progress.hard_state = Some(hard_state.clone());
            }
        }
        if ready.must_sync() {
            progress.ready_number = Some(ready.number());
        }
        let number = ready.number();
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        self.last_ready = number;
        if progress.ready_number.is_some() {
            self.unsynced.push_back(number);
        } else if self.unsynced.is_empty() {
            self.raw.on_persist_ready(number);
        }
        self.apply(committed, &mut progress)?;
        if !self.is_leader() {
            self.term_start = None;
        }
        Ok(progress)
    }

    fn append(&mut self, first: u64, entries: &[RaftEntry], now_ms: i64) -> Result<(), GroupError> {
        let term = self.raw.raft.term;
        let is_leader = self.is_leader();
        let log = self.log_mut();
        if first <= log.last_index().0 {
            log.truncate_from(RaftIndex(first))?;
        }
        let mut frames = Vec::with_capacity(entries.len());
        let mut next_offset = log.next_offset();
        for entry in entries {
            let frame = to_log_entry(entry, next_offset)?;
            next_offset = frame.batch.header().next_offset();
            frames.push(frame);
        }
        log.append(&frames, now_ms)?;
        if is_leader && self.term_start.is_none() {
            // A new leader's first entry is its no-op; earlier terms' entries are in the log already.
            self.term_start = entries
                .iter()
                .find(|entry| entry.term == term)
                .map(|entry| RaftIndex(entry.index));
        }
        Ok(())
    }

    fn apply(
        &mut self,
        committed: Vec<RaftEntry>,
        progress: &mut Progress,
    ) -> Result<(), GroupError> {
        let Some(last) = committed.last() else {
            return Ok(());
        };
        let last = RaftIndex(last.index);
        for entry in &committed {
            if entry.get_entry_type() == raft::eraftpb::EntryType::EntryNormal {
                continue;
            }
            let change = ConfChangeV2::parse_from_bytes(&entry.data)
                .map_err(|error| GroupError::ConfChange(error.to_string()))?;
            let conf_state = self
                .raw
                .apply_conf_change(&change)
                .map_err(GroupError::Start)?;
            self.raw.mut_store().conf_state = conf_state.clone();
            progress.conf_state = Some(conf_state);
        }
        self.raw.advance_apply_to(last.0);
        self.committed = last;
        progress.committed = Some(last);
        Ok(())
    }

    /// Whether nothing but the `Ready` with that number waits for a sync.
    pub fn only_waits_for(&self, ready_number: u64) -> bool {
        self.unsynced.iter().all(|number| *number == ready_number)
    }

    /// The log and the hard state of that `Ready`, and of those before it, are synced.
    pub fn persisted(&mut self, ready_number: u64) {
        while self
            .unsynced
            .pop_front_if(|number| *number <= ready_number)
            .is_some()
        {}
        let through = match self.unsynced.is_empty() {
            true => self.last_ready,
            false => ready_number,
        };
        self.raw.on_persist_ready(through);
    }
}
