//! `streamgauge demo`: the first thing that a newcomer runs.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use streamgauge_tests::broker::{free_port, free_ports, only_streamgauge, streamgauge};
use streamgauge_tests::process::{run, spawn, wait};

const TIME_MAX: Duration = Duration::from_secs(90);

#[test]
fn the_demo_shows_results_and_goes_on_where_it_was() {
    if only_streamgauge("the demo") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    for round in ["first", "second"] {
        let mut demo = streamgauge();
        demo.args([
            "demo",
            "--duration",
            "15s",
            "--listen",
            &format!("127.0.0.1:{}", free_port()),
        ]);
        demo.arg("--data-dir").arg(directory.path());
        let said = run(demo, TIME_MAX).expect_success(&format!("the {round} demo"));
        let results = said
            .lines()
            .filter(|line| line.contains("revenue") || line.contains("orders"))
            .count();
        assert!(results >= 2, "the {round} demo showed no results:\n{said}");
    }
}

/// Kills one of its brokers on the way: it says so, and goes on.
#[test]
fn the_demo_of_three_brokers_outlives_one_of_them() {
    if only_streamgauge("the demo") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let port = free_ports(3);
    for round in ["first", "second"] {
        let mut demo = streamgauge();
        demo.args(["demo", "--brokers", "3", "--duration", "20s"]);
        demo.args(["--listen", &format!("127.0.0.1:{port}")]);
        demo.arg("--data-dir").arg(directory.path());
        demo.stdout(Stdio::piped());
        let mut demo = spawn(demo);
        let output = BufReader::new(demo.stdout.take().expect("piped"));
        let (mut said, mut killed, mut results) = (Vec::new(), false, 0);
        for line in output.lines().map_while(Result::ok) {
            let is_result = line.contains("revenue=") || line.contains("requests=");
            if is_result && !killed {
                kill_second_broker(&said);
                killed = true;
            }
            results += usize::from(is_result && said.iter().any(|line| tells_of_the_end(line)));
            said.push(line);
        }
        let status = wait(&mut demo, TIME_MAX);
        let said = said.join("\n");
        assert!(
            status.is_some_and(|status| status.success()),
            "{status:?}\n{said}"
        );
        assert!(
            results > 0,
            "the {round} demo showed no results after the kill:\n{said}"
        );
    }
}

fn tells_of_the_end(line: &str) -> bool {
    line.starts_with("broker 2 has ended")
}

fn kill_second_broker(said: &[String]) {
    let line = said.iter().find(|line| line.contains("broker 2 on"));
    let pid = line.and_then(|line| {
        line.split("is process ")
            .nth(1)?
            .split(',')
            .next()?
            .parse()
            .ok()
    });
    let pid = Pid::from_raw(pid.expect("the demo tells of its brokers")).expect("a process");
    kill_process(pid, Signal::KILL).expect("a process of ours");
}
