use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use streamgauge_protocol::batch::{BatchBuilder, BatchIter, StampedBatch};

use super::*;
use crate::disk::real::RealDisk;
use crate::disk::sim::{Faults, SimDisk};
use crate::producer_state::ProducerState;

const NO_OP: u8 = 0;

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

fn create(disk: &Arc<dyn Disk>, directory: &Path) -> Log {
    let start = LogStart::of_new_partition();
    Log::create(Arc::clone(disk), directory, config(), start, "id", 0).unwrap()
}

fn open(disk: &Arc<dyn Disk>, directory: &Path) -> (Log, RecoveryReport) {
    Log::open(Arc::clone(disk), directory, config(), 0).unwrap()
}

fn sim() -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new();
    (disk.clone(), Arc::new(disk))
}

/// An entry that follows the log's last one: `records` records, or an internal frame for none.
fn entry(log: &Log, term: u64, records: usize, timestamp: i64) -> Entry {
    let (offset, term) = (log.next_offset(), Term(term));
    let batch = if records == 0 {
        StampedBatch::internal(NO_OP, b"payload", offset, term.leader_epoch())
    } else {
        let mut builder = BatchBuilder::new();
        for record in 0..records {
            let value = format!("{offset}+{record}");
            builder.push(
                timestamp + record as i64,
                Some(b"key"),
                Some(value.as_bytes()),
                &[],
            );
        }
        let built = builder.build().unwrap();
        StampedBatch::stamp(built, offset, term.leader_epoch()).unwrap()
    };
    Entry {
        index: log.last_index().next(),
        term,
        batch,
    }
}

fn append(log: &mut Log, term: u64, records: usize) -> Entry {
    let entry = entry(log, term, records, 1000 + log.next_offset());
    log.append(std::slice::from_ref(&entry), 0).unwrap();
    entry
}

fn sync(log: &mut Log) {
    if let Some(ticket) = log.sync_ticket() {
        ticket.run().unwrap();
        log.synced(ticket.cover());
        log.write_recovery_point().unwrap();
    }
}

fn all_entries(log: &Log) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index().next(), u64::MAX)
        .unwrap()
}

fn read_offsets(log: &Log, offset: i64, bytes_max: usize, limit: i64) -> Vec<(i64, i64)> {
    let read = log.reader().read(offset, bytes_max, limit, true).unwrap();
    read.slices
        .into_iter()
        .flat_map(BatchIter::new)
        .map(|batch| {
            let (header, _) = batch.unwrap();
            assert!(!header.is_internal());
            (header.base_offset, header.last_offset())
        })
        .collect()
}

#[test]
fn entries_read_back_across_segments_and_reopening() {
    let directory_on_disk = tempfile::tempdir().unwrap();
    let directory = directory_on_disk.path().join("orders-0");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut log = create(&disk, &directory);
    let entries: Vec<_> = (0..20).map(|step| append(&mut log, 1, step % 4)).collect();
    assert!(
        log.shared.segments.load().len() > 2,
        "small segments must roll"
    );
    assert_eq!(all_entries(&log), entries);
    sync(&mut log);
    let (reopened, report) = open(&disk, &directory);
    assert_eq!(report.corruption, None);
    assert_eq!(all_entries(&reopened), entries);
    log.close().unwrap();
    let (mut reopened, report) = open(&disk, &directory);
    assert_eq!(
        report,
        RecoveryReport::default(),
        "a clean close needs no scan"
    );
    assert_eq!(all_entries(&reopened), entries);
    append(&mut reopened, 2, 2);
    assert_eq!(
        reopened.end_offset_for_epoch(0),
        Some((0, log.next_offset()))
    );
}

