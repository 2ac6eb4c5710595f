//! Simulated brokers: the production shard of each on a disk in memory, a network between them,
//! clients and faults.
//!
//! Everything that happens follows from the seed: the clocks, the order in which syncs end and
//! messages arrive among new events, what the clients do, which links are cut, when a disk fills,
//! fails or loses power and what it keeps.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use streamgauge::config::{ConfigLoader, Flush, TimestampType, TopicConfig};
use streamgauge::replication::hibernation::Mark;
use streamgauge::replication::throttle::{Rates, ReplicationQuotas, ThrottledReplicas};
use streamgauge::shard::core::{Shard, ShardSettings};
use streamgauge::shard::event::{
    Acks, Append, AppendError, Effect, Event, GroupMessage, OpenPartition,
};
use streamgauge::shard::view::PartitionKey;
use streamgauge_protocol::batch::{BatchBuilder, TransactionMarker, TransactionResult};
use streamgauge_storage::StorageError;
use streamgauge_storage::disk::Disk;
use streamgauge_storage::disk::sim::{Faults, SimDisk};
use streamgauge_storage::log::{Log, SyncTicket};
use streamgauge_storage::producer_state::{AppendOrigin, Verification};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::model::{
    Batch, BatchKind, Deletion, OpenTransaction, Producer, Promise, Topic, marker_value,
};
use crate::moves::some_nodes;
use crate::random::Random;

/// Most batches of one producer that await an answer; a broker remembers five.
const IN_FLIGHT_MAX: usize = 3;

/// What went wrong with the disk and not yet been mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Full, or refusing writes: mends without a restart.
    Writes,
    /// A sync failed, or power is about to go: only a restart helps.
    Fatal,
}

/// One broker.
pub struct Node {
    pub disk: SimDisk,
    pub trouble: Trouble,
    shard: Option<Shard>,
    /// How far its clock is from the world's.
    skew_ms: i64,
    syncing: Option<(u64, Vec<SyncTicket>)>,
    sync_failed: bool,
    /// Ticks since nothing of what it or the others say arrives.
    cut_off_ticks: u64,
    /// Writes failed while others lead, and a truncation that did not come to its end leaves a log
    /// that is known again only once it is opened; or a new replica could not be opened.
    pub must_restart: bool,
}

/// A message between two nodes.
struct Letter {
    from: usize,
    to: usize,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Raft(GroupMessage),
    Pulse(Mark),
}

/// Two election timeouts, one more if a leader begins to hand over meanwhile, which sets its clock back, and what one that
/// rests takes to notice, in ticks.
const CUT_OFF_TICKS_MAX: u64 = 34;

/// Messages under way beyond which new ones are lost: a queue that is full.
const NETWORK_MAX: usize = 2_000;

pub struct World {
    pub random: Random,
    pub nodes: Vec<Node>,
    pub topics: Vec<Topic>,
    pub restarts: u64,
    network: VecDeque<Letter>,
    /// Links that carry nothing, each in one direction.
    cut: Vec<(usize, usize)>,
    /// A node that stays down for so many steps more, while the others go on.
    down: Option<(usize, u64)>,
    /// A node that takes events and does not turn to writing for so many steps more.
    busy: Option<(usize, u64)>,
    /// Messages are also lost, doubled and overtaken.
    unreliable: bool,
    /// Clients ask for nothing for so many steps more, so that groups come to rest.
    quiet: u64,
    /// Replicas that rested, counted at each tick.
    pub rested: u64,
    now_ms: i64,
    next_producer_id: i64,
    /// How fast replicas of some topics catch up.
    rates: Rates,
}

impl World {
    pub fn new(seed: u64, nodes: usize) -> Self {
        let mut random = Random::new(seed);
        let nodes: Vec<Node> = (0..nodes)
            .map(|_| Node {
                disk: SimDisk::new(),
                trouble: Trouble::None,
                shard: None,
                skew_ms: i64::try_from(random.below(7_200_000)).expect("small") - 3_600_000,
                syncing: None,
                sync_failed: false,
                must_restart: false,
                cut_off_ticks: 0,
            })
            .collect();
        let rates = Rates {
            leader: random
                .one_in(3)
                .then(|| 3_000 + random.below(30_000) as i64),
            ..Rates::default()
        };
        let mut world = Self {
            random,
            nodes,
            topics: Vec::new(),
            restarts: 0,
            network: VecDeque::new(),
            cut: Vec::new(),
            down: None,
            busy: None,
            unreliable: true,
            quiet: 0,
            rested: 0,
            now_ms: 10_000_000,
            next_producer_id: 1,
            rates,
        };
        for number in 0..4 {
            let topic = world.new_topic(number);
            world.topics.push(topic);
        }
        world
    }

