//! Replicas that are moved with Kafka's own tool.

use std::fs;
use std::time::{Duration, Instant};

use streamgauge_tests::broker::streamgauge;
use streamgauge_tests::cluster::{Cluster, NODES};
use streamgauge_tests::fetch::java;
use streamgauge_tests::process::{poll, run_with_input};

const TIME_MAX: Duration = Duration::from_secs(90);

fn tool(cluster: &Cluster, class: &str, arguments: &str) -> String {
    let mut java = java().expect("ready");
    java.arg(class)
        .args(["--bootstrap-server", &cluster.bootstrap()])
        .args(arguments.split_whitespace());
    run_with_input(java, b"", TIME_MAX).expect_success(&format!("{class} {arguments}"))
}

const REASSIGN: &str = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

#[test]
fn kafka_reassign_partitions_moves_shrinks_and_cancels() {
    if java().is_none() {
        return;
    }
    let mut cluster = Cluster::start("cluster-tool-moves");
    tool(
        &cluster,
        TOPICS,
        "--create --topic moved --replica-assignment 1:2,2:3",
    );
    let plan = cluster.scratch_dir().join("plan.json");
    fs::write(
        &plan,
        r#"{"version":1,"partitions":[
            {"topic":"moved","partition":0,"replicas":[3,2,1]},
            {"topic":"moved","partition":1,"replicas":[1]}]}"#,
    )
    .expect("written");
    let plan = format!("--reassignment-json-file {}", plan.display());
    let said = tool(&cluster, REASSIGN, &format!("--execute {plan}"));
    assert!(said.contains("Successfully started"), "{said}");
    cluster.wait_until_moved(Duration::from_secs(30));
    let said = tool(&cluster, REASSIGN, &format!("--verify {plan}"));
    assert_eq!(said.matches("is completed").count(), 2, "{said}");
    let said = tool(&cluster, TOPICS, "--describe --topic moved");
    assert!(
        said.contains("Replicas: 3,2,1") && said.contains("Replicas: 1\t"),
        "{said}"
    );
    assert!(!cluster.data_dir(2).join("moved-1").exists());
    // One that cannot come to its end is taken back, and is over although its group has no leader to do anything about it.
    cluster.kill(1);
    cluster.reassign("moved", 1, Some(&[2]));
    let said = tool(&cluster, REASSIGN, "--list");
    assert!(
        said.contains("moved-1") && said.contains("adding: 2"),
        "{said}"
    );
    let said = tool(
        &cluster,
        REASSIGN,
        &format!("--cancel --preserve-throttles {plan}"),
    );
    assert!(said.contains("moved-1"), "{said}");
    let said = tool(&cluster, REASSIGN, "--list");
    assert!(said.contains("No partition reassignments found"), "{said}");
    let said = tool(&cluster, TOPICS, "--describe --topic moved");
    assert!(said.contains("Replicas: 1\t"), "{said}");
    cluster.launch(1);
    cluster.wait_until_whole();
    let stranded = cluster.data_dir(2).join("moved-1");
    let gone = poll(TIME_MAX, || (!stranded.exists()).then_some(()));
    assert!(
        gone.is_some(),
        "the replica that was to come is still there"
    );
}

/// Of each of two partitions.
const MOVED_BYTES: usize = 4_000_000;
const THROTTLE: usize = 400_000;
/// Each leader has half of what the new replicas' broker takes. Three quarters of the bytes remain when they are
/// compressed, of which a first message of 1 MiB and a last one do not wait.
const LEAST_TIME: Duration = Duration::from_secs(4);

#[test]
fn kafka_reassign_partitions_throttles() {
    if java().is_none() {
        return;
    }
    let cluster = Cluster::start("cluster-tool-throttle");
    tool(
        &cluster,
        TOPICS,
        "--create --topic slow --replica-assignment 1:2,2:1",
    );
    let mut random = 1_u64;
    let mut produce = |count: usize| {
        // What compresses badly.
        let letters = (0..count * 1_000).map(|at| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            match at % 1_000 {
                999 => b'\n',
                _ => b'0' + (random >> 58) as u8,
            }
        });
        let lines: Vec<u8> = letters.collect();
        let mut produce = streamgauge();
        produce.args(["produce", "slow", "--bootstrap-server"]);
        produce.arg(cluster.bootstrap());
        run_with_input(produce, &lines, TIME_MAX).expect_success("produce");
    };
    produce(2 * MOVED_BYTES / 1_000);
    let plan = cluster.scratch_dir().join("plan.json");
    fs::write(
        &plan,
        r#"{"version":1,"partitions":[
            {"topic":"slow","partition":0,"replicas":[1,3]},
            {"topic":"slow","partition":1,"replicas":[2,3]}]}"#,
    )
    .expect("written");
    let plan = format!("--reassignment-json-file {}", plan.display());
    let begun = Instant::now();
    tool(
        &cluster,
        REASSIGN,
        &format!("--execute {plan} --throttle {THROTTLE}"),
    );
    let rates = tool(
        &cluster,
        CONFIGS,
        "--describe --entity-type brokers --entity-name 3",
    );
    assert!(
        rates.contains(&format!("follower.replication.throttled.rate={THROTTLE}")),
        "{rates}"
    );
    // Who writes is not slowed.
    produce(10);
    cluster.wait_until_moved(TIME_MAX);
    assert!(begun.elapsed() >= LEAST_TIME, "{:?}", begun.elapsed());
    let said = tool(&cluster, REASSIGN, &format!("--verify {plan}"));
    assert!(said.contains("Clearing topic-level throttles"), "{said}");
    for entity in ["brokers --entity-name 3", "topics --entity-name slow"] {
        let said = tool(
            &cluster,
            CONFIGS,
            &format!("--describe --entity-type {entity}"),
        );
        assert!(!said.contains("throttled"), "{said}");
    }
}

/// What is committed is saved with what comes later only: after a power cut brokers hear of their last moves once more.
#[test]
fn replicas_that_came_back_survive_the_loss_of_all_brokers() {
    let mut cluster = Cluster::start("cluster-back-again");
    cluster.create_topic("back", 3);
    for round in 0..3 {
        for partition in 0..3 {
            let written = poll(Duration::from_secs(30), || {
                let leader = cluster.leader("back", partition);
                cluster.write(leader, "back", partition)?.ok()
            });
            assert!(written.is_some(), "{partition} in round {round}");
        }
        for replicas in [&[2][..], &NODES] {
            for partition in 0..3 {
                cluster.reassign("back", partition, Some(replicas));
            }
            cluster.wait_until_moved(Duration::from_secs(30));
        }
        cluster.wait_until_in_sync("back", Duration::from_secs(30));
        for id in NODES {
            cluster.kill(id);
        }
        for id in NODES {
            cluster.launch(id);
        }
        cluster.wait_until_whole();
        cluster.wait_until_in_sync("back", Duration::from_secs(30));
        for id in NODES {
            for partition in 0..3 {
                let log = cluster.data_dir(id).join(format!("back-{partition}"));
                let log = fs::read(log.join("00000000000000000000.log")).expect("a log");
                assert!(!log.is_empty(), "{partition} on {id} in round {round}");
            }
            let said = cluster.data_dir(id).with_file_name("broker.log");
            let said = fs::read_to_string(said).expect("a broker's log");
            let removed = said.matches("replica moved away").count();
            assert_eq!(
                removed,
                if id == 2 { 0 } else { 3 * (round + 1) },
                "{id} in round {round}"
            );
        }
    }
}
