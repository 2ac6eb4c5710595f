//! Three broker processes that form a cluster, and what can happen to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_protocol::frame::{decode_response, encode_request};
use streamgauge_protocol::messages::error::ParseResponseErrorCode;
use streamgauge_protocol::messages::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use streamgauge_protocol::messages::messages::create_topics_request::CreatableTopic;
use streamgauge_protocol::messages::messages::metadata_request::MetadataRequestTopic;
use streamgauge_protocol::messages::messages::metadata_response::MetadataResponsePartition;
use streamgauge_protocol::messages::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use streamgauge_protocol::messages::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest, DeleteTopicsRequest,
    ListPartitionReassignmentsRequest, MetadataRequest, MetadataResponse, ProduceRequest,
    TopicName,
};
use streamgauge_protocol::messages::protocol::{Decodable, HeaderVersion, Request, StrBytes};

use crate::broker::{free_port, streamgauge};
use crate::fetch::target_dir;
use crate::link::Link;
use crate::process::{connected_ports, poll, spawn, wait};

pub const NODES: [i32; 3] = [1, 2, 3];

const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
const KILL_DELAY: Duration = Duration::from_millis(15);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: usize = 16 << 20;
const METADATA_VERSION: i16 = 9;
const CREATE_TOPICS_VERSION: i16 = 5;
const DELETE_TOPICS_VERSION: i16 = 4;
const PRODUCE_VERSION: i16 = 9;
const NO_REASSIGNMENT_IN_PROGRESS: i16 = 85;

const SETTINGS: [&str; 2] = [
    "default.replication.factor=3",
    "group.initial.rebalance.delay.ms=0",
];

/// Which way a broker is cut off from the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    BothWays,
    /// It hears the others, who do not hear it.
    Outbound,
    /// The others hear it.
    Inbound,
}

struct Node {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
    is_paused: bool,
    is_cut_off: bool,
}

/// The brokers 1, 2 and 3 with a link in each direction between any two; killed when dropped.
///
/// There is one at a time: three brokers and their clients keep a small machine busy.
pub struct Cluster {
    directory: PathBuf,
    settings: Vec<String>,
    nodes: BTreeMap<i32, Node>,
    /// By who dials and who is dialled.
    links: BTreeMap<(i32, i32), Link>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts three brokers and waits until each sees all three.
    pub fn start(name: &str) -> Cluster {
        Cluster::start_prepared(name, &[], |_, _| ())
    }

    /// As [`Cluster::start`], with settings on top of the common ones in which `{id}` is the broker's; `prepare` is given
    /// each broker and its data directory, which it may make, before the brokers start.
    pub fn start_prepared(name: &str, settings: &[&str], prepare: impl Fn(i32, &Path)) -> Cluster {
        static TURN: Mutex<()> = Mutex::new(());
        // A test that failed has dropped its cluster before the lock.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = target_dir()
            .join("e2e")
            .join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let nodes: BTreeMap<i32, Node> = NODES
            .into_iter()
            .map(|id| {
                let node = Node {
                    client_port: free_port(),
                    peer_port: free_port(),
                    child: None,
                    is_paused: false,
                    is_cut_off: false,
                };
                (id, node)
            })
            .collect();
        let mut links = BTreeMap::new();
        for from in NODES {
            for to in NODES.into_iter().filter(|to| *to != from) {
                links.insert((from, to), Link::open(free_port(), nodes[&to].peer_port));
            }
        }
        let mut cluster = Cluster {
            directory,
            settings: SETTINGS
                .iter()
                .chain(settings)
                .map(|&setting| setting.to_owned())
                .collect(),
            nodes,
            links,
            _turn: turn,
        };
        for id in NODES {
            prepare(id, &cluster.data_dir(id));
            cluster.launch(id);
        }
        cluster.wait_until_whole();
        cluster
    }

