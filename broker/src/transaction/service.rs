//! The transaction coordinator of a broker.
//!
//! A transactional id belongs to one partition of `__transaction_state`, by the hash of its name, and is served by the leader of that
//! partition.

use super::coordinator::{Listed, Producer, Reply, Request, TransactionConfig, TransactionMachine};
use super::ending::{Endings, Surroundings};
use super::markers::{self, Marker};
use super::state::{TopicPartition, Transaction};
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::coordinator::coordinators::{self, Coordinators};
use crate::coordinator::log::CoordinatorLog;
use crate::coordinator::runtime::{Clock, RuntimeSettings};
use futures_util::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use std::sync::{Arc, OnceLock, Weak};

/// Records of transactions are small, unless they have very many partitions.
const APPEND_BYTES_MAX: usize = 512 * 1_024;
const MAILBOX_REQUESTS_MAX: usize = 1_024;

/// All partitions of `__transaction_state` that this broker leads.
pub struct TransactionCoordinator {
    config: TransactionConfig,
    timeout_ms_max: i32,
    coordinators: Coordinators<TransactionMachine>,
    /// Set once there is a broker around it.
    surroundings: OnceLock<Arc<dyn Surroundings>>,
}

impl TransactionCoordinator {
    /// A coordinator that leads no partition yet.
    pub fn new(config: &BrokerConfig, clock: Clock) -> Self {
        let settings = RuntimeSettings {
            append_bytes_max: APPEND_BYTES_MAX,
            commit_timeout_ms: config.request_timeout_ms,
            mailbox_requests_max: MAILBOX_REQUESTS_MAX,
        };
        Self {
            config: TransactionConfig {
                writings: Arc::default(),
                abort_interval_ms: config.transaction_abort_interval_ms,
                expiration_ms: config.transactional_id_expiration_ms,
                expiration_interval_ms: config.transactional_id_expiration_interval_ms,
            },
            timeout_ms_max: config.transaction_max_timeout_ms,
            coordinators: Coordinators::new(
                settings,
                clock,
                config.transaction_state_log_num_partitions,
            ),
            surroundings: OnceLock::new(),
        }
    }

    /// Gives it what it needs of its broker; before, it leads nothing.
    pub fn connect(&self, broker: &Arc<Broker>) {
        let host: Arc<dyn Surroundings> = Arc::new(Host(Arc::downgrade(broker)));
        // Only the first broker is its own.
        let _ = self.surroundings.set(host);
    }

    /// The broker leads this partition from now on, in this epoch; see [`Coordinators::become_leader`].
    pub fn become_leader(&self, partition: i32, epoch: i32, log: Arc<dyn CoordinatorLog>) {
        let Some(surroundings) = self.surroundings.get().cloned() else {
            return;
        };
        let config = self.config.clone();
        self.coordinators
            .become_leader(partition, log, config, |mailbox| {
                let mut endings = Endings::new(surroundings, mailbox, epoch);
                Box::new(move |effect| endings.carry_out(effect))
            });
    }

    /// The broker does not lead this partition any more: waiting requests get NOT_COORDINATOR.
    pub fn resign(&self, partition: i32) {
        self.coordinators.resign(partition);
    }

    /// The partition of a transactional id.
    pub fn partition_for(&self, transactional_id: &str) -> i32 {
        self.coordinators.partition_for(transactional_id)
    }

    /// See [`Coordinators::set_partition_count`].
    pub fn set_partition_count(&self, count: i32) {
        self.coordinators.set_partition_count(count);
    }

    async fn ask(&self, transactional_id: &str, request: Request) -> Result<Reply, ResponseError> {
        self.coordinators.ask_for(transactional_id, request).await
    }