#[test]
fn internal_frames_take_no_offset_and_are_not_served() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    append(&mut log, 1, 0);
    append(&mut log, 1, 2);
    append(&mut log, 1, 0);
    append(&mut log, 1, 3);
    append(&mut log, 2, 0);
    assert_eq!(log.next_offset(), 5);
    assert_eq!(read_offsets(&log, 0, 10_000, 5), [(0, 1), (2, 4)]);
    let stubs = log.entry_stubs(RaftIndex(6), RaftIndex(11)).unwrap();
    let internal: Vec<_> = stubs.iter().map(|stub| stub.internal.is_some()).collect();
    assert_eq!(internal, [true, false, true, false, true]);
    assert_eq!(stubs[0].internal.as_ref().unwrap().1, "payload");
    assert_eq!(log.offset_after(RaftIndex(8)).unwrap(), 2);
    assert_eq!(log.offset_after(RaftIndex(9)).unwrap(), 5);
    assert_eq!(log.offset_after(RaftIndex(5)).unwrap(), 0);
}

#[test]
fn a_read_begins_at_the_batch_that_holds_the_offset_and_respects_its_limits() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    for _ in 0..6 {
        append(&mut log, 1, 3);
    }
    assert_eq!(
        read_offsets(&log, 4, 1, 18),
        [(3, 5)],
        "the first batch comes whole"
    );
    assert_eq!(read_offsets(&log, 0, 10_000, 8)[..2], [(0, 2), (3, 5)]);
    assert_eq!(read_offsets(&log, 18, 10_000, 18), []);
    let reader = log.reader();
    assert!(matches!(
        reader.read(19, 1, 18, true),
        Err(ReadError::OffsetOutOfRange { .. })
    ));
    assert!(reader.read(0, 1, 18, false).unwrap().slices.is_empty());
}

#[test]
fn time_queries_find_the_record_inside_the_batch() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    for timestamp in [100, 200, 150, 400] {
        let entry = entry(&log, 1, 3, timestamp);
        log.append(&[entry], 0).unwrap();
    }
    let find = |timestamp| {
        log.reader()
            .offset_for_timestamp(timestamp, 12)
            .unwrap()
            .map(|found| (found.offset, found.timestamp))
    };
    assert_eq!(find(0), Some((0, 100)));
    assert_eq!(find(101), Some((1, 101)));
    assert_eq!(find(103), Some((3, 200)));
    assert_eq!(find(203), Some((9, 400)));
    assert_eq!(find(403), None);
    let max = log.reader().max_timestamp(12).unwrap().unwrap();
    assert_eq!((max.offset, max.timestamp), (11, 402));
    assert_eq!(
        log.reader().offset_for_timestamp(400, 9).unwrap(),
        None,
        "not committed"
    );
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    let kept = append(&mut log, 1, 1);
    sync(&mut log);
    append(&mut log, 1, 1);
    let path = directory().join("00000000000000000000.log");
    let file = disk.open(&path).unwrap();
    let torn_len = file.len().unwrap() - 3;
    file.set_len(torn_len).unwrap();
    let (log, report) = open(&handle, &directory());
    assert_eq!(all_entries(&log), [kept]);
    assert!(report.truncated_bytes > 0);
    assert_eq!(report.corruption, None);
}

#[test]
fn damage_to_what_was_synced_is_corruption_and_nothing_is_cut() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    append(&mut log, 1, 1);
    append(&mut log, 1, 1);
    sync(&mut log);
    let path = directory().join("00000000000000000000.log");
    let len = disk.open(&path).unwrap().len().unwrap();
    disk.flip_bit(&path, 65 * 8);
    let (mut log, report) = open(&handle, &directory());
    assert_eq!(report.corruption.unwrap().position, 0);
    assert_eq!(disk.open(&path).unwrap().len().unwrap(), len);
    let refused = log.append(&[entry(&log, 1, 1, 0)], 0);
    assert!(matches!(refused, Err(StorageError::Failed)));
}

#[test]
fn a_full_disk_leaves_the_log_as_it_was() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    let kept = append(&mut log, 1, 1);
    sync(&mut log);
    disk.set_faults(Faults {
        capacity_bytes: Some(0),
        ..Faults::default()
    });
    let refused = log.append(&[entry(&log, 1, 1, 0)], 0);
    assert!(matches!(refused, Err(StorageError::DiskFull { .. })));
    disk.set_faults(Faults::default());
    assert_eq!(all_entries(&log), std::slice::from_ref(&kept));
    let next = append(&mut log, 1, 2);
    let (log, report) = open(&handle, &directory());
    assert_eq!(all_entries(&log), [kept, next]);
    assert_eq!(report.truncated_bytes, 0);
}

