//! A shard: the partitions of one thread, as a state machine.
//!
//! `handle` takes an event; `flush`, called once the mailbox is drained, lets every touched
//! partition write and gathers what must be synced into one round. At most one round is under way;
//! what becomes ready meanwhile waits for the next, so that batching grows with load and an idle
//! shard answers at once. The clock is an argument; files are reached through [`Disk`] only.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::{ConfState, HardState, Message};
use streamgauge_storage::StorageError;
use streamgauge_storage::disk::Disk;
use streamgauge_storage::hard_state::{GroupKey, HardStates, SavedState};
use streamgauge_storage::log::{Log, LogStart, SyncCover, SyncTicket};

mod clock;

use super::event::{
    AppendError, DeleteRecordsError, Effect, Event, GroupMessage, OpenPartition, OpenedPartition,
    PartitionId,
};
use super::partition::{Partition, ReadyToken, log_config};
use super::view::{PartitionKey, PartitionView};
use crate::replication::group::{Parts, RaftGroup};
use crate::replication::hibernation::{Mark, Watch};
use crate::replication::membership::Membership;
use crate::replication::throttle::ReplicationQuotas;
use crate::replication::{broker_id, raft_id};
use clock::IdSet;

/// How often a partition notes how far its log is durable, in milliseconds.
const RECOVERY_POINT_INTERVAL_MS: i64 = 1_000;

/// What a shard needs to know of its broker.
#[derive(Debug, Clone)]
pub struct ShardSettings {
    pub broker_id: i32,
    /// Among the broker's shards.
    pub number: u32,
    /// Where the shard keeps the hard states of its groups.
    pub directory: PathBuf,
    /// Milliseconds between two looks at what retention lets go.
    pub retention_check_interval_ms: i64,
    pub producer_expiration_ms: i64,
    /// Draws the election timeouts of the shard's groups, and must be another after each start.
    pub seed: u64,
    /// One for all shards of the broker.
    pub quotas: Arc<ReplicationQuotas>,
}

/// What a round of syncs settles.
struct Round {
    number: u64,
    readies: Vec<(PartitionId, Settled)>,
}

/// What a partition's part in a round settles.
struct Settled {
    ready: Option<ReadyToken>,
    cover: Option<SyncCover>,
}

pub struct Shard {
    settings: ShardSettings,
    disk: Arc<dyn Disk>,
    /// By id; the id of a deleted partition is not given out again.
    partitions: Vec<Option<Partition>>,
    by_key: HashMap<PartitionKey, PartitionId>,
    /// Messages for other brokers, in order.
    outbox: Vec<(i32, GroupMessage)>,
    /// Partitions that have something for Raft to do.
    active: IdSet,
    /// Partitions whose clock runs, some of which may have begun to rest since the last tick.
    awake: IdSet,
    /// Partitions in which something happened since progress was last noted.
    touched: IdSet,
    watch: Watch,
    /// For other brokers.
    pulses: Vec<(i32, Mark)>,
    hard_states: HardStates,
    /// What the next round settles and syncs.
    gathered: Vec<(PartitionId, Settled)>,
    gathered_tickets: Vec<SyncTicket>,
    under_way: Option<Round>,
    rounds: u64,
    has_peers: bool,
    /// Replicas that were to go and whose files remain: they are looked at again when the broker starts.
    left_behind: HashSet<PartitionKey>,
    /// A sync failed: nothing may rest on what is written from here on.
    has_failed: bool,
    next_maintenance_ms: i64,
    next_recovery_points_ms: i64,
}

impl Shard {
    /// Reads the hard states of the shard's groups; partitions are opened by events.
    pub fn open(
        settings: ShardSettings,
        disk: Arc<dyn Disk>,
        now_ms: i64,
    ) -> Result<Self, StorageError> {
        let hard_states = HardStates::open(Arc::clone(&disk), &settings.directory)?;
        Ok(Self {
            next_maintenance_ms: now_ms + settings.retention_check_interval_ms,
            next_recovery_points_ms: now_ms + RECOVERY_POINT_INTERVAL_MS,
            watch: Watch::new(settings.number, settings.seed),
            settings,
            disk,
            partitions: Vec::new(),
            by_key: HashMap::new(),
            outbox: Vec::new(),
            active: IdSet::default(),
            awake: IdSet::default(),
            touched: IdSet::default(),
            pulses: Vec::new(),
            hard_states,
            gathered: Vec::new(),
            gathered_tickets: Vec::new(),
            under_way: None,
            rounds: 0,
            has_peers: false,
            left_behind: HashSet::new(),
            has_failed: false,
        })
    }

