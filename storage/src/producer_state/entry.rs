//! One producer's entry: epoch, the last five batches, the open transaction. Rules are those of
//! Kafka's `ProducerStateEntry` and `ProducerAppendInfo`.

use std::collections::VecDeque;

use super::{AppendOrigin, ProducerBatch, ProducerBatchKind, ProducerStateError};

/// Duplicates are recognised within a producer's last so many batches, as in Kafka: the most
/// requests that an idempotent client keeps in flight to one broker.
pub const BATCHES_RETAINED: usize = 5;
/// The epoch of an entry that has seen no batch.
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// The sequence of a batch, or of an entry, that has none.
pub const NO_SEQUENCE: i32 = -1;
/// The coordinator epoch of an entry that has seen no transaction marker.
pub(super) const NO_COORDINATOR_EPOCH: i32 = -1;

/// What is known of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerEntry {
    pub producer_id: i64,
    pub producer_epoch: i16,
    /// Oldest first; at most [`BATCHES_RETAINED`], all of `producer_epoch`.
    pub batches: VecDeque<BatchMetadata>,
    /// Timestamp of the last batch or marker, in ms.
    pub last_timestamp: i64,
    pub coordinator_epoch: i32,
    /// First offset of the transaction that is open.
    pub current_transaction_first_offset: Option<i64>,
    /// When the last batch was applied here, by this broker's clock, in ms; for expiry alone.
    pub last_seen_ms: i64,
}

/// One appended batch, in the terms of Kafka's snapshot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMetadata {
    pub last_sequence: i32,
    pub last_offset: i64,
    /// Last offset less first offset; it is also last sequence less first sequence.
    pub offset_delta: i32,
    pub timestamp: i64,
}

impl ProducerEntry {
    pub(super) fn new(producer_id: i64) -> Self {
        Self {
            producer_id,
            producer_epoch: NO_PRODUCER_EPOCH,
            batches: VecDeque::new(),
            last_timestamp: -1,
            coordinator_epoch: NO_COORDINATOR_EPOCH,
            current_transaction_first_offset: None,
            last_seen_ms: i64::MIN,
        }
    }

    /// Sequence of the last record appended in this epoch; -1 if there is none.
    pub fn last_sequence(&self) -> i32 {
        self.batches
            .back()
            .map_or(NO_SEQUENCE, |batch| batch.last_sequence)
    }

    /// Offset of the last record appended in this epoch; -1 if there is none.
    pub fn last_data_offset(&self) -> i64 {
        self.batches.back().map_or(-1, |batch| batch.last_offset)
    }

    /// Whether a client's batch comes too early: others of its epoch are to come before it.
    pub fn is_before_gap(&self, batch: &ProducerBatch) -> bool {
        if batch.base_sequence <= 0 || batch.producer_epoch < self.producer_epoch {
            return false;
        }
        let last = match batch.producer_epoch == self.producer_epoch {
            true => self.last_sequence(),
            false => NO_SEQUENCE,
        };
        let ahead = i64::from(batch.base_sequence) - (i64::from(last) + 1);
        // In the ring of sequences, what is more than half of it ahead is behind.
        (1..SEQUENCES / 2).contains(&ahead.rem_euclid(SEQUENCES))
    }

    /// The retained batch with the same epoch and the same first and last sequence.
    pub(super) fn find_duplicate(&self, batch: &ProducerBatch) -> Option<&BatchMetadata> {
        if !matches!(batch.kind, ProducerBatchKind::Data { .. })
            || batch.base_sequence == NO_SEQUENCE
            || batch.producer_epoch != self.producer_epoch
        {
            return None;
        }
        self.batches.iter().find(|appended| {
            appended.base_sequence() == batch.base_sequence
                && appended.last_sequence == batch.last_sequence()
        })
    }

    pub(super) fn validate(
        &self,
        batch: &ProducerBatch,
        origin: AppendOrigin,
    ) -> Result<(), ProducerStateError> {
        if self.is_epoch_invalid(batch, origin) {
            return Err(ProducerStateError::InvalidProducerEpoch {
                producer_id: self.producer_id,
                producer_epoch: batch.producer_epoch,
                current_epoch: self.producer_epoch,
            });
        }
        match batch.kind {
            ProducerBatchKind::Data { is_transactional } => {
                if origin == AppendOrigin::Client {
                    self.validate_sequence(batch)?;
                }
                match self.current_transaction_first_offset {
                    Some(first_offset) if !is_transactional => {
                        Err(ProducerStateError::InvalidTransactionState {
                            producer_id: self.producer_id,
                            first_offset,
                        })
                    }
                    _ => Ok(()),
                }
            }
            ProducerBatchKind::EndTransaction(marker)
                if marker.coordinator_epoch < self.coordinator_epoch =>
            {
                Err(ProducerStateError::TransactionCoordinatorFenced {
                    producer_id: self.producer_id,
                    coordinator_epoch: marker.coordinator_epoch,
                    current_epoch: self.coordinator_epoch,
                })
            }
            ProducerBatchKind::EndTransaction(_) => Ok(()),
        }
    }

