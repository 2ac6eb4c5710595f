//! Ten thousand small logs, and a reader beside a writer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use streamgauge_protocol::batch::{BatchBuilder, BatchHeader, BatchIter, StampedBatch};

use super::*;
use crate::disk::real::RealDisk;

fn entry(log: &Log, records: i64) -> Entry {
    let offset = log.next_offset();
    let batch = if records == 0 {
        StampedBatch::internal(0, b"no-op", offset, Term(1).leader_epoch())
    } else {
        let mut builder = BatchBuilder::new();
        for record in 0..records {
            let value = format!("{}", offset + record);
            builder.push(offset + record, None, Some(value.as_bytes()), &[]);
        }
        StampedBatch::stamp(builder.build().unwrap(), offset, Term(1).leader_epoch()).unwrap()
    };
    Entry {
        index: log.last_index().next(),
        term: Term(1),
        batch,
    }
}

fn sync(log: &mut Log) {
    if let Some(ticket) = log.sync_ticket() {
        ticket.run().unwrap();
        log.synced(ticket.cover());
    }
}

/// Prints what it measured: `cargo test -p streamgauge-storage --release ten_thousand -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn ten_thousand_logs_are_made_and_opened() {
    const LOGS: usize = 10_000;
    let temporary = tempfile::tempdir_in(".").unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let directory = |number: usize| temporary.path().join(format!("t-{number}"));
    let timed = |what: &str, begun: Instant| println!("{what}: {:?}", begun.elapsed());

    let begun = Instant::now();
    let mut logs: Vec<Log> = Vec::new();
    let mut creating = std::time::Duration::ZERO;
    for number in 0..LOGS {
        let (config, start) = (LogConfig::default(), LogStart::of_new_partition());
        let one = Instant::now();
        let log = Log::create(
            Arc::clone(&disk),
            &directory(number),
            config,
            start,
            "id",
            0,
        )
        .unwrap();
        creating += one.elapsed();
        logs.push(log);
        if logs.len().is_multiple_of(500) {
            logs.iter_mut().rev().take(500).for_each(sync);
        }
    }
    println!("create: {creating:?}");
    timed("create and sync", begun);
    let begun = Instant::now();
    for log in &mut logs {
        let entry = entry(log, 1);
        log.append(&[entry], 0).unwrap();
    }
    timed("append", begun);
    let begun = Instant::now();
    logs.iter_mut().for_each(sync);
    timed("syncs", begun);
    drop(logs);

    let open = |what: &str| {
        let begun = Instant::now();
        let logs: Vec<Log> = (0..LOGS)
            .map(|number| {
                let config = LogConfig::default();
                Log::open(Arc::clone(&disk), &directory(number), config, 0)
                    .unwrap()
                    .0
            })
            .collect();
        timed(what, begun);
        logs
    };
    let mut logs = open("open after a kill");
    let begun = Instant::now();
    logs.iter_mut().for_each(sync);
    timed("syncs after opening", begun);
    let begun = Instant::now();
    logs.iter_mut().for_each(|log| log.close().unwrap());
    timed("close", begun);
    drop(logs);
    drop(open("open after a close"));
}

/// Readers see whole batches in order and nothing else, whatever the owner does meanwhile.
fn read_along(reader: &LogReader, committed: &AtomicI64, done: &AtomicBool) -> i64 {
    let mut offset = 0;
    let mut batches = 0;
    loop {
        let is_last = done.load(Ordering::Acquire);
        let limit = committed.load(Ordering::Acquire);
        let read = match reader.read(offset, 2000, limit, true) {
            Ok(read) => read,
            Err(ReadError::OffsetOutOfRange {
                log_start_offset, ..
            }) => {
                assert!(offset < log_start_offset, "{offset}");
                offset = log_start_offset;
                continue;
            }
            Err(ReadError::Io(error)) => {
                // Unlinked between finding the segment and opening it.
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
                assert!(offset < reader.log_start_offset(), "{error}");
                continue;
            }
        };
        for (header, bytes) in read
            .slices
            .into_iter()
            .flat_map(BatchIter::new)
            .map(Result::unwrap)
        {
            check_batch(&header, &bytes);
            assert!(header.last_offset() >= offset && header.last_offset() < limit);
            offset = header.next_offset();
            batches += 1;
        }
        if let Ok(Some(found)) = reader.offset_for_timestamp(offset - 1, limit) {
            assert!(found.offset >= offset - 1);
            assert_eq!(found.offset, found.timestamp);
        }
        if is_last && offset >= limit {
            return batches;
        }
    }
}

fn check_batch(header: &BatchHeader, bytes: &[u8]) {
    header.verify_crc(&bytes[21..]).unwrap();
    let expected = header.base_offset.to_string();
    let text = String::from_utf8_lossy(bytes);
    assert!(text.contains(&expected), "{expected} is not in its batch");
}

fn run_beside_readers(directory: &Path) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let config = LogConfig {
        segment_bytes: 3000,
        index_interval_bytes: 200,
        retention_bytes: 20_000,
        ..LogConfig::default()
    };
    let start = LogStart::of_new_partition();
    let mut log = Log::create(disk, directory, config, start, "id", 0).unwrap();
    let committed = AtomicI64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let reader = log.reader();
                let (committed, done) = (&committed, &done);
                scope.spawn(move || read_along(&reader, committed, done))
            })
            .collect();
        for round in 0..300 {
            let kept = log.last_index();
            for step in 0..6 {
                let entry = entry(&log, (round + step) % 4);
                log.append(&[entry], 0).unwrap();
            }
            match round % 5 {
                // Never committed.
                0 => log.truncate_from(kept.next()).unwrap(),
                _ => committed.store(log.next_offset(), Ordering::Release),
            }
            if round % 20 == 19 {
                let limit = committed.load(Ordering::Acquire);
                log.expire_committed(0, limit, log.last_index()).unwrap();
            }
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert!(log.log_start_offset() > 0);
}

#[test]
fn readers_beside_writing_truncation_and_retention_see_only_whole_batches() {
    let temporary = tempfile::tempdir().unwrap();
    run_beside_readers(&temporary.path().join("orders-0"));
}
