//! A partition as its shard holds it: the Raft group, the producers, the answers that wait.

mod append;
mod drive;
mod life;
mod refusals;
mod upkeep;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use raft::eraftpb::Message;
use streamgauge_storage::RaftIndex;
use streamgauge_storage::hard_state::SavedState;
use streamgauge_storage::log::{Log, LogConfig, SyncTicket};
use streamgauge_storage::producer_state::{ProducerState, Verifications};
use tokio::sync::oneshot;

use self::refusals::Refusals;
use super::event::{AppendError, Appended, DeleteRecordsError, EpochEnd, ReplicaPosition};
use super::view::PartitionView;
use crate::config::{Flush, TopicConfig};
use crate::replication::broker_id;
use crate::replication::group::{GroupError, Parts, RaftGroup, Throttle};
use crate::replication::hibernation::{Mark, Reliance};
use crate::replication::membership::Target;
use crate::replication::throttle::ReplicationQuotas;

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
    /// See [`RaftGroup::may_be_removed`].
    may_be_removed: bool,
    life: Life,
    incarnation: u32,
    producers: ProducerState,
    refusals: Refusals,
    /// Of transactions, while this replica leads.
    verifications: Verifications,
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
    quotas: Arc<ReplicationQuotas>,
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
            may_be_removed: false,
            life: Life::Running(Box::new(group)),
            incarnation: 0,
            producers,
            verifications: Verifications::default(),
            refusals: Refusals::default(),
            unwritten: Vec::new(),
            pending: VecDeque::new(),
            pending_deletes: VecDeque::new(),
            next_offset,
            unsynced_messages: 0,
            last_flush_ms: now_ms,
            snapshot_offset,
            has_ended: false,
            quotas: Arc::default(),
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
        self.throttle();
    }

    /// The broker's quotas for replicas that lag.
    pub fn take_quotas(&mut self, quotas: Arc<ReplicationQuotas>) {
        self.quotas = quotas;
        self.throttle();
    }

    fn throttle(&mut self) {
        if let Life::Running(group) = &mut self.life {
            group.throttle(Throttle {
                quotas: Arc::clone(&self.quotas),
                partition: self.view.key().index,
                leaders: self.config.leader_throttled.clone(),
                followers: self.config.follower_throttled.clone(),
            });
        }
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

    /// Assignments that leave this broker out remove the replica.
    pub fn may_be_removed(&mut self) {
        self.may_be_removed = true;
        if let Life::Running(group) = &mut self.life {
            group.may_be_removed();
        }
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

    /// Whether others take part in the group.
    pub fn has_peers(&self) -> bool {
        matches!(&self.life, Life::Running(group) if group.has_peers())
    }

    /// A message of the partition's group, from another replica. `own` is what its shard vouches with.
    pub fn step(&mut self, message: Message, own: Mark) {
        let may_rest = self.may_rest();
        let Life::Running(group) = &mut self.life else {
            return;
        };
        group.allow_rest(may_rest.then_some(own));
        if let Err(error) = group.step(message) {
            match error.is_damage() {
                true => self.fail_damaged(&error),
                false => self.fail(&error.to_string()),
            }
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
        group.pace_members(now_ms);
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
