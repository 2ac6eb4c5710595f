//! One transactional id: its producer, and the transaction that is open or was last (`TransactionMetadata`).

use std::collections::BTreeSet;

/// Stands for no producer id, and for no epoch.
pub const NO_PRODUCER_ID: i64 = -1;
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// When no transaction has been begun.
pub const NO_TIMESTAMP: i64 = -1;

/// A partition by topic name and index.
pub type TopicPartition = (String, i32);

/// Where a transaction is; the numbers are those of the log (`TransactionState`). What Kafka calls `Dead` and `PrepareEpochFence` are moments
/// of its own code, which never reach the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// None has been begun since the producer was initialised.
    Empty,
    Ongoing,
    /// Decided; markers are on their way to the partitions.
    PrepareCommit,
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
}

impl State {
    pub const ALL: [Self; 6] = [
        Self::Empty,
        Self::Ongoing,
        Self::PrepareCommit,
        Self::PrepareAbort,
        Self::CompleteCommit,
        Self::CompleteAbort,
    ];

    pub fn id(self) -> i8 {
        match self {
            Self::Empty => 0,
            Self::Ongoing => 1,
            Self::PrepareCommit => 2,
            Self::PrepareAbort => 3,
            Self::CompleteCommit => 4,
            Self::CompleteAbort => 5,
        }
    }

    pub fn from_id(id: i8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.id() == id)
    }

    /// As clients are shown it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }

    /// Whether markers are still being written.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::PrepareCommit | Self::PrepareAbort)
    }
}

/// From this version on a producer's epoch is raised with each of its transactions (KIP-890, `TransactionVersion.supportsEpochBump`).
pub const EPOCH_BUMP_VERSION: i16 = 2;

/// A transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub producer_id: i64,
    /// Before the last change.
    pub previous_producer_id: i64,
    /// Takes over when the transaction is complete, as the epochs of this one are exhausted.
    pub next_producer_id: i64,
    pub producer_epoch: i16,
    /// Of the producer's last call, to know a repeated one. Not in the log, as in Kafka.
    pub last_producer_epoch: i16,
    pub timeout_ms: i32,
    pub state: State,
    pub partitions: BTreeSet<TopicPartition>,
    pub start_timestamp_ms: i64,
    pub last_update_timestamp_ms: i64,
    /// Of the protocol by which the client last changed it.
    pub client_version: i16,
}

impl Transaction {
    /// A transactional id that is used for the first time.
    pub fn new(producer_id: i64, now_ms: i64) -> Self {
        Self {
            producer_id,
            previous_producer_id: NO_PRODUCER_ID,
            next_producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            last_producer_epoch: NO_PRODUCER_EPOCH,
            timeout_ms: 0,
            state: State::Empty,
            partitions: BTreeSet::new(),
            start_timestamp_ms: NO_TIMESTAMP,
            last_update_timestamp_ms: now_ms,
            client_version: 0,
        }
    }

    /// Whether no epoch is left for clients. The very last is kept to fence with.
    pub fn is_epoch_exhausted(&self) -> bool {
        is_epoch_exhausted(self.producer_epoch)
    }

    /// A transactional id may be forgotten while it has no transaction open.
    pub fn may_expire(&self) -> bool {
        matches!(
            self.state,
            State::Empty | State::CompleteCommit | State::CompleteAbort
        )
    }

    /// Begins anew, as another producer or after an error: `None` if the producer that asks is fenced. `expected_epoch` is the
    /// epoch that it has, if it has one (KIP-360).
    pub fn initialized(
        &self,
        timeout_ms: i32,
        expected_epoch: Option<i16>,
        now_ms: i64,
    ) -> Option<Self> {
        let bumped = self.producer_epoch.checked_add(1)?;
        let (producer_epoch, last_producer_epoch) = match expected_epoch {
            None => (bumped, NO_PRODUCER_EPOCH),
            Some(expected)
                if self.producer_epoch == NO_PRODUCER_EPOCH || expected == self.producer_epoch =>
            {
                (bumped, self.producer_epoch)
            }
            // The answer was lost. Had another producer begun, the last epoch would be none.
            Some(expected) if expected == self.last_producer_epoch => {
                (self.producer_epoch, self.last_producer_epoch)
            }
            Some(_) => return None,
        };
        Some(Self {
            producer_epoch,
            last_producer_epoch,
            ..self.empty(timeout_ms, now_ms)
        })
    }

