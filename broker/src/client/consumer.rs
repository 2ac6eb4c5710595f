//! Reads partitions from given offsets on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
};
use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::{BatchError, BatchIter, BatchRecords, HeaderView};

use super::TopicPartition;
use super::cluster::{ANY_VERSION, Client, name_of};
use super::error::{ClientError, check};
use super::retry::Retry;

/// Later versions name topics by id.
const FETCH_VERSION_MAX: i16 = 12;
const EARLIEST_TIMESTAMP: i64 = -2;
const LATEST_TIMESTAMP: i64 = -1;
/// What one batch may unpack to.
const BATCH_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOffset {
    Earliest,
    Latest,
    At(i64),
}

#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// Bytes of one answer, and of one partition in it; a single larger batch comes whole.
    pub fetch_bytes_max: i32,
    pub partition_bytes_max: i32,
    /// Where to go on when the offset is no longer, or not yet, in the log; `None`: an error.
    pub reset: Option<StartOffset>,
}

impl Default for ConsumerOptions {
    fn default() -> ConsumerOptions {
        ConsumerOptions {
            fetch_bytes_max: 50 * 1024 * 1024,
            partition_bytes_max: 1024 * 1024,
            reset: Some(StartOffset::Latest),
        }
    }
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<HeaderView>,
}

/// Reads the partitions that it was assigned.
#[derive(Debug)]
pub struct Consumer {
    pub(super) client: Client,
    options: ConsumerOptions,
    /// Next offset by partition.
    positions: BTreeMap<TopicPartition, i64>,
    retry: Option<Retry>,
}

impl Consumer {
    pub fn new(client: Client, options: ConsumerOptions) -> Consumer {
        Consumer {
            client,
            options,
            positions: BTreeMap::new(),
            retry: None,
        }
    }

    /// Reads `partition` from `start` on, besides what was assigned before.
    pub async fn assign(
        &mut self,
        partition: TopicPartition,
        start: StartOffset,
    ) -> Result<(), ClientError> {
        let offset = match start {
            StartOffset::At(offset) => offset,
            StartOffset::Earliest => self.offset_at(&partition, EARLIEST_TIMESTAMP).await?,
            StartOffset::Latest => self.offset_at(&partition, LATEST_TIMESTAMP).await?,
        };
        self.positions.insert(partition, offset);
        Ok(())
    }

    /// Reads every partition of a topic.
    pub async fn assign_topic(
        &mut self,
        topic: &str,
        start: StartOffset,
    ) -> Result<(), ClientError> {
        for partition in self.client.partitions_of(topic).await? {
            self.assign(TopicPartition::new(topic, partition), start)
                .await?;
        }
        Ok(())
    }

    pub fn unassign_all(&mut self) {
        self.positions.clear();
    }

    /// The offset of the log's end.
    pub async fn end_offset(&mut self, partition: &TopicPartition) -> Result<i64, ClientError> {
        self.offset_at(partition, LATEST_TIMESTAMP).await
    }

    /// Waits up to `wait` for records. Each partition's come in order. Gives up on failing brokers after the client's operation timeout.
    pub async fn poll(&mut self, wait: Duration) -> Result<Vec<ConsumedRecord>, ClientError> {
        if self.positions.is_empty() {
            tokio::time::sleep(wait).await;
            return Ok(Vec::new());
        }
        let (records, error) = self.fetch(wait).await?;
        match error {
            None => self.retry = None,
            Some(error) => {
                let within = self.client.options.operation_timeout;
                let mut retry = self.retry.take().unwrap_or_else(|| Retry::within(within));
                if records.is_empty() {
                    retry.after(error).await?;
                }
                self.retry = Some(retry);
            }
        }
        Ok(records)
    }

