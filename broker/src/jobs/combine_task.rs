//! Combine at work on a job's source partitions: reads what commits, and appends partials to the internal partitions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use streamgauge_aggregator::combine::{Combiner, CombinerConfig};
use streamgauge_aggregator::partial::PartialBatch;
use streamgauge_aggregator::plan::Plan;
use streamgauge_protocol::batch::validate::UNPACK_BYTES_MAX;
use streamgauge_protocol::batch::{BatchBuilder, BatchIter};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::Clock;
use super::error::JobError;
use super::internal::StartMark;
use super::log::{JobLog, LogError};
use super::merge_task::{MergeHandle, MergeState};
use super::status::{CombineStatus, SourceStatus, StatusCell};

/// A chunk takes under a millisecond.
const READ_BYTES_MAX: usize = 256 * 1024;
/// More partials than this on their way stop the reading.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;
/// A merge that is this many internal records behind stops the reading.
const MERGE_LAG_MAX: i64 = 8192;
/// How often a job without records looks at the clock: for idle sources and covers without rows.
const QUIET_TICK_MS: i64 = 250;

/// All that a combine task is given.
pub struct CombineTask {
    pub plan: Arc<Plan>,
    /// Distinct for each broker.
    pub combiner_id: i32,
    pub start: Arc<StartMark>,
    /// By partition.
    pub sources: Vec<Arc<dyn JobLog>>,
    /// By partition.
    pub internals: Vec<Arc<dyn JobLog>>,
    pub merges: Vec<MergeHandle>,
    pub flush_interval_ms: i64,
    pub clock: Clock,
    pub status: Arc<StatusCell>,
    pub refused: mpsc::Receiver<()>,
    pub stop: watch::Receiver<bool>,
}

/// Why a combiner is done with.
enum End {
    Stopped,
    /// It does not know any more what merge has; a new one asks.
    StartAnew(String),
}

struct Running<'a> {
    task: &'a mut CombineTask,
    combiner: Combiner<Plan>,
    epochs: Vec<i32>,
    in_flight: FuturesOrdered<BoxFuture<'static, Result<usize, LogError>>>,
    in_flight_bytes: usize,
    flushed_at_ms: i64,
    /// Records were read since the last flush.
    dirty: bool,
}

