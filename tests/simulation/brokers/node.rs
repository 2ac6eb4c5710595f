//! One broker: the production core on a disk in memory, a runtime of its own whose clock the world moves, and its shard, which
//! the world turns.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use streamgauge::api;
use streamgauge::broker::{Broker, Endpoint};
use streamgauge::cluster::{Cluster, Transport};
use streamgauge::config::{BrokerConfig, ConfigLoader};
use streamgauge::jobs::{BrokerCluster, supervise};
use streamgauge::peers::{GroupMessage, Inbox};
use streamgauge::server::connection::Peer;
use streamgauge::server::core::{self, Ground, jobs_config, shard_directory};
use streamgauge::shard::core::{Shard, ShardSettings};
use streamgauge::shard::event::{Effect, Event};
use streamgauge::shard::handle::ShardHandle;
use streamgauge_storage::StorageError;
use streamgauge_storage::disk::Disk;
use streamgauge_storage::disk::sim::{SECTOR_BYTES, SimDisk};
use streamgauge_storage::log::{Log, SyncTicket};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::host;
use crate::network::{Content, Letter, Network, Place, Wire, broker_id};
use crate::transfers::STATE_PARTITIONS;

const DIRECTORY: &str = "/data";

/// Partitions of `__consumer_offsets`.
pub const OFFSETS_PARTITIONS: i32 = 2;

/// As in `shard::runner`.
const TICK_MS: u64 = 100;

/// What went wrong with the disk and is not mended yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Full, or refusing writes.
    Writes,
    /// A sync failed, or power is about to go: only a restart helps.
    Fatal,
}

/// What came of starting.
#[derive(Default)]
struct Start {
    inbox: Option<Arc<dyn Inbox>>,
    broker: Option<Arc<Broker>>,
    failed: Option<String>,
    /// Kept, or all tasks would end.
    stop: Option<(watch::Sender<bool>, watch::Sender<bool>)>,
}

/// A process.
struct Life {
    shard: Shard,
    events: Receiver<Event>,
    mailbox: Sender<Event>,
    syncing: Option<(u64, Vec<SyncTicket>)>,
    next_tick_ms: u64,
    start: Arc<Mutex<Start>>,
    runtime: Runtime,
}

pub struct Node {
    index: usize,
    nodes: usize,
    pub disk: SimDisk,
    pub trouble: Trouble,
    /// How far its wall clock is from the world's.
    pub skew_ms: i64,
    network: Network,
    life: Option<Life>,
}

