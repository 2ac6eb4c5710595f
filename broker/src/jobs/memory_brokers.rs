//! Three brokers over the topics of a cluster in memory. Each sees a partition through a replica of its own that lags, or through none,
//! and asks the leader over a network that loses requests and answers and delivers some late. Leaders change, and who led goes on
//! for a while as if it did: it takes appends that nobody else hears of, and answers what it knew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::cluster::{DerivedTopic, JobCluster, NewJobTopic, TopicInfo};
use super::cluster_log::{ClusterLog, PartitionPlace};
use super::log::{Chunk, JobLog, LogError};
use super::memory::{MemoryCluster, MemoryLog};
use super::tests::Random;
use crate::cluster::partition_request::{self, Operation};
use crate::shard::view::PartitionKey;

pub const BROKERS: i32 = 3;
/// Of a hundred requests so many are lost, so many are answered to nobody, and so many arrive late.
const LOST: u64 = 2;
const UNANSWERED: u64 = 2;
const LATE: u64 = 2;
const LAG: Duration = Duration::from_millis(15);

/// What all brokers share.
pub struct MemoryBrokers {
    pub cluster: Arc<MemoryCluster>,
    /// Of each partition.
    replicas: i32,
    state: Mutex<State>,
}

struct State {
    random: Random,
    is_faulty: bool,
    controller: i32,
    leaders: BTreeMap<(Uuid, i32), Leadership>,
    /// How far each replica has heard that its partition is committed.
    known_ends: HashMap<(i32, Uuid, i32), i64>,
}

#[derive(Clone)]
struct Leadership {
    leader: i32,
    epoch: i32,
    /// Before nobody leads.
    since: Instant,
    deposed: Option<Arc<Deposed>>,
}

/// A leader that has not heard that it is none any more.
struct Deposed {
    broker: i32,
    until: Instant,
    end: i64,
    tips: HashMap<i64, i32>,
}

impl MemoryBrokers {
    pub fn new(cluster: Arc<MemoryCluster>, replicas: i32, seed: u64) -> Arc<MemoryBrokers> {
        Arc::new(MemoryBrokers {
            cluster,
            replicas,
            state: Mutex::new(State {
                random: Random(seed),
                is_faulty: true,
                controller: 1,
                leaders: BTreeMap::new(),
                known_ends: HashMap::new(),
            }),
        })
    }

    pub fn broker(self: &Arc<Self>, id: i32) -> Arc<MemoryBroker> {
        Arc::new(MemoryBroker {
            id,
            brokers: Arc::clone(self),
        })
    }

    /// From now on nothing is lost.
    pub fn heal(&self) {
        self.lock().is_faulty = false;
    }

    /// Another broker, or the same once more, comes to lead some partition.
    pub fn change_a_leader(&self) {
        let all = self.cluster.all();
        let mut state = self.lock();
        let (topic_id, partition, log) = &all[state.random.below(all.len() as u64) as usize];
        let before = state.leadership(*topic_id, *partition);
        let rank = state.random.below(self.replicas.unsigned_abs().into()) as i32;
        let kept = state.random.below(4) as usize;
        let unaware = Duration::from_millis(state.random.below(1500));
        let leaderless = Duration::from_millis(state.random.below(400));
        let leadership = Leadership {
            leader: replica_of(*partition, rank),
            epoch: before.epoch + 1,
            since: Instant::now() + leaderless,
            deposed: Some(Arc::new(Deposed {
                broker: before.leader,
                until: Instant::now() + unaware,
                end: log.stable_offset(),
                tips: log.committed_tips(),
            })),
        };
        state.leaders.insert((*topic_id, *partition), leadership);
        drop(state);
        log.change_leader(kept);
    }

    pub fn change_controller(&self) {
        let mut state = self.lock();
        state.controller = 1 + state.random.below(BROKERS.unsigned_abs().into()) as i32;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replica(self: &Arc<Self>, broker: i32, key: PartitionKey) -> Option<Replica> {
        let has_one = (0..self.replicas).any(|rank| replica_of(key.index, rank) == broker);
        has_one.then_some(())?;
        Some(Replica {
            brokers: Arc::clone(self),
            broker,
            key,
            log: self.cluster.find(key.topic_id, key.index)?,
        })
    }

    fn leadership(&self, key: PartitionKey) -> Leadership {
        self.lock().leadership(key.topic_id, key.index)
    }

    /// Who leads, as that broker knows.
    fn known_leader(&self, broker: i32, key: PartitionKey) -> Option<i32> {
        self.cluster.find(key.topic_id, key.index)?;
        let now = self.leadership(key);
        if now.deposed_is(broker).is_some() {
            return Some(broker);
        }
        (now.since <= Instant::now()).then_some(now.leader)
    }
}

/// The first replicas lead at first.
fn replica_of(partition: i32, rank: i32) -> i32 {
    (partition + rank) % BROKERS + 1
}

impl State {
    fn leadership(&mut self, topic_id: Uuid, partition: i32) -> Leadership {
        let first = Leadership {
            leader: replica_of(partition, 0),
            epoch: 1,
            since: Instant::now(),
            deposed: None,
        };
        let known = self.leaders.entry((topic_id, partition));
        known.or_insert(first).clone()
    }
}

impl Leadership {
    /// What a broker knows that believes to lead and does not.
    fn deposed_is(&self, broker: i32) -> Option<&Deposed> {
        let deposed = self.deposed.as_deref()?;
        (deposed.broker == broker && Instant::now() < deposed.until).then_some(deposed)
    }

