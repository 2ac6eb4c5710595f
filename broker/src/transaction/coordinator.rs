//! All transactional ids of one partition of `__transaction_state`, with the rules of Kafka's `TransactionCoordinator`.
//!
//! ```text
//!            AddPartitions         EndTxn           markers written
//!   Empty ────────────────▶ Ongoing ─────▶ Prepare* ──────────────▶ Complete* ──AddPartitions──▶ Ongoing
//!     ▲                        │ timed out, or another producer: PrepareAbort with a raised epoch
//!     └── InitProducerId ── (Empty, Complete*)
//! ```
//!
//! Where Kafka answers CONCURRENT_TRANSACTIONS because a change is being written, the next request is decided on the changed state here
//! and answered after the change has committed. While markers are being written both answer so.

use super::records::TransactionRecord;
use super::state::{
    EPOCH_BUMP_VERSION, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, State, TopicPartition, Transaction,
    is_epoch_exhausted,
};
use crate::coordinator::machine::{self, Entry, Machine, Token};
use kafka_protocol::error::ResponseError;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Settings of the transaction coordinator, by Kafka's names.
#[derive(Debug, Clone)]
pub struct TransactionConfig {
    /// Numbers every writing of markers. All that read the same log share it: a producer that keeps its epoch is no name for one of its
    /// transactions, and what is said of the markers of one must not be taken for another's.
    pub writings: Arc<AtomicU64>,
    /// `transaction.abort.timed.out.transaction.cleanup.interval.ms`
    pub abort_interval_ms: i64,
    /// `transactional.id.expiration.ms`
    pub expiration_ms: i64,
    /// `transaction.remove.expired.transaction.cleanup.interval.ms`
    pub expiration_interval_ms: i64,
}

/// A producer's id and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    pub id: i64,
    pub epoch: i16,
}

/// A request about transactional ids of one partition. Where an epoch is exhausted a new producer id is needed;
/// [`Reply::NeedsProducerId`] asks for it.
#[derive(Debug, Clone)]
pub enum Request {
    Init {
        transactional_id: String,
        timeout_ms: i32,
        /// What the producer has, if it has been initialised before.
        known: Option<Producer>,
        new_producer_id: Option<i64>,
    },
    AddPartitions {
        transactional_id: String,
        producer: Producer,
        partitions: Vec<TopicPartition>,
        client_version: i16,
    },
    /// Whether partitions belong to the open transaction.
    Verify {
        transactional_id: String,
        producer: Producer,
        partitions: Vec<TopicPartition>,
    },
    End {
        transactional_id: String,
        producer: Producer,
        committed: bool,
        client_version: i16,
        new_producer_id: Option<i64>,
    },
    /// Follows [`Effect::TimeOut`].
    TimeOut {
        transactional_id: String,
        new_producer_id: i64,
    },
    /// Follows [`Effect::WriteMarkers`].
    MarkersWritten {
        transactional_id: String,
        writing: u64,
    },
    Describe(String),
    List,
}

/// The answer to a [`Request`] of the same kind.
#[derive(Debug)]
pub enum Reply {
    /// To `Init` and `End`: what the producer goes on with. Before epoch bumps nothing is told at the end of a transaction.
    Producer(Result<Option<Producer>, ResponseError>),
    /// Ask again with a new producer id.
    NeedsProducerId,
    Added(Result<(), ResponseError>),
    /// Each partition, and why it is not part of the transaction.
    Verified(Result<Vec<(TopicPartition, Option<ResponseError>)>, ResponseError>),
    Done,
    Described(Option<Transaction>),
    Listed(Vec<Listed>),
}

/// What a list shows of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub transactional_id: String,
    pub producer_id: i64,
    pub state: State,
    pub start_timestamp_ms: i64,
}

/// What is to be done once it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the end of a transaction into its partitions, then tell it by [`Request::MarkersWritten`].
    WriteMarkers {
        transactional_id: String,
        producer: Producer,
        committed: bool,
        transaction_version: i16,
        partitions: Vec<TopicPartition>,
        /// Of this writing; an earlier one of the same transaction no longer counts.
        writing: u64,
    },
    /// A transaction has timed out and needs a producer id to be aborted.
    TimeOut { transactional_id: String },
}

pub type Decision = machine::Decision<TransactionRecord, Reply, Effect>;

