//! Whole brokers, clients and what goes wrong around them. Everything follows from the seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use streamgauge::broker::Broker;
use streamgauge::controller::decide::{GROUP_METADATA_TOPIC, TRANSACTION_STATE_TOPIC};
use streamgauge::controller::image::Topic;
use streamgauge::shard::handle::PartitionHandle;
use streamgauge_protocol::batch::{BatchHeader, BatchIter, BatchRecords, TransactionMarker};
use streamgauge_storage::disk::sim::Faults;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::client::{Client, Everybody};
use crate::groups::{self, Groups};
use crate::host;
use crate::network::{Content, Letter, Network, News, Place, broker_id};
use crate::node::{Node, OFFSETS_PARTITIONS, Trouble};
use crate::random::Random;
use crate::tally::Tally;
use crate::topics::{self, Fate, Topics};
use crate::transfers::{self, Transfers};
use crate::windows::{self, Order, Orders};

/// When simulated time begins.
pub const WALL_START_MS: i64 = 1_700_000_000_000;

/// Clocks of brokers differ by so much at most.
const SKEW_MS_MAX: u64 = 600_000;

/// What must happen in quiet times happens within so many milliseconds.
const PATIENCE_MS: u64 = 180_000;

thread_local! {
    /// Panics of the run on this thread: a runtime keeps those of its tasks to itself.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Has panics in tasks end the run in which they happen.
pub fn watch_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
        default(panic);
    }));
}

/// What surrounds one node.
#[derive(Default)]
struct Circumstances {
    /// Down until then.
    down_until: Option<u64>,
    /// Does not get to run until then.
    stopped_until: u64,
    /// Its disk refused something in this life: partitions may be offline.
    had_trouble: bool,
    /// The topics that its image has shown, and how far it was when it was looked at.
    shown: BTreeSet<Uuid>,
    looked_at: i64,
}

pub struct World {
    random: Random,
    now_ms: u64,
    nodes: Vec<Node>,
    around: Vec<Circumstances>,
    network: Network,
    clients: Runtime,
    everybody: Arc<Everybody>,
    next_client: u32,
    topics: Arc<Topics>,
    groups: Arc<Groups>,
    orders: Arc<Orders>,
    transfers: Arc<Transfers>,
    tally: Tally,
    /// Of all that was sent and when.
    digest: u64,
    last_controller: (i32, i32),
    /// Whose disk may lose what was synced.
    damaged_node: usize,
    is_troubled: bool,
}

impl World {
    /// To be called on a thread of its own, after [`host::begin`].
    pub fn new(seed: u64, count: usize) -> Self {
        let mut random = Random::new(seed);
        let network = Network::new(random.number());
        host::set_clocks(WALL_START_MS, 0);
        let nodes = (0..count)
            .map(|index| {
                let skew_ms = random.below(2 * SKEW_MS_MAX) as i64 - SKEW_MS_MAX as i64;
                Node::new(index, count, skew_ms, network.clone())
            })
            .collect();
        let damaged_node = random.below(count as u64) as usize;
        let clients = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without threads");
        Self {
            random,
            now_ms: 0,
            nodes,
            around: (0..count).map(|_| Circumstances::default()).collect(),
            network,
            clients,
            everybody: Arc::default(),
            next_client: 0,
            topics: Arc::default(),
            groups: Arc::default(),
            orders: Arc::default(),
            transfers: Arc::default(),
            tally: Tally::default(),
            digest: 0xcbf2_9ce4_8422_2325,
            last_controller: (-1, -1),
            damaged_node,
            is_troubled: false,
        }
    }