impl Node {
    pub fn new(index: usize, nodes: usize, skew_ms: i64, network: Network) -> Self {
        Self {
            index,
            nodes,
            disk: SimDisk::new(),
            trouble: Trouble::None,
            skew_ms,
            network,
            life: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// The broker, once it is one of its cluster.
    pub fn broker(&self) -> Option<Arc<Broker>> {
        self.start_of(|start| start.broker.clone())
    }

    /// Why it does not start.
    pub fn failure(&self) -> Option<String> {
        self.start_of(|start| start.failed.clone())
    }

    fn start_of<T>(&self, look: impl FnOnce(&Start) -> Option<T>) -> Option<T> {
        let life = self.life.as_ref()?;
        look(&life.start.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the clocks of what runs from here on to this broker's.
    fn enter(&self, now_ms: u64) -> i64 {
        let wall_ms = crate::world::WALL_START_MS + to_i64(now_ms) + self.skew_ms;
        host::set_clocks(wall_ms, to_i64(now_ms));
        wall_ms
    }

    /// The last file of a partition's log of which something is known to be synced, and how much of it.
    fn synced(&self, partition: &str) -> Option<(PathBuf, u64)> {
        let directory = Path::new(DIRECTORY).join(partition);
        let synced = Log::recovery_point(&self.disk, &directory);
        let path = directory.join(format!("{:020}.log", synced.base_offset));
        let there = self.disk.list(&directory).unwrap_or_default();
        let is_there = there.iter().any(|name| path.ends_with(name));
        (synced.position > 0 && is_there).then_some((path, synced.position))
    }

    /// Flips a bit of what is known to be synced of a partition, if there is any.
    pub fn flip_bit(&self, partition: &str, place: u64) -> bool {
        let Some((path, length)) = self.synced(partition) else {
            return false;
        };
        self.disk.flip_bit(&path, (place % (length * 8)) as usize);
        true
    }

    /// As if a sector of one partition that is known to be synced had been written to another place of it, or of another's.
    pub fn misdirect(&self, from: &str, to: &str, places: (u64, u64)) -> bool {
        let sector = |partition, place: u64| {
            let (path, length) = self.synced(partition)?;
            let sectors = length / SECTOR_BYTES as u64;
            (sectors > 0).then(|| (path, (place % sectors) as usize))
        };
        let (Some(from), Some(to)) = (sector(from, places.0), sector(to, places.1)) else {
            return false;
        };
        if from == to {
            return false;
        }
        self.disk.misdirect((&from.0, from.1), (&to.0, to.1));
        true
    }

    /// Starts the process. It serves when others let it.
    pub fn start(&mut self, now_ms: u64, seed: u64) -> Result<(), StorageError> {
        let wall_ms = self.enter(now_ms);
        let config = Arc::new(self.config());
        let directory = PathBuf::from(DIRECTORY);
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        disk.create_dir_all(&directory)?;
        let cluster = Arc::new(Cluster::new(config.node_id));
        let settings = ShardSettings {
            broker_id: config.node_id,
            number: 0,
            directory: shard_directory(&directory, 0),
            retention_check_interval_ms: 5_000,
            producer_expiration_ms: config.producer_id_expiration_ms,
            seed,
            quotas: Arc::clone(&cluster.quotas),
        };
        let shard = Shard::open(settings, Arc::clone(&disk), wall_ms)?;
        let (mailbox, events) = unbounded();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without threads");
        let start = Arc::new(Mutex::new(Start::default()));
        let ground = Ground {
            endpoint: Endpoint {
                host: format!("broker-{}", self.index),
                port: 9092,
            },
            directory,
            disk,
            shards: vec![ShardHandle::new(mailbox.clone())],
            cluster,
            config,
        };
        let wire = (self.nodes > 1).then(|| {
            Arc::new(Wire {
                network: self.network.clone(),
                broker: self.index,
            }) as Arc<dyn Transport>
        });
        runtime.spawn(run(
            ground,
            wire,
            Arc::clone(&start),
            self.network.clone(),
            self.index,
        ));
        self.life = Some(Life {
            shard,
            events,
            mailbox,
            syncing: None,
            next_tick_ms: now_ms + TICK_MS,
            start,
            runtime,
        });
        Ok(())
    }

    fn config(&self) -> BrokerConfig {
        let mut loader = ConfigLoader::new();
        let voters: Vec<String> = (0..self.nodes)
            .map(|index| format!("{}@broker-{index}:9093", broker_id(index)))
            .collect();
        let replicas = self.nodes.min(3).to_string();
        let majority = (self.nodes.min(3) / 2 + 1).to_string();
        let settings = [
            ("node.id", broker_id(self.index).to_string()),
            ("streamgauge.shards", "1".into()),
            ("default.replication.factor", replicas),
            ("min.insync.replicas", majority),
            (
                "offsets.topic.num.partitions",
                OFFSETS_PARTITIONS.to_string(),
            ),
            (
                "transaction.state.log.num.partitions",
                STATE_PARTITIONS.to_string(),
            ),
            (
                "transaction.abort.timed.out.transaction.cleanup.interval.ms",
                "2000".to_owned(),
            ),
            ("group.initial.rebalance.delay.ms", "200".into()),
            ("leader.imbalance.check.interval.seconds", "7".into()),
            ("log.segment.bytes", "1048576".into()),
        ];
        for (name, value) in settings {
            loader.program(name, &value);
        }
        if self.nodes > 1 {
            loader.program("controller.quorum.voters", &voters.join(","));
        }
        loader
            .finish("simulation")
            .expect("these settings are valid")
    }

    /// The process ends, with all its tasks.
    pub fn stop(&mut self) {
        self.network.fall(self.index);
        self.life = None;
    }

    /// Lets tasks and shard do what there is to do.
    pub fn turn(&mut self, now_ms: u64) {
        let wall_ms = self.enter(now_ms);
        let (index, network) = (self.index, self.network.clone());
        let Some(life) = &mut self.life else { return };
        life.runtime.block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        for event in life.events.try_iter().take(1024) {
            life.shard.handle(event, wall_ms);
        }
        if now_ms >= life.next_tick_ms {
            life.next_tick_ms = now_ms + TICK_MS;
            life.shard.handle(Event::Tick, wall_ms);
        }
        if let Some(Effect::Sync { round, tickets }) = life.shard.flush(wall_ms) {
            assert!(life.syncing.is_none(), "two rounds of syncs at once");
            life.syncing = Some((round, tickets));
        }
        let mut by_broker: Vec<(i32, Vec<GroupMessage>)> = Vec::new();
        for (to, message) in life.shard.take_outbox() {
            match by_broker.iter_mut().find(|(broker, _)| *broker == to) {
                Some((_, messages)) => messages.push(message),
                None => by_broker.push((to, vec![message])),
            }
        }
        for (to, messages) in by_broker {
            network.send_raft(index, crate::network::broker_index(to), messages);
        }
        let wire = Wire {
            network,
            broker: index,
        };
        for (to, mark) in life.shard.take_pulses() {
            wire.pulse(to, mark);
        }
    }

    /// Syncs one file of the round under way, or ends the round.
    pub fn sync_step(&mut self) {
        let Some(life) = &mut self.life else { return };
        let Some((round, tickets)) = &mut life.syncing else {
            return;
        };
        let result = match tickets.pop() {
            Some(ticket) => match ticket.run() {
                Ok(()) => return,
                Err(error) => Err(error.to_string()),
            },
            None => Ok(()),
        };
        let round = *round;
        life.syncing = None;
        drop(life.mailbox.send(Event::Synced { round, result }));
    }

    /// A letter has come. What it begins runs on this broker's runtime.
    pub fn receive(&self, letter: Letter) {
        let Some(life) = &self.life else { return };
        let inbox = self.start_of(|start| start.inbox.clone());
        match (letter.content, letter.from) {
            (Content::Raft(messages), Place::Broker(from)) => {
                if let Some(inbox) = inbox {
                    inbox.raft(broker_id(from), messages);
                }
            }
            (Content::Notice(payload), Place::Broker(from)) => {
                if let Some(inbox) = inbox {
                    inbox.notice(broker_id(from), payload);
                }
            }
            (Content::Pulse(mark), Place::Broker(from)) => {
                if let Some(inbox) = inbox {
                    inbox.pulse(broker_id(from), mark);
                }
            }
            (Content::Request { call, payload }, Place::Broker(from)) => {
                let Some(inbox) = inbox else { return };
                let answer = inbox.request(broker_id(from), payload);
                let (network, here) = (self.network.clone(), self.index);
                life.runtime.spawn(async move {
                    network.answer(here, Place::Broker(from), call, answer.await);
                });
            }
            (Content::Request { call, payload }, Place::Client(client)) => {
                let Some(broker) = self.broker() else {
                    // Nobody accepts connections yet.
                    self.network.forget(call);
                    return;
                };
                let (network, here) = (self.network.clone(), self.index);
                life.runtime.spawn(async move {
                    match serve_client(&broker, payload).await {
                        Some(answer) => network.answer(here, Place::Client(client), call, answer),
                        None => network.forget(call),
                    }
                });
            }
            (Content::Answer { call, payload }, _) => self.network.answered(call, payload),
            (_, Place::Client(_)) => unreachable!("clients send requests"),
        }
    }

    /// The transport tells of its connections.
    pub fn tell(&self, news: impl FnOnce(&dyn Inbox)) {
        if let Some(inbox) = self.start_of(|start| start.inbox.clone()) {
            news(&*inbox);
        }
    }
}

/// As a connection does it.
async fn serve_client(broker: &Arc<Broker>, frame: Bytes) -> Option<Bytes> {
    let peer = Peer::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let answer = api::handle(broker, &peer, frame).ok()?.answer.await.ok()?;
    let bytes: Vec<u8> = answer
        .pieces
        .iter()
        .flat_map(|piece| piece.iter().copied())
        .collect();
    (!bytes.is_empty()).then(|| Bytes::from(bytes))
}

/// A broker's life, as `server::start` leads it.
async fn run(
    ground: Ground,
    wire: Option<Arc<dyn Transport>>,
    start: Arc<Mutex<Start>>,
    network: Network,
    index: usize,
) {
    let known = Arc::clone(&start);
    let connect = move |_: &core::Identity, inbox: Arc<dyn Inbox>| {
        known.lock().unwrap_or_else(PoisonError::into_inner).inbox = Some(inbox);
        network.rise(index);
        Ok(wire)
    };
    let started = core::start(ground, connect).await;
    let mut start = start.lock().unwrap_or_else(PoisonError::into_inner);
    match started {
        Ok(started) => {
            let broker = started.broker;
            let (stop_jobs, stopped) = watch::channel(false);
            let jobs = supervise(
                Arc::new(BrokerCluster::new(Arc::clone(&broker))),
                jobs_config(&broker),
                Arc::clone(&broker.job_statuses),
                stopped,
            );
            drop(tokio::spawn(jobs));
            start.stop = Some((started.stop, stop_jobs));
            start.broker = Some(broker);
        }
        Err(error) => start.failed = Some(error.to_string()),
    }
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).expect("a simulated time")
}

/// The time for which something may be waited for, in the tasks of clients.
pub async fn sleep_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
