//! Transactions that a leader is asking their coordinator about (KIP-890): the rules of Kafka's
//! `VerificationStateEntry`, as a pure state machine.
//!
//! The first batch of a transaction is taken only after its coordinator has said that the transaction
//! is open and has the partition. Who asks gets a guard first; a marker that is written meanwhile makes
//! the guard void, so that no batch can come after the marker that was to end its transaction and leave
//! another open that nobody ends.

use std::collections::HashMap;

use super::{ProducerBatch, ProducerEntry, ProducerStateError};

/// Stands for one verification. Never given out twice by the same [`Verifications`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerificationGuard(u64);

/// What is known of the producer of a batch that a client wants to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    pub producer_id: i64,
    pub producer_epoch: i16,
    /// Of the batch's first record.
    pub base_sequence: i32,
    /// The client raises its epoch with every transaction (transaction version 2).
    pub supports_epoch_bump: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    guard: VerificationGuard,
    producer_epoch: i16,
    /// Of the batches that wait for the verification.
    lowest_sequence: i32,
    supports_epoch_bump: bool,
    began_ms: i64,
}

/// The verifications under way in one partition.
#[derive(Clone, Debug, Default)]
pub struct Verifications {
    entries: HashMap<i64, Entry>,
    given_out: u64,
}

impl Verifications {
    /// Begins a verification, or joins the one that is under way. `None` if the producer's transaction
    /// is open here already; `tip` is what is known of the producer.
    pub fn begin(
        &mut self,
        wanted: &Verification,
        tip: Option<&ProducerEntry>,
        now_ms: i64,
    ) -> Option<VerificationGuard> {
        if tip.is_some_and(|entry| entry.is_in_transaction(wanted.producer_epoch)) {
            return None;
        }
        let given_out = &mut self.given_out;
        let entry = self.entries.entry(wanted.producer_id).or_insert_with(|| {
            *given_out += 1;
            Entry {
                guard: VerificationGuard(*given_out),
                producer_epoch: wanted.producer_epoch,
                lowest_sequence: wanted.base_sequence,
                supports_epoch_bump: wanted.supports_epoch_bump,
                began_ms: now_ms,
            }
        });
        if wanted.supports_epoch_bump && wanted.producer_epoch > entry.producer_epoch {
            entry.producer_epoch = wanted.producer_epoch;
            entry.lowest_sequence = wanted.base_sequence;
        }
        if wanted.producer_epoch == entry.producer_epoch {
            entry.lowest_sequence = entry.lowest_sequence.min(wanted.base_sequence);
        }
        Some(entry.guard)
    }

    /// Whether a transactional batch may be appended: its transaction is open here, or `guard` says
    /// that it has been verified since the last marker.
    pub fn allows(
        &self,
        batch: &ProducerBatch,
        tip: Option<&ProducerEntry>,
        guard: Option<VerificationGuard>,
    ) -> bool {
        if tip.is_some_and(|entry| entry.is_in_transaction(batch.producer_epoch)) {
            return true;
        }
        let known = self.entries.get(&batch.producer_id);
        known.is_some_and(|entry| Some(entry.guard) == guard)
    }

    /// The sequence of a client's batch that has been verified: none may come before an earlier one
    /// that was verified with it, since an unknown producer may else begin anywhere.
    pub fn check_sequence(
        &self,
        batch: &ProducerBatch,
        tip: Option<&ProducerEntry>,
    ) -> Result<(), ProducerStateError> {
        let Some(entry) = self.entries.get(&batch.producer_id) else {
            return Ok(());
        };
        let is_unknown = tip.is_none_or(|tip| tip.batches.is_empty());
        let expected = match entry.supports_epoch_bump && is_unknown {
            true => 0,
            false => entry.lowest_sequence,
        };
        if batch.base_sequence > expected {
            return Err(ProducerStateError::OutOfOrderSequence {
                producer_id: batch.producer_id,
                base_sequence: batch.base_sequence,
                last_sequence: expected,
            });
        }
        Ok(())
    }

    /// A batch or a marker of the producer has been appended: guards given out before are void. (A
    /// transaction that is open now needs none.)
    pub fn end(&mut self, producer_id: i64) {
        self.entries.remove(&producer_id);
    }

