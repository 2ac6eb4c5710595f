//! Producers that write in transactions: to all partitions of a topic, with an offset of a group of their own. They die in between and
//! begin again, and some raise their epoch with each transaction (KIP-890) while others keep it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::{BatchBuilder, TransactionResult};
use streamgauge_protocol::messages::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use streamgauge_protocol::messages::messages::metadata_request::MetadataRequestTopic;
use streamgauge_protocol::messages::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use streamgauge_protocol::messages::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use streamgauge_protocol::messages::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use streamgauge_protocol::messages::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, FindCoordinatorRequest,
    GroupId, InitProducerIdRequest, MetadataRequest, OffsetFetchRequest, ProduceRequest,
    ProducerId, TopicName, TransactionalId, TxnOffsetCommitRequest,
};

use crate::client::{Client, text};
use crate::network::broker_index;

pub const TOPIC: &str = "transfers";
pub const PARTITIONS: i32 = 2;
/// Transactional ids; those of odd number raise their epochs.
pub const PRODUCERS: u32 = 2;
/// Partitions of `__transaction_state`.
pub const STATE_PARTITIONS: i32 = 2;

const TIMEOUT_MS: i32 = 15_000;
const ABORT_ONE_IN: u64 = 4;
const DIE_ONE_IN: u64 = 10;

const GROUP_KEY: i8 = 0;
const TRANSACTION_KEY: i8 = 1;

/// How a transaction ended, as its producer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
    /// The answer to its end is missing.
    Unknown,
}

#[derive(Default)]
struct History {
    /// By producer and number.
    outcomes: BTreeMap<(u32, i64), Outcome>,
    /// By producer: the group's committed offset at the end.
    offsets: BTreeMap<u32, i64>,
}

/// What the producers have done.
#[derive(Default)]
pub struct Transfers(Mutex<History>);

/// What is committed in a partition: producer and number, in the order of the log.
pub type Committed = Vec<(u32, i64)>;

impl Transfers {
    fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Transactions that were committed, and that were aborted.
    pub fn tally(&self) -> (u64, u64) {
        let history = self.history();
        let count = |outcome| {
            let outcomes = history.outcomes.values();
            outcomes.filter(|found| **found == outcome).count() as u64
        };
        (count(Outcome::Committed), count(Outcome::Aborted))
    }

    /// Transactions are in all partitions or in none, once, each producer's in their order, and as it was told; the offset of its group
    /// is that of the last.
    pub fn check(&self, partitions: &[Committed]) -> Result<(), String> {
        let history = self.history();
        let mut sets = Vec::new();
        for (index, committed) in partitions.iter().enumerate() {
            let mut last = BTreeMap::new();
            for (producer, number) in committed {
                if let Some(before) = last.insert(*producer, *number)
                    && before >= *number
                {
                    return Err(format!(
                        "transaction {number} of {producer} comes after {before} in partition {index}"
                    ));
                }
            }
            sets.push(committed.iter().copied().collect::<BTreeSet<_>>());
        }
        if let Some(torn) = sets.windows(2).find(|pair| pair[0] != pair[1]) {
            let differ: Vec<_> = torn[0].symmetric_difference(&torn[1]).collect();
            return Err(format!("transactions {differ:?} are not in all partitions"));
        }
        let there = sets.first().cloned().unwrap_or_default();
        for (transaction, outcome) in &history.outcomes {
            let is_there = there.contains(transaction);
            match outcome {
                Outcome::Committed if !is_there => {
                    return Err(format!("{transaction:?} was committed and is lost"));
                }
                Outcome::Aborted if is_there => {
                    return Err(format!("{transaction:?} was aborted and is there"));
                }
                _ => {}
            }
        }
        for (producer, offset) in &history.offsets {
            let last = there.iter().rfind(|(by, _)| by == producer);
            let expected = last.map_or(-1, |(_, number)| *number);
            if *offset != expected {
                return Err(format!(
                    "the group of {producer} has {offset} committed, its last transaction is {expected}"
                ));
            }
        }
        Ok(())
    }
}

/// The value of a transaction's records.
fn value(producer: u32, number: i64) -> String {
    format!("{producer}:{number}")
}

/// Reads what [`value`] wrote.
pub fn read_value(value: &str) -> Option<(u32, i64)> {
    let (producer, number) = value.split_once(':')?;
    Some((producer.parse().ok()?, number.parse().ok()?))
}

/// Puts records and markers of a partition, in their order, together.
#[derive(Default)]
pub struct Reader {
    open: BTreeMap<i64, Committed>,
    pub committed: Committed,
}

