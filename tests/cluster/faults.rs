//! What happens to a cluster while clients write and read.

use std::time::{Duration, Instant};
use std::{fs, thread};

use streamgauge_tests::cluster::{Cluster, Cut, NODES};
use streamgauge_tests::process::poll;
use streamgauge_tests::small_disk;

use crate::workload::{Clients, PARTITIONS, TOPIC, Workload};

const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const PAUSE_TIME: Duration = Duration::from_secs(5);
/// Longer than the silence after which a broker closes a link, so that links are also made anew.
const CUT_TIME: Duration = Duration::from_secs(6);
const SLOW_TIME: Duration = Duration::from_secs(3);
const DELAY: Duration = Duration::from_millis(100);
const FULL_TIME: Duration = Duration::from_secs(3);
const FULL_TIME_MAX: Duration = Duration::from_secs(20);
/// More than any small disk has.
const FILL_BYTES_MAX: usize = 1 << 30;
const MOVE_TIME_MAX: Duration = Duration::from_secs(30);
const IN_SYNC_TIME_MAX: Duration = Duration::from_secs(30);

/// A fault; the leader is that of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// kill -9, and a new start.
    KillLeader,
    KillFollower,
    KillAll,
    /// SIGSTOP for some seconds.
    PauseLeader,
    CutOffLeader(Cut),
    /// The link between the leader and one other broker.
    PartLeader,
    /// All links of the leader are slow.
    SlowLeader,
    /// SIGTERM, and a new start.
    StopLeader,
    /// The leader's replica goes, all but one go, and all come back.
    MoveLeader,
    /// kill -9 of the leader while its replica goes.
    MoveAndKillLeader,
    /// All links of one follower are slow.
    SlowFollower,
    /// SIGSTOP of a follower for some seconds.
    PauseFollower,
    /// The links between the leader and one other broker, in one direction: as the leader would be cut off.
    PartLeaderOneWay(Cut),
    /// kill -9 of another broker while the leader is cut off, and a new start before that is over.
    CutOffLeaderAndKill,
    /// SIGTERM and a new start, one broker after the other.
    RollingRestart,
    /// The leader's disk is full for some seconds; the disks must be small.
    FillLeader,
    /// kill -9 of the leader while its disk is full, and a new start on the full disk.
    FillAndKillLeader,
}

/// Those that any cluster can suffer.
pub const ALL: [Fault; 18] = [
    Fault::SlowFollower,
    Fault::PauseFollower,
    Fault::PartLeaderOneWay(Cut::Outbound),
    Fault::PartLeaderOneWay(Cut::Inbound),
    Fault::CutOffLeaderAndKill,
    Fault::RollingRestart,
    Fault::MoveLeader,
    Fault::MoveAndKillLeader,
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::KillAll,
    Fault::PauseLeader,
    Fault::CutOffLeader(Cut::BothWays),
    Fault::CutOffLeader(Cut::Outbound),
    Fault::CutOffLeader(Cut::Inbound),
    Fault::PartLeader,
    Fault::SlowLeader,
    Fault::StopLeader,
];

/// Lets clients write and read through these faults, and through some drawn of [`ALL`] as long as `CLUSTER_SECONDS` says;
/// then checks their history.
pub fn go_through(name: &str, clients: Clients, faults: &[Fault]) {
    let mut cluster = Cluster::start(name);
    send_through(&mut cluster, clients, faults, &ALL);
}

/// As [`go_through`], with a cluster that is there, and other faults to draw from.
pub fn send_through(cluster: &mut Cluster, clients: Clients, faults: &[Fault], more: &[Fault]) {
    let more = chosen(more);
    let Some(mut workload) = Workload::start(cluster, clients.chosen()) else {
        return;
    };
    let begun = Instant::now();
    for (round, fault) in faults.iter().enumerate() {
        let partition = round as i32 % PARTITIONS;
        fault.happen(partition, cluster, &mut workload);
    }
    let time = Duration::from_secs(number_from_environment("CLUSTER_SECONDS").unwrap_or(0));
    let mut random = number_from_environment("CLUSTER_SEED").unwrap_or(1);
    println!("seed {random}");
    while begun.elapsed() < time {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let fault = more[(random >> 33) as usize % more.len()];
        let partition = (random >> 50) as i32 % PARTITIONS;
        fault.happen(partition, cluster, &mut workload);
    }
    assert_eq!(cluster.bypasses(), []);
    workload.finish(cluster);
}

