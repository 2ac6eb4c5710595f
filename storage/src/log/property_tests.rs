//! Random histories with faults against a model: what was synced stays, nothing else than what was
//! appended is ever read, and damage is seen.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use streamgauge_protocol::batch::{
    BATCH_PREFIX_BYTES, BatchBuilder, BatchHeader, BatchIter, BatchRecords, StampedBatch,
};

use super::*;
use crate::disk::sim::{Faults, SimDisk};

fn directory() -> PathBuf {
    PathBuf::from("/data/orders-0")
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 700,
        index_interval_bytes: 100,
        ..LogConfig::default()
    }
}

fn xorshift(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Append {
        records: usize,
        newer_term: bool,
        timestamp: i64,
    },
    Sync,
    Commit,
    /// Of what is not committed.
    Truncate {
        back: usize,
    },
    Expire {
        retention_bytes: i64,
    },
    DeleteRecords {
        part: f64,
    },
    Reopen,
    Close,
}

#[derive(Debug, Clone)]
enum Step {
    Whole(Operation),
    Faulty(Operation, Faults),
    Crash {
        during: Operation,
        after: u64,
        seed: u64,
    },
    Read {
        part: f64,
        bytes_max: usize,
        limit: f64,
        at_least_one: bool,
    },
    FindTime {
        timestamp: i64,
        limit: f64,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        10 => (0usize..4, prop::bool::weighted(0.2), 0i64..500).prop_map(
            |(records, newer_term, timestamp)| Operation::Append { records, newer_term, timestamp }
        ),
        3 => Just(Operation::Sync),
        1 => Just(Operation::Commit),
        2 => (1usize..16).prop_map(|back| Operation::Truncate { back }),
        1 => (200i64..3000).prop_map(|retention_bytes| Operation::Expire { retention_bytes }),
        1 => (0.0..1.0).prop_map(|part| Operation::DeleteRecords { part }),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Close),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    prop_oneof![
        Just(Faults {
            fail_writes: true,
            ..Faults::default()
        }),
        Just(Faults {
            fail_writes: true,
            fail_set_len: true,
            ..Faults::default()
        }),
        Just(Faults {
            fail_syncs: true,
            ..Faults::default()
        }),
        Just(Faults {
            fail_reads: true,
            ..Faults::default()
        }),
        (0u64..400).prop_map(|spare| Faults {
            capacity_bytes: Some(spare),
            ..Faults::default()
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => operation().prop_map(Step::Whole),
        2 => (operation(), faults()).prop_map(|(operation, faults)| Step::Faulty(operation, faults)),
        2 => (operation(), 0u64..14, any::<u64>())
            .prop_map(|(during, after, seed)| Step::Crash { during, after, seed }),
        3 => (0.0..1.1, 0usize..1500, 0.0..1.1, any::<bool>()).prop_map(
            |(part, bytes_max, limit, at_least_one)| Step::Read { part, bytes_max, limit, at_least_one }
        ),
        2 => (0i64..520, 0.0..1.1).prop_map(|(timestamp, limit)| Step::FindTime { timestamp, limit }),
    ]
}

struct World {
    disk: SimDisk,
    handle: Arc<dyn Disk>,
    log: Log,
    /// From index 6 on; those before the log's first index are gone.
    appended: Vec<Entry>,
    /// How many of them must survive a crash.
    synced: usize,
    committed: usize,
    term: u64,
    start_offset: i64,
}

impl World {
    fn new() -> Self {
        let disk = SimDisk::new();
        let handle: Arc<dyn Disk> = Arc::new(disk.clone());
        let start = LogStart::of_new_partition();
        let log = Log::create(Arc::clone(&handle), &directory(), config(), start, "id", 0).unwrap();
        let mut world = Self {
            disk,
            handle,
            log,
            appended: Vec::new(),
            synced: 0,
            committed: 0,
            term: 1,
            start_offset: 0,
        };
        world.apply(&Operation::Sync).unwrap();
        world
    }

    fn committed_offset(&self) -> i64 {
        self.committed
            .checked_sub(1)
            .map_or(0, |at| self.appended[at].batch.header().next_offset())
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), StorageError> {
        match operation {
            Operation::Append {
                records,
                newer_term,
                timestamp,
            } => {
                self.term += u64::from(*newer_term);
                let entry = self.entry(*records, *timestamp);
                self.log.append(std::slice::from_ref(&entry), 0)?;
                self.appended.push(entry);
            }
            Operation::Sync => {
                if let Some(ticket) = self.log.sync_ticket() {
                    ticket.run().inspect_err(|_| self.log.failed = true)?;
                    self.synced = self.appended.len();
                    self.log.synced(ticket.cover());
                    self.log.write_recovery_point()?;
                }
            }
            Operation::Commit => self.committed = self.committed.max(self.synced),
            Operation::Truncate { back } => {
                let kept = self
                    .appended
                    .len()
                    .saturating_sub(*back)
                    .max(self.committed);
                self.synced = self.synced.min(kept);
                self.log.truncate_from(RaftIndex(6 + kept as u64))?;
                self.appended.truncate(kept);
            }
            Operation::Expire { retention_bytes } => {
                self.log.configure(LogConfig {
                    retention_bytes: *retention_bytes,
                    ..config()
                });
                let limit = self.committed_offset();
                let committed = RaftIndex(5 + self.committed as u64);
                let expired = match retention_bytes % 2 {
                    0 => self.log.expire(0, limit),
                    _ => self.log.expire_committed(0, limit, committed),
                };
                assert!(self.log.start.index <= committed);
                assert!(self.log.log_start_offset() <= limit.max(self.start_offset));
                expired?;
            }
            Operation::DeleteRecords { part } => {
                let offset = (self.committed_offset() as f64 * part) as i64;
                self.log.set_log_start_offset(offset)?;
                assert!(self.log.log_start_offset() >= offset);
            }
            Operation::Reopen => self.reopen()?,
            Operation::Close => {
                self.log.close()?;
                self.synced = self.appended.len();
                self.reopen()?;
            }
        }
        Ok(())
    }

    fn entry(&self, records: usize, timestamp: i64) -> Entry {
        let (offset, term) = (self.log.next_offset(), Term(self.term));
        let batch = if records == 0 {
            StampedBatch::internal(0, b"payload", offset, term.leader_epoch())
        } else {
            let mut builder = BatchBuilder::new();
            for record in 0..records as i64 {
                let value = format!("{offset}+{record} of {}", self.term);
                builder.push(timestamp - 2 * record, None, Some(value.as_bytes()), &[]);
            }
            StampedBatch::stamp(builder.build().unwrap(), offset, term.leader_epoch()).unwrap()
        };
        Entry {
            index: self.log.last_index().next(),
            term,
            batch,
        }
    }

    fn reopen(&mut self) -> Result<(), StorageError> {
        let (log, report) = Log::open(Arc::clone(&self.handle), &directory(), config(), 0)?;
        assert_eq!(report.corruption, None, "no fault of ours is corruption");
        self.log = log;
        Ok(())
    }

    /// After a fault or crash: opens, and takes for the model what recovery found.
    fn recover(&mut self) {
        self.disk.set_faults(Faults::default());
        self.reopen().unwrap();
        let first = self.log.first_index().0 as usize - 6;
        let found = entries(&self.log);
        let count = first + found.len();
        assert!(count >= self.synced, "lost a synced entry");
        assert!(count <= self.appended.len(), "more than was appended");
        assert_eq!(found[..], self.appended[first..count], "not a prefix");
        self.appended.truncate(count);
        // As a broker does before it serves what it found.
        self.apply(&Operation::Sync).unwrap();
        self.synced = count;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Whole(operation) => self.apply(operation).unwrap(),
            Step::Faulty(operation, faults) => {
                let capacity_bytes = faults
                    .capacity_bytes
                    .map(|spare| self.disk.used_bytes() + spare);
                self.disk.set_faults(Faults {
                    capacity_bytes,
                    ..*faults
                });
                let done = self.apply(operation);
                self.disk.set_faults(Faults::default());
                if self.log.failed
                    || matches!(operation, Operation::Close | Operation::Truncate { .. })
                {
                    self.recover();
                } else if done.is_err() {
                    let full_disk = faults.capacity_bytes.is_some();
                    assert!(
                        !full_disk || matches!(done, Err(StorageError::DiskFull { .. })),
                        "{done:?}"
                    );
                }
            }
            Step::Crash {
                during,
                after,
                seed,
            } => {
                self.disk.set_faults(Faults {
                    stop_after: Some(*after),
                    ..Faults::default()
                });
                let _may_fail = self.apply(during);
                self.disk.crash(&mut xorshift(*seed));
                self.recover();
            }
            Step::Read {
                part,
                bytes_max,
                limit,
                at_least_one,
            } => {
                let end = self.log.next_offset() as f64;
                let (offset, limit) = ((end * part) as i64, (end * limit) as i64);
                self.check_read(offset, *bytes_max, limit, *at_least_one);
            }
            Step::FindTime { timestamp, limit } => {
                let limit = (self.log.next_offset() as f64 * limit) as i64;
                self.check_time(*timestamp, limit);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let first = self.log.first_index().0 as usize - 6;
        assert_eq!(entries(&self.log), self.appended[first..]);
        assert!(
            self.log.log_start_offset() >= self.start_offset,
            "the start moved back"
        );
        self.start_offset = self.log.log_start_offset();
        for entry in &self.appended[first..] {
            assert_eq!(self.log.term(entry.index), Ok(entry.term));
            let next_offset = entry.batch.header().next_offset();
            assert_eq!(self.log.offset_after(entry.index).unwrap(), next_offset);
        }
    }

    fn batches(&self) -> impl Iterator<Item = Bytes> {
        let first = self.log.first_index().0 as usize - 6;
        let data = self.appended[first..].iter();
        let data = data.filter(|entry| !entry.batch.header().is_internal());
        data.map(|entry| entry.batch.to_bytes())
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn check_read(&self, offset: i64, bytes_max: usize, limit: i64, at_least_one: bool) {
        let read = self
            .log
            .reader()
            .read(offset, bytes_max, limit, at_least_one);
        if offset < self.log.log_start_offset() || offset > self.log.next_offset() {
            assert!(matches!(read, Err(ReadError::OffsetOutOfRange { .. })));
            return;
        }
        let read = read.unwrap();
        let expected: Vec<Bytes> = BatchIterOf(self.batches())
            .filter(|(header, _)| header.last_offset() >= offset && header.last_offset() < limit)
            .map(|(_, bytes)| bytes)
            .collect();
        let found: Vec<Bytes> = read
            .slices
            .iter()
            .cloned()
            .flat_map(whole_batches)
            .collect();
        assert!(found.len() <= expected.len());
        assert_eq!(found, expected[..found.len()]);
        let bytes: usize = found.iter().map(Bytes::len).sum();
        assert_eq!(bytes, read.bytes);
        assert!(bytes <= bytes_max || (at_least_one && found.len() == 1));
        let first_fits = expected
            .first()
            .is_some_and(|batch| at_least_one || batch.len() <= bytes_max);
        assert_eq!(!found.is_empty(), first_fits && offset < limit);
    }

    fn check_time(&self, timestamp: i64, limit: i64) {
        let start = self.log.log_start_offset();
        let expected = self
            .batches()
            .flat_map(|batch| {
                let records = BatchRecords::open(&batch, usize::MAX).unwrap();
                let pairs: Vec<_> = records
                    .iter()
                    .map(|record| {
                        record
                            .map(|record| (record.offset, record.timestamp))
                            .unwrap()
                    })
                    .collect();
                pairs
            })
            .find(|(offset, at)| *offset >= start && *at >= timestamp)
            .filter(|(offset, _)| *offset < limit);
        let found = self
            .log
            .reader()
            .offset_for_timestamp(timestamp, limit)
            .unwrap();
        assert_eq!(found.map(|found| (found.offset, found.timestamp)), expected);
    }
}

/// Batches with their headers.
struct BatchIterOf<I>(I);

impl<I: Iterator<Item = Bytes>> Iterator for BatchIterOf<I> {
    type Item = (BatchHeader, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.0.next()?;
        let header = BatchHeader::parse(&batch).unwrap();
        Some((header, batch))
    }
}

fn whole_batches(slice: Bytes) -> Vec<Bytes> {
    BatchIter::new(slice)
        .map(|batch| batch.unwrap().1)
        .collect()
}

fn entries(log: &Log) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index().next(), u64::MAX)
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn histories_with_faults_agree_with_a_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_or_does_no_harm(
        steps in prop::collection::vec(operation(), 10..50),
        closed in any::<bool>(),
        file in any::<prop::sample::Index>(),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step).unwrap();
        }
        world.apply(&Operation::Sync).unwrap();
        if closed {
            world.log.close().unwrap();
        }
        let names = world.disk.list(&directory()).unwrap();
        let path = directory().join(file.get(&names));
        let len = world.disk.open(&path).unwrap().len().unwrap() as usize;
        prop_assume!(len > 0);
        world.disk.flip_bit(&path, bit.index(len * 8));
        check_flipped(&world, &path);
    }

