//! The seed case on three brokers: every window exact, whoever leads what, and whoever dies.

use std::thread;
use std::time::{Duration, Instant};

use streamgauge_tests::broker::streamgauge;
use streamgauge_tests::cluster::{Cluster, Cut, NODES};
use streamgauge_tests::process::{poll, run};
use streamgauge_tests::seed_case::{ORDERS, SeedCase, apply};

const TIME_MAX: Duration = Duration::from_secs(280);
const MOVE_TIME_MAX: Duration = Duration::from_secs(30);
const FAULT_TIME: Duration = Duration::from_secs(4);

/// Its first partition's leader runs the job.
const INTERNAL: &str = "__aggregation-orders-per-minute";
const SOURCE: &str = "orders";
const LATE: &str = "orders-late";
const DERIVED: &str = "orders-per-minute";

#[derive(Debug, Clone, Copy)]
enum End {
    Kill,
    Terminate,
    Pause,
    /// The other brokers do not reach it, nor it them; clients do.
    CutOff,
    /// Its replica is moved away, and comes back.
    Move,
}

#[test]
fn the_seed_case_comes_out_exact_on_three_brokers() {
    through("cluster-seed-case", None, &[]);
}

#[test]
fn the_seed_case_comes_out_exact_through_the_ends_of_leaders() {
    through(
        "cluster-seed-case-ends",
        None,
        &[
            (INTERNAL, 0, End::Kill),
            (SOURCE, 1, End::Kill),
            (DERIVED, 2, End::Kill),
            (INTERNAL, 0, End::Terminate),
            (INTERNAL, 0, End::Pause),
            (SOURCE, 2, End::Terminate),
            (INTERNAL, 3, End::Kill),
            (DERIVED, 0, End::Pause),
        ],
    );
}

#[test]
fn the_seed_case_comes_out_exact_through_cut_links() {
    through(
        "cluster-seed-case-links",
        None,
        &[
            (INTERNAL, 0, End::CutOff),
            (DERIVED, 1, End::CutOff),
            (INTERNAL, 0, End::CutOff),
            (SOURCE, 2, End::CutOff),
        ],
    );
}

/// Whoever is asked, the controller decides, and one broker runs the job.
#[test]
fn an_aggregation_is_declared_and_deleted_through_any_broker() {
    let cluster = Cluster::start("cluster-declared-anywhere");
    let address = |id| cluster.address(id).to_string();
    topic(&["create", SOURCE, "--partitions", "4"], &address(1));
    for (asked, other) in [(1, 2), (2, 3), (3, 1)] {
        for id in [asked, other, asked] {
            apply(&address(id));
        }
        wait_until_known(&cluster, INTERNAL, Some(NODES.len()));
        topic(&["delete", DERIVED], &address(other));
        wait_until_known(&cluster, INTERNAL, None);
    }
}

fn topic(arguments: &[&str], bootstrap: &str) {
    let mut command = streamgauge();
    command.arg("topic").args(arguments);
    command.args(["--bootstrap-server", bootstrap]);
    run(command, MOVE_TIME_MAX).expect_success("topic");
}

/// Every broker knows the topic, with so many replicas, or none does.
fn wait_until_known(cluster: &Cluster, name: &str, replicas: Option<usize>) {
    let known = |id| {
        let metadata = cluster.metadata(id, Some(name))?;
        let topic = metadata.topics.first()?;
        let known = topic.partitions.first();
        Some(known.map(|partition| partition.replica_nodes.len()))
    };
    let mut seen = Vec::new();
    let agreed = poll(MOVE_TIME_MAX, || {
        seen = NODES.map(known).to_vec();
        seen.iter()
            .all(|seen| *seen == Some(replicas))
            .then_some(())
    });
    assert!(agreed.is_some(), "{name}: {seen:?}, not {replicas:?}");
}

/// Most of what the job reads and writes is on other brokers only, and goes from one to the other.
#[test]
fn the_seed_case_comes_out_exact_across_brokers() {
    through(
        "cluster-seed-case-across",
        Some("1"),
        &[
            (SOURCE, 0, End::Move),
            (INTERNAL, 0, End::Move),
            (DERIVED, 1, End::Move),
            (LATE, 2, End::Move),
            (INTERNAL, 0, End::Kill),
            (SOURCE, 1, End::Kill),
        ],
    );
}

fn through(name: &str, replicas: Option<&str>, ends: &[(&str, i32, End)]) {
    let mut cluster = Cluster::start(name);
    let parts = ends.len() + 1;
    let Some(mut case) = SeedCase::start(&cluster.bootstrap(), replicas, parts, TIME_MAX) else {
        return;
    };
    for (number, (topic, partition, end)) in ends.iter().enumerate() {
        let produced = ORDERS * (number + 1) / parts;
        assert!(case.wait_until_produced(produced), "{produced} orders");
        case.go_on();
        let leader = cluster.leader(topic, *partition);
        println!("{end:?} of the leader of {topic}-{partition}, broker {leader}");
        match end {
            End::Kill => cluster.kill(leader),
            End::Terminate => cluster.stop(leader),
            End::Pause => {
                cluster.pause(leader);
                let next = cluster.leader(topic, *partition);
                stay(&mut cluster, next);
                cluster.resume(leader);
                continue;
            }
            End::CutOff => {
                cluster.cut_off(leader, Cut::BothWays);
                let next = cluster.leader(topic, *partition);
                stay(&mut cluster, next);
                cluster.heal();
                cluster.wait_until_whole();
                continue;
            }
            End::Move => {
                let others: Vec<i32> = NODES.into_iter().filter(|id| *id != leader).collect();
                let last = others.last().expect("three brokers");
                for replicas in [&others[..], &[*last]] {
                    cluster.reassign(topic, *partition, Some(replicas));
                    cluster.wait_until_moved(MOVE_TIME_MAX);
                }
                continue;
            }
        }
        if replicas.is_none() {
            // Nobody else can lead what has one replica.
            cluster.leader(topic, *partition);
        }
        cluster.launch(leader);
        cluster.wait_until_whole();
    }
    case.finish();
}

/// Leaves things as they are for a while, in which the broker must run.
fn stay(cluster: &mut Cluster, id: i32) {
    let begun = Instant::now();
    while begun.elapsed() < FAULT_TIME {
        cluster.assert_runs(id);
        thread::sleep(Duration::from_millis(50));
    }
}