/// The transactional ids of one partition.
#[derive(Debug)]
pub struct TransactionMachine {
    config: TransactionConfig,
    transactions: HashMap<String, Transaction>,
    /// Of the transactions that are ending: by which writing they will have ended.
    writings: HashMap<String, u64>,
    next_abort_check_ms: i64,
    next_expiration_check_ms: i64,
}

impl Machine for TransactionMachine {
    const NAME: &'static str = "transaction coordinator";
    type Settings = TransactionConfig;
    type Request = Request;
    type Reply = Reply;
    type Record = TransactionRecord;
    type Effect = Effect;

    fn new(config: TransactionConfig, now_ms: i64) -> Self {
        Self {
            next_abort_check_ms: now_ms.saturating_add(config.abort_interval_ms),
            next_expiration_check_ms: now_ms.saturating_add(config.expiration_interval_ms),
            transactions: HashMap::new(),
            writings: HashMap::new(),
            config,
        }
    }

    fn replay(&mut self, entry: Entry<TransactionRecord>, _now_ms: i64) {
        // Its own log has no transactions.
        let Entry::Record(record) = entry else {
            return;
        };
        match record.value {
            Some(value) => self.transactions.insert(record.transactional_id, value),
            None => self.transactions.remove(&record.transactional_id),
        };
    }

    /// What was decided is carried out, by whoever decided it.
    fn loaded(&mut self, _now_ms: i64) -> Decision {
        let ending = self.transactions.iter();
        let ending = ending.filter(|(_, transaction)| transaction.state.is_ending());
        let ending: Vec<String> = ending.map(|(id, _)| id.clone()).collect();
        let effects = ending.iter().filter_map(|id| self.write_markers(id));
        Decision {
            effects: effects.collect(),
            ..Decision::default()
        }
    }

    fn handle(&mut self, request: Request, token: Token, now_ms: i64) -> Decision {
        match request {
            Request::Init {
                transactional_id,
                timeout_ms,
                known,
                new_producer_id,
            } => {
                let decided = self.init(
                    &transactional_id,
                    timeout_ms,
                    known,
                    new_producer_id,
                    now_ms,
                );
                self.changed(transactional_id, decided, token)
            }
            Request::AddPartitions {
                transactional_id,
                producer,
                partitions,
                client_version,
            } => {
                let decided = self.add_partitions(
                    &transactional_id,
                    producer,
                    partitions,
                    client_version,
                    now_ms,
                );
                self.changed(transactional_id, decided, token)
            }
            Request::Verify {
                transactional_id,
                producer,
                partitions,
            } => {
                let verified = self.verify(&transactional_id, producer, partitions);
                Decision::reply(token, Reply::Verified(verified))
            }
            Request::End {
                transactional_id,
                producer,
                committed,
                client_version,
                new_producer_id,
            } => {
                let decided = match client_version >= EPOCH_BUMP_VERSION {
                    true => self.end_and_bump(
                        &transactional_id,
                        producer,
                        committed,
                        client_version,
                        new_producer_id,
                        now_ms,
                    ),
                    false => self.end(
                        &transactional_id,
                        producer,
                        committed,
                        client_version,
                        now_ms,
                    ),
                };
                self.changed(transactional_id, decided, token)
            }
            Request::TimeOut {
                transactional_id,
                new_producer_id,
            } => {
                let late = self.transactions.get(&transactional_id);
                let late = late.filter(|transaction| is_timed_out(transaction, now_ms));
                let decided = match late {
                    Some(late) => Decided::to(late.fenced(new_producer_id, now_ms), Reply::Done),
                    None => Decided::answer(Reply::Done),
                };
                self.changed(transactional_id, decided, token)
            }
            Request::MarkersWritten {
                transactional_id,
                writing,
            } => {
                let is_awaited = self.writings.get(&transactional_id) == Some(&writing);
                let ended = self.transactions.get(&transactional_id);
                let decided = match ended.filter(|_| is_awaited) {
                    Some(ended) => {
                        let completed = ended.completed(now_ms);
                        self.writings.remove(&transactional_id);
                        Decided::to(completed, Reply::Done)
                    }
                    // Said twice, or by an earlier writing.
                    None => Decided::answer(Reply::Done),
                };
                self.changed(transactional_id, decided, token)
            }
            Request::Describe(transactional_id) => {
                let found = self.transactions.get(&transactional_id).cloned();
                Decision::reply(token, Reply::Described(found))
            }
            Request::List => {
                let all = self.transactions.iter();
                let all = all.map(|(id, transaction)| Listed {
                    transactional_id: id.clone(),
                    producer_id: transaction.producer_id,
                    state: transaction.state,
                    start_timestamp_ms: transaction.start_timestamp_ms,
                });
                Decision::reply(token, Reply::Listed(all.collect()))
            }
        }
    }