    fn leads(&self, broker: i32) -> bool {
        self.leader == broker && self.since <= Instant::now() && self.deposed_is(broker).is_none()
    }
}

/// A partition's replica on a broker.
#[derive(Clone)]
struct Replica {
    brokers: Arc<MemoryBrokers>,
    broker: i32,
    key: PartitionKey,
    log: MemoryLog,
}

impl Replica {
    fn leadership(&self) -> Leadership {
        self.brokers.leadership(self.key)
    }

    fn leads(&self) -> bool {
        self.leadership().leads(self.broker)
    }
}

impl JobLog for Replica {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, LogError>> {
        if self.leads() {
            return self.log.append(batch);
        }
        let until = self.leadership();
        let until = until.deposed_is(self.broker).map(|deposed| deposed.until);
        Box::pin(async move {
            if let Some(until) = until {
                tokio::time::sleep_until(until).await;
            }
            Err(LogError::NotLeader)
        })
    }

    fn read(&self, offset: i64, bytes_max: usize) -> BoxFuture<'static, Result<Chunk, LogError>> {
        let stable_offset = self.stable_offset();
        let read = self.log.read(offset, bytes_max);
        Box::pin(async move {
            let mut chunk = read.await?;
            // A follower knows whole batches, as they were committed; so the rest begins with one.
            while chunk.next_offset > stable_offset
                && let Some(last) = chunk.slices.pop()
            {
                let header = streamgauge_protocol::batch::BatchHeader::parse(&last).unwrap();
                chunk.next_offset = header.base_offset;
            }
            chunk.stable_offset = stable_offset;
            Ok(chunk)
        })
    }

    fn stable_offset(&self) -> i64 {
        let end = self.log.stable_offset();
        let leadership = self.leadership();
        if leadership.leads(self.broker) {
            return end;
        }
        if let Some(deposed) = leadership.deposed_is(self.broker) {
            return deposed.end;
        }
        let mut state = self.brokers.lock();
        let hears = !state.is_faulty || state.random.below(2) == 0;
        let key = (self.broker, self.key.topic_id, self.key.index);
        let known = state.known_ends.entry(key).or_default();
        if hears {
            *known = end;
        }
        *known
    }

    fn high_watermark(&self) -> i64 {
        self.stable_offset()
    }

    fn start_offset(&self) -> i64 {
        self.log.start_offset().min(self.stable_offset())
    }

    fn leader_epoch(&self) -> i32 {
        let leadership = self.leadership();
        match leadership.deposed_is(self.broker) {
            Some(_) => leadership.epoch - 1,
            None => leadership.epoch,
        }
    }

    fn is_serving(&self) -> bool {
        let leadership = self.leadership();
        self.log.is_serving()
            && (leadership.leads(self.broker) || leadership.deposed_is(self.broker).is_some())
    }

    fn wake(&self, waiter: &Arc<Notify>) {
        self.log.wake(waiter);
        if !self.leads() {
            let waiter = Arc::downgrade(waiter);
            tokio::spawn(async move {
                tokio::time::sleep(LAG).await;
                if let Some(waiter) = waiter.upgrade() {
                    waiter.notify_one();
                }
            });
        }
    }

    fn delete_records(&self, before_offset: i64) -> BoxFuture<'static, Result<(), LogError>> {
        match self.leads() {
            true => self.log.delete_records(before_offset),
            false => Box::pin(std::future::ready(Err(LogError::NotLeader))),
        }
    }

    fn last_sequence(&self, producer_id: i64) -> BoxFuture<'static, Result<Option<i32>, LogError>> {
        let leadership = self.leadership();
        if let Some(deposed) = leadership.deposed_is(self.broker) {
            let last = deposed.tips.get(&producer_id).copied();
            return Box::pin(std::future::ready(Ok(last)));
        }
        match leadership.leads(self.broker) {
            true => self.log.last_sequence(producer_id),
            false => Box::pin(std::future::ready(Err(LogError::NotLeader))),
        }
    }
}

