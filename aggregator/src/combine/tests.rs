//! Each rule of combine by itself. What combine and merge promise together is in `crate::exactly_once`.

use super::*;
use crate::partial::{LateCandidate, Partial, decode_header, decode_partial};
use crate::testing::{TextJob, batch};

const FIRST_FLUSH_MS: i64 = 1_000_000;

fn combiner(internal_partitions: i32, sources: &[i32]) -> Combiner<TextJob> {
    combiner_of(TextJob::new(10, 0), internal_partitions, sources)
}

fn combiner_of(job: TextJob, internal_partitions: i32, sources: &[i32]) -> Combiner<TextJob> {
    let mut combiner = Combiner::new(
        Arc::new(job),
        CombinerConfig::new(internal_partitions, sources.len() as i32),
    );
    for source in sources {
        assert_eq!(combiner.assign_source(*source, 1, 0, 0), 0);
    }
    combiner
}

fn add(combiner: &mut Combiner<TextJob>, source: i32, values: &[&str]) {
    let base_offset = combiner.next_offset(source).unwrap();
    let added = combiner
        .add_batch(source, &batch(base_offset, values), 0)
        .unwrap();
    assert_eq!(
        added,
        Added {
            next_offset: base_offset + values.len() as i64,
            complete: true
        }
    );
}

/// Covers as `source: from..to @ watermark`, rows as `window start/group`, candidates as `late offset`, dead letters as `bad offset`.
fn describe(batches: &[PartialBatch]) -> Vec<String> {
    let mut out = Vec::new();
    for batch in batches {
        let header = decode_header(&batch.records[0]).unwrap();
        for cover in header.covers {
            let idle = if cover.idle { " idle" } else { "" };
            let watermark = if cover.watermark == WATERMARK_MIN {
                "-".to_owned()
            } else {
                cover.watermark.to_string()
            };
            out.push(format!(
                "{}: {}..{} @ {watermark}{idle}",
                cover.source_partition, cover.from_offset, cover.to_offset
            ));
        }
        for bytes in &batch.records[1..] {
            match decode_partial(bytes).unwrap() {
                Partial::Rows(rows) => out.extend(rows.iter().map(|row| {
                    let row = row.unwrap();
                    format!(
                        "{}/{}",
                        row.window.start(),
                        std::str::from_utf8(row.group).unwrap()
                    )
                })),
                Partial::LateCandidate(LateCandidate {
                    record, judged_at, ..
                }) => out.push(format!("late {} at {judged_at}", record.offset)),
                Partial::DeadLetter(letter) => {
                    out.push(format!("bad {} {}", letter.record.offset, letter.reason))
                }
            }
        }
    }
    out
}

#[test]
fn records_of_a_group_and_window_become_one_row() {
    let mut combiner = combiner(1, &[0]);
    add(&mut combiner, 0, &["1,a,1", "2,a,2", "3,b,1", "12,a,1"]);
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 0..4 @ 11", "0/a", "0/b", "10/a"]
    );
    assert_eq!(combiner.flush(FIRST_FLUSH_MS), [], "nothing is left");
}

#[test]
fn a_record_behind_its_partitions_watermark_is_on_time_until_its_window_closes() {
    let mut combiner = combiner(1, &[0]);
    add(
        &mut combiner,
        0,
        &["8,a,1", "3,a,1", "10,a,1", "9,a,1", "11,a,1", "9,a,1"],
    );
    // With a bound of 0, the record at 10 takes the watermark to 9, the last millisecond of [0, 10).
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 0..6 @ 10", "late 3 at 9", "late 5 at 10", "0/a", "10/a"]
    );
}

#[test]
fn the_slowest_partition_decides_what_is_late() {
    let mut combiner = combiner(1, &[0, 1]);
    add(&mut combiner, 0, &["100,a,1", "5,a,1"]);
    assert_eq!(
        combiner.watermark(),
        WATERMARK_MIN,
        "partition 1 has not reported"
    );
    add(&mut combiner, 1, &["50,a,1"]);
    assert_eq!(combiner.watermark(), 49);
    add(&mut combiner, 0, &["39,a,1", "40,a,1", "50,a,1"]);
    let described = describe(&combiner.flush(FIRST_FLUSH_MS));
    assert_eq!(
        described
            .iter()
            .filter(|text| text.starts_with("late"))
            .collect::<Vec<_>>(),
        ["late 2 at 49", "late 3 at 49"]
    );
}

