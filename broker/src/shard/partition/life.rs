//! How a replica comes to lead, and what becomes of it when the disk refuses writes.

use streamgauge_storage::hard_state::SavedState;
use streamgauge_storage::log::Log;

use super::drive::saved_state;
use super::{Life, Partition, RETRY_AFTER_MS};
use crate::replication::broker_id;
use crate::replication::group::{GroupError, RaftGroup};
use crate::shard::event::{AppendError, DeleteRecordsError};

impl Partition {
    /// Follows the group's leadership: whoever waits on a leader that is one no more is told, and a
    /// new one takes up offsets where the log ends.
    pub(super) fn settle_leadership(&mut self) {
        let Life::Running(group) = &self.life else {
            return;
        };
        let serving = group.may_serve();
        let leader = match group.leader() {
            Some(leader) => broker_id(leader),
            // Started anew after its disk was full, it has not heard of its leader yet, which is no sign that there is none.
            None if group.is_follower()
                && group.term().leader_epoch() == self.view.leader_epoch() =>
            {
                self.other_leader()
            }
            None => -1,
        };
        self.view.publish_follows(group.leader().is_some());
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
            self.verifications.clear();
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
    pub(super) fn suspend(&mut self, error: &GroupError, now_ms: i64) {
        if !matches!(self.life, Life::Running(_)) {
            // A sync that failed has ended more than this write.
            return;
        }
        if error.is_damage() {
            self.fail_damaged(error);
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
        let leader = match alone {
            true => broker_id(self.raft_id),
            false => self.other_leader(),
        };
        self.view.publish_follows(false);
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
                if self.may_be_removed {
                    group.may_be_removed();
                }
                group.aim_at(self.target.clone());
                // Whether it can write is seen when it writes its term's first entry.
                let committed = group.committed();
                self.next_offset = group.log().next_offset();
                let state = saved_state(&group);
                self.life = Life::Running(Box::new(group));
                self.throttle();
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
        self.view.publish_failed();
        self.leads = false;
        self.has_ended |= !alone;
        self.incarnation += 1;
        self.fail_pending(reason);
        self.producers.drop_in_flight();
        if !alone {
            self.view.publish_follows(false);
            self.view
                .publish_leadership(self.other_leader(), self.view.leader_epoch(), false);
        }
    }

    /// Who leads as far as is known, if that is another replica: it does so whatever becomes of this one, and clients that ask this
    /// broker have to hear of it.
    fn other_leader(&self) -> i32 {
        let leader = self.view.leader();
        match leader == broker_id(self.raft_id) {
            true => -1,
            false => leader,
        }
    }

    /// The replica does not hold what it acknowledged: another has to take its place.
    pub fn fail_damaged(&mut self, error: &GroupError) {
        self.fail(&error.to_string());
        self.view.publish_damaged();
    }

    fn fail_pending(&mut self, reason: &str) {
        self.refuse_pending(&AppendError::Storage(reason.to_owned()));
    }

    pub(super) fn refuse_pending(&mut self, error: &AppendError) {
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

    /// Stops serving; the files are the caller's to remove.
    pub fn delete(mut self, lives_on: bool) {
        match lives_on {
            true => self.refuse_pending(&AppendError::NotLeader),
            false => self.fail_pending("the topic was deleted"),
        }
        self.view.publish_deleted();
    }
}