    /// The producer of a transactional id begins, or begins again.
    pub async fn init(
        &self,
        transactional_id: &str,
        timeout_ms: i32,
        known: Option<Producer>,
    ) -> Result<Producer, ResponseError> {
        if transactional_id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        if !(1..=self.timeout_ms_max).contains(&timeout_ms) {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let request = |new_producer_id| Request::Init {
            transactional_id: transactional_id.to_owned(),
            timeout_ms,
            known,
            new_producer_id,
        };
        let producer = self.producer(transactional_id, request).await?;
        producer.ok_or(ResponseError::UnknownServerError)
    }

    /// Ends a transaction. From [`super::state::EPOCH_BUMP_VERSION`] on, the producer goes on with what is returned.
    pub async fn end(
        &self,
        transactional_id: &str,
        producer: Producer,
        committed: bool,
        client_version: i16,
    ) -> Result<Option<Producer>, ResponseError> {
        if transactional_id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let request = |new_producer_id| Request::End {
            transactional_id: transactional_id.to_owned(),
            producer,
            committed,
            client_version,
            new_producer_id,
        };
        self.producer(transactional_id, request).await
    }

    /// Asks, and asks again with a new producer id if one is needed.
    async fn producer(
        &self,
        transactional_id: &str,
        request: impl Fn(Option<i64>) -> Request,
    ) -> Result<Option<Producer>, ResponseError> {
        let mut reply = self.ask(transactional_id, request(None)).await?;
        if matches!(reply, Reply::NeedsProducerId) {
            let surroundings = self.surroundings.get();
            let surroundings = surroundings.ok_or(ResponseError::CoordinatorNotAvailable)?;
            let new_producer_id = surroundings.new_producer_id().await?;
            let again = request(Some(new_producer_id));
            reply = self.ask(transactional_id, again).await?;
        }
        match reply {
            Reply::Producer(result) => result,
            _ => Err(ResponseError::UnknownServerError),
        }
    }

    /// Makes partitions part of a producer's transaction, which begins with them if none is open.
    pub async fn add_partitions(
        &self,
        transactional_id: &str,
        producer: Producer,
        partitions: Vec<TopicPartition>,
        client_version: i16,
    ) -> Result<(), ResponseError> {
        if transactional_id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let request = Request::AddPartitions {
            transactional_id: transactional_id.to_owned(),
            producer,
            partitions,
            client_version,
        };
        match self.ask(transactional_id, request).await? {
            Reply::Added(result) => result,
            _ => Err(ResponseError::UnknownServerError),
        }
    }

    /// Says of each partition why it is not part of the producer's open transaction.
    pub async fn verify(
        &self,
        transactional_id: &str,
        producer: Producer,
        partitions: Vec<TopicPartition>,
    ) -> Result<Vec<(TopicPartition, Option<ResponseError>)>, ResponseError> {
        if transactional_id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let request = Request::Verify {
            transactional_id: transactional_id.to_owned(),
            producer,
            partitions,
        };
        match self.ask(transactional_id, request).await? {
            Reply::Verified(result) => result,
            _ => Err(ResponseError::UnknownServerError),
        }
    }

    /// What is known of a transactional id.
    pub async fn describe(&self, transactional_id: &str) -> Result<Transaction, ResponseError> {
        if transactional_id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let request = Request::Describe(transactional_id.to_owned());
        match self.ask(transactional_id, request).await? {
            Reply::Described(found) => found.ok_or(ResponseError::TransactionalIdNotFound),
            _ => Err(ResponseError::UnknownServerError),
        }
    }

    /// All transactional ids that are coordinated here.
    pub async fn list(&self) -> Result<Vec<Listed>, ResponseError> {
        let mut all = Vec::new();
        for mailbox in self.coordinators.all() {
            match coordinators::ask(Some(mailbox), Request::List).await {
                Ok(Reply::Listed(listed)) => all.extend(listed),
                Ok(_) => return Err(ResponseError::UnknownServerError),
                // It has moved meanwhile, and is listed where it is now.
                Err(ResponseError::NotCoordinator) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

/// The broker, as long as it is there.
struct Host(Weak<Broker>);

impl Surroundings for Host {
    fn write_marker(
        &self,
        (topic, partition): TopicPartition,
        marker: Marker,
    ) -> BoxFuture<'static, Result<(), ResponseError>> {
        let broker = self.0.upgrade();
        Box::pin(async move {
            let broker = broker.ok_or(ResponseError::NotCoordinator)?;
            markers::write_marker(&broker, &topic, partition, marker).await
        })
    }

    fn is_gone(&self, (topic, partition): TopicPartition) -> BoxFuture<'static, bool> {
        let broker = self.0.upgrade();
        Box::pin(async move {
            let Some(broker) = broker else {
                return false;
            };
            // This broker may not have heard yet of a topic that another's coordinator took in.
            broker.catch_up().await.is_ok()
                && broker.controller.read(|image| {
                    let topic = image.topic(&topic);
                    let index = usize::try_from(partition);
                    topic.is_none_or(|topic| {
                        index.is_ok_and(|index| topic.partitions.get(index).is_none())
                    })
                })
        })
    }

    fn new_producer_id(&self) -> BoxFuture<'static, Result<i64, ResponseError>> {
        let broker = self.0.upgrade();
        Box::pin(async move {
            let broker = broker.ok_or(ResponseError::NotCoordinator)?;
            let new = broker.producer_ids.next(&broker).await;
            new.map_err(|refusal| {
                tracing::warn!(%refusal, "no producer ids");
                ResponseError::CoordinatorLoadInProgress
            })
        })
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
