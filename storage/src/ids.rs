//! Numbers that must not be mixed up.

/// The place of an entry in a group's Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RaftIndex(pub u64);

/// A Raft term. The first election makes term 1, and Kafka's first leader epoch is 0: an epoch is
/// its term less one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl RaftIndex {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Term {
    /// The term as batches and clients carry it; -1 before the first election. A group would need
    /// two billion elections to leave the range.
    pub fn leader_epoch(self) -> i32 {
        i32::try_from(self.0).map_or(i32::MAX, |term| term - 1)
    }

    /// The term of a batch's leader epoch; a batch without one (-1) is of term 0.
    pub fn from_leader_epoch(leader_epoch: i32) -> Self {
        Self(u64::try_from(i64::from(leader_epoch) + 1).unwrap_or(0))
    }
}
