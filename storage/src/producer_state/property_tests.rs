//! Random histories against a model that keeps every batch ever appended and looks through all
//! of them for each answer.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Try to append a batch `sequence_shift` away from where the producer is.
    Produce {
        producer_id: i64,
        epoch_shift: i16,
        sequence_shift: i32,
        records: i64,
    },
    CommitThrough(i64),
    DropInFlight,
    SaveAndLoad,
}

#[derive(Clone, Default)]
struct Model {
    /// In log order; those at `committed..` are in flight.
    log: Vec<ProducerBatch>,
    committed: usize,
}

impl Model {
    fn of(&self, producer_id: i64) -> impl DoubleEndedIterator<Item = (usize, &ProducerBatch)> {
        self.log
            .iter()
            .enumerate()
            .filter(move |(_, batch)| batch.producer_id == producer_id)
    }

    fn end_offset(&self) -> i64 {
        self.log.last().map_or(0, |batch| batch.last_offset + 1)
    }

    fn last(&self, producer_id: i64) -> Option<&ProducerBatch> {
        self.of(producer_id).next_back().map(|(_, batch)| batch)
    }

    /// A sequence as a position on a line that does not wrap, near `batch`.
    fn expected_next(batch: &ProducerBatch) -> i32 {
        let next = i64::from(batch.base_sequence) + (batch.last_offset - batch.base_offset) + 1;
        (next % (1 << 31)) as i32
    }

    fn check(&self, batch: &ProducerBatch) -> &'static str {
        let Some(last) = self.last(batch.producer_id) else {
            return "append";
        };
        let same = |(_, old): &(usize, &ProducerBatch)| {
            old.producer_epoch == batch.producer_epoch
                && old.base_sequence == batch.base_sequence
                && old.last_offset - old.base_offset == batch.last_offset - batch.base_offset
        };
        if batch.producer_epoch == last.producer_epoch
            && let Some((index, _)) = self.of(batch.producer_id).rev().take(5).find(same)
        {
            return if index < self.committed {
                "duplicate"
            } else {
                "in flight"
            };
        }
        if batch.producer_epoch < last.producer_epoch {
            "epoch"
        } else if batch.producer_epoch > last.producer_epoch {
            if batch.base_sequence == 0 {
                "append"
            } else {
                "sequence"
            }
        } else if batch.base_sequence == Self::expected_next(last) {
            "append"
        } else {
            "sequence"
        }
    }
}

fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Append => "append",
        Verdict::Duplicate(_) => "duplicate",
        Verdict::DuplicateInFlight(_) => "in flight",
        Verdict::Error(ProducerStateError::InvalidProducerEpoch { .. }) => "epoch",
        Verdict::Error(_) => "sequence",
    }
}

fn step() -> impl Strategy<Value = Step> {
    let produce = (
        0..3i64,
        prop_oneof![8 => Just(0), 1 => Just(1), 1 => Just(-1)],
        prop_oneof![6 => Just(0), 1 => -12..0i32, 1 => 1..4i32],
        1..4i64,
    )
        .prop_map(
            |(producer_id, epoch_shift, sequence_shift, records)| Step::Produce {
                producer_id,
                epoch_shift,
                sequence_shift,
                records,
            },
        );
    prop_oneof![
        12 => produce,
        3 => (0..8i64).prop_map(Step::CommitThrough),
        1 => Just(Step::DropInFlight),
        1 => Just(Step::SaveAndLoad),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn verdicts_are_those_of_a_search_through_the_whole_log(
        first_sequence in prop_oneof![Just(0), Just(i32::MAX - 6)],
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut model = Model::default();
        let mut state = ProducerState::new();
        for step in steps {
            match step {
                Step::Produce { producer_id, epoch_shift, sequence_shift, records } => {
                    let last = model.last(producer_id);
                    let (epoch, next) = last.map_or((5, first_sequence), |last| {
                        (last.producer_epoch, Model::expected_next(last))
                    });
                    let next = if epoch_shift > 0 { 0 } else { next };
                    let base_sequence =
                        (i64::from(next) + i64::from(sequence_shift)).rem_euclid(1 << 31) as i32;
                    let base_offset = model.end_offset();
                    let batch = ProducerBatch {
                        producer_id,
                        producer_epoch: epoch + epoch_shift,
                        base_sequence,
                        base_offset,
                        last_offset: base_offset + records - 1,
                        max_timestamp: base_offset,
                        kind: ProducerBatchKind::Data { is_transactional: false },
                    };
                    let verdict = state.check(&batch, AppendOrigin::Client);
                    prop_assert_eq!(name(&verdict), model.check(&batch));
                    if verdict == Verdict::Append {
                        state.append_in_flight(batch);
                        model.log.push(batch);
                    }
                }
                Step::CommitThrough(batches) => {
                    model.committed = (model.committed + batches as usize).min(model.log.len());
                    if let Some(last) = model.committed.checked_sub(1) {
                        state.commit_through(model.log[last].last_offset + 1, 0);
                    }
                }
                Step::DropInFlight => {
                    state.drop_in_flight();
                    model.log.truncate(model.committed);
                }
                Step::SaveAndLoad => {
                    let end = state.committed_end_offset();
                    state = ProducerState::from_snapshot(&state.to_snapshot(), end, 0).unwrap();
                    for batch in &model.log[model.committed..] {
                        state.append_in_flight(*batch);
                    }
                }
            }
        }
        // Committing in pieces and replaying in one go come to the same state.
        state.drop_in_flight();
        let mut replayed = ProducerState::new();
        for batch in &model.log[..model.committed] {
            replayed.apply_committed(batch, 0);
        }
        prop_assert_eq!(state.to_snapshot(), replayed.to_snapshot());
    }
}
