//! Combine and merge together, over logs in memory, through crashes at any point: every record is in exactly one result, or
//! late once, or a dead letter once; and results equal a naive recomputation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use crate::accumulator::Accumulator;
use crate::combine::{Combiner, CombinerConfig};
use crate::job::Job;
use crate::merge::{DeadLetterRecord, LateRecord, Merger, MergerConfig, Outputs, ResultRecord};
use crate::partial::PartialBatch;
use crate::testing::{FUNCTIONS, TextJob, batch, parse};
use crate::value::Value;
use crate::watermark::{SourceWatermark, WATERMARK_MIN};

/// What can happen next.
#[derive(Debug, Clone)]
enum Step {
    /// The combiner reads the next batch of the source that it picks, or of the one given.
    Read {
        picked: bool,
        source: usize,
    },
    /// A flush; the bits say which internal partitions' appends succeed. After one that fails the combiner starts anew.
    Flush {
        appended: u8,
    },
    /// An append that had been sent once reaches its log again, or for the first time.
    Zombie {
        batch: usize,
    },
    /// An internal partition's merger applies what it has not.
    Merge {
        internal: usize,
    },
    Snapshot {
        internal: usize,
    },
    CrashCombiner,
    /// Another broker, which takes the job for its own as well, goes on with its combiner, where that stood.
    SwitchCombiner,
    CrashMerger {
        internal: usize,
    },
    /// Time passes, and sources that are read to their end may become idle.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<bool>(), 0usize..3).prop_map(|(picked, source)| Step::Read { picked, source }),
        4 => Just(Step::Flush { appended: 0xff }),
        1 => any::<u8>().prop_map(|appended| Step::Flush { appended }),
        1 => (0usize..40).prop_map(|batch| Step::Zombie { batch }),
        3 => (0usize..3).prop_map(|internal| Step::Merge { internal }),
        1 => (0usize..3).prop_map(|internal| Step::Snapshot { internal }),
        1 => Just(Step::CrashCombiner),
        1 => Just(Step::SwitchCombiner),
        1 => (0usize..3).prop_map(|internal| Step::CrashMerger { internal }),
        1 => Just(Step::Wait),
    ]
}

/// The records of one source partition, in batches.
type SourceLog = Vec<Vec<String>>;

fn source_log() -> impl Strategy<Value = SourceLog> {
    // Event time goes forward by 3 ms a record on average, with disorder beyond the bound of 8 ms now and then.
    let record = (
        0i64..7,
        prop_oneof![6 => 0i64..8, 1 => 0i64..60],
        0u8..24,
        -3000i64..3000,
    );
    prop::collection::vec(prop::collection::vec(record, 1..6), 0..14).prop_map(|batches| {
        let mut time = -40;
        let text = |(forward, back, kind, amount): (i64, i64, u8, i64)| {
            time += forward;
            match kind {
                0 => "malformed".to_owned(),
                1 => format!("{},-,1", time - back),
                2 => format!("{},a,", time - back),
                _ => format!(
                    "{},{},{}.{:02}",
                    time - back,
                    ["a", "b", "c", "d", "e"][usize::from(kind % 5)],
                    amount / 100,
                    amount.abs() % 100
                ),
            }
        };
        let mut text = text;
        batches
            .into_iter()
            .map(|batch| batch.into_iter().map(&mut text).collect())
            .collect()
    })
}

struct World {
    job: Arc<TextJob>,
    sources: Vec<SourceLog>,
    internals: Vec<InternalPartition>,
    combiner: Combiner<TextJob>,
    combiner_id: i32,
    /// Of the broker that does nothing just now.
    other_combiner: Option<Combiner<TextJob>>,
    sent: Vec<PartialBatch>,
    now_ms: i64,
    refused: bool,
}

struct InternalPartition {
    log: Vec<Vec<Bytes>>,
    merger: Merger<TextJob>,
    applied: usize,
    snapshot: Option<(usize, Vec<Bytes>)>,
    results: Vec<ResultRecord>,
    late: Vec<LateRecord>,
    dead_letters: Vec<DeadLetterRecord>,
}

