//! A client program that writes and reads while things break, and what it has said so far.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use streamgauge_tests::cluster::Cluster;
use streamgauge_tests::fetch::{java, python};
use streamgauge_tests::history::{Event, PartitionLog, anomalies};
use streamgauge_tests::process::{poll, spawn, wait};
use streamgauge_tests::{replica, transactions};

pub const TOPIC: &str = "history";
/// What is copied of it in transactions.
const COPIES: &str = "history-out";
pub const PARTITIONS: i32 = 6;
const PRODUCERS: usize = 2;
const CONSUMERS: usize = 2;

/// A fault that a majority survives must not hold anything up for longer.
const OUTAGE_MAX: Duration = Duration::from_secs(40);
const FINISH_TIME_MAX: Duration = Duration::from_secs(200);

/// Whose clients write and read.
#[derive(Clone, Copy)]
pub enum Clients {
    Librdkafka,
    Java,
    /// In transactions, and a group that copies what is committed.
    LibrdkafkaTransactions,
    JavaTransactions,
}

impl Clients {
    /// As `CLUSTER_CLIENTS` says; by default those.
    pub fn chosen(self) -> Clients {
        match std::env::var("CLUSTER_CLIENTS").as_deref() {
            Ok("librdkafka") => Clients::Librdkafka,
            Ok("java") => Clients::Java,
            Ok("librdkafka-transactions") => Clients::LibrdkafkaTransactions,
            Ok("java-transactions") => Clients::JavaTransactions,
            Ok(other) => panic!(
                "CLUSTER_CLIENTS is {other}; it can be librdkafka or java, and -transactions of both"
            ),
            Err(_) => self,
        }
    }

    fn use_transactions(self) -> bool {
        matches!(
            self,
            Clients::LibrdkafkaTransactions | Clients::JavaTransactions
        )
    }

    /// The program that they run; `None` if they are missing.
    fn program(self) -> Option<Command> {
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster");
        let python = || {
            let mut python = Command::new(python()?);
            python.arg("-B");
            Some(python)
        };
        let (mut command, program) = match self {
            Clients::Librdkafka => (python()?, "workload.py"),
            Clients::LibrdkafkaTransactions => (python()?, "transactions.py"),
            Clients::Java => (java()?, "Workload.java"),
            Clients::JavaTransactions => (java()?, "Transactions.java"),
        };
        command.arg(format!("{here}/{program}"));
        Some(command)
    }
}

pub struct Workload {
    clients: Clients,
    child: Child,
    input: Option<ChildStdin>,
    reader: JoinHandle<()>,
    said: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    history: Vec<Event>,
    /// By producer and partition: the next number to be sent, and the next to be acknowledged.
    sent: HashMap<(u32, i32), u64>,
    acknowledged: HashMap<(u32, i32), u64>,
    /// By producer and partition: when something was last acknowledged.
    heard: HashMap<(u32, i32), Instant>,
    silence_max: Duration,
}

