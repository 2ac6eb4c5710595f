//! Numbers that must not be mixed up.

/// The place of an entry in a group's Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RaftIndex(pub u64);

/// A Raft term. It is the partition's leader epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl RaftIndex {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Term {
    /// The term as batches and clients carry it. A group would need two billion elections to leave
    /// the range.
    pub fn leader_epoch(self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }

    /// The term of a batch's leader epoch; a batch without one (-1) is of term 0.
    pub fn from_leader_epoch(leader_epoch: i32) -> Self {
        Self(u64::try_from(leader_epoch).unwrap_or(0))
    }
}
