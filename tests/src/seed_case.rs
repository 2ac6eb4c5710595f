//! The seed case at work on a broker or a cluster: `tests/pipeline/seed_case.py` produces orders, reads results, and judges.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::broker::streamgauge;
use crate::fetch::python;
use crate::process::{run, spawn, wait};

pub const ORDERS: usize = 100_000;
/// The client says how many it has produced whenever it is so many more.
const PROGRESS: usize = 2_000;
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);

/// A run under way.
pub struct SeedCase {
    client: Child,
    input: Option<ChildStdin>,
    heard: Receiver<String>,
    reader: JoinHandle<()>,
    deadline: Instant,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline")
}

/// Declares the aggregation.
pub fn apply(bootstrap: &str) {
    let mut apply = streamgauge();
    apply.arg("apply").arg("-f");
    apply.arg(directory().join("orders.yaml"));
    apply.args(["--bootstrap-server", bootstrap]);
    run(apply, COMMAND_TIME_MAX).expect_success("apply");
}

impl SeedCase {
    /// Makes the topics with so many replicas, or as many as the brokers' default is, declares the aggregation and lets the client
    /// begin to produce in `parts`; `None` if there is no Python. All has to be over in `time_max`.
    pub fn start(
        bootstrap: &str,
        replicas: Option<&str>,
        parts: usize,
        time_max: Duration,
    ) -> Option<Self> {
        let python = python()?;
        for topic in ["orders", "orders-late"] {
            let mut create = streamgauge();
            create.args(["topic", "create", topic, "--partitions", "4"]);
            create.args(["--bootstrap-server", bootstrap]);
            if let Some(replicas) = replicas {
                create.args(["--replication-factor", replicas]);
            }
            run(create, COMMAND_TIME_MAX).expect_success("topic create");
        }
        apply(bootstrap);

        let mut command = Command::new(python);
        command
            .arg("-B")
            .arg(directory().join("seed_case.py"))
            .args([bootstrap, "4", &parts.to_string()])
            .stdin(Stdio::piped())
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
        Some(Self {
            input: client.stdin.take(),
            client,
            heard,
            reader,
            deadline: Instant::now() + time_max,
        })
    }

    /// Waits until about so many orders are acknowledged; false if the client ends before.
    pub fn wait_until_produced(&mut self, orders: usize) -> bool {
        let orders = orders.saturating_sub(PROGRESS);
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.heard.recv_timeout(left) else {
                return false;
            };
            let produced: Option<usize> = line
                .strip_prefix("produced ")
                .and_then(|count| count.parse().ok());
            if produced.is_some_and(|produced| produced >= orders) {
                return true;
            }
        }
    }

    /// Lets the client produce one more part; what happens next happens while it does.
    pub fn go_on(&mut self) {
        let input = self.input.as_mut().expect("it is taken at the end");
        writeln!(input).expect("the client listens");
    }

    /// The client's judgement.
    pub fn finish(mut self) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let status = wait(&mut self.client, left);
        if status.is_none() {
            self.client.kill().expect("a child can be killed");
        }
        self.reader.join().expect("reader");
        assert!(
            status.is_some_and(|status| status.success()),
            "the client says what went wrong; its end: {status:?}"
        );
    }
}