struct MemoryPlace {
    brokers: Arc<MemoryBrokers>,
    broker: i32,
    key: PartitionKey,
}

impl PartitionPlace for MemoryPlace {
    fn replica(&self) -> Option<Arc<dyn JobLog>> {
        let replica = self.brokers.replica(self.broker, self.key)?;
        Some(Arc::new(replica))
    }

    fn leader(&self) -> Option<i32> {
        let leader = self.brokers.known_leader(self.broker, self.key)?;
        (leader != self.broker).then_some(leader)
    }

    fn ask(
        &self,
        leader: i32,
        operation: &Operation,
        time_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LogError>> {
        let brokers = Arc::clone(&self.brokers);
        let request = partition_request::encode(self.key, operation);
        let serve = async move {
            let replica =
                |key| -> Option<Arc<dyn JobLog>> { Some(Arc::new(brokers.replica(leader, key)?)) };
            partition_request::serve_from(replica, request).await
        };
        let (fate, delay) = {
            let mut state = self.brokers.lock();
            let fate = match state.is_faulty {
                true => state.random.below(100),
                false => 100,
            };
            let delay = match fate {
                0..LATE => state.random.below(4000),
                _ => state.random.below(4),
            };
            (fate, Duration::from_millis(delay))
        };
        let lost = || Err(LogError::Failed("no answer".to_owned()));
        Box::pin(async move {
            if fate < LATE {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    serve.await;
                });
                return lost();
            }
            tokio::time::sleep(delay).await;
            if fate < LATE + LOST {
                return lost();
            }
            let answer = tokio::time::timeout(time_max, serve).await;
            match answer {
                Ok(answer) if fate >= LATE + LOST + UNANSWERED => Ok(answer),
                _ => lost(),
            }
        })
    }
}

/// The jobs' view of one of the brokers.
pub struct MemoryBroker {
    id: i32,
    brokers: Arc<MemoryBrokers>,
}

impl MemoryBroker {
    /// The controller does it, a while later at times, and at times when nobody waits any more.
    fn command(
        &self,
        command: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> BoxFuture<'static, Result<(), String>> {
        let (delay, patience) = {
            let mut state = self.brokers.lock();
            let delay = match state.is_faulty && state.random.below(3) == 0 {
                true => state.random.below(2000),
                false => 0,
            };
            (delay, state.random.below(2000))
        };
        Box::pin(async move {
            let done = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                command.await
            });
            match tokio::time::timeout(Duration::from_millis(patience), done).await {
                Ok(done) => done.map_err(|error| error.to_string())?,
                Err(_) => Err("the controller does not answer".to_owned()),
            }
        })
    }
}

impl JobCluster for MemoryBroker {
    fn changes(&self) -> watch::Receiver<u64> {
        self.brokers.cluster.changes()
    }

    fn derived_topics(&self) -> Vec<DerivedTopic> {
        self.brokers.cluster.derived_topics()
    }

    fn topics_with_prefix(&self, prefix: &str) -> Vec<(String, Uuid)> {
        self.brokers.cluster.topics_with_prefix(prefix)
    }

    fn topic(&self, name: &str) -> Option<TopicInfo> {
        self.brokers.cluster.topic(name)
    }

    fn log(&self, topic_id: Uuid, partition: i32) -> Option<Arc<dyn JobLog>> {
        self.brokers.cluster.find(topic_id, partition)?;
        Some(Arc::new(ClusterLog::new(MemoryPlace {
            brokers: Arc::clone(&self.brokers),
            broker: self.id,
            key: PartitionKey {
                topic_id,
                index: partition,
            },
        })))
    }

    fn runs_here(&self, internal_topic: &str) -> bool {
        match self.topic(internal_topic) {
            Some(internal) => {
                let key = PartitionKey {
                    topic_id: internal.topic_id,
                    index: 0,
                };
                self.brokers.known_leader(self.id, key) == Some(self.id)
            }
            None => self.brokers.lock().controller == self.id,
        }
    }

    fn create_topic(&self, new: NewJobTopic) -> BoxFuture<'static, Result<(), String>> {
        let cluster = Arc::clone(&self.brokers.cluster);
        self.command(async move { cluster.create_topic(new).await })
    }

    fn delete_topic(&self, topic_id: Uuid) -> BoxFuture<'static, Result<(), String>> {
        let cluster = Arc::clone(&self.brokers.cluster);
        self.command(async move { cluster.delete_topic(topic_id).await })
    }

    fn assign_producer_ids(
        &self,
        topic_id: Uuid,
        count: i64,
    ) -> BoxFuture<'static, Result<i64, String>> {
        self.brokers.cluster.assign_producer_ids(topic_id, count)
    }
}
