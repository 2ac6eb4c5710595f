//! Apache Kafka's kafka-dump-log reads the files that the broker leaves on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use streamgauge_tests::broker::Broker;
use streamgauge_tests::fetch::{clients_dir, java, python};
use streamgauge_tests::process::run;

const TIME_MAX: Duration = Duration::from_secs(120);
const RUNS: usize = 2;
const RECORDS_A_RUN: usize = 5 * 300;

#[test]
fn kafka_dump_log_reads_our_segments_indexes_offsets_and_snapshots() {
    let (Some(_), Some(python)) = (java(), python()) else {
        return;
    };
    let mut broker = Broker::start_with("dump-log", &["log.index.interval.bytes=512"]);
    for number in 0..RUNS {
        let mut fill = Command::new(&python);
        fill.arg("-B")
            .arg(clients_dir().join("python/fill.py"))
            .arg(broker.bootstrap())
            .arg(number.to_string());
        run(fill, TIME_MAX).expect_success("fill.py");
        broker.stop();
        if number + 1 < RUNS {
            broker.restart();
        }
    }
    let data_dir = broker.data_dir();
    let partition = data_dir.join("dumped-0");

    let log = dump(
        "--deep-iteration --print-data-log",
        &files(&partition, "log"),
    );
    let values: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("payload: "))
        .map(|(_, value)| value)
        .collect();
    let wanted: Vec<String> = (0..RUNS * RECORDS_A_RUN)
        .map(|number| format!("value {number}"))
        .collect();
    assert_eq!(
        values, wanted,
        "every record once and in order, over restarts"
    );
    for codec in ["NONE", "GZIP", "SNAPPY", "LZ4", "ZSTD"] {
        assert!(
            log.to_uppercase()
                .contains(&format!("COMPRESSCODEC: {codec}")),
            "{codec}\n{}",
            head(&log)
        );
    }
    assert!(
        log.contains("isvalid: true") && !log.contains("isvalid: false"),
        "{}",
        head(&log)
    );

    for kind in ["index", "timeindex"] {
        let checked = dump("--index-sanity-check", &files(&partition, kind));
        assert!(checked.contains("passed sanity check"), "{kind}: {checked}");
        // Without the check the tool compares every entry with the log beside it and lists those that do not fit.
        let compared = dump("", &files(&partition, kind));
        assert!(
            !compared.contains("Non-sequential") && !compared.contains("Found timestamp mismatch"),
            "{compared}"
        );
    }

    let snapshots = files(&partition, "snapshot");
    assert!(
        !snapshots.is_empty(),
        "a clean stop leaves a snapshot of the producers"
    );
    let snapshot = dump("", &snapshots[snapshots.len() - 1..]);
    assert!(snapshot.contains("producerId:"), "{snapshot}");

    let offsets = logs_of(&data_dir, "__consumer_offsets-");
    assert!(!offsets.is_empty(), "a commit leaves a log of offsets");
    let decoded = dump("--offsets-decoder", &offsets);
    assert!(
        decoded.contains("dumped-g") && decoded.contains("\"topic\":\"dumped\""),
        "{decoded}"
    );
    assert!(
        decoded.contains("\"offset\":1500") && decoded.contains("\"offset\":3000"),
        "{decoded}"
    );
}

/// The logs of all partitions whose directory's name begins so, but for empty ones.
pub fn logs_of(data_dir: &Path, prefix: &str) -> Vec<PathBuf> {
    fs::read_dir(data_dir)
        .expect("the data directory can be read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .flat_map(|directory| files(&directory, "log"))
        .filter(|log| fs::metadata(log).is_ok_and(|metadata| metadata.len() > 0))
        .collect()
}

pub fn dump(arguments: &str, files: &[PathBuf]) -> String {
    assert!(!files.is_empty(), "no files to dump with {arguments}");
    let mut java = java().expect("asked before");
    java.arg("org.apache.kafka.tools.DumpLogSegments")
        .args(arguments.split_whitespace());
    let files: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    java.arg("--files").arg(files.join(","));
    run(java, TIME_MAX).expect_success(&format!("kafka-dump-log {arguments}"))
}

/// The files of a directory with this extension, in order.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn head(text: &str) -> String {
    text.chars().take(3000).collect()
}
