//! Each rule of merge by itself. What combine and merge promise together is in `crate::exactly_once`.

use super::*;
use crate::accumulator::Accumulator;
use crate::accumulator::encode_all;
use crate::partial::{
    PartialBatch, PartialBatchBuilder, encode_dead_letter, encode_late_candidate,
};
use crate::testing::{FUNCTIONS, TextJob};
use crate::value::Value;

struct Log {
    merger: Merger<TextJob>,
    next_offset: i64,
}

impl Log {
    fn new(source_partitions: i32) -> Log {
        let merger = Merger::new(
            Arc::new(TextJob::new(10, 0)),
            0,
            source_partitions,
            MergerConfig::default(),
        );
        Log {
            merger,
            next_offset: 0,
        }
    }

    fn append(&mut self, batch: PartialBatch) -> Outputs {
        self.try_append(batch).unwrap()
    }

    fn try_append(&mut self, batch: PartialBatch) -> Result<Outputs, MergeError> {
        let values: Vec<&[u8]> = batch.records.iter().map(|value| &value[..]).collect();
        let outputs = self.merger.apply(
            self.next_offset,
            self.next_offset + values.len() as i64,
            &values,
        )?;
        self.next_offset += values.len() as i64;
        Ok(outputs)
    }
}

fn cover(source_partition: i32, from_offset: i64, to_offset: i64, watermark: i64) -> Cover {
    Cover {
        source_partition,
        leader_epoch: 1,
        from_offset,
        to_offset,
        watermark,
        idle: false,
        initial: true,
    }
}

fn window(start: i64) -> Window {
    Window::new(start, start + 10).unwrap()
}

fn amounts(amounts: &[i64], out: &mut Vec<u8>) {
    let mut accumulators = FUNCTIONS.map(Accumulator::new);
    for accumulator in &mut accumulators {
        amounts
            .iter()
            .for_each(|amount| accumulator.add(&Value::Int(*amount)));
    }
    encode_all(&accumulators, out);
}

struct Builder(PartialBatchBuilder);

fn batch() -> Builder {
    Builder(PartialBatchBuilder::default())
}

impl Builder {
    fn row(mut self, start: i64, group: &str, values: &[i64]) -> Builder {
        self.0
            .add_row(window(start), group.as_bytes(), |out| amounts(values, out));
        self
    }

