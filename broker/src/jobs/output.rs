//! From a merger's outputs to the derived topic and its side topics, each output exactly once.
//!
//! Every kind of output of every internal partition has a producer id of its own, because late topics may have fewer partitions than the
//! job, and because late records and dead letters may share a topic: so each pair of producer id and partition has one writer. An
//! output's sequence is its count modulo 2^31, which depends on the internal log alone.
//!
//! A partition that knows nothing of a producer takes any sequence as its first. So the first batch goes alone, and what follows
//! it waits until it is committed: were both on their way and the first were lost, the second would be taken in its place. Afterwards
//! a gap is refused, by whoever comes to lead the partition, as is what another broker has written already.
//!
//! Late records and dead letters are the source's records, key, value, timestamp and headers as they were, with these headers after them:
//!
//! | header | both | late records only |
//! |---|---|---|
//! | `streamgauge.reason` | why it is here | |
//! | `streamgauge.source.topic`, `.partition`, `.offset` | where it came from | |
//! | `streamgauge.event.time`, `.window.start`, `.window.end`, `.watermark` | | milliseconds since the epoch, as text |

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use streamgauge_aggregator::merge::{LateRecord, MergerCounters, Outputs};
use streamgauge_aggregator::partial::SourceRecord;
use streamgauge_protocol::batch::{BatchBuilder, BatchIter, Header};
use tokio::time::Instant;

use super::error::JobError;
use super::log::{JobLog, LogError};

/// Results, late records, dead letters.
pub const OUTPUT_KINDS: usize = 3;

/// A batch of outputs is closed at this size.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// More than this on its way stops the merger.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
const READ_BYTES_MAX: usize = 1 << 20;
/// A partition does not forget a producer so soon; see `producer.id.expiration.ms`.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// The producer id for a kind of output of an internal partition, in the job's block.
pub fn producer_id(first: i64, internal_partition: i32, kind: usize) -> i64 {
    first + i64::from(internal_partition) * OUTPUT_KINDS as i64 + kind as i64
}

/// How many producer ids a job needs.
pub fn producer_ids(internal_partitions: i32) -> i64 {
    i64::from(internal_partitions) * OUTPUT_KINDS as i64
}

/// Where one kind of output of one internal partition goes.
#[derive(Clone)]
pub struct OutputLogs {
    pub target: Arc<dyn JobLog>,
    /// Where it may have gone before the topic grew.
    pub others: Vec<Arc<dyn JobLog>>,
}

/// The outputs of one internal partition.
pub struct OutputWriter {
    /// In the order of the kinds; `None`: such outputs are only counted.
    targets: [Option<Target>; OUTPUT_KINDS],
    source_topic: String,
    in_flight: FuturesOrdered<BoxFuture<'static, Result<Sent, LogError>>>,
    /// What waits for a first batch, too.
    in_flight_bytes: usize,
}

struct Target {
    log: Arc<dyn JobLog>,
    producer_id: i64,
    /// Outputs that the log has or that were sent to it.
    sent: u64,
    builder: BatchBuilder,
    /// When the log last took a batch, which is since when it knows the producer for certain.
    known_at: Option<Instant>,
    /// On their way.
    batches: usize,
    /// To be sent when the log knows the producer.
    waiting: VecDeque<Bytes>,
}

/// A batch that was sent.
struct Sent {
    kind: usize,
    bytes: usize,
}