impl Reader {
    pub fn record(&mut self, producer_id: i64, value: (u32, i64)) {
        self.open.entry(producer_id).or_default().push(value);
    }

    pub fn marker(&mut self, producer_id: i64, result: TransactionResult) {
        let ended = self.open.remove(&producer_id).unwrap_or_default();
        if result == TransactionResult::Commit {
            self.committed.extend(ended);
        }
    }

    pub fn has_open(&self) -> bool {
        !self.open.is_empty()
    }
}

/// What goes on after an answer.
enum Step {
    Done,
    Again,
    /// The coordinator or the leader is elsewhere.
    Elsewhere,
    /// The transaction cannot go on.
    Over(ErrorCode),
}

fn step(code: i16) -> Step {
    match ErrorCode::try_from_code(code) {
        None => Step::Done,
        Some(ErrorCode::DuplicateSequenceNumber) => Step::Done,
        Some(ErrorCode::ConcurrentTransactions | ErrorCode::CoordinatorLoadInProgress) => {
            Step::Again
        }
        Some(
            code @ (ErrorCode::ProducerFenced
            | ErrorCode::InvalidProducerEpoch
            | ErrorCode::InvalidProducerIdMapping
            | ErrorCode::InvalidTxnState
            | ErrorCode::TransactionAbortable
            | ErrorCode::OutOfOrderSequenceNumber
            | ErrorCode::UnknownProducerId),
        ) => Step::Over(code),
        Some(_) => Step::Elsewhere,
    }
}

struct Producer {
    client: Client,
    number: u32,
    bumps: bool,
    /// -1 if it has to begin anew.
    id: i64,
    last_id: i64,
    epoch: i16,
    /// Id and epoch of the process before, which may still be there and not know that it has been replaced.
    zombie: Option<(i64, i16)>,
    /// Of each partition, the next.
    sequences: Vec<i32>,
    coordinator: usize,
}

/// Writes transactions until told to stop, then finds out what was committed.
pub async fn transfer(client: Client, transfers: Arc<Transfers>, number: u32) {
    let mut producer = Producer {
        client,
        number,
        bumps: number % 2 == 1,
        id: -1,
        last_id: -1,
        epoch: -1,
        zombie: None,
        sequences: Vec::new(),
        coordinator: 0,
    };
    producer.begin().await;
    let mut next = 0;
    while !producer.client.is_to_stop() {
        producer.client.pause(200).await;
        let transaction = (number, next);
        let outcome = producer.transaction(next).await;
        transfers.history().outcomes.insert(transaction, outcome);
        if outcome == Outcome::Unknown || producer.id < 0 {
            producer.begin().await;
        }
        next += 1;
    }
    // What was decided is carried out before it begins again.
    producer.begin().await;
    let offset = producer.committed_offset().await;
    transfers.history().offsets.insert(number, offset);
}

impl Producer {
    fn transactional_id(&self) -> TransactionalId {
        TransactionalId(text(&format!("mover-{}", self.number)))
    }

    fn group(&self) -> String {
        format!("movers-{}", self.number)
    }