    /// Aborts transactions that have been open for too long, and forgets ids that have not been used for long.
    fn tick(&mut self, now_ms: i64) -> Decision {
        let mut decision = Decision::default();
        if now_ms >= self.next_abort_check_ms {
            self.next_abort_check_ms = now_ms.saturating_add(self.config.abort_interval_ms);
            let mut fenced = Vec::new();
            for (transactional_id, transaction) in &mut self.transactions {
                if !is_timed_out(transaction, now_ms) {
                    continue;
                }
                tracing::info!(%transactional_id, "a transaction has timed out");
                if transaction.is_epoch_exhausted() {
                    decision.effects.push(Effect::TimeOut {
                        transactional_id: transactional_id.clone(),
                    });
                    continue;
                }
                *transaction = transaction.fenced(NO_PRODUCER_ID, now_ms);
                decision.records.push(TransactionRecord {
                    transactional_id: transactional_id.clone(),
                    value: Some(transaction.clone()),
                });
                fenced.push(transactional_id.clone());
            }
            let effects = fenced.iter().filter_map(|id| self.write_markers(id));
            decision.effects.extend(effects);
        }
        if now_ms >= self.next_expiration_check_ms {
            self.next_expiration_check_ms =
                now_ms.saturating_add(self.config.expiration_interval_ms);
            let oldest_ms = now_ms.saturating_sub(self.config.expiration_ms);
            self.transactions.retain(|transactional_id, transaction| {
                let stays =
                    !transaction.may_expire() || transaction.last_update_timestamp_ms > oldest_ms;
                if !stays {
                    decision.records.push(TransactionRecord {
                        transactional_id: transactional_id.clone(),
                        value: None,
                    });
                }
                stays
            });
        }
        decision
    }

    fn next_deadline(&self) -> i64 {
        self.next_abort_check_ms.min(self.next_expiration_check_ms)
    }
}

/// What becomes of a transactional id, and what is answered.
struct Decided {
    next: Option<Transaction>,
    reply: Reply,
}

impl Decided {
    fn answer(reply: Reply) -> Self {
        Self { next: None, reply }
    }

    fn to(next: Transaction, reply: Reply) -> Self {
        Self {
            next: Some(next),
            reply,
        }
    }

    fn refused(error: ResponseError) -> Self {
        Self::answer(Reply::Producer(Err(error)))
    }
}

impl TransactionMachine {
    /// Makes a decision one with its record, and with markers if it ends a transaction.
    fn changed(&mut self, transactional_id: String, decided: Decided, token: Token) -> Decision {
        let mut decision = Decision::reply(token, decided.reply);
        let Some(next) = decided.next else {
            return decision;
        };
        let is_ending = next.state.is_ending();
        decision.records.push(TransactionRecord {
            transactional_id: transactional_id.clone(),
            value: Some(next.clone()),
        });
        self.transactions.insert(transactional_id.clone(), next);
        if is_ending {
            decision
                .effects
                .extend(self.write_markers(&transactional_id));
        }
        decision
    }

    /// Has the markers of a transaction written that has been decided.
    fn write_markers(&mut self, transactional_id: &str) -> Option<Effect> {
        let transaction = self.transactions.get(transactional_id)?;
        let writing = self.config.writings.fetch_add(1, Ordering::Relaxed);
        self.writings.insert(transactional_id.to_owned(), writing);
        Some(Effect::WriteMarkers {
            transactional_id: transactional_id.to_owned(),
            producer: producer_of(transaction),
            committed: transaction.state == State::PrepareCommit,
            transaction_version: transaction.client_version,
            partitions: transaction.partitions.iter().cloned().collect(),
            writing,
        })
    }

