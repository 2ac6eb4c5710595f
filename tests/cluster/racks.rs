//! Consumers that say where they are read from the replica there (KIP-392).

use std::process::Command;
use std::time::Duration;

use streamgauge_tests::cluster::{Cluster, NODES};
use streamgauge_tests::fetch::{java, python};
use streamgauge_tests::process::run;

const TOPIC: &str = "near";
const SETTINGS: [&str; 2] = [
    "broker.rack=rack-{id}",
    "replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector",
];
const TIME_MAX: Duration = Duration::from_secs(90);
/// What the Java consumer calls the leader.
const NOBODY_PREFERRED: i32 = -1;

#[test]
fn consumers_read_from_the_replica_in_their_rack() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster");
    let (Some(python), Some(_)) = (python(), java()) else {
        return;
    };
    let cluster = Cluster::start_prepared("cluster-racks", &SETTINGS, |_, _| ());
    cluster.create_topic(TOPIC, 1);
    cluster.wait_until_in_sync(TOPIC, TIME_MAX);
    let leader = cluster.leader(TOPIC, 0);
    let far = NODES.into_iter().rfind(|id| *id != leader);
    for id in NODES {
        let near = |mut command: Command, broker: i32| {
            command
                .args([&cluster.bootstrap(), TOPIC, &format!("rack-{id}")])
                .arg(broker.to_string());
            print!("{}", run(command, TIME_MAX).expect_success("a consumer"));
        };
        let mut librdkafka = Command::new(&python);
        librdkafka.arg("-B").arg(format!("{here}/near.py"));
        near(librdkafka, id);
        // A JVM takes its time: the leader's rack and one other are enough.
        if Some(id) == far {
            continue;
        }
        let mut kafka = java().expect("ready");
        kafka.arg(format!("{here}/Near.java"));
        let preferred = if id == leader { NOBODY_PREFERRED } else { id };
        near(kafka, preferred);
    }
}