impl CombineTask {
    /// Runs until it is stopped. It starts anew by itself where that mends things.
    pub async fn run(mut self) -> Result<(), JobError> {
        let mut stop = self.stop.clone();
        loop {
            let states = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                states = ask(&self.merges) => states?,
            };
            // Refusals so far were of the combiner before.
            while self.refused.try_recv().is_ok() {}
            let mut running = Running::start(&mut self, states)?;
            let ended = running.run().await;
            running.drain().await;
            match ended? {
                End::Stopped => return Ok(()),
                End::StartAnew(reason) => {
                    tracing::info!(topic = %self.plan.topic, reason, "combining starts anew");
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }
}

/// What every merger has once it has applied everything that is in its log by now.
async fn ask(merges: &[MergeHandle]) -> Result<Vec<MergeState>, JobError> {
    let gone = |_| JobError::Retry("a merge task has ended".to_owned());
    let mut replies = Vec::with_capacity(merges.len());
    for merge in merges {
        let (reply, answer) = oneshot::channel();
        merge
            .requests
            .send(reply)
            .await
            .map_err(|_| JobError::Retry("a merge task has ended".to_owned()))?;
        replies.push(answer);
    }
    let mut states = Vec::with_capacity(replies.len());
    for answer in replies {
        states.push(answer.await.map_err(gone)?);
    }
    Ok(states)
}

impl<'a> Running<'a> {
    fn start(task: &'a mut CombineTask, states: Vec<MergeState>) -> Result<Running<'a>, JobError> {
        let count = |logs: &[Arc<dyn JobLog>]| i32::try_from(logs.len()).unwrap_or(i32::MAX);
        let config = CombinerConfig {
            combiner_id: task.combiner_id,
            // What produce has accepted must not stop a job.
            decompressed_bytes_max: UNPACK_BYTES_MAX,
            ..CombinerConfig::new(count(&task.internals), count(&task.sources))
        };
        let mut combiner = Combiner::new(Arc::clone(&task.plan), config);
        for (index, state) in (0..).zip(states) {
            combiner
                .set_internal_state(index, state.covers, state.watermark, state.open_windows)
                .map_err(combine_error)?;
        }
        let now_ms = (task.clock)();
        let mut epochs = Vec::with_capacity(task.sources.len());
        for (partition, source) in (0..).zip(&task.sources) {
            let start_offset = usize::try_from(partition)
                .ok()
                .and_then(|at| task.start.start_offsets.get(at).copied())
                .unwrap_or(0);
            let leader_epoch = source.leader_epoch();
            combiner.assign_source(partition, leader_epoch, start_offset, now_ms);
            epochs.push(leader_epoch);
        }
        Ok(Running {
            task,
            combiner,
            epochs,
            in_flight: FuturesOrdered::new(),
            in_flight_bytes: 0,
            flushed_at_ms: i64::MIN,
            dirty: false,
        })
    }

    async fn run(&mut self) -> Result<End, JobError> {
        let notify = Arc::new(Notify::new());
        let mut stop = self.task.stop.clone();
        let interval_ms = self.task.flush_interval_ms;
        loop {
            if *stop.borrow_and_update() {
                // What was read goes out, so that the next start reads little again.
                self.flush()?;
                return Ok(End::Stopped);
            }
            for source in &self.task.sources {
                source.wake(&notify);
            }
            if let Some(reason) = self.lost_leadership() {
                return Ok(End::StartAnew(reason));
            }
            let held_back = self.is_held_back();
            let progressed = !held_back && self.read_next().await?;
            let now_ms = (self.task.clock)();
            let since_flush = now_ms.saturating_sub(self.flushed_at_ms);
            let due = if self.dirty {
                interval_ms
            } else {
                QUIET_TICK_MS
            };
            if since_flush >= due && !held_back {
                self.flush()?;
            }
            if progressed {
                // Others have their turn between two chunks.
                tokio::task::yield_now().await;
            }
            let due = if self.dirty || held_back {
                interval_ms
            } else {
                QUIET_TICK_MS
            };
            let wait_ms = self
                .flushed_at_ms
                .saturating_add(due)
                .saturating_sub(now_ms)
                .clamp(1, due.max(1));
            tokio::select! {
                biased;
                changed = stop.changed() => if changed.is_err() { return Ok(End::Stopped); },
                Some(()) = self.task.refused.recv() => {
                    return Ok(End::StartAnew("merge has refused a batch".to_owned()));
                }
                Some(answer) = self.in_flight.next() => match answer {
                    Ok(bytes) => self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes),
                    Err(error) => return Ok(End::StartAnew(format!("partials cannot be appended: {error}"))),
                },
                () = std::future::ready(()), if progressed => {}
                () = notify.notified(), if !held_back => {}
                () = tokio::time::sleep(Duration::from_millis(wait_ms.unsigned_abs())) => {}
            }
        }
    }

    /// Waits for the answers to everything sent, whatever they are: what comes later cannot then surprise the next combiner.
    async fn drain(&mut self) {
        while self.in_flight.next().await.is_some() {}
    }

    fn lost_leadership(&self) -> Option<String> {
        let mut sources = (0..).zip(self.task.sources.iter().zip(&self.epochs));
        sources.find_map(|(partition, (source, epoch)): (i32, _)| {
            let now = source.leader_epoch();
            (now != *epoch).then(|| {
                format!("source partition {partition} is in leader epoch {now} after {epoch}")
            })
        })
    }

    /// The internal logs or the mergers cannot take more for now.
    fn is_held_back(&self) -> bool {
        let lags = self
            .task
            .internals
            .iter()
            .zip(&self.task.merges)
            .any(|(log, merge)| {
                let applied = merge.applied.load(Ordering::Acquire);
                log.high_watermark().saturating_sub(applied) > MERGE_LAG_MAX
            });
        lags || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
    }

    /// Reads a chunk of the partition whose watermark is least; false if all have been read to their ends.
    async fn read_next(&mut self) -> Result<bool, JobError> {
        let now_ms = (self.task.clock)();
        let mut available = Vec::new();
        for (partition, source) in (0..).zip(&self.task.sources) {
            let next_offset = self.combiner.next_offset(partition).unwrap_or(0);
            if next_offset < source.stable_offset() {
                available.push(partition);
            } else if next_offset >= source.high_watermark() && source.is_serving() {
                // Behind an open transaction there may be records, and while nobody leads the source none can
                // come, so that it is not idle.
                self.combiner
                    .caught_up(partition, now_ms)
                    .map_err(combine_error)?;
            }
        }
        let Some(partition) = self.combiner.pick(&available) else {
            return Ok(false);
        };
        self.read_from(partition, now_ms).await?;
        Ok(true)
    }

    async fn read_from(&mut self, partition: i32, now_ms: i64) -> Result<(), JobError> {
        let Some(source) = usize::try_from(partition)
            .ok()
            .and_then(|at| self.task.sources.get(at))
        else {
            return Ok(());
        };
        let source = Arc::clone(source);
        let offset = self.combiner.next_offset(partition).unwrap_or(0);
        let chunk = match source.read(offset, READ_BYTES_MAX).await {
            Ok(chunk) => chunk,
            Err(LogError::OutOfRange { start_offset, .. }) if start_offset > offset => {
                tracing::warn!(
                    topic = %self.task.plan.topic, source = %self.task.plan.source.topic, partition, offset, start_offset,
                    "records were deleted from the source before they were read"
                );
                self.dirty = true;
                return self
                    .combiner
                    .skip_to(partition, start_offset)
                    .map_err(combine_error);
            }
            Err(error) => return Err(JobError::retry("the source cannot be read", error)),
        };
        self.dirty = true;
        for slice in &chunk.slices {
            for batch in BatchIter::new(slice.clone()) {
                let (_, batch) = batch.map_err(|error| {
                    JobError::Retry(format!(
                        "source partition {partition} at offset {offset}: {error}"
                    ))
                })?;
                // A batch that fills the combiner takes as many flushes as it needs.
                while !self
                    .combiner
                    .add_batch(partition, &batch, now_ms)
                    .map_err(combine_error)?
                    .complete
                {
                    self.flush()?;
                }
            }
        }
        // Where nothing was found below the end, compaction has taken everything away. (What was found may have
        // been of aborted transactions.)
        let read_to = if chunk.slices.is_empty() && chunk.next_offset <= offset {
            chunk.stable_offset.max(offset)
        } else {
            chunk.next_offset
        };
        self.combiner
            .skip_to(partition, read_to)
            .map_err(combine_error)
    }

    /// Sends what is pending, one batch to each internal partition.
    fn flush(&mut self) -> Result<(), JobError> {
        let now_ms = (self.task.clock)();
        for batch in self.combiner.flush(now_ms) {
            self.append(&batch, now_ms)?;
        }
        self.flushed_at_ms = now_ms;
        self.dirty = false;
        self.publish();
        Ok(())
    }

    fn append(&mut self, partials: &PartialBatch, now_ms: i64) -> Result<(), JobError> {
        let log = usize::try_from(partials.internal_partition)
            .ok()
            .and_then(|at| self.task.internals.get(at))
            .ok_or_else(|| {
                JobError::Permanent(format!(
                    "no internal partition {}",
                    partials.internal_partition
                ))
            })?;
        let mut builder = BatchBuilder::new();
        for record in &partials.records {
            builder.push(now_ms, None, Some(record), &[]);
        }
        let batch = builder
            .build()
            .map_err(|error| JobError::retry("a batch of partials cannot be written", error))?;
        let bytes = batch.len();
        let answer = log.append(batch);
        self.in_flight_bytes += bytes;
        self.in_flight
            .push_back(Box::pin(async move { answer.await.map(|_| bytes) }));
        Ok(())
    }

    fn publish(&self) {
        let counters = self.combiner.counters();
        let watermarks: Vec<_> = self.combiner.source_watermarks().collect();
        self.task.status.update(|job| {
            for (partition, state) in watermarks {
                let next_offset = self.combiner.next_offset(partition).unwrap_or(0);
                let end = usize::try_from(partition)
                    .ok()
                    .and_then(|at| self.task.sources.get(at))
                    .map_or(next_offset, |source| source.high_watermark());
                let status = SourceStatus {
                    next_offset,
                    lag: end.saturating_sub(next_offset),
                    watermark_ms: state.watermark,
                    idle: state.idle,
                };
                job.sources.insert(partition, status);
            }
            let bad = counters.bad.iter();
            job.combine = CombineStatus {
                records_in: counters.records_in,
                filtered: counters.filtered,
                late_candidates: counters.late_candidates,
                bad: bad
                    .map(|(reason, count)| (reason.to_string(), *count))
                    .collect(),
                rows_out: counters.rows_out,
                watermark_ms: self.combiner.watermark(),
            };
        });
    }
}

fn combine_error(error: streamgauge_aggregator::combine::CombineError) -> JobError {
    JobError::Retry(error.to_string())
}
