//! The members of a group: who they are, how far they have come, and how they change.

use raft::INVALID_ID;
use raft::eraftpb::{Entry as RaftEntry, EntryType};
use streamgauge_storage::RaftIndex;

use super::super::followers::Positions;
use super::super::log_storage::{InternalKind, LogStorage};
use super::super::membership::{self, Step, Target};
use super::{GroupError, RaftGroup, TICK_MS};

/// What a leader knows of a member.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    pub raft_id: u64,
    /// It has a vote.
    pub is_voter: bool,
    /// The last entry that it is known to hold.
    pub matched: RaftIndex,
    pub heard_ms_ago: Option<i64>,
    pub caught_up_ms_ago: Option<i64>,
}

impl RaftGroup {
    /// Whether other replicas take part in this group.
    pub fn has_peers(&self) -> bool {
        self.membership().has_others(self.raw.raft.id)
    }

    /// The members that the group is to have from now on; an older target than the last changes nothing.
    pub fn aim_at(&mut self, target: Target) {
        if target.epoch > self.target.epoch {
            self.target = target;
            self.assigned();
        }
    }

    /// Takes the next step towards the target, if this replica leads and there is one.
    pub fn pursue(&mut self) -> Result<(), GroupError> {
        if !self.may_serve() || self.is_handing_over() || self.raw.raft.has_pending_conf() {
            return Ok(());
        }
        let waits = |(term, index)| term == self.term() && index > self.committed;
        if self.step_under_way.is_some_and(waits) {
            return Ok(());
        }
        let membership = self.membership();
        let step = membership::next_step(
            self.raw.raft.id,
            &membership.conf,
            membership.settled,
            &self.target,
            |id| self.keeps_up(id),
        );
        let entry = match step {
            None => return Ok(()),
            Some(Step::HandOver(to)) => {
                self.transfer_to(to);
                return Ok(());
            }
            Some(Step::Change(change)) => RaftEntry {
                entry_type: EntryType::EntryConfChangeV2,
                data: membership::encode(&change)
                    .map_err(|error| GroupError::ConfChange(error.to_string()))?
                    .into(),
                ..RaftEntry::default()
            },
            Some(Step::Settle) => RaftEntry {
                context: bytes::Bytes::from_static(&[InternalKind::Settled as u8]),
                data: bytes::Bytes::copy_from_slice(&self.target.epoch.to_be_bytes()),
                ..RaftEntry::default()
            },
        };
        let index = self.propose_entry(entry)?;
        self.step_under_way = Some((self.term(), index));
        Ok(())
    }

    /// A leader that is no member any more leads no more: one elected while the change that removes it was under
    /// way. The crate would have it go on, and takes for granted that a leader is a member.
    pub(super) fn leave_if_removed(&mut self) {
        let raft = &self.raw.raft;
        if !self.is_leader() || raft.prs().get(raft.id).is_some() {
            return;
        }
        if let Some(successor) = self.successor() {
            self.transfer_to(successor);
        }
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, INVALID_ID);
    }

    /// Whether that member, learner or not, is heard of and keeps up with the log.
    pub(super) fn keeps_up(&self, raft_id: u64) -> bool {
        let raft = &self.raw.raft;
        raft.prs().get(raft_id).is_some_and(|progress| {
            let positions = positions(raft, progress);
            self.followers.is_in_sync(raft_id, positions, self.ticks)
        })
    }

    pub(super) fn observe_followers(&mut self) {
        if !self.is_leader() {
            return;
        }
        let raft = &self.raw.raft;
        for (id, progress) in raft.prs().iter() {
            let positions = positions(raft, progress);
            self.followers.observe(*id, positions, self.ticks);
        }
    }

    /// On a leader: the voters that are heard of and keep up with the log, this one included.
    /// What Kafka calls the in-sync replicas.
    pub fn in_sync(&self) -> Vec<u64> {
        self.in_sync_progress().map(|(id, _)| id).collect()
    }

    /// How many [`Self::in_sync`] has.
    pub fn in_sync_count(&self) -> usize {
        self.in_sync_progress().count()
    }

    fn in_sync_progress(&self) -> impl Iterator<Item = (u64, &raft::Progress)> {
        let raft = &self.raw.raft;
        let voters = raft.prs().conf().voters();
        let members = raft.prs().iter();
        members
            .filter(|(id, _)| voters.contains(**id) && (**id == raft.id || self.keeps_up(**id)))
            .map(|(id, progress)| (*id, progress))
    }

    /// On a leader: the replica in sync, beside this one, that holds the most of the log.
    pub fn successor(&self) -> Option<u64> {
        let own = self.raw.raft.id;
        self.in_sync_progress()
            .filter(|(id, _)| *id != own)
            .max_by_key(|(_, progress)| progress.matched)
            .map(|(id, _)| id)
    }

    /// On a leader: what it knows of the members, itself included.
    pub fn members(&self) -> Vec<Member> {
        let raft = &self.raw.raft;
        let members = raft.prs().iter().map(|(id, progress)| {
            let ages = match *id == raft.id {
                true => Some((0, Some(0))),
                false => self.followers.ages(*id, self.ticks),
            };
            let ms = |ticks: u64| i64::try_from(ticks).map_or(i64::MAX, |ticks| ticks * TICK_MS);
            Member {
                raft_id: *id,
                is_voter: raft.prs().conf().voters().contains(*id),
                matched: RaftIndex(progress.matched),
                heard_ms_ago: ages.map(|(heard, _)| ms(heard)),
                caught_up_ms_ago: ages.and_then(|(_, caught_up)| caught_up).map(ms),
            }
        });
        let mut members: Vec<Member> = members.collect();
        members.sort_by_key(|member| member.raft_id);
        members
    }

    /// On a leader: how many replicas are known to hold that entry on disk.
    pub fn holders_count(&self, index: RaftIndex) -> usize {
        let members = self.raw.raft.prs();
        let voters = members.conf().voters();
        members
            .iter()
            .filter(|(id, progress)| voters.contains(**id) && progress.matched >= index.0)
            .count()
    }

    /// How many replicas hold what is committed, at least.
    pub fn majority(&self) -> usize {
        membership::majority(&self.membership().conf)
    }

    /// How many replicas vote.
    pub fn voters_count(&self) -> usize {
        membership::voters(&self.membership().conf).len()
    }
}

fn positions(raft: &raft::Raft<LogStorage>, progress: &raft::Progress) -> Positions {
    Positions {
        matched: progress.matched,
        last: raft.raft_log.last_index(),
        committed: raft.raft_log.committed,
    }
}