    /// As another process with the same transactional id.
    async fn begin(&mut self) {
        self.zombie = (self.epoch >= 0).then_some((self.last_id, self.epoch));
        loop {
            let request = InitProducerIdRequest::default()
                .with_transactional_id(Some(self.transactional_id()))
                .with_transaction_timeout_ms(TIMEOUT_MS)
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1);
            let answer = self.client.call(self.coordinator, 4, &request).await;
            if let Some(answer) = answer
                && answer.error_code == 0
            {
                (self.id, self.epoch) = (answer.producer_id.0, answer.producer_epoch);
                self.last_id = self.id;
                self.sequences = vec![0; PARTITIONS as usize];
                return;
            }
            self.find_coordinator().await;
        }
    }

    async fn find_coordinator(&mut self) {
        self.client.pause(150).await;
        let id = self.transactional_id();
        if let Some(found) = find(&mut self.client, TRANSACTION_KEY, &id).await {
            self.coordinator = found;
        }
    }

    async fn transaction(&mut self, number: i64) -> Outcome {
        match self.write(number).await {
            Ok(true) => {}
            // It died, or cannot go on: nobody ever commits this.
            Ok(false) | Err(_) => {
                self.id = -1;
                return Outcome::Aborted;
            }
        }
        let commits = !self.client.random.one_in(ABORT_ONE_IN);
        let ended = self.end(commits).await;
        match (ended, commits) {
            (Ok(()), true) => Outcome::Committed,
            (Ok(()), false) => Outcome::Aborted,
            (Err(_), true) => Outcome::Unknown,
            (Err(_), false) => {
                self.id = -1;
                Outcome::Aborted
            }
        }
    }

    /// Whether all is written; not if it died in between.
    async fn write(&mut self, number: i64) -> Result<bool, ErrorCode> {
        if !self.bumps {
            self.add_partitions().await?;
            self.add_offsets().await?;
        }
        for partition in 0..PARTITIONS {
            if self.client.random.one_in(DIE_ONE_IN) {
                return Ok(false);
            }
            self.produce(partition, number).await?;
            if let Some((id, epoch)) = self.zombie.take() {
                self.commit_as(id, epoch).await;
            }
        }
        self.commit_offset(number).await?;
        Ok(true)
    }

    async fn add_partitions(&mut self) -> Result<(), ErrorCode> {
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(TopicName(text(TOPIC)))
            .with_partitions((0..PARTITIONS).collect());
        loop {
            let request = AddPartitionsToTxnRequest::default()
                .with_v3_and_below_transactional_id(self.transactional_id())
                .with_v3_and_below_producer_id(ProducerId(self.id))
                .with_v3_and_below_producer_epoch(self.epoch)
                .with_v3_and_below_topics(vec![topic.clone()]);
            let answer = self.client.call(self.coordinator, 3, &request).await;
            let results = answer.iter().flat_map(|answer| {
                let topics = answer.results_by_topic_v3_and_below.iter();
                topics.flat_map(|topic| &topic.results_by_partition)
            });
            let codes: Vec<i16> = results.map(|result| result.partition_error_code).collect();
            let worst = codes.iter().copied().find(|code| *code != 0);
            let code = worst.or(codes.first().copied());
            if self.goes_on(code).await? {
                return Ok(());
            }
        }
    }

    async fn add_offsets(&mut self) -> Result<(), ErrorCode> {
        loop {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(self.transactional_id())
                .with_producer_id(ProducerId(self.id))
                .with_producer_epoch(self.epoch)
                .with_group_id(GroupId(text(&self.group())));
            let answer = self.client.call(self.coordinator, 3, &request).await;
            if self.goes_on(answer.map(|answer| answer.error_code)).await? {
                return Ok(());
            }
        }
    }

    /// Whether the coordinator has done it; else it may be asked again.
    async fn goes_on(&mut self, code: Option<i16>) -> Result<bool, ErrorCode> {
        match code.map(step) {
            Some(Step::Done) => return Ok(true),
            Some(Step::Over(code)) => return Err(code),
            Some(Step::Again) => self.client.pause(100).await,
            Some(Step::Elsewhere) | None => self.find_coordinator().await,
        }
        Ok(false)
    }

    async fn produce(&mut self, partition: i32, number: i64) -> Result<(), ErrorCode> {
        let place = partition as usize;
        let batch = BatchBuilder::new()
            .producer(self.id, self.epoch, self.sequences[place])
            .transactional()
            .record(now_ms(), None, Some(value(self.number, number).as_bytes()))
            .build()
            .expect("a batch of valid records");
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch));
        let data = TopicProduceData::default()
            .with_name(TopicName(text(TOPIC)))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_transactional_id(Some(self.transactional_id()))
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![data]);
        let version = if self.bumps { 12 } else { 11 };
        let mut broker = self.client.any_broker();
        loop {
            let answer = self.client.call(broker, version, &request).await;
            let code = answer.as_ref().and_then(|answer| {
                let topic = answer.responses.first()?;
                topic.partition_responses.first().map(|one| one.error_code)
            });
            match code.map(step) {
                Some(Step::Done) => break,
                Some(Step::Over(code)) => return Err(code),
                Some(Step::Again | Step::Elsewhere) | None => {}
            }
            self.client.pause(150).await;
            let leader = leader(&mut self.client, partition).await;
            broker = leader.unwrap_or_else(|| self.client.any_broker());
        }
        self.sequences[place] += 1;
        Ok(())
    }

    async fn commit_offset(&mut self, number: i64) -> Result<(), ErrorCode> {
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(0)
            .with_committed_offset(number);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(TopicName(text(TOPIC)))
            .with_partitions(vec![partition]);
        let version = if self.bumps { 5 } else { 3 };
        loop {
            let request = TxnOffsetCommitRequest::default()
                .with_transactional_id(self.transactional_id())
                .with_group_id(GroupId(text(&self.group())))
                .with_producer_id(ProducerId(self.id))
                .with_producer_epoch(self.epoch)
                .with_generation_id(-1)
                .with_topics(vec![topic.clone()]);
            let group = self.group();
            let coordinator = find(&mut self.client, GROUP_KEY, &group).await;
            let answer = match coordinator {
                Some(coordinator) => self.client.call(coordinator, version, &request).await,
                None => None,
            };
            let code = answer.as_ref().and_then(|answer| {
                let topic = answer.topics.first()?;
                topic.partitions.first().map(|one| one.error_code)
            });
            match code.map(step) {
                Some(Step::Done) => return Ok(()),
                Some(Step::Over(code)) => return Err(code),
                _ => self.client.pause(150).await,
            }
        }
    }

    async fn end(&mut self, commits: bool) -> Result<(), ErrorCode> {
        let version = if self.bumps { 5 } else { 3 };
        loop {
            let request = EndTxnRequest::default()
                .with_transactional_id(self.transactional_id())
                .with_producer_id(ProducerId(self.id))
                .with_producer_epoch(self.epoch)
                .with_committed(commits);
            let answer = self.client.call(self.coordinator, version, &request).await;
            let code = answer.as_ref().map(|answer| answer.error_code);
            if !self.goes_on(code).await? {
                continue;
            }
            if let Some(answer) = answer.filter(|_| self.bumps) {
                (self.id, self.epoch) = (answer.producer_id.0, answer.producer_epoch);
                self.last_id = self.id;
                self.sequences = vec![0; PARTITIONS as usize];
            }
            return Ok(());
        }
    }

    /// A process that has been replaced ends what it takes for its transaction. That it is refused is seen in the end.
    async fn commit_as(&mut self, id: i64, epoch: i16) {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch)
            .with_committed(true);
        let version = if self.bumps { 5 } else { 3 };
        let _ = self.client.call(self.coordinator, version, &request).await;
    }

    /// The group's offset, when it is stable.
    async fn committed_offset(&mut self) -> i64 {
        let topic = OffsetFetchRequestTopics::default()
            .with_name(TopicName(text(TOPIC)))
            .with_partition_indexes(vec![0]);
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text(&self.group())))
            .with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default()
            .with_require_stable(true)
            .with_groups(vec![group]);
        loop {
            let group = self.group();
            if let Some(coordinator) = find(&mut self.client, GROUP_KEY, &group).await
                && let Some(answer) = self.client.call(coordinator, 8, &request).await
                && let Some(group) = answer.groups.first().filter(|group| group.error_code == 0)
                && let Some(topic) = group.topics.first()
                && let Some(partition) = topic.partitions.first()
                && partition.error_code == 0
            {
                return partition.committed_offset;
            }
            self.client.pause(300).await;
        }
    }
}