    fn is_epoch_invalid(&self, batch: &ProducerBatch, origin: AppendOrigin) -> bool {
        match origin {
            AppendOrigin::Marker {
                transaction_version: 2..,
            } => {
                // A marker that is written again, since its answer was lost, does no harm (KAFKA-19999).
                let is_retry = batch.producer_epoch == self.producer_epoch
                    && self.current_transaction_first_offset.is_none();
                batch.producer_epoch <= self.producer_epoch && !is_retry
            }
            _ => batch.producer_epoch < self.producer_epoch,
        }
    }

    /// Whether a transaction of that epoch is open.
    pub fn is_in_transaction(&self, producer_epoch: i16) -> bool {
        self.current_transaction_first_offset.is_some() && self.producer_epoch == producer_epoch
    }

    fn validate_sequence(&self, batch: &ProducerBatch) -> Result<(), ProducerStateError> {
        if self.producer_epoch == NO_PRODUCER_EPOCH {
            return Ok(());
        }
        if batch.producer_epoch != self.producer_epoch {
            if batch.base_sequence == 0 {
                return Ok(());
            }
            return Err(ProducerStateError::NewEpochNotAtZero {
                producer_id: self.producer_id,
                producer_epoch: batch.producer_epoch,
                base_sequence: batch.base_sequence,
                current_epoch: self.producer_epoch,
            });
        }
        // After a marker raised the epoch there is no last sequence (-1), and 0 follows it.
        if sequence_follows(self.last_sequence(), batch.base_sequence) {
            return Ok(());
        }
        Err(ProducerStateError::OutOfOrderSequence {
            producer_id: self.producer_id,
            base_sequence: batch.base_sequence,
            last_sequence: self.last_sequence(),
        })
    }

    /// Takes the batch in without judging it.
    pub(super) fn apply(&mut self, batch: &ProducerBatch) {
        if batch.producer_epoch != self.producer_epoch {
            self.batches.clear();
            self.producer_epoch = batch.producer_epoch;
        }
        self.last_timestamp = batch.max_timestamp;
        match batch.kind {
            ProducerBatchKind::Data { is_transactional } => {
                if self.batches.len() == BATCHES_RETAINED {
                    self.batches.pop_front();
                }
                self.batches.push_back(BatchMetadata {
                    last_sequence: batch.last_sequence(),
                    last_offset: batch.last_offset,
                    offset_delta: (batch.last_offset - batch.base_offset) as i32,
                    timestamp: batch.max_timestamp,
                });
                if is_transactional && self.current_transaction_first_offset.is_none() {
                    self.current_transaction_first_offset = Some(batch.base_offset);
                }
            }
            ProducerBatchKind::EndTransaction(marker) => {
                self.coordinator_epoch = marker.coordinator_epoch;
                self.current_transaction_first_offset = None;
            }
        }
    }
}

impl BatchMetadata {
    pub fn base_offset(&self) -> i64 {
        self.last_offset - i64::from(self.offset_delta)
    }

    /// -1 if the batch had no sequence.
    pub fn base_sequence(&self) -> i32 {
        if self.last_sequence < 0 {
            return NO_SEQUENCE;
        }
        sequence_before(self.last_sequence, self.offset_delta)
    }
}

/// How many sequences there are before they begin with 0 again.
const SEQUENCES: i64 = 1 << 31;

/// Whether `next` is the sequence right after `last`; 0 follows `i32::MAX`.
pub fn sequence_follows(last: i32, next: i32) -> bool {
    i64::from(next) == i64::from(last) + 1 || (next == 0 && last == i32::MAX)
}

/// The sequence `steps` before `sequence`, in the ring 0..=2^31-1. Both are not negative.
pub fn sequence_before(sequence: i32, steps: i32) -> i32 {
    if sequence >= steps {
        sequence - steps
    } else {
        i32::MAX - (steps - sequence) + 1
    }
}

/// The sequence `steps` after `sequence`, in the ring 0..=2^31-1. Both are not negative.
pub(super) fn sequence_after(sequence: i32, steps: i32) -> i32 {
    if sequence > i32::MAX - steps {
        steps - (i32::MAX - sequence) - 1
    } else {
        sequence + steps
    }
}
