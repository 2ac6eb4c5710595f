//! Index files that are lost or damaged, and what stays in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use streamgauge_protocol::batch::{BatchBuilder, BatchIter, StampedBatch};

use super::*;
use crate::disk::real::RealDisk;
use crate::disk::sim::SimDisk;

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 3000,
        index_interval_bytes: 200,
        ..LogConfig::default()
    }
}

fn fill(disk: &Arc<dyn Disk>, directory: &Path, count: i64) -> Log {
    let start = LogStart::of_new_partition();
    let mut log = Log::create(Arc::clone(disk), directory, config(), start, "id", 0).unwrap();
    for step in 0..count {
        let offset = log.next_offset();
        let batch = if step % 7 == 3 {
            StampedBatch::internal(0, b"", offset, Term(1).leader_epoch())
        } else {
            let built = BatchBuilder::new()
                .record(1000 + step, Some(b"k"), Some(b"value"))
                .build()
                .unwrap();
            StampedBatch::stamp(built, offset, Term(1).leader_epoch()).unwrap()
        };
        let entry = Entry {
            index: log.last_index().next(),
            term: Term(1),
            batch,
        };
        log.append(&[entry], 0).unwrap();
    }
    log
}

fn entries(log: &Log) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index().next(), u64::MAX)
        .unwrap()
}

fn first_offset_from(log: &Log, offset: i64) -> i64 {
    let end = log.next_offset();
    let read = log.reader().read(offset, 1, end, true).unwrap();
    let first = read.slices.into_iter().flat_map(BatchIter::new).next();
    first.unwrap().unwrap().0.base_offset
}

fn check_against(log: &Log, expected: &[Entry]) {
    assert_eq!(entries(log), expected);
    for entry in expected {
        let header = entry.batch.header();
        assert_eq!(log.offset_after(entry.index).unwrap(), header.next_offset());
        if !header.is_internal() {
            assert_eq!(
                first_offset_from(log, header.base_offset),
                header.base_offset
            );
            let at = log
                .reader()
                .offset_for_timestamp(header.max_timestamp, log.next_offset());
            assert_eq!(at.unwrap().unwrap().offset, header.base_offset);
        }
    }
}

#[test]
fn lost_or_damaged_index_files_are_made_again() {
    let directory = PathBuf::from("/data/orders-0");
    for suffix in ["index", "timeindex", "ridx"] {
        for damage in 0..9 {
            for while_open in [false, true] {
                let sim = SimDisk::new();
                let disk: Arc<dyn Disk> = Arc::new(sim.clone());
                let mut log = fill(&disk, &directory, 100);
                let expected = entries(&log);
                log.close().unwrap();
                let (opened, _) = Log::open(Arc::clone(&disk), &directory, config(), 0).unwrap();
                for segment in opened.shared.segments.load().iter() {
                    let path = segment.path(suffix);
                    let Ok(file) = disk.open(&path) else {
                        continue;
                    };
                    let len = file.len().unwrap();
                    match damage {
                        0 => disk.remove_file(&path).unwrap(),
                        1 => file.set_len(0).unwrap(),
                        2 => file.set_len(len / 2).unwrap(),
                        _ => sim.flip_bit(&path, damage * 79_190_001 % (len as usize * 8)),
                    }
                }
                let (log, report) = if while_open {
                    (opened, RecoveryReport::default())
                } else {
                    Log::open(Arc::clone(&disk), &directory, config(), 0).unwrap()
                };
                assert_eq!(report.corruption, None);
                check_against(&log, &expected);
                let (again, _) = Log::open(disk, &directory, config(), 0).unwrap();
                check_against(&again, &expected);
            }
        }
    }
}

#[test]
fn an_index_made_again_still_bounds_the_scan() {
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let directory = PathBuf::from("/data/orders-0");
    let log = fill(&disk, &directory, 400);
    let big = LogConfig {
        segment_bytes: 1 << 30,
        ..config()
    };
    let other = PathBuf::from("/data/other-0");
    let start = LogStart::of_new_partition();
    let mut copy = Log::create(Arc::clone(&disk), &other, big, start, "id", 0).unwrap();
    copy.append(&entries(&log), 0).unwrap();
    copy.roll(0).unwrap();
    let sealed = Arc::clone(&copy.shared.segments.load()[0]);
    sealed.unload();
    disk.remove_file(&sealed.path("index")).unwrap();
    let last = u32::try_from(copy.next_offset() - 1).unwrap();
    let position = sealed.with_index(|index| index.position_before(last));
    assert!(sealed.end() - u64::from(position) < 10_000, "{position}");
}

#[test]
fn what_was_read_long_ago_is_let_go() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("orders-0");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let log = fill(&disk, &directory, 1200);
    let expected = entries(&log);
    let segments = log.shared.segments.load_full();
    assert!(segments.len() > 3 * LOADED_SEGMENTS_MAX);
    check_against(&log, &expected);
    let loaded = segments.iter().filter(|segment| segment.is_loaded());
    assert!(
        loaded.count() <= LOADED_SEGMENTS_MAX + 1,
        "and the active one"
    );
    let open = segments.iter().filter(|segment| segment.has_open_file());
    assert_eq!(open.count(), 1, "a mapped segment needs no descriptor");
}
