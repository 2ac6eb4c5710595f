//! Three shards that hold a partition together, without threads: what `min.insync.replicas` asks.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_storage::disk::Disk;
use streamgauge_storage::disk::real::RealDisk;
use streamgauge_storage::disk::sim::{Faults, SimDisk};
use streamgauge_storage::producer_state::AppendOrigin;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::core::{Shard, ShardSettings};
use super::event::{
    Acks, Append, AppendError, Appended, Effect, Event, OpenPartition, OpenedPartition, PartitionId,
};
use super::view::{PartitionKey, PartitionView};
use crate::config::{ConfigLoader, TopicConfig};
use crate::peers::GroupMessage;
use crate::replication::membership::Target;
use crate::replication::raft_id;

const NODES: i32 = 3;

pub(super) type Answer = oneshot::Receiver<Result<Appended, AppendError>>;

pub(super) struct Node {
    pub(super) shard: Shard,
    pub(super) id: PartitionId,
    pub(super) view: Arc<PartitionView>,
    /// Nothing comes from it or reaches it.
    pub(super) is_cut_off: bool,
}

pub(super) struct Trio {
    pub(super) nodes: Vec<Node>,
    pub(super) now_ms: i64,
    /// By whom, to whom and what so far.
    sent: Vec<(i32, i32, GroupMessage)>,
    directory: tempfile::TempDir,
    config: Arc<TopicConfig>,
}

impl Trio {
    pub(super) fn start(min_insync_replicas: i32) -> Self {
        Self::start_on(min_insync_replicas, |_| Arc::new(RealDisk))
    }

    fn start_on(min_insync_replicas: i32, disk: impl Fn(i32) -> Arc<dyn Disk>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let defaults = ConfigLoader::new().finish("test").unwrap().topic_defaults;
        let config = Arc::new(TopicConfig {
            min_insync_replicas,
            ..defaults
        });
        let nodes = (0..NODES)
            .map(|node| {
                let directory = directory.path().join(node.to_string());
                start_node(disk(node), &directory, node, &config)
            })
            .collect();
        let mut trio = Self {
            nodes,
            now_ms: 0,
            sent: Vec::new(),
            directory,
            config,
        };
        trio.run(3_000);
        assert!(
            trio.nodes[0].view.is_serving(),
            "the preferred replica leads"
        );
        trio
    }

    /// Lets time pass, and all that is written, synced and sent happen.
    pub(super) fn run(&mut self, for_ms: i64) {
        let end_ms = self.now_ms + for_ms;
        loop {
            self.settle();
            if self.now_ms >= end_ms {
                return;
            }
            self.now_ms += 100;
            for node in &mut self.nodes {
                node.shard.handle(Event::Tick, self.now_ms);
            }
        }
    }

    fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            let mut sent = Vec::new();
            let mut pulses = Vec::new();
            for (node, broker) in self.nodes.iter_mut().zip(0..) {
                while let Some(Effect::Sync { round, .. }) = node.shard.flush(self.now_ms) {
                    let result = Ok(());
                    node.shard
                        .handle(Event::Synced { round, result }, self.now_ms);
                    is_quiet = false;
                }
                let outbox = node.shard.take_outbox();
                let marks = node.shard.take_pulses();
                if !node.is_cut_off {
                    let copies = outbox.iter().cloned();
                    self.sent
                        .extend(copies.map(|(to, message)| (broker, to, message)));
                    sent.extend(outbox);
                    pulses.extend(marks.into_iter().map(|(to, mark)| (to, broker, mark)));
                }
            }
            for (to, message) in sent {
                let node = &mut self.nodes[usize::try_from(to).unwrap()];
                if !node.is_cut_off {
                    let messages = vec![message];
                    node.shard.handle(Event::Raft { messages }, self.now_ms);
                    is_quiet = false;
                }
            }
            for (to, broker, mark) in pulses {
                let node = &mut self.nodes[usize::try_from(to).unwrap()];
                if !node.is_cut_off {
                    node.shard
                        .handle(Event::Pulse { broker, mark }, self.now_ms);
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    /// How many replicas are awake.
    fn awake(&self) -> usize {
        self.nodes.iter().map(|node| node.shard.awake_count()).sum()
    }

    /// Until the group rests.
    fn rest(&mut self) {
        for _ in 0..40 {
            self.run(100);
            if self.awake() == 0 {
                return;
            }
        }
        panic!("{} replicas do not rest", self.awake());
    }

    /// That broker hears what members the group is to have.
    fn assign(&mut self, node: i32, epoch: u64, brokers: &[i32]) {
        let now_ms = self.now_ms;
        let node = &mut self.nodes[usize::try_from(node).unwrap()];
        let (partition, target) = (node.id, target(epoch, brokers));
        node.shard
            .handle(Event::Assign { partition, target }, now_ms);
    }

    /// That broker hears that its replica is out since that epoch, and then that it is wanted again.
    fn replace(&mut self, node: i32, out_since: u64, epoch: u64, brokers: &[i32]) {
        let now_ms = self.now_ms;
        let directory = self.directory.path().join(node.to_string());
        let node = &mut self.nodes[usize::try_from(node).unwrap()];
        let (reply, _done) = oneshot::channel();
        let removal = Event::Delete {
            partition: node.id,
            lives_on: Some(out_since),
            reply,
        };
        node.shard.handle(removal, now_ms);
        let target = target(epoch, brokers);
        let opened = open(&mut node.shard, &directory, &self.config, target, now_ms);
        (node.id, node.view) = (opened.id, opened.view);
    }

    fn is_served_by(&self, node: usize) -> bool {
        self.nodes[node].view.is_serving()
    }

    fn append(&mut self, acks: Acks, wait_ms_max: i64) -> Answer {
        let mut batch = BatchBuilder::new();
        batch.push(self.now_ms, None, Some(b"value"), &[]);
        self.append_to(0, batch.build().unwrap(), |append| {
            (append.acks, append.wait_ms_max) = (acks, wait_ms_max);
        })
    }

    /// A batch of an idempotent producer.
    fn produce(&mut self, node: usize, sequence: i32) -> Result<Appended, AppendError> {
        let mut batch = BatchBuilder::new().producer(7, 0, sequence);
        batch.push(self.now_ms, None, Some(b"value"), &[]);
        let mut answer = self.append_to(node, batch.build().unwrap(), |_| {});
        answer.try_recv().unwrap()
    }

    /// Appends a client's batch to that broker's replica, or one that `with` says more of.
    pub(super) fn append_to(
        &mut self,
        node: usize,
        batch: Bytes,
        with: impl FnOnce(&mut Append),
    ) -> Answer {
        let (reply, answer) = oneshot::channel();
        let mut append = Append {
            batch,
            acks: Acks::All,
            origin: AppendOrigin::Client,
            guard: None,
            leader_epoch: None,
            wait_ms_max: 10_000,
            reply,
        };
        with(&mut append);
        let leader = &mut self.nodes[node];
        leader
            .shard
            .handle(Event::Append(leader.id, append), self.now_ms);
        self.settle();
        answer
    }
}

fn start_node(
    disk: Arc<dyn Disk>,
    directory: &std::path::Path,
    node: i32,
    config: &Arc<TopicConfig>,
) -> Node {
    let mut shard = open_shard(disk, directory, node);
    let opened = open(&mut shard, directory, config, Target::default(), 0);
    Node {
        shard,
        id: opened.id,
        view: opened.view,
        is_cut_off: false,
    }
}

fn open_shard(disk: Arc<dyn Disk>, directory: &std::path::Path, node: i32) -> Shard {
    let settings = ShardSettings {
        broker_id: node,
        number: 0,
        directory: directory.join("raft-state-0"),
        retention_check_interval_ms: 1_000_000,
        producer_expiration_ms: 1_000_000,
        seed: 7 + u64::from(node.unsigned_abs()),
        quotas: Arc::default(),
    };
    Shard::open(settings, disk, 0).unwrap()
}

fn open(
    shard: &mut Shard,
    directory: &std::path::Path,
    config: &Arc<TopicConfig>,
    target: Target,
    now_ms: i64,
) -> OpenedPartition {
    let (reply, mut opened) = oneshot::channel();
    let open = OpenPartition {
        key: PartitionKey {
            topic_id: Uuid::from_u128(9),
            index: 0,
        },
        topic: Arc::from("t"),
        directory: PathBuf::from(directory).join("t-0"),
        config: Arc::clone(config),
        founders: (0..NODES).collect(),
        target,
        may_be_removed: true,
        reply,
    };
    shard.handle(Event::Open(Box::new(open)), now_ms);
    opened.try_recv().unwrap().unwrap()
}

fn target(epoch: u64, brokers: &[i32]) -> Target {
    Target {
        epoch,
        voters: brokers.iter().map(|broker| raft_id(*broker)).collect(),
        learners: Vec::new(),
    }
}

/// It is the last to hear that it was out and is in again: its former self is not counted on meanwhile.
#[test]
fn a_replica_that_is_about_to_be_removed_stands_in_for_no_later_one() {
    for hears_of_the_first in [false, true] {
        let mut trio = Trio::start(1);
        assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
        for node in [0, 1] {
            trio.assign(node, 1, &[0, 1]);
        }
        if hears_of_the_first {
            trio.assign(2, 1, &[0, 1]);
        }
        trio.run(2_000);
        assert_eq!(trio.nodes[0].view.settled(), 1);
        for node in [0, 1] {
            trio.assign(node, 2, &[0, 1, 2]);
        }
        assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
        trio.run(2_000);
        assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1]);
        assert_eq!(trio.nodes[0].view.settled(), 1);
        trio.replace(2, 1, 2, &[0, 1, 2]);
        trio.run(3_000);
        assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1, 2]);
        assert_eq!(trio.nodes[0].view.settled(), 2);
        assert_eq!(trio.nodes[2].view.high_watermark(), 2);
        // It can be counted on.
        trio.nodes[1].is_cut_off = true;
        assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
    }
}