async fn find(client: &mut Client, kind: i8, key: &str) -> Option<usize> {
    let request = FindCoordinatorRequest::default()
        .with_key_type(kind)
        .with_key(text(key));
    let broker = client.any_broker();
    let answer = client.call(broker, 3, &request).await?;
    (answer.error_code == 0).then(|| broker_index(answer.node_id.0))
}

async fn leader(client: &mut Client, partition: i32) -> Option<usize> {
    let request = MetadataRequest::default().with_topics(Some(vec![
        MetadataRequestTopic::default().with_name(Some(TopicName(text(TOPIC)))),
    ]));
    let broker = client.any_broker();
    let answer = client.call(broker, 9, &request).await?;
    let mut partitions = answer.topics.first()?.partitions.iter();
    let found = partitions.find(|known| known.partition_index == partition)?;
    (found.leader_id.0 > 0).then(|| broker_index(found.leader_id.0))
}

/// The clients' clock.
fn now_ms() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |passed| passed.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(outcome: Outcome, offset: i64, partitions: [&[(u32, i64)]; 2]) -> Result<(), String> {
        let transfers = Transfers::default();
        transfers.history().outcomes.insert((1, 0), outcome);
        transfers.history().offsets.insert(1, offset);
        transfers.check(&partitions.map(<[_]>::to_vec))
    }

    #[test]
    fn what_cannot_be_is_found() {
        let whole: [&[_]; 2] = [&[(1, 0)], &[(1, 0)]];
        assert_eq!(told(Outcome::Committed, 0, whole), Ok(()));
        assert_eq!(told(Outcome::Unknown, 0, whole), Ok(()));
        assert_eq!(told(Outcome::Unknown, -1, [&[], &[]]), Ok(()));
        for (outcome, offset, partitions) in [
            (Outcome::Aborted, 0, whole),
            (Outcome::Committed, -1, whole),
            (Outcome::Committed, -1, [&[], &[]]),
            (Outcome::Unknown, 0, [&[(1, 0)], &[]]),
            (Outcome::Committed, 0, [&[(1, 0), (1, 0)], &[(1, 0)]]),
        ] {
            assert!(told(outcome, offset, partitions).is_err(), "{partitions:?}");
        }
    }
}
