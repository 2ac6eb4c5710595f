//! A producer: records are gathered per partition and sent together; with acks=all each is stored once, however often it is sent.
//!
//! One round of batches is in flight at a time, so order holds and a failed round can be sent again as it was.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse, ProducerId,
};
use streamgauge_aggregator::combine::partitioner::partition_for_key;
use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::{BatchBuilder, Header};
use streamgauge_protocol::compression::Compression;

use super::TopicPartition;
use super::cluster::{ANY_VERSION, Client, name_of};
use super::error::{ClientError, check};
use super::retry::Retry;

/// Later versions name topics by id.
const PRODUCE_VERSION_MAX: i16 = 12;
/// Records of all partitions together that wait to be sent.
const PENDING_BYTES_MAX: usize = 1024 * 1024;

/// What a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Nothing: what fails is not noticed.
    None,
    /// The leader's log.
    Leader,
    /// Every in-sync replica. Such a producer is idempotent.
    All,
}

impl Acks {
    fn code(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }
}

#[derive(Clone, Debug)]
pub struct ProducerOptions {
    pub acks: Acks,
    pub compression: Compression,
    /// A partition's batch of this size (uncompressed) is sent without waiting for `flush`.
    pub batch_bytes_max: usize,
    /// Kafka's `delivery.timeout.ms`.
    pub delivery_timeout: Duration,
}

