//! How a group's membership moves to what its assignment asks for, one step after the other.
//!
//! Brokers are added as learners, which hold no vote; once they have caught up, one change makes
//! them voters and takes the vote from those that go (joint consensus, Raft's dissertation §4.3, so
//! that no moment has two majorities that do not meet). Each step rests on what is applied, so
//! any leader can take the next one.
//!
//! Assignments are numbered. That one has been reached is logged in the group itself: a leader that
//! has not heard of a newer assignment yet finds there that its own is over, and does not bring
//! back replicas that may be deleted by then.

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

/// Who takes part in a group, as far as the log has been applied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Membership {
    pub conf: ConfState,
    /// The last change that `conf` includes; a Raft index.
    pub index: u64,
    /// The epoch of the last target that was reached.
    pub settled: u64,
    /// The epoch of a target without this replica, which has been added again since; 0 if there was
    /// none.
    pub joins_after: u64,
}

impl Membership {
    /// What a group is founded with.
    pub fn of_founders(voters: Vec<u64>) -> Self {
        let conf = ConfState {
            voters,
            ..ConfState::default()
        };
        Self {
            conf,
            ..Self::default()
        }
    }

    /// Whether the log still has to tell that this replica was away. Memberships before that may
    /// name it, alone even, and mean another: it must not stand for election, nor vote.
    pub fn is_joining(&self) -> bool {
        self.settled < self.joins_after
    }

    /// Whether nobody else votes.
    pub fn is_sole_voter(&self, raft_id: u64) -> bool {
        !self.is_joining() && self.conf.voters == [raft_id] && self.conf.voters_outgoing.is_empty()
    }

    /// Whether anybody else takes part.
    pub fn has_others(&self, raft_id: u64) -> bool {
        let conf = &self.conf;
        let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing];
        lists.into_iter().flatten().any(|id| *id != raft_id)
    }
}

/// The members that a group is to have; Raft ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Of two targets the one with the higher epoch counts. 0 is what the group was founded with.
    pub epoch: u64,
    pub voters: Vec<u64>,
    /// Follow the log without a vote.
    pub learners: Vec<u64>,
}

/// What a leader does next for a target.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Log this change.
    Change(ConfChangeV2),
    /// Let that voter lead: this one will not stay.
    HandOver(u64),
    /// Log that the target is reached.
    Settle,
}

/// The next step of the leader `own_id`, whose membership is `conf`, towards the target; `None` if
/// there is none, or none yet. `settled` is the last target that was reached.
pub fn next_step(
    own_id: u64,
    conf: &ConfState,
    settled: u64,
    target: &Target,
    is_caught_up: impl Fn(u64) -> bool,
) -> Option<Step> {
    let caught_up = |id: u64| id == own_id || is_caught_up(id);
    if !voters(conf).contains(&own_id) {
        // It came to lead before the change that takes its vote was known to be committed.
        let successor = conf.voters.iter().find(|id| caught_up(**id));
        return successor.map(|id| Step::HandOver(*id));
    }
    if target.epoch <= settled || target.voters.is_empty() {
        return None;
    }
    if !conf.voters_outgoing.is_empty() {
        if conf.voters.contains(&own_id) {
            return Some(Step::Change(ConfChangeV2::default()));
        }
        let successor = conf.voters.iter().find(|id| caught_up(**id));
        return successor.map(|id| Step::HandOver(*id));
    }
    let is_wanted = |id: &u64| target.voters.contains(id) || target.learners.contains(id);
    if let Some(id) = conf.learners.iter().find(|id| !is_wanted(id)) {
        return Some(change(&[(ConfChangeType::RemoveNode, *id)]));
    }
    let is_member = |id: &u64| conf.voters.contains(id) || conf.learners.contains(id);
    let mut wanted = target.voters.iter().chain(&target.learners);
    if let Some(id) = wanted.find(|id| !is_member(id)) {
        return Some(change(&[(ConfChangeType::AddLearnerNode, *id)]));
    }
    let added: Vec<u64> = difference(&target.voters, &conf.voters);
    let removed: Vec<u64> = difference(&conf.voters, &target.voters);
    if added.is_empty() && removed.is_empty() {
        return Some(Step::Settle);
    }
    let ready = target.voters.iter().filter(|id| caught_up(**id)).count();
    if !added.iter().all(|id| caught_up(*id)) || ready <= target.voters.len() / 2 {
        return None;
    }
    if removed.contains(&own_id) {
        let mut staying = target.voters.iter().filter(|id| conf.voters.contains(id));
        if let Some(successor) = staying.find(|id| caught_up(**id)) {
            return Some(Step::HandOver(*successor));
        }
    }
    let added = added.into_iter().map(|id| (ConfChangeType::AddNode, id));
    let removed = removed.into_iter().map(|id| {
        let kind = match target.learners.contains(&id) {
            true => ConfChangeType::AddLearnerNode,
            false => ConfChangeType::RemoveNode,
        };
        (kind, id)
    });
    Some(change(&added.chain(removed).collect::<Vec<_>>()))
}

fn difference(of: &[u64], without: &[u64]) -> Vec<u64> {
    let rest = of.iter().filter(|id| !without.contains(id));
    rest.copied().collect()
}

/// One change is applied at once; several make a joint membership, which is left by a step of its own.
fn change(singles: &[(ConfChangeType, u64)]) -> Step {
    let mut change = ConfChangeV2::default();
    if singles.len() > 1 {
        change.set_transition(ConfChangeTransition::Explicit);
    }
    for (kind, id) in singles {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(*kind);
        single.node_id = *id;
        change.mut_changes().push(single);
    }
    Step::Change(change)
}

