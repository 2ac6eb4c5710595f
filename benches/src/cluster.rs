//! Three broker processes that form a cluster, ours or Apache Kafka's.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use streamgauge_protocol::frame::{decode_response, encode_request};
use streamgauge_protocol::messages::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use streamgauge_protocol::messages::messages::create_topics_request::CreatableTopic;
use streamgauge_protocol::messages::messages::metadata_request::MetadataRequestTopic;
use streamgauge_protocol::messages::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest,
    ListPartitionReassignmentsRequest, MetadataRequest, TopicName,
};
use streamgauge_protocol::messages::protocol::{Decodable, HeaderVersion, Request, StrBytes};
use streamgauge_tests::broker::{free_port, streamgauge};
use streamgauge_tests::fetch::{kafka_jars, target_dir};
use streamgauge_tests::process::{poll, run, spawn};

use crate::server::{KAFKA_JVM_OPTIONS, Peer, cpu_seconds_of};

pub const NODES: usize = 3;
const TIME_MAX: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

struct Node {
    port: u16,
    peer_port: u16,
    child: Option<Child>,
}

/// Three brokers; killed, and their directories removed, when dropped.
pub struct Cluster {
    pub peer: Peer,
    directory: PathBuf,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts three brokers and waits until they have formed a cluster. `None`, loudly, when Kafka's runtime is missing here.
    ///
    /// # Panics
    /// As everything here: if a broker does not do what it should.
    pub fn start(peer: Peer) -> Option<Self> {
        if peer == Peer::Kafka {
            kafka_jars()?;
        }
        let name = format!("cluster-{}-{}", peer.name(), std::process::id());
        let directory = target_dir().join("benches").join(name);
        let _ = fs::remove_dir_all(&directory);
        let nodes = (0..NODES).map(|_| Node {
            port: free_port(),
            peer_port: free_port(),
            child: None,
        });
        let mut cluster = Self {
            peer,
            directory,
            nodes: nodes.collect(),
        };
        for id in 1..=NODES {
            fs::create_dir_all(cluster.directory_of(id)).expect("a directory can be made");
            if peer == Peer::Kafka {
                cluster.format(id);
            }
            cluster.launch(id);
        }
        cluster.wait_until_whole();
        Some(cluster)
    }

    fn directory_of(&self, id: usize) -> PathBuf {
        self.directory.join(id.to_string())
    }

