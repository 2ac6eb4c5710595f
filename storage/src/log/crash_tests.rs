//! Histories of kills, power failures and truncations that recovery must survive.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use streamgauge_protocol::batch::{BatchBuilder, StampedBatch};

use super::*;
use crate::disk::sim::{Faults, SimDisk};

fn directory() -> PathBuf {
    PathBuf::from("/data/orders-0")
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 600,
        index_interval_bytes: 100,
        ..LogConfig::default()
    }
}

fn new_log() -> (SimDisk, Arc<dyn Disk>, Log) {
    let disk = SimDisk::new();
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let start = LogStart::of_new_partition();
    let mut log = Log::create(Arc::clone(&handle), &directory(), config(), start, "id", 0).unwrap();
    sync(&mut log);
    (disk, handle, log)
}

fn open(handle: &Arc<dyn Disk>) -> (Log, RecoveryReport) {
    Log::open(Arc::clone(handle), &directory(), config(), 0).unwrap()
}

fn entry(log: &Log, term: u64) -> Entry {
    let offset = log.next_offset();
    let built = BatchBuilder::new()
        .record(7, Some(b"k"), Some(b"value"))
        .build()
        .unwrap();
    Entry {
        index: log.last_index().next(),
        term: Term(term),
        batch: StampedBatch::stamp(built, offset, Term(term).leader_epoch()).unwrap(),
    }
}

fn append(log: &mut Log, term: u64) -> Entry {
    let entry = entry(log, term);
    log.append(std::slice::from_ref(&entry), 0).unwrap();
    entry
}

fn sync(log: &mut Log) {
    if let Some(ticket) = log.sync_ticket() {
        ticket.run().unwrap();
    }
}

fn all(log: &Log) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index().next(), u64::MAX)
        .unwrap()
}

fn xorshift(mut state: u64) -> impl FnMut() -> u64 {
    state |= 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// The process is killed between any two changes to the disk; the page cache survives.
#[test]
fn a_kill_at_any_change_keeps_entries_and_their_terms() {
    for after in 0..200 {
        let (disk, handle, mut log) = new_log();
        disk.set_faults(Faults {
            stop_after: Some(after),
            ..Faults::default()
        });
        let mut appended = Vec::new();
        for step in 0..25 {
            let entry = entry(&log, 1 + step / 3);
            match log.append(std::slice::from_ref(&entry), 0) {
                Ok(()) => appended.push(entry),
                Err(_) => break,
            }
        }
        disk.set_faults(Faults::default());
        let (log, report) = open(&handle);
        assert_eq!(report.corruption, None, "after {after}");
        let found = all(&log);
        assert!(found.len() >= appended.len(), "after {after}: lost");
        assert_eq!(found[..appended.len()], appended[..], "after {after}");
    }
}

/// Power fails after a truncation that took back a roll.
#[test]
fn a_power_failure_after_truncation_over_segments_leaves_a_prefix() {
    for seed in 1..100u64 {
        let (disk, handle, mut log) = new_log();
        let entries: Vec<_> = (0..12).map(|_| append(&mut log, 1)).collect();
        sync(&mut log);
        log.truncate_from(RaftIndex(8)).unwrap();
        disk.crash(&mut xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let (log, report) = open(&handle);
        assert_eq!(report.corruption, None, "seed {seed}");
        let found = all(&log);
        assert!(found.len() >= 2, "seed {seed}: lost");
        assert_eq!(found[..], entries[..found.len()], "seed {seed}");
    }
}

/// A closed log is opened and cut; then power fails before the directory is synced.
#[test]
fn a_power_failure_does_not_bring_an_old_entry_index_back() {
    for seed in 1..100u64 {
        let (disk, handle, mut log) = new_log();
        let entries: Vec<_> = (0..4).map(|_| append(&mut log, 1)).collect();
        log.close().unwrap();
        disk.sync_dir(&directory()).unwrap();
        let index_file = directory().join("00000000000000000000.ridx");
        disk.open(&index_file).unwrap().sync_data().unwrap();
        let (mut log, _) = open(&handle);
        log.truncate_from(RaftIndex(8)).unwrap();
        let newer = append(&mut log, 2);
        sync(&mut log);
        disk.crash(&mut xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let (log, report) = open(&handle);
        assert_eq!(report.corruption, None, "seed {seed}");
        assert_eq!(log.last_index(), RaftIndex(8), "seed {seed}");
        assert_eq!(
            all(&log),
            [entries[0].clone(), entries[1].clone(), newer],
            "seed {seed}"
        );
    }
}

/// Several batches are written and none synced; the device kept a later one and not an earlier one.
#[test]
fn unsynced_batches_may_survive_out_of_order() {
    for seed in 1..200u64 {
        let (disk, handle, mut log) = new_log();
        let kept = append(&mut log, 1);
        sync(&mut log);
        for _ in 0..5 {
            append(&mut log, 1);
        }
        disk.crash(&mut xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let (log, report) = open(&handle);
        assert_eq!(report.corruption, None, "seed {seed}");
        assert_eq!(all(&log)[0], kept);
    }
}

/// What an earlier crash left behind is removed.
#[test]
fn segments_before_the_start_do_not_stay_on_disk() {
    let (disk, handle, mut log) = new_log();
    for _ in 0..30 {
        append(&mut log, 1);
    }
    sync(&mut log);
    log.configure(LogConfig {
        retention_bytes: 700,
        ..config()
    });
    // The start's file: create, write, sync, rename, sync of the directory; then no power.
    disk.set_faults(Faults {
        stop_after: Some(5),
        ..Faults::default()
    });
    let expired = log.expire(0, 30);
    assert!(expired.is_err());
    disk.set_faults(Faults::default());
    let (log, _) = open(&handle);
    let bases: Vec<_> = disk
        .list(Path::new(&directory()))
        .unwrap()
        .into_iter()
        .filter(|name| name.ends_with(".log"))
        .collect();
    assert_eq!(bases.len(), log.shared.segments.load().len(), "{bases:?}");
}
#[test]
fn a_torn_batch_whose_value_holds_a_batch_is_a_torn_tail() {
    let (disk, handle, mut log) = new_log();
    let kept = append(&mut log, 1);
    let inner = entry(&log, 1).batch.to_bytes();
    let offset = log.next_offset();
    let built = BatchBuilder::new()
        .record(7, None, Some(&inner))
        .build()
        .unwrap();
    let entry = Entry {
        index: log.last_index().next(),
        term: Term(1),
        batch: StampedBatch::stamp(built, offset, Term(1).leader_epoch()).unwrap(),
    };
    log.append(&[entry], 0).unwrap();
    let file = disk
        .open(&directory().join("00000000000000000000.log"))
        .unwrap();
    file.set_len(file.len().unwrap() - 1).unwrap();
    let (log, report) = open(&handle);
    assert_eq!(report.corruption, None);
    assert_eq!(all(&log), [kept]);
}
