//! Three brokers as real processes, on a network that breaks, with real clients whose history is checked.
//!
//! `CLUSTER_SECONDS=600` lets each history go on for so long with faults drawn from `CLUSTER_SEED`.

mod aggregation;
mod damage;
mod faults;
mod full_disk;
mod groups;
mod guide;
mod links;
mod moves;
mod racks;
mod workload;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use streamgauge_tests::cluster::{Cluster, Cut, NODES};
use streamgauge_tests::process::poll;

use faults::{Fault, go_through};
use workload::{Clients, Workload};

#[test]
fn a_history_through_kills_and_stops_is_true() {
    go_through(
        "cluster-kills",
        Clients::Librdkafka,
        &[
            Fault::KillLeader,
            Fault::KillFollower,
            Fault::CutOffLeader(Cut::Inbound),
            Fault::KillLeader,
            Fault::PauseLeader,
            Fault::KillAll,
            Fault::KillLeader,
        ],
    );
}

#[test]
fn a_history_through_cut_links_is_true() {
    go_through(
        "cluster-links",
        Clients::Java,
        &[
            Fault::CutOffLeader(Cut::BothWays),
            Fault::CutOffLeader(Cut::Outbound),
            Fault::CutOffLeader(Cut::Inbound),
            Fault::PartLeader,
            Fault::SlowLeader,
        ],
    );
}

#[test]
fn a_history_through_moves_of_replicas_is_true() {
    go_through(
        "cluster-moves",
        Clients::Librdkafka,
        &[
            Fault::MoveLeader,
            Fault::MoveAndKillLeader,
            Fault::MoveLeader,
            Fault::MoveAndKillLeader,
            Fault::KillAll,
        ],
    );
}

/// Producers that keep their epochs, and coordinators that die with what they have decided.
#[test]
fn a_history_of_transactions_through_kills_is_true() {
    go_through(
        "cluster-transactions",
        Clients::LibrdkafkaTransactions,
        &[
            Fault::KillLeader,
            Fault::PartLeader,
            Fault::CutOffLeader(Cut::BothWays),
            Fault::PartLeaderOneWay(Cut::Inbound),
            Fault::KillAll,
            Fault::MoveLeader,
        ],
    );
}

/// Producers whose epoch is raised with each transaction.
#[test]
fn a_history_of_transactions_through_cut_links_is_true() {
    go_through(
        "cluster-transactions-java",
        Clients::JavaTransactions,
        &[
            Fault::RollingRestart,
            Fault::CutOffLeader(Cut::BothWays),
            Fault::CutOffLeader(Cut::Outbound),
            Fault::KillAll,
            Fault::PauseLeader,
        ],
    );
}

#[test]
fn a_rolling_restart_under_load_shows_clients_no_error() {
    let mut cluster = Cluster::start("cluster-rolling");
    let Some(mut workload) = Workload::start(&cluster, Clients::Librdkafka) else {
        return;
    };
    for id in NODES {
        workload.silence_max();
        let begun = Instant::now();
        cluster.stop(id);
        println!(
            "broker {id} stopped after {} ms",
            begun.elapsed().as_millis()
        );
        workload.wait_until_written(&format!("SIGTERM of broker {id}"));
        cluster.launch(id);
        cluster.wait_until_whole();
        cluster.wait_until_in_sync(workload::TOPIC, Duration::from_secs(30));
        let silence = workload.silence_max().as_millis();
        println!("the longest wait for an acknowledgement was {silence} ms");
    }
    assert_eq!(workload.failed(), Vec::<String>::new());
    let producer_epoch = workload.finish(&mut cluster);
    assert_eq!(producer_epoch, 0, "a producer lost track of its sequence");
}

/// Another broker takes the place of one that is gone with its disk, and is as good as it was.
#[test]
fn a_history_through_the_loss_of_a_broker_is_true() {
    let mut cluster = Cluster::start("cluster-replaced");
    let Some(mut workload) = Workload::start(&cluster, Clients::Librdkafka.chosen()) else {
        return;
    };
    let (lost, new) = (3, 4);
    cluster.lose(lost);
    workload.wait_until_written("the loss of a broker");
    cluster.join(new);
    cluster.wait_until_whole();
    for topic in [workload::TOPIC, "__consumer_offsets"] {
        for partition in cluster.partitions(topic) {
            cluster.reassign(topic, partition.partition_index, Some(&[1, 2, new]));
        }
    }
    cluster.wait_until_moved(Duration::from_secs(60));
    cluster.wait_until_in_sync(workload::TOPIC, Duration::from_secs(30));
    workload.wait_until_written("the moves to another broker");
    // Its vote on the metadata has not been given to the new one here, so that the other two are needed.
    cluster.kill(new);
    workload.wait_until_written("kill -9 of the new broker");
    cluster.launch(new);
    cluster.wait_until_whole();
    workload.finish(&mut cluster);
}

