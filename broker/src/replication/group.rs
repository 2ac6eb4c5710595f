//! One Raft group, driven step by step.
//!
//! Crate `raft` decides and asks its host to write, send and apply. [`RaftGroup::drive`] does the
//! writing (into the page cache, through the log) and reports the rest; the caller syncs when it
//! sees fit, together with other groups, and says so with [`RaftGroup::persisted`]. The order that
//! keeps this safe is that of research on raft-rs: nothing is proposed or stepped between taking a
//! `Ready` and `advance_append_async`, and votes and acknowledgements leave only after the sync of
//! the very `Ready` that they came with.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::eraftpb::{Entry as RaftEntry, HardState, Message, MessageType};
use raft::{Config, INVALID_ID, ProgressState, RawNode, SnapshotStatus, StateRole};
use streamgauge_protocol::batch::{
    BATCH_PREFIX_BYTES, BatchHeader, StampedBatch, TransactionMarker,
};
use streamgauge_storage::log::Log;
use streamgauge_storage::{RaftIndex, StorageError, Term};

use super::followers::Followers;
use super::log_storage::{InternalKind, LogStorage, NotABatch};
use super::membership::{Membership, Target};
use super::raft_logger;
use super::start_here::{StartHere, StartHereError};

mod assignment;
mod election;
mod members;
mod pace;
mod proposals;
mod ready;
mod rest;

pub use members::Member;
pub use pace::Throttle;

/// A tick of Raft's clock, in milliseconds.
pub const TICK_MS: i64 = 100;

/// Ticks without a word from the leader before a replica stands for election, at least; at most
/// twice as many (Raft's randomised timeout).
pub const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 3;

/// Messages of entries under way to one member.
const INFLIGHT_MESSAGES_MAX: usize = 128;

/// A recovered log is searched for membership changes in pieces of so many entries.
const STUBS_AT_ONCE_MAX: u64 = 4096;

/// The same for a leader whose connection was lost, at most.
const ELECTION_SOON_TICKS: usize = 4;

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
    #[error("a logged change of the members cannot be applied: {0}")]
    ConfChange(String),
    #[error(
        "the leader counts on entries up to {committed}, but the log ends at {last}: \
         this replica has lost what it acknowledged"
    )]
    LostEntries { committed: u64, last: u64 },
    #[error("this replica's log cannot be read: {0}")]
    Unreadable(StorageError),
    #[error(transparent)]
    StartHere(#[from] StartHereError),
    #[error("the group's state could not be saved: {0}")]
    State(String),
    #[error("raft found the log at odds with the group's: {0}")]
    Diverged(String),
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
    /// Membership changed with the entries just committed: the group's state is to be saved.
    pub membership_changed: bool,
    /// To be sent. Those that must wait for a sync come from [`RaftGroup::persisted`].
    pub messages: Vec<Message>,
    /// What was proposed since the last turn is not in the log and will not be.
    pub proposals_refused: bool,
    /// What a follower has written, in order. Everything that the log held from the first one's
    /// offset on has been replaced.
    pub replicated: Vec<Replicated>,
    /// A committed entry moved the log start offset up to here.
    pub log_start_offset: Option<i64>,
    /// The log has been replaced by an empty one that begins there.
    pub started_anew: Option<Box<StartHere>>,
}

/// A batch that a follower has written, as far as its producer is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Replicated {
    pub header: BatchHeader,
    /// If the batch ends a transaction.
    pub marker: Option<TransactionMarker>,
}

/// What a group hands back for a start anew.
pub struct Parts {
    pub log: Log,
    pub hard_state: HardState,
    pub membership: Membership,
}

/// A Raft group over a partition's log.
pub struct RaftGroup {
    raw: RawNode<LogStorage>,
    /// The first entry of a term that this replica leads or led; until it is committed, the leader
    /// does not know all that is committed (Raft §8) and must not serve.
    term_start: Option<(Term, RaftIndex)>,
    committed: RaftIndex,
    /// The number of the last `Ready` taken.
    last_ready: u64,
    /// The numbers of those that wait for their sync, in order. Telling Raft that one is persisted
    /// tells it so of all before: one that needs no sync must not speak for these.
    unsynced: VecDeque<u64>,
    /// Proposed, and not yet handed to Raft.
    proposals: Vec<RaftEntry>,
    /// The term in which they were proposed, whose epoch they are stamped with: a replica that is alone
    /// can lose the leadership and win it again before they are handed over.
    proposals_term: Term,
    /// Messages that must not leave before a `Ready`, and all before it, are synced.
    held_back: VecDeque<(u64, Vec<Message>)>,
    /// The `Ready` with which the log was replaced, and the entry before the new log's first: that
    /// counts as applied once the `Ready` is persisted.
    started_in: Option<(u64, u64)>,
    /// Of whom this replica, while it leads, has heard.
    followers: Followers,
    ticks: u64,
    /// Draws the election timeouts, so that a seed makes a simulated run.
    random: u64,
    /// Term and role for which the last one was drawn.
    drawn_for: (u64, StateRole),
    /// The members that the group is to have.
    target: Target,
    /// The entry of the last step towards it, and its term.
    step_under_way: Option<(Term, RaftIndex)>,
    /// The last assignment that does not end this replica; `None` if none does, see [`assignment`].
    lasts_through: Option<u64>,
    rest: rest::Rest,
    pace: pace::Pace,
}