    fn candidate(mut self, judged_at: i64, start: i64, group: &str, offset: i64) -> Builder {
        let record = SourceRecord {
            source_partition: 0,
            offset,
            timestamp: 0,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let bytes = encode_late_candidate(
            judged_at,
            start,
            window(start),
            group.as_bytes(),
            |out| amounts(&[1], out),
            &record,
        );
        self.0.add_encoded(bytes);
        self
    }

    fn dead_letter(mut self, offset: i64) -> Builder {
        let record = SourceRecord {
            source_partition: 0,
            offset,
            timestamp: 0,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        self.0.add_encoded(encode_dead_letter("malformed", &record));
        self
    }

    fn covers(self, covers: &[Cover]) -> PartialBatch {
        self.covers_from(0, 0, covers)
    }

    fn covers_from(
        self,
        combiner_id: i32,
        source_partitions: i32,
        covers: &[Cover],
    ) -> PartialBatch {
        self.finish(combiner_id, source_partitions, i64::MAX, covers)
    }

    fn finish(
        self,
        combiner_id: i32,
        source_partition_count: i32,
        watermark_limit: i64,
        covers: &[Cover],
    ) -> PartialBatch {
        let header = PartialHeader {
            combiner_id,
            source_partition_count,
            watermark_limit,
            records: 0,
            covers: covers.to_vec(),
        };
        self.0.finish(0, header)
    }
}

fn texts(outputs: &Outputs) -> Vec<&str> {
    outputs
        .results
        .iter()
        .map(|result| std::str::from_utf8(&result.value).unwrap())
        .collect()
}

#[test]
fn a_window_fires_when_the_watermark_reaches_its_last_millisecond() {
    let mut log = Log::new(1);
    let outputs = log.append(batch().row(0, "a", &[1, 2]).covers(&[cover(0, 0, 2, 8)]));
    assert_eq!(outputs, Outputs::default());
    let outputs = log.append(batch().row(0, "a", &[3]).covers(&[cover(0, 2, 3, 9)]));
    assert_eq!(texts(&outputs), ["0..10 a: 3 6 1 3 2"]);
    assert_eq!(
        (outputs.results[0].timestamp, outputs.results[0].sequence),
        (9, 0)
    );
    assert_eq!(
        (
            log.merger.windows_open(),
            log.merger.groups(),
            log.merger.state_bytes()
        ),
        (0, 0, 0)
    );
}

#[test]
fn windows_fire_in_the_order_of_time_and_then_of_keys() {
    let mut log = Log::new(1);
    let outputs = log.append(
        batch()
            .row(10, "a", &[1])
            .row(0, "c", &[1])
            .row(0, "b", &[1])
            .covers(&[cover(0, 0, 3, 100)]),
    );
    assert_eq!(
        texts(&outputs),
        [
            "0..10 b: 1 1 1 1 1",
            "0..10 c: 1 1 1 1 1",
            "10..20 a: 1 1 1 1 1"
        ]
    );
    assert_eq!(
        outputs
            .results
            .iter()
            .map(|result| result.sequence)
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
}

#[test]
fn the_least_source_holds_the_watermark_back_and_so_does_one_that_never_reported() {
    let mut log = Log::new(2);
    log.append(batch().row(0, "a", &[1]).covers(&[cover(0, 0, 1, 50)]));
    assert_eq!(log.merger.watermark(), WATERMARK_MIN);
    log.append(batch().covers(&[cover(1, 0, 1, 5)]));
    assert_eq!(log.merger.watermark(), 5);
    let outputs = log.append(batch().covers(&[cover(1, 1, 1, 30)]));
    assert_eq!((log.merger.watermark(), outputs.results.len()), (30, 1));
}

#[test]
fn an_idle_mark_takes_a_source_out_and_an_active_one_does_not_take_time_back() {
    let mut log = Log::new(2);
    log.append(batch().covers(&[
        cover(0, 0, 1, 50),
        Cover {
            idle: true,
            ..cover(1, 0, 0, WATERMARK_MIN)
        },
    ]));
    assert_eq!(log.merger.watermark(), 50);
    log.append(batch().covers(&[cover(1, 0, 1, 10)]));
    assert_eq!(log.merger.watermark(), 50);
    log.append(batch().covers(&[cover(0, 1, 2, 70)]));
    assert_eq!(log.merger.watermark(), 50, "source 1 is active at 10");
    log.append(batch().covers(&[
        Cover {
            idle: true,
            ..cover(0, 2, 2, 70)
        },
        Cover {
            idle: true,
            ..cover(1, 1, 1, 60)
        },
    ]));
    assert_eq!(log.merger.watermark(), 50, "nobody is active");
}

#[test]
fn a_source_topic_that_grows_holds_the_watermark_until_the_new_partition_reports() {
    let mut log = Log::new(1);
    log.append(batch().covers(&[cover(0, 0, 1, 50)]));
    log.append(batch().covers_from(0, 2, &[cover(0, 1, 2, 70)]));
    assert_eq!(log.merger.watermark(), 50);
    log.append(batch().covers_from(0, 2, &[cover(1, 0, 1, 60)]));
    assert_eq!(log.merger.watermark(), 60);
}

#[test]
fn a_replayed_batch_is_refused_whole() {
    let mut log = Log::new(1);
    log.append(batch().row(0, "a", &[1]).covers(&[cover(0, 0, 1, 5)]));
    let outputs = log.append(batch().row(0, "a", &[1]).covers(&[cover(0, 0, 1, 5)]));
    let RefusalReason::Cover {
        cover: refused,
        known,
    } = outputs.refused.unwrap().reason
    else {
        panic!("{outputs:?}");
    };
    assert_eq!((refused.from_offset, known.unwrap().to_offset), (0, 1));
    let outputs = log.append(batch().covers(&[cover(0, 1, 2, 9)]));
    assert_eq!(texts(&outputs), ["0..10 a: 1 1 1 1 1"]);
    assert_eq!(log.merger.counters().batches_refused, 1);
}

#[test]
fn rows_that_were_folded_below_the_watermark_of_the_merger_are_refused() {
    let mut log = Log::new(2);
    log.append(batch().covers(&[cover(0, 0, 1, 30), cover(1, 0, 1, 5)]));
    let rows = || batch().row(10, "a", &[1]);
    // Another combiner reads source 1 on, which this one holds to be at 5 yet.
    let others = batch().finish(2, 2, 5, &[cover(1, 1, 2, 25)]);
    assert_eq!(log.append(others).refused, None);
    let outputs = log.append(rows().finish(1, 2, 5, &[cover(0, 1, 2, 30)]));
    let reason = RefusalReason::Watermark {
        limit: 5,
        reached: 25,
    };
    assert_eq!(outputs.refused.map(|refusal| refusal.reason), Some(reason));
    assert_eq!(log.merger.cover(0), Some(1));
    let again = batch().row(30, "a", &[1]);
    let outputs = log.append(again.finish(1, 2, 25, &[cover(0, 1, 2, 30)]));
    assert_eq!(outputs.refused, None);
}

#[test]
fn a_gap_and_an_older_epoch_are_refused() {
    let mut log = Log::new(2);
    log.append(batch().covers(&[Cover {
        leader_epoch: 3,
        ..cover(0, 10, 20, 5)
    }]));
    assert!(
        log.append(batch().covers(&[Cover {
            leader_epoch: 3,
            ..cover(0, 21, 22, 5)
        }]))
        .refused
        .is_some()
    );
    assert!(
        log.append(batch().covers(&[Cover {
            leader_epoch: 2,
            ..cover(0, 20, 22, 5)
        }]))
        .refused
        .is_some()
    );
    // One cover that does not fit takes the others with it: rows are of all of them.
    assert!(
        log.append(batch().covers(&[
            cover(1, 0, 1, 5),
            Cover {
                leader_epoch: 3,
                ..cover(0, 21, 22, 5)
            }
        ]))
        .refused
        .is_some()
    );
    assert_eq!((log.merger.cover(0), log.merger.cover(1)), (Some(20), None));
}

#[test]
fn a_batch_that_was_applied_changes_nothing() {
    let mut log = Log::new(1);
    let first = batch().row(0, "a", &[1]).covers(&[cover(0, 0, 1, 9)]);
    log.append(first.clone());
    log.next_offset = 0;
    assert_eq!(log.append(first), Outputs::default());
    assert_eq!(log.merger.counters().batches_refused, 0);
}

#[test]
fn a_candidate_is_late_if_its_combiner_knew_that_the_window_was_over() {
    let mut log = Log::new(1);
    let outputs = log.append(
        batch()
            .candidate(9, 0, "a", 4)
            .candidate(8, 0, "a", 5)
            .covers(&[cover(0, 0, 6, 9)]),
    );
    assert_eq!(
        outputs
            .late
            .iter()
            .map(|late| (late.record.offset, late.watermark, late.sequence))
            .collect::<Vec<_>>(),
        [(4, 9, 0)]
    );
    assert_eq!(
        texts(&outputs),
        ["0..10 a: 1 1 1 1 1"],
        "the other one counts"
    );
}

#[test]
fn a_source_of_another_combiner_keeps_a_candidates_window_open() {
    let mut log = Log::new(2);
    log.append(batch().covers_from(1, 2, &[cover(1, 0, 1, 5)]));
    let outputs = log.append(batch().candidate(100, 0, "a", 4).covers_from(
        0,
        2,
        &[cover(0, 0, 5, 100)],
    ));
    assert_eq!((outputs.late.len(), log.merger.groups()), (0, 1));
    log.append(batch().covers_from(1, 2, &[cover(1, 1, 2, 9)]));
    let outputs = log.append(batch().candidate(100, 0, "a", 5).covers_from(
        0,
        2,
        &[cover(0, 5, 6, 100)],
    ));
    assert_eq!(outputs.late.len(), 1);
}

#[test]
fn dead_letters_pass_through_with_their_sequence() {
    let mut log = Log::new(1);
    let outputs = log.append(
        batch()
            .dead_letter(3)
            .dead_letter(4)
            .covers(&[cover(0, 0, 5, 0)]),
    );
    assert_eq!(
        outputs
            .dead_letters
            .iter()
            .map(|letter| (letter.letter.record.offset, letter.sequence))
            .collect::<Vec<_>>(),
        [(3, 0), (4, 1)]
    );
}

#[test]
fn a_full_state_stops_before_it_changes_and_a_closing_window_frees_it() {
    let mut log = Log::new(1);
    log.merger.config.state_bytes_max = 1;
    log.append(batch().row(0, "a", &[1]).covers(&[cover(0, 0, 1, 0)]));
    let more = batch().row(0, "b", &[1]).covers(&[cover(0, 1, 2, 5)]);
    assert!(matches!(
        log.try_append(more.clone()),
        Err(MergeError::StateFull {
            windows_open: 1,
            groups: 1,
            ..
        })
    ));
    assert_eq!(log.merger.cover(0), Some(1));
    assert_eq!(
        log.append(batch().row(0, "b", &[1]).covers(&[cover(0, 1, 2, 9)]))
            .results
            .len(),
        2
    );
}

#[test]
fn a_batch_that_is_not_whole_is_corrupt() {
    let mut log = Log::new(1);
    let mut cut = batch()
        .row(0, "a", &[1])
        .dead_letter(1)
        .covers(&[cover(0, 0, 2, 0)]);
    cut.records.pop();
    assert!(matches!(
        log.try_append(cut),
        Err(MergeError::Corrupt { .. })
    ));
    assert!(matches!(
        log.try_append(PartialBatch {
            internal_partition: 0,
            records: vec![Bytes::from_static(b"?")]
        }),
        Err(MergeError::Corrupt { .. })
    ));
}

#[test]
fn a_batch_whose_predecessor_was_lost_cannot_be_the_first() {
    let mut log = Log::new(1);
    let second = Cover {
        initial: false,
        ..cover(0, 2, 4, 5)
    };
    let refusal = log
        .append(batch().row(0, "a", &[1]).covers(&[second]))
        .refused
        .unwrap();
    assert!(matches!(
        refusal.reason,
        RefusalReason::Cover { known: None, .. }
    ));
    assert!(
        log.append(batch().covers(&[cover(0, 0, 2, 5)]))
            .refused
            .is_none()
    );
    assert!(log.append(batch().covers(&[second])).refused.is_none());
}