#[test]
fn truncation_goes_back_over_segments() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    let entries: Vec<_> = (0..12).map(|_| append(&mut log, 1, 1)).collect();
    assert!(log.shared.segments.load().len() > 1);
    log.truncate_from(RaftIndex(8)).unwrap();
    assert_eq!(all_entries(&log), entries[..2]);
    assert_eq!(log.next_offset(), 2);
    let again = append(&mut log, 3, 1);
    sync(&mut log);
    let (log, report) = open(&disk, &directory());
    assert_eq!(report.corruption, None);
    assert_eq!(
        all_entries(&log),
        [entries[0].clone(), entries[1].clone(), again]
    );
}

#[test]
fn retention_removes_whole_segments_from_the_start() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    for _ in 0..20 {
        append(&mut log, 1, 1);
    }
    let size = log.size_in_bytes();
    log.configure(LogConfig {
        retention_bytes: i64::try_from(size / 2).unwrap(),
        ..config()
    });
    let deleted = log.expire(1000, 20).unwrap();
    assert!(!deleted.is_empty());
    let start = log.log_start_offset();
    assert!(start > 0);
    assert_eq!(log.term(RaftIndex(log.first_index().0 - 1)), Ok(Term(1)));
    assert_eq!(log.term(RaftIndex(5)), Err(TermError::Compacted));
    assert!(matches!(
        log.reader().read(0, 1, 20, true),
        Err(ReadError::OffsetOutOfRange { .. })
    ));
    sync(&mut log);
    let kept = all_entries(&log);
    let (log, _) = open(&disk, &directory());
    assert_eq!(log.log_start_offset(), start);
    assert_eq!(all_entries(&log), kept);
}

#[test]
fn expired_records_go_even_from_the_active_segment() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    append(&mut log, 1, 2);
    log.configure(LogConfig {
        retention_ms: 10,
        ..config()
    });
    assert_eq!(log.expire(1_000_000, 2).unwrap(), [0]);
    assert_eq!((log.log_start_offset(), log.next_offset()), (2, 2));
    append(&mut log, 1, 1);
    assert_eq!(read_offsets(&log, 2, 1000, 3), [(2, 2)]);
}

#[test]
fn the_log_start_offset_survives_reopening() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    append(&mut log, 1, 5);
    log.set_log_start_offset(3).unwrap();
    log.set_log_start_offset(2).unwrap();
    sync(&mut log);
    let (log, _) = open(&disk, &directory());
    assert_eq!(log.log_start_offset(), 3);
}

#[test]
fn a_sealed_segment_may_end_in_the_zeros_of_a_truncation() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    for records in [1, 3, 3, 3, 2, 2] {
        append(&mut log, 1, records);
    }
    log.truncate_from(log.last_index()).unwrap();
    for _ in 0..3 {
        append(&mut log, 1, 0);
    }
    let entries = all_entries(&log);
    let sealed = log.shared.segments.load()[0].clone();
    let file = disk.open(&sealed.path("log")).unwrap();
    assert!(file.len().unwrap() > sealed.end());
    let (log, report) = open(&handle, &directory());
    assert_eq!(report.corruption, None);
    assert_eq!(all_entries(&log), entries);
    assert_eq!(file.len().unwrap(), sealed.end());
}

#[test]
fn a_write_that_cannot_be_undone_fails_the_log() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    append(&mut log, 1, 1);
    disk.set_faults(Faults {
        fail_writes: true,
        fail_set_len: true,
        ..Faults::default()
    });
    let entry = entry(&log, 1, 1, 0);
    assert!(log.append(std::slice::from_ref(&entry), 0).is_err());
    disk.set_faults(Faults::default());
    let refused = log.append(&[entry], 0);
    assert!(matches!(refused, Err(StorageError::Failed)));
}