#[test]
fn filtered_records_move_the_watermark_and_bad_ones_do_not() {
    let mut combiner = combiner(1, &[0]);
    add(&mut combiner, 0, &["100,-,1", "what?"]);
    assert_eq!(combiner.watermark(), 99);
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 0..2 @ 99", "bad 1 malformed"]
    );
    let counters = combiner.counters();
    assert_eq!(
        (
            counters.records_in,
            counters.filtered,
            counters.bad.get("malformed")
        ),
        (2, 1, Some(&1))
    );
}

#[test]
fn an_event_time_without_a_window_is_a_bad_record() {
    let mut combiner = combiner(1, &[0]);
    add(
        &mut combiner,
        0,
        &[&format!("{},a,1", i64::MAX), &format!("{},a,1", i64::MIN)],
    );
    assert_eq!(combiner.watermark(), WATERMARK_MIN);
    assert_eq!(
        combiner.counters().bad.get("event time out of range"),
        Some(&2)
    );
}

#[test]
fn the_partition_with_the_least_watermark_is_read_next() {
    let mut combiner = combiner(1, &[0, 1, 2]);
    assert_eq!(combiner.pick(&[1, 2]), Some(1));
    add(&mut combiner, 1, &["50,a,1"]);
    assert_eq!(combiner.pick(&[1, 2]), Some(2));
    add(&mut combiner, 2, &["40,a,1"]);
    assert_eq!(combiner.pick(&[1, 2]), Some(2));
    assert_eq!(combiner.pick(&[1]), Some(1));
    assert_eq!(combiner.pick(&[]), None);
    assert_eq!(combiner.pick(&[9]), None);
}

#[test]
fn an_idle_partition_is_logged_and_no_longer_holds_the_watermark_back() {
    let job = TextJob {
        idle_timeout_ms: Some(100),
        ..TextJob::new(10, 0)
    };
    let mut combiner = combiner_of(job, 1, &[0, 1]);
    add(&mut combiner, 0, &["50,a,1"]);
    combiner.caught_up(1, 99).unwrap();
    assert_eq!(combiner.watermark(), WATERMARK_MIN);
    combiner.caught_up(1, 100).unwrap();
    assert_eq!(combiner.watermark(), 49);
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 0..1 @ 49", "1: 0..0 @ - idle", "50/a"]
    );
    add(&mut combiner, 1, &["20,b,1"]);
    assert_eq!(combiner.watermark(), 49, "it does not go back");
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["1: 0..1 @ 19", "late 0 at 49"]
    );
}

#[test]
fn the_watermark_stays_when_every_partition_is_idle() {
    let job = TextJob {
        idle_timeout_ms: Some(100),
        ..TextJob::new(10, 0)
    };
    let mut combiner = combiner_of(job, 1, &[0, 1]);
    add(&mut combiner, 0, &["50,a,1"]);
    add(&mut combiner, 1, &["80,a,1"]);
    combiner.caught_up(1, 500).unwrap();
    combiner.caught_up(0, 500).unwrap();
    assert_eq!(combiner.watermark(), 49);
}

#[test]
fn a_bound_known_to_the_broker_advances_the_watermark() {
    let mut combiner = combiner(1, &[0]);
    combiner.advance_watermark(0, 500).unwrap();
    assert_eq!(combiner.watermark(), 500);
    combiner.advance_watermark(0, 400).unwrap();
    assert_eq!(combiner.watermark(), 500);
}

#[test]
fn offsets_without_records_are_covered_too() {
    let mut combiner = combiner(1, &[0]);
    // Offsets 0 to 4 were compacted away, 7 and 8 held nothing for the job.
    combiner
        .add_batch(0, &batch(5, &["1,a,1", "2,a,1"]), 0)
        .unwrap();
    combiner.skip_to(0, 9).unwrap();
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 0..9 @ 1", "0/a"]
    );
}