impl Fault {
    /// Breaks something, waits until a majority writes on, mends it and waits until all is whole.
    fn happen(self, partition: i32, cluster: &mut Cluster, workload: &mut Workload) {
        let leader = cluster.leader(TOPIC, partition);
        let follower = NODES
            .into_iter()
            .find(|id| *id != leader)
            .expect("three brokers");
        let what = format!("{self:?} (partition {partition}, leader {leader})");
        workload.silence_max();
        let begun = Instant::now();
        match self {
            Self::KillLeader | Self::KillFollower => {
                let killed = if self == Self::KillLeader {
                    leader
                } else {
                    follower
                };
                cluster.kill(killed);
                workload.wait_until_written(&what);
                cluster.launch(killed);
            }
            Self::StopLeader => {
                cluster.stop(leader);
                workload.wait_until_written(&what);
                cluster.launch(leader);
            }
            Self::KillAll => {
                for id in NODES {
                    cluster.kill(id);
                }
                for id in NODES {
                    cluster.launch(id);
                }
                workload.wait_until_written(&what);
            }
            Self::PauseLeader => {
                cluster.pause(leader);
                let next = cluster.leader(TOPIC, partition);
                println!(
                    "{what}: broker {next} leads after {} ms",
                    begun.elapsed().as_millis()
                );
                // A client learns of the new leader when its requests time out, which is later than this.
                while begun.elapsed() < PAUSE_TIME {
                    cluster.assert_runs(next);
                    thread::sleep(LOOK_INTERVAL);
                }
                cluster.resume(leader);
                workload.wait_until_written(&what);
            }
            Self::MoveLeader => {
                let others: Vec<i32> = NODES.into_iter().filter(|id| *id != leader).collect();
                for replicas in [&others[..], &[follower], &[follower, leader], &NODES] {
                    cluster.reassign(TOPIC, partition, Some(replicas));
                    cluster.wait_until_moved(MOVE_TIME_MAX);
                    println!("{what}: on {replicas:?} {} ms", begun.elapsed().as_millis());
                    workload.wait_until_written(&what);
                }
            }
            Self::MoveAndKillLeader => {
                cluster.reassign(TOPIC, partition, Some(&[follower]));
                cluster.kill(leader);
                workload.wait_until_written(&what);
                cluster.launch(leader);
                cluster.reassign(TOPIC, partition, None);
                cluster.reassign(TOPIC, partition, Some(&NODES));
                cluster.wait_until_whole();
                cluster.wait_until_moved(MOVE_TIME_MAX);
            }
            Self::CutOffLeader(cut) => {
                cluster.cut_off(leader, cut);
                workload.wait_until_written(&what);
                workload.write_until(begun, CUT_TIME);
                cluster.heal();
            }
            Self::SlowFollower => {
                cluster.slow_down(follower, DELAY);
                workload.wait_until_written(&what);
                workload.write_until(begun, SLOW_TIME);
                cluster.heal();
            }
            Self::PauseFollower => {
                // It leads other partitions, and clients wait long for the answers of one whose connections stand.
                cluster.pause(follower);
                thread::sleep(PAUSE_TIME);
                cluster.resume(follower);
                workload.wait_until_written(&what);
            }
            Self::PartLeaderOneWay(cut) => {
                cluster.part_one_way(leader, follower, cut);
                workload.wait_until_written(&what);
                workload.write_until(begun, CUT_TIME);
                cluster.heal();
            }
            Self::CutOffLeaderAndKill => {
                cluster.cut_off(leader, Cut::BothWays);
                workload.wait_until_written(&what);
                // No majority is left until it is back.
                cluster.kill(follower);
                cluster.launch(follower);
                workload.wait_until_written(&what);
                cluster.heal();
            }
            Self::RollingRestart => {
                for id in NODES {
                    cluster.stop(id);
                    workload.wait_until_written(&what);
                    cluster.launch(id);
                    cluster.wait_until_whole();
                    cluster.wait_until_in_sync(TOPIC, IN_SYNC_TIME_MAX);
                }
            }
            Self::FillLeader | Self::FillAndKillLeader => {
                let ballast = cluster.data_dir(leader).join("ballast");
                let next = poll(FULL_TIME_MAX, || {
                    // What a broker removes makes room again.
                    small_disk::ballast(&ballast, FILL_BYTES_MAX);
                    let next = cluster.leader(TOPIC, partition);
                    (next != leader).then_some(next)
                });
                assert!(next.is_some(), "{what}: it leads although its disk is full");
                println!("{what}: broker {next:?} leads after {:?}", begun.elapsed());
                workload.wait_until_written(&what);
                if self == Self::FillAndKillLeader {
                    cluster.kill(leader);
                    workload.wait_until_written(&what);
                    cluster.launch(leader);
                }
                workload.write_until(begun, FULL_TIME);
                cluster.assert_runs(leader);
                // Some clients ask no other broker.
                let told = poll(FULL_TIME_MAX, || {
                    knows_leaders(cluster, leader).then_some(())
                });
                assert!(told.is_some(), "{what}: it does not know who leads");
                fs::remove_file(&ballast).expect("the ballast can be removed");
            }
            Self::PartLeader => {
                cluster.part(leader, follower);
                workload.wait_until_written(&what);
                workload.write_until(begun, CUT_TIME);
                cluster.heal();
            }
            Self::SlowLeader => {
                cluster.slow_down(leader, DELAY);
                workload.wait_until_written(&what);
                workload.write_until(begun, SLOW_TIME);
                cluster.heal();
            }
        }
        cluster.wait_until_whole();
        cluster.wait_until_in_sync(TOPIC, IN_SYNC_TIME_MAX);
        println!(
            "{what}: whole again after {} ms",
            begun.elapsed().as_millis()
        );
    }
}

/// Whether a broker tells of a leader of every partition.
fn knows_leaders(cluster: &Cluster, id: i32) -> bool {
    let told = cluster.metadata(id, Some(TOPIC));
    let partitions = told.iter().flat_map(|told| &told.topics);
    let mut leaders = partitions
        .flat_map(|topic| &topic.partitions)
        .map(|partition| partition.leader_id.0);
    leaders.clone().count() == PARTITIONS as usize && leaders.all(|leader| leader >= 0)
}

/// Those of which `CLUSTER_FAULTS` has the name, by default all.
fn chosen(faults: &[Fault]) -> Vec<Fault> {
    let Ok(names) = std::env::var("CLUSTER_FAULTS") else {
        return faults.to_vec();
    };
    let names: Vec<&str> = names.split(',').collect();
    let is_chosen = |fault: &Fault| names.contains(&format!("{fault:?}").as_str());
    let chosen: Vec<Fault> = faults.iter().copied().filter(is_chosen).collect();
    assert_eq!(chosen.len(), names.len(), "{names:?} of {faults:?}");
    chosen
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