/// An acknowledgement of a replica that has been removed since comes late.
#[test]
fn what_a_removed_replica_said_does_not_count_for_its_successor() {
    let mut trio = Trio::start(1);
    assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
    for node in [0, 1, 2] {
        trio.assign(node, 1, &[0, 1]);
    }
    trio.run(2_000);
    assert_eq!(trio.nodes[0].view.settled(), 1);
    trio.replace(2, 1, 2, &[0, 1, 2]);
    trio.nodes[2].is_cut_off = true;
    for node in [0, 1] {
        trio.assign(node, 2, &[0, 1, 2]);
    }
    trio.run(500);
    let said = trio
        .sent
        .iter()
        .filter(|(from, to, _)| (*from, *to) == (2, 0));
    let messages = said.map(|(_, _, message)| message.clone()).collect();
    trio.nodes[0]
        .shard
        .handle(Event::Raft { messages }, trio.now_ms);
    let (reply, mut positions) = oneshot::channel();
    let partition = trio.nodes[0].id;
    let ask = Event::Replicas { partition, reply };
    trio.nodes[0].shard.handle(ask, trio.now_ms);
    let positions = positions.try_recv().unwrap().unwrap();
    let held: Vec<(i32, bool)> = positions
        .iter()
        .map(|position| (position.broker, position.log_end_offset > 0))
        .collect();
    assert_eq!(held, [(0, true), (1, true), (2, false)]);
    trio.nodes[2].is_cut_off = false;
    trio.run(3_000);
    assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1, 2]);
    trio.nodes[1].is_cut_off = true;
    assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
}

#[test]
fn a_write_is_refused_before_it_is_appended_if_too_few_replicas_are_in_sync() {
    let mut trio = Trio::start(3);
    assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
    trio.nodes[2].is_cut_off = true;
    trio.run(3_000);
    assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1]);
    let refused = trio.append(Acks::All, 1_000).try_recv().unwrap();
    let too_few = AppendError::NotEnoughReplicas {
        in_sync: 2,
        wanted: 3,
    };
    assert_eq!(refused, Err(too_few));
    assert_eq!(
        trio.nodes[0].view.high_watermark(),
        1,
        "nothing was written"
    );
    assert!(trio.append(Acks::Leader, 1_000).try_recv().unwrap().is_ok());
    trio.nodes[2].is_cut_off = false;
    trio.run(3_000);
    assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
}