impl OutputWriter {
    /// Asks each log how far the job had come. `logs` in the order of the kinds; `counters` and `output_ends` are those of the checkpoint.
    pub async fn open(
        logs: [Option<OutputLogs>; OUTPUT_KINDS],
        first_producer_id: i64,
        internal_partition: i32,
        source_topic: String,
        counters: MergerCounters,
        output_ends: &[Option<i64>],
    ) -> Result<OutputWriter, JobError> {
        let counts = [counters.results, counters.late, counters.dead_letters];
        let mut targets = [None, None, None];
        for (kind, (logs, count)) in logs.into_iter().zip(counts).enumerate() {
            let Some(OutputLogs {
                target: log,
                others,
            }) = logs
            else {
                continue;
            };
            let producer_id = producer_id(first_producer_id, internal_partition, kind);
            let mut last = log.last_sequence(producer_id).await?;
            if last.is_none() {
                let from = output_ends.get(kind).copied().flatten().unwrap_or(0);
                last = find_last_sequence(&log, producer_id, from).await?;
            }
            let sent = last.map_or(Some(count), |last| count_after(count, last));
            let lost = || {
                // Or it was asked of a broker that does not know yet that it leads no more.
                JobError::Retry(format!(
                    "the partition of producer {producer_id} ends before output {count}, which a checkpoint says was committed: it has lost records"
                ))
            };
            let mut sent = sent.ok_or_else(lost)?;
            for other in others {
                let last = other.last_sequence(producer_id).await?;
                let there = last.and_then(|last| count_after(count, last));
                sent = sent.max(there.unwrap_or(0));
            }
            targets[kind] = Some(Target {
                log,
                producer_id,
                sent,
                builder: BatchBuilder::new(),
                known_at: None,
                batches: 0,
                waiting: VecDeque::new(),
            });
        }
        Ok(OutputWriter {
            targets,
            source_topic,
            in_flight: FuturesOrdered::new(),
            in_flight_bytes: 0,
        })
    }

    /// Sends what the logs do not have.
    pub fn send(&mut self, outputs: Outputs) -> Result<(), JobError> {
        for result in &outputs.results {
            self.add(0, result.sequence, |builder| {
                builder.push(
                    result.timestamp,
                    Some(&result.key),
                    Some(&result.value),
                    &[],
                );
            })?;
        }
        let source_topic = std::mem::take(&mut self.source_topic);
        for late in &outputs.late {
            self.add(1, late.sequence, |builder| {
                push_source_record(builder, &source_topic, &late.record, &late_headers(late));
            })?;
        }
        for dead in &outputs.dead_letters {
            let reason = [("streamgauge.reason", dead.letter.reason.clone())];
            self.add(2, dead.sequence, |builder| {
                push_source_record(builder, &source_topic, &dead.letter.record, &reason);
            })?;
        }
        self.source_topic = source_topic;
        for kind in 0..OUTPUT_KINDS {
            self.close_batch(kind)?;
        }
        Ok(())
    }

    /// So much is on its way that no more should be made.
    pub fn is_full(&self) -> bool {
        self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
    }

