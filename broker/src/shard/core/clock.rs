//! The shard's clock: which partitions it goes round, and who rests meanwhile.
//!
//! Only partitions that are awake are looked at each tick, and only those that were touched since the
//! last time note how far they are. So a shard costs what happens on it, not how much lies on it.

use super::{PartitionId, RECOVERY_POINT_INTERVAL_MS, Shard, group_key};
use crate::replication::hibernation::{Mark, Reliance};
use crate::replication::{broker_id, raft_id};

/// Partitions by id, each once.
#[derive(Debug, Default)]
pub(super) struct IdSet {
    ids: Vec<PartitionId>,
    is_in: Vec<bool>,
}

impl IdSet {
    pub fn insert(&mut self, id: PartitionId) {
        let at = id.0 as usize;
        if at >= self.is_in.len() {
            self.is_in.resize(at + 1, false);
        }
        if let Some(is_in) = self.is_in.get_mut(at)
            && !std::mem::replace(is_in, true)
        {
            self.ids.push(id);
        }
    }

    pub fn pop(&mut self) -> Option<PartitionId> {
        let id = self.ids.pop()?;
        self.leave(id);
        Some(id)
    }

    /// Takes all out.
    pub fn take(&mut self) -> Vec<PartitionId> {
        let ids = std::mem::take(&mut self.ids);
        for id in &ids {
            self.leave(*id);
        }
        ids
    }

