//! What Kafka's own tool says of the files.
//!
//! Needs Java and a directory with Kafka's jars:
//! `STREAMGAUGE_KAFKA_LIBS=… cargo test -p streamgauge-storage kafkas_tool -- --ignored`

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use streamgauge_protocol::batch::{BatchBuilder, StampedBatch};
use streamgauge_protocol::compression::Compression;

use super::*;
use crate::disk::real::RealDisk;
use crate::producer_state::{ProducerBatch, ProducerState, TransactionMarker, TransactionResult};

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 20_000,
        index_interval_bytes: 1000,
        ..LogConfig::default()
    }
}

/// Batches of all codecs, with and without timestamps and producers, and entries without records.
fn append(log: &mut Log, step: i64) {
    let (offset, term) = (log.next_offset(), Term(1 + step as u64 / 40));
    let epoch = term.leader_epoch();
    let batch = if step % 10 == 0 {
        StampedBatch::internal(0, b"no-op", offset, epoch)
    } else {
        let codec = Compression::ALL[step as usize % Compression::ALL.len()];
        let mut builder = BatchBuilder::new().compression(codec);
        if step % 3 == 0 {
            builder = builder.producer(4000, 0, (step * 5) as i32);
        }
        for record in 0..5 {
            let timestamp = match step % 7 {
                0 => -1,
                _ => 1_700_000_000_000 + step * 1000 + record - (step % 5) * 3000,
            };
            let value = format!("value {step} {record} ").repeat(20);
            builder.push(timestamp, Some(b"key"), Some(value.as_bytes()), &[]);
        }
        StampedBatch::stamp(builder.build().unwrap(), offset, epoch).unwrap()
    };
    let entry = Entry {
        index: log.last_index().next(),
        term,
        batch,
    };
    log.append(&[entry], 0).unwrap();
}

fn dump(directory: &Path, suffix: &str, options: &[&str]) -> String {
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|found| found.unwrap().path().display().to_string())
        .filter(|path| path.ends_with(suffix))
        .collect();
    files.sort();
    assert!(files.len() > 2, "{files:?}");
    dump_files(&files, options)
}

fn dump_files(files: &[String], options: &[&str]) -> String {
    let libs = std::env::var("STREAMGAUGE_KAFKA_LIBS").expect("STREAMGAUGE_KAFKA_LIBS is not set");
    let output = Command::new("java")
        .args([
            "-cp",
            &format!("{libs}/*"),
            "org.apache.kafka.tools.DumpLogSegments",
        ])
        .args(options)
        .args(["--files", &files.join(",")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for complaint in [
        "Exception",
        "Mismatches",
        "not properly",
        "isValid: false",
        "invalid bytes",
        "Found timestamp mismatch",
        "Indexed offset",
    ] {
        assert!(!text.contains(complaint), "{complaint} in {text}");
    }
    text
}

fn check(directory: &Path) {
    let log = dump(directory, ".log", &["--deep-iteration"]);
    for codec in Compression::ALL {
        let name = format!("compresscodec: {}", codec.name());
        assert!(log.contains(&name), "{name} in {log}");
    }
    let index = dump(directory, ".index", &["--index-sanity-check"]);
    assert!(index.contains("passed sanity check"), "{index}");
    let deep = dump(directory, ".index", &["--deep-iteration"]);
    let times = dump(directory, ".timeindex", &["--deep-iteration"]);
    let sane = dump(directory, ".timeindex", &["--index-sanity-check"]);
    assert!(sane.contains("passed sanity check"), "{sane}");
    if std::env::var_os("STREAMGAUGE_SHOW").is_some() {
        println!("{log}\n{index}\n{deep}\n{times}\n{sane}");
    }
}

#[test]
#[ignore = "needs Java and Kafka's jars"]
fn kafkas_tool_finds_no_fault_in_the_files() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("orders-0");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let start = LogStart::of_new_partition();
    let mut log = Log::create(Arc::clone(&disk), &directory, config(), start, "id", 0).unwrap();
    (0..200).for_each(|step| append(&mut log, step));
    log.close().unwrap();
    check(&directory);

    // Without its clean close: the tail torn, one sealed segment's index files lost.
    let (mut log, _) = Log::open(Arc::clone(&disk), &directory, config(), 0).unwrap();
    (200..300).for_each(|step| append(&mut log, step));
    let file = log.active.file().unwrap();
    file.set_len(file.len().unwrap() - 3).unwrap();
    let sealed = Arc::clone(&log.shared.segments.load()[1]);
    drop(log);
    for suffix in ["index", "timeindex", "ridx"] {
        std::fs::remove_file(sealed.path(suffix)).unwrap();
    }
    let (mut log, report) = Log::open(disk, &directory, config(), 0).unwrap();
    assert_eq!(report.corruption, None);
    assert!(report.truncated_bytes > 0);
    (300..320).for_each(|step| append(&mut log, step));
    log.close().unwrap();
    check(&directory);
}

#[test]
#[ignore = "needs Java and Kafka's jars"]
fn kafkas_tool_reads_markers_and_aborted_transactions() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("orders-0");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let start = LogStart::of_new_partition();
    let mut log = Log::create(disk, &directory, config(), start, "id", 0).unwrap();
    let mut producers = ProducerState::new();
    for result in [TransactionResult::Commit, TransactionResult::Abort] {
        let marker = TransactionMarker {
            result,
            coordinator_epoch: 5,
        };
        let data = BatchBuilder::new().producer(4000, 1, 0).transactional();
        let batches = [
            (data.record(9, None, Some(b"v")).build().unwrap(), None),
            (marker.to_batch(4000, 1, 9).unwrap(), Some(marker)),
        ];
        for (batch, marker) in batches {
            let entry = Entry {
                index: log.last_index().next(),
                term: Term(1),
                batch: StampedBatch::stamp(batch, log.next_offset(), 0).unwrap(),
            };
            log.append(std::slice::from_ref(&entry), 0).unwrap();
            let batch = ProducerBatch::from_header(&entry.batch.header(), marker).unwrap();
            let completed = producers.apply_committed(&batch, 0);
            completed
                .iter()
                .for_each(|completed| log.note_completed(completed).unwrap());
        }
    }
    log.write_producer_snapshot(&producers, 4).unwrap();
    log.close().unwrap();
    let file = |suffix| {
        directory
            .join(format!("{:020}.{suffix}", 0))
            .display()
            .to_string()
    };
    let text = dump_files(&[file("log")], &["--deep-iteration"]);
    for marker in [
        "endTxnMarker: COMMIT coordinatorEpoch: 5",
        "endTxnMarker: ABORT coordinatorEpoch: 5",
    ] {
        assert!(text.contains(marker), "{marker} in {text}");
    }
    let text = dump_files(&[file("txnindex")], &[]);
    let aborted = "version: 0 producerId: 4000 firstOffset: 2 lastOffset: 3 lastStableOffset: 4";
    assert!(text.contains(aborted), "{text}");
    let snapshot = directory.join(format!("{:020}.snapshot", 4));
    let text = dump_files(&[snapshot.display().to_string()], &[]);
    assert!(
        text.contains("producerId: 4000") && text.contains("coordinatorEpoch: 5"),
        "{text}"
    );
}