    /// `prepareInitProducerIdTransit`
    fn init(
        &self,
        transactional_id: &str,
        timeout_ms: i32,
        known: Option<Producer>,
        new_producer_id: Option<i64>,
        now_ms: i64,
    ) -> Decided {
        let created;
        let current = match (self.transactions.get(transactional_id), new_producer_id) {
            (Some(current), _) => current,
            (None, Some(new_producer_id)) => {
                created = Transaction::new(new_producer_id, now_ms);
                &created
            }
            (None, None) => return Decided::answer(Reply::NeedsProducerId),
        };
        if current.state.is_ending() {
            return Decided::refused(ResponseError::ConcurrentTransactions);
        }
        let is_current = |known: Producer| {
            // A new transactional id takes in a producer that the coordinator has forgotten.
            current.producer_epoch == NO_PRODUCER_EPOCH
                || known.id == current.producer_id
                // The answer that told it its new id was lost.
                || (known.id == current.previous_producer_id && is_epoch_exhausted(known.epoch))
        };
        if known.is_some_and(|known| !is_current(known)) {
            return Decided::refused(ResponseError::ProducerFenced);
        }
        if current.state == State::Ongoing {
            // The producer before is fenced and its transaction aborted; the epoch that this takes is nobody's, as who asks has
            // to ask again.
            let reply = Reply::Producer(Err(ResponseError::ConcurrentTransactions));
            return match next_producer_id(current, new_producer_id) {
                Some(next) => Decided::to(current.fenced(next, now_ms), reply),
                None => Decided::answer(Reply::NeedsProducerId),
            };
        }
        let known_epoch = known.map(|known| known.epoch);
        let rotates = current.is_epoch_exhausted()
            && known_epoch.is_none_or(|epoch| epoch == current.producer_epoch);
        let next = match (rotates, new_producer_id) {
            (true, None) => return Decided::answer(Reply::NeedsProducerId),
            (true, Some(new)) => current.rotated(new, timeout_ms, known.is_some(), now_ms),
            (false, _) => match current.initialized(timeout_ms, known_epoch, now_ms) {
                Some(next) => next,
                None => return Decided::refused(ResponseError::ProducerFenced),
            },
        };
        let producer = producer_of(&next);
        Decided::to(next, Reply::Producer(Ok(Some(producer))))
    }

    /// `handleAddPartitionsToTransaction`
    fn add_partitions(
        &self,
        transactional_id: &str,
        producer: Producer,
        partitions: Vec<TopicPartition>,
        client_version: i16,
        now_ms: i64,
    ) -> Decided {
        let refused = |error| Decided::answer(Reply::Added(Err(error)));
        let Some(current) = self.transactions.get(transactional_id) else {
            return refused(ResponseError::InvalidProducerIdMapping);
        };
        // First, as the producer may have the id that takes over when the end is complete.
        if current.state.is_ending() {
            return refused(ResponseError::ConcurrentTransactions);
        }
        if current.producer_id != producer.id {
            return refused(ResponseError::InvalidProducerIdMapping);
        }
        if current.producer_epoch != producer.epoch {
            return refused(ResponseError::ProducerFenced);
        }
        let has_all = partitions
            .iter()
            .all(|partition| current.partitions.contains(partition));
        if current.state == State::Ongoing && has_all {
            return Decided::answer(Reply::Added(Ok(())));
        }
        let next = current.with_partitions(partitions, client_version, now_ms);
        Decided::to(next, Reply::Added(Ok(())))
    }

    /// `handleVerifyPartitionsInTransaction`
    fn verify(
        &self,
        transactional_id: &str,
        producer: Producer,
        partitions: Vec<TopicPartition>,
    ) -> Result<Vec<(TopicPartition, Option<ResponseError>)>, ResponseError> {
        let current = self.transactions.get(transactional_id);
        let current = current.ok_or(ResponseError::InvalidProducerIdMapping)?;
        if current.producer_id != producer.id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if current.producer_epoch != producer.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        if current.state.is_ending() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        let verified = partitions.into_iter().map(|partition| {
            let is_part = current.partitions.contains(&partition);
            let error = (!is_part).then_some(ResponseError::TransactionAbortable);
            (partition, error)
        });
        Ok(verified.collect())
    }