impl InternalPartition {
    fn new(job: &Arc<TextJob>, index: usize, sources: usize) -> InternalPartition {
        InternalPartition {
            log: Vec::new(),
            merger: Merger::new(
                job.clone(),
                index as i32,
                sources as i32,
                MergerConfig::default(),
            ),
            applied: 0,
            snapshot: None,
            results: Vec::new(),
            late: Vec::new(),
            dead_letters: Vec::new(),
        }
    }

    /// True if a batch was refused.
    fn merge(&mut self) -> bool {
        let mut refused = false;
        while let Some(values) = self.log.get(self.applied) {
            let base: usize = self.log[..self.applied].iter().map(Vec::len).sum();
            let slices: Vec<&[u8]> = values.iter().map(|value| &value[..]).collect();
            let outputs = self
                .merger
                .apply(base as i64, (base + slices.len()) as i64, &slices)
                .unwrap();
            self.applied += 1;
            refused |= outputs.refused.is_some();
            self.append(outputs);
        }
        refused
    }

    /// Appends what the output topics do not have; what they have must be the same.
    fn append(&mut self, outputs: Outputs) {
        fn each<T: PartialEq + std::fmt::Debug>(
            topic: &mut Vec<T>,
            outputs: Vec<T>,
            sequence: impl Fn(&T) -> u64,
        ) {
            for output in outputs {
                match topic.get(sequence(&output) as usize) {
                    Some(there) => assert_eq!(there, &output, "a replay gives another output"),
                    None => {
                        assert_eq!(sequence(&output), topic.len() as u64, "a gap");
                        topic.push(output);
                    }
                }
            }
        }
        each(&mut self.results, outputs.results, |result| result.sequence);
        each(&mut self.late, outputs.late, |late| late.sequence);
        each(&mut self.dead_letters, outputs.dead_letters, |letter| {
            letter.sequence
        });
    }

    fn crash(&mut self, job: &Arc<TextJob>, index: usize, sources: usize) {
        (self.applied, self.merger) = match &self.snapshot {
            None => (
                0,
                Merger::new(
                    job.clone(),
                    index as i32,
                    sources as i32,
                    MergerConfig::default(),
                ),
            ),
            Some((applied, chunks)) => (
                *applied,
                Merger::restore(
                    job.clone(),
                    index as i32,
                    MergerConfig::default(),
                    chunks.clone(),
                )
                .unwrap(),
            ),
        };
    }
}

impl World {
    fn new(job: TextJob, sources: Vec<SourceLog>, internals: usize) -> World {
        let job = Arc::new(job);
        let combiner = Combiner::new(
            job.clone(),
            CombinerConfig::new(internals as i32, sources.len() as i32),
        );
        let internals = (0..internals)
            .map(|index| InternalPartition::new(&job, index, sources.len()))
            .collect();
        let mut world = World {
            job,
            sources,
            internals,
            combiner,
            combiner_id: 0,
            other_combiner: None,
            sent: Vec::new(),
            now_ms: 0,
            refused: false,
        };
        world.start_combiner();
        world
    }

    fn start_combiner(&mut self) {
        self.combiner = self.new_combiner();
        self.refused = false;
    }

    /// One that knows what the mergers have.
    fn new_combiner(&mut self) -> Combiner<TextJob> {
        let config = CombinerConfig {
            combiner_id: self.combiner_id,
            ..CombinerConfig::new(self.internals.len() as i32, self.sources.len() as i32)
        };
        let mut combiner = Combiner::new(self.job.clone(), config);
        for (index, internal) in self.internals.iter_mut().enumerate() {
            internal.merge();
            let merger = &internal.merger;
            combiner
                .set_internal_state(
                    index as i32,
                    merger.covers(),
                    merger.watermark(),
                    merger.open_windows(),
                )
                .unwrap();
        }
        for source in 0..self.sources.len() {
            combiner.assign_source(source as i32, 1, 0, self.now_ms);
        }
        combiner
    }

    /// The batch that holds or follows an offset.
    fn batch_at(&self, source: usize, offset: i64) -> Option<Bytes> {
        let mut base = 0;
        for values in &self.sources[source] {
            let end = base + values.len() as i64;
            if end > offset {
                return Some(batch(
                    base,
                    &values.iter().map(String::as_str).collect::<Vec<_>>(),
                ));
            }
            base = end;
        }
        None
    }

