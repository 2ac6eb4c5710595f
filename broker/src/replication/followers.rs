//! Which followers a leader counts as in sync.
//!
//! As in Kafka, a follower comes in when it holds all that is committed, and stays while it is heard
//! of and had, within the lag allowed, all that the leader had then. So one that is a batch behind
//! under load does not come and go.

/// Ticks without a word after which a follower is out.
const SILENCE_TICKS_MAX: u64 = 20;

/// Ticks without catching up after which a follower is out: Kafka's `replica.lag.time.max.ms`, 30 s.
const LAG_TICKS_MAX: u64 = 300;

/// What the leader of a term has seen of one follower.
#[derive(Debug, Clone, Copy)]
struct Follower {
    raft_id: u64,
    heard_at: u64,
    in_sync: bool,
    /// The leader's last entry at `goal_at`; the follower catches up when it holds it.
    goal: u64,
    goal_at: u64,
    caught_up_at: u64,
}

/// The positions that a judgement rests on.
#[derive(Debug, Clone, Copy)]
pub struct Positions {
    /// The last entry that the follower is known to hold.
    pub matched: u64,
    /// The leader's last entry.
    pub last: u64,
    pub committed: u64,
}

/// The followers of a leader, of whom it has heard in its term.
#[derive(Debug, Default)]
pub struct Followers {
    known: Vec<Follower>,
}

impl Followers {
    /// Of a leader that has just come, or leads no more.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// A message came from that follower.
    pub fn heard(&mut self, raft_id: u64, tick: u64) {
        match self.find(raft_id) {
            Some(follower) => follower.heard_at = tick,
            None => self.known.push(Follower {
                raft_id,
                heard_at: tick,
                in_sync: false,
                goal: u64::MAX,
                goal_at: tick,
                caught_up_at: 0,
            }),
        }
    }

    /// The connection to that follower is lost: it is out until it is heard of again.
    pub fn lost(&mut self, raft_id: u64) {
        self.known.retain(|follower| follower.raft_id != raft_id);
    }

    /// The group has other members now: whoever comes back later begins anew.
    pub fn keep_only(&mut self, is_member: impl Fn(u64) -> bool) {
        self.known.retain(|follower| is_member(follower.raft_id));
    }

    /// Takes in, once a tick, how far a follower has come.
    pub fn observe(&mut self, raft_id: u64, positions: Positions, tick: u64) {
        let in_sync = self.is_in_sync(raft_id, positions, tick);
        let Some(follower) = self.find(raft_id) else {
            return;
        };
        if !follower.in_sync || positions.matched >= follower.goal {
            follower.caught_up_at = follower.goal_at;
            follower.goal = positions.last;
            follower.goal_at = tick;
        }
        if in_sync && !follower.in_sync {
            follower.caught_up_at = tick;
        }
        follower.in_sync = in_sync;
    }

    pub fn is_in_sync(&self, raft_id: u64, positions: Positions, tick: u64) -> bool {
        let follower = self.known.iter().find(|known| known.raft_id == raft_id);
        follower.is_some_and(|follower| {
            let is_heard = tick.saturating_sub(follower.heard_at) <= SILENCE_TICKS_MAX;
            let lag = tick.saturating_sub(follower.caught_up_at);
            is_heard
                && (positions.matched >= positions.committed
                    || (follower.in_sync && lag <= LAG_TICKS_MAX))
        })
    }

    /// Ticks since the follower was heard of, and since it last held all that the leader held.
    pub fn ages(&self, raft_id: u64, tick: u64) -> Option<(u64, Option<u64>)> {
        let follower = self.known.iter().find(|known| known.raft_id == raft_id)?;
        let caught_up = (follower.caught_up_at > 0).then_some(follower.caught_up_at);
        let since = |at: u64| tick.saturating_sub(at);
        Some((since(follower.heard_at), caught_up.map(since)))
    }

    fn find(&mut self, raft_id: u64) -> Option<&mut Follower> {
        self.known.iter_mut().find(|known| known.raft_id == raft_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(matched: u64, last: u64) -> Positions {
        Positions {
            matched,
            last,
            committed: last,
        }
    }

    #[test]
    fn a_follower_comes_in_when_it_holds_what_is_committed() {
        let mut followers = Followers::default();
        assert!(!followers.is_in_sync(2, at(9, 9), 1), "nothing heard yet");
        followers.heard(2, 1);
        assert!(!followers.is_in_sync(2, at(8, 9), 1));
        assert!(followers.is_in_sync(2, at(9, 9), 1));
    }

    #[test]
    fn one_that_is_a_little_behind_stays_in_and_one_that_never_catches_up_goes() {
        let mut followers = Followers::default();
        followers.heard(2, 1);
        followers.observe(2, at(9, 9), 1);
        for tick in 2..=LAG_TICKS_MAX {
            followers.heard(2, tick);
            // It always holds what the leader had a tick ago.
            let now = at(8 + tick, 10 + tick);
            followers.observe(2, now, tick);
            assert!(followers.is_in_sync(2, now, tick), "tick {tick}");
        }
        let stuck_from = LAG_TICKS_MAX;
        for tick in stuck_from..stuck_from + 2 * LAG_TICKS_MAX {
            followers.heard(2, tick);
            followers.observe(2, at(stuck_from, 1000 + tick), tick);
        }
        assert!(!followers.is_in_sync(2, at(stuck_from, 5000), stuck_from + 2 * LAG_TICKS_MAX));
    }

    #[test]
    fn one_that_is_silent_or_cut_off_is_out() {
        let mut followers = Followers::default();
        followers.heard(2, 1);
        followers.observe(2, at(9, 9), 1);
        assert!(followers.is_in_sync(2, at(9, 9), 1 + SILENCE_TICKS_MAX));
        assert!(!followers.is_in_sync(2, at(9, 9), 2 + SILENCE_TICKS_MAX));
        followers.lost(2);
        assert!(!followers.is_in_sync(2, at(9, 9), 2));
    }

    #[test]
    fn one_that_left_and_joins_again_has_to_catch_up() {
        let mut followers = Followers::default();
        followers.heard(2, 1);
        followers.observe(2, at(9, 9), 1);
        assert!(
            followers.is_in_sync(2, at(0, 9), 2),
            "it may lag for a while"
        );
        followers.keep_only(|id| id != 2);
        followers.heard(2, 2);
        assert!(!followers.is_in_sync(2, at(0, 9), 2));
    }
}