    /// Takes one event. Call [`Self::flush`] once no more are waiting.
    pub fn handle(&mut self, event: Event, now_ms: i64) {
        match event {
            Event::Open(open) => self.open_partition(*open, now_ms),
            Event::Append(id, append) => {
                self.wake(id);
                match self.partition(id) {
                    Some(partition) => {
                        partition.append(append, now_ms);
                        self.activate(id);
                    }
                    None => drop(append.reply.send(Err(AppendError::UnknownPartition))),
                }
            }
            Event::BeginVerification {
                partition,
                wanted,
                reply,
            } => {
                let guard = self
                    .partition(partition)
                    .and_then(|partition| partition.begin_verification(&wanted, now_ms));
                // Whoever asked may have gone away.
                let _ = reply.send(guard);
            }
            Event::Judge {
                partition,
                batch,
                origin,
                guard,
                reply,
            } => {
                let judged = match self.partition(partition) {
                    Some(partition) => partition.judge(&batch, origin, guard),
                    None => Err(AppendError::UnknownPartition),
                };
                let _ = reply.send(judged);
            }
            Event::SaveCommit { partition, reply } => {
                let _ = reply.send(self.save_commit(partition));
            }
            Event::DeleteRecords {
                partition,
                before_offset,
                reply,
            } => {
                let id = partition;
                self.wake(id);
                match self.partition(id) {
                    Some(partition) => {
                        partition.delete_records(before_offset, reply);
                        self.activate(id);
                    }
                    None => drop(reply.send(Err(DeleteRecordsError::NotLeader))),
                }
            }
            Event::EpochEnd {
                partition,
                leader_epoch,
                reply,
            } => {
                let end = self
                    .partition(partition)
                    .and_then(|partition| partition.epoch_end(leader_epoch));
                let _ = reply.send(end);
            }
            Event::Producers { partition, reply } => {
                let producers = self
                    .partition(partition)
                    .map(|partition| partition.producers().entries().cloned().collect());
                drop(reply.send(producers));
            }
            Event::Replicas { partition, reply } => {
                let partition = self.partition(partition);
                let replicas = partition.and_then(|partition| partition.replicas());
                drop(reply.send(replicas));
            }
            Event::Configure { partition, config } => {
                if let Some(partition) = self.partition(partition) {
                    partition.configure(config);
                }
            }
            Event::Assign { partition, target } => {
                self.wake(partition);
                if let Some(partition) = self.partition(partition) {
                    partition.aim_at(target);
                }
            }
            Event::Delete {
                partition,
                lives_on,
                reply,
            } => {
                self.delete_partition(partition, lives_on);
                let _ = reply.send(());
            }
            Event::RemoveLeftovers {
                key,
                directory,
                epoch,
            } => self.remove_leftovers(key, &directory, epoch),
            Event::Raft { messages } => self.step(messages),
            Event::Unreachable { broker, groups } => {
                for group in groups {
                    let Some(id) = self.by_key.get(&group).copied() else {
                        continue;
                    };
                    self.wake(id);
                    if let Some(partition) = self.partition(id) {
                        partition.unreachable(raft_id(broker));
                    }
                }
            }
            Event::Pulse { broker, mark } => self.pulse(broker, mark),
            Event::Disconnected { broker } => self.disconnected(broker),
            Event::Transfer { partition, to } => {
                let id = partition;
                self.wake(id);
                if let Some(partition) = self.partition(id) {
                    partition.transfer(to.map(raft_id));
                    self.activate(id);
                }
            }
            Event::Synced { round, result } => self.synced(round, result),
            Event::Tick => self.tick(now_ms),
            Event::Close { reply } => {
                self.close(now_ms);
                let _ = reply.send(());
            }
        }
    }

    /// Lets the touched partitions go on and starts a round of syncs if one is wanted and none is
    /// under way.
    pub fn flush(&mut self, now_ms: i64) -> Option<Effect> {
        // Driving one partition never makes another ready, but a relaxed one may be ready again.
        while let Some(id) = self.active.pop() {
            self.drive(id, now_ms);
            self.note_end(id);
        }
        if self.under_way.is_some() {
            return None;
        }
        if let Some(ticket) = self.hard_states.sync_ticket() {
            self.gathered_tickets.push(ticket);
        }
        if self.gathered.is_empty() && self.gathered_tickets.is_empty() {
            return None;
        }
        self.rounds += 1;
        self.under_way = Some(Round {
            number: self.rounds,
            readies: std::mem::take(&mut self.gathered),
        });
        Some(Effect::Sync {
            round: self.rounds,
            tickets: std::mem::take(&mut self.gathered_tickets),
        })
    }