#[test]
fn a_batch_that_is_given_again_counts_once() {
    let mut combiner = combiner(1, &[0]);
    add(&mut combiner, 0, &["1,a,1", "2,a,1"]);
    let again = combiner
        .add_batch(0, &batch(0, &["1,a,1", "2,a,1"]), 0)
        .unwrap();
    assert_eq!(
        again,
        Added {
            next_offset: 2,
            complete: true
        }
    );
    assert_eq!(combiner.counters().records_in, 2);
}

#[test]
fn a_full_combiner_stops_within_a_batch_and_goes_on_after_a_flush() {
    let config = CombinerConfig {
        pending_bytes_max: 1,
        ..CombinerConfig::new(1, 1)
    };
    let mut combiner = Combiner::new(Arc::new(TextJob::new(10, 0)), config);
    combiner.assign_source(0, 1, 0, 0);
    let bytes = batch(0, &["1,a,1", "2,a,1"]);
    assert_eq!(
        combiner.add_batch(0, &bytes, 0).unwrap(),
        Added {
            next_offset: 1,
            complete: false
        }
    );
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 0..1 @ 0", "0/a"]
    );
    assert_eq!(
        combiner.add_batch(0, &bytes, 0).unwrap(),
        Added {
            next_offset: 2,
            complete: true
        }
    );
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        ["0: 1..2 @ 1", "0/a"]
    );
}

#[test]
fn empty_covers_travel_once_a_second_or_when_they_close_a_window() {
    let mut combiner = combiner(1, &[0]);
    add(&mut combiner, 0, &["1,a,1"]);
    assert_eq!(describe(&combiner.flush(5000)).len(), 2);
    add(&mut combiner, 0, &["2,-,"]);
    assert_eq!(
        combiner.flush(5999),
        [],
        "no row, no window closed, no second over"
    );
    assert_eq!(describe(&combiner.flush(6000)), ["0: 1..2 @ 1"]);
    add(&mut combiner, 0, &["9,-,"]);
    assert_eq!(combiner.flush(6001), []);
    add(&mut combiner, 0, &["10,-,"]);
    assert_eq!(
        describe(&combiner.flush(6002)),
        ["0: 2..4 @ 9"],
        "[0, 10) holds a row and closes"
    );
    add(&mut combiner, 0, &["20,-,"]);
    assert_eq!(combiner.flush(6003), [], "[10, 20) holds nothing");
}

#[test]
fn what_an_internal_partition_has_is_skipped_for_it_alone() {
    let job = TextJob::new(10, 0);
    let mut first = combiner_of(job.clone(), 2, &[0]);
    add(&mut first, 0, &["1,a,1", "2,b,1", "3,c,1", "4,d,1"]);
    let batches = first.flush(FIRST_FLUSH_MS);
    assert_eq!(batches.len(), 2, "the groups spread over both partitions");

    // Internal partition 1 got its batch, 0 did not.
    let mut second = Combiner::new(Arc::new(job), CombinerConfig::new(2, 1));
    let state = SourceWatermark {
        watermark: 3,
        idle: false,
    };
    let cover = SourceCover {
        leader_epoch: 1,
        to_offset: 4,
        state,
        combiner_id: 0,
    };
    second.set_internal_state(0, [], WATERMARK_MIN, []).unwrap();
    second.set_internal_state(1, [(0, cover)], 3, []).unwrap();
    assert_eq!(second.assign_source(0, 1, 0, 0), 0);
    add(&mut second, 0, &["1,a,1", "2,b,1", "3,c,1", "4,d,1"]);
    let again = second.flush(FIRST_FLUSH_MS);
    assert_eq!(again, [batches[0].clone()]);
    assert!(second.set_internal_state(2, [], WATERMARK_MIN, []).is_err());
}

