//! `validate`, `apply`, `topic`, `produce` and `consume` as a script uses them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use streamgauge_tests::broker::{Broker, Peer, only_streamgauge, streamgauge};
use streamgauge_tests::process::{Finished, run_with_input};

const TIME_MAX: Duration = Duration::from_secs(30);

const BAD: &str = "\
topic: orders per minute
from: { topic: orders, format: jsn }
tiem: { field: order_time }
window: { tumbling: 1 fortnight }
aggregate:
  revenue: summ(amount)
";

#[test]
fn validate_takes_a_good_file_and_names_every_mistake_of_a_bad_one() {
    let good = cli(
        &["validate", "-f", &orders_yaml().display().to_string()],
        "",
    );
    good.expect_success("validate of a good file");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let bad = directory.path().join("bad.yaml");
    fs::write(&bad, BAD).expect("the file can be written");
    let refused = cli(&["validate", "-f", &bad.display().to_string()], "");
    assert!(!refused.status.success(), "a bad file was taken");
    let said = refused.stdout + &refused.stderr;
    for (mistake, hint) in [
        ("tiem", "time"),
        ("jsn", "json"),
        ("fortnight", "tumbling"),
        ("summ", "sum"),
    ] {
        assert!(
            said.contains(mistake) && said.contains(hint),
            "nothing of {mistake} and {hint} in:\n{said}"
        );
    }
    assert!(
        said.contains("bad.yaml"),
        "the file is not named in:\n{said}"
    );
}

#[test]
fn apply_creates_once_says_so_and_refuses_bad_files() {
    if only_streamgauge("apply") {
        return;
    }
    let broker = Broker::start("cli-apply");
    let on = |arguments: &[&str]| {
        cli(
            &[arguments, &["--bootstrap-server", &broker.bootstrap()]].concat(),
            "",
        )
    };
    let orders = orders_yaml().display().to_string();
    on(&["apply", "-f", &orders]).expect_success("apply");
    on(&["apply", "-f", &orders]).expect_success("apply of the same once more");
    let listed = on(&["topic", "list"]).expect_success("topic list");
    assert!(listed.contains("orders-per-minute"), "{listed}");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let bad = directory.path().join("bad.yaml");
    fs::write(&bad, BAD.replace("orders per minute", "never")).expect("the file can be written");
    assert!(
        !on(&["apply", "-f", &bad.display().to_string()])
            .status
            .success(),
        "a bad file was applied"
    );
    let listed = on(&["topic", "list"]).expect_success("topic list");
    assert!(
        !listed.contains("never"),
        "a bad file left a topic: {listed}"
    );
}

/// These speak only Kafka's protocol, so they must work against Apache Kafka too.
#[test]
fn topics_are_made_filled_read_and_deleted_from_a_script() {
    if Peer::chosen() == Peer::Kafka && std::env::var_os("STREAMGAUGE_BIN").is_none() {
        eprintln!("set STREAMGAUGE_BIN to try our command line against Apache Kafka");
        return;
    }
    let broker = Broker::start("cli-topics");
    let on = |arguments: &[&str], input: &str| {
        cli(
            &[arguments, &["--bootstrap-server", &broker.bootstrap()]].concat(),
            input,
        )
    };
    on(&["topic", "create", "scripted", "--partitions", "2"], "").expect_success("topic create");
    assert!(
        !on(&["topic", "create", "scripted"], "").status.success(),
        "created twice"
    );
    let described = on(&["topic", "describe", "scripted"], "").expect_success("topic describe");
    assert!(described.contains("scripted"), "{described}");
    on(&["produce", "scripted"], "one\ntwo\nthree\n").expect_success("produce");
    let read = on(
        &[
            "consume",
            "scripted",
            "--from-beginning",
            "--max-messages",
            "3",
        ],
        "",
    )
    .expect_success("consume");
    for value in ["one", "two", "three"] {
        assert!(read.contains(value), "{value} in {read}");
    }
    on(&["topic", "delete", "scripted"], "").expect_success("topic delete");
    assert!(
        !on(&["topic", "describe", "scripted"], "").status.success(),
        "described after its end"
    );
}

fn orders_yaml() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline/orders.yaml")
}

fn cli(arguments: &[&str], input: &str) -> Finished {
    let mut command = streamgauge();
    command.args(arguments);
    run_with_input(command, input.as_bytes(), TIME_MAX)
}