    fn drive(&mut self, id: PartitionId, now_ms: i64) {
        while let Some(partition) = self
            .partitions
            .get_mut(id.0 as usize)
            .and_then(Option::as_mut)
        {
            if !partition.has_ready() {
                return;
            }
            let key = partition.view.key();
            if let Some(state) = partition.state_to_come(now_ms)
                && let Err(error) = self.save_now(key, state)
            {
                if let Some(partition) = self.partition(id) {
                    partition.state_not_saved(&error, now_ms);
                }
                return;
            }
            let Some(partition) = self.partition(id) else {
                return;
            };
            let turn = partition.drive(now_ms);
            self.has_peers |= partition.has_peers();
            if let Some(state) = turn.state
                && let Err(error) = self.hard_states.put(group_key(key), state)
            {
                // A vote that is not written must not be given: the group is put aside, and with
                // it the messages that wait for the sync.
                if let Some(partition) = self.partition(id) {
                    partition.state_not_saved(&error, now_ms);
                }
                self.gather(id, None, turn.sync);
                return;
            }
            self.post(key, turn.messages);
            self.gather(id, turn.ready, turn.sync);
        }
    }

    /// Makes a group's state durable before anything else happens.
    fn save_now(&mut self, key: PartitionKey, state: SavedState) -> Result<(), StorageError> {
        self.hard_states.put(group_key(key), state)?;
        let synced = match self.hard_states.sync_ticket() {
            Some(ticket) => ticket.run(),
            None => Ok(()),
        };
        if let Err(error) = &synced {
            self.fail_all(&error.to_string());
        }
        synced
    }

    fn save_commit(&mut self, id: PartitionId) -> Result<(), StorageError> {
        if self.has_failed {
            return Err(StorageError::Failed);
        }
        let partition = self.partition(id).ok_or(StorageError::Failed)?;
        let (ticket, state) = partition.commit_to_save().ok_or(StorageError::Failed)?;
        let key = partition.view.key();
        if let Some(ticket) = ticket {
            if let Err(error) = ticket.run() {
                self.fail_all(&error.to_string());
                return Err(error);
            }
            if let Some(partition) = self.partition(id) {
                partition.durable(ticket.cover());
            }
        }
        self.save_now(key, state)
    }

    /// A sync failed. Which pages reached the disk is unknown, and the kernel may have marked them
    /// clean: a second sync that succeeds would prove nothing.
    fn fail_all(&mut self, reason: &str) {
        self.has_failed = true;
        for partition in self.partitions.iter_mut().flatten() {
            partition.fail(reason);
        }
        self.watch.disavow();
    }

    fn post(&mut self, group: PartitionKey, messages: Vec<Message>) {
        let addressed = messages
            .into_iter()
            .map(|message| (broker_id(message.to), GroupMessage { group, message }));
        self.outbox.extend(addressed);
    }

    /// The messages that are to be sent, in order, with the brokers that they are for.
    pub fn take_outbox(&mut self) -> Vec<(i32, GroupMessage)> {
        std::mem::take(&mut self.outbox)
    }

    fn step(&mut self, messages: Vec<GroupMessage>) {
        for GroupMessage { group, message } in messages {
            // Of a partition that is not here yet, or no more: the sender tries again.
            let Some(id) = self.by_key.get(&group).copied() else {
                continue;
            };
            if message.to != raft_id(self.settings.broker_id) {
                continue;
            }
            if let Some(mark) = Mark::of(&message) {
                // As good as a pulse, which a shard with nobody resting elsewhere does not send.
                self.pulse(broker_id(message.from), mark);
            }
            let Some(partition) = self.partition(id) else {
                continue;
            };
            if !partition.is_of_rest(&message) {
                match partition.view.leader() == broker_id(message.from) {
                    true => self.wake_by_leader(id),
                    false => self.wake(id),
                }
            }
            let own = self.watch.own();
            if let Some(partition) = self.partition(id) {
                partition.step(message, own);
                self.activate(id);
            }
            self.note_end(id);
        }
    }

    /// Whether a partition of this shard has replicas elsewhere, which wait for its messages.
    pub fn has_peers(&self) -> bool {
        self.has_peers
    }

    fn gather(&mut self, id: PartitionId, ready: Option<ReadyToken>, sync: Option<SyncTicket>) {
        let cover = sync.as_ref().map(SyncTicket::cover);
        self.gathered_tickets.extend(sync);
        if ready.is_some() || cover.is_some() {
            self.gathered.push((id, Settled { ready, cover }));
        }
    }