    /// A number that tells this run from others.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The cluster forms, and gets topics and clients.
    pub fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.until("the cluster has formed", |world| {
            world.brokers().count() == world.nodes.len()
        });
        let mut client = self.client();
        let setup = self.clients.spawn(async move {
            let new = [
                (groups::TOPIC, groups::PARTITIONS, vec![]),
                (windows::SOURCE, windows::SOURCE_PARTITIONS, vec![]),
                (transfers::TOPIC, transfers::PARTITIONS, vec![]),
                (
                    windows::DERIVED,
                    windows::DERIVED_PARTITIONS,
                    vec![("aggregation", windows::DECLARATION)],
                ),
            ];
            for (name, partitions, configs) in new {
                loop {
                    let broker = client.any_broker();
                    let request = topics::new_topic(name, partitions, &configs);
                    let answer = client.call(broker, 7, &request).await;
                    let code = answer.and_then(|answer| answer.topics.first().cloned());
                    match code.map(|topic| (topic.error_code, topic.error_message)) {
                        // Made now, or by the request before whose answer is missing.
                        Some((0 | 36, _)) => break,
                        Some((42 | 40, message)) => {
                            client.violation(format!("{name}: {message:?}"))
                        }
                        _ => client.pause(300).await,
                    }
                }
            }
        });
        self.until("the topics are made", |_| setup.is_finished());
        for _ in 0..2 {
            let (client, topics) = (self.client(), Arc::clone(&self.topics));
            drop(self.clients.spawn(topics::administer(client, topics)));
        }
        for group in ["readers", "writers"] {
            for _ in 0..3 {
                let (client, groups) = (self.client(), Arc::clone(&self.groups));
                let task = groups::take_part(client, groups, group.to_owned());
                drop(self.clients.spawn(task));
            }
            let (client, groups) = (self.client(), Arc::clone(&self.groups));
            let task = groups::watch(client, groups, group.to_owned());
            drop(self.clients.spawn(task));
        }
        for number in 1..=transfers::PRODUCERS {
            let (client, transfers) = (self.client(), Arc::clone(&self.transfers));
            let task = transfers::transfer(client, transfers, number);
            drop(self.clients.spawn(task));
        }
        for partition in 0..windows::SOURCE_PARTITIONS {
            let (client, orders) = (self.client(), Arc::clone(&self.orders));
            drop(
                self.clients
                    .spawn(windows::produce(client, orders, partition)),
            );
        }
    }

    fn client(&mut self) -> Client {
        self.next_client += 1;
        let seed = self.random.number();
        let network = self.network.clone();
        Client::new(
            self.next_client,
            network,
            self.nodes.len(),
            seed,
            &self.everybody,
        )
    }

    /// So much time passes, and things go wrong.
    pub fn trouble(&mut self, duration_ms: u64) {
        let end = self.now_ms + duration_ms;
        self.network.set_unreliable(true);
        self.is_troubled = true;
        while self.now_ms < end {
            self.pass();
            if self.random.one_in(250) {
                self.fault();
            }
        }
        self.network.set_unreliable(false);
    }

    /// Nothing fails any more: everybody gets an answer, and all that was promised is there.
    pub fn settle(&mut self) {
        self.network.mend_links();
        self.network.set_unreliable(false);
        self.is_troubled = false;
        for node in 0..self.nodes.len() {
            self.around[node].stopped_until = 0;
            let trouble = self.nodes[node].trouble;
            match trouble {
                // All comes back by itself once the disk can write, but for logs that could not be put back as they were.
                Trouble::Writes if self.nodes[node].is_up() && !self.has_failed(node) => {
                    self.nodes[node].disk.set_faults(Faults::default());
                    self.nodes[node].trouble = Trouble::None;
                }
                Trouble::None if self.nodes[node].is_up() && !self.has_failed(node) => {}
                _ => self.restart(node, trouble == Trouble::Fatal),
            }
        }
        self.until("all brokers serve", |world| {
            world.brokers().count() == world.nodes.len()
        });
    }

    /// Clients finish, and what they were promised is looked for.
    pub fn finish(&mut self) -> Tally {
        self.everybody.stop();
        self.until("all clients have their answers", |world| {
            world.everybody.is_done()
        });
        self.check_end();
        // What was promised outlasts that all power fails.
        for node in 0..self.nodes.len() {
            self.restart(node, true);
        }
        self.settle();
        self.check_end();
        let (commits, refused, generations) = self.groups.tally();
        let (committed, aborted) = self.transfers.tally();
        Tally {
            transactions_committed: committed,
            transactions_aborted: aborted,
            commits,
            late_commits_refused: refused,
            generations: generations as u64,
            orders: self.orders.acknowledged_count() as u64,
            ..self.tally.clone()
        }
    }

    /// Whether a replica of that node takes no more writes before a restart.
    fn has_failed(&self, node: usize) -> bool {
        let broker = self.nodes[node].broker();
        broker.is_some_and(|broker| {
            let mut partitions = partitions(&broker).into_iter();
            partitions.any(|partition| partition.view().has_failed())
        })
    }

    fn check_end(&mut self) {
        self.until("all brokers have one image", |world| {
            world.images_differ().is_none()
        });
        self.until("all partitions are led", |world| world.unled().is_none());
        self.until("all damaged replicas are replaced", |world| {
            world.damaged().is_none()
        });
        self.check_topics();
        self.until("all transactions have ended", |world| {
            (0..transfers::PARTITIONS).all(|index| !world.read_transfers(index).has_open())
        });
        let committed: Vec<_> = (0..transfers::PARTITIONS)
            .map(|index| self.read_transfers(index).committed)
            .collect();
        if let Err(violation) = self.transfers.check(&committed) {
            panic!("{violation}");
        }
        let mut orders = Vec::new();
        for partition in 0..windows::SOURCE_PARTITIONS {
            for (json, _) in self.read(windows::SOURCE, partition) {
                orders.push(Order::from_json(&json).expect("what was produced"));
            }
        }
        if let Err(violation) = self.orders.check(&orders) {
            panic!("{violation}");
        }
        let expected = windows::expected(&orders);
        self.until("all windows have results", |world| {
            world.results().len() >= expected.len()
        });
        // Long enough for what should not come.
        for _ in 0..300 {
            self.pass();
        }
        // Leadership may be on its way to where it is preferred.
        self.until("all partitions are led", |world| world.unled().is_none());
        let mut results = BTreeMap::new();
        for (window, sums) in self.results() {
            if let Some(before) = results.insert(window.clone(), sums) {
                panic!("{window:?} has two results: {before:?} and {sums:?}");
            }
        }
        assert_eq!(results, expected, "windows and what they come to");
        for topic in windows::SIDE_TOPICS {
            let found = self.read_all(topic);
            assert!(found.is_empty(), "{topic} holds {found:?}");
        }
        self.tally.windows = results.len() as u64;
        self.check_panics();
    }

    // ---- what happens

    /// A moment passes.
    fn pass(&mut self) {
        let passed_ms = match self.random.below(12) {
            0 => self.random.below(50),
            1..5 => self.random.below(14),
            _ => self.random.below(5),
        };
        self.now_ms += passed_ms;
        self.network.advance(self.now_ms);
        for letter in self.network.take_due() {
            self.deliver(letter);
        }
        self.tell_news();
        let first = self.random.below(self.nodes.len() as u64) as usize;
        for turn in 0..self.nodes.len() {
            let node = (first + turn) % self.nodes.len();
            self.turn(node);
        }
        host::set_clocks(WALL_START_MS + self.now_ms as i64, self.now_ms as i64);
        self.clients.block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        self.note_doubts();
        self.check_panics();
    }

    /// A broker that is deposed may not know it yet.
    fn note_doubts(&self) {
        let brokers: Vec<Arc<Broker>> = self.brokers().collect();
        let active = brokers
            .iter()
            .filter(|broker| broker.controller.is_active());
        if active.count() > 1 {
            self.everybody.doubt_controller();
        }
        let watched = (0..OFFSETS_PARTITIONS).map(|index| (GROUP_METADATA_TOPIC, index));
        let states = 0..transfers::STATE_PARTITIONS;
        let watched = watched.chain(states.map(|index| (TRANSACTION_STATE_TOPIC, index)));
        let watched =
            watched.chain((0..windows::SOURCE_PARTITIONS).map(|index| (windows::SOURCE, index)));
        for (topic, index) in watched {
            let leads = |broker: &&Arc<Broker>| {
                let topic = broker.topics.by_name(topic);
                topic
                    .and_then(|topic| topic.partition(index))
                    .is_some_and(|partition| partition.view().is_serving())
            };
            if brokers.iter().filter(leads).count() > 1 {
                self.everybody.doubt_leader();
            }
        }
    }

    fn turn(&mut self, node: usize) {
        if self.around[node]
            .down_until
            .is_some_and(|until| until <= self.now_ms)
        {
            self.start(node);
        }
        if self.around[node].stopped_until > self.now_ms || !self.nodes[node].is_up() {
            return;
        }
        self.nodes[node].turn(self.now_ms);
        for _ in 0..self.random.below(4) {
            self.nodes[node].sync_step();
        }
        self.check_shown(node);
        self.note_controller(node);
        if let Some(failure) = self.nodes[node].failure() {
            assert!(
                self.nodes[node].trouble != Trouble::None || self.around[node].had_trouble,
                "broker {} does not start: {failure}",
                broker_id(node)
            );
            self.nodes[node].stop();
            self.around[node].down_until = Some(self.now_ms + 500 + self.random.below(2_000));
        }
    }

    fn deliver(&mut self, letter: Letter) {
        self.note(&letter);
        match letter.to {
            Place::Client(_) => {
                if let Content::Answer { call, payload } = letter.content {
                    self.network.answered(call, payload);
                }
            }
            Place::Broker(node) => {
                if self.around[node].stopped_until > self.now_ms {
                    // It waits in the socket.
                    self.network
                        .hold_back(letter, self.around[node].stopped_until);
                } else {
                    self.nodes[node].receive(letter);
                }
            }
        }
    }

    fn tell_news(&mut self) {
        for news in self.network.take_news() {
            match news {
                News::Connected { at, peer } => {
                    self.nodes[at].tell(|inbox| inbox.connected(broker_id(peer)));
                }
                News::Disconnected { at, peer } => {
                    self.nodes[at].tell(|inbox| inbox.disconnected(broker_id(peer)));
                }
                News::Dropped { at, peer, messages } => {
                    let groups = messages.iter().map(|message| message.group).collect();
                    self.nodes[at].tell(|inbox| inbox.unreachable(broker_id(peer), groups));
                }
            }
        }
    }

    /// Time passes until that is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = self.now_ms + PATIENCE_MS;
        while !is_so(self) {
            self.pass();
            assert!(
                self.now_ms < deadline,
                "it is not so after {PATIENCE_MS} ms that {what}; {}",
                self.state()
            );
        }
    }

    fn start(&mut self, node: usize) {
        let seed = self.random.number();
        self.around[node] = Circumstances {
            had_trouble: self.nodes[node].trouble != Trouble::None,
            ..Circumstances::default()
        };
        self.tally.starts += 1;
        // Always the same broker's disk: the others' replicas are a majority.
        let may_be_damaged = self.nodes.len() > 2 && node == self.damaged_node;
        if may_be_damaged && self.is_troubled && self.random.one_in(3) {
            self.damage(node);
        }
        let started = self.nodes[node].start(self.now_ms, seed);
        if let Err(error) = started {
            assert!(
                self.nodes[node].trouble != Trouble::None,
                "broker {} does not start: {error}",
                broker_id(node)
            );
            self.nodes[node].stop();
            self.around[node].down_until = Some(self.now_ms + 1_000);
        }
    }

    /// A bit flips in what is known to be synced of a log, or a write went elsewhere.
    fn damage(&mut self, node: usize) {
        let (from, to) = (self.any_partition(), self.any_partition());
        let (place, other) = (self.random.number(), self.random.number());
        let is_done = match self.random.one_in(2) {
            true => self.nodes[node].flip_bit(&from, place),
            false => self.nodes[node].misdirect(&from, &to, (place, other)),
        };
        if is_done {
            self.tally.damaged += 1;
        }
    }

    fn any_partition(&mut self) -> String {
        let (topic, partitions) = match self.random.below(5) {
            0 => (windows::SOURCE, windows::SOURCE_PARTITIONS),
            1 => (windows::DERIVED, windows::DERIVED_PARTITIONS),
            2 => (transfers::TOPIC, transfers::PARTITIONS),
            3 => (TRANSACTION_STATE_TOPIC, transfers::STATE_PARTITIONS),
            _ => (GROUP_METADATA_TOPIC, OFFSETS_PARTITIONS),
        };
        let partition = self.random.below(partitions.unsigned_abs().into());
        format!("{topic}-{partition}")
    }

    /// Power goes, or only the process dies and the page cache stays.
    fn kill(&mut self, node: usize, power_failure: bool) {
        self.nodes[node].stop();
        let state = &mut self.nodes[node];
        if power_failure {
            let random = &mut self.random;
            state.disk.crash(&mut || random.number());
        }
        state.disk.set_faults(Faults::default());
        state.trouble = Trouble::None;
        self.around[node].stopped_until = 0;
    }

    fn restart(&mut self, node: usize, power_failure: bool) {
        self.kill(node, power_failure);
        self.start(node);
    }

    fn fault(&mut self) {
        let node = self.random.below(self.nodes.len() as u64) as usize;
        let is_alone = self.nodes.len() == 1;
        if self.nodes[node].trouble != Trouble::None {
            return self.mend(node);
        }
        match self.random.below(12) {
            0 | 1 => {
                let power_failure = self.random.one_in(2);
                self.kill(node, power_failure);
                let down_ms = 10 + self.random.below(700);
                self.around[node].down_until = Some(self.now_ms + down_ms);
            }
            2 if self.around.iter().all(|other| other.down_until.is_none()) => {
                self.kill(node, true);
                let down_ms = 2_000 + self.random.below(9_000);
                self.around[node].down_until = Some(self.now_ms + down_ms);
            }
            3 | 4 => self.around[node].stopped_until = self.now_ms + 100 + self.random.below(7_000),
            5..8 if !is_alone => self.cut_or_mend_links(node),
            8 | 9 => self.spoil_disk(node),
            10 | 11 if !is_alone => self.transfer(node),
            _ => {}
        }
    }

    fn mend(&mut self, node: usize) {
        if self.nodes[node].trouble == Trouble::Fatal || self.random.one_in(2) {
            let power_failure = self.nodes[node].trouble == Trouble::Fatal;
            return self.restart(node, power_failure);
        }
        self.nodes[node].disk.set_faults(Faults::default());
        self.nodes[node].trouble = Trouble::None;
    }

    fn spoil_disk(&mut self, node: usize) {
        let (few, small) = (self.random.below(60), self.random.below(2_000));
        let choice = self.random.below(4);
        let state = &mut self.nodes[node];
        let used = state.disk.used_bytes();
        let (trouble, faults) = match choice {
            0 => (
                Trouble::Writes,
                Faults {
                    capacity_bytes: Some(used + small),
                    ..Faults::default()
                },
            ),
            1 => (
                Trouble::Writes,
                Faults {
                    fail_writes: true,
                    ..Faults::default()
                },
            ),
            2 => (
                Trouble::Fatal,
                Faults {
                    fail_syncs: true,
                    ..Faults::default()
                },
            ),
            _ => (
                Trouble::Fatal,
                Faults {
                    stop_after: Some(few),
                    ..Faults::default()
                },
            ),
        };
        state.trouble = trouble;
        state.disk.set_faults(faults);
        self.around[node].had_trouble = true;
    }

    fn cut_or_mend_links(&mut self, one: usize) {
        if self.network.is_cut() {
            return self.network.mend_links();
        }
        let other = self.random.below(self.nodes.len() as u64) as usize;
        let others = (0..self.nodes.len()).filter(|node| *node != one);
        let links: Vec<(usize, usize)> = match self.random.below(3) {
            // A node is cut off, a link is, or it carries one way only.
            0 => others
                .flat_map(|other| [(one, other), (other, one)])
                .collect(),
            1 => vec![(one, other), (other, one)],
            _ => vec![(one, other)],
        };
        for (from, to) in links {
            self.network.cut(from, to);
        }
    }

    /// Leadership of the metadata or of a partition is to move from where it is.
    fn transfer(&mut self, node: usize) {
        let to = self.random.below(self.nodes.len() as u64) as usize;
        let Some(broker) = self.nodes[node].broker() else {
            return;
        };
        let mut led: Vec<PartitionHandle> = vec![broker.controller.log().clone()];
        led.extend(partitions(&broker));
        led.retain(|partition| partition.view().is_serving());
        if let Some(count) = u64::try_from(led.len()).ok().filter(|count| *count > 0) {
            let at = self.random.below(count) as usize;
            led[at].transfer(Some(broker_id(to)));
        }
    }

    // ---- what is looked at

    fn brokers(&self) -> impl Iterator<Item = Arc<Broker>> {
        self.nodes.iter().filter_map(Node::broker)
    }

    fn check_panics(&self) {
        if let Some(violation) = self.everybody.first_violation() {
            panic!("{violation}");
        }
        let panicked = PANICS.with_borrow(|panics| panics.first().cloned());
        if let Some(panicked) = panicked {
            panic!("a task has panicked: {panicked}");
        }
    }

    /// What an image shows for the first time is open.
    fn check_shown(&mut self, node: usize) {
        let Some(broker) = self.nodes[node].broker() else {
            return;
        };
        let around = &mut self.around[node];
        let applied = broker.controller.applied_offset();
        if around.looked_at == applied {
            return;
        }
        around.looked_at = applied;
        let shown: Vec<Arc<Topic>> = broker
            .controller
            .read(|image| image.topics().cloned().collect());
        for topic in shown {
            if !around.shown.insert(topic.topic_id) {
                continue;
            }
            let handle = broker.topics.by_id(topic.topic_id);
            for (index, replicas) in (0..).zip(&topic.partitions) {
                if !replicas.contains(&broker.id()) || around.had_trouble {
                    continue;
                }
                let is_open = handle
                    .as_ref()
                    .is_some_and(|handle| handle.partition(index).is_some());
                let is_damaged = handle
                    .as_ref()
                    .is_some_and(|handle| handle.damaged().contains(&index));
                assert!(
                    is_open || is_damaged,
                    "broker {} shows {}-{index}, which is not open",
                    broker.id(),
                    topic.name
                );
            }
        }
        self.tally.topics = self.tally.topics.max(around.shown.len() as u64);
    }

    fn note_controller(&mut self, node: usize) {
        let Some(broker) = self.nodes[node].broker() else {
            return;
        };
        if broker.controller.is_active() {
            let now = (broker.id(), broker.controller.leader_epoch());
            if now.1 > self.last_controller.1 {
                self.last_controller = now;
                self.tally.controllers += 1;
            }
        }
    }

    /// Folds a letter into the digest (FNV-1a).
    fn note(&mut self, letter: &Letter) {
        let mut fold = |number: u64| {
            for byte in number.to_le_bytes() {
                self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        let place = |place| match place {
            Place::Broker(index) => index as u64,
            Place::Client(number) => 1_000 + u64::from(number),
        };
        fold(self.now_ms);
        fold(place(letter.from));
        fold(place(letter.to));
        match &letter.content {
            Content::Raft(messages) => {
                for message in messages {
                    fold(message.group.topic_id.as_u64_pair().0);
                    fold(message.message.term);
                    fold(message.message.index);
                    fold(message.message.commit);
                    fold(message.message.entries.len() as u64);
                }
            }
            Content::Pulse(mark) => fold(mark.epoch),
            Content::Notice(payload)
            | Content::Request { payload, .. }
            | Content::Answer { payload, .. } => {
                payload.iter().for_each(|byte| fold(u64::from(*byte)))
            }
        }
    }

    /// A replica that is not what it was or not open, or a move that is not over.
    fn damaged(&self) -> Option<String> {
        self.brokers().find_map(|broker| {
            let damaged = broker.topics.all().into_iter().find_map(|topic| {
                let closed = [topic.damaged(), topic.offline()].concat();
                let index = closed.first()?;
                Some(format!("{}-{index} of {}", topic.name, broker.id()))
            });
            let moving = broker.controller.read(|image| {
                let moving = image
                    .topics()
                    .find(|topic| topic.reassignments().next().is_some())?;
                Some(format!("{} moves: {:?}", moving.name, moving.moved))
            });
            damaged.or(moving)
        })
    }

    fn images_differ(&self) -> Option<String> {
        let images: Vec<_> = self
            .brokers()
            .map(|broker| {
                broker.controller.read(|image| {
                    (
                        image.cluster_id().to_owned(),
                        image.topics().cloned().collect::<Vec<_>>(),
                        image.broker_ids(),
                        image.next_producer_id(),
                    )
                })
            })
            .collect();
        let same = images.windows(2).all(|pair| pair[0] == pair[1]);
        (!same || images.len() < self.nodes.len()).then(|| format!("{images:?}"))
    }

    /// A partition that nobody leads, or more than one.
    fn unled(&self) -> Option<String> {
        let broker = self.brokers().next()?;
        let topics: Vec<Arc<Topic>> = broker
            .controller
            .read(|image| image.topics().cloned().collect());
        for topic in topics {
            for index in 0..topic.partitions.len() as i32 {
                if self.leader(topic.topic_id, index).is_none() {
                    return Some(format!("{}-{index}", topic.name));
                }
            }
        }
        None
    }

    fn leader(&self, topic_id: Uuid, index: i32) -> Option<PartitionHandle> {
        let mut led: Vec<PartitionHandle> = self
            .brokers()
            .filter_map(|broker| broker.topics.by_id(topic_id)?.partition(index))
            .filter(|partition| partition.view().is_serving())
            .collect();
        led.sort_by_key(|partition| partition.view().leader_epoch());
        led.pop()
    }

    /// All that was acknowledged to administrators is so, on every broker.
    fn check_topics(&self) {
        for (name, fate) in self.topics.fates() {
            for broker in self.brokers() {
                let there = broker
                    .controller
                    .read(|image| image.topic(&name).map(|topic| topic.topic_id));
                let is_so = match fate {
                    Fate::Absent => there.is_none(),
                    Fate::Exists(id) => there == Some(id),
                    Fate::Unknown => true,
                };
                assert!(
                    is_so,
                    "{name} is to be {fate:?}; broker {} has {there:?}",
                    broker.id()
                );
            }
            if let Fate::Exists(id) = fate {
                let ends = self.brokers().filter_map(|broker| {
                    let partition = broker.topics.by_id(id)?.partition(0)?;
                    Some(partition.view().high_watermark())
                });
                let (end, promised) = (ends.max(), self.topics.end(id));
                assert!(
                    end.is_some_and(|end| end >= promised),
                    "{name} ends at {end:?}; {promised} records were acknowledged"
                );
            }
        }
    }

    /// The values of a partition with their timestamps.
    fn read(&self, topic: &str, index: i32) -> Vec<(String, i64)> {
        let mut values = Vec::new();
        for batch in self.batches(topic, index) {
            let records = BatchRecords::open(&batch, 1 << 20).expect("records");
            for record in records.iter() {
                let record = record.expect("a record");
                let value = record
                    .value
                    .map(|value| String::from_utf8_lossy(value).into_owned());
                values.push((value.unwrap_or_default(), record.timestamp));
            }
        }
        values
    }

    /// What transactions have left in a partition.
    fn read_transfers(&self, index: i32) -> transfers::Reader {
        let mut reader = transfers::Reader::default();
        for batch in self.batches(transfers::TOPIC, index) {
            let header = BatchHeader::parse(&batch).expect("a header");
            if let Some(marker) =
                TransactionMarker::of_batch(&batch).filter(|_| header.is_control())
            {
                reader.marker(header.producer_id, marker.result);
                continue;
            }
            let records = BatchRecords::open(&batch, 1 << 20).expect("records");
            for record in records.iter() {
                let value = record.expect("a record").value.unwrap_or_default();
                let value = transfers::read_value(&String::from_utf8_lossy(value));
                reader.record(header.producer_id, value.expect("what was produced"));
            }
        }
        reader
    }

    /// The batches of a partition, as far as they are committed.
    fn batches(&self, topic: &str, index: i32) -> Vec<Bytes> {
        let id = self
            .brokers()
            .find_map(|broker| Some(broker.topics.by_name(topic)?.topic_id));
        let Some(partition) = id.and_then(|id| self.leader(id, index)) else {
            return Vec::new();
        };
        let view = partition.view();
        let (mut offset, end) = (view.log_start_offset(), view.high_watermark());
        let mut batches = Vec::new();
        while offset < end {
            let read = view
                .reader()
                .read(offset, 1 << 20, end, true)
                .expect("a log can be read");
            assert!(
                read.next_offset > offset,
                "{topic}-{index} ends before its high watermark"
            );
            offset = read.next_offset;
            for slice in read.slices {
                let read = BatchIter::new(slice).map(|batch| batch.expect("a batch"));
                // Raft's own are not for readers.
                let read = read.filter(|(header, _)| !header.is_internal());
                batches.extend(read.map(|(_, batch)| batch));
            }
        }
        batches
    }

    fn read_all(&self, topic: &str) -> Vec<(String, i64)> {
        let count = self
            .brokers()
            .find_map(|broker| Some(broker.topics.by_name(topic)?.partition_count()));
        (0..count.unwrap_or(0))
            .flat_map(|index| self.read(topic, index))
            .collect()
    }

    fn results(&self) -> Vec<(windows::Window, windows::Sums)> {
        self.read_all(windows::DERIVED)
            .into_iter()
            .map(|(json, timestamp)| {
                windows::result(&json, timestamp).unwrap_or_else(|| panic!("a result is {json}"))
            })
            .collect()
    }

    /// For whoever looks for what did not happen.
    fn state(&self) -> String {
        let brokers: Vec<String> = self
            .brokers()
            .map(|broker| {
                let jobs: Vec<_> = broker.job_statuses.all();
                format!(
                    "broker {}: applied {}, jobs {jobs:?}",
                    broker.id(),
                    broker.controller.applied_offset(),
                )
            })
            .collect();
        let tally = self.groups.tally();
        format!(
            "unled {:?}, damaged {:?}, groups {tally:?}, {} orders, {} results, {brokers:?}",
            self.unled(),
            self.damaged(),
            self.orders.acknowledged_count(),
            self.results().len(),
        )
    }
}

fn partitions(broker: &Broker) -> Vec<PartitionHandle> {
    let mut topics = broker.topics.all();
    topics.sort_by_key(|topic| topic.topic_id);
    topics.iter().flat_map(|topic| topic.handles()).collect()
}
