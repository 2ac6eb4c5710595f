//! How a group comes to rest and wakes; see [`super::super::hibernation`] for why it may.

use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};

use super::super::hibernation::{Mark, Reliance};
use super::RaftGroup;

/// Ticks for which nothing must have happened before a leader offers rest.
const QUIET_TICKS_MIN: u64 = 10;

/// A replica's part in its group's rest.
#[derive(Default)]
pub(super) struct Rest {
    /// What this replica's shard vouches with; absent while the partition has something to do.
    own: Option<Mark>,
    /// On a leader: for how long nothing has happened.
    quiet_ticks: u64,
    /// On a leader: who has agreed.
    answers: Vec<Reliance>,
    /// Resting, and on whom it relies: a leader on all others, a follower on its leader.
    relies_on: Option<Vec<Reliance>>,
}

impl RaftGroup {
    /// Whether the partition would let its group rest, and what its shard vouches with.
    pub fn allow_rest(&mut self, own: Option<Mark>) {
        self.rest.own = own;
    }

    /// On whom this replica relies while it rests; `None` if it does not.
    pub fn relies_on(&self) -> Option<&[Reliance]> {
        self.rest.relies_on.as_deref()
    }

    /// A leader without others rests as soon as there is nothing to do.
    pub fn rest_alone(&mut self) {
        if self.rest.own.is_some() && self.is_at_rest_with(&[]) {
            self.rest.relies_on = Some(Vec::new());
        }
    }

    /// Whether that message is one of resting: it wakes nobody.
    pub fn is_of_rest(&self, message: &Message) -> bool {
        let Some((mark, relied)) = Mark::of(message).zip(self.rest.relies_on.as_ref()) else {
            return false;
        };
        let reliance = Reliance {
            raft_id: message.from,
            mark,
        };
        message.term == self.raw.raft.term
            && message.commit == self.raw.raft.raft_log.committed
            && relied.contains(&reliance)
    }

    /// The clock runs again. `silent_ticks` says for how long a shard has not been heard of. Who is
    /// not woken by its leader has to tell it, as that may be resting still.
    pub fn wake(&mut self, silent_ticks: impl Fn(&Reliance) -> u64, tell_leader: bool) {
        let Some(relied) = self.rest.relies_on.take() else {
            return;
        };
        self.rest.quiet_ticks = 0;
        self.rest.answers.clear();
        if relied.is_empty() {
            return;
        }
        if self.is_leader() {
            self.wake_as_leader(&relied, silent_ticks);
            return;
        }
        let silent = relied.first().map_or(0, silent_ticks);
        let raft = &mut self.raw.raft;
        let silent = usize::try_from(silent).unwrap_or(usize::MAX);
        raft.election_elapsed = silent.min(raft.randomized_election_timeout() - 1);
        if tell_leader && raft.leader_id != raft::INVALID_ID {
            let mut message = Message {
                to: raft.leader_id,
                from: raft.id,
                term: raft.term,
                commit: raft.raft_log.committed,
                ..Message::default()
            };
            message.set_msg_type(MessageType::MsgHeartbeatResponse);
            raft.msgs.push(message);
        }
    }

    /// Followers count as heard of when their shards were, and as active only once they answer: a
    /// leader that nobody answers steps down an election timeout from now.
    fn wake_as_leader(&mut self, relied: &[Reliance], silent_ticks: impl Fn(&Reliance) -> u64) {
        let longest = relied.iter().map(&silent_ticks).max().unwrap_or(0);
        self.ticks += longest;
        for reliance in relied {
            let heard_at = self.ticks.saturating_sub(silent_ticks(reliance));
            self.followers.heard(reliance.raft_id, heard_at);
        }
        let raft = &mut self.raw.raft;
        raft.election_elapsed = 0;
        for (_, progress) in raft.mut_prs().iter_mut() {
            progress.recent_active = false;
        }
        raft.ping();
    }

