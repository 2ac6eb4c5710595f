//! What was acknowledged is there after `kill -9`, exactly once and in order.

mod full_disk;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use streamgauge_tests::broker::Broker;
use streamgauge_tests::fetch::{clients_dir, python};
use streamgauge_tests::process::{poll, spawn, wait};

const KILLS: usize = 5;
const RECORDS: usize = 50_000;
const TIME_MAX: Duration = Duration::from_secs(180);

/// One idempotent producer with acks=all goes on through every kill; the broker dies each time another part was acknowledged.
#[test]
fn acknowledged_records_survive_kill_9_once_and_in_order() {
    let Some(python) = python() else { return };
    let mut broker = Broker::start("durability");
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(clients_dir().join("python/through_kills.py"));
    command
        .arg(broker.bootstrap())
        .arg(RECORDS.to_string())
        .stdout(Stdio::piped());
    let mut producer = spawn(command);
    let (said, heard) = std::sync::mpsc::channel();
    let output = producer.stdout.take().expect("piped");
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            let _ = said.send(line);
        }
    });
    for kill in 1..=KILLS {
        let threshold = RECORDS * kill / (KILLS + 1);
        let reached = poll(TIME_MAX, || {
            let line = heard.recv_timeout(Duration::from_secs(30)).ok()?;
            let acknowledged: usize = line.strip_prefix("acknowledged ")?.parse().ok()?;
            (acknowledged >= threshold).then_some(())
        });
        assert!(
            reached.is_some(),
            "{threshold} records were never acknowledged"
        );
        broker.kill_and_restart();
    }
    let Some(status) = wait(&mut producer, TIME_MAX) else {
        producer.kill().expect("a child can be killed");
        panic!("the client had not ended after {TIME_MAX:?}");
    };
    reader.join().expect("reader");
    assert!(
        status.success(),
        "the client found the records not as they should be"
    );
    broker.assert_alive();
}