impl Default for ProducerOptions {
    fn default() -> ProducerOptions {
        ProducerOptions {
            acks: Acks::All,
            compression: Compression::None,
            batch_bytes_max: 64 * 1024,
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

/// A record to be sent.
#[derive(Clone, Debug, Default)]
pub struct ProducerRecord<'a> {
    pub topic: &'a str,
    /// `None`: by key, or any when there is none.
    pub partition: Option<i32>,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [Header<'a>],
}

/// Sends records. What was not flushed is lost when it is dropped.
#[derive(Debug)]
pub struct Producer {
    client: Client,
    options: ProducerOptions,
    /// Producer id and epoch, once known.
    identity: Option<(i64, i16)>,
    sequences: HashMap<TopicPartition, i32>,
    topics: HashMap<String, Partitions>,
    pending: BTreeMap<TopicPartition, BatchBuilder>,
    pending_bytes: usize,
}

/// A topic's partitions, and where records without key go until the next flush.
#[derive(Debug)]
struct Partitions {
    ids: Vec<i32>,
    sticky: usize,
}

/// A batch on its way.
#[derive(Debug)]
struct Batch {
    partition: TopicPartition,
    bytes: Bytes,
}

impl Producer {
    pub fn new(client: Client, options: ProducerOptions) -> Producer {
        Producer {
            client,
            options,
            identity: None,
            sequences: HashMap::new(),
            topics: HashMap::new(),
            pending: BTreeMap::new(),
            pending_bytes: 0,
        }
    }

    /// Adds a record to its partition's batch; sends all batches when one is full.
    pub async fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), ClientError> {
        let partition = TopicPartition {
            topic: record.topic.to_owned(),
            partition: self.partition_for(record).await?,
        };
        let batch = self.pending.entry(partition).or_default();
        let before = batch.size_in_bytes();
        batch.push(record.timestamp, record.key, record.value, record.headers);
        self.pending_bytes += batch.size_in_bytes() - before;
        if batch.size_in_bytes() >= self.options.batch_bytes_max
            || self.pending_bytes >= PENDING_BYTES_MAX
        {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends everything and waits until it is acknowledged. Every batch has its try; the first error that stayed is returned. After
    /// an error the batches concerned are not kept.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        if pending.is_empty() {
            return Ok(());
        }
        for partitions in self.topics.values_mut() {
            partitions.sticky = (partitions.sticky + 1) % partitions.ids.len().max(1);
        }
        let mut retry = Retry::within(self.options.delivery_timeout);
        let result = match self.build(pending, &mut retry).await {
            Ok(batches) => self.deliver(batches, &mut retry).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            // Whether the lost batches' sequence numbers were used is not known: go on as a new producer.
            self.identity = None;
            self.sequences.clear();
        }
        result
    }

    async fn partition_for(&mut self, record: &ProducerRecord<'_>) -> Result<i32, ClientError> {
        if let Some(partition) = record.partition {
            return Ok(partition);
        }
        if !self.topics.contains_key(record.topic) {
            let ids = self.client.partitions_of(record.topic).await?;
            let sticky = uuid::Uuid::new_v4().as_u128() as usize % ids.len().max(1);
            self.topics
                .insert(record.topic.to_owned(), Partitions { ids, sticky });
        }
        let chosen = self.topics.get(record.topic).and_then(|partitions| {
            let count = i32::try_from(partitions.ids.len()).ok()?;
            match record.key {
                _ if count == 0 => None,
                Some(key) => Some(partition_for_key(key, count)),
                None => partitions.ids.get(partitions.sticky).copied(),
            }
        });
        chosen.ok_or_else(|| ClientError::Invalid {
            what: format!("topic {}", record.topic),
            reason: "has no partitions".to_owned(),
        })
    }

    async fn build(
        &mut self,
        pending: BTreeMap<TopicPartition, BatchBuilder>,
        retry: &mut Retry,
    ) -> Result<Vec<Batch>, ClientError> {
        if self.options.acks == Acks::All && self.identity.is_none() {
            self.identity = Some(self.init_producer_id(retry).await?);
        }
        let mut batches = Vec::with_capacity(pending.len());
        for (partition, mut builder) in pending {
            if let Some((id, epoch)) = self.identity {
                let sequence = self.sequences.entry(partition.clone()).or_insert(0);
                let count = builder.records_count() as i32;
                builder = builder.producer(id, epoch, *sequence);
                // After i32::MAX comes 0 (`DefaultRecordBatch.incrementSequence`).
                *sequence = sequence.wrapping_add(count) & i32::MAX;
            }
            let built = builder.compression(self.options.compression).build();
            let bytes = built.map_err(|error| ClientError::Invalid {
                what: partition.to_string(),
                reason: error.to_string(),
            })?;
            batches.push(Batch { partition, bytes });
        }
        Ok(batches)
    }

    async fn init_producer_id(&mut self, retry: &mut Retry) -> Result<(i64, i16), ClientError> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(i32::MAX)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        loop {
            let answer: Result<InitProducerIdResponse, _> =
                self.client.call_any(&request, ANY_VERSION).await;
            let error = match answer {
                Ok(response) => {
                    match check(response.error_code, || "a producer id".to_owned(), None) {
                        Ok(()) => return Ok((response.producer_id.0, response.producer_epoch)),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            retry.after(error).await?;
        }
    }

    async fn deliver(
        &mut self,
        mut batches: Vec<Batch>,
        retry: &mut Retry,
    ) -> Result<(), ClientError> {
        let mut first_error = None;
        while !batches.is_empty() {
            let (again, error) = self.round(batches, &mut first_error).await;
            batches = again;
            if let Some(error) = error {
                retry.after(error).await?;
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Sends each batch to its leader once. Gives back those that may be tried again, with the reason.
    async fn round(
        &mut self,
        batches: Vec<Batch>,
        final_error: &mut Option<ClientError>,
    ) -> (Vec<Batch>, Option<ClientError>) {
        let mut again = Vec::new();
        let mut retriable = None;
        let mut fail = |client: &mut Client, batch: Batch, error: ClientError| {
            client.forget(&batch.partition.topic);
            if error.is_retriable() {
                again.push(batch);
                retriable = Some(error);
            } else {
                final_error.get_or_insert(error);
            }
        };
        let mut by_leader: BTreeMap<i32, Vec<Batch>> = BTreeMap::new();
        for batch in batches {
            match self.client.leader_of(&batch.partition).await {
                Ok(leader) => by_leader.entry(leader).or_default().push(batch),
                Err(error) => fail(&mut self.client, batch, error),
            }
        }
        let requests = by_leader
            .iter()
            .map(|(leader, batches)| (*leader, self.request(batches)))
            .collect::<Vec<_>>();
        if self.options.acks == Acks::None {
            for (leader, request) in requests {
                let sent = self
                    .client
                    .send_broker(leader, &request, PRODUCE_VERSION_MAX);
                if let Err(error) = sent.await {
                    final_error.get_or_insert(error);
                }
            }
            return (again, retriable);
        }
        let time_max = self.client.options.request_timeout;
        let answers = self
            .client
            .call_each(requests, PRODUCE_VERSION_MAX, time_max)
            .await;
        for (leader, answer) in answers {
            let sent = by_leader.remove(&leader).unwrap_or_default();
            match answer {
                Ok(response) => {
                    for batch in sent {
                        if let Err(error) = outcome(&batch, &response) {
                            fail(&mut self.client, batch, error);
                        }
                    }
                }
                Err(error) => {
                    let mut shared = Some(error);
                    for batch in sent {
                        let error = shared.take().unwrap_or_else(|| ClientError::Refused {
                            what: batch.partition.to_string(),
                            code: ErrorCode::NetworkException,
                            message: None,
                        });
                        fail(&mut self.client, batch, error);
                    }
                }
            }
        }
        (again, retriable)
    }

    fn request(&self, batches: &[Batch]) -> ProduceRequest {
        let mut topics: Vec<TopicProduceData> = Vec::new();
        for batch in batches {
            let data = PartitionProduceData::default()
                .with_index(batch.partition.partition)
                .with_records(Some(batch.bytes.clone()));
            match topics.last_mut() {
                Some(last) if last.name.as_str() == batch.partition.topic => {
                    last.partition_data.push(data);
                }
                _ => topics.push(
                    TopicProduceData::default()
                        .with_name(name_of(&batch.partition.topic))
                        .with_partition_data(vec![data]),
                ),
            }
        }
        let timeout_ms = self.client.options.request_timeout.as_millis();
        ProduceRequest::default()
            .with_acks(self.options.acks.code())
            .with_timeout_ms(i32::try_from(timeout_ms).unwrap_or(i32::MAX))
            .with_topic_data(topics)
    }
}

/// What the broker says of a batch. A duplicate was stored by an earlier try.
fn outcome(batch: &Batch, response: &ProduceResponse) -> Result<(), ClientError> {
    let partition = response
        .responses
        .iter()
        .filter(|topic| topic.name.as_str() == batch.partition.topic)
        .flat_map(|topic| &topic.partition_responses)
        .find(|partition| partition.index == batch.partition.partition);
    let Some(partition) = partition else {
        return Err(ClientError::Invalid {
            what: batch.partition.to_string(),
            reason: "the broker's answer leaves it out".to_owned(),
        });
    };
    if partition.error_code == ErrorCode::DuplicateSequenceNumber.code() {
        return Ok(());
    }
    let mut message = partition.error_message.as_ref().map(ToString::to_string);
    if let Some(record) = partition.record_errors.first() {
        let reason = record.batch_index_error_message.as_deref();
        message = Some(format!(
            "{}; record {} of the batch: {}",
            message.unwrap_or_default(),
            record.batch_index,
            reason.unwrap_or("refused")
        ));
    }
    check(
        partition.error_code,
        || batch.partition.to_string(),
        message,
    )
}