#[test]
fn a_truncation_that_fails_halfway_fails_the_log() {
    for after in 0..100 {
        let (disk, handle) = sim();
        let mut log = create(&handle, &directory());
        let entries: Vec<_> = (0..12).map(|_| append(&mut log, 1, 1)).collect();
        disk.set_faults(Faults {
            stop_after: Some(after),
            ..Faults::default()
        });
        let cut = log.truncate_from(RaftIndex(8));
        disk.set_faults(Faults::default());
        if cut.is_ok() {
            return;
        }
        let again = log.truncate_from(RaftIndex(8));
        assert!(matches!(again, Err(StorageError::Failed)), "after {after}");
        let refused = log.append(&[entry(&log, 1, 1, 0)], 0);
        assert!(matches!(refused, Err(StorageError::Failed)));
        let (log, report) = open(&handle, &directory());
        assert_eq!(report.corruption, None, "after {after}");
        let found = all_entries(&log);
        assert!(found.len() >= 2, "after {after}: lost");
        assert_eq!(found[..], entries[..found.len()], "after {after}");
    }
    panic!("no truncation succeeded");
}

#[test]
fn a_start_that_cannot_be_written_does_not_move() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    let entries: Vec<_> = (0..20).map(|_| append(&mut log, 1, 1)).collect();
    log.configure(LogConfig {
        retention_bytes: 700,
        ..config()
    });
    disk.set_faults(Faults {
        fail_writes: true,
        ..Faults::default()
    });
    assert!(log.expire(0, 20).is_err());
    assert!(log.set_log_start_offset(3).is_err());
    disk.set_faults(Faults::default());
    assert_eq!(log.first_index(), RaftIndex(6));
    assert_eq!(log.log_start_offset(), 0);
    assert_eq!(all_entries(&log), entries);
    assert!(!log.expire(0, 20).unwrap().is_empty());
}

#[test]
fn a_truncation_over_a_roll_takes_up_the_older_segments_clock() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    append(&mut log, 1, 0);
    while log.shared.segments.load().len() < 3 {
        append(&mut log, 1, 1);
    }
    let first = log.shared.segments.load()[1].base_offset();
    log.truncate_from(log.last_index()).unwrap();
    assert_eq!(log.first_timestamp, None, "an empty segment has none");
    let before_roll = RaftIndex(log.last_index().0);
    log.truncate_from(before_roll).unwrap();
    assert_eq!(log.first_timestamp, Some(1000 + first));
    log.truncate_from(RaftIndex(8)).unwrap();
    assert_eq!(log.first_timestamp, Some(1000), "internal frames have none");
}

#[test]
fn a_recovery_point_that_was_cut_off_does_not_come_back() {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    let kept = append(&mut log, 1, 1);
    append(&mut log, 1, 1);
    sync(&mut log);
    disk.sync_dir(&directory()).unwrap();
    let recovery_point = directory().join("recovery-point-checkpoint");
    disk.open(&recovery_point).unwrap().sync_data().unwrap();
    log.truncate_from(RaftIndex(7)).unwrap();
    disk.crash(&mut || 0);
    let (log, report) = open(&handle, &directory());
    assert_eq!(report.corruption, None);
    assert_eq!(all_entries(&log), [kept]);
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Append { records: usize, newer_term: bool },
    Sync,
    TruncateLast,
    Reopen,
    CloseAndReopen,
    Crash { after: u64, seed: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..4, prop::bool::weighted(0.2))
            .prop_map(|(records, newer_term)| Step::Append { records, newer_term }),
        3 => Just(Step::Sync),
        1 => Just(Step::TruncateLast),
        1 => Just(Step::Reopen),
        1 => Just(Step::CloseAndReopen),
        2 => (0u64..12, any::<u64>()).prop_map(|(after, seed)| Step::Crash { after, seed }),
    ]
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

