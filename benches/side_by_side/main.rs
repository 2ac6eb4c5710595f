//! Streamgauge and Apache Kafka in turn under the same load: what a record, a gigabyte and a wait cost on each.
//!
//! See `benches/README.md`. Environment: `BENCH_REPEATS` (3), `BENCH_JSON` (a file for every repeat's figures),
//! `BENCH_ONLY=streamgauge` or `kafka`.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use streamgauge::client::admin::NewTopic;
use streamgauge::client::{Client, ClientOptions, Consumer, ConsumerOptions, StartOffset};
use streamgauge_benches::load::{Connection, batch, latencies, produce_request};
use streamgauge_benches::server::{Peer, Server};
use streamgauge_benches::table::Table;
use streamgauge_tests::process::poll;

const IN_FLIGHT: usize = 5;
const BATCH_BYTES: usize = 64 * 1024;
const PAYLOAD_BYTES: usize = 256 << 20;
const FETCH_PASSES: usize = 3;
const LATENCY_COUNT: usize = 1_000;
const EVENTS: usize = 1_000_000;
const EVENTS_PER_BATCH: usize = 300;
const RESULTS_TIME_MAX: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const TIME_ZERO_MS: i64 = 1_767_225_600_000;

const DECLARATION: &str = "topic: by-shop\npartitions: 1\n\
from: { topic: events, format: json, start: earliest }\n\
time: { field: ts, unit: ms, max_out_of_orderness: 1s }\n\
group_by: [shop]\nwindow: { tumbling: 1m }\n\
aggregate:\n  n: count(*)\n  total: sum(amount)\n  least: min(amount)\n  most: max(amount)\n  mean: avg(amount)\n";

fn main() {
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().expect(name))
    };
    let repeats: usize = number("BENCH_REPEATS", 3);
    let only = std::env::var("BENCH_ONLY").ok();
    let part = std::env::var("BENCH_PART").ok();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let servers: Vec<Server> = [Peer::Streamgauge, Peer::Kafka]
        .into_iter()
        .filter(|peer| only.as_ref().is_none_or(|only| only == peer.name()))
        .filter_map(Server::start)
        .collect();
    let mut table = Table::default();
    // The first round warms up the JVM and the page cache, and is thrown away.
    for round in 0..=repeats {
        let mut warm_up = Table::default();
        let into = if round == 0 { &mut warm_up } else { &mut table };
        for server in &servers {
            eprintln!(
                "round {round}: {} (pid {})",
                server.peer.name(),
                server.process_id()
            );
            let measure = Measure {
                server,
                runtime: &runtime,
            };
            let wanted = |name: &str| part.as_ref().is_none_or(|part| part == name);
            if wanted("log") {
                for (size, name) in [(1024, "1 KiB"), (100, "100 B")] {
                    for partitions in [1, 4] {
                        measure.produce_and_fetch(round, size, name, partitions, into);
                    }
                }
            }
            if wanted("latency") {
                measure.latency(round, into);
            }
            if wanted("aggregation") && server.peer == Peer::Streamgauge {
                measure.aggregation(into);
            }
        }
    }
    for server in &servers {
        table.add(
            "peak resident memory, MiB",
            server.peer,
            server.resident_mib_max(),
        );
    }
    println!("{}", table.markdown());
    if let Ok(path) = std::env::var("BENCH_JSON") {
        std::fs::write(path, table.json().to_string()).expect("the file can be written");
    }
}

struct Measure<'a> {
    server: &'a Server,
    runtime: &'a tokio::runtime::Runtime,
}