    fn is_alone(&self) -> bool {
        self.nodes.len() == 1
    }

    fn new_topic(&mut self, number: usize) -> Topic {
        let mut config: TopicConfig = ConfigLoader::new()
            .finish("simulation")
            .expect("the defaults are valid")
            .topic_defaults;
        config.segment_bytes = 700 + i32::try_from(self.random.below(600)).expect("small");
        config.index_interval_bytes = 100;
        config.retention_ms = -1;
        if number.is_multiple_of(2) {
            config.leader_throttled = ThrottledReplicas::All;
        }
        match number {
            // Every replica is to hold what is acknowledged.
            0 => config.min_insync_replicas = i32::try_from(self.nodes.len()).expect("few"),
            1 => config.message_timestamp_type = TimestampType::LogAppendTime,
            2 => config.retention_bytes = 2_000,
            // Of several replicas, a majority would have to keep what one acknowledged.
            3 if self.is_alone() => {
                config.flush = Flush::Relaxed {
                    messages: 5,
                    ms: 700,
                }
            }
            _ => {}
        }
        let key = PartitionKey {
            topic_id: Uuid::from_u128(
                u128::from(self.random.number()) << 64 | u128::from(self.random.number()),
            ),
            index: 0,
        };
        // Two idempotent ones, one that is not, and one that writes in transactions.
        let producers = (0..4)
            .map(|number| {
                self.next_producer_id += 1;
                let id = (number != 2).then_some(self.next_producer_id);
                let mut producer = Producer::new(number, id);
                producer.transaction = (number == 3).then(OpenTransaction::default);
                producer
            })
            .collect();
        let nodes = self.nodes.len();
        // Some begin on a part of the nodes.
        let founders = match number > 0 && self.random.one_in(3) {
            true => some_nodes(&mut self.random, nodes),
            false => (0..nodes as i32).collect(),
        };
        Topic::new(number, key, Arc::new(config), producers, nodes, founders)
    }

    /// Starts all nodes.
    pub fn start(&mut self) -> Result<(), StorageError> {
        (0..self.nodes.len()).try_for_each(|node| self.start_node(node))
    }

    /// Opens a node's shard and all its partitions.
    fn start_node(&mut self, node: usize) -> Result<(), StorageError> {
        let now_ms = self.now_ms(node);
        let quotas = ReplicationQuotas::default();
        quotas.set_rates(&self.rates, now_ms);
        let settings = ShardSettings {
            broker_id: i32::try_from(node).expect("few nodes"),
            number: 0,
            directory: PathBuf::from("/data/raft-state-0"),
            retention_check_interval_ms: 500,
            producer_expiration_ms: i64::MAX / 4,
            seed: self.random.number(),
            quotas: Arc::new(quotas),
        };
        let disk = Arc::new(self.nodes[node].disk.clone());
        self.nodes[node].shard = Some(Shard::open(settings, disk, now_ms)?);
        self.restarts += 1;
        for number in 0..self.topics.len() {
            match self.topics[number].moves.is_wanted(node) {
                true => self.open(node, number)?,
                false => self.remove_leftovers(node, number),
            }
        }
        Ok(())
    }