/// How many members hold whatever is committed, at least.
pub fn majority(conf: &ConfState) -> usize {
    let of = |voters: &[u64]| match voters.len() {
        0 => 0,
        count => count / 2 + 1,
    };
    of(&conf.voters).max(of(&conf.voters_outgoing))
}

/// Everybody who votes, in the old membership or the new one.
pub fn voters(conf: &ConfState) -> Vec<u64> {
    let mut all = conf.voters.clone();
    all.extend(difference(&conf.voters_outgoing, &conf.voters));
    all
}

/// A change in Raft's own encoding; empty for the one that leaves a joint membership.
pub fn encode(change: &ConfChangeV2) -> Result<Vec<u8>, protobuf::ProtobufError> {
    change.write_to_bytes()
}

#[cfg(test)]
mod tests {
    use raft::Config;
    use raft::raw_node::RawNode;
    use raft::storage::MemStorage;

    use super::*;

    fn conf(voters: &[u64], outgoing: &[u64], learners: &[u64]) -> ConfState {
        ConfState {
            voters: voters.to_vec(),
            voters_outgoing: outgoing.to_vec(),
            learners: learners.to_vec(),
            ..ConfState::default()
        }
    }

    fn target(voters: &[u64], learners: &[u64]) -> Target {
        Target {
            epoch: 1,
            voters: voters.to_vec(),
            learners: learners.to_vec(),
        }
    }

    /// Takes step after step, as leaders do one after the other, until the target is settled.
    /// Returns the memberships on the way.
    fn walk(from: &[u64], target: &Target) -> Vec<ConfState> {
        let mut leader = from[0];
        let storage = MemStorage::new_with_conf_state((from.to_vec(), Vec::new()));
        let config = Config {
            id: leader,
            ..Config::default()
        };
        let logger = super::super::raft_logger::logger();
        let mut raft = RawNode::new(&config, storage, &logger).unwrap();
        let mut now = conf(from, &[], &[]);
        let mut seen = Vec::new();
        for _ in 0..50 {
            match next_step(leader, &now, 0, target, |_| true).expect("everybody is caught up") {
                Step::HandOver(to) => {
                    assert!(now.voters.contains(&to));
                    leader = to;
                }
                Step::Change(change) => {
                    now = raft.apply_conf_change(&change).unwrap();
                    seen.push(now.clone());
                }
                Step::Settle => return seen,
            }
        }
        panic!("no end: {now:?}");
    }

    #[test]
    fn every_set_of_voters_is_reached_from_every_other() {
        let sets: Vec<Vec<u64>> = (1..32u64)
            .map(|bits| (1..=5).filter(|id| bits >> (id - 1) & 1 == 1).collect())
            .collect();
        for from in &sets {
            for to in &sets {
                let last = walk(from, &target(to, &[])).pop();
                let mut voters = last.map_or_else(|| from.clone(), |conf| conf.voters);
                voters.sort_unstable();
                assert_eq!(&voters, to, "from {from:?}");
            }
        }
    }

    #[test]
    fn a_voter_can_become_a_learner_and_back() {
        let seen = walk(&[1, 2, 3], &target(&[2, 3], &[1, 4]));
        let last = seen.last().unwrap();
        let mut learners = last.learners.clone();
        learners.sort_unstable();
        assert_eq!(learners, [1, 4]);
        assert!(last.voters_outgoing.is_empty());
    }

    #[test]
    fn nobody_gets_a_vote_before_catching_up() {
        let goal = target(&[1, 2, 4], &[]);
        let now = conf(&[1, 2, 3], &[], &[4]);
        assert_eq!(next_step(1, &now, 0, &goal, |id| id != 4), None);
        assert!(next_step(1, &now, 0, &goal, |_| true).is_some());
    }

    #[test]
    fn voters_go_only_if_a_majority_of_those_who_stay_keeps_up() {
        let goal = target(&[2, 3], &[]);
        let now = conf(&[1, 2, 3], &[], &[]);
        assert_eq!(next_step(2, &now, 0, &goal, |_| false), None);
        assert!(next_step(2, &now, 0, &goal, |id| id == 3).is_some());
    }

    #[test]
    fn a_leader_that_goes_hands_over_first() {
        let goal = target(&[2, 3], &[]);
        let now = conf(&[1, 2, 3], &[], &[]);
        assert_eq!(
            next_step(1, &now, 0, &goal, |_| true),
            Some(Step::HandOver(2))
        );
        // Nobody stays: it leads into the joint membership, and hands over there.
        let joint = conf(&[4, 5], &[1], &[]);
        assert_eq!(
            next_step(1, &joint, 0, &target(&[4, 5], &[]), |id| id == 5),
            Some(Step::HandOver(5))
        );
    }

    #[test]
    fn a_leader_without_a_vote_hands_over_whatever_the_target() {
        let now = conf(&[2], &[], &[]);
        let step = next_step(1, &now, 1, &target(&[2], &[]), |_| true);
        assert_eq!(step, Some(Step::HandOver(2)));
    }

    #[test]
    fn a_target_that_was_reached_or_is_older_is_left_alone() {
        let now = conf(&[1, 2, 3], &[], &[]);
        for settled in [1, 2] {
            assert_eq!(
                next_step(1, &now, settled, &target(&[4], &[]), |_| true),
                None
            );
        }
    }

    #[test]
    fn a_majority_is_one_of_the_old_and_of_the_new() {
        assert_eq!(majority(&conf(&[1], &[], &[2])), 1);
        assert_eq!(majority(&conf(&[1, 2, 3], &[], &[])), 2);
        assert_eq!(majority(&conf(&[1], &[1, 2, 3, 4], &[])), 3);
        assert_eq!(voters(&conf(&[1], &[1, 2], &[5])), [1, 2]);
    }
}