/// A coordinator whose leadership was lost and won again must not write what it decided before.
#[test]
fn what_was_decided_in_an_earlier_epoch_is_not_written() {
    let mut trio = Trio::start(1);
    let epoch = trio.nodes[0].view.leader_epoch();
    let batch = || {
        let batch = BatchBuilder::new().record(1, None, Some(b"decided"));
        batch.build().unwrap()
    };
    let mut write = |epoch| {
        let mut answer = trio.append_to(0, batch(), |append| append.leader_epoch = Some(epoch));
        answer.try_recv().unwrap()
    };
    assert_eq!(write(epoch - 1), Err(AppendError::NotLeader));
    assert!(write(epoch).is_ok());
}

#[test]
fn a_write_waits_for_more_than_a_majority_and_is_told_when_they_do_not_come() {
    let mut trio = Trio::start(3);
    trio.nodes[2].is_cut_off = true;
    // It counts as in sync still.
    let mut comes_back = trio.append(Acks::All, 60_000);
    assert_eq!(trio.nodes[0].view.high_watermark(), 1, "committed");
    assert!(comes_back.try_recv().is_err(), "not answered yet");
    trio.nodes[2].is_cut_off = false;
    trio.run(1_000);
    assert!(comes_back.try_recv().unwrap().is_ok());

    trio.nodes[2].is_cut_off = true;
    let mut overdue = trio.append(Acks::All, 500);
    trio.run(600);
    let wanted = 3;
    let error = AppendError::NotEnoughReplicasAfterAppend { wanted };
    assert_eq!(overdue.try_recv().unwrap(), Err(error));
}

#[test]
fn a_write_that_no_majority_takes_times_out() {
    let mut trio = Trio::start(1);
    trio.nodes[1].is_cut_off = true;
    trio.nodes[2].is_cut_off = true;
    let mut overdue = trio.append(Acks::All, 300);
    trio.run(400);
    assert_eq!(overdue.try_recv().unwrap(), Err(AppendError::TimedOut));
}

#[test]
fn replicas_stay_in_sync_while_nothing_is_written() {
    let mut trio = Trio::start(3);
    for _ in 0..60 {
        trio.run(100);
        assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1, 2]);
    }
}

#[test]
fn a_group_in_which_nothing_happens_rests_and_says_nothing() {
    let mut trio = Trio::start(3);
    trio.rest();
    for _ in 0..100 {
        trio.now_ms += 100;
        for node in &mut trio.nodes {
            node.shard.handle(Event::Tick, trio.now_ms);
            assert!(node.shard.flush(trio.now_ms).is_none());
            assert_eq!(node.shard.take_outbox(), []);
        }
        trio.settle();
    }
    assert_eq!(trio.awake(), 0);
    assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
    assert!(trio.awake() > 0);
    trio.run(1_000);
    let high_watermarks = trio.nodes.iter().map(|node| node.view.high_watermark());
    assert_eq!(high_watermarks.collect::<Vec<_>>(), [1, 1, 1]);
    assert!(trio.is_served_by(0), "no election was held meanwhile");
    assert_eq!(trio.nodes[0].view.leader_epoch(), 0);
    trio.rest();
}

#[test]
fn a_resting_leader_that_is_cut_off_steps_down_and_another_leads() {
    let mut trio = Trio::start(1);
    trio.rest();
    trio.nodes[0].is_cut_off = true;
    trio.run(2_100);
    assert!(!trio.is_served_by(0), "two election timeouts have passed");
    trio.run(2_000);
    assert!(trio.is_served_by(1) || trio.is_served_by(2));
    trio.nodes[0].is_cut_off = false;
    trio.rest();
}

#[test]
fn a_resting_follower_that_is_cut_off_is_missed_and_disturbs_nobody() {
    let mut trio = Trio::start(1);
    trio.rest();
    trio.nodes[2].is_cut_off = true;
    trio.run(3_500);
    assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1]);
    assert!(trio.awake() > 0, "one is missing");
    trio.nodes[2].is_cut_off = false;
    trio.rest();
    assert_eq!(trio.nodes[0].view.leader_epoch(), 0, "nobody was elected");
    assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1, 2]);
}

