//! Transactions in a log against a naive model, with snapshots, reopening and losses of power.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use streamgauge_protocol::batch::{BatchBuilder, StampedBatch};

use super::*;
use crate::disk::sim::SimDisk;
use crate::producer_state::{ProducerBatch, ProducerState, TransactionMarker, TransactionResult};

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 700,
        index_interval_bytes: 100,
        ..LogConfig::default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Data {
        producer: i64,
        records: usize,
    },
    End {
        producer: i64,
        commit: bool,
    },
    Snapshot,
    /// Reopen the log after a loss of power; all that was appended had been synced.
    Crash,
    /// As a replica that begins at the log's first offset with the producers of its leader.
    StartAnew,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4i64, 1..4usize).prop_map(|(producer, records)| Step::Data { producer, records }),
        4 => (0..4i64, any::<bool>()).prop_map(|(producer, commit)| Step::End { producer, commit }),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Crash),
        1 => Just(Step::StartAnew),
    ];
    prop::collection::vec(step, 1..120)
}

/// What consumers may know.
#[derive(Default)]
struct Model {
    /// First offset by producer.
    open: BTreeMap<i64, i64>,
    /// Producer, first offset and marker.
    aborted: Vec<(i64, i64, i64)>,
    /// Abort markers, also those of transactions that wrote nothing: producer and offset.
    markers: Vec<(i64, i64)>,
}

struct Host {
    disk: SimDisk,
    directory: PathBuf,
    log: Log,
    producers: ProducerState,
    appended: Vec<Entry>,
    /// The log may say that a transaction began earlier than it did.
    is_blurred: bool,
}

impl Host {
    fn new() -> Self {
        let disk = SimDisk::new();
        let directory = PathBuf::from("/data/orders-0");
        let start = LogStart::of_new_partition();
        let log =
            Log::create(Arc::new(disk.clone()), &directory, config(), start, "id", 0).unwrap();
        Self {
            disk,
            directory,
            log,
            producers: ProducerState::new(),
            appended: Vec::new(),
            is_blurred: false,
        }
    }

    fn append(&mut self, batch: bytes::Bytes) -> i64 {
        let offset = self.log.next_offset();
        let entry = Entry {
            index: self.log.last_index().next(),
            term: Term(1),
            batch: StampedBatch::stamp(batch, offset, 0).unwrap(),
        };
        self.write(&entry);
        self.appended.push(entry);
        offset
    }

    /// Writes, syncs and commits.
    fn write(&mut self, entry: &Entry) {
        self.log.append(std::slice::from_ref(entry), 0).unwrap();
        if let Some(ticket) = self.log.sync_ticket() {
            ticket.run().unwrap();
            self.log.synced(ticket.cover());
        }
        let header = entry.batch.header();
        let whole = [entry.batch.prefix(), &entry.batch.body()[..]].concat();
        let marker = TransactionMarker::of_batch(&whole.into()).filter(|_| header.is_control());
        let batch = ProducerBatch::from_header(&header, marker).unwrap();
        let completed = match batch.base_offset < self.producers.committed_end_offset() {
            true => self.producers.note_past(&batch).into_iter().collect(),
            false => {
                self.producers.append_in_flight(batch);
                self.producers.commit_through(self.log.next_offset(), 0)
            }
        };
        for completed in completed {
            self.log.note_completed(&completed).unwrap();
        }
    }