    fn unread(&self) -> Vec<i32> {
        let sources = 0..self.sources.len() as i32;
        sources
            .filter(|source| {
                self.batch_at(
                    *source as usize,
                    self.combiner.next_offset(*source).unwrap(),
                )
                .is_some()
            })
            .collect()
    }

    fn step(&mut self, step: &Step) {
        self.now_ms += 10;
        let internals = self.internals.len();
        match *step {
            Step::Read { picked, source } => {
                let unread = self.unread();
                let given = unread.get(source % unread.len().max(1)).copied();
                let Some(source) = (if picked {
                    self.combiner.pick(&unread)
                } else {
                    given
                }) else {
                    return;
                };
                let bytes = self
                    .batch_at(source as usize, self.combiner.next_offset(source).unwrap())
                    .unwrap();
                assert!(
                    self.combiner
                        .add_batch(source, &bytes, self.now_ms)
                        .unwrap()
                        .complete
                );
            }
            Step::Flush { appended } => {
                let mut lost = false;
                for batch in self.combiner.flush(self.now_ms) {
                    if appended & (1 << batch.internal_partition) != 0 {
                        self.internals[batch.internal_partition as usize]
                            .log
                            .push(batch.records.clone());
                    } else {
                        lost = true;
                    }
                    self.sent.push(batch);
                }
                if lost {
                    self.start_combiner();
                }
            }
            Step::Zombie { batch } => {
                if let Some(batch) = self.sent.get(batch) {
                    self.internals[batch.internal_partition as usize]
                        .log
                        .push(batch.records.clone());
                }
            }
            Step::Merge { internal } => {
                self.refused |= self.internals[internal % internals].merge()
            }
            Step::Snapshot { internal } => {
                let internal = &mut self.internals[internal % internals];
                internal.snapshot = Some((internal.applied, internal.merger.snapshot()));
            }
            Step::CrashCombiner => self.start_combiner(),
            Step::SwitchCombiner => {
                self.combiner_id = 1 - self.combiner_id;
                let other = self.other_combiner.take();
                let other = other.unwrap_or_else(|| self.new_combiner());
                self.other_combiner = Some(std::mem::replace(&mut self.combiner, other));
            }
            Step::CrashMerger { internal } => {
                let index = internal % internals;
                self.internals[index].crash(&self.job, index, self.sources.len());
            }
            Step::Wait => {
                self.now_ms += 600;
                let unread = self.unread();
                for source in
                    (0..self.sources.len() as i32).filter(|source| !unread.contains(source))
                {
                    self.combiner.caught_up(source, self.now_ms).unwrap();
                }
            }
        }
        if self.refused {
            self.start_combiner();
        }
    }

    /// Ends every source with a record that closes all windows, and lets everything run to its end.
    fn finish(&mut self) {
        for source in &mut self.sources {
            source.push(vec!["1000000,-,".to_owned()]);
        }
        for _ in 0..1000 {
            while !self.unread().is_empty() {
                self.step(&Step::Read {
                    picked: true,
                    source: 0,
                });
            }
            self.now_ms += 5000;
            self.step(&Step::Flush { appended: 0xff });
            for internal in 0..self.internals.len() {
                self.step(&Step::Merge { internal });
            }
            if self.unread().is_empty()
                && self.internals.iter().all(|internal| {
                    internal.merger.watermark() == 1_000_000 - 1 - self.job.bound_ms
                })
            {
                return;
            }
        }
        panic!("the pipeline does not come to its end");
    }

    /// Every record with its source and offset.
    fn records(&self) -> impl Iterator<Item = ((i32, i64), &str)> {
        self.sources
            .iter()
            .enumerate()
            .flat_map(|(source, batches)| {
                batches
                    .iter()
                    .flatten()
                    .enumerate()
                    .map(move |(offset, text)| ((source as i32, offset as i64), text.as_str()))
            })
    }

    fn late(&self) -> BTreeSet<(i32, i64)> {
        let late = self.internals.iter().flat_map(|internal| &internal.late);
        let mut seen = BTreeSet::new();
        for late in late {
            assert!(
                seen.insert((late.record.source_partition, late.record.offset)),
                "{late:?} twice"
            );
            assert!(late.window.is_closed_at(late.watermark));
        }
        seen
    }