impl GroupError {
    /// Whether the replica does not hold what it acknowledged, so that another has to take its place.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::LostEntries { .. } | Self::Unreadable(StorageError::Corrupt(_))
        )
    }
}

impl RaftGroup {
    /// How far a recovered log is known to be committed. The saved commit index is but a hint:
    /// raft-rs panics on one outside the log, so it is brought inside. A group of one voter has
    /// committed all that it has synced.
    pub fn recovered_commit(
        raft_id: u64,
        log: &Log,
        hard_state: &HardState,
        membership: &Membership,
    ) -> Result<RaftIndex, StorageError> {
        let last = log.last_index();
        let known = RaftIndex(hard_state.commit.clamp(log.first_index().0 - 1, last.0));
        if !membership.is_sole_voter(raft_id) {
            return Ok(known);
        }
        // Raft hands out again what changes the membership or the log's start, and all that follows.
        let mut from = RaftIndex(known.0 + 1);
        while from <= last {
            let end = RaftIndex(last.0.min(from.0 + STUBS_AT_ONCE_MAX) + 1);
            let stubs = log.entry_stubs(from, end)?;
            let changes = stubs.iter().find(|stub| {
                let (kind, payload) = match &stub.internal {
                    Some((kind, payload)) => (InternalKind::from_byte(*kind), payload),
                    None => return false,
                };
                match kind {
                    Some(InternalKind::ConfChange | InternalKind::Settled) => {
                        stub.index.0 > membership.index
                    }
                    Some(InternalKind::LogStart) => payload
                        .first_chunk()
                        .is_some_and(|offset| i64::from_be_bytes(*offset) > log.log_start_offset()),
                    _ => false,
                }
            });
            if let Some(change) = changes {
                return Ok(RaftIndex(change.index.0 - 1));
            }
            from = end;
        }
        Ok(last)
    }

    /// Starts the group on a recovered log, all of which must be synced. `seed` draws its election
    /// timeouts.
    pub fn start(raft_id: u64, parts: Parts, seed: u64) -> Result<Self, GroupError> {
        let Parts {
            log,
            mut hard_state,
            membership,
        } = parts;
        let sole_voter = membership.is_sole_voter(raft_id);
        let committed = Self::recovered_commit(raft_id, &log, &hard_state, &membership)?;
        hard_state.commit = committed.0;
        // A log that was written before its hard state was saved knows the later term.
        let last_term = log.term(log.last_index()).map_or(0, |term| term.0);
        if hard_state.term < last_term {
            hard_state.term = last_term;
            hard_state.vote = 0;
        }
        let config = Config {
            id: raft_id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: hard_state.commit,
            max_size_per_msg: 1024 * 1024,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            // Raft 0.7.0 merges an append that was started over at a lower index into an empty one
            // that it has not sent yet; the follower then acknowledges entries that it does not
            // have. Proposals go in together instead, see `propose_entry`.
            batch_append: false,
            // Stubs carry no data, so Raft's own count would never fall; partitions bound what is
            // in flight themselves.
            max_uncommitted_size: raft::NO_LIMIT,
            max_committed_size_per_ready: raft::NO_LIMIT,
            ..Config::default()
        };
        let storage = LogStorage::new(log, hard_state, membership);
        let mut raw =
            RawNode::new(&config, storage, &raft_logger::logger()).map_err(GroupError::Start)?;
        if sole_voter {
            // Nobody else could be elected; waiting for a timeout would only delay the start.
            raw.campaign().map_err(GroupError::Start)?;
        }
        let mut group = Self {
            raw,
            term_start: None,
            committed,
            last_ready: 0,
            unsynced: VecDeque::new(),
            proposals: Vec::new(),
            proposals_term: Term(0),
            held_back: VecDeque::new(),
            started_in: None,
            followers: Followers::default(),
            ticks: 0,
            random: (seed ^ raft_id.rotate_left(32)) | 1,
            drawn_for: (0, StateRole::Follower),
            target: Target::default(),
            step_under_way: None,
            lasts_through: None,
            rest: rest::Rest::default(),
            pace: pace::Pace::default(),
        };
        group.draw_election_timeout();
        Ok(group)
    }

    /// [`TICK_MS`] have passed.
    pub fn tick(&mut self) {
        if self.relies_on().is_some() {
            return;
        }
        if self.may_campaign() {
            self.raw.tick();
            self.changed();
        }
        self.ticks += 1;
        self.observe_followers();
        self.consider_rest();
        if self.ticks.is_multiple_of(ELECTION_TICKS as u64) {
            self.tell_again_where_to_begin();
        }
    }

