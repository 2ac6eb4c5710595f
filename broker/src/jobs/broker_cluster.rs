//! The broker as jobs see it: partitions through their handles and views, metadata through the controller.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::log::ReadError;
use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

use super::cluster::{DerivedTopic, JobCluster, NewJobTopic, TopicInfo};
use super::cluster_log::{ClusterLog, PartitionPlace};
use super::log::{Chunk, JobLog, LogError};
use crate::api::fetch;
use crate::broker::Broker;
use crate::cluster::ClusterRequest;
use crate::cluster::partition_request::{self, Operation};
use crate::config::AGGREGATION;
use crate::controller::command::Command;
use crate::controller::decide::NewTopic;
use crate::controller::image::Topic;
use crate::shard::event::{Acks, AppendError, DeleteRecordsError};
use crate::shard::handle::PartitionHandle;
use crate::shard::view::PartitionKey;

impl JobLog for PartitionHandle {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, LogError>> {
        let pending = PartitionHandle::append(self, batch, Acks::All);
        Box::pin(async move {
            match pending.answer().await {
                Ok(appended) => Ok(appended.base_offset),
                Err(
                    AppendError::NotLeader
                    | AppendError::PredecessorRefused
                    | AppendError::UnknownPartition,
                ) => Err(LogError::NotLeader),
                Err(error) => Err(LogError::Failed(error.to_string())),
            }
        })
    }

    fn read(&self, offset: i64, bytes_max: usize) -> BoxFuture<'static, Result<Chunk, LogError>> {
        let partition = self.clone();
        Box::pin(async move {
            let view = partition.view();
            let stable_offset = view.last_stable_offset();
            match fetch::read_committed(view, offset, bytes_max, stable_offset, true).await {
                Ok(committed) => Ok(Chunk {
                    next_offset: committed.read.next_offset,
                    slices: committed.into_slices(),
                    stable_offset,
                }),
                Err(ReadError::OffsetOutOfRange {
                    offset,
                    log_start_offset,
                    ..
                }) => Err(LogError::OutOfRange {
                    offset,
                    start_offset: log_start_offset,
                }),
                Err(error) => Err(LogError::Failed(error.to_string())),
            }
        })
    }

    fn stable_offset(&self) -> i64 {
        self.view().last_stable_offset()
    }

    fn high_watermark(&self) -> i64 {
        self.view().high_watermark()
    }

    fn start_offset(&self) -> i64 {
        self.view().log_start_offset()
    }

    fn leader_epoch(&self) -> i32 {
        self.view().leader_epoch()
    }

    fn is_serving(&self) -> bool {
        self.view().is_serving()
    }

    fn wake(&self, waiter: &Arc<Notify>) {
        self.view().wake(waiter);
    }

    fn delete_records(&self, before_offset: i64) -> BoxFuture<'static, Result<(), LogError>> {
        let partition = self.clone();
        Box::pin(async move {
            match PartitionHandle::delete_records(&partition, before_offset).await {
                Ok(_) => Ok(()),
                Err(DeleteRecordsError::NotLeader) => Err(LogError::NotLeader),
                Err(error) => Err(LogError::Failed(error.to_string())),
            }
        })
    }

    fn last_sequence(&self, producer_id: i64) -> BoxFuture<'static, Result<Option<i32>, LogError>> {
        let partition = self.clone();
        Box::pin(async move {
            let producers = partition.producers().await.ok_or(LogError::NotLeader)?;
            let found = producers
                .iter()
                .find(|producer| producer.producer_id == producer_id);
            // An entry may have been made by other batches than those with sequences.
            Ok(found
                .map(|producer| producer.last_sequence())
                .filter(|last| *last >= 0))
        })
    }
}

/// A partition as a broker sees it.
struct BrokerPartition {
    broker: Arc<Broker>,
    key: PartitionKey,
    long_polls: Arc<Semaphore>,
}

impl PartitionPlace for BrokerPartition {
    fn replica(&self) -> Option<Arc<dyn JobLog>> {
        let topic = self.broker.topics.by_id(self.key.topic_id)?;
        Some(Arc::new(topic.partition(self.key.index)?))
    }

    fn leader(&self) -> Option<i32> {
        let known = self.broker.leadership(self.key.topic_id, self.key.index)?;
        (known.leader != self.broker.id()).then_some(known.leader)
    }

