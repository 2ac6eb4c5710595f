//! The seed case through real clients, in peace and with the broker killed on the way; see `seed_case.py`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use streamgauge_tests::broker::{Broker, only_streamgauge, streamgauge};
use streamgauge_tests::fetch::python;
use streamgauge_tests::process::{run, spawn, wait};

const ORDERS: usize = 100_000;
const TIME_MAX: Duration = Duration::from_secs(280);
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);

#[test]
fn the_seed_case_comes_out_exact() {
    seed_case("seed-case", 0);
}

#[test]
fn the_seed_case_comes_out_exact_through_five_kills() {
    seed_case("seed-case-kills", 5);
}

fn seed_case(name: &str, kills: usize) {
    if only_streamgauge("derived topics") {
        return;
    }
    let Some(python) = python() else { return };
    let mut broker = Broker::start(name);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline");
    for topic in ["orders", "orders-late"] {
        let mut create = streamgauge();
        create.args([
            "topic",
            "create",
            topic,
            "--partitions",
            "4",
            "--bootstrap-server",
            &broker.bootstrap(),
        ]);
        run(create, COMMAND_TIME_MAX).expect_success("topic create");
    }
    let mut apply = streamgauge();
    apply
        .arg("apply")
        .arg("-f")
        .arg(directory.join("orders.yaml"))
        .args(["--bootstrap-server", &broker.bootstrap()]);
    run(apply, COMMAND_TIME_MAX).expect_success("apply");

    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(directory.join("seed_case.py"))
        .args([&broker.bootstrap(), "4"])
        .stdout(Stdio::piped());
    let mut client = spawn(command);
    let (said, heard) = channel();
    let output = client.stdout.take().expect("piped");
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if !line.starts_with("produced") {
                println!("{line}");
            }
            let _ = said.send(line);
        }
    });
    let deadline = Instant::now() + TIME_MAX;
    let mut killed = 0;
    while killed < kills {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(line) = heard.recv_timeout(left) else {
            break;
        };
        let produced: Option<usize> = line
            .strip_prefix("produced ")
            .and_then(|count| count.parse().ok());
        if produced.is_some_and(|produced| produced >= ORDERS * (killed + 1) / (kills + 1)) {
            broker.kill_and_restart();
            killed += 1;
        }
    }
    let status = wait(
        &mut client,
        deadline.saturating_duration_since(Instant::now()),
    );
    if status.is_none() {
        client.kill().expect("a child can be killed");
    }
    reader.join().expect("reader");
    assert!(
        status.is_some_and(|status| status.success()),
        "the client says what went wrong; its end: {status:?}"
    );
    assert_eq!(killed, kills, "kills");
    broker.assert_alive();
}