    /// Raft sends nothing to a replica that it has told where to begin until it is told what came
    /// of it. The message may have been lost; it is small, and can be sent again.
    fn tell_again_where_to_begin(&mut self) {
        let waiting: Vec<u64> = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(_, progress)| progress.state == ProgressState::Snapshot)
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// Takes a message from another replica.
    ///
    /// After an error the replica is not fit to take part: it has lost entries that it had
    /// acknowledged, or holds others than the group.
    pub fn step(&mut self, mut message: Message) -> Result<(), GroupError> {
        if self.is_of_another_replica(&mut message) {
            return Ok(());
        }
        let last = self.raw.raft.raft_log.last_index();
        let (kind, from, term) = (message.get_msg_type(), message.from, message.term);
        let mark = self.take_mark(&mut message);
        if kind == MessageType::MsgPropose {
            // A follower would append what another broker has given an offset.
            return Ok(());
        }
        if kind == MessageType::MsgTimeoutNow && !self.may_campaign() {
            return Ok(());
        }
        let asks_for_vote = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];
        if asks_for_vote.contains(&kind) && self.membership().is_joining() {
            // Who asks may count it as its former self, whose log could have refused: with the votes of
            // such, members of an old membership would elect one that lacks what is committed since.
            return Ok(());
        }
        if kind == MessageType::MsgAppend && !has_sound_batches(&message) {
            // Damaged on its way; the leader sends it again.
            tracing::warn!("damaged records from another broker were refused");
            return Ok(());
        }
        if kind == MessageType::MsgHeartbeat && message.commit > last {
            return Err(GroupError::LostEntries {
                committed: message.commit,
                last,
            });
        }
        // raft-rs panics where a log contradicts what is committed. It happens on disks that lie
        // only, and is no reason to take the other partitions down.
        let stepped = catch_unwind(AssertUnwindSafe(|| self.raw.step(message)));
        match stepped {
            // Messages of former members and the like are Raft's to refuse.
            Ok(_) => {
                self.changed();
                if self.is_leader() {
                    self.followers.heard(from, self.ticks);
                }
                self.heard_of_rest(from, term, mark);
                Ok(())
            }
            Err(panic) => Err(GroupError::Diverged(panic_text(&*panic))),
        }
    }

    /// A message to that replica was lost on the way.
    pub fn unreachable(&mut self, raft_id: u64) {
        self.raw.report_unreachable(raft_id);
    }

    /// Asks the group to be led by that replica. Proposals are refused until it is, or until the
    /// attempt is given up after an election timeout.
    pub fn transfer_to(&mut self, raft_id: u64) {
        self.raw.transfer_leader(raft_id);
    }

    /// Whether another replica is to take over, so that nothing more is taken.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Whether no leader has been elected yet, as far as known here.
    pub fn is_new(&self) -> bool {
        let raft = &self.raw.raft;
        raft.leader_id == INVALID_ID && raft.raft_log.last_term() == 0
    }

    /// The Raft id of the leader as far as known here.
    pub fn leader(&self) -> Option<u64> {
        let id = self.raw.raft.leader_id;
        (id != INVALID_ID).then_some(id)
    }

    pub fn log(&self) -> &Log {
        &self.raw.store().log
    }

    pub fn log_mut(&mut self) -> &mut Log {
        &mut self.raw.mut_store().log
    }

    /// Gives back the log, to start the group anew on it.
    pub fn into_parts(self) -> Parts {
        let storage = self.raw.raft.r.raft_log.store;
        let mut hard_state = storage.hard_state;
        // What is committed and has not been handed out must be then.
        hard_state.commit = hard_state.commit.min(self.committed.0);
        Parts {
            log: storage.log,
            hard_state,
            membership: storage.membership,
        }
    }

    /// The members.
    pub fn membership(&self) -> &Membership {
        &self.raw.store().membership
    }

    /// What must be durable of the group beside its log.
    pub fn hard_state(&self) -> &HardState {
        &self.raw.store().hard_state
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether it neither leads nor stands for election.
    pub fn is_follower(&self) -> bool {
        self.raw.raft.state == StateRole::Follower
    }

    /// Whether the group is led from here and the term's first entry is committed.
    pub fn may_serve(&self) -> bool {
        self.is_leader()
            && self
                .term_start
                .is_some_and(|(term, start)| term == self.term() && start <= self.committed)
    }

    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    pub fn committed(&self) -> RaftIndex {
        self.committed
    }
}

/// Whether the batches' own checksums are right: the connection between brokers does not check them.
fn has_sound_batches(message: &Message) -> bool {
    message.entries.iter().all(
        |entry| match entry.context.first_chunk::<BATCH_PREFIX_BYTES>() {
            Some(prefix) if !entry.data.is_empty() => {
                StampedBatch::from_parts(*prefix, entry.data.clone())
                    .is_ok_and(|batch| batch.verify_crc().is_ok())
            }
            _ => true,
        },
    )
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
        .to_owned()
}