    /// One fetch from each leader: the records, and an error that a later fetch may not meet.
    async fn fetch(
        &mut self,
        wait: Duration,
    ) -> Result<(Vec<ConsumedRecord>, Option<ClientError>), ClientError> {
        let mut failed = None;
        let mut topics: BTreeMap<i32, Vec<FetchTopic>> = BTreeMap::new();
        let positions: Vec<_> = self.positions.clone().into_iter().collect();
        for (partition, offset) in positions {
            match self.client.leader_of(&partition).await {
                Ok(leader) => {
                    let topics = topics.entry(leader).or_default();
                    add_partition(topics, &partition, offset, self.options.partition_bytes_max);
                }
                Err(error) if error.is_retriable() => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let requests = topics.into_iter().map(|(leader, topics)| {
            let request = FetchRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_max_wait_ms(wait_ms)
                .with_min_bytes(1)
                .with_max_bytes(self.options.fetch_bytes_max)
                .with_session_epoch(-1)
                .with_topics(topics);
            (leader, request)
        });
        let time_max = wait + self.client.options.request_timeout;
        let answers = self
            .client
            .call_each(requests.collect(), FETCH_VERSION_MAX, time_max)
            .await;
        let mut records = Vec::new();
        for (_, answer) in answers {
            match answer {
                Ok(response) => {
                    if let Some(error) = self.take(response, &mut records).await? {
                        failed = Some(error);
                    }
                }
                Err(error) if error.is_retriable() => {
                    let topics: Vec<String> =
                        self.positions.keys().map(|p| p.topic.clone()).collect();
                    topics.iter().for_each(|topic| self.client.forget(topic));
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((records, failed))
    }

    async fn take(
        &mut self,
        response: FetchResponse,
        records: &mut Vec<ConsumedRecord>,
    ) -> Result<Option<ClientError>, ClientError> {
        check(response.error_code, || "a fetch".to_owned(), None)?;
        let mut failed = None;
        for topic in response.responses {
            for data in topic.partitions {
                let partition = TopicPartition::new(topic.topic.as_str(), data.partition_index);
                match check(data.error_code, || partition.to_string(), None) {
                    Ok(()) => {
                        self.take_records(&partition, data.records.unwrap_or_default(), records)?;
                    }
                    Err(error) if error.code() == Some(ErrorCode::OffsetOutOfRange) => {
                        let Some(reset) = self.options.reset else {
                            return Err(error);
                        };
                        tracing::warn!(%partition, ?reset, "the offset is out of the log's range");
                        self.assign(partition, reset).await?;
                    }
                    Err(error) if error.is_retriable() => {
                        self.client.forget(&partition.topic);
                        failed = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(failed)
    }

    fn take_records(
        &mut self,
        partition: &TopicPartition,
        batches: Bytes,
        records: &mut Vec<ConsumedRecord>,
    ) -> Result<(), ClientError> {
        let Some(position) = self.positions.get_mut(partition) else {
            return Ok(());
        };
        let malformed = |reason: String| ClientError::Invalid {
            what: partition.to_string(),
            reason,
        };
        for batch in BatchIter::new(batches) {
            let (header, bytes) = match batch {
                Ok(batch) => batch,
                // Brokers cut an answer at its byte limit.
                Err(BatchError::Truncated { .. }) => break,
                Err(error) => return Err(malformed(error.to_string())),
            };
            if header.next_offset() <= *position {
                continue;
            }
            if !header.is_control() {
                let opened = BatchRecords::open(&bytes, BATCH_BYTES_MAX)
                    .map_err(|error| malformed(error.to_string()))?;
                for view in opened.views() {
                    let view = view.map_err(|error| malformed(error.to_string()))?;
                    if view.offset >= *position {
                        records.push(ConsumedRecord {
                            topic: partition.topic.clone(),
                            partition: partition.partition,
                            offset: view.offset,
                            timestamp: view.timestamp,
                            key: view.key,
                            value: view.value,
                            headers: view.headers,
                        });
                    }
                }
            }
            *position = header.next_offset();
        }
        Ok(())
    }

    async fn offset_at(
        &mut self,
        partition: &TopicPartition,
        timestamp: i64,
    ) -> Result<i64, ClientError> {
        let mut retry = self.client.retry();
        loop {
            match self.ask_offset(partition, timestamp).await {
                Ok(offset) => return Ok(offset),
                Err(error) => {
                    self.client.forget(&partition.topic);
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn ask_offset(
        &mut self,
        partition: &TopicPartition,
        timestamp: i64,
    ) -> Result<i64, ClientError> {
        let leader = self.client.leader_of(partition).await?;
        let asked = ListOffsetsPartition::default()
            .with_partition_index(partition.partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default()
            .with_name(name_of(&partition.topic))
            .with_partitions(vec![asked]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(vec![topic]);
        let response: ListOffsetsResponse = self
            .client
            .call_broker(leader, &request, ANY_VERSION)
            .await?;
        let answer = response
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .next()
            .ok_or_else(|| ClientError::Invalid {
                what: partition.to_string(),
                reason: "the broker's answer leaves it out".to_owned(),
            })?;
        check(answer.error_code, || partition.to_string(), None)?;
        Ok(answer.offset)
    }
}

fn add_partition(
    topics: &mut Vec<FetchTopic>,
    partition: &TopicPartition,
    offset: i64,
    bytes_max: i32,
) {
    let asked = FetchPartition::default()
        .with_partition(partition.partition)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(offset)
        .with_log_start_offset(-1)
        .with_partition_max_bytes(bytes_max);
    match topics.last_mut() {
        Some(last) if last.topic.as_str() == partition.topic => last.partitions.push(asked),
        _ => topics.push(
            FetchTopic::default()
                .with_topic(name_of(&partition.topic))
                .with_partitions(vec![asked]),
        ),
    }
}