    fn now_ms(&self, node: usize) -> i64 {
        self.now_ms + self.nodes[node].skew_ms
    }

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].shard.is_some()
    }

    pub fn open(&mut self, node: usize, number: usize) -> Result<(), StorageError> {
        let topic = &self.topics[number];
        let (reply, mut opened) = oneshot::channel();
        let event = Event::Open(Box::new(OpenPartition {
            key: topic.key,
            topic: format!("topic-{number}").into(),
            directory: PathBuf::from(format!("/data/topic-{number}-0")),
            config: Arc::clone(&topic.config),
            founders: topic.moves.founders().to_vec(),
            target: topic.moves.target_known_to(node),
            may_be_removed: true,
            reply,
        }));
        self.handle(node, event);
        let opened = opened.try_recv().expect("opening is answered at once")?;
        self.topics[number].opened(node, opened.id, opened.view);
        Ok(())
    }

    /// Power goes, or only the process dies and the page cache stays; then all starts again.
    pub fn restart(&mut self, node: usize, power_failure: bool) {
        self.stop(node, power_failure);
        self.down = self.down.filter(|(down, _)| *down != node);
        let state = &mut self.nodes[node];
        state.disk.set_faults(Faults::default());
        state.trouble = Trouble::None;
        state.sync_failed = false;
        state.must_restart = false;
        if self.random.one_in(6) {
            self.start_damaged(node);
        }
        // Power may go again while the broker recovers.
        for _ in 0..3 {
            if !self.random.one_in(4) {
                break;
            }
            self.nodes[node].disk.set_faults(Faults {
                stop_after: Some(self.random.below(12)),
                ..Faults::default()
            });
            let _interrupted = self.start_node(node);
            self.stop(node, true);
        }
        self.start_node(node).unwrap_or_else(|error| {
            panic!("node {node} does not start after a crash: {error}");
        });
    }

    /// A bit flips in what is known to be synced of a log. A broker must not take that for a torn
    /// tail, but leave everything as it is: once the bit is right again, all must be there.
    fn start_damaged(&mut self, node: usize) {
        let number = self.random.below(self.topics.len() as u64);
        let directory = PathBuf::from(format!("/data/topic-{number}-0"));
        let disk = self.nodes[node].disk.clone();
        let synced = Log::recovery_point(&disk, &directory);
        let names = disk.list(&directory).unwrap_or_default();
        let last = names
            .into_iter()
            .filter(|name| name.ends_with(".log"))
            .max();
        let name = format!("{:020}.log", synced.base_offset);
        if synced.position == 0 || last.as_ref() != Some(&name) {
            return;
        }
        let path = directory.join(name);
        let bit = self.random.below(synced.position * 8) as usize;
        disk.flip_bit(&path, bit);
        let _refused = self.start_node(node);
        for topic in &mut self.topics {
            // Nobody reads from a broker like that.
            topic.replicas[node] = None;
        }
        self.stop(node, false);
        disk.flip_bit(&path, bit);
    }

    fn stop(&mut self, node: usize, power_failure: bool) {
        let state = &mut self.nodes[node];
        state.shard = None;
        state.syncing = None;
        self.collect();
        if power_failure {
            let random = &mut self.random;
            self.nodes[node].disk.crash(&mut || random.number());
        }
        for topic in &mut self.topics {
            topic.stopped(node, power_failure, &mut self.next_producer_id);
        }
        // Mostly the others see their connections close.
        for other in 0..self.nodes.len() {
            if other != node && self.random.one_in(2) {
                let broker = i32::try_from(node).expect("few nodes");
                self.handle(other, Event::Disconnected { broker });
            }
        }
    }

    /// Long enough for the others to elect a leader and to let go what the node does not have.
    fn stay_down(&mut self, node: usize) {
        if self.down.is_none() {
            self.stop(node, true);
            self.down = Some((node, 50 + self.random.below(300)));
        }
    }

    pub fn handle(&mut self, node: usize, event: Event) {
        let now_ms = self.now_ms(node);
        if let Some(shard) = &mut self.nodes[node].shard {
            shard.handle(event, now_ms);
        }
    }

    pub fn flush(&mut self, node: usize) {
        if self.busy.is_some_and(|(busy, _)| busy == node) {
            return;
        }
        let now_ms = self.now_ms(node);
        let state = &mut self.nodes[node];
        if let Some(shard) = &mut state.shard {
            if let Some(Effect::Sync { round, tickets }) = shard.flush(now_ms) {
                assert!(state.syncing.is_none(), "two rounds of syncs at once");
                state.syncing = Some((round, tickets));
            }
            let messages = shard.take_outbox().into_iter();
            let messages = messages.map(|(to, message)| (to, Content::Raft(message)));
            let pulses = shard.take_pulses().into_iter();
            let pulses = pulses.map(|(to, mark)| (to, Content::Pulse(mark)));
            for (to, content) in messages.chain(pulses).collect::<Vec<_>>() {
                self.post(node, usize::try_from(to).expect("a node"), content);
            }
        }
        self.collect();
    }

    fn post(&mut self, from: usize, to: usize, content: Content) {
        let lost = self.cut.contains(&(from, to))
            || self.network.len() >= NETWORK_MAX
            || (self.unreliable && self.random.one_in(50));
        if lost {
            // Sometimes the sender learns of it.
            if let Content::Raft(message) = content
                && self.random.one_in(2)
            {
                let event = Event::Unreachable {
                    broker: i32::try_from(to).expect("few nodes"),
                    groups: vec![message.group],
                };
                self.handle(from, event);
            }
            return;
        }
        if self.unreliable && self.random.one_in(50) {
            let content = content.clone();
            self.network.push_back(Letter { from, to, content });
        }
        self.network.push_back(Letter { from, to, content });
    }

    /// Some messages arrive, mostly in order.
    pub fn deliver(&mut self, count: u64) {
        for _ in 0..count {
            let length = self.network.len() as u64;
            let at = match self.unreliable && self.random.one_in(10) {
                true => self.random.below(length.max(1)),
                false => 0,
            };
            let Some(letter) = self.network.remove(at as usize) else {
                return;
            };
            if self.cut.contains(&(letter.from, letter.to)) {
                continue;
            }
            let event = match letter.content {
                Content::Raft(message) => Event::Raft {
                    messages: vec![message],
                },
                Content::Pulse(mark) => Event::Pulse {
                    broker: i32::try_from(letter.from).expect("few nodes"),
                    mark,
                },
            };
            self.handle(letter.to, event);
            if !self.random.one_in(3) {
                self.flush(letter.to);
            }
        }
    }

    /// Runs one file's sync of a node's round under way, or ends the round.
    pub fn sync_step(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        let Some((round, tickets)) = &mut state.syncing else {
            return;
        };
        let round = *round;
        let result = match tickets.pop() {
            Some(ticket) => match ticket.run() {
                Ok(()) => return,
                Err(error) => Err(error.to_string()),
            },
            None => Ok(()),
        };
        state.sync_failed |= result.is_err();
        state.syncing = None;
        self.handle(node, Event::Synced { round, result });
    }

    pub fn tick(&mut self, node: usize, passed_ms: i64) {
        self.now_ms += passed_ms;
        self.handle(node, Event::Tick);
        self.rested += self.resting(node);
        self.check_cut_off(node);
    }

    /// Who reaches nobody must have noticed within two election timeouts, and serves no more.
    fn check_cut_off(&mut self, node: usize) {
        let mut others = (0..self.nodes.len()).filter(|other| *other != node);
        let is_cut_off = !self.is_alone()
            && others.all(|other| {
                self.cut.contains(&(node, other)) && self.cut.contains(&(other, node))
            });
        let is_busy = self.busy.is_some_and(|(busy, _)| busy == node);
        let state = &mut self.nodes[node];
        if !is_cut_off || is_busy || state.shard.is_none() || state.trouble != Trouble::None {
            state.cut_off_ticks = 0;
            return;
        }
        state.cut_off_ticks += 1;
        if state.cut_off_ticks < CUT_OFF_TICKS_MAX {
            return;
        }
        self.flush(node);
        for number in 0..self.topics.len() {
            let Some(replica) = &self.topics[number].replicas[node] else {
                continue;
            };
            let (partition, serves) = (replica.id, replica.view.is_serving());
            let (reply, mut replicas) = oneshot::channel();
            self.handle(node, Event::Replicas { partition, reply });
            let replicas = replicas.try_recv().expect("answered at once");
            let voters = replicas
                .into_iter()
                .flatten()
                .filter(|replica| replica.is_voter);
            assert!(
                !serves || voters.count() < 2,
                "node {node} serves topic {number} and has reached nobody for long"
            );
        }
    }

    /// How many replicas of a node rest.
    fn resting(&self, node: usize) -> u64 {
        let open = self
            .topics
            .iter()
            .filter(|topic| topic.replicas[node].is_some());
        let shard = self.nodes[node].shard.as_ref();
        shard.map_or(0, |shard| {
            open.count().saturating_sub(shard.awake_count()) as u64
        })
    }

    /// Takes the answers that have come and, now and then, checks what readers see.
    pub fn collect(&mut self) {
        let sync_failed: Vec<bool> = self.nodes.iter().map(|node| node.sync_failed).collect();
        let check = self.is_alone() || self.random.one_in(16);
        for topic in &mut self.topics {
            topic.collect(&sync_failed);
            if check {
                topic.check_reads();
            }
        }
    }

    /// One thing happens.
    pub fn step(&mut self) {
        let number = self.random.below(self.topics.len() as u64) as usize;
        let node = self.random.below(self.nodes.len() as u64) as usize;
        if !self.is_alone() && self.quiet_step(node) {
            self.pass_time();
            return;
        }
        match self.random.below(100) {
            0..45 => self.produce(number),
            45..52 => self.retry(number),
            52..78 => self.sync_step(node),
            78..86 => {
                let passed_ms = i64::try_from(self.random.below(600)).expect("small");
                self.tick(node, passed_ms);
            }
            86..89 => self.delete_records(number),
            89 if self.random.one_in(3) => self.recreate(number),
            90..93 if self.is_alone() || self.random.one_in(6) => self.fault(node),
            93 if self.is_alone() => self.fault(node),
            94 if !self.is_alone() => match self.random.below(12) {
                0..2 => self.stay_down(node),
                // Long enough for the others to elect a leader.
                2..4 => self.busy = Some((node, 40 + self.random.below(160))),
                _ => {}
            },
            95 if self.random.one_in(2 * self.nodes.len() as u64) => self.restart(node, true),
            96 if self.random.one_in(2 * self.nodes.len() as u64) => self.restart(node, false),
            97 if self.random.one_in(3 * self.nodes.len() as u64) => self.close(node),
            98 if self.random.one_in(4) => self.transfer(number, node),
            93 if !self.is_alone() && self.random.one_in(4) => self.reassign(number),
            99 if self.random.one_in(4) => self.cut_or_mend_links(),
            99 if self.random.one_in(3) => {
                let lost = self.random.below(self.nodes.len() as u64) as i32;
                self.handle(node, Event::Disconnected { broker: lost });
            }
            _ => {}
        }
        if !self.is_alone() {
            self.pass_time();
            return;
        }
        // Several events may come before the shard turns to writing.
        if !self.random.one_in(3) {
            self.flush(0);
        } else {
            self.collect();
        }
    }

    /// In a quiet spell time passes faster; groups come to rest, and what disturbs them comes now and
    /// then: links are cut and mended, brokers stop and come back, disks fail. Says whether it is one.
    fn quiet_step(&mut self, node: usize) -> bool {
        if self.quiet == 0 {
            if self.random.one_in(300) {
                self.quiet = 100 + self.random.below(200);
            }
            return false;
        }
        self.quiet -= 1;
        for each in 0..self.nodes.len() {
            if !self.random.one_in(8) {
                self.tick(each, 33);
            }
        }
        if self.random.one_in(30) {
            match self.random.below(8) {
                0 => self.restart(node, true),
                1 => self.restart(node, false),
                2 | 3 => self.cut_or_mend_links(),
                4 => self.stay_down(node),
                5 => self.fault(node),
                6 => {
                    let number = self.random.below(self.topics.len() as u64) as usize;
                    self.produce(number);
                }
                _ => self.busy = Some((node, 20 + self.random.below(60))),
            }
        }
        true
    }

    /// All nodes do something, at their own pace.
    fn pass_time(&mut self) {
        if let Some((node, steps)) = &mut self.down {
            let node = *node;
            *steps -= 1;
            if *steps == 0 {
                self.restart(node, false);
            }
        }
        self.busy = self
            .busy
            .and_then(|(node, steps)| Some((node, steps.checked_sub(1)?)));
        self.spread_moves(false);
        let tick = self.random.one_in(4);
        for node in 0..self.nodes.len() {
            if tick && !self.random.one_in(8) {
                self.tick(node, 33);
            }
            if self.random.one_in(2) {
                self.flush(node);
            }
            // What must not be said before it is synced has been said by now if ever.
            if self.nodes[node].syncing.is_some() && self.random.one_in(200) {
                self.restart(node, true);
            }
            if self.random.one_in(2) {
                self.sync_step(node);
            }
        }
        let count = self.random.below(16);
        self.deliver(count);
        self.collect();
    }

    /// Leadership is to move.
    fn transfer(&mut self, number: usize, to: usize) {
        let to = (!self.random.one_in(4)).then(|| i32::try_from(to).expect("few nodes"));
        for node in 0..self.nodes.len() {
            if let Some(partition) = self.topics[number].id(node) {
                self.handle(node, Event::Transfer { partition, to });
            }
        }
    }

    fn cut_or_mend_links(&mut self) {
        if !self.cut.is_empty() {
            self.cut.clear();
            return;
        }
        let count = self.nodes.len() as u64;
        let (one, other) = (
            self.random.below(count) as usize,
            self.random.below(count) as usize,
        );
        let others = (0..self.nodes.len()).filter(|node| *node != one);
        self.cut = match self.random.below(3) {
            // A node is cut off, a link is, or it carries one way only.
            0 => others
                .flat_map(|other| [(one, other), (other, one)])
                .collect(),
            1 => vec![(one, other), (other, one)],
            _ => vec![(one, other)],
        };
    }

    fn fault(&mut self, node: usize) {
        let choice = self.random.below(4);
        let (few, small) = (self.random.below(30), self.random.below(500));
        let has_peers = !self.is_alone();
        let state = &mut self.nodes[node];
        match (state.trouble, choice) {
            (Trouble::Fatal, _) => self.restart(node, true),
            (Trouble::Writes, _) => self.mend(node),
            (Trouble::None, 0) => {
                state.trouble = Trouble::Writes;
                state.disk.set_faults(Faults {
                    capacity_bytes: Some(state.disk.used_bytes() + small),
                    ..Faults::default()
                });
            }
            (Trouble::None, 1) => {
                state.trouble = Trouble::Writes;
                state.must_restart = has_peers;
                state.disk.set_faults(Faults {
                    fail_writes: true,
                    ..Faults::default()
                });
            }
            (Trouble::None, 2) => {
                state.trouble = Trouble::Fatal;
                state.disk.set_faults(Faults {
                    fail_syncs: true,
                    ..Faults::default()
                });
            }
            (Trouble::None, _) => self.stop_power_after(node, few),
        }
    }

    pub fn stop_power_after(&mut self, node: usize, operations: u64) {
        let state = &mut self.nodes[node];
        state.trouble = Trouble::Fatal;
        state.disk.set_faults(Faults {
            stop_after: Some(operations),
            ..Faults::default()
        });
    }

    /// There is space again.
    pub fn mend(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.disk.set_faults(Faults::default());
        state.trouble = Trouble::None;
    }

    pub fn produce(&mut self, number: usize) {
        let which = self.random.below(4) as usize;
        let records = 1 + self.random.below(3);
        let padding = self.random.below(120) as usize;
        let leader = self.guess_leader(number);
        let producer = &mut self.topics[number].producers[which];
        if producer.must_retry || producer.outstanding.len() >= IN_FLIGHT_MAX {
            return;
        }
        if producer.outstanding.is_empty() {
            producer.target = leader;
        }
        if let Some(transaction) = producer.transaction {
            let waits = producer
                .outstanding
                .iter()
                .any(|batch| batch.kind == BatchKind::Marker);
            if waits {
                return;
            }
            if transaction.is_open && producer.outstanding.is_empty() && self.random.one_in(3) {
                self.end_transaction(number, which);
                return;
            }
        }
        let acks = match (producer.id, self.random.below(3)) {
            (None, 0) => Acks::None,
            (None, 1) => Acks::Leader,
            _ => Acks::All,
        };
        let values: Vec<String> = (0..records).map(|_| producer.next_value(padding)).collect();
        let mut builder = BatchBuilder::new();
        let mut kind = BatchKind::Plain;
        if let Some(id) = producer.id {
            let epoch = producer.transaction.map_or(0, |open| open.epoch);
            builder = builder.producer(id, epoch, producer.next_sequence);
            if let Some(transaction) = &mut producer.transaction {
                builder = builder.transactional();
                transaction.is_open = true;
                kind = BatchKind::Transactional(Verification {
                    producer_id: id,
                    producer_epoch: epoch,
                    base_sequence: producer.next_sequence,
                    supports_epoch_bump: true,
                });
            }
            producer.next_sequence += i32::try_from(records).expect("small");
        }
        let timestamp = self.now_ms;
        for value in &values {
            builder = builder.record(timestamp, None, Some(value.as_bytes()));
        }
        let bytes = builder.build().expect("a batch of valid records");
        let batch = Arc::new(Batch {
            bytes,
            values,
            kind,
        });
        if producer.id.is_some() {
            producer.outstanding.push_back(Arc::clone(&batch));
        }
        self.send(number, which, batch, acks);
    }

    /// As a transaction's coordinator does, once all of its batches are acknowledged.
    fn end_transaction(&mut self, number: usize, which: usize) {
        let result = match self.random.one_in(2) {
            true => TransactionResult::Commit,
            false => TransactionResult::Abort,
        };
        let producer = &mut self.topics[number].producers[which];
        let (Some(id), Some(transaction)) = (producer.id, &mut producer.transaction) else {
            return;
        };
        transaction.epoch += 1;
        transaction.is_open = false;
        let epoch = transaction.epoch;
        producer.next_sequence = 0;
        let marker = TransactionMarker {
            result,
            coordinator_epoch: 0,
        };
        let bytes = marker.to_batch(id, epoch, self.now_ms);
        let batch = Arc::new(Batch {
            bytes: bytes.expect("a marker is a valid record"),
            values: vec![marker_value(id, epoch)],
            kind: BatchKind::Marker,
        });
        producer.outstanding.push_back(Arc::clone(&batch));
        self.send(number, which, batch, Acks::All);
    }

    /// Mostly right.
    fn guess_leader(&mut self, number: usize) -> usize {
        let any = self.random.below(self.nodes.len() as u64) as usize;
        match self.topics[number].leader() {
            Some(leader) if !self.random.one_in(8) => leader,
            _ => any,
        }
    }

    /// Sends again, in order, all that a producer has no good answer for.
    pub fn retry(&mut self, topic: usize) {
        for which in 0..self.topics[topic].producers.len() {
            let leader = self.guess_leader(topic);
            let producer = &mut self.topics[topic].producers[which];
            producer.must_retry = false;
            producer.target = leader;
            let again: Vec<_> = producer.outstanding.iter().cloned().collect();
            for batch in again {
                self.send(topic, which, batch, Acks::All);
            }
        }
    }

    fn send(&mut self, number: usize, producer: usize, batch: Arc<Batch>, acks: Acks) {
        let node = self.topics[number].producers[producer].target;
        let Some(id) = self.topics[number].id(node) else {
            self.topics[number].producers[producer].must_retry = true;
            return;
        };
        let (mut origin, mut guard) = (AppendOrigin::Client, None);
        match batch.kind {
            BatchKind::Plain => {}
            BatchKind::Transactional(wanted) => {
                let (reply, mut answer) = oneshot::channel();
                let event = Event::BeginVerification {
                    partition: id,
                    wanted,
                    reply,
                };
                self.handle(node, event);
                guard = answer.try_recv().ok().flatten();
            }
            BatchKind::Marker => {
                origin = AppendOrigin::Marker {
                    transaction_version: 2,
                }
            }
        }
        let (reply, answer) = oneshot::channel();
        let bytes = batch.bytes.clone();
        self.topics[number].promises.push_back(Promise {
            node,
            producer,
            batch,
            acks,
            answer,
            after_failed_sync: self.nodes[node].sync_failed,
        });
        let append = Append {
            batch: bytes,
            acks,
            origin,
            guard,
            leader_epoch: None,
            wait_ms_max: i64::MAX,
            reply,
        };
        self.handle(node, Event::Append(id, append));
    }

    fn delete_records(&mut self, number: usize) {
        let node = self.guess_leader(number);
        let topic = &mut self.topics[number];
        let Some(replica) = &topic.replicas[node] else {
            return;
        };
        let (start, end) = (
            replica.view.log_start_offset(),
            replica.view.high_watermark(),
        );
        let before_offset = start + self.random.below((end - start).max(0) as u64 + 2) as i64;
        let (reply, answer) = oneshot::channel();
        let event = Event::DeleteRecords {
            partition: replica.id,
            before_offset,
            reply,
        };
        topic.deletions.push(Deletion { answer });
        // Asked for is asked for, even if the answer is that it failed.
        topic.deleted_before = topic.deleted_before.max(before_offset.min(end));
        self.handle(node, event);
    }

    /// The topic is deleted and one of the same name created.
    fn recreate(&mut self, number: usize) {
        let all_well =
            self.down.is_none() && self.nodes.iter().all(|node| node.trouble == Trouble::None);
        if !all_well {
            return;
        }
        for node in 0..self.nodes.len() {
            let Some(partition) = self.topics[number].id(node) else {
                continue;
            };
            let (reply, _deleted) = oneshot::channel();
            let lives_on = None;
            let event = Event::Delete {
                partition,
                lives_on,
                reply,
            };
            self.handle(node, event);
        }
        self.topics[number] = self.new_topic(number);
        for node in 0..self.nodes.len() {
            if !self.topics[number].moves.is_wanted(node) {
                continue;
            }
            self.open(node, number)
                .unwrap_or_else(|error| panic!("a new partition is not opened: {error}"));
        }
    }

    /// A broker is stopped in order and started again.
    fn close(&mut self, node: usize) {
        if self.nodes[node].trouble != Trouble::None || self.nodes[node].shard.is_none() {
            return;
        }
        while self.nodes[node].syncing.is_some() {
            self.sync_step(node);
        }
        let (reply, _closed) = oneshot::channel();
        self.handle(node, Event::Close { reply });
        self.restart(node, false);
    }

    /// Nothing fails any more: every producer gets its answer, and all that was promised is there.
    pub fn settle(&mut self) {
        self.cut.clear();
        self.unreliable = false;
        self.busy = None;
        if let Some((node, _)) = self.down {
            self.restart(node, false);
        }
        for node in 0..self.nodes.len() {
            match self.nodes[node].trouble {
                Trouble::Fatal => self.restart(node, true),
                Trouble::Writes => self.mend(node),
                Trouble::None => {}
            }
            if self.nodes[node].must_restart {
                self.restart(node, false);
            }
        }
        let rounds = if self.is_alone() { 12 } else { 120 };
        for round in 0..rounds {
            for node in 0..self.nodes.len() {
                self.tick(node, if self.is_alone() { 1_100 } else { 100 });
            }
            self.spread_moves(true);
            self.work_off();
            if self.is_alone() || round % 10 == 9 {
                for number in 0..self.topics.len() {
                    self.retry(number);
                }
            }
        }
        self.work_off();
        self.collect();
        if !self.is_alone() {
            let shards = self.nodes.iter().map(|node| node.shard.as_ref());
            let awake = shards.map(|shard| shard.map_or(0, Shard::awake_count));
            let awake: Vec<usize> = awake.collect();
            assert!(
                awake.iter().all(|awake| *awake == 0),
                "replicas do not come to rest: {awake:?} of each node"
            );
        }
        self.tell_of_moves();
        for topic in &mut self.topics {
            topic.check_reads();
            topic.check_settled();
        }
        self.unreliable = true;
    }

    /// Lets everything that has begun come to its end.
    fn work_off(&mut self) {
        for _ in 0..60 {
            for node in 0..self.nodes.len() {
                self.flush(node);
                self.sync_step(node);
            }
            self.deliver(100);
            let quiet =
                self.network.is_empty() && self.nodes.iter().all(|node| node.syncing.is_none());
            if quiet && !self.is_alone() {
                return;
            }
        }
    }
}

/// Whether an error may be answered.
pub fn is_expected(error: &AppendError) -> bool {
    matches!(
        error,
        AppendError::Storage(_)
            | AppendError::NotLeader
            | AppendError::PredecessorRefused
            | AppendError::OutOfOrderSequence(_)
            | AppendError::NotEnoughReplicas { .. }
            | AppendError::NotEnoughReplicasAfterAppend { .. }
    )
}