#[test]
fn a_source_that_merge_may_not_wait_for_travels_whole_until_it_is_confirmed() {
    // Partition 1 is some other combiner's.
    let mut combiner = Combiner::new(Arc::new(TextJob::new(10, 0)), CombinerConfig::new(1, 2));
    combiner.assign_source(0, 1, 0, 0);
    add(&mut combiner, 0, &["1,a,1"]);
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS))[1..],
        [format!("late 0 at {WATERMARK_MIN}")]
    );
    combiner.confirm_active(0, 25).unwrap();
    add(&mut combiner, 0, &["29,a,1", "30,a,1", "19,a,1"]);
    let described = describe(&combiner.flush(FIRST_FLUSH_MS));
    assert_eq!(described[1..], ["late 3 at 29", "20/a", "30/a"]);
}

#[test]
fn batches_for_unassigned_partitions_are_refused() {
    let mut combiner = combiner(1, &[0]);
    assert!(matches!(
        combiner.add_batch(4, &batch(0, &["1,a,1"]), 0),
        Err(CombineError::NotAssigned(4))
    ));
    add(&mut combiner, 0, &["1,a,1"]);
    assert_eq!(
        combiner.revoke_source(0, FIRST_FLUSH_MS).len(),
        1,
        "what is pending goes out first"
    );
    assert_eq!(combiner.next_offset(0), None);
}

#[test]
fn a_new_combiner_goes_on_from_the_watermarks_that_merge_knows() {
    let cover = |watermark, idle| SourceCover {
        leader_epoch: 1,
        to_offset: 4,
        state: SourceWatermark { watermark, idle },
        combiner_id: 0,
    };
    let mut combiner = Combiner::new(Arc::new(TextJob::new(10, 0)), CombinerConfig::new(1, 2));
    combiner
        .set_internal_state(0, [(0, cover(70, false)), (1, cover(30, true))], 70, [])
        .unwrap();
    assert_eq!(
        (
            combiner.assign_source(0, 2, 0, 0),
            combiner.assign_source(1, 2, 0, 0)
        ),
        (4, 4)
    );
    let states: Vec<_> = combiner
        .source_watermarks()
        .map(|(_, state)| (state.watermark, state.idle))
        .collect();
    assert_eq!(states, [(70, false), (30, true)]);
    add(&mut combiner, 0, &["75,a,1", "66,a,1"]);
    let described = describe(&combiner.flush(FIRST_FLUSH_MS));
    assert_eq!(
        described,
        ["0: 4..6 @ 74", "1: 4..4 @ 30 idle", "late 5 at 74", "70/a"]
    );
}

#[test]
fn a_partition_that_is_assigned_later_is_waited_for() {
    let mut combiner = Combiner::new(Arc::new(TextJob::new(10, 0)), CombinerConfig::new(1, 1));
    combiner.assign_source(0, 1, 0, 0);
    add(&mut combiner, 0, &["100,a,1"]);
    combiner.set_source_partition_count(2);
    combiner.assign_source(1, 1, 0, 0);
    add(&mut combiner, 1, &["50,b,1", "40,b,1"]);
    assert_eq!(
        describe(&combiner.flush(FIRST_FLUSH_MS)),
        [
            "0: 0..1 @ 99",
            "1: 0..2 @ 49",
            "late 1 at 49",
            "100/a",
            "50/b"
        ]
    );
}

#[test]
fn the_reasons_of_bad_records_are_bounded() {
    let mut counters = CombinerCounters::default();
    (0..1000).for_each(|reason| counters.count_bad(Cow::Owned(reason.to_string())));
    assert_eq!(counters.bad.len(), BAD_REASONS_MAX + 1);
    assert_eq!(counters.bad.get("other reasons"), Some(&936));
}

#[test]
fn long_texts_in_accumulators_count_as_pending_bytes() {
    let mut rows = PendingRows::new(&[crate::accumulator::AggregateFunction::Max]);
    let window = Window::new(0, 10).unwrap();
    let row = rows.insert(rows.hash(window, b"a"), window, b"a", 0);
    let before = rows.bytes();
    let text = crate::value::Value::String("x".repeat(5000).into());
    for _ in 0..2 {
        rows.update_and_weigh(row, |accumulators| accumulators[0].add(&text));
    }
    assert_eq!(rows.bytes() - before, 5000);
    rows.drain(|_, _, _, _| {});
    assert_eq!(rows.bytes(), 0);
}
