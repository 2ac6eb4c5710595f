//! Replicas that move: what the cluster's metadata says of a topic, and how much of it each node
//! has come to know. The controller's rules are the production ones; its log is a list here.

use std::path::PathBuf;
use std::sync::Arc;

use streamgauge::controller::image::Topic as Declared;
use streamgauge::replication::membership::Target;
use streamgauge::replication::raft_id;
use streamgauge::shard::event::Event;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::random::Random;
use crate::world::World;

enum Record {
    Reassigning(Vec<i32>),
    Reassigned(u64),
}

/// The assignments of one topic's partition.
pub struct Moves {
    founders: Vec<i32>,
    records: Vec<Record>,
    /// How many of them each node has applied.
    applied: Vec<usize>,
}

impl Moves {
    pub fn new(founders: Vec<i32>, nodes: usize) -> Self {
        Self {
            founders,
            records: Vec::new(),
            applied: vec![0; nodes],
        }
    }

    /// Whether it has always had the same replicas.
    pub fn is_untouched(&self) -> bool {
        self.records.is_empty()
    }

    pub fn founders(&self) -> &[i32] {
        &self.founders
    }

    fn after(&self, count: usize) -> Declared {
        let mut topic = Declared {
            name: "moving".into(),
            topic_id: Uuid::nil(),
            partitions: vec![self.founders.clone()],
            configs: Default::default(),
            aggregation_producer_id: None,
            moved: Default::default(),
        };
        for record in &self.records[..count] {
            match record {
                Record::Reassigning(target) => topic.reassign(0, target.clone(), None),
                Record::Reassigned(epoch) => topic.reassigned(0, *epoch),
            }
        }
        topic
    }

    fn now(&self) -> Declared {
        self.after(self.records.len())
    }

    fn known_to(&self, node: usize) -> Declared {
        self.after(self.applied[node])
    }

    /// Whether that node is to hold a replica, as far as it knows.
    pub fn is_wanted(&self, node: usize) -> bool {
        self.known_to(node).partitions[0].contains(&broker(node))
    }

    pub fn target_known_to(&self, node: usize) -> Target {
        target(&self.known_to(node))
    }

    /// How often the replicas have changed.
    pub fn ended(&self) -> u64 {
        let ends = self.records.iter();
        ends.filter(|record| matches!(record, Record::Reassigned(_)))
            .count() as u64
    }

    pub fn is_moving(&self) -> bool {
        self.now().reassignment(0).is_some()
    }

    /// The nodes that hold replicas in the end.
    pub fn has_replica(&self, node: usize) -> bool {
        self.now().partitions[0].contains(&broker(node))
    }
}

fn broker(node: usize) -> i32 {
    i32::try_from(node).expect("few nodes")
}

fn target(topic: &Declared) -> Target {
    let (epoch, brokers) = topic.target(0);
    Target {
        epoch,
        voters: brokers.iter().map(|broker| raft_id(*broker)).collect(),
        learners: Vec::new(),
    }
}

/// Some of the nodes, in any order; at least one.
pub fn some_nodes(random: &mut Random, nodes: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..nodes).map(broker).collect();
    for at in 0..all.len() {
        let other = at + random.below((all.len() - at) as u64) as usize;
        all.swap(at, other);
    }
    all.truncate(1 + random.below(nodes as u64) as usize);
    all
}

impl World {
    /// Somebody wants the partition elsewhere, or does not any more.
    pub fn reassign(&mut self, number: usize) {
        let nodes = self.nodes.len();
        let moves = &mut self.topics[number].moves;
        let wanted = match moves.now().reassignment(0) {
            Some(moving) if self.random.one_in(2) => moving.previous.clone(),
            _ => some_nodes(&mut self.random, nodes),
        };
        if moves.now().target(0).1 != wanted {
            moves.records.push(Record::Reassigning(wanted));
        }
    }

    /// A leader whose group has the wanted members says so, and nodes hear of what is new.
    pub fn spread_moves(&mut self, all: bool) {
        for number in 0..self.topics.len() {
            if all || self.random.one_in(4) {
                self.report(number);
            }
            for node in 0..self.nodes.len() {
                while self.topics[number].moves.applied[node]
                    < self.topics[number].moves.records.len()
                    && (all || self.random.one_in(20))
                    && self.is_up(node)
                {
                    self.apply(node, number);
                }
            }
        }
    }

    fn report(&mut self, number: usize) {
        let topic = &mut self.topics[number];
        let Some(leader) = topic.leader() else { return };
        let Some(replica) = &topic.replicas[leader] else {
            return;
        };
        let (settled, now) = (replica.view.settled(), topic.moves.now());
        let knows = topic.moves.known_to(leader).target(0).0 == now.target(0).0;
        if now.reassignment(0).is_some() && knows && now.target(0).0 == settled {
            topic.moves.records.push(Record::Reassigned(settled));
        }
    }

    /// Prints where the moves stand that do not come to an end.
    pub fn tell_of_moves(&mut self) {
        for number in 0..self.topics.len() {
            let moves = &self.topics[number].moves;
            if !moves.is_moving() {
                continue;
            }
            println!("topic {number} is to have {:?}", target(&moves.now()));
            for node in 0..self.nodes.len() {
                let Some(replica) = &self.topics[number].replicas[node] else {
                    continue;
                };
                let view = Arc::clone(&replica.view);
                let (reply, mut positions) = oneshot::channel();
                let partition = replica.id;
                self.handle(node, Event::Replicas { partition, reply });
                println!(
                    "node {node}: leader {}, epoch {}, serves {}, settled {}, high watermark {}, {:?}",
                    view.leader(),
                    view.leader_epoch(),
                    view.is_serving(),
                    view.settled(),
                    view.high_watermark(),
                    positions.try_recv()
                );
            }
        }
    }

    fn apply(&mut self, node: usize, number: usize) {
        let topic = &mut self.topics[number];
        topic.moves.applied[node] += 1;
        let is_wanted = topic.moves.is_wanted(node);
        match (topic.id(node), is_wanted) {
            (Some(partition), true) => {
                let target = topic.moves.target_known_to(node);
                self.handle(node, Event::Assign { partition, target });
            }
            (Some(partition), false) => {
                topic.replicas[node] = None;
                for producer in &mut topic.producers {
                    producer.must_retry |= producer.target == node;
                }
                let (reply, _deleted) = oneshot::channel();
                let lives_on = Some(topic.moves.known_to(node).settled(0));
                self.handle(
                    node,
                    Event::Delete {
                        partition,
                        lives_on,
                        reply,
                    },
                );
            }
            (None, true) => {
                if let Err(error) = self.open(node, number) {
                    println!("a new replica is not opened: {error}");
                    // It is offline until the broker starts again.
                    self.nodes[node].must_restart = true;
                }
            }
            (None, false) => {}
        }
    }

    /// What a broker does at its start for a replica that is not here any more.
    pub fn remove_leftovers(&mut self, node: usize, number: usize) {
        let key = self.topics[number].key;
        let directory = PathBuf::from(format!("/data/topic-{number}-0"));
        let epoch = self.topics[number].moves.known_to(node).settled(0);
        self.handle(
            node,
            Event::RemoveLeftovers {
                key,
                directory,
                epoch,
            },
        );
    }
}
