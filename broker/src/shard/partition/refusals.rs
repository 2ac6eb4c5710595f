//! Gaps that the partition has made itself.
//!
//! An idempotent producer sends up to five batches one after the other. If the first is refused because the replica is about to
//! lead, or has too few in sync, and that is over when the second comes, the second leaves a gap. OUT_OF_ORDER_SEQUENCE_NUMBER would be
//! true and no help: librdkafka begins a new epoch then and numbers anew whatever it has no answer for, in all partitions, so that what
//! is in a log already is there twice. So the second is refused as the first was, until that has come again.

use streamgauge_storage::producer_state::{ProducerBatch, ProducerEntry};

/// How long batches may follow one that was refused, in milliseconds: they were on their way already.
const FOLLOW_MS_MAX: i64 = 2_000;

/// The last refusal for a reason that may be over at any time.
#[derive(Debug, Default)]
pub struct Refusals(Option<Refusal>);

#[derive(Debug)]
struct Refusal {
    at_ms: i64,
    /// Where the log ended.
    log_end: i64,
}

impl Refusals {
    pub fn note(&mut self, log_end: i64, now_ms: i64) {
        self.0 = Some(Refusal {
            at_ms: now_ms,
            log_end,
        });
    }

    /// Whether a client's batch leaves a gap that a refusal may have made: its producer, which is known by `tip`, has appended
    /// nothing since.
    pub fn may_have_made_gap(
        &self,
        batch: &ProducerBatch,
        tip: Option<&ProducerEntry>,
        now_ms: i64,
    ) -> bool {
        let Some(refusal) = &self.0 else {
            return false;
        };
        now_ms.saturating_sub(refusal.at_ms) < FOLLOW_MS_MAX
            && tip.is_none_or(|tip| tip.last_data_offset() < refusal.log_end)
            && tip.map_or(batch.base_sequence > 0, |tip| tip.is_before_gap(batch))
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_storage::producer_state::{ProducerBatchKind, ProducerState};

    use super::*;

    fn batch(producer_epoch: i16, base_sequence: i32, base_offset: i64) -> ProducerBatch {
        ProducerBatch {
            base_sequence,
            base_offset,
            last_offset: base_offset,
            kind: ProducerBatchKind::Data {
                is_transactional: false,
            },
            ..ProducerBatch::unsequenced(7, producer_epoch)
        }
    }

    #[test]
    fn what_comes_after_a_refused_batch_is_known_for_that() {
        let mut producers = ProducerState::new();
        producers.append_in_flight(batch(1, 0, 0));
        let tip = producers.tip(7);
        let mut refusals = Refusals::default();
        let is_gap = |refusals: &Refusals, epoch, sequence, now_ms| {
            refusals.may_have_made_gap(&batch(epoch, sequence, 0), tip, now_ms)
        };
        assert!(!is_gap(&refusals, 1, 2, 0), "nothing has been refused");
        refusals.note(1, 1_000);
        assert!(is_gap(&refusals, 1, 2, 1_010));
        assert!(!is_gap(&refusals, 1, 1, 1_010), "it is the next");
        assert!(!is_gap(&refusals, 1, 0, 1_010), "it is known");
        assert!(is_gap(&refusals, 2, 1, 1_010), "a new epoch begins with 0");
        assert!(!is_gap(&refusals, 2, 0, 1_010));
        assert!(!is_gap(&refusals, 0, 5, 1_010), "it is fenced");
        assert!(!is_gap(&refusals, 1, 2, 3_000), "it was not under way then");
        // Of a producer that is not known any sequence is taken, which would leave the refused one behind.
        assert!(refusals.may_have_made_gap(&batch(0, 3, 0), None, 1_010));
        assert!(!refusals.may_have_made_gap(&batch(0, 0, 0), None, 1_010));
        assert!(!refusals.may_have_made_gap(&batch(0, -1, 0), None, 1_010));

        // What was refused has come again: a gap is the producer's own from here on.
        producers.append_in_flight(batch(1, 1, 1));
        let tip = producers.tip(7);
        assert!(!refusals.may_have_made_gap(&batch(1, 3, 0), tip, 1_020));
    }
}
