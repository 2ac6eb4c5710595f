//! A partition as its shard holds it: the Raft group, the producers, the answers that wait.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use raft::eraftpb::Message;
use streamgauge_protocol::batch::validate::with_timestamps;
use streamgauge_protocol::batch::{BatchHeader, StampedBatch, TimestampType as BatchTimestampType};
use streamgauge_storage::hard_state::SavedState;
use streamgauge_storage::log::{Log, LogConfig, SyncCover, SyncTicket};
use streamgauge_storage::producer_state::{
    AppendOrigin, ProducerBatch, ProducerState, ProducerStateError, Verdict,
};
use streamgauge_storage::{RaftIndex, StorageError};
use tokio::sync::oneshot;

use super::event::{
    Acks, Append, AppendError, Appended, DeleteRecordsError, EpochEnd, ReplicaPosition,
};
use super::view::PartitionView;
use crate::config::{Flush, TimestampType, TopicConfig};
use crate::replication::broker_id;
use crate::replication::group::{GroupError, Parts, Progress, RaftGroup};
use crate::replication::hibernation::{Mark, Reliance};
use crate::replication::membership::{Membership, Target};

/// How long a partition that the disk refused waits before it tries again, in milliseconds.
const RETRY_AFTER_MS: i64 = 1_000;

const EARLIER_FAILURE: &str = "an earlier write to the partition's log failed";

type DeleteReply = oneshot::Sender<Result<i64, DeleteRecordsError>>;
type AppendReply = oneshot::Sender<Result<Appended, AppendError>>;

/// An append that is answered at its commit.
struct Pending {
    /// The entry whose commit settles it.
    index: RaftIndex,
    appended: Appended,
    deadline_ms: i64,
    reply: AppendReply,
}

/// What one turn of [`Partition::drive`] wants saved, synced and sent.
#[derive(Default)]
pub struct Turn {
    /// The incarnation and number of the Ready that the sync settles.
    pub ready: Option<ReadyToken>,
    /// To be durable with the log: term, vote or membership changed.
    pub state: Option<SavedState>,
    pub sync: Option<SyncTicket>,
    /// For other replicas, to be sent once `state` has been written.
    pub messages: Vec<Message>,
}

/// Names a `Ready` of one incarnation of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyToken {
    incarnation: u32,
    number: u64,
}

/// The Raft group, or what is left of it while the disk refuses writes.
enum Life {
    Running(Box<RaftGroup>),
    Suspended {
        parts: Box<Parts>,
        retry_at_ms: i64,
    },
    /// Its log failed for good: reads go on, writes do not.
    Failed,
    /// Between two of the others.
    Moving,
}

pub struct Partition {
    /// For logs.
    pub topic: Arc<str>,
    pub directory: PathBuf,
    pub view: Arc<PartitionView>,
    pub config: Arc<TopicConfig>,
    raft_id: u64,
    seed: u64,
    /// The first of the partition's replicas.
    is_preferred: bool,
    /// Led from here, and the answers that wait are this leader's.
    leads: bool,
    target: Target,
    life: Life,
    incarnation: u32,
    producers: ProducerState,
    /// Appends that are answered once they are written.
    unwritten: Vec<(Appended, AppendReply)>,
    /// Appends that are answered at their commit, in the order of their entries.
    pending: VecDeque<Pending>,
    /// Moves of the log start offset that are answered at their commit.
    pending_deletes: VecDeque<(RaftIndex, DeleteReply)>,
    /// The offset that the next proposed batch takes.
    next_offset: i64,
    unsynced_messages: u64,
    last_flush_ms: i64,
    /// Where the newest snapshot of the producers stands.
    snapshot_offset: i64,
    /// The replica has left its group without a word; see [`Self::take_ended`].
    has_ended: bool,
}