    fn ask(
        &self,
        leader: i32,
        operation: &Operation,
        time_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LogError>> {
        let broker = Arc::clone(&self.broker);
        let key = self.key;
        let mut operation = operation.clone();
        let long_polls = Arc::clone(&self.long_polls);
        Box::pin(async move {
            let mut long_poll = None;
            if let Operation::Positions { wait_ms, .. } = &mut operation
                && *wait_ms > 0
            {
                long_poll = long_polls.try_acquire().ok();
                if long_poll.is_none() {
                    tokio::time::sleep(SHORT_POLL_INTERVAL).await;
                    *wait_ms = 0;
                }
            }
            let request = ClusterRequest::Partition(partition_request::encode(key, &operation));
            let answer = broker.cluster.ask(leader, &request, time_max).await;
            drop(long_poll);
            answer.map_err(|error| LogError::Failed(error.to_string()))
        })
    }
}

/// Questions to other brokers that these keep until there is news: as many as leave room for the rest of what a peer may be asked
/// at once. Beyond, it is asked again and again.
const LONG_POLLS_MAX: usize = 64;
const SHORT_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The jobs' view of a broker.
pub struct BrokerCluster {
    broker: Arc<Broker>,
    long_polls: Arc<Semaphore>,
}

impl BrokerCluster {
    pub fn new(broker: Arc<Broker>) -> BrokerCluster {
        BrokerCluster {
            broker,
            long_polls: Arc::new(Semaphore::new(LONG_POLLS_MAX)),
        }
    }
}

fn partitions(topic: &Topic) -> i32 {
    i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX)
}

fn derived(topic: &Topic) -> Option<DerivedTopic> {
    let declaration = topic.configs.get(AGGREGATION)?;
    if declaration.trim().is_empty() {
        return None;
    }
    let replicas = topic.partitions.first().map_or(1, Vec::len);
    Some(DerivedTopic {
        name: topic.name.clone(),
        topic_id: topic.topic_id,
        partitions: partitions(topic),
        replication_factor: i16::try_from(replicas).unwrap_or(i16::MAX),
        declaration: declaration.clone(),
        producer_id: topic.aggregation_producer_id,
    })
}

impl JobCluster for BrokerCluster {
    fn changes(&self) -> watch::Receiver<u64> {
        self.broker.controller.changes()
    }

    fn derived_topics(&self) -> Vec<DerivedTopic> {
        self.broker
            .controller
            .read(|image| image.topics().filter_map(|topic| derived(topic)).collect())
    }

    fn topics_with_prefix(&self, prefix: &str) -> Vec<(String, Uuid)> {
        self.broker.controller.read(|image| {
            image
                .topics_from(prefix)
                .take_while(|topic| topic.name.starts_with(prefix))
                .map(|topic| (topic.name.clone(), topic.topic_id))
                .collect()
        })
    }

    fn topic(&self, name: &str) -> Option<TopicInfo> {
        self.broker.controller.read(|image| {
            image.topic(name).map(|topic| TopicInfo {
                topic_id: topic.topic_id,
                partitions: partitions(topic),
            })
        })
    }

    fn log(&self, topic_id: Uuid, partition: i32) -> Option<Arc<dyn JobLog>> {
        let key = PartitionKey {
            topic_id,
            index: partition,
        };
        let brokers = self.broker.controller.read(|image| image.brokers().count());
        if self.broker.config.voters().len() == 1 && brokers <= 1 {
            // Nobody else can lead.
            let handle = self.broker.topics.by_id(topic_id)?.partition(partition)?;
            return Some(Arc::new(handle));
        }
        self.broker.topics.by_id(topic_id)?;
        Some(Arc::new(ClusterLog::new(BrokerPartition {
            broker: Arc::clone(&self.broker),
            key,
            long_polls: Arc::clone(&self.long_polls),
        })))
    }

    fn runs_here(&self, internal_topic: &str) -> bool {
        let broker = &self.broker;
        match self.topic(internal_topic) {
            Some(internal) => broker
                .leadership(internal.topic_id, 0)
                .is_some_and(|known| known.leader == broker.id()),
            // Somebody has to make it.
            None => broker.controller.is_active(),
        }
    }

    fn create_topic(&self, new: NewJobTopic) -> BoxFuture<'static, Result<(), String>> {
        let broker = Arc::clone(&self.broker);
        Box::pin(async move {
            let new = NewTopic {
                name: new.name,
                partitions: new.partitions,
                replication_factor: new.replication_factor,
                assignments: Vec::new(),
                configs: new.configs,
                internal: new.internal,
            };
            match broker.command(Command::CreateTopic(new)).await {
                Err(refusal) if refusal.code != ErrorCode::TopicAlreadyExists => {
                    Err(refusal.message)
                }
                _ => Ok(()),
            }
        })
    }

    fn delete_topic(&self, topic_id: Uuid) -> BoxFuture<'static, Result<(), String>> {
        let broker = Arc::clone(&self.broker);
        Box::pin(async move {
            let done = broker.command(Command::DeleteTopic { topic_id }).await;
            done.map(|_| ()).map_err(|refusal| refusal.message)
        })
    }

    fn assign_producer_ids(
        &self,
        topic_id: Uuid,
        count: i64,
    ) -> BoxFuture<'static, Result<i64, String>> {
        let broker = Arc::clone(&self.broker);
        Box::pin(async move {
            let command = Command::AssignAggregationProducers { topic_id, count };
            match broker.command(command).await {
                Ok(Some(first)) => Ok(first),
                Ok(None) => Err("the controller gave no producer ids".to_owned()),
                Err(refusal) => Err(refusal.message),
            }
        })
    }
}
