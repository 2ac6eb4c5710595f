//! When a replica stands for election.

use raft::{INVALID_ID, StateRole};

use super::{ELECTION_SOON_TICKS, ELECTION_TICKS, RaftGroup};

impl RaftGroup {
    /// Crate `raft` draws timeouts from the thread's generator whenever term or role changes; this
    /// replaces what it drew.
    pub(super) fn draw_election_timeout(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let ticks = ELECTION_TICKS + (self.random >> 11) as usize % ELECTION_TICKS;
        let raft = &mut self.raw.raft;
        raft.set_randomized_election_timeout(ticks);
        self.drawn_for = (raft.term, raft.state);
    }

    pub(super) fn changed(&mut self) {
        let raft = &self.raw.raft;
        if self.drawn_for != (raft.term, raft.state) {
            self.followers.clear();
            self.draw_election_timeout();
        }
    }

    /// Raft panics in a replica that stands for election while the start of its new log does not
    /// count as applied, and in one that elects itself before its log is synced. One that joins again
    /// does not know yet who votes.
    pub(super) fn may_campaign(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let membership = self.membership();
        self.started_in.is_none()
            && !membership.is_joining()
            && (log.persisted == log.last_index() || !membership.is_sole_voter(self.raw.raft.id))
    }

    /// Stands for election without waiting; asks first whether it would be elected (pre-vote).
    pub fn campaign(&mut self) {
        // An election that is under way already goes on.
        if !self.may_campaign() {
            return;
        }
        if self.raw.raft.state == StateRole::Follower || self.ticks.is_multiple_of(3) {
            let _ = self.raw.campaign();
            self.changed();
        }
    }

    /// The connection to that replica is lost. If it leads, it is not waited for as long as silence
    /// alone would be: the others, who lose it too, vote soon. (A leader that is still there for the
    /// others is protected by pre-vote: they do not answer while they hear of it.)
    pub fn lost(&mut self, raft_id: u64) {
        self.followers.lost(raft_id);
        if self.raw.raft.leader_id != raft_id {
            return;
        }
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, INVALID_ID);
        self.draw_election_timeout();
        let ticks = self.raw.raft.randomized_election_timeout();
        let soon = 1 + (self.random >> 20) as usize % ELECTION_SOON_TICKS;
        self.raw.raft.election_elapsed = ticks - soon;
    }
}