    /// Hosts and ports for a client.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .ids()
            .into_iter()
            .map(|id| self.address(id).to_string())
            .collect();
        addresses.join(",")
    }

    pub fn address(&self, id: i32) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.nodes[&id].client_port).into()
    }

    /// The directory with the broker's partitions' directories in it.
    pub fn data_dir(&self, id: i32) -> PathBuf {
        self.directory.join(format!("broker-{id}/data"))
    }

    /// A directory that goes away with the cluster, for a test's own files.
    pub fn scratch_dir(&self) -> &Path {
        &self.directory
    }

    /// Starts a broker that does not run, and does not wait for it.
    pub fn launch(&mut self, id: i32) {
        let directory = self.directory.join(format!("broker-{id}"));
        fs::create_dir_all(&directory).expect("a directory for the broker can be made");
        let voters: Vec<String> = NODES
            .iter()
            .map(|voter| match self.links.get(&(id, *voter)) {
                Some(link) => format!("{voter}@127.0.0.1:{}", link.port()),
                None => format!("{voter}@127.0.0.1:{}", self.nodes[&id].peer_port),
            })
            .collect();
        let mut command = streamgauge();
        command
            .args(["serve", "--node-id", &id.to_string(), "--data-dir"])
            .arg(directory.join("data"))
            .args(["--listen", &self.address(id).to_string(), "--set"])
            .arg(format!("controller.quorum.voters={}", voters.join(",")));
        if !NODES.contains(&id) {
            let own = format!("127.0.0.1:{}", self.nodes[&id].peer_port);
            command.args(["--peer-listen", &own]);
        }
        for setting in &self.settings {
            let setting = setting.replace("{id}", &id.to_string());
            command.arg("--set").arg(setting);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(directory.join("broker.log"))
            .expect("a log can be opened");
        command
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a file handle can be doubled"))
            .stdout(log);
        let node = self.node(id);
        assert!(node.child.is_none(), "broker {id} runs already");
        node.child = Some(spawn(command));
        node.is_paused = false;
    }

    /// Starts a broker that was not there before. Its links to the others are as theirs; they dial it where it says that it is.
    pub fn join(&mut self, id: i32) {
        let node = Node {
            client_port: free_port(),
            peer_port: free_port(),
            child: None,
            is_paused: false,
            is_cut_off: false,
        };
        for (to, other) in &self.nodes {
            let link = Link::open(free_port(), other.peer_port);
            self.links.insert((id, *to), link);
        }
        self.nodes.insert(id, node);
        self.launch(id);
    }

    /// kill -9 of a broker that does not come back, and the end of its disk.
    pub fn lose(&mut self, id: i32) {
        self.kill(id);
        fs::remove_dir_all(self.data_dir(id)).expect("files can be removed");
        self.nodes.remove(&id);
    }

    /// The brokers that are not lost.
    pub fn ids(&self) -> Vec<i32> {
        self.nodes.keys().copied().collect()
    }

    /// As `kill -9`.
    pub fn kill(&mut self, id: i32) {
        let mut child = self.node(id).child.take().expect("the broker runs");
        child.kill().expect("the broker can be killed");
        child.wait().expect("the broker can be reaped");
    }

    /// Kills a broker at some point while `work` is done, which asks all brokers.
    pub fn kill_while(&mut self, id: i32, work: impl FnOnce(&Cluster)) {
        let child = self.node(id).child.as_ref().expect("the broker runs");
        let pid = Pid::from_child(child);
        std::thread::scope(|scope| {
            // Time for about half of a first request; when exactly does not matter.
            scope.spawn(move || {
                std::thread::sleep(KILL_DELAY);
                kill_process(pid, Signal::KILL).expect("the broker can be killed");
            });
            work(self);
        });
        let mut child = self.node(id).child.take().expect("the broker was started");
        child.wait().expect("the broker can be reaped");
    }

    /// SIGTERM; waits until the broker has ended, well.
    pub fn stop(&mut self, id: i32) {
        self.signal(id, Signal::TERM);
        let mut child = self.node(id).child.take().expect("the broker runs");
        let status = wait(&mut child, STOP_TIME_MAX);
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        assert!(
            status.is_some_and(|status| status.success()),
            "broker {id} ended with {status:?} within {STOP_TIME_MAX:?} after SIGTERM\n{}",
            self.log_tail(id)
        );
    }

    /// SIGSTOP: the broker stands still and its connections stay open.
    pub fn pause(&mut self, id: i32) {
        self.signal(id, Signal::STOP);
        self.node(id).is_paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: i32) {
        self.signal(id, Signal::CONT);
        self.node(id).is_paused = false;
    }

    /// How a broker that was to end has ended; `None` if it has not within `time_max`.
    pub fn wait_for_end(&mut self, id: i32, time_max: Duration) -> Option<ExitStatus> {
        let node = self.node(id);
        let status = wait(
            node.child.as_mut().expect("the broker was started"),
            time_max,
        )?;
        node.child = None;
        Some(status)
    }

    /// Cuts a broker off from the other two; clients still reach it.
    pub fn cut_off(&mut self, id: i32, cut: Cut) {
        for ((from, to), link) in &self.links {
            let (out, back_in) = match (*from == id, *to == id) {
                (true, _) => (&link.there, &link.back),
                (_, true) => (&link.back, &link.there),
                _ => continue,
            };
            if cut != Cut::Inbound {
                out.cut();
            }
            if cut != Cut::Outbound {
                back_in.cut();
            }
        }
        self.node(id).is_cut_off = true;
    }

    /// Cuts the links between two brokers, who both still reach the third.
    pub fn part(&mut self, one: i32, other: i32) {
        for key in [(one, other), (other, one)] {
            self.links[&key].there.cut();
            self.links[&key].back.cut();
        }
    }

    /// Cuts one direction between two brokers: as if one were cut off so, and from that other broker only.
    pub fn part_one_way(&mut self, one: i32, other: i32, cut: Cut) {
        let (to, from) = (&self.links[&(one, other)], &self.links[&(other, one)]);
        if cut != Cut::Inbound {
            to.there.cut();
            from.back.cut();
        }
        if cut != Cut::Outbound {
            to.back.cut();
            from.there.cut();
        }
    }

    /// Delays all that a broker sends to the others, and they to it.
    pub fn slow_down(&mut self, id: i32, time: Duration) {
        for ((from, to), link) in &self.links {
            if *from == id || *to == id {
                link.there.delay(time);
                link.back.delay(time);
            }
        }
    }

    /// All links are whole.
    pub fn heal(&mut self) {
        for link in self.links.values() {
            link.there.heal();
            link.back.heal();
        }
        for node in self.nodes.values_mut() {
            node.is_cut_off = false;
        }
    }

    /// Bytes that each link has carried so far, there and back, by who dials and who is dialled.
    pub fn carried(&self) -> BTreeMap<(i32, i32), [u64; 2]> {
        let carried = |link: &Link| [link.there.bytes(), link.back.bytes()];
        self.links
            .iter()
            .map(|(between, link)| (*between, carried(link)))
            .collect()
    }

    /// Who has a connection to whom that no link carries: no cut would be felt there.
    pub fn bypasses(&self) -> Vec<(i32, i32)> {
        let mut found = Vec::new();
        for (from, node) in &self.nodes {
            let Some(child) = &node.child else { continue };
            let dialled = connected_ports(child.id());
            let linked = |to: &i32| self.links.contains_key(&(*from, *to));
            for (to, other) in self.nodes.iter().filter(|(to, _)| linked(to)) {
                if dialled.contains(&other.peer_port) {
                    found.push((*from, *to));
                }
            }
        }
        found
    }

    /// Waits until every broker knows of all.
    pub fn wait_until_whole(&mut self) {
        let wanted: BTreeSet<i32> = self.ids().into_iter().collect();
        for id in self.ids() {
            let whole = poll(START_TIME_MAX, || {
                self.assert_runs(id);
                let seen = self.metadata(id, None)?.brokers;
                let seen: BTreeSet<i32> = seen.iter().map(|broker| broker.node_id.0).collect();
                (seen == wanted).then_some(())
            });
            assert!(
                whole.is_some(),
                "broker {id} did not see all others within {START_TIME_MAX:?}\n{}",
                self.log_tail(id)
            );
        }
    }

    /// Waits until all replicas of a topic hold all that is committed.
    pub fn wait_until_in_sync(&self, topic: &str, time_max: Duration) {
        let mut last = Vec::new();
        let in_sync = poll(time_max, || {
            last = self.partitions(topic);
            let whole = last.iter().all(|partition| partition.isr_nodes.len() == 3);
            (!last.is_empty() && whole).then_some(())
        });
        assert!(
            in_sync.is_some(),
            "not in sync after {time_max:?}: {last:?}"
        );
    }

    /// Deletes a topic; no broker that is there has it any more when this returns.
    pub fn delete_topic(&self, topic: &str) {
        let request = DeleteTopicsRequest::default()
            .with_topic_names(vec![name(topic)])
            .with_timeout_ms(2_000);
        let gone = poll(START_TIME_MAX, || {
            for id in self.ready() {
                let _ = self.ask(id, DELETE_TOPICS_VERSION, &request);
            }
            let ready = self.ready();
            let mut told = ready.iter().map(|id| self.metadata(*id, Some(topic)));
            told.all(|told| {
                told.is_some_and(|told| told.topics.iter().all(|topic| topic.error_code == 3))
            })
            .then_some(())
        });
        assert!(gone.is_some(), "{topic} is still there");
    }

    /// One record to that broker with acks=all; `None` if it does not answer.
    pub fn write(&self, id: i32, topic: &str, partition: i32) -> Option<Result<(), ErrorCode>> {
        let batch = BatchBuilder::new()
            .record(1_000, None, Some(b"value"))
            .build()
            .expect("a good batch");
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch));
        let topic = TopicProduceData::default()
            .with_name(name(topic))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(2_000)
            .with_topic_data(vec![topic]);
        let answer = self.ask(id, PRODUCE_VERSION, &request)?;
        let partition = answer.responses.first()?.partition_responses.first()?;
        Some(partition.error_code.err().map_or(Ok(()), Err))
    }

    /// Makes a topic with three replicas; trying again is harmless.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        let request = CreateTopicsRequest::default()
            .with_topics(vec![
                CreatableTopic::default()
                    .with_name(name(topic))
                    .with_num_partitions(partitions)
                    .with_replication_factor(3),
            ])
            .with_timeout_ms(2_000);
        let made = poll(START_TIME_MAX, || {
            for id in self.ready() {
                let _ = self.ask(id, CREATE_TOPICS_VERSION, &request);
                let wanted = usize::try_from(partitions).expect("a count");
                if self.partitions(topic).len() == wanted {
                    return Some(());
                }
            }
            None
        });
        assert!(made.is_some(), "topic {topic} was not made");
    }

    /// Asks for other replicas of a partition, or cancels what was asked for. Waits until the
    /// controller has noted it.
    pub fn reassign(&self, topic: &str, partition: i32, replicas: Option<&[i32]>) {
        let replicas = replicas.map(|replicas| replicas.iter().copied().map(BrokerId).collect());
        let request = AlterPartitionReassignmentsRequest::default().with_topics(vec![
            ReassignableTopic::default()
                .with_name(name(topic))
                .with_partitions(vec![
                    ReassignablePartition::default()
                        .with_partition_index(partition)
                        .with_replicas(replicas),
                ]),
        ]);
        let mut last = None;
        let noted = poll(START_TIME_MAX, || {
            let id = self.ready().into_iter().next()?;
            let answer = self.ask(id, 0, &request)?;
            let code = match answer.error_code {
                0 => answer.responses.first()?.partitions.first()?.error_code,
                code => code,
            };
            last = Some(code);
            // There may be no controller just now; what is done already needs no cancelling.
            (code == 0 || code == NO_REASSIGNMENT_IN_PROGRESS).then_some(())
        });
        assert!(
            noted.is_some(),
            "{topic}-{partition} not reassigned: {last:?}"
        );
    }

    /// Waits until no partition moves any more.
    pub fn wait_until_moved(&self, time_max: Duration) {
        let request = ListPartitionReassignmentsRequest::default().with_topics(None);
        let mut last = None;
        let done = poll(time_max, || {
            let id = self.ready().into_iter().next()?;
            let answer = self.ask(id, 0, &request)?;
            let is_done = answer.error_code == 0 && answer.topics.is_empty();
            last = Some(answer);
            is_done.then_some(())
        });
        assert!(done.is_some(), "still moving after {time_max:?}: {last:?}");
    }

    /// A topic's partitions as the broker that knows the newest leader of each tells.
    pub fn partitions(&self, topic: &str) -> Vec<MetadataResponsePartition> {
        let mut newest = BTreeMap::<i32, MetadataResponsePartition>::new();
        for id in self.ready() {
            let topics = self.metadata(id, Some(topic)).map(|answer| answer.topics);
            for partition in topics
                .into_iter()
                .flatten()
                .flat_map(|topic| topic.partitions)
            {
                let known = newest.get(&partition.partition_index);
                if known.is_none_or(|known| known.leader_epoch < partition.leader_epoch) {
                    newest.insert(partition.partition_index, partition);
                }
            }
        }
        newest.into_values().collect()
    }

    /// Waits until a partition has a leader among the brokers that run and are not cut off.
    pub fn leader(&self, topic: &str, partition: i32) -> i32 {
        let leader = poll(START_TIME_MAX, || {
            let partitions = self.partitions(topic);
            let leader = partitions
                .iter()
                .find(|known| known.partition_index == partition)?
                .leader_id
                .0;
            self.ready().contains(&leader).then_some(leader)
        });
        leader.unwrap_or_else(|| {
            panic!(
                "no leader of {topic}-{partition} within {START_TIME_MAX:?}: {:?}",
                self.partitions(topic)
            )
        })
    }

    /// The controller, as the brokers tell.
    pub fn controller(&self) -> i32 {
        let controller = poll(START_TIME_MAX, || {
            self.ready().into_iter().find_map(|id| {
                let controller = self.metadata(id, None)?.controller_id.0;
                self.ready().contains(&controller).then_some(controller)
            })
        });
        controller.expect("the cluster has a controller")
    }

    pub fn metadata(&self, id: i32, topic: Option<&str>) -> Option<MetadataResponse> {
        let topics =
            topic.map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
        let request = MetadataRequest::default()
            .with_topics(Some(topics.into_iter().collect()))
            .with_allow_auto_topic_creation(false);
        self.ask(id, METADATA_VERSION, &request)
    }

    /// Asks a broker on a connection of its own; `None` if there is no answer in time.
    pub fn ask<R: Request>(&self, id: i32, version: i16, request: &R) -> Option<R::Response>
    where
        R::Response: Decodable + HeaderVersion,
    {
        let deadline = Instant::now() + ANSWER_TIME_MAX;
        let mut stream = TcpStream::connect_timeout(&self.address(id), ANSWER_TIME_MAX).ok()?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX)).ok()?;
        let frame = encode_request(1, "cluster", version, request).expect("it can be encoded");
        stream.write_all(&frame).ok()?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let length = u32::from_be_bytes(length) as usize;
        assert!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).ok()?;
        assert!(
            Instant::now() < deadline + ANSWER_TIME_MAX,
            "an answer came in drops"
        );
        let (_, answer) = decode_response(Bytes::from(answer), version).ok()?;
        Some(answer)
    }

    /// The brokers that run, go on and are not cut off.
    pub fn ready(&self) -> Vec<i32> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.child.is_some() && !node.is_paused && !node.is_cut_off)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Panics with its log if a broker that should run has ended.
    pub fn assert_runs(&mut self, id: i32) {
        let child = self
            .node(id)
            .child
            .as_mut()
            .expect("the broker was started");
        if let Some(status) = child.try_wait().expect("the broker can be asked for") {
            panic!("broker {id} ended with {status}\n{}", self.log_tail(id));
        }
    }

    /// The end of what a broker said, and where the rest is.
    pub fn log_tail(&self, id: i32) -> String {
        let path = self.directory.join(format!("broker-{id}/broker.log"));
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        format!("--- end of {}\n{}\n---", path.display(), tail.join("\n"))
    }

    fn node(&mut self, id: i32) -> &mut Node {
        self.nodes
            .get_mut(&id)
            .expect("there are brokers 1, 2 and 3")
    }

    fn signal(&mut self, id: i32, signal: Signal) {
        let child = self.node(id).child.as_ref().expect("the broker runs");
        kill_process(Pid::from_child(child), signal).expect("the broker can be signalled");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self
            .nodes
            .values_mut()
            .filter_map(|node| node.child.as_mut())
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for id in NODES {
                eprintln!("{}", self.log_tail(id));
            }
        } else {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}