    fn synced(&mut self, number: u64, result: Result<(), String>) {
        let Some(round) = self.under_way.take_if(|round| round.number == number) else {
            return;
        };
        if let Err(reason) = result {
            self.fail_all(&reason);
            return;
        }
        for (id, settled) in round.readies {
            if let Some(partition) = self.partition(id) {
                if let Some(cover) = settled.cover {
                    partition.durable(cover);
                }
                self.touched.insert(id);
                let Some(partition) = self.partition(id) else {
                    continue;
                };
                if let Some(token) = settled.ready {
                    let key = partition.view.key();
                    let messages = partition.synced(token);
                    self.post(key, messages);
                    self.activate(id);
                }
            }
        }
    }

    fn open_partition(&mut self, open: OpenPartition, now_ms: i64) {
        let OpenPartition {
            key,
            topic,
            directory,
            config,
            founders,
            target,
            may_be_removed,
            reply,
        } = open;
        let id = PartitionId(u32::try_from(self.partitions.len()).unwrap_or(u32::MAX));
        let result = self.start_partition(key, topic, directory, config, &founders, now_ms);
        let opened = result.map(|mut partition| {
            if may_be_removed {
                partition.may_be_removed();
            }
            partition.aim_at(target);
            partition.take_quotas(Arc::clone(&self.settings.quotas));
            self.by_key.insert(key, id);
            let view = Arc::clone(&partition.view);
            self.partitions.push(Some(partition));
            self.awake.insert(id);
            self.activate(id);
            OpenedPartition { id, view }
        });
        drop(reply.send(opened));
    }

    fn start_partition(
        &mut self,
        key: PartitionKey,
        topic: Arc<str>,
        directory: PathBuf,
        config: Arc<crate::config::TopicConfig>,
        founders: &[i32],
        now_ms: i64,
    ) -> Result<Partition, StorageError> {
        if self.has_failed || self.left_behind.contains(&key) {
            return Err(StorageError::Failed);
        }
        let log_config = log_config(&config);
        let topic_id = crate::ids::to_base64(key.topic_id);
        let exists = self.disk.exists(&directory)?;
        let saved = self.hard_states.get(group_key(key)).cloned();
        let was_removed = saved.as_ref().is_some_and(|saved| saved.voters.is_empty());
        let is_other = Log::topic_id(&*self.disk, &directory).as_ref() != Some(&topic_id);
        if exists && (was_removed || is_other) {
            // What a topic of the same name left, a creation that a crash interrupted, or a replica
            // that was moved away: this one has never written here.
            tracing::warn!(
                %topic,
                partition = key.index,
                was_removed,
                "removed files that do not count any more"
            );
            Log::remove(&*self.disk, &directory)?;
        }
        let exists = self.disk.exists(&directory)?;
        let log = if exists {
            let (mut log, report) =
                Log::open(Arc::clone(&self.disk), &directory, log_config, now_ms)?;
            if report.truncated_bytes > 0 {
                tracing::warn!(
                    %topic,
                    partition = key.index,
                    bytes = report.truncated_bytes,
                    "cut a torn tail off the log"
                );
            }
            if let Some(corruption) = report.corruption {
                return Err(StorageError::Corrupt(corruption));
            }
            // What is found is served at once, and after a crash of the process alone it may be in
            // the page cache only.
            if let Some(ticket) = log.sync_ticket() {
                ticket.run()?;
                log.synced(ticket.cover());
            }
            log
        } else {
            Log::create(
                Arc::clone(&self.disk),
                &directory,
                log_config,
                LogStart::of_new_partition(),
                &topic_id,
                now_ms,
            )?
        };
        let mut saved = saved.unwrap_or_default();
        if saved.voters.is_empty() {
            // One that joins later learns from the log, or from where it is told to begin, who has
            // come and gone since, itself among them. Until then it votes for nobody but who asks.
            saved.voters = founders.iter().map(|broker| raft_id(*broker)).collect();
        }
        if was_removed {
            // From here on its files count again.
            self.save_now(key, saved.clone())?;
        }
        let (hard_state, membership) = restored(&saved);
        let own_id = raft_id(self.settings.broker_id);
        let committed = RaftGroup::recovered_commit(own_id, &log, &hard_state, &membership)?;
        let producers = log.recover_producers(log.offset_after(committed)?, now_ms)?;
        self.has_peers |= membership.has_others(own_id);
        let high_watermark = log.log_start_offset();
        let joins_after = membership.joins_after;
        let view = PartitionView::of_replica(key, log.reader(), high_watermark, joins_after);
        let view = Arc::new(view);
        Partition::start(
            topic,
            directory,
            view,
            config,
            own_id,
            self.settings.seed
                ^ (key.topic_id.as_u128() as u64)
                ^ u64::from(key.index.unsigned_abs()),
            founders.first() == Some(&self.settings.broker_id),
            Parts {
                log,
                hard_state,
                membership,
            },
            producers,
            now_ms,
        )
        .map_err(|error| StorageError::Raft(error.to_string()))
    }

