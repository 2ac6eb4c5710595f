//! Three Streamgauge brokers and three of Apache Kafka in turn under the same load, replication factor 3.
//!
//! See `benches/README.md`. Environment as for `side_by_side`; `BENCH_PART` is `log`, `latency`, `failover`, `move` or `many`,
//! `BENCH_WARM_UPS` how many rounds come before those that count.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use streamgauge_benches::cluster::{Cluster, NODES};
use streamgauge_benches::load::{Connection, batch, latencies, produce_request};
use streamgauge_benches::server::Peer;
use streamgauge_benches::table::Table;

const IN_FLIGHT: usize = 5;
const BATCH_BYTES: usize = 64 * 1024;
const PAYLOAD_BYTES: usize = 192 << 20;
const LATENCY_COUNT: usize = 2_000;
const MOVED_BYTES: usize = 1 << 30;
/// In topics of a thousand.
const MANY_TOPICS: usize = 3;
const IDLE_TIME: Duration = Duration::from_secs(10);
const TIME_ZERO_MS: i64 = 1_767_225_600_000;

fn main() {
    let repeats = std::env::var("BENCH_REPEATS").ok();
    let repeats: usize = repeats.map_or(3, |text| text.parse().expect("BENCH_REPEATS"));
    let only = std::env::var("BENCH_ONLY").ok();
    let part = std::env::var("BENCH_PART").ok();
    let wanted = |name: &str| part.as_ref().is_none_or(|part| part == name);
    let mut table = Table::default();
    let peers = [Peer::Streamgauge, Peer::Kafka];
    let mut clusters: Vec<Cluster> = peers
        .into_iter()
        .filter(|peer| only.as_ref().is_none_or(|only| only == peer.name()))
        .filter_map(Cluster::start)
        .collect();
    // A virtual machine compiles what is used often, in several steps.
    let warm_ups: usize =
        std::env::var("BENCH_WARM_UPS").map_or(4, |text| text.parse().expect("BENCH_WARM_UPS"));
    for round in 0..warm_ups + repeats {
        let mut warm_up = Table::default();
        let into = match round < warm_ups {
            true => &mut warm_up,
            false => &mut table,
        };
        for cluster in &mut clusters {
            eprintln!("round {round}: {}", cluster.peer.name());
            if wanted("log") {
                produce(cluster, round, into);
            }
            if wanted("latency") {
                latency(cluster, round, into);
            }
            if wanted("failover") {
                failover(cluster, round, into);
            }
        }
    }
    for cluster in &mut clusters {
        eprintln!("last: {}", cluster.peer.name());
        if wanted("move") {
            let time = move_replica(cluster);
            table.add(
                "1 GiB to another broker: s",
                cluster.peer,
                time.as_secs_f64(),
            );
        }
        if wanted("many") {
            many(cluster, &mut table);
        }
    }
    println!("{}", table.markdown());
    if let Ok(path) = std::env::var("BENCH_JSON") {
        std::fs::write(path, table.json().to_string()).expect("the file can be written");
    }
}

fn records() -> (usize, bytes::Bytes) {
    let count = BATCH_BYTES / 1024;
    let bytes = batch(count, TIME_ZERO_MS, |index| {
        (0..1024).map(|at| (at * 31 + index * 7) as u8).collect()
    });
    (count, bytes)
}

/// The partitions' leaders, each of which has taken a write: who was told of a leader may be ahead of it.
fn leaders_at_work(cluster: &Cluster, topic: &str, partitions: i32) -> Vec<(i32, i32)> {
    let bytes = batch(1, TIME_ZERO_MS, |_| vec![7; 100]);
    for partition in 0..partitions {
        let request = produce_request(topic, partition, &bytes);
        cluster.time_until(|cluster| {
            let leaders = cluster.leaders(topic);
            let leader = leaders.iter().find(|(index, _)| *index == partition);
            leader.is_some_and(|(_, leader)| {
                *leader > 0 && is_taken(cluster, *leader as usize, topic, &request)
            })
        });
    }
    cluster.leaders(topic)
}

/// Each broker leads one partition.
fn produce(cluster: &Cluster, round: usize, table: &mut Table) {
    let topic = &format!("bench-{round}");
    let partitions = NODES as i32;
    cluster.create(topic, partitions, 3);
    let (count, bytes) = records();
    let requests = PAYLOAD_BYTES / (count * 1024) / NODES;
    let gigabytes = (requests * NODES * count) as f64 * 1024.0 / 1e9;
    let leaders = leaders_at_work(cluster, topic, partitions);
    let (begun, cpu) = (Instant::now(), cluster.cpu_seconds());
    thread::scope(|scope| {
        for (partition, leader) in leaders {
            let frame: Arc<[u8]> = produce_request(topic, partition, &bytes).into();
            let mut connection = Connection::open(cluster.address(leader as usize));
            scope.spawn(move || {
                connection.produce(topic, (0..requests).map(|_| &frame[..]), IN_FLIGHT);
            });
        }
    });
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), cluster.cpu_seconds() - cpu);
    let peer = cluster.peer;
    table.add(
        "produce 1 KiB, 3 p, acks=all: MB/s",
        peer,
        gigabytes * 1e3 / wall,
    );
    table.add(
        "produce 1 KiB, 3 p, acks=all: CPU s/GB of all brokers",
        peer,
        cpu / gigabytes,
    );
}

