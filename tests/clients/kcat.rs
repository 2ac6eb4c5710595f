//! kcat, as used in scripts.

use std::process::Command;
use std::time::Duration;

use streamgauge_tests::broker::{Broker, shared};
use streamgauge_tests::fetch::kcat;
use streamgauge_tests::process::run_with_input;

const TIME_MAX: Duration = Duration::from_secs(60);

#[test]
fn kcat_works() {
    let Some(kcat) = kcat() else { return };
    let broker = shared("clients");
    let kcat = |arguments: &str, input: &str| run_kcat(kcat, &broker, arguments, input);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("kcat-{codec}");
        let lines: String = (0..200)
            .map(|i| format!("k{i}:value {i} {}\n", "x".repeat(50)))
            .collect();
        kcat(
            &format!("-P -t {topic} -p 0 -K : -z {codec} -X enable.idempotence=true -H a=1 -H a=2"),
            &lines,
        );
        let read = kcat(
            &format!("-C -t {topic} -p 0 -o beginning -e -q -f %k:%s\\n"),
            "",
        );
        assert_eq!(read, lines, "{codec}");
        let headers = kcat(&format!("-C -t {topic} -p 0 -o 7 -c 1 -q -f %o|%h"), "");
        assert_eq!(headers, "7|a=1,a=2", "{codec}");
    }
    kcat("-P -t kcat-null -p 0 -Z -K :", "tombstone:\n");
    assert_eq!(
        kcat("-C -t kcat-null -p 0 -e -q -f %k|%S", ""),
        "tombstone|-1"
    );
    assert_eq!(
        kcat("-C -t kcat-none -p 0 -o -3 -e -q -f %o,", ""),
        "197,198,199,"
    );
    let group = kcat(
        "-G kcat-g -X auto.offset.reset=earliest -c 200 -q -f %k, kcat-gzip",
        "",
    );
    assert_eq!(group.split_terminator(',').count(), 200);
    let again = kcat(
        "-G kcat-g -X auto.offset.reset=earliest -e -q -f %k, kcat-gzip",
        "",
    );
    assert_eq!(again, "", "the group had read all");
    assert!(kcat("-L -t kcat-lz4", "").contains("topic \"kcat-lz4\" with 4 partitions"));
    assert!(kcat("-Q -t kcat-lz4:0:-1", "").contains("offset 200"));
    assert!(kcat("-Q -t kcat-lz4:0:0", "").contains("offset 0"));
}

fn run_kcat(kcat: &str, broker: &Broker, arguments: &str, input: &str) -> String {
    let mut command = Command::new(kcat);
    command
        .arg("-b")
        .arg(broker.bootstrap())
        .args(arguments.split_whitespace());
    run_with_input(command, input.as_bytes(), TIME_MAX).expect_success(arguments)
}