    fn leave(&mut self, id: PartitionId) {
        if let Some(is_in) = self.is_in.get_mut(id.0 as usize) {
            *is_in = false;
        }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

impl Shard {
    pub(super) fn tick(&mut self, now_ms: i64) {
        for silent in self.watch.tick() {
            self.wake_those(|reliance| (reliance.raft_id, reliance.mark.shard) == silent);
            self.watch.forget(silent);
        }
        let own = self.watch.own();
        let pulses = self.watch.pulses().into_iter();
        self.pulses
            .extend(pulses.map(|partner| (broker_id(partner), own)));
        // A round under way may hold the files of a suspended log, and could still fail.
        let may_resume = self.under_way.is_none() && self.gathered_tickets.is_empty();
        for id in self.awake.take() {
            if self.tick_partition(id, may_resume, now_ms) {
                self.awake.insert(id);
            }
        }
        if now_ms >= self.next_recovery_points_ms {
            self.next_recovery_points_ms = now_ms + RECOVERY_POINT_INTERVAL_MS;
            self.note_progress();
        }
        if now_ms >= self.next_maintenance_ms && self.has_saved_all() {
            self.next_maintenance_ms = now_ms + self.settings.retention_check_interval_ms;
            let expiration_ms = self.settings.producer_expiration_ms;
            for partition in self.partitions.iter_mut().flatten() {
                partition.maintain(now_ms, expiration_ms);
            }
        }
    }

    /// Whether all states of groups are durable; if not, they will be soon. The changes of membership in segments
    /// that are removed are known from the saved states alone.
    fn has_saved_all(&mut self) -> bool {
        if let Some(ticket) = self.hard_states.sync_ticket()
            && let Err(error) = ticket.run()
        {
            self.fail_all(&error.to_string());
            return false;
        }
        self.hard_states.is_durable()
    }

    /// Says whether the partition stays awake.
    fn tick_partition(&mut self, id: PartitionId, may_resume: bool, now_ms: i64) -> bool {
        let own = self.watch.own();
        let Some(partition) = self.partition(id) else {
            return false;
        };
        if let Some(on) = partition.relies_on() {
            let on = on.to_vec();
            if self.watch.rely(&on) {
                return false;
            }
            self.rouse(id, true);
        }
        let Some(partition) = self.partition(id) else {
            return false;
        };
        partition.tick(own, now_ms);
        let key = partition.view.key();
        if may_resume
            && let Some(state) = partition.resume(now_ms)
            // What was put aside with the group may not have been written.
            && let Err(error) = self.save_now(key, state)
            && let Some(partition) = self.partition(id)
        {
            partition.state_not_saved(&error, now_ms);
        }
        let Some(partition) = self.partition(id) else {
            return false;
        };
        let sync = partition.flush_overdue(now_ms);
        let has_ready = partition.has_ready();
        self.gather(id, None, sync);
        if has_ready {
            self.activate(id);
        }
        self.note_end(id);
        true
    }

    /// If the replica has left its group without a word, those who rest with it have to look.
    pub(super) fn note_end(&mut self, id: PartitionId) {
        if self
            .partition(id)
            .is_some_and(|partition| partition.take_ended())
        {
            self.watch.disavow();
            self.awake.insert(id);
        }
    }

    /// Something is to happen in that partition, or has: its clock runs.
    pub(super) fn wake(&mut self, id: PartitionId) {
        self.rouse(id, true);
        self.awake.insert(id);
    }

    /// As [`Self::wake`], by the group's leader, which need not be told.
    pub(super) fn wake_by_leader(&mut self, id: PartitionId) {
        self.rouse(id, false);
        self.awake.insert(id);
    }

    fn rouse(&mut self, id: PartitionId, tell_leader: bool) {
        let Some(Some(partition)) = self.partitions.get_mut(id.0 as usize) else {
            return;
        };
        if partition.relies_on().is_some() {
            let watch = &self.watch;
            partition.wake(|reliance| watch.silent_ticks(reliance), tell_leader);
            self.activate(id);
        }
    }

    /// Wakes those whose rest relies on such.
    pub(super) fn wake_those(&mut self, relies: impl Fn(&Reliance) -> bool) {
        for at in 0..self.partitions.len() {
            let id = PartitionId(u32::try_from(at).unwrap_or(u32::MAX));
            let relied = self
                .partition(id)
                .and_then(|partition| partition.relies_on());
            if relied.is_some_and(|on| on.iter().any(&relies)) {
                self.wake(id);
            }
        }
    }

    /// A shard of another broker vouches for what rests on it.
    pub(super) fn pulse(&mut self, broker: i32, mark: Mark) {
        let from = raft_id(broker);
        if self.watch.pulse(from, mark) {
            self.wake_those(|on| {
                on.raft_id == from && on.mark.shard == mark.shard && on.mark.epoch != mark.epoch
            });
        }
    }

    /// The connection to that broker is lost.
    pub(super) fn disconnected(&mut self, broker: i32) {
        let lost = raft_id(broker);
        self.wake_those(|on| on.raft_id == lost);
        self.watch.lost(lost);
        for at in 0..self.partitions.len() {
            let id = PartitionId(u32::try_from(at).unwrap_or(u32::MAX));
            let leader = self.partition(id).map(|partition| partition.view.leader());
            if leader == Some(broker) {
                // Its clock brings the election.
                self.wake(id);
            }
            if let Some(partition) = self.partition(id) {
                partition.lost(lost);
                self.activate(id);
            }
        }
    }

    /// Pulses that are to be sent, with the brokers that they are for.
    pub fn take_pulses(&mut self) -> Vec<(i32, Mark)> {
        std::mem::take(&mut self.pulses)
    }

    /// How many partitions have a clock that runs.
    pub fn awake_count(&self) -> usize {
        self.awake.len()
    }

    /// Notes how far logs are durable and groups committed, so that a restart neither has to scan the
    /// ones nor to learn the others from a leader.
    fn note_progress(&mut self) {
        while let Some(id) = self.touched.pop() {
            let Some(partition) = self.partition(id) else {
                continue;
            };
            partition.write_recovery_point();
            let group = group_key(partition.view.key());
            if let Some(state) = partition.saved_state()
                && self.hard_states.get(group) != Some(&state)
                && let Err(error) = self.hard_states.put(group, state)
            {
                tracing::warn!(%error, "commit indexes could not be noted");
                self.touched.insert(id);
                return;
            }
        }
    }
}