fn latency(cluster: &Cluster, round: usize, table: &mut Table) {
    let topic = &format!("bench-latency-{round}");
    cluster.create(topic, 1, 3);
    let bytes = batch(1, TIME_ZERO_MS, |_| vec![7; 100]);
    let request = produce_request(topic, 0, &bytes);
    let (_, leader) = leaders_at_work(cluster, topic, 1)[0];
    let times = latencies(
        cluster.address(leader as usize),
        topic,
        &request,
        100,
        LATENCY_COUNT,
    );
    let at = |share: f64| times[(share * times.len() as f64) as usize].as_secs_f64() * 1e3;
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let row = format!("one 100 B record in flight, acks=all: {name} ms");
        table.add(&row, cluster.peer, at(share));
    }
}

/// kill -9 of a leader, until another takes a write.
fn failover(cluster: &mut Cluster, round: usize, table: &mut Table) {
    let topic = &format!("bench-failover-{round}");
    cluster.create(topic, 1, 3);
    let bytes = batch(1, TIME_ZERO_MS, |_| vec![7; 100]);
    let request = produce_request(topic, 0, &bytes);
    let (_, leader) = leaders_at_work(cluster, topic, 1)[0];
    let mut connection = Connection::open(cluster.address(leader as usize));
    connection.produce(topic, [&request[..]], 1);
    cluster.kill(leader as usize);
    let time = cluster.time_until(|cluster| {
        let leader = cluster
            .leaders(topic)
            .first()
            .map_or(-1, |(_, leader)| *leader);
        leader > 0 && is_taken(cluster, leader as usize, topic, &request)
    });
    table.add(
        "kill -9 of a leader, until a write is taken: s",
        cluster.peer,
        time.as_secs_f64(),
    );
    cluster.launch(leader as usize);
    cluster.wait_until_whole();
    // What was led elsewhere meanwhile is not of interest, only that the replica is back.
    thread::sleep(Duration::from_secs(2));
}

fn is_taken(cluster: &Cluster, id: usize, topic: &str, request: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(cluster.address(id)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut length = [0; 4];
    let asked = stream
        .write_all(request)
        .and_then(|()| stream.read_exact(&mut length));
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    if asked.is_err() || stream.read_exact(&mut answer).is_err() {
        return false;
    }
    // Correlation, topics, name, partitions, index; then the error.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    answer.get(at..at + 2) == Some(&[0, 0])
}

fn move_replica(cluster: &Cluster) -> Duration {
    let topic = "bench-move";
    cluster.create(topic, 1, 1);
    let (count, bytes) = records();
    let frame = produce_request(topic, 0, &bytes);
    let (_, leader) = leaders_at_work(cluster, topic, 1)[0];
    // min.insync.replicas is 2, and no more than there are.
    let mut connection = Connection::open(cluster.address(leader as usize));
    let requests = MOVED_BYTES / (count * 1024);
    connection.produce(topic, (0..requests).map(|_| &frame[..]), IN_FLIGHT);
    let to = leader % NODES as i32 + 1;
    cluster.reassign(topic, 0, &[to])
}

fn many(cluster: &mut Cluster, table: &mut Table) {
    let peer = cluster.peer;
    let begun = Instant::now();
    let topics: Vec<String> = (0..MANY_TOPICS).map(|n| format!("many-{n}")).collect();
    for topic in &topics {
        cluster.create(topic, 1_000, 3);
    }
    table.add(
        "3,000 partitions: created after s",
        peer,
        begun.elapsed().as_secs_f64(),
    );
    thread::sleep(IDLE_TIME);
    let cpu = cluster.cpu_seconds();
    thread::sleep(IDLE_TIME);
    let share = (cluster.cpu_seconds() - cpu) / IDLE_TIME.as_secs_f64() * 100.0;
    table.add(
        "3,000 idle partitions: % of a core, all brokers",
        peer,
        share,
    );
    for id in 1..=NODES {
        cluster.kill(id);
    }
    let begun = Instant::now();
    for id in 1..=NODES {
        cluster.launch(id);
    }
    cluster.time_until(|cluster| topics.iter().all(|topic| cluster.led(topic) == 1_000));
    table.add(
        "3,000 partitions, all killed: led again after s",
        peer,
        begun.elapsed().as_secs_f64(),
    );
}