    fn crash(&mut self, random: u64) {
        let mut random = random;
        self.disk.crash(&mut || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            random >> 33
        });
        let disk = Arc::new(self.disk.clone());
        let end = self.log.next_offset();
        let (log, report) = Log::open(disk, &self.directory, config(), 0).unwrap();
        assert_eq!(report.corruption, None);
        assert_eq!(log.next_offset(), end);
        self.producers = log.recover_producers(end, 0).unwrap();
        self.log = log;
    }

    fn start_anew(&mut self) {
        let start = LogStart::of_new_partition();
        let producers = self.producers.clone();
        let end = self.log.next_offset();
        self.log.start_anew(start, 0, &producers, 0).unwrap();
        self.producers = ProducerState::from_snapshot(&producers.to_snapshot(), end, 0).unwrap();
        self.is_blurred = true;
        for entry in self.appended.clone() {
            self.write(&entry);
        }
    }

    fn check(&self, model: &Model) {
        let end = self.log.next_offset();
        let stable = model.open.values().min().copied().unwrap_or(end);
        assert_eq!(self.producers.last_stable_offset(0, end), Some(stable));
        for (from, to) in [
            (0, end),
            (0, end / 2),
            (end / 3, end * 2 / 3),
            (end / 2, end),
        ] {
            let wanted: Vec<_> = model
                .aborted
                .iter()
                .filter(|(_, first, last)| *last >= from && *first < to)
                .copied()
                .collect();
            let found = self.log.reader().aborted_transactions(from, to).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|found| (found.producer_id, found.first_offset, found.last_offset))
                .collect();
            if !self.is_blurred {
                assert_eq!(found, wanted, "{from}..{to}");
                continue;
            }
            // None is missing, and none begins late or before the producer's last one had ended.
            for (producer, first, last) in wanted {
                assert!(
                    found.iter().any(|(of, begins, ends)| *of == producer
                        && *ends == last
                        && *begins <= first),
                    "{producer} {first} {last} in {found:?}"
                );
            }
            for (producer, _, last) in &found {
                assert!(model.markers.contains(&(*producer, *last)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn readers_are_told_of_what_was_aborted_whatever_happens_to_the_log(
        steps in steps(),
        random in any::<u64>(),
    ) {
        let mut host = Host::new();
        let mut model = Model::default();
        let mut epochs = [0i16; 4];
        for step in steps {
            match step {
                Step::Data { producer, records } => {
                    let epoch = epochs[producer as usize];
                    let mut batch = BatchBuilder::new().producer(producer, epoch, 0).transactional();
                    for record in 0..records {
                        batch.push(1_000 + record as i64, None, Some(b"value"), &[]);
                    }
                    let offset = host.append(batch.build().unwrap());
                    model.open.entry(producer).or_insert(offset);
                }
                Step::End { producer, commit } => {
                    let result = match commit {
                        true => TransactionResult::Commit,
                        false => TransactionResult::Abort,
                    };
                    let marker = TransactionMarker { result, coordinator_epoch: 3 };
                    epochs[producer as usize] += 1;
                    let epoch = epochs[producer as usize];
                    let offset = host.append(marker.to_batch(producer, epoch, 1_000).unwrap());
                    if !commit {
                        model.markers.push((producer, offset));
                    }
                    if let Some(first) = model.open.remove(&producer) && !commit {
                        model.aborted.push((producer, first, offset));
                    }
                }
                Step::Snapshot => {
                    let end = host.log.next_offset();
                    host.log.write_producer_snapshot(&host.producers, end).unwrap();
                }
                Step::Crash => host.crash(random),
                Step::StartAnew => host.start_anew(),
            }
            host.check(&model);
        }
    }
}

#[test]
fn retention_removes_the_file_with_its_segment() {
    let mut host = Host::new();
    let marker = TransactionMarker {
        result: TransactionResult::Abort,
        coordinator_epoch: 0,
    };
    while host.log.shared.segments.load().len() < 3 {
        let data = BatchBuilder::new()
            .producer(1, 0, 0)
            .transactional()
            .record(1, None, Some(b"value"));
        host.append(data.build().unwrap());
        host.append(marker.to_batch(1, 0, 1).unwrap());
    }
    let end = host.log.next_offset();
    host.log
        .write_producer_snapshot(&host.producers, end)
        .unwrap();
    let path = host.directory.join("00000000000000000000.txnindex");
    assert!(host.disk.exists(&path).unwrap());
    let known = host
        .log
        .reader()
        .aborted_transactions(0, end)
        .unwrap()
        .len();
    host.log
        .set_log_start_offset(host.log.active_base_offset())
        .unwrap();
    let removed = host.log.expire(0, end).unwrap();
    assert!(removed.contains(&0));
    assert!(!host.disk.exists(&path).unwrap());
    let left = host
        .log
        .reader()
        .aborted_transactions(0, end)
        .unwrap()
        .len();
    assert!(left < known);
}