    fn delete_partition(&mut self, id: PartitionId, lives_on: Option<u64>) {
        let Some(partition) = self
            .partitions
            .get_mut(id.0 as usize)
            .and_then(Option::take)
        else {
            return;
        };
        let key = partition.view.key();
        if lives_on.is_some() {
            self.watch.disavow();
        }
        self.by_key.remove(&key);
        let directory = partition.directory.clone();
        partition.delete(lives_on.is_some());
        self.remove_files(key, &directory, lives_on);
    }

    /// Finishes a removal that a crash interrupted.
    fn remove_leftovers(&mut self, key: PartitionKey, directory: &Path, epoch: u64) {
        let topic_id = crate::ids::to_base64(key.topic_id);
        let is_left = Log::topic_id(&*self.disk, directory).as_ref() == Some(&topic_id);
        // Without members the removal was interrupted; with them another replica has come since.
        let has_come_again = self.hard_states.get(group_key(key)).is_some_and(|saved| {
            saved.joins_after > 0 && saved.joins_after >= epoch && !saved.voters.is_empty()
        });
        if is_left && !has_come_again && !self.by_key.contains_key(&key) {
            self.remove_files(key, directory, Some(epoch));
        }
    }

    fn remove_files(&mut self, key: PartitionKey, directory: &Path, lives_on: Option<u64>) {
        let saved = match lives_on {
            Some(_) if self.has_failed => Err(StorageError::Failed),
            Some(epoch) => {
                // Its vote counts still. Members it has none until it is founded again.
                let state = self.hard_states.get(group_key(key));
                let vote = SavedState {
                    term: state.map_or(0, |state| state.term),
                    vote: state.map_or(0, |state| state.vote),
                    joins_after: epoch,
                    ..SavedState::default()
                };
                self.save_now(key, vote)
            }
            None => self.hard_states.remove(group_key(key)),
        };
        if let Err(error) = saved {
            tracing::error!(directory = %directory.display(), %error, "a replica's files remain");
            self.left_behind.insert(key);
            return;
        }
        // Readers that hold mappings keep what they have; the names go away at once.
        let removed = match lives_on {
            Some(_) => Log::remove(&*self.disk, directory),
            // The topic's id does not come back.
            None => self
                .disk
                .remove_dir_all(directory)
                .map_err(StorageError::from),
        };
        if let Err(error) = removed {
            tracing::warn!(directory = %directory.display(), %error, "deleted partition's files remain");
            self.left_behind.insert(key);
        }
    }

    /// Writes what is gathered, syncs it here and now, and marks the logs clean.
    fn close(&mut self, now_ms: i64) {
        while let Some(Effect::Sync { round, tickets }) = self.flush(now_ms) {
            let result = tickets
                .iter()
                .try_for_each(SyncTicket::run)
                .map_err(|error| error.to_string());
            self.synced(round, result);
        }
        for partition in self.partitions.iter_mut().flatten() {
            if let Err(error) = partition.close() {
                tracing::warn!(topic = %partition.topic, %error, "log could not be closed cleanly");
            }
        }
    }

    fn partition(&mut self, id: PartitionId) -> Option<&mut Partition> {
        self.partitions.get_mut(id.0 as usize)?.as_mut()
    }

    fn activate(&mut self, id: PartitionId) {
        self.active.insert(id);
        self.touched.insert(id);
    }
}

fn group_key(key: PartitionKey) -> GroupKey {
    GroupKey {
        topic_id: key.topic_id.into_bytes(),
        partition: key.index,
    }
}

fn restored(saved: &SavedState) -> (HardState, Membership) {
    let hard_state = HardState {
        term: saved.term,
        vote: saved.vote,
        commit: saved.commit,
        ..HardState::default()
    };
    let conf = ConfState {
        voters: saved.voters.clone(),
        learners: saved.learners.clone(),
        voters_outgoing: saved.voters_outgoing.clone(),
        learners_next: saved.learners_next.clone(),
        auto_leave: saved.auto_leave,
        ..ConfState::default()
    };
    let membership = Membership {
        conf,
        index: saved.conf_index,
        settled: saved.settled,
        joins_after: saved.joins_after,
    };
    (hard_state, membership)
}