    fn check_against_recomputation(&self) {
        let late = self.late();
        let mut bad = BTreeSet::new();
        let mut expected: BTreeMap<(i64, String), Vec<Accumulator>> = BTreeMap::new();
        for (place, text) in self.records() {
            match parse(Some(text.as_bytes())) {
                None => assert!(bad.insert(place)),
                Some((_, "-", _)) => {}
                Some(_) if late.contains(&place) => {}
                Some((time, group, amount)) => {
                    let start = time.div_euclid(self.job.window_ms) * self.job.window_ms;
                    let accumulators = expected
                        .entry((start, group.to_owned()))
                        .or_insert_with(|| FUNCTIONS.map(Accumulator::new).into());
                    let amount = amount.map_or(Value::Null, Value::from_decimal);
                    accumulators
                        .iter_mut()
                        .for_each(|accumulator| accumulator.add(&amount));
                }
            }
        }
        let expected: BTreeSet<String> = expected
            .into_iter()
            .map(|((start, group), accumulators)| {
                let window = self.job.windows().pane_of(start).unwrap();
                String::from_utf8(
                    self.job
                        .result_value(group.as_bytes(), window, &accumulators)
                        .unwrap(),
                )
                .unwrap()
            })
            .collect();
        let mut found = BTreeSet::new();
        for result in self.internals.iter().flat_map(|internal| &internal.results) {
            assert!(
                found.insert(String::from_utf8(result.value.to_vec()).unwrap()),
                "{result:?} twice"
            );
        }
        assert_eq!(found, expected);
        let letters = self
            .internals
            .iter()
            .flat_map(|internal| &internal.dead_letters);
        let letters: Vec<_> = letters
            .map(|letter| {
                (
                    letter.letter.record.source_partition,
                    letter.letter.record.offset,
                )
            })
            .collect();
        assert_eq!(letters.len(), bad.len());
        assert_eq!(letters.into_iter().collect::<BTreeSet<_>>(), bad);
        for internal in &self.internals {
            assert_eq!(internal.merger.counters().rows_for_closed_windows, 0);
            assert_eq!(internal.merger.windows_open(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_in_one_result_or_late_once_through_any_crash(
        sources in prop::collection::vec(source_log(), 1..4), internals in 1usize..4, idle: bool, steps in prop::collection::vec(step(), 0..120),
    ) {
        let job = TextJob { idle_timeout_ms: idle.then_some(500), ..TextJob::new(10, 8) };
        let mut world = World::new(job, sources, internals);
        for step in &steps {
            world.step(step);
        }
        world.finish();
        world.check_against_recomputation();
    }

    #[test]
    fn of_one_source_exactly_the_records_behind_their_windows_end_are_late_through_any_crash(
        source in source_log(), internals in 1usize..4, steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new(TextJob::new(10, 8), vec![source], internals);
        for step in &steps {
            world.step(step);
        }
        world.finish();
        world.check_against_recomputation();
        let mut watermark = SourceWatermark::NEW;
        let mut expected = BTreeSet::new();
        for (place, text) in world.records() {
            let Some((time, group, _)) = parse(Some(text.as_bytes())) else { continue };
            if group != "-" && world.job.windows().pane_of(time).unwrap().is_closed_at(watermark.watermark) {
                expected.insert(place);
            }
            watermark.observe(time, world.job.bound_ms);
        }
        prop_assert_eq!(world.late(), expected);
    }
}

#[test]
fn two_sources_read_in_alignment_lose_nothing_that_is_within_the_bound() {
    let source = |shift: i64| {
        (0..50)
            .map(|batch| {
                (0..4)
                    .map(|record| format!("{},a,1", batch * 40 + record * 10 + shift))
                    .collect()
            })
            .collect()
    };
    let mut world = World::new(TextJob::new(100, 15), vec![source(0), source(3)], 2);
    // Source 0 alone is read far ahead, the least watermark is still source 1's.
    for _ in 0..30 {
        world.step(&Step::Read {
            picked: false,
            source: 0,
        });
    }
    assert_eq!(world.combiner.watermark(), WATERMARK_MIN);
    world.finish();
    world.check_against_recomputation();
    assert_eq!(world.late(), BTreeSet::new());
}