    pub fn is_drained(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Waits for the next answer; to be polled only while something is on its way.
    pub async fn next_answer(&mut self) -> Result<(), JobError> {
        if let Some(answer) = self.in_flight.next().await {
            let sent =
                answer.map_err(|error| JobError::retry("outputs cannot be appended", error))?;
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(sent.bytes);
            if let Some(target) = self.targets[sent.kind].as_mut() {
                target.batches -= 1;
                target.known_at = Some(Instant::now());
            }
            self.send_waiting(sent.kind);
        }
        Ok(())
    }

    /// Waits until everything sent has been answered.
    pub async fn drain(&mut self) -> Result<(), JobError> {
        while !self.is_drained() {
            self.next_answer().await?;
        }
        Ok(())
    }

    /// See [`super::internal::CheckpointMeta::output_ends`]; all outputs must have been answered.
    pub fn ends(&self) -> Vec<Option<i64>> {
        self.targets
            .iter()
            .map(|target| target.as_ref().map(|target| target.log.high_watermark()))
            .collect()
    }

    fn add(
        &mut self,
        kind: usize,
        sequence: u64,
        push: impl FnOnce(&mut BatchBuilder),
    ) -> Result<(), JobError> {
        let Some(target) = self.targets.get_mut(kind).and_then(Option::as_mut) else {
            return Ok(());
        };
        let next = target.sent + target.builder.records_count() as u64;
        if sequence < next {
            return Ok(());
        }
        if sequence > next {
            return Err(JobError::Permanent(format!(
                "output {sequence} of producer {} would leave a gap after {next}: its partition has lost records",
                target.producer_id
            )));
        }
        if target.builder.records_count() == 0 {
            let builder = std::mem::take(&mut target.builder);
            target.builder = builder.producer(target.producer_id, 0, sequence_of(sequence));
        }
        push(&mut target.builder);
        if target.builder.size_in_bytes() >= BATCH_BYTES_MAX {
            self.close_batch(kind)?;
        }
        Ok(())
    }

    fn close_batch(&mut self, kind: usize) -> Result<(), JobError> {
        let Some(target) = self.targets.get_mut(kind).and_then(Option::as_mut) else {
            return Ok(());
        };
        let records = target.builder.records_count();
        if records == 0 {
            return Ok(());
        }
        let batch = std::mem::take(&mut target.builder)
            .build()
            .map_err(|error| JobError::retry("a batch of outputs cannot be written", error))?;
        target.sent += records as u64;
        self.in_flight_bytes += batch.len();
        target.waiting.push_back(batch);
        self.send_waiting(kind);
        Ok(())
    }

    /// Sends as much of what waits as may be on its way.
    fn send_waiting(&mut self, kind: usize) {
        let Some(target) = self.targets.get_mut(kind).and_then(Option::as_mut) else {
            return;
        };
        let is_known = target.known_at.is_some_and(|at| at.elapsed() < KNOWN_FOR);
        while (is_known || target.batches == 0)
            && let Some(batch) = target.waiting.pop_front()
        {
            let bytes = batch.len();
            let answer = target.log.append(batch);
            target.batches += 1;
            self.in_flight.push_back(Box::pin(async move {
                answer.await.map(|_| Sent { kind, bytes })
            }));
        }
    }
}

/// The sequence of the output that has `count` before it.
fn sequence_of(count: u64) -> i32 {
    (count & 0x7fff_ffff) as i32
}

/// How many outputs there are if the last has `last_sequence`: at least `at_least`. `None` if it is fewer, which is to say that it would be
/// more by half of all sequences.
fn count_after(at_least: u64, last_sequence: i32) -> Option<u64> {
    let next = (i64::from(last_sequence) + 1) as u64 & 0x7fff_ffff;
    let more = next.wrapping_sub(at_least) & 0x7fff_ffff;
    (more < 1 << 30).then_some(at_least + more)
}

/// Looks through a log for a producer's last batch.
async fn find_last_sequence(
    log: &Arc<dyn JobLog>,
    producer_id: i64,
    from: i64,
) -> Result<Option<i32>, JobError> {
    log.catch_up().await?;
    let end = log.high_watermark();
    let mut offset = from.max(log.start_offset());
    let mut last = None;
    while offset < end {
        let chunk = log.read(offset, READ_BYTES_MAX).await?;
        for slice in &chunk.slices {
            for batch in BatchIter::new(slice.clone()) {
                let (header, _) =
                    batch.map_err(|error| JobError::retry("outputs cannot be read", error))?;
                if header.producer_id == producer_id && header.has_producer_id() {
                    last = Some(header.last_sequence());
                }
            }
        }
        if chunk.next_offset <= offset {
            break;
        }
        offset = chunk.next_offset;
        tokio::task::yield_now().await;
    }
    Ok(last)
}

fn late_headers(late: &LateRecord) -> [(&'static str, String); 5] {
    [
        (
            "streamgauge.reason",
            "late: its window had closed".to_owned(),
        ),
        ("streamgauge.event.time", late.event_time.to_string()),
        ("streamgauge.window.start", late.window.start().to_string()),
        ("streamgauge.window.end", late.window.end().to_string()),
        ("streamgauge.watermark", late.watermark.to_string()),
    ]
}

/// The record as it came, with headers that say where it came from and why it is here.
fn push_source_record(
    builder: &mut BatchBuilder,
    source_topic: &str,
    record: &SourceRecord,
    reasons: &[(&str, String)],
) {
    let partition = record.source_partition.to_string();
    let offset = record.offset.to_string();
    // Names are UTF-8 by Kafka's rule; one that is not is mended rather than lost with its record.
    let names: Vec<_> = record
        .headers
        .iter()
        .map(|(name, _)| String::from_utf8_lossy(name))
        .collect();
    let mut headers: Vec<Header<'_>> = Vec::with_capacity(names.len() + reasons.len() + 3);
    for (name, (_, value)) in names.iter().zip(&record.headers) {
        headers.push(Header {
            key: name,
            value: value.as_deref(),
        });
    }
    for (name, text) in reasons {
        headers.push(text_header(name, text));
    }
    headers.push(text_header("streamgauge.source.topic", source_topic));
    headers.push(text_header("streamgauge.source.partition", &partition));
    headers.push(text_header("streamgauge.source.offset", &offset));
    builder.push(
        record.timestamp,
        record.key.as_ref().map(Bytes::as_ref),
        record.value.as_ref().map(Bytes::as_ref),
        &headers,
    );
}

fn text_header<'a>(key: &'a str, text: &'a str) -> Header<'a> {
    Header {
        key,
        value: Some(text.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_aggregator::merge::ResultRecord;

    use super::*;
    use crate::jobs::memory::{MemoryCluster, MemoryLog};

    fn results(sequences: std::ops::Range<u64>) -> Outputs {
        let result = |sequence: u64| ResultRecord {
            key: Bytes::from_static(b"k"),
            value: Bytes::from(sequence.to_string()),
            timestamp: 1,
            sequence,
        };
        Outputs {
            results: sequences.map(result).collect(),
            ..Outputs::default()
        }
    }

    async fn writer(log: &MemoryLog) -> OutputWriter {
        let target: Arc<dyn JobLog> = Arc::new(log.clone());
        let others = Vec::new();
        let logs = [Some(OutputLogs { target, others }), None, None];
        let counters = MergerCounters::default();
        OutputWriter::open(logs, 7, 0, "source".to_owned(), counters, &[])
            .await
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_a_first_batch_that_is_lost_is_not_taken_in_its_place() {
        let cluster = MemoryCluster::new();
        cluster.create("derived", 1, None);
        let log = cluster.partition("derived", 0);
        let mut outputs = writer(&log).await;
        cluster.crash.arm_failure(1);
        for sequence in 0..3 {
            outputs.send(results(sequence..sequence + 1)).unwrap();
        }
        assert!(outputs.drain().await.is_err());
        assert_eq!(log.high_watermark(), 0);

        let mut outputs = writer(&log).await;
        for sequence in 0..5 {
            outputs.send(results(sequence..sequence + 1)).unwrap();
        }
        outputs.drain().await.unwrap();
        let values: Vec<_> = log
            .records()
            .into_iter()
            .map(|record| record.value.unwrap())
            .collect();
        assert_eq!(values, ["0", "1", "2", "3", "4"].map(Bytes::from));
    }

    #[test]
    fn the_count_is_found_from_the_sequence_beyond_its_wrap() {
        const WRAP: u64 = 1 << 31;
        for (at_least, count) in [
            (0, 1),
            (5, 5),
            (5, 9),
            (WRAP - 3, WRAP),
            (WRAP - 3, WRAP + 4),
            (3 * WRAP + 1, 3 * WRAP + 1),
            (3 * WRAP + WRAP / 2 + 1, 4 * WRAP),
        ] {
            let last = sequence_of(count - 1);
            assert_eq!(
                count_after(at_least, last),
                Some(count),
                "{at_least} {count}"
            );
        }
        assert_eq!(count_after(5, 2), None);
    }
}