/// What must hold after any history: recovery yields a prefix of what was appended that holds all
/// that was synced.
fn check_history(steps: Vec<Step>) {
    let (disk, handle) = sim();
    let mut log = create(&handle, &directory());
    sync(&mut log);
    // As the data directory itself is synced by the broker when it makes it.
    let mut appended: Vec<Entry> = Vec::new();
    let mut synced = 0;
    let mut term = 1;
    let mut crash_seed = None;
    for step in steps {
        let powered = crash_seed.is_none();
        match step {
            Step::Append {
                records,
                newer_term,
            } => {
                term += u64::from(newer_term);
                let entry = entry(&log, term, records, log.next_offset());
                match log.append(std::slice::from_ref(&entry), 0) {
                    Ok(()) => appended.push(entry),
                    Err(error) => assert!(!powered, "{error}"),
                }
            }
            Step::Sync => {
                if let Some(ticket) = log.sync_ticket() {
                    match ticket.run() {
                        Ok(()) => {
                            synced = appended.len();
                            log.synced(ticket.cover());
                            if let Err(error) = log.write_recovery_point() {
                                assert!(!powered, "{error}");
                            }
                        }
                        Err(error) => assert!(!powered, "{error}"),
                    }
                }
            }
            Step::TruncateLast if powered && appended.len() > synced => {
                appended.pop();
                log.truncate_from(log.last_index()).unwrap();
                synced = synced.min(appended.len());
            }
            Step::TruncateLast => {}
            Step::Reopen if powered => {
                log = open(&handle, &directory()).0;
            }
            Step::CloseAndReopen if powered => {
                log.close().unwrap();
                synced = appended.len();
                log = open(&handle, &directory()).0;
            }
            Step::Reopen | Step::CloseAndReopen => {}
            Step::Crash { after, seed } => {
                if powered {
                    crash_seed = Some(seed);
                    disk.set_faults(Faults {
                        stop_after: Some(after),
                        ..Faults::default()
                    });
                } else {
                    disk.crash(&mut xorshift(crash_seed.take().unwrap_or(1)));
                    let (recovered, report) = open(&handle, &directory());
                    assert_eq!(report.corruption, None, "a crash is not corruption");
                    let entries = all_entries(&recovered);
                    assert!(entries.len() >= synced, "lost a synced entry");
                    assert_eq!(entries[..], appended[..entries.len()], "not a prefix");
                    appended.truncate(entries.len());
                    log = recovered;
                    sync(&mut log);
                    synced = appended.len();
                }
            }
        }
        if crash_seed.is_none() {
            assert_eq!(log.last_index().0, 5 + appended.len() as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn recovery_yields_a_prefix_that_holds_all_that_was_synced(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        check_history(steps);
    }
}

#[test]
fn a_snapshot_of_producers_that_the_power_took_is_removed() {
    let (disk, shared) = sim();
    let directory = directory();
    let mut log = create(&shared, &directory);
    append(&mut log, 1, 2);
    sync(&mut log);
    append(&mut log, 1, 2);
    let state = ProducerState::new();
    log.write_producer_snapshot(&state, 4).unwrap();
    shared.sync_dir(&directory).unwrap();
    disk.crash(&mut || 0);

    let (mut log, _) = open(&shared, &directory);
    assert_eq!(log.next_offset(), 2, "what was not synced is gone");
    log.recover_producers(2, 0).unwrap();
    append(&mut log, 1, 5);
    sync(&mut log);
    disk.crash(&mut || 0);
    let (log, _) = open(&shared, &directory);
    assert_eq!(log.producer_snapshot_offset().unwrap(), -1);
}

#[test]
fn a_log_that_is_replaced_is_the_old_or_the_new_one_after_a_crash() {
    let start = LogStart {
        index: RaftIndex(40),
        term: Term(3),
        offset: 30,
    };
    let mut producers = ProducerState::new();
    producers.commit_through(33, 0);
    for after in 0..60 {
        let (disk, shared) = sim();
        let directory = directory();
        let mut log = create(&shared, &directory);
        for _ in 0..12 {
            append(&mut log, 1, 1);
        }
        sync(&mut log);
        let before = log.last_index();
        disk.set_faults(Faults {
            stop_after: Some(after),
            ..Faults::default()
        });
        let replaced = log.start_anew(start, 31, &producers, 0).is_ok();
        let mut random = xorshift(after);
        disk.crash(&mut random);
        disk.set_faults(Faults::default());
        let (mut log, report) = open(&shared, &directory);
        assert_eq!(report.corruption, None, "power lost after {after}");
        if log.start() == start {
            assert_eq!(log.last_index(), start.index);
            assert_eq!((log.next_offset(), log.log_start_offset()), (30, 31));
            let recovered = log.recover_producers(30, 0).unwrap();
            assert_eq!(recovered.committed_end_offset(), 33, "after {after}");
            append(&mut log, 3, 4);
            sync(&mut log);
            assert_eq!(open(&shared, &directory).0.next_offset(), 34);
        } else {
            assert!(!replaced, "after {after}");
            assert_eq!(log.last_index(), before);
        }
    }
}

#[test]
fn a_full_disk_does_not_hinder_a_truncation() {
    for index in [RaftIndex(8), RaftIndex(17)] {
        let (disk, handle) = sim();
        let mut log = create(&handle, &directory());
        let entries: Vec<_> = (0..12).map(|_| append(&mut log, 1, 1)).collect();
        sync(&mut log);
        disk.set_faults(Faults {
            capacity_bytes: Some(0),
            ..Faults::default()
        });
        log.truncate_from(index).unwrap();
        disk.set_faults(Faults::default());
        let again = append(&mut log, 3, 1);
        sync(&mut log);
        disk.crash(&mut || 0);
        let (log, report) = open(&handle, &directory());
        assert_eq!(report.corruption, None);
        let mut expected = entries[..(index.0 - 6) as usize].to_vec();
        expected.push(again);
        assert_eq!(all_entries(&log), expected);
    }
}

/// Appends a batch of an idempotent producer.
fn append_of_producer(log: &mut Log, sequence: i32, records: usize) {
    let mut builder = BatchBuilder::new().producer(7, 0, sequence);
    for _ in 0..records {
        builder.push(1000, None, Some(b"value"), &[]);
    }
    let entry = Entry {
        index: log.last_index().next(),
        term: Term(1),
        batch: StampedBatch::stamp(builder.build().unwrap(), log.next_offset(), 0).unwrap(),
    };
    log.append(&[entry], 0).unwrap();
}

#[test]
fn what_lies_before_the_log_start_is_committed_for_producers() {
    let (_, disk) = sim();
    let mut log = create(&disk, &directory());
    append_of_producer(&mut log, 0, 3);
    append_of_producer(&mut log, 3, 3);
    // Within the second batch, which is committed as a whole.
    log.set_log_start_offset(4).unwrap();
    let mut state = log.recover_producers(0, 0).unwrap();
    assert_eq!(state.in_flight_count(), 0);
    assert_eq!(state.committed_end_offset(), 6);
    state.drop_in_flight_from(6);
    assert_eq!(state.committed(7).unwrap().last_sequence(), 5);
}

#[test]
fn producers_are_not_made_of_batches_whose_offsets_do_not_follow() {
    for bit in 0..64 {
        let (disk, handle) = sim();
        let mut log = create(&handle, &directory());
        append_of_producer(&mut log, 0, 3);
        let second = log.size_in_bytes() as usize;
        append_of_producer(&mut log, 3, 3);
        append_of_producer(&mut log, 6, 1);
        log.close().unwrap();
        let path = directory().join("00000000000000000000.log");
        disk.flip_bit(&path, second * 8 + bit);
        let (log, _) = open(&handle, &directory());
        let recovered = log.recover_producers(0, 0);
        assert!(matches!(recovered, Err(StorageError::Corrupt(_))), "{bit}");
    }
}

#[test]
fn the_recovery_point_stays_within_a_log_truncated_during_a_sync() {
    let (_, handle) = sim();
    let mut log = create(&handle, &directory());
    append(&mut log, 1, 1);
    let end = log.size_in_bytes();
    append(&mut log, 1, 3);
    let ticket = log.sync_ticket().unwrap();
    log.truncate_from(log.last_index()).unwrap();
    ticket.run().unwrap();
    log.synced(ticket.cover());
    log.write_recovery_point().unwrap();
    assert!(Log::recovery_point(&*handle, &directory()).position <= end);
}
