//! The guide for operators, docs/cluster.md: its commands are run in one shell, in order, and what it shows must be in what they say.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use streamgauge_tests::broker::{free_ports, only_streamgauge, streamgauge};
use streamgauge_tests::fetch::java;

const BLOCK_TIME_MAX: Duration = Duration::from_secs(120);
const END: &str = "--- the end of a block ---";

/// Kafka's scripts, and the classes that they start.
const SCRIPTS: [(&str, &str); 6] = [
    ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
    ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
    (
        "kafka-metadata-quorum.sh",
        "org.apache.kafka.tools.MetadataQuorumCommand",
    ),
    (
        "kafka-leader-election.sh",
        "org.apache.kafka.tools.LeaderElectionCommand",
    ),
    (
        "kafka-reassign-partitions.sh",
        "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    ),
    ("kafka-cluster.sh", "org.apache.kafka.tools.ClusterTool"),
];

/// A block of commands, and the lines that are expected of it.
struct Step {
    commands: String,
    expected: Vec<String>,
}

fn steps(guide: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        if !matches!(line, "```sh" | "```text") {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if line == "```sh" {
            let commands = block.iter().map(|line| format!("{line}\n")).collect();
            let expected = Vec::new();
            steps.push(Step { commands, expected });
        } else {
            let step = steps.last_mut().expect("commands before their output");
            step.expected = block.into_iter().map(str::to_owned).collect();
        }
    }
    steps
}

/// Whether the pieces between the `…` of a line of the guide are in a line of the output, in order; the
/// first begins it.
fn shows(line: &str, wanted: &str) -> bool {
    let mut pieces = wanted.split('…').map(str::trim);
    let Some(mut rest) = pieces
        .next()
        .and_then(|first| line.trim().strip_prefix(first))
    else {
        return false;
    };
    pieces.all(|piece| match rest.split_once(piece) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

struct Shell {
    child: Child,
    input: ChildStdin,
    said: Receiver<String>,
}

impl Shell {
    fn start(directory: &Path, scripts: &Path) -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new("bash")
            // It would be taken for a setting of the brokers.
            .env_remove("STREAMGAUGE_BIN")
            .current_dir(directory)
            .env("PATH", format!("{}:{path}", scripts.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash");
        let mut input = child.stdin.take().expect("piped");
        writeln!(input, "exec 2>&1").expect("bash listens");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, said) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, input, said }
    }

    /// What the commands say, line by line.
    fn run(&mut self, commands: &str) -> Vec<String> {
        writeln!(self.input, "{commands}echo '{END}'").expect("bash listens");
        let deadline = Instant::now() + BLOCK_TIME_MAX;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(line) if line == END => return said,
                Ok(line) => said.push(line),
                Err(error) => panic!("{error} after {commands}\nsaid: {said:#?}"),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // What it started ends with it.
        let _ = self.input.write_all(b"kill -9 $(cat broker-*.pid); exit\n");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
    }
}

fn write_script(path: &Path, command: &Command) {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    let words = words
        .iter()
        .map(|word| format!("'{}'", word.to_string_lossy()));
    let text = format!(
        "#!/bin/sh\nexec {} \"$@\"\n",
        words.collect::<Vec<_>>().join(" ")
    );
    fs::write(path, text).expect("written");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn every_step_of_the_guide_works() {
    if only_streamgauge("clusters of its own") || java().is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let scripts = directory.path().join("bin");
    fs::create_dir(&scripts).expect("made");
    write_script(&scripts.join("streamgauge"), &streamgauge());
    for (script, class) in SCRIPTS {
        let mut java = java().expect("ready");
        java.arg(class);
        write_script(&scripts.join(script), &java);
    }
    // Ports 909n and 919n.
    let first = free_ports(30).next_multiple_of(10);
    let (clients, peers) = (first / 10, first / 10 + 1);
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cluster.md"));
    let mut shell = Shell::start(directory.path(), &scripts);
    for step in steps(&guide.expect("the guide is there")) {
        let commands = step
            .commands
            .replace(":909", &format!(":{clients}"))
            .replace(":919", &format!(":{peers}"));
        let begun = Instant::now();
        let said = shell.run(&commands);
        let what = commands.lines().next().unwrap_or_default();
        println!("{:>6} ms: {what} …", begun.elapsed().as_millis());
        for wanted in &step.expected {
            assert!(
                said.iter().any(|line| shows(line, wanted)),
                "{wanted:?} is not in what was said:\n{}\nafter\n{commands}\n{}",
                said.join("\n"),
                logs(directory.path())
            );
        }
    }
}

/// The ends of the brokers' logs.
fn logs(directory: &Path) -> String {
    let mut text = String::new();
    for n in 1..=4 {
        let log = fs::read_to_string(directory.join(format!("broker-{n}.log")));
        let log = log.unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(12).collect();
        text.push_str(&format!("--- broker {n}\n"));
        for line in lines.into_iter().rev() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[test]
fn what_the_guide_shows_is_found_piece_by_piece() {
    assert!(shows("4\t x Observer", "4 …Observer"));
    assert!(!shows("5\t 4x Observer", "4 …Observer"));
    assert!(shows("one two three", "one…three"));
    assert!(!shows("three one", "one…three"));
    let steps = steps("```sh\na\nb\n```\nthen\n```text\nc\n```\n```sh\nd\n```\n");
    assert_eq!(steps.len(), 2);
    assert_eq!(
        (steps[0].commands.as_str(), steps[0].expected.len()),
        ("a\nb\n", 1)
    );
}