#[test]
fn followers_that_rest_wake_when_their_leaders_replica_ends() {
    for leader_ends in [true, false] {
        let mut trio = Trio::start(1);
        trio.rest();
        let node = &mut trio.nodes[if leader_ends { 0 } else { 2 }];
        let (reply, _done) = oneshot::channel();
        let event = Event::Delete {
            partition: node.id,
            lives_on: Some(1),
            reply,
        };
        // Its shard lives on, and its pulses come.
        node.shard.handle(event, trio.now_ms);
        trio.run(4_500);
        if leader_ends {
            assert!(trio.is_served_by(1) || trio.is_served_by(2));
        } else {
            assert_eq!(*trio.nodes[0].view.in_sync(), [0, 1]);
        }
    }
}

#[test]
fn a_candidate_wakes_those_who_rest_and_they_tell_their_leader() {
    let mut trio = Trio::start(1);
    trio.rest();
    // It believes its leader to be lost, which the others do not.
    let lost = Event::Disconnected { broker: 0 };
    trio.nodes[2].shard.handle(lost, trio.now_ms);
    trio.run(1_000);
    assert!(trio.is_served_by(0));
    assert_eq!(trio.nodes[0].view.leader_epoch(), 0);
    trio.rest();
}

#[test]
fn a_term_that_nobody_has_won_is_no_leader_epoch() {
    let mut trio = Trio::start(1);
    assert_eq!(trio.nodes[1].view.leader_epoch(), 0);
    let (leader, now_ms) = (&mut trio.nodes[0], trio.now_ms);
    let to = Some(1);
    let partition = leader.id;
    leader
        .shard
        .handle(Event::Transfer { partition, to }, now_ms);
    assert!(leader.shard.flush(now_ms).is_none(), "nothing is written");
    // It is told to stand for election; what the leader wakes the other with is lost.
    let sent = leader.shard.take_outbox();
    for (_, message) in sent.into_iter().filter(|(to, _)| *to == 1) {
        let messages = vec![message];
        trio.nodes[1].shard.handle(Event::Raft { messages }, now_ms);
    }
    trio.nodes[1].is_cut_off = true;
    trio.settle();
    let candidate = &trio.nodes[1].view;
    assert_eq!((candidate.leader(), candidate.leader_epoch()), (-1, 0));
    trio.nodes[1].is_cut_off = false;
    trio.run(3_000);
    let epochs: Vec<i32> = trio
        .nodes
        .iter()
        .map(|node| node.view.leader_epoch())
        .collect();
    assert!(epochs[0] > 0 && epochs.iter().all(|epoch| *epoch == epochs[0]));
}

#[test]
fn a_leader_that_cannot_read_its_log_for_a_follower_leaves_the_others_to_lead() {
    let mut trio = Trio::start(1);
    trio.nodes[2].is_cut_off = true;
    for _ in 0..20 {
        assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
        trio.run(100);
    }
    assert!(trio.is_served_by(0));
    let directory = trio.directory.path().join("0").join("t-0");
    let path = directory.join(format!("{:020}.log", 0));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    trio.nodes[2].is_cut_off = false;
    trio.run(5_000);
    assert!(trio.nodes[0].view.is_damaged());
    assert!(!trio.is_served_by(0));
    let others = [1, 2];
    assert!(others.into_iter().any(|node| trio.is_served_by(node)));
    let held = others.map(|node| trio.nodes[node].view.high_watermark());
    assert_eq!(held, [20, 20], "the follower has caught up with another");
}

/// Clients ask any broker who leads, and some ask no other.
#[test]
fn a_follower_whose_disk_is_full_knows_its_leader() {
    let full = SimDisk::new();
    let mut trio = Trio::start_on(1, |node| match node {
        2 => Arc::new(full.clone()),
        _ => Arc::new(RealDisk),
    });
    full.set_faults(Faults {
        fail_writes: true,
        ..Faults::default()
    });
    for _ in 0..30 {
        assert!(trio.append(Acks::All, 1_000).try_recv().unwrap().is_ok());
        trio.run(100);
        let follower = &trio.nodes[2].view;
        assert_eq!((follower.leader(), follower.leader_epoch()), (0, 0));
        assert!(!follower.follows(), "consumers would wait for nothing");
    }
    assert!(trio.nodes[2].view.high_watermark() < 10, "it is full");
    full.set_faults(Faults::default());
    trio.run(3_000);
    assert_eq!(trio.nodes[2].view.high_watermark(), 30);
    assert!(trio.nodes[2].view.follows());
}