    /// To be called at each tick of a replica that is awake.
    pub(super) fn consider_rest(&mut self) {
        if self.may_offer_rest() {
            self.rest.quiet_ticks += 1;
        } else {
            self.rest.quiet_ticks = 0;
            self.rest.answers.clear();
        }
    }

    fn offers_rest(&self) -> bool {
        self.rest.quiet_ticks >= QUIET_TICKS_MIN && self.may_offer_rest()
    }

    /// Nothing is proposed, unsynced or under way, and everybody has everything and knows it.
    fn may_offer_rest(&self) -> bool {
        let raft = &self.raw.raft;
        self.rest.own.is_some()
            && self.may_serve()
            && !self.is_handing_over()
            && !raft.has_pending_conf()
            && self.membership().settled >= self.target.epoch
            && self.has_done_all()
            && raft.prs().iter().all(|(id, progress)| {
                *id == raft.id
                    || (progress.matched == raft.raft_log.committed
                        && progress.committed_index == raft.raft_log.committed
                        // One to which a message was lost is probed until it takes an entry, of
                        // which there may be none for long.
                        && progress.state != ProgressState::Snapshot
                        && self.keeps_up(*id))
            })
    }

    fn is_at_rest_with(&self, answers: &[Reliance]) -> bool {
        let members = self.raw.raft.prs();
        let mut others = members.iter().filter(|(id, _)| **id != self.raw.raft.id);
        self.may_offer_rest()
            && others.all(|(id, _)| answers.iter().any(|answer| answer.raft_id == *id))
    }

    /// All of the log is durable, committed and applied here.
    fn has_done_all(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let last = log.last_index();
        self.proposals.is_empty()
            && self.unsynced.is_empty()
            && self.held_back.is_empty()
            && self.started_in.is_none()
            && log.committed == last
            && log.persisted == last
            && log.applied == last
            && self.committed.0 == last
    }

    /// Takes the mark off a message, before Raft sees it.
    pub(super) fn take_mark(&self, message: &mut Message) -> Option<Mark> {
        let mark = Mark::of(message);
        if mark.is_some() {
            message.context.clear();
        }
        mark
    }

    /// A message of another member has been taken in; `mark` is what it carried.
    pub(super) fn heard_of_rest(&mut self, from: u64, term: u64, mark: Option<Mark>) {
        if self.is_leader() {
            self.rest.answers.retain(|answer| answer.raft_id != from);
            if let Some(mark) = mark.filter(|_| term == self.raw.raft.term)
                && self.offers_rest()
            {
                let answer = Reliance {
                    raft_id: from,
                    mark,
                };
                self.rest.answers.push(answer);
                if self.is_at_rest_with(&self.rest.answers) {
                    self.rest.relies_on = Some(self.rest.answers.clone());
                }
            }
            return;
        }
        let raft = &self.raw.raft;
        if let Some(mark) = mark
            && self.rest.own.is_some()
            && raft.state == StateRole::Follower
            && (raft.term, raft.leader_id) == (term, from)
            && !self.membership().is_joining()
            && self.has_done_all()
        {
            let leader = Reliance {
                raft_id: from,
                mark,
            };
            self.rest.relies_on = Some(vec![leader]);
        }
    }

    /// Offers rest with heartbeats, and agrees with the answers to such.
    pub(super) fn mark_messages(&self, messages: &mut [Message]) {
        let Some(own) = self.rest.own else {
            return;
        };
        let last = self.raw.raft.raft_log.last_index();
        for message in messages {
            let marks = match message.get_msg_type() {
                MessageType::MsgHeartbeat => self.offers_rest() && message.commit == last,
                MessageType::MsgHeartbeatResponse => {
                    let relied = self.rest.relies_on.as_deref().unwrap_or_default();
                    relied.iter().any(|leader| leader.raft_id == message.to)
                }
                _ => false,
            };
            if marks && message.term == self.raw.raft.term {
                message.context = own.encode();
            }
        }
    }
}