/// Clients forget brokers that they are not told of, and may ask one that answers for ever.
#[test]
fn a_broker_that_is_cut_off_sends_clients_to_the_others() {
    let mut cluster = Cluster::start("cluster-metadata");
    let told = |cluster: &Cluster, id| -> Vec<i32> {
        let brokers = cluster.metadata(id, None).expect("an answer").brokers;
        brokers.iter().map(|broker| broker.node_id.0).collect()
    };
    for cut in [Cut::Inbound, Cut::Outbound, Cut::BothWays] {
        cluster.cut_off(1, cut);
        let sent_away = poll(Duration::from_secs(10), || {
            NODES
                .iter()
                .all(|id| told(&cluster, *id) == [2, 3])
                .then_some(())
        });
        assert!(sent_away.is_some(), "{cut:?}: broker 1 keeps clients");
        cluster.heal();
        cluster.wait_until_whole();
    }
    cluster.part(1, 2);
    let begun = Instant::now();
    // Until both links have fallen silent, and longer.
    while begun.elapsed() < Duration::from_secs(7) {
        for id in NODES {
            assert_eq!(told(&cluster, id), NODES, "broker {id}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    cluster.heal();
    cluster.wait_until_whole();
    // One that is gone is not told of.
    cluster.kill(2);
    for id in [1, 3] {
        let gone = poll(Duration::from_secs(10), || {
            let told = cluster.metadata(id, None)?.brokers;
            (told.len() == 2).then_some(())
        });
        assert!(gone.is_some(), "broker {id} still tells of broker 2");
    }
}

/// Every topic is then there on all brokers or on none, and can be written.
#[test]
fn a_topic_is_made_although_the_controller_dies() {
    let mut cluster = Cluster::start("cluster-creation");
    for round in 0..3 {
        let names: Vec<String> = (0..5)
            .map(|number| format!("made-{round}-{number}"))
            .collect();
        let controller = cluster.controller();
        cluster.create_topic(&names[0], 3);
        cluster.kill_while(controller, |cluster| {
            for name in &names {
                cluster.create_topic(name, 3);
            }
        });
        cluster.launch(controller);
        cluster.wait_until_whole();
        for name in &names {
            for partition in 0..3 {
                cluster.leader(name, partition);
            }
            cluster.wait_until_in_sync(name, Duration::from_secs(30));
        }
    }
}

/// Brokers that all lost power know late what was committed of the metadata: they must not take the files of a topic for those of one
/// that had its name before.
#[test]
fn a_topic_that_has_the_name_of_a_deleted_one_survives_the_loss_of_all_brokers() {
    const TOPIC: &str = "again";
    const VALUES: usize = 5;
    let mut cluster = Cluster::start("cluster-same-name");
    for round in 0..3 {
        cluster.create_topic(TOPIC, 3);
        for partition in 0..3 {
            for _ in 0..VALUES {
                let written = poll(Duration::from_secs(30), || {
                    let leader = cluster.leader(TOPIC, partition);
                    cluster.write(leader, TOPIC, partition)?.ok()
                });
                assert!(written.is_some(), "{partition} in round {round}");
            }
        }
        cluster.wait_until_in_sync(TOPIC, Duration::from_secs(30));
        for id in NODES {
            cluster.kill(id);
        }
        for id in NODES {
            cluster.launch(id);
        }
        cluster.wait_until_whole();
        cluster.wait_until_in_sync(TOPIC, Duration::from_secs(30));
        for id in NODES {
            for partition in 0..3 {
                let log = cluster.data_dir(id).join(format!("{TOPIC}-{partition}"));
                let log = fs::read(log.join("00000000000000000000.log")).expect("a log");
                let values = log.windows(5).filter(|bytes| *bytes == b"value").count();
                assert!(
                    values >= VALUES,
                    "{partition} on {id} in round {round}: {values}"
                );
            }
            let said = cluster.data_dir(id).with_file_name("broker.log");
            let said = fs::read_to_string(said).expect("a broker's log");
            assert!(
                !said.contains("do not count any more"),
                "{id} in round {round}"
            );
        }
        cluster.delete_topic(TOPIC);
    }
}

/// Its votes and what it acknowledged are forgotten: it must not pass for its former self.
#[test]
fn a_broker_that_comes_back_with_an_empty_directory_is_refused() {
    let mut cluster = Cluster::start("cluster-wiped");
    cluster.create_topic("kept", 3);
    cluster.wait_until_in_sync("kept", Duration::from_secs(30));
    let wiped = cluster.leader("kept", 0);
    cluster.stop(wiped);
    fs::remove_dir_all(cluster.data_dir(wiped)).expect("it can be removed");
    let begun = Instant::now();
    cluster.launch(wiped);
    let status = cluster.wait_for_end(wiped, Duration::from_secs(30));
    let said = cluster.log_tail(wiped);
    assert!(
        status.is_some_and(|status| !status.success()),
        "{status:?}\n{said}"
    );
    assert!(
        said.contains(&format!(
            "broker {wiped} is known with another data directory"
        )),
        "{said}"
    );
    println!("refused after {} ms", begun.elapsed().as_millis());
    for id in NODES.into_iter().filter(|id| *id != wiped) {
        cluster.assert_runs(id);
    }
}