    /// `endTransactionWithTV1`: the producer keeps its epoch, and asking again is told by the state alone.
    fn end(
        &self,
        transactional_id: &str,
        producer: Producer,
        committed: bool,
        client_version: i16,
        now_ms: i64,
    ) -> Decided {
        let Some(current) = self.transactions.get(transactional_id) else {
            return Decided::refused(ResponseError::InvalidProducerIdMapping);
        };
        if current.producer_id != producer.id {
            return Decided::refused(ResponseError::InvalidProducerIdMapping);
        }
        if current.producer_epoch != producer.epoch {
            return Decided::refused(ResponseError::ProducerFenced);
        }
        match (current.state, committed) {
            (State::PrepareCommit | State::PrepareAbort, _) => {
                Decided::refused(ResponseError::ConcurrentTransactions)
            }
            (State::Ongoing, _) => Decided::to(
                current.prepared(committed, client_version, NO_PRODUCER_ID, now_ms),
                Reply::Producer(Ok(None)),
            ),
            (State::CompleteCommit, true) | (State::CompleteAbort, false) => {
                Decided::answer(Reply::Producer(Ok(None)))
            }
            (State::Empty | State::CompleteCommit | State::CompleteAbort, _) => {
                invalid_end(transactional_id, current, committed)
            }
        }
    }

    /// `endTransaction`: every transaction ends with a new epoch, so that a repeated request is known by its old one.
    fn end_and_bump(
        &self,
        transactional_id: &str,
        producer: Producer,
        committed: bool,
        client_version: i16,
        new_producer_id: Option<i64>,
        now_ms: i64,
    ) -> Decided {
        let Some(current) = self.transactions.get(transactional_id) else {
            return Decided::refused(ResponseError::InvalidProducerIdMapping);
        };
        // First, as the producer may have the id that takes over when the end is complete.
        if current.state.is_ending() {
            return Decided::refused(ResponseError::ConcurrentTransactions);
        }
        let is_same_epoch = producer.epoch == current.producer_epoch;
        let repeats_over_rotation = current.previous_producer_id == producer.id
            && producer.epoch == i16::MAX - 1
            && current.producer_epoch == 0;
        let repeats =
            repeats_over_rotation || producer.epoch.checked_add(1) == Some(current.producer_epoch);
        if current.producer_id != producer.id && !repeats_over_rotation {
            return Decided::refused(ResponseError::InvalidProducerIdMapping);
        }
        let is_complete = matches!(current.state, State::CompleteCommit | State::CompleteAbort);
        if !(is_same_epoch || is_complete && repeats) {
            return Decided::refused(ResponseError::ProducerFenced);
        }
        match (current.state, committed) {
            (State::CompleteCommit, true) | (State::CompleteAbort, false) if repeats => {
                return Decided::answer(Reply::Producer(Ok(Some(producer_of(current)))));
            }
            (State::CompleteCommit | State::CompleteAbort, _) if repeats => {
                return invalid_end(transactional_id, current, committed);
            }
            (State::Empty | State::CompleteCommit | State::CompleteAbort, true) => {
                return invalid_end(transactional_id, current, committed);
            }
            // Nothing may have been added, and the producer wants a new epoch all the same.
            _ => {}
        }
        let Some(next) = next_producer_id(current, new_producer_id) else {
            return Decided::answer(Reply::NeedsProducerId);
        };
        let next = current.prepared(committed, client_version, next, now_ms);
        let producer = producer_of(&next.completed(now_ms));
        Decided::to(next, Reply::Producer(Ok(Some(producer))))
    }
}

fn invalid_end(transactional_id: &str, current: &Transaction, committed: bool) -> Decided {
    tracing::warn!(%transactional_id, state = current.state.name(), committed, "a transaction cannot end so");
    Decided::refused(ResponseError::InvalidTxnState)
}

fn producer_of(transaction: &Transaction) -> Producer {
    Producer {
        id: transaction.producer_id,
        epoch: transaction.producer_epoch,
    }
}

/// The producer id that takes over when the transaction has ended; [`NO_PRODUCER_ID`] if the old one goes on. `None`: one is needed.
fn next_producer_id(current: &Transaction, new_producer_id: Option<i64>) -> Option<i64> {
    match current.is_epoch_exhausted() {
        true => new_producer_id,
        false => Some(NO_PRODUCER_ID),
    }
}

fn is_timed_out(transaction: &Transaction, now_ms: i64) -> bool {
    let timeout_ms = i64::from(transaction.timeout_ms);
    transaction.state == State::Ongoing
        && transaction.start_timestamp_ms.saturating_add(timeout_ms) < now_ms
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