    #[test]
    fn damage_stays_damage_after_a_loss_of_power(
        steps in prop::collection::vec(operation(), 10..50),
        bit in any::<prop::sample::Index>(),
        noted in any::<bool>(),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step).unwrap();
        }
        world.apply(&Operation::Sync).unwrap();
        if noted {
            let _ = world.log.write_recovery_point();
        }
        let synced = Log::recovery_point(&world.disk, &directory());
        let path = directory().join(format!("{:020}.log", synced.base_offset));
        prop_assume!(synced.position > 0);
        world.disk.flip_bit(&path, bit.index(synced.position as usize * 8));
        let found = |world: &World| {
            let opened = Log::open(Arc::clone(&world.handle), &directory(), config(), 0);
            opened.map_or(true, |(_, report)| report.corruption.is_some())
        };
        let before = found(&world);
        // Of what was not synced nothing survives.
        world.disk.crash(&mut || 0);
        prop_assert_eq!(found(&world), before);
    }
}

/// Opening says that something is wrong, or reading does, or nothing is.
fn check_flipped(world: &World, path: &Path) {
    let Ok((log, report)) = Log::open(Arc::clone(&world.handle), &directory(), config(), 0) else {
        return;
    };
    let first = log.first_index().0 as usize - 6;
    for (at, expected) in world.appended.iter().enumerate().skip(first) {
        match log.entries(expected.index, expected.index.next(), u64::MAX) {
            Err(_) => {}
            Ok(found) if found.is_empty() => {
                assert!(
                    report.corruption.is_some(),
                    "entry {at} was lost silently: {path:?}"
                );
            }
            Ok(found) => assert_eq!(found, std::slice::from_ref(expected), "{path:?}"),
        }
    }
    let expected: Vec<_> = BatchIterOf(world.batches()).collect();
    for (header, bytes) in &expected {
        let offset = header.base_offset.max(log.log_start_offset());
        let Ok(read) = log.reader().read(offset, 1, i64::MAX, true) else {
            continue;
        };
        for found in read.slices.into_iter().flat_map(whole_batches) {
            // What the batch's own checksum covers is for the consumer to see. (Its length and
            // offset are for us; the epoch before it is not checked here.)
            let body = found.get(BATCH_PREFIX_BYTES..).unwrap_or_default();
            let seen = BatchHeader::parse(&found)
                .and_then(|header| header.verify_crc(body))
                .is_err();
            let same = |range: std::ops::Range<usize>| found.get(range.clone()) == bytes.get(range);
            let is_later = header.last_offset() < log.log_start_offset();
            assert!(
                seen || is_later || (same(0..12) && same(16..bytes.len())),
                "{path:?}"
            );
        }
    }
}