    /// As [`Self::initialized`], with a new producer id since the epochs of the old one are exhausted.
    pub fn rotated(
        &self,
        new_producer_id: i64,
        timeout_ms: i32,
        is_known: bool,
        now_ms: i64,
    ) -> Self {
        Self {
            producer_id: new_producer_id,
            producer_epoch: 0,
            last_producer_epoch: match is_known {
                true => self.producer_epoch,
                false => NO_PRODUCER_EPOCH,
            },
            ..self.empty(timeout_ms, now_ms)
        }
    }

    fn empty(&self, timeout_ms: i32, now_ms: i64) -> Self {
        Self {
            previous_producer_id: self.producer_id,
            timeout_ms,
            state: State::Empty,
            partitions: BTreeSet::new(),
            start_timestamp_ms: NO_TIMESTAMP,
            last_update_timestamp_ms: now_ms,
            ..self.clone()
        }
    }

    /// Partitions are about to be written to.
    pub fn with_partitions(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
        client_version: i16,
        now_ms: i64,
    ) -> Self {
        let mut next = Self {
            previous_producer_id: self.producer_id,
            state: State::Ongoing,
            last_update_timestamp_ms: now_ms,
            client_version,
            ..self.clone()
        };
        if self.state != State::Ongoing {
            next.start_timestamp_ms = now_ms;
        }
        next.partitions.extend(partitions);
        next
    }

    /// The outcome is decided. With epoch bumps the markers already have the epoch that the producer goes on with; if it is the last,
    /// `next_producer_id` is what it goes on with.
    pub fn prepared(
        &self,
        committed: bool,
        client_version: i16,
        next_producer_id: i64,
        now_ms: i64,
    ) -> Self {
        let mut next = Self {
            previous_producer_id: self.producer_id,
            next_producer_id,
            state: match committed {
                true => State::PrepareCommit,
                false => State::PrepareAbort,
            },
            last_update_timestamp_ms: now_ms,
            client_version,
            ..self.clone()
        };
        if client_version >= EPOCH_BUMP_VERSION {
            // At the very last epoch an abort goes through all the same, so that the id can be used again.
            next.producer_epoch = self.producer_epoch.saturating_add(1);
            next.last_producer_epoch = self.producer_epoch;
        }
        if self.state != State::Ongoing {
            // Nothing was begun, and a transaction that ends must have a beginning.
            next.start_timestamp_ms = now_ms;
        }
        next
    }

    /// As [`Self::prepared`] to abort, in the name of the coordinator: the producer is fenced in any case.
    pub fn fenced(&self, next_producer_id: i64, now_ms: i64) -> Self {
        self.prepared(false, EPOCH_BUMP_VERSION, next_producer_id, now_ms)
    }

    /// All markers are written.
    pub fn completed(&self, now_ms: i64) -> Self {
        let mut next = Self {
            previous_producer_id: self.producer_id,
            next_producer_id: NO_PRODUCER_ID,
            state: match self.state {
                State::PrepareCommit => State::CompleteCommit,
                _ => State::CompleteAbort,
            },
            partitions: BTreeSet::new(),
            last_update_timestamp_ms: now_ms,
            ..self.clone()
        };
        if self.client_version >= EPOCH_BUMP_VERSION && self.next_producer_id != NO_PRODUCER_ID {
            next.producer_id = self.next_producer_id;
            next.producer_epoch = 0;
        }
        next
    }
}

/// `TransactionMetadata.isEpochExhausted`
pub fn is_epoch_exhausted(epoch: i16) -> bool {
    epoch >= i16::MAX - 1
}