impl Partition {
    /// Starts the partition on its recovered log. `producers` must be what the log's committed
    /// batches make.
    #[allow(clippy::too_many_arguments)] // Everything that a partition is made of, named once.
    pub fn start(
        topic: Arc<str>,
        directory: PathBuf,
        view: Arc<PartitionView>,
        config: Arc<TopicConfig>,
        raft_id: u64,
        seed: u64,
        is_preferred: bool,
        parts: Parts,
        producers: ProducerState,
        now_ms: i64,
    ) -> Result<Self, GroupError> {
        let next_offset = parts.log.next_offset();
        let snapshot_offset = parts.log.producer_snapshot_offset()?;
        let group = RaftGroup::start(raft_id, parts, seed)?;
        let committed = group.committed();
        let mut partition = Self {
            topic,
            directory,
            view,
            config,
            raft_id,
            seed,
            is_preferred,
            leads: false,
            target: Target::default(),
            life: Life::Running(Box::new(group)),
            incarnation: 0,
            producers,
            unwritten: Vec::new(),
            pending: VecDeque::new(),
            pending_deletes: VecDeque::new(),
            next_offset,
            unsynced_messages: 0,
            last_flush_ms: now_ms,
            snapshot_offset,
            has_ended: false,
        };
        // Readers see it even if the disk is full and the term's first entry cannot be written.
        partition.apply(committed, now_ms);
        Ok(partition)
    }

    pub fn configure(&mut self, config: Arc<TopicConfig>) {
        if let Some(log) = self.log_mut() {
            log.configure(log_config(&config));
        }
        self.config = config;
    }

    pub fn log(&self) -> Option<&Log> {
        match &self.life {
            Life::Running(group) => Some(group.log()),
            Life::Suspended { parts, .. } => Some(&parts.log),
            Life::Failed | Life::Moving => None,
        }
    }

    fn log_mut(&mut self) -> Option<&mut Log> {
        match &mut self.life {
            Life::Running(group) => Some(group.log_mut()),
            Life::Suspended { parts, .. } => Some(&mut parts.log),
            Life::Failed | Life::Moving => None,
        }
    }