    /// Forgets those that nobody has come back from for so long.
    pub fn expire(&mut self, now_ms: i64, expiration_ms: i64) {
        self.entries
            .retain(|_, entry| now_ms.saturating_sub(entry.began_ms) < expiration_ms);
    }

    /// Forgets all: another may lead meanwhile, and write markers.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProducerBatchKind, ProducerState, TransactionMarker, TransactionResult};
    use super::*;

    fn wanted(producer_epoch: i16, base_sequence: i32) -> Verification {
        Verification {
            producer_id: 7,
            producer_epoch,
            base_sequence,
            supports_epoch_bump: true,
        }
    }

    fn batch(producer_epoch: i16, base_sequence: i32, offset: i64) -> ProducerBatch {
        ProducerBatch {
            producer_id: 7,
            producer_epoch,
            base_sequence,
            base_offset: offset,
            last_offset: offset,
            max_timestamp: 0,
            kind: ProducerBatchKind::Data {
                is_transactional: true,
            },
        }
    }

    fn marker(producer_epoch: i16, offset: i64) -> ProducerBatch {
        ProducerBatch {
            base_sequence: -1,
            kind: ProducerBatchKind::EndTransaction(TransactionMarker {
                result: TransactionResult::Abort,
                coordinator_epoch: 1,
            }),
            ..batch(producer_epoch, -1, offset)
        }
    }

    #[test]
    fn the_first_batch_needs_a_guard_and_the_next_do_not() {
        let (mut verifications, mut producers) = (Verifications::default(), ProducerState::new());
        let first = batch(0, 0, 0);
        assert!(!verifications.allows(&first, producers.tip(7), None));
        let guard = verifications.begin(&wanted(0, 0), producers.tip(7), 0);
        assert!(guard.is_some());
        assert_eq!(
            verifications.begin(&wanted(0, 1), producers.tip(7), 0),
            guard
        );
        assert!(!verifications.allows(&first, producers.tip(7), None));
        assert!(verifications.allows(&first, producers.tip(7), guard));
        producers.append_in_flight(first);
        verifications.end(7);
        assert_eq!(
            verifications.begin(&wanted(0, 1), producers.tip(7), 0),
            None
        );
        assert!(verifications.allows(&batch(0, 1, 1), producers.tip(7), None));
        assert!(
            !verifications.allows(&batch(1, 0, 1), producers.tip(7), None),
            "another epoch's transaction is another"
        );
    }

    #[test]
    fn a_marker_that_comes_first_makes_the_guard_void() {
        let (mut verifications, mut producers) = (Verifications::default(), ProducerState::new());
        let guard = verifications.begin(&wanted(0, 0), producers.tip(7), 0);
        producers.append_in_flight(marker(0, 0));
        verifications.end(7);
        assert!(!verifications.allows(&batch(0, 0, 1), producers.tip(7), guard));
        let renewed = verifications.begin(&wanted(0, 0), producers.tip(7), 0);
        assert_ne!(renewed, guard);
        assert!(!verifications.allows(&batch(0, 0, 1), producers.tip(7), guard));
        assert!(verifications.allows(&batch(0, 0, 1), producers.tip(7), renewed));
    }

    #[test]
    fn no_batch_comes_before_an_earlier_one_that_was_verified_with_it() {
        let mut verifications = Verifications::default();
        verifications.begin(&wanted(0, 0), None, 0);
        verifications.begin(&wanted(0, 3), None, 0);
        assert!(verifications.check_sequence(&batch(0, 3, 0), None).is_err());
        assert!(verifications.check_sequence(&batch(0, 0, 0), None).is_ok());
        let old_client = Verification {
            supports_epoch_bump: false,
            ..wanted(0, 5)
        };
        let mut verifications = Verifications::default();
        verifications.begin(&old_client, None, 0);
        assert!(verifications.check_sequence(&batch(0, 5, 0), None).is_ok());
        assert!(verifications.check_sequence(&batch(0, 6, 0), None).is_err());
    }

    #[test]
    fn what_nobody_comes_back_from_is_forgotten() {
        let mut verifications = Verifications::default();
        let guard = verifications.begin(&wanted(0, 0), None, 100);
        verifications.expire(150, 100);
        assert!(verifications.allows(&batch(0, 0, 0), None, guard));
        verifications.expire(200, 100);
        assert!(!verifications.allows(&batch(0, 0, 0), None, guard));
    }
}