#[test]
fn a_leader_whose_disk_is_full_leads_no_more() {
    let full = SimDisk::new();
    let mut trio = Trio::start_on(1, |node| match node {
        0 => Arc::new(full.clone()),
        _ => Arc::new(RealDisk),
    });
    full.set_faults(Faults {
        fail_writes: true,
        ..Faults::default()
    });
    let mut refused = trio.append(Acks::All, 1_000);
    assert!(matches!(
        refused.try_recv().unwrap(),
        Err(AppendError::Storage(_))
    ));
    assert_eq!(trio.nodes[0].view.leader(), -1, "it is not told as one");
    trio.run(3_000);
    assert!(trio.is_served_by(1) || trio.is_served_by(2));
}

/// A producer sends several batches one after the other: what was refused of the first is refused of those that follow.
#[test]
fn no_gap_is_told_of_that_a_refusal_has_made() {
    let mut trio = Trio::start(1);
    assert!(trio.produce(0, 0).is_ok());
    trio.nodes[0].is_cut_off = true;
    let mut leader = None;
    while leader.is_none() {
        for node in [1, 2] {
            // It asks whoever may lead next.
            assert!(trio.produce(node, 1).is_err());
        }
        trio.run(100);
        leader = [1, 2].into_iter().find(|node| trio.is_served_by(*node));
    }
    let leader = leader.unwrap();
    assert_eq!(
        trio.produce(leader, 2),
        Err(AppendError::PredecessorRefused)
    );
    assert_eq!(
        trio.produce(leader, 3),
        Err(AppendError::PredecessorRefused)
    );
    for sequence in 1..4 {
        assert!(trio.produce(leader, sequence).is_ok());
    }
    assert!(
        matches!(
            trio.produce(leader, 5),
            Err(AppendError::OutOfOrderSequence(_))
        ),
        "this gap is the producer's"
    );
}

#[test]
fn no_gap_is_told_of_that_too_few_replicas_have_made() {
    let mut trio = Trio::start(3);
    assert!(trio.produce(0, 0).is_ok());
    trio.nodes[2].is_cut_off = true;
    trio.append(Acks::All, 1_000);
    trio.run(31_000);
    let too_few = AppendError::NotEnoughReplicas {
        in_sync: 2,
        wanted: 3,
    };
    assert_eq!(trio.produce(0, 1), Err(too_few.clone()));
    trio.nodes[2].is_cut_off = false;
    trio.run(1_000);
    assert_eq!(trio.produce(0, 2), Err(AppendError::PredecessorRefused));
    trio.run(2_000);
    assert!(
        matches!(trio.produce(0, 2), Err(AppendError::OutOfOrderSequence(_))),
        "it was not under way when the other was refused"
    );
    assert!(trio.produce(0, 1).is_ok());
    assert!(trio.produce(0, 2).is_ok());
}

/// A broker that starts again may not know yet that its replica left and came back, and hears of both once more.
#[test]
fn a_replica_that_has_come_again_is_known_for_that_after_a_restart() {
    let mut trio = Trio::start(1);
    assert!(!trio.nodes[2].view.has_come_after(1));
    trio.replace(2, 1, 2, &[0, 1, 2]);
    trio.run(1_000);
    let directory = trio.directory.path().join("2");
    trio.nodes.pop();
    let mut shard = open_shard(Arc::new(RealDisk), &directory, 2);
    let files = directory.join("t-0");
    let key = PartitionKey {
        topic_id: Uuid::from_u128(9),
        index: 0,
    };
    let leftovers = |epoch| Event::RemoveLeftovers {
        key,
        directory: files.clone(),
        epoch,
    };
    shard.handle(leftovers(1), 0);
    assert!(files.exists(), "it came after that");
    let view = open(&mut shard, &directory, &trio.config, Target::default(), 0).view;
    assert!(view.has_come_after(1) && !view.has_come_after(2));
    drop(shard);
    let mut shard = open_shard(Arc::new(RealDisk), &directory, 2);
    shard.handle(leftovers(2), 0);
    assert!(!files.exists(), "that left this one out");
}