    pub fn address(&self, id: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.nodes[id - 1].port).into()
    }

    /// The other brokers' way to each, as `controller.quorum.voters` has it.
    fn voters(&self) -> String {
        let voters = (1..).zip(&self.nodes);
        let voters: Vec<String> = voters
            .map(|(id, node)| format!("{id}@127.0.0.1:{}", node.peer_port))
            .collect();
        voters.join(",")
    }

    pub fn launch(&mut self, id: usize) {
        let directory = self.directory_of(id);
        let mut command = match self.peer {
            Peer::Streamgauge => {
                let mut command = streamgauge();
                command.arg("serve").arg("--data-dir");
                command.arg(directory.join("data"));
                command.args(["--listen", &self.address(id).to_string()]);
                command.args(["--node-id", &id.to_string()]);
                command.args(["--peers", &self.voters()]);
                command.args(["--set", "min.insync.replicas=2"]);
                command
            }
            Peer::Kafka => {
                let mut command = kafka_java();
                command.arg("kafka.Kafka");
                command.arg(directory.join("server.properties"));
                command
            }
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(directory.join("broker.log"))
            .expect("a log can be made");
        command
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a file handle can be doubled"))
            .stdout(log);
        self.nodes[id - 1].child = Some(spawn(command));
    }

    fn format(&self, id: usize) {
        let directory = self.directory_of(id);
        let node = &self.nodes[id - 1];
        let properties = directory.join("server.properties");
        let text = format!(
            "process.roles=broker,controller\nnode.id={id}\ncontroller.quorum.voters={}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n\
             min.insync.replicas=2\n",
            self.voters(),
            node.peer_port,
            directory.join("data").display(),
            port = node.port,
        );
        fs::write(&properties, text).expect("the properties can be written");
        let mut format = kafka_java();
        format
            .args(["kafka.tools.StorageTool", "format"])
            .args(["-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c"])
            .arg(&properties);
        run(format, TIME_MAX).expect_success("formatting Kafka's directory");
    }

    pub fn kill(&mut self, id: usize) {
        if let Some(mut child) = self.nodes[id - 1].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// User and system time of all brokers that run.
    pub fn cpu_seconds(&self) -> f64 {
        let running = self.nodes.iter().filter_map(|node| node.child.as_ref());
        running.map(|child| cpu_seconds_of(child.id())).sum()
    }

    /// Waits until every broker tells of all.
    pub fn wait_until_whole(&self) {
        let whole = poll(TIME_MAX, || {
            (1..=NODES)
                .all(|id| {
                    let request = MetadataRequest::default().with_topics(Some(Vec::new()));
                    self.ask(id, 9, &request)
                        .is_some_and(|told| told.brokers.len() == NODES)
                })
                .then_some(())
        });
        assert!(whole.is_some(), "{} forms no cluster", self.peer.name());
    }

    pub fn create(&self, topic: &str, partitions: i32, replicas: i16) {
        let request = CreateTopicsRequest::default()
            .with_topics(vec![
                CreatableTopic::default()
                    .with_name(name(topic))
                    .with_num_partitions(partitions)
                    .with_replication_factor(replicas),
            ])
            .with_timeout_ms(60_000);
        let made = poll(TIME_MAX, || {
            let _ = (1..=NODES).find_map(|id| self.ask(id, 5, &request));
            (self.led(topic) == partitions as usize).then_some(())
        });
        assert!(made.is_some(), "{topic} is not led everywhere");
    }

    /// How many partitions of a topic have leaders, as the first broker that answers knows.
    pub fn led(&self, topic: &str) -> usize {
        self.leaders(topic)
            .iter()
            .filter(|(_, leader)| *leader > 0)
            .count()
    }

    /// Partitions with their leaders.
    pub fn leaders(&self, topic: &str) -> Vec<(i32, i32)> {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![
                MetadataRequestTopic::default().with_name(Some(name(topic))),
            ]))
            .with_allow_auto_topic_creation(false);
        let told = (1..=NODES).find_map(|id| self.ask(id, 9, &request));
        let topics = told.map_or_else(Vec::new, |told| told.topics);
        let partitions = topics.into_iter().flat_map(|topic| topic.partitions);
        partitions
            .map(|known| (known.partition_index, known.leader_id.0))
            .collect()
    }

    /// Moves a partition and waits until that is done.
    pub fn reassign(&self, topic: &str, partition: i32, replicas: &[i32]) -> Duration {
        let replicas = replicas.iter().copied().map(BrokerId).collect();
        let begun = Instant::now();
        let request = AlterPartitionReassignmentsRequest::default().with_topics(vec![
            ReassignableTopic::default()
                .with_name(name(topic))
                .with_partitions(vec![
                    ReassignablePartition::default()
                        .with_partition_index(partition)
                        .with_replicas(Some(replicas)),
                ]),
        ]);
        let list = ListPartitionReassignmentsRequest::default().with_topics(None);
        let answer = self.ask(1, 0, &request).expect("an answer");
        assert_eq!(answer.error_code, 0);
        let done = poll(TIME_MAX, || {
            let listed = self.ask(1, 0, &list)?;
            (listed.error_code == 0 && listed.topics.is_empty()).then_some(())
        });
        assert!(done.is_some(), "{topic}-{partition} moves for ever");
        begun.elapsed()
    }

    /// Asks a broker on a connection of its own.
    pub fn ask<R: Request>(&self, id: usize, version: i16, request: &R) -> Option<R::Response>
    where
        R::Response: Decodable + HeaderVersion,
    {
        let mut stream = TcpStream::connect(self.address(id)).ok()?;
        stream.set_read_timeout(Some(TIME_MAX)).ok()?;
        let frame = encode_request(1, "bench", version, request).expect("it can be encoded");
        stream.write_all(&frame).ok()?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).ok()?;
        let (_, answer) = decode_response(Bytes::from(answer), version).ok()?;
        Some(answer)
    }

    /// How long until it is so.
    pub fn time_until(&self, so: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !so(self) {
            assert!(begun.elapsed() < TIME_MAX, "it does not come to that");
            std::thread::sleep(LOOK_INTERVAL);
        }
        begun.elapsed()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 1..=NODES {
            self.kill(id);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn kafka_java() -> Command {
    let jars: PathBuf = kafka_jars().expect("looked for already").join("*");
    let mut command = Command::new("java");
    command
        .args(KAFKA_JVM_OPTIONS)
        .arg("-cp")
        .arg(Path::new(&jars));
    command
}