impl Workload {
    /// Makes the topic, starts the clients and waits until they write everywhere; `None` if the clients are missing.
    pub fn start(cluster: &Cluster, clients: Clients) -> Option<Workload> {
        let mut command = clients.program()?;
        cluster.create_topic(TOPIC, PARTITIONS);
        if clients.use_transactions() {
            cluster.create_topic(COPIES, PARTITIONS);
        }
        let log = fs::File::create(cluster.scratch_dir().join("clients.log"));
        command
            .args([&cluster.bootstrap(), TOPIC, &PARTITIONS.to_string()])
            .args([PRODUCERS.to_string(), CONSUMERS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.expect("a log can be made"));
        let mut child = spawn(command);
        let said = Arc::new(Mutex::new(Said::default()));
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let hearing = Arc::clone(&said);
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = line.parse().expect("a line of a history");
                hearing.lock().expect("said").hear(event);
            }
        });
        let mut workload = Workload {
            clients,
            input: child.stdin.take(),
            child,
            reader,
            said,
        };
        workload.wait_until_written("the start");
        Some(workload)
    }

    /// Waits until every producer has had something acknowledged in every partition that it sent after this was called.
    /// Says how long that took, which is how long a fault that has just happened held somebody up.
    pub fn wait_until_written(&mut self, after: &str) -> Duration {
        let begun = Instant::now();
        let sent = self.said.lock().expect("said").sent.clone();
        let mut late = Vec::new();
        let written = poll(OUTAGE_MAX, || {
            let ended = self.child.try_wait().expect("the clients can be asked for");
            let said = self.said.lock().expect("said");
            assert!(
                ended.is_none(),
                "the clients ended with {ended:?}, and said {:?}",
                said.history.last()
            );
            late = (1..=PRODUCERS as u32)
                .flat_map(|producer| (0..PARTITIONS).map(move |partition| (producer, partition)))
                .filter(|key| {
                    let sent = sent.get(key).copied().unwrap_or(0);
                    said.acknowledged.get(key).is_none_or(|next| *next <= sent)
                })
                .collect();
            late.is_empty().then_some(())
        });
        assert!(
            written.is_some(),
            "{OUTAGE_MAX:?} after {after} producers still wait at partitions: {late:?}"
        );
        let took = begun.elapsed();
        println!(
            "{after}: all producers wrote everywhere after {} ms",
            took.as_millis()
        );
        took
    }

    /// The longest time that a producer went without an acknowledgement from a partition, of those that ended since this
    /// was last asked.
    pub fn silence_max(&self) -> Duration {
        std::mem::take(&mut self.said.lock().expect("said").silence_max)
    }

    /// As [`Self::wait_until_written`], and then until so much time has passed since `begun`.
    pub fn write_until(&mut self, begun: Instant, time: Duration) {
        while begun.elapsed() < time {
            thread::sleep(Duration::from_millis(10));
        }
        self.wait_until_written("the wait");
    }

    /// What clients were told of errors that a caller would see.
    pub fn failed(&self) -> Vec<String> {
        let said = self.said.lock().expect("said");
        let failed = said.history.iter().filter_map(|event| match event {
            Event::Fail(value, why) => Some(format!("{value}: {why}")),
            _ => None,
        });
        failed.collect()
    }

    /// Lets the clients end, stops the brokers, and checks the history against all three replicas. Hands back the last
    /// epoch of any producer.
    pub fn finish(mut self, cluster: &mut Cluster) -> i16 {
        cluster.wait_until_in_sync(TOPIC, OUTAGE_MAX);
        drop(self.input.take());
        let Some(status) = wait(&mut self.child, FINISH_TIME_MAX) else {
            let _ = self.child.kill();
            panic!("the clients had not ended after {FINISH_TIME_MAX:?}");
        };
        self.reader.join().expect("a readable history");
        let said = Arc::into_inner(self.said).expect("the reader has ended");
        let history = said.into_inner().expect("said").history;
        let notes: Vec<&Event> = history
            .iter()
            .filter(|event| matches!(event, Event::Note(_)))
            .collect();
        assert!(
            status.success() && history.last() == Some(&Event::Done),
            "the clients ended with {status}; they noted {:#?}",
            &notes[notes.len().saturating_sub(20)..]
        );
        cluster.wait_until_in_sync(TOPIC, OUTAGE_MAX);
        for id in cluster.ids() {
            cluster.stop(id);
        }
        let (logs, producer_epoch) = same_logs(cluster);
        let found = match self.clients.use_transactions() {
            true => transactions::anomalies(&history),
            false => anomalies(&history, &logs),
        };
        let acknowledged = history
            .iter()
            .filter(|event| matches!(event, Event::Ack(..)))
            .count();
        let read = history
            .iter()
            .filter(|event| matches!(event, Event::Read(..)))
            .count();
        println!(
            "{acknowledged} values acknowledged, {read} read by the group, {} notes of the clients, {} anomalies",
            notes.len(),
            found.len()
        );
        if !found.is_empty() {
            let path = cluster.scratch_dir().join("history");
            let text: Vec<String> = history.iter().map(|event| format!("{event:?}")).collect();
            let _ = fs::write(&path, text.join("\n"));
            panic!("{found:#?}\nthe history is {}", path.display());
        }
        producer_epoch
    }
}

impl Said {
    fn hear(&mut self, event: Event) {
        let (next, value) = match &event {
            Event::Send(value) => (&mut self.sent, value),
            Event::Ack(value, _) => {
                let now = Instant::now();
                let key = (value.producer, value.partition);
                if let Some(before) = self.heard.insert(key, now) {
                    self.silence_max = self.silence_max.max(now - before);
                }
                (&mut self.acknowledged, value)
            }
            _ => {
                self.history.push(event);
                return;
            }
        };
        let next = next.entry((value.producer, value.partition)).or_default();
        *next = (*next).max(value.number + 1);
        self.history.push(event);
    }
}

/// The logs, which must be the same on all replicas, and the last epoch of any producer.
fn same_logs(cluster: &Cluster) -> (BTreeMap<i32, PartitionLog>, i16) {
    let mut last_epoch = 0;
    let mut logs = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let mut replicas = cluster
            .ids()
            .into_iter()
            .map(|id| replica::records(&cluster.data_dir(id).join(format!("{TOPIC}-{partition}"))));
        let one = replicas.next().expect("three brokers");
        assert!(
            replicas.all(|other| other == one),
            "the replicas of partition {partition} differ"
        );
        let mut log = PartitionLog::new();
        for record in one {
            if record.is_control {
                continue;
            }
            last_epoch = last_epoch.max(record.producer_epoch);
            let value = record.value.parse().expect("a value of the workload");
            log.push((record.offset, value));
        }
        logs.insert(partition, log);
    }
    (logs, last_epoch)
}