    /// Takes one batch: gives it its offset and epoch and proposes it. Answers at once if it is
    /// refused or a duplicate of what is committed; else the answer comes with `acks`.
    pub fn append(&mut self, append: Append, now_ms: i64) {
        let Append {
            batch,
            acks,
            wait_ms_max,
            reply,
        } = append;
        // A client that has gone away does not want to know.
        match self.propose(batch, acks, now_ms) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(Proposed::Done(appended)) => drop(reply.send(Ok(appended))),
            Ok(Proposed::AtCommit { index, appended }) => match acks {
                // Who wants no answer is told all the same: silence would be taken for an error,
                // and the connection closed.
                Acks::None | Acks::Leader => self.unwritten.push((appended, reply)),
                Acks::All => self.pending.push_back(Pending {
                    index,
                    appended,
                    deadline_ms: now_ms.saturating_add(wait_ms_max),
                    reply,
                }),
            },
        }
    }

    fn propose(
        &mut self,
        batch: bytes::Bytes,
        acks: Acks,
        now_ms: i64,
    ) -> Result<Proposed, AppendError> {
        let Life::Running(group) = &mut self.life else {
            return Err(AppendError::Storage(EARLIER_FAILURE.to_owned()));
        };
        // A handover refuses before the producer is checked: of the batches that it has sent one after
        // the other, the first would be refused for that, the next for the gap that this left, and a
        // client that hears of a gap may begin a new epoch, in which duplicates are not known.
        if !self.leads || !group.may_serve() || group.is_handing_over() {
            return Err(AppendError::NotLeader);
        }
        let wanted = replicas_wanted(&self.config, group);
        if acks == Acks::All && wanted > 1 {
            let in_sync = group.in_sync_count();
            if in_sync < wanted {
                return Err(AppendError::NotEnoughReplicas { in_sync, wanted });
            }
        }
        let leader_epoch = group.term().leader_epoch();
        let append_time = self.config.message_timestamp_type == TimestampType::LogAppendTime;
        let batch = if append_time {
            with_timestamps(&batch, BatchTimestampType::LogAppendTime, now_ms)
                .map_err(|error| AppendError::InvalidRecord(error.to_string()))?
        } else {
            batch
        };
        let header = BatchHeader::parse(&batch)
            .map_err(|error| AppendError::InvalidRecord(error.to_string()))?;
        let log_append_time_ms = if append_time { now_ms } else { -1 };
        let log_start_offset = self.view.log_start_offset();
        let placed = |base_offset, last_offset| Appended {
            base_offset,
            last_offset,
            log_append_time_ms,
            log_start_offset,
            leader_epoch,
        };
        // A client cannot send a control batch, so there is no marker to read.
        let base_offset = self.next_offset;
        let placed_header = BatchHeader {
            base_offset,
            partition_leader_epoch: leader_epoch,
            ..header
        };
        let from_producer = ProducerBatch::from_header(&placed_header, None);
        if let Some(batch) = &from_producer {
            match self.producers.check(batch, AppendOrigin::Client) {
                Verdict::Append => {}
                Verdict::Duplicate(original) => {
                    let appended = placed(original.base_offset, original.last_offset);
                    if acks == Acks::All && wanted > group.majority() {
                        // Committed, and perhaps not yet where the setting wants it.
                        let index = RaftIndex(group.next_index().0 - 1);
                        return Ok(Proposed::AtCommit { index, appended });
                    }
                    return Ok(Proposed::Done(appended));
                }
                Verdict::DuplicateInFlight(original) => {
                    return Ok(Proposed::AtCommit {
                        // The original's entry is at or before the last proposed one.
                        index: RaftIndex(group.next_index().0 - 1),
                        appended: placed(original.base_offset, original.last_offset),
                    });
                }
                Verdict::Error(error) => return Err(error.into()),
            }
        }
        let stamped = StampedBatch::stamp(batch, base_offset, leader_epoch)
            .map_err(|error| AppendError::InvalidRecord(error.to_string()))?;
        let index = group.propose(stamped)?;
        if let Some(batch) = from_producer {
            self.producers.append_in_flight(batch);
        }
        self.next_offset = placed_header.next_offset();
        self.unsynced_messages += u64::from(header.records_count.unsigned_abs());
        Ok(Proposed::AtCommit {
            index,
            appended: placed(base_offset, placed_header.last_offset()),
        })
    }

    /// Whether [`Self::drive`] has anything to do.
    pub fn has_ready(&self) -> bool {
        matches!(&self.life, Life::Running(group) if group.has_ready())
    }

    /// Lets Raft go on: entries are written, commits are published and answered.
    pub fn drive(&mut self, now_ms: i64) -> Turn {
        let mut turn = Turn::default();
        let Life::Running(group) = &mut self.life else {
            return turn;
        };
        let applied_before = group.committed();
        let progress = match group.drive(now_ms) {
            Ok(progress) => progress,
            Err(error) => {
                self.suspend(&error, now_ms);
                return turn;
            }
        };
        if let Some(offset) = progress.log_start_offset {
            if let Err(error) = group.log_mut().set_log_start_offset(offset) {
                // What this turn has written stays in the log, and the producers have to know it.
                self.take_replicated(&progress);
                self.suspend(&error.into(), now_ms);
                if let Life::Suspended { parts, .. } = &mut self.life {
                    // What was committed and could not be done is handed out again.
                    parts.hard_state.commit = parts.hard_state.commit.min(applied_before.0);
                }
                return turn;
            }
            self.view.publish_change();
        }
        let save = progress.hard_state.is_some() || progress.membership_changed;
        turn.state = save.then(|| saved_state(group));
        if let Some(number) = progress.ready_number {
            let relaxed = match self.config.flush {
                Flush::BeforeAcknowledge => false,
                Flush::Relaxed { messages, ms } => {
                    self.unsynced_messages < messages.unsigned_abs()
                        && now_ms.saturating_sub(self.last_flush_ms) < ms
                }
            };
            // Terms, votes and membership are never relaxed.
            if relaxed && !save && group.only_waits_for(number) {
                turn.messages = group.persisted(number);
            } else {
                self.unsynced_messages = 0;
                self.last_flush_ms = now_ms;
                turn.ready = Some(ReadyToken {
                    incarnation: self.incarnation,
                    number,
                });
                turn.sync = group.log_mut().sync_ticket();
            }
        }
        self.take_replicated(&progress);
        if progress.proposals_refused {
            self.forget_proposals();
        }
        turn.messages.extend(progress.messages);
        for (appended, reply) in self.unwritten.drain(..) {
            drop(reply.send(Ok(appended)));
        }
        if let Some(committed) = progress.committed {
            self.apply(committed, now_ms);
            self.answer_deletes(committed);
        }
        if progress.membership_changed {
            self.publish_settled();
        }
        self.settle_leadership();
        turn
    }

    /// The members that the group is to have.
    pub fn aim_at(&mut self, target: Target) {
        if target.epoch > self.target.epoch {
            self.target = target;
        }
        if let Life::Running(group) = &mut self.life {
            group.aim_at(self.target.clone());
        }
        self.publish_settled();
    }

    fn publish_settled(&self) {
        if let Life::Running(group) = &self.life {
            self.view.publish_settled(group.membership().settled);
        }
    }

    /// What must be durable before the next turn: it will replace the log by one that begins later.
    pub fn state_to_come(&self, now_ms: i64) -> Option<SavedState> {
        let Life::Running(group) = &self.life else {
            return None;
        };
        let membership = group.membership_to_come(now_ms)?;
        Some(saved_with(group, &membership))
    }

    /// Whether others take part in the group.
    pub fn has_peers(&self) -> bool {
        matches!(&self.life, Life::Running(group) if group.has_peers())
    }

    /// What was proposed last did not get into the log. Whoever waits asks again, perhaps for what
    /// did and will be committed; the producers know it then.
    fn forget_proposals(&mut self) {
        let Some(end) = self.log().map(Log::next_offset) else {
            return;
        };
        self.next_offset = end;
        self.producers.drop_in_flight_from(end);
        self.refuse_pending(&AppendError::NotLeader);
    }

    /// What a follower has written, for the producers: once committed, this replica may have to
    /// tell duplicates from new batches.
    fn take_replicated(&mut self, progress: &Progress) {
        if let Some(start) = &progress.started_anew {
            tracing::info!(
                topic = %self.topic,
                partition = self.view.key().index,
                offset = start.start.offset,
                "the replica was too far behind and begins where the leader's log does"
            );
            self.producers = start.producers.clone();
            self.snapshot_offset = self.producers.committed_end_offset();
            self.view.publish_change();
        }
        let Some(first) = progress.replicated.first() else {
            return;
        };
        self.producers.drop_in_flight_from(first.base_offset);
        for header in &progress.replicated {
            self.unsynced_messages += u64::from(header.records_count.unsigned_abs());
            // A leader that says where to begin may tell of the producers of later batches.
            if header.base_offset < self.producers.committed_end_offset() {
                continue;
            }
            // Transactions' markers are read where they are written; followers see none yet.
            if let Some(batch) = ProducerBatch::from_header(header, None) {
                self.producers.append_in_flight(batch);
            }
        }
    }

    /// A message of the partition's group, from another replica. `own` is what its shard vouches with.
    pub fn step(&mut self, message: Message, own: Mark) {
        let may_rest = self.may_rest();
        let Life::Running(group) = &mut self.life else {
            return;
        };
        group.allow_rest(may_rest.then_some(own));
        if let Err(error) = group.step(message) {
            self.fail(&error.to_string());
        } else {
            self.answer_held();
        }
    }

    /// Whether nobody waits for anything here.
    fn may_rest(&self) -> bool {
        self.pending.is_empty()
            && self.unwritten.is_empty()
            && self.pending_deletes.is_empty()
            && (self.unsynced_messages == 0 || self.config.flush == Flush::BeforeAcknowledge)
    }

    /// On whom the group relies while it rests; `None` if it does not.
    pub fn relies_on(&self) -> Option<&[Reliance]> {
        match &self.life {
            Life::Running(group) => group.relies_on(),
            _ => None,
        }
    }

    /// Whether that message belongs to the group's rest, and does not end it.
    pub fn is_of_rest(&self, message: &Message) -> bool {
        matches!(&self.life, Life::Running(group) if group.is_of_rest(message))
    }

    /// The group's clock runs again.
    pub fn wake(&mut self, silent_ticks: impl Fn(&Reliance) -> u64, tell_leader: bool) {
        if let Life::Running(group) = &mut self.life {
            group.wake(silent_ticks, tell_leader);
        }
    }

    /// Raft's clock moves on. A leader without others has nothing to wait for. `own` is what the
    /// shard vouches with.
    pub fn tick(&mut self, own: Mark, now_ms: i64) {
        self.refuse_overdue(now_ms);
        let may_rest = self.may_rest();
        let Life::Running(group) = &mut self.life else {
            return;
        };
        if let Err(error) = group.pursue() {
            tracing::warn!(topic = %self.topic, %error, "the group's members could not be changed");
        }
        group.allow_rest(may_rest.then_some(own));
        if !group.has_peers() && group.is_leader() {
            group.rest_alone();
            return;
        }
        group.tick();
        if self.leads {
            let in_sync = group.in_sync().into_iter().map(broker_id).collect();
            self.view.publish_in_sync(in_sync);
        } else if self.is_preferred && group.is_new() {
            // Nobody has led yet, so there is nobody to wait for.
            group.campaign();
        }
    }

    /// The connection to that broker is lost.
    pub fn lost(&mut self, raft_id: u64) {
        if let Life::Running(group) = &mut self.life {
            group.lost(raft_id);
        }
    }

    /// A message to that replica was lost on the way.
    pub fn unreachable(&mut self, raft_id: u64) {
        if let Life::Running(group) = &mut self.life {
            group.unreachable(raft_id);
        }
    }

    /// Hands the leadership to a replica that is in sync, if this one leads.
    pub fn transfer(&mut self, target: Option<u64>) {
        if let Life::Running(group) = &mut self.life
            && group.is_leader()
        {
            let target = target.or_else(|| group.successor());
            if let Some(target) = target {
                group.transfer_to(target);
            }
        }
    }

    /// How far the replicas are, if this one leads.
    pub fn replicas(&self) -> Option<Vec<ReplicaPosition>> {
        let Life::Running(group) = &self.life else {
            return None;
        };
        if !group.is_leader() {
            return None;
        }
        let log = group.log();
        let replicas = group.members().into_iter().map(|member| {
            let is_own = member.raft_id == self.raft_id;
            ReplicaPosition {
                broker: broker_id(member.raft_id),
                is_voter: member.is_voter,
                log_end_offset: match is_own {
                    true => log.next_offset(),
                    false => log.offset_after(member.matched).unwrap_or(-1),
                },
                heard_ms_ago: member.heard_ms_ago,
                caught_up_ms_ago: member.caught_up_ms_ago,
            }
        });
        Some(replicas.collect())
    }

    /// What the group must not forget, if it runs.
    pub fn saved_state(&self) -> Option<SavedState> {
        match &self.life {
            Life::Running(group) => Some(saved_state(group)),
            _ => None,
        }
    }

    /// The group's state could not be written: what depends on it must not leave.
    pub fn state_not_saved(&mut self, error: &StorageError, now_ms: i64) {
        self.suspend(&GroupError::State(error.to_string()), now_ms);
    }

    /// Syncs what a looser flush policy has left unsynced for its interval.
    pub fn flush_overdue(&mut self, now_ms: i64) -> Option<SyncTicket> {
        let Flush::Relaxed { ms, .. } = self.config.flush else {
            return None;
        };
        if self.unsynced_messages == 0 || now_ms.saturating_sub(self.last_flush_ms) < ms {
            return None;
        }
        self.unsynced_messages = 0;
        self.last_flush_ms = now_ms;
        self.log_mut()?.sync_ticket()
    }

    fn apply(&mut self, committed: RaftIndex, now_ms: i64) {
        let Life::Running(group) = &self.life else {
            return;
        };
        let high_watermark = match group.log().offset_after(committed) {
            Ok(offset) => offset,
            Err(error) => {
                self.fail(&error.to_string());
                return;
            }
        };
        // A group that starts anew may know less of what is committed than it did.
        let high_watermark = high_watermark.max(self.view.high_watermark());
        self.producers.commit_through(high_watermark, now_ms);
        let last_stable_offset = self
            .producers
            .first_unstable_offset()
            .map_or(high_watermark, |offset| offset.min(high_watermark));
        self.view
            .publish_positions(high_watermark, last_stable_offset);
        self.answer_held();
    }

    /// Answers the appends that are committed and held by as many replicas as the topic wants.
    fn answer_held(&mut self) {
        let Life::Running(group) = &self.life else {
            return;
        };
        if self.pending.is_empty() {
            return;
        }
        let committed = group.committed();
        let wanted = replicas_wanted(&self.config, group);
        // A majority holds whatever is committed.
        let majority_will_do = wanted <= group.majority();
        while let Some(pending) = self.pending.pop_front_if(|pending| {
            pending.index <= committed
                && (majority_will_do || group.holders_count(pending.index) >= wanted)
        }) {
            drop(pending.reply.send(Ok(pending.appended)));
        }
    }

    /// Answers the appends that have waited as long as their clients do, and those for which there
    /// are too few replicas now. What is written stays written.
    fn refuse_overdue(&mut self, now_ms: i64) {
        let Life::Running(group) = &self.life else {
            return;
        };
        if self.pending.is_empty() {
            return;
        }
        let committed = group.committed();
        let wanted = replicas_wanted(&self.config, group);
        let too_few = wanted > 1 && group.in_sync_count() < wanted;
        let mut waiting = VecDeque::with_capacity(self.pending.len());
        for pending in self.pending.drain(..) {
            let is_committed = pending.index <= committed;
            let error = if is_committed && (too_few || pending.deadline_ms <= now_ms) {
                AppendError::NotEnoughReplicasAfterAppend { wanted }
            } else if pending.deadline_ms <= now_ms {
                AppendError::TimedOut
            } else {
                waiting.push_back(pending);
                continue;
            };
            drop(pending.reply.send(Err(error)));
        }
        self.pending = waiting;
    }

    /// The sync of that `Ready` has ended; returns the messages that waited for it.
    pub fn synced(&mut self, token: ReadyToken) -> Vec<Message> {
        match &mut self.life {
            Life::Running(group) if token.incarnation == self.incarnation => {
                let messages = group.persisted(token.number);
                self.answer_held();
                messages
            }
            _ => Vec::new(),
        }
    }

    /// What a sync covers is durable.
    pub fn durable(&mut self, cover: SyncCover) {
        if let Some(log) = self.log_mut() {
            log.synced(cover);
        }
    }

    /// Notes on disk how far the log is durable, for a later recovery.
    pub fn write_recovery_point(&mut self) {
        let topic = Arc::clone(&self.topic);
        if let Some(log) = self.log_mut()
            && let Err(error) = log.write_recovery_point()
        {
            tracing::warn!(%topic, %error, "recovery point could not be written");
        }
    }

    /// Follows the group's leadership: whoever waits on a leader that is one no more is told, and a
    /// new one takes up offsets where the log ends.
    fn settle_leadership(&mut self) {
        let Life::Running(group) = &self.life else {
            return;
        };
        let serving = group.may_serve();
        let leader = group.leader().map_or(-1, broker_id);
        // A term in which nobody has won is no leader's epoch: it may be forgotten again, if it could not be
        // saved, and what was marked with it would be newer than every leader to come.
        let epoch = match group.leader() {
            Some(_) => group.term().leader_epoch(),
            None => self.view.leader_epoch(),
        };
        let next_offset = group.log().next_offset();
        let in_sync = match serving && !self.leads {
            true => group.in_sync().into_iter().map(broker_id).collect(),
            false => Vec::new(),
        };
        let is_new_term = self.view.leader_epoch() != epoch;
        if self.leads && (!serving || is_new_term) {
            self.leads = false;
            self.refuse_pending(&AppendError::NotLeader);
        }
        if serving && !self.leads {
            self.view.publish_in_sync(in_sync);
            // Nothing has been proposed in this term: all that is in the log is before it.
            self.next_offset = next_offset;
            self.leads = true;
        }
        if is_new_term || self.view.is_serving() != serving || self.view.leader() != leader {
            self.view.publish_leadership(leader, epoch, serving);
        }
    }

    /// The disk refused a write. The log is as it was before; what Raft held in memory beyond it
    /// is dropped, and those who wait are told. The group starts anew on the log once it can write.
    fn suspend(&mut self, error: &GroupError, now_ms: i64) {
        if !matches!(self.life, Life::Running(_)) {
            // A sync that failed has ended more than this write.
            return;
        }
        if self.log().is_some_and(Log::has_failed) {
            // Not a disk that was full: what its files hold is not known.
            self.fail(&error.to_string());
            return;
        }
        tracing::error!(
            topic = %self.topic,
            partition = self.view.key().index,
            %error,
            "partition takes no writes until the disk does"
        );
        self.fail_pending(&error.to_string());
        self.incarnation += 1;
        let mut alone = true;
        match std::mem::replace(&mut self.life, Life::Moving) {
            Life::Running(group) => {
                alone = !group.has_peers();
                let parts = Box::new(group.into_parts());
                self.next_offset = parts.log.next_offset();
                // What was written before is in the log still and will be committed: a retry of it
                // must be known for one.
                self.producers.drop_in_flight_from(self.next_offset);
                self.life = Life::Suspended {
                    parts,
                    retry_at_ms: now_ms + RETRY_AFTER_MS,
                };
            }
            other => self.life = other,
        }
        self.leads = false;
        self.has_ended |= !alone;
        // Where other replicas may take over, reads are theirs to answer.
        let leader = if alone { broker_id(self.raft_id) } else { -1 };
        self.view
            .publish_leadership(leader, self.view.leader_epoch(), alone);
    }

    /// Starts a suspended group anew if it is time, and answers with what must be durable before
    /// it is driven. What its log holds must be synced before Raft counts on it; the error of that
    /// sync is the disk's last word.
    pub fn resume(&mut self, now_ms: i64) -> Option<SavedState> {
        let Life::Suspended { parts, retry_at_ms } = &mut self.life else {
            return None;
        };
        if now_ms < *retry_at_ms {
            return None;
        }
        if let Some(ticket) = parts.log.sync_ticket()
            && let Err(error) = ticket.run()
        {
            self.fail(&error.to_string());
            return None;
        }
        let Life::Suspended { parts, .. } = std::mem::replace(&mut self.life, Life::Moving) else {
            return None;
        };
        match RaftGroup::start(self.raft_id, *parts, self.seed) {
            Ok(mut group) => {
                group.aim_at(self.target.clone());
                // Whether it can write is seen when it writes its term's first entry.
                let committed = group.committed();
                self.next_offset = group.log().next_offset();
                let state = saved_state(&group);
                self.life = Life::Running(Box::new(group));
                self.apply(committed, now_ms);
                Some(state)
            }
            Err(error) => {
                self.fail(&error.to_string());
                None
            }
        }
    }

    /// Whether the group has been suspended or has failed since this was last asked: others that rest
    /// with it have to be told that this replica does not take part.
    pub fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.has_ended)
    }

    /// A sync failed: what the files hold is unknown from here on, so nothing more is written.
    pub fn fail(&mut self, reason: &str) {
        tracing::error!(
            topic = %self.topic,
            partition = self.view.key().index,
            reason,
            "partition takes no more writes"
        );
        let alone = match &self.life {
            Life::Running(group) => !group.has_peers(),
            Life::Suspended { .. } | Life::Failed | Life::Moving => self.view.is_serving(),
        };
        self.life = Life::Failed;
        self.leads = false;
        self.has_ended |= !alone;
        self.incarnation += 1;
        self.fail_pending(reason);
        self.producers.drop_in_flight();
        if !alone {
            self.view
                .publish_leadership(-1, self.view.leader_epoch(), false);
        }
    }

    fn fail_pending(&mut self, reason: &str) {
        self.refuse_pending(&AppendError::Storage(reason.to_owned()));
    }

    fn refuse_pending(&mut self, error: &AppendError) {
        for (_, reply) in self.unwritten.drain(..) {
            drop(reply.send(Err(error.clone())));
        }
        for pending in self.pending.drain(..) {
            drop(pending.reply.send(Err(error.clone())));
        }
        for (_, reply) in self.pending_deletes.drain(..) {
            let error = match error {
                AppendError::NotLeader => DeleteRecordsError::NotLeader,
                other => DeleteRecordsError::Storage(other.to_string()),
            };
            drop(reply.send(Err(error)));
        }
    }

    pub fn epoch_end(&self, leader_epoch: i32) -> Option<EpochEnd> {
        let (leader_epoch, end_offset) = self.log()?.end_offset_for_epoch(leader_epoch)?;
        Some(EpochEnd {
            leader_epoch,
            end_offset: end_offset.min(self.view.high_watermark()),
        })
    }

    pub fn producers(&self) -> &ProducerState {
        &self.producers
    }

    /// Moves the log start offset up to `before_offset`; -1 means the high watermark. All replicas
    /// do so: it goes through the log, and is answered once it is committed and done here.
    pub fn delete_records(&mut self, before_offset: i64, reply: DeleteReply) {
        match self.propose_log_start(before_offset) {
            Ok(index) => self.pending_deletes.push_back((index, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn propose_log_start(&mut self, before_offset: i64) -> Result<RaftIndex, DeleteRecordsError> {
        let high_watermark = self.view.high_watermark();
        let group = match &mut self.life {
            Life::Running(group) if self.leads && group.may_serve() => group,
            Life::Running(_) => return Err(DeleteRecordsError::NotLeader),
            _ => return Err(DeleteRecordsError::Storage(EARLIER_FAILURE.to_owned())),
        };
        let target = match before_offset {
            -1 => high_watermark,
            offset => offset,
        };
        if target < 0 || target > high_watermark {
            return Err(DeleteRecordsError::OffsetOutOfRange);
        }
        group
            .propose_log_start(target)
            .map_err(|error| match error {
                GroupError::NotLeader => DeleteRecordsError::NotLeader,
                other => DeleteRecordsError::Storage(other.to_string()),
            })
    }

    fn answer_deletes(&mut self, committed: RaftIndex) {
        while let Some((_, reply)) = self
            .pending_deletes
            .pop_front_if(|(index, _)| *index <= committed)
        {
            drop(reply.send(Ok(self.view.log_start_offset())));
        }
    }

    /// Removes what retention lets go, and forgets producers that have been silent too long.
    pub fn maintain(&mut self, now_ms: i64, producer_expiration_ms: i64) {
        self.producers.expire(now_ms, producer_expiration_ms);
        let limit = self.view.high_watermark();
        let topic = Arc::clone(&self.topic);
        let expired = match &mut self.life {
            Life::Running(group) => {
                let committed = group.committed();
                let log = group.log_mut();
                let expires = log.expired_count(now_ms, limit, committed) > 0;
                // What producers wrote must stay known when their batches are gone, and a restart
                // should not read the whole log again (Kafka writes a snapshot at every roll).
                if (expires || log.active_base_offset() > self.snapshot_offset)
                    && self.snapshot_offset < limit
                {
                    if let Err(error) = log.write_producer_snapshot(&self.producers, limit) {
                        tracing::warn!(%topic, %error, "producer snapshot could not be written");
                        return;
                    }
                    self.snapshot_offset = limit;
                }
                log.expire_committed(now_ms, limit, committed)
            }
            // What may go is decided once the group runs again.
            Life::Suspended { .. } | Life::Failed | Life::Moving => return,
        };
        match expired {
            Ok(deleted) if deleted.is_empty() => {}
            Ok(deleted) => {
                tracing::info!(%topic, segments = deleted.len(), "retention removed segments");
                self.view.publish_change();
            }
            Err(error) => tracing::warn!(%topic, %error, "retention could not remove segments"),
        }
    }

    /// Writes the producers' snapshot and marks the log clean. Everything must have been synced.
    pub fn close(&mut self) -> Result<(), StorageError> {
        let Life::Running(group) = &mut self.life else {
            return Ok(());
        };
        let high_watermark = group.log().offset_after(group.committed())?;
        let log = group.log_mut();
        log.write_producer_snapshot(&self.producers, high_watermark)?;
        log.close()
    }

    /// Stops serving; the files are the caller's to remove.
    pub fn delete(mut self, lives_on: bool) {
        match lives_on {
            true => self.refuse_pending(&AppendError::NotLeader),
            false => self.fail_pending("the topic was deleted"),
        }
        self.view.publish_deleted();
    }
}

enum Proposed {
    Done(Appended),
    AtCommit {
        index: RaftIndex,
        appended: Appended,
    },
}

impl From<ProducerStateError> for AppendError {
    fn from(error: ProducerStateError) -> Self {
        let text = error.to_string();
        match error {
            ProducerStateError::OutOfOrderSequence { .. }
            | ProducerStateError::NewEpochNotAtZero { .. } => Self::OutOfOrderSequence(text),
            _ => Self::InvalidProducerEpoch(text),
        }
    }
}

fn saved_state(group: &RaftGroup) -> SavedState {
    saved_with(group, group.membership())
}

fn saved_with(group: &RaftGroup, membership: &Membership) -> SavedState {
    let (hard_state, conf_state) = (group.hard_state(), &membership.conf);
    SavedState {
        term: hard_state.term,
        vote: hard_state.vote,
        // What has been applied: a restart goes on from there.
        commit: group.committed().0,
        conf_index: membership.index,
        settled: membership.settled,
        joins_after: membership.joins_after,
        voters: conf_state.voters.clone(),
        learners: conf_state.learners.clone(),
        voters_outgoing: conf_state.voters_outgoing.clone(),
        learners_next: conf_state.learners_next.clone(),
        auto_leave: conf_state.auto_leave,
    }
}

/// How many replicas must be in sync, and hold a batch, for `acks=all`: no more than there are.
fn replicas_wanted(config: &TopicConfig, group: &RaftGroup) -> usize {
    usize::try_from(config.min_insync_replicas)
        .unwrap_or(1)
        .min(group.voters_count())
}

/// What a topic's configs ask of its logs.
pub fn log_config(config: &TopicConfig) -> LogConfig {
    LogConfig {
        segment_bytes: u64::from(config.segment_bytes.unsigned_abs()),
        segment_ms: config.segment_ms,
        index_interval_bytes: config.index_interval_bytes.unsigned_abs(),
        segment_index_bytes: config.segment_index_bytes.unsigned_abs(),
        delete: config.cleanup_policy.delete,
        retention_bytes: config.retention_bytes,
        retention_ms: config.retention_ms,
    }
}

impl From<GroupError> for AppendError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::NotLeader => Self::NotLeader,
            other => Self::Storage(other.to_string()),
        }
    }
}
