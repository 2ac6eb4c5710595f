//! A disk that does not hold what was written to it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use streamgauge_storage::disk::real::RealDisk;
use streamgauge_storage::log::Log;
use streamgauge_tests::broker::streamgauge;
use streamgauge_tests::cluster::{Cluster, NODES};
use streamgauge_tests::process::{poll, run_with_input};
use streamgauge_tests::replica;

const TIME_MAX: Duration = Duration::from_secs(60);
const TOPIC: &str = "damaged";

fn produce(cluster: &Cluster, from: usize) {
    let lines: String = (from..from + 500).map(|n| format!("value-{n}\n")).collect();
    let mut produce = streamgauge();
    produce.args(["produce", TOPIC, "--bootstrap-server", &cluster.bootstrap()]);
    run_with_input(produce, lines.as_bytes(), TIME_MAX).expect_success("produce");
}

/// A bit flips in the middle of what is known to be synced.
fn flip_a_bit(directory: &Path) {
    let synced = Log::recovery_point(&RealDisk, directory);
    let path = directory.join(format!("{:020}.log", synced.base_offset));
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the last segment");
    let mut byte = [0];
    file.read_exact_at(&mut byte, synced.position / 2)
        .expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], synced.position / 2)
        .expect("written");
}

#[test]
fn a_damaged_replica_is_replaced_by_a_new_one() {
    let mut cluster = Cluster::start("cluster-damage");
    cluster.create_topic(TOPIC, 1);
    produce(&cluster, 0);
    let directory = format!("{TOPIC}-0");
    let victim = cluster.leader(TOPIC, 0);
    let damaged = cluster.data_dir(victim).join(&directory);
    let noted = poll(TIME_MAX, || {
        let synced = Log::recovery_point(&RealDisk, &damaged);
        (synced.position > 0).then_some(())
    });
    assert!(noted.is_some(), "it is noted every second");
    cluster.kill(victim);
    flip_a_bit(&damaged);
    produce(&cluster, 500);
    cluster.launch(victim);
    let seen = poll(TIME_MAX, || {
        let log = cluster.log_tail(victim);
        log.contains("is corrupt at position").then_some(())
    });
    assert!(seen.is_some(), "the damage is not seen");
    cluster.wait_until_in_sync(TOPIC, TIME_MAX);
    cluster.wait_until_moved(TIME_MAX);
    produce(&cluster, 1_000);
    for id in NODES {
        cluster.stop(id);
    }
    let expected: Vec<String> = (0..1_500).map(|n| format!("value-{n}")).collect();
    for id in NODES {
        let held = replica::records(&cluster.data_dir(id).join(&directory));
        let held: Vec<String> = held.into_iter().map(|record| record.value).collect();
        assert!(held == expected, "broker {id} holds {} records", held.len());
    }
}

#[test]
fn a_replica_that_could_not_be_made_is_made_later() {
    let cluster = Cluster::start("cluster-blocked");
    let in_the_way = cluster.data_dir(3).join("blocked-0");
    std::fs::write(&in_the_way, "").expect("written");
    cluster.create_topic("blocked", 1);
    let shown = |offline: &[i32]| {
        let shown = poll(TIME_MAX, || {
            NODES
                .into_iter()
                .all(|id| {
                    let partitions = cluster.metadata(id, Some("blocked"));
                    let topics = partitions.map(|answer| answer.topics).unwrap_or_default();
                    let mut partitions = topics.into_iter().flat_map(|topic| topic.partitions);
                    partitions.any(|partition| {
                        let ids: Vec<i32> =
                            partition.offline_replicas.iter().map(|id| id.0).collect();
                        ids == offline
                    })
                })
                .then_some(())
        });
        assert!(shown.is_some(), "{offline:?}\n{}", cluster.log_tail(3));
    };
    shown(&[3]);
    std::fs::remove_file(in_the_way).expect("removed");
    shown(&[]);
    cluster.wait_until_in_sync("blocked", TIME_MAX);
}