impl Measure<'_> {
    fn client(&self) -> Client {
        let options = ClientOptions::new(&self.server.address().to_string());
        let connecting = Client::connect(options);
        self.runtime
            .block_on(connecting)
            .expect("a client connects")
    }

    fn create(&self, name: &str, partitions: i32, configs: Vec<(String, String)>) {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions: Some(partitions),
            replication_factor: None,
            configs,
        };
        let mut client = self.client();
        let creating = client.create_topic(&topic, false);
        self.runtime.block_on(creating).expect("a topic is made");
        let mut connection = Connection::open(self.server.address());
        for partition in 0..partitions {
            let serves = || connection.serves(name, partition).then_some(());
            assert!(
                poll(RESULTS_TIME_MAX, serves).is_some(),
                "{name} is not served"
            );
        }
    }

    fn delete(&self, name: &str) {
        let mut client = self.client();
        let deleting = client.delete_topic(name);
        self.runtime.block_on(deleting).expect("a topic is deleted");
    }

    /// Wall clock and broker CPU seconds of `load`, run once a partition at the same time.
    fn timed(&self, partitions: i32, load: impl Fn(i32, &mut Connection) + Sync) -> (f64, f64) {
        let mut connections: Vec<Connection> = (0..partitions)
            .map(|_| Connection::open(self.server.address()))
            .collect();
        let (start, cpu) = (Instant::now(), self.server.cpu_seconds());
        thread::scope(|scope| {
            for (partition, connection) in (0..).zip(&mut connections) {
                let load = &load;
                scope.spawn(move || load(partition, connection));
            }
        });
        (
            start.elapsed().as_secs_f64(),
            self.server.cpu_seconds() - cpu,
        )
    }

    fn produce_and_fetch(
        &self,
        round: usize,
        size: usize,
        name: &str,
        partitions: i32,
        table: &mut Table,
    ) {
        let peer = self.server.peer;
        let topic = &format!("bench-{size}-{partitions}p-{round}");
        self.create(topic, partitions, Vec::new());
        let per_batch = (BATCH_BYTES / size).max(1);
        let bytes = batch(per_batch, TIME_ZERO_MS, |index| {
            (0..size).map(|at| (at * 31 + index * 7) as u8).collect()
        });
        let requests = PAYLOAD_BYTES / (per_batch * size) / partitions as usize;
        let records = (requests * per_batch) as i64;
        let million = records as f64 * f64::from(partitions) / 1e6;
        let gigabytes = million * size as f64 / 1e3;
        let row = |what: &str, unit: &str| format!("{what} {name}, {partitions} p: {unit}");

        let frames: Vec<Arc<[u8]>> = (0..partitions)
            .map(|partition| produce_request(topic, partition, &bytes).into())
            .collect();
        let (wall, cpu) = self.timed(partitions, |partition, connection| {
            let frame = &frames[partition as usize];
            connection.produce(topic, (0..requests).map(|_| &frame[..]), IN_FLIGHT);
        });
        table.add(&row("produce", "MB/s"), peer, gigabytes * 1e3 / wall);
        table.add(&row("produce", "broker CPU s/GB"), peer, cpu / gigabytes);
        table.add(
            &row("produce", "broker CPU s/M records"),
            peer,
            cpu / million,
        );

        let (wall, cpu) = self.timed(partitions, |partition, connection| {
            for _ in 0..FETCH_PASSES {
                connection.fetch(topic, partition, 0, records);
            }
        });
        let passes = FETCH_PASSES as f64;
        table.add(&row("fetch", "MB/s"), peer, passes * gigabytes * 1e3 / wall);
        table.add(
            &row("fetch", "broker CPU s/GB"),
            peer,
            cpu / gigabytes / passes,
        );
        table.add(
            &row("fetch", "broker CPU s/M records"),
            peer,
            cpu / million / passes,
        );
        self.delete(topic);
    }

    fn latency(&self, round: usize, table: &mut Table) {
        let peer = self.server.peer;
        let topic = &format!("bench-latency-{round}");
        self.create(topic, 1, Vec::new());
        let bytes = batch(1, TIME_ZERO_MS, |_| vec![7; 100]);
        let request = produce_request(topic, 0, &bytes);
        let cpu = self.server.cpu_seconds();
        let times = latencies(self.server.address(), topic, &request, 0, LATENCY_COUNT);
        let cpu = self.server.cpu_seconds() - cpu;
        let at = |share: f64| times[(share * times.len() as f64) as usize].as_secs_f64() * 1e3;
        table.add("one 100 B record in flight: p50 ms", peer, at(0.5));
        table.add("one 100 B record in flight: p99 ms", peer, at(0.99));
        let each_us = cpu / LATENCY_COUNT as f64 * 1e6;
        table.add("one 100 B record in flight: broker CPU us", peer, each_us);
        self.delete(topic);
    }

    /// A million events of an hour, then the declaration, until its results count every one.
    fn aggregation(&self, table: &mut Table) {
        let peer = self.server.peer;
        self.create("events", 1, Vec::new());
        let requests = EVENTS.div_ceil(EVENTS_PER_BATCH);
        let events = requests * EVENTS_PER_BATCH;
        let frames: Vec<Vec<u8>> = (0..requests)
            .map(|request| {
                let bytes = batch(EVENTS_PER_BATCH, TIME_ZERO_MS, |index| {
                    let number = request * EVENTS_PER_BATCH + index;
                    event(number, TIME_ZERO_MS + (number * 3_600_000 / events) as i64)
                });
                produce_request("events", 0, &bytes)
            })
            .collect();
        // One event two hours on closes every window before it.
        let last = batch(1, TIME_ZERO_MS, |_| event(0, TIME_ZERO_MS + 7_200_000));
        let last = produce_request("events", 0, &last);
        let mut connection = Connection::open(self.server.address());
        let frames = frames.iter().chain([&last]).map(|frame| &frame[..]);
        connection.produce("events", frames, IN_FLIGHT);

        let (start, cpu) = (Instant::now(), self.server.cpu_seconds());
        let configs = vec![("aggregation".to_owned(), DECLARATION.to_owned())];
        self.create("by-shop", 1, configs);
        let options = ConsumerOptions {
            reset: Some(StartOffset::Earliest),
            ..ConsumerOptions::default()
        };
        let mut consumer = Consumer::new(self.client(), options);
        let (mut counted, mut rows) = (0, 0_usize);
        self.runtime.block_on(async {
            let assigned = consumer
                .assign_topic("by-shop", StartOffset::Earliest)
                .await;
            assigned.expect("the result can be read");
            while counted < events as u64 {
                assert!(
                    start.elapsed() < RESULTS_TIME_MAX,
                    "{counted} of {events} are counted"
                );
                let wait = Duration::from_millis(100);
                for record in consumer.poll(wait).await.expect("results come") {
                    let value = record.value.as_deref().unwrap_or_default();
                    let row: serde_json::Value = serde_json::from_slice(value).expect("JSON");
                    counted += row["n"].as_u64().expect("a count");
                    rows += 1;
                }
            }
        });
        let (wall, cpu) = (
            start.elapsed().as_secs_f64(),
            self.server.cpu_seconds() - cpu,
        );
        assert_eq!(
            counted, events as u64,
            "each event is counted once, in {rows} rows"
        );
        let million = events as f64 / 1e6;
        table.add(
            "tumbling 1 min, 5 aggregates: M records/s",
            peer,
            million / wall,
        );
        table.add(
            "tumbling 1 min, 5 aggregates: M records per broker CPU s",
            peer,
            million / cpu,
        );
        self.delete("by-shop");
        self.delete("events");
    }
}

/// About 200 bytes of JSON, 1,000 shops.
fn event(number: usize, time_ms: i64) -> Vec<u8> {
    // A multiplicative hash: shops come in no order, the same in every run.
    let hash = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    format!(
        "{{\"id\":{number},\"shop\":\"u-{}\",\"amount\":{}.{:02},\"currency\":\"EUR\",\"ts\":{time_ms},\
         \"page\":\"/shop/items/{}\",\"agent\":\"Mozilla/5.0 (X11; Linux x86_64)\",\
         \"geo\":{{\"country\":\"NL\",\"city\":\"Utrecht\"}},\"ok\":true}}",
        hash % 1000,
        hash % 500,
        hash % 100,
        hash % 10_000
    )
    .into_bytes()
}
