//! Merge at work on one internal partition: restores, replays, applies what commits, sends outputs, makes checkpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use streamgauge_aggregator::combine::SourceCover;
use streamgauge_aggregator::merge::{Merger, MergerConfig};
use streamgauge_aggregator::plan::Plan;
use streamgauge_aggregator::window::Window;
use streamgauge_protocol::batch::BatchIter;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::Clock;
use super::checkpoint::{CheckpointPolicy, Checkpoints};
use super::error::JobError;
use super::internal::{CheckpointMeta, Entry, Found, StartMark, classify};
use super::log::JobLog;
use super::output::{OUTPUT_KINDS, OutputLogs, OutputWriter};
use super::status::{MergeStatus, StatusCell};

const READ_BYTES_MAX: usize = 256 * 1024;

/// What a combiner starts from; see `Combiner::set_internal_state`.
#[derive(Debug, Clone)]
pub struct MergeState {
    pub covers: Vec<(i32, SourceCover)>,
    pub watermark: i64,
    pub open_windows: Vec<Window>,
}

/// How combine reaches a merge task.
#[derive(Clone)]
pub struct MergeHandle {
    pub requests: mpsc::Sender<oneshot::Sender<MergeState>>,
    /// The internal offset below which everything was applied.
    pub applied: Arc<AtomicI64>,
}

/// All that a merge task is given.
pub struct MergeTask {
    pub plan: Arc<Plan>,
    pub broker_id: i32,
    pub internal_partition: i32,
    pub source_partitions: i32,
    pub start: Arc<StartMark>,
    pub log: Arc<dyn JobLog>,
    /// Where results, late records and dead letters go.
    pub output_logs: [Option<OutputLogs>; OUTPUT_KINDS],
    pub first_producer_id: i64,
    pub config: MergerConfig,
    pub policy: CheckpointPolicy,
    pub clock: Clock,
    pub status: Arc<StatusCell>,
    pub requests: mpsc::Receiver<oneshot::Sender<MergeState>>,
    pub applied: Arc<AtomicI64>,
    /// Told when a batch of this broker's combiner is refused.
    pub refused: mpsc::Sender<()>,
    pub stop: watch::Receiver<bool>,
}

struct Running {
    task: MergeTask,
    merger: Merger<Plan>,
    outputs: OutputWriter,
    checkpoints: Checkpoints,
    /// The next internal offset to read.
    position: i64,
    /// Refusals below this are of a replay.
    live_from: i64,
    waiting: Vec<(i64, oneshot::Sender<MergeState>)>,
}

impl MergeTask {
    /// Runs until it is stopped; `found` is what [`super::internal::scan`] has found in the log.
    pub async fn run(self, found: Found) -> Result<(), JobError> {
        let mut running = Running::restore(self, found).await?;
        let result = running.run().await;
        // What was sent is answered before another task may begin, or its sequences could be doubted.
        let drained = running.outputs.drain().await;
        result.and(drained)
    }
}

impl Running {
    async fn restore(task: MergeTask, found: Found) -> Result<Running, JobError> {
        let (merger, output_ends) = match found.checkpoint {
            Some(checkpoint) => {
                let merger = Merger::restore(
                    Arc::clone(&task.plan),
                    task.internal_partition,
                    task.config,
                    checkpoint.chunks,
                )
                .map_err(|error| JobError::Permanent(error.to_string()))?;
                (merger, checkpoint.meta.output_ends)
            }
            None => {
                if found.start_offset > 0 {
                    return Err(JobError::Permanent(format!(
                        "internal partition {} begins at offset {} without a checkpoint: records were deleted from it",
                        task.internal_partition, found.start_offset
                    )));
                }
                let merger = Merger::new(
                    Arc::clone(&task.plan),
                    task.internal_partition,
                    task.source_partitions,
                    task.config,
                );
                (merger, Vec::new())
            }
        };
        let outputs = OutputWriter::open(
            task.output_logs.clone(),
            task.first_producer_id,
            task.internal_partition,
            task.plan.source.topic.clone(),
            merger.counters(),
            &output_ends,
        )
        .await?;
        let position = merger.next_offset();
        let checkpoints = Checkpoints::new(task.policy, Arc::clone(&task.log), (task.clock)());
        Ok(Running {
            live_from: task.log.stable_offset(),
            merger,
            outputs,
            checkpoints,
            position,
            waiting: Vec::new(),
            task,
        })
    }

    async fn run(&mut self) -> Result<(), JobError> {
        let notify = Arc::new(Notify::new());
        let mut stop = self.task.stop.clone();
        loop {
            if *stop.borrow_and_update() {
                return self.finish().await;
            }
            self.task.log.wake(&notify);
            let progressed = self.apply_available().await?;
            self.answer_requests();
            self.publish();
            if self.checkpoints.is_due((self.task.clock)()) {
                self.begin_checkpoint().await?;
            }
            if progressed {
                // Others have their turn between two pieces.
                tokio::task::yield_now().await;
            }
            let due_in = self.checkpoints.due_at_ms() - (self.task.clock)();
            let due = Duration::from_millis(due_in.max(1).unsigned_abs());
            tokio::select! {
                biased;
                changed = stop.changed() => if changed.is_err() { return self.finish().await; },
                Some(reply) = self.task.requests.recv() => {
                    // Everything that combine has had answered is below.
                    self.waiting.push((self.task.log.appended_end(), reply));
                }
                answered = self.outputs.next_answer(), if !self.outputs.is_drained() => answered?,
                written = self.checkpoints.advance((self.task.clock)()), if self.checkpoints.is_writing() => written?,
                () = std::future::ready(()), if progressed => {}
                () = notify.notified() => {}
                () = tokio::time::sleep(due), if self.checkpoints.is_wanted() && !self.checkpoints.is_writing() => {}
            }
        }
    }

    /// Applies one piece of the log; false if there is none or outputs have to leave first.
    async fn apply_available(&mut self) -> Result<bool, JobError> {
        let end = self.task.log.stable_offset();
        if self.position >= end || self.outputs.is_full() {
            return Ok(false);
        }
        let chunk = self.task.log.read(self.position, READ_BYTES_MAX).await?;
        for slice in &chunk.slices {
            for batch in BatchIter::new(slice.clone()) {
                let (header, batch) =
                    batch.map_err(|error| JobError::corrupt(self.position, error))?;
                if header.last_offset() < self.position {
                    continue;
                }
                let entry = classify(&header, &batch)
                    .map_err(|error| JobError::corrupt(header.base_offset, error))?;
                if matches!(entry, Entry::Partials) {
                    self.apply(&batch, header.base_offset)?;
                }
                self.position = header.last_offset() + 1;
            }
        }
        // Offsets without batches were taken away by compaction, which an internal topic does not have.
        self.position = self.position.max(chunk.next_offset);
        self.task.applied.store(self.position, Ordering::Release);
        Ok(true)
    }

    fn apply(&mut self, batch: &Bytes, base_offset: i64) -> Result<(), JobError> {
        let outputs = self
            .merger
            .apply_batch(batch)
            .map_err(|error| JobError::Retry(error.to_string()))?;
        self.checkpoints.note_applied(batch.len());
        if let Some(refusal) = &outputs.refused
            && base_offset >= self.live_from
        {
            tracing::debug!(
                topic = %self.task.plan.topic, internal_partition = self.task.internal_partition, ?refusal,
                "a batch of partials was refused"
            );
            // One message is enough however many are refused, so a full channel is as good.
            self.task.refused.try_send(()).ok();
        }
        self.outputs.send(outputs)
    }

    fn answer_requests(&mut self) {
        let position = self.position;
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(end, _)| *end <= position);
        self.waiting = waiting;
        for (_, reply) in ready {
            let state = MergeState {
                covers: self.merger.covers().collect(),
                watermark: self.merger.watermark(),
                open_windows: self.merger.open_windows().collect(),
            };
            drop(reply.send(state));
        }
    }

    /// Waits until all outputs of the state are committed, so that a state that is restored never skips one that is not there.
    async fn begin_checkpoint(&mut self) -> Result<(), JobError> {
        self.outputs.drain().await?;
        let snapshot = self.merger.snapshot();
        let now_ms = (self.task.clock)();
        let meta = CheckpointMeta {
            // A broker begins no two in a millisecond.
            id: u64::from(self.task.broker_id.unsigned_abs()) << 42
                | (now_ms.unsigned_abs() & ((1 << 42) - 1)),
            state_offset: self.merger.next_offset(),
            start: StartMark::clone(&self.task.start),
            chunks: u32::try_from(snapshot.len()).unwrap_or(u32::MAX),
            output_ends: self.outputs.ends(),
        };
        self.checkpoints
            .begin(&meta, snapshot, self.merger.next_offset(), now_ms)
    }

    /// Leaves a checkpoint of everything applied, so that the next start replays little and nothing twice.
    async fn finish(&mut self) -> Result<(), JobError> {
        while self.checkpoints.is_writing() {
            self.checkpoints.advance((self.task.clock)()).await?;
        }
        if self.checkpoints.is_wanted() {
            self.begin_checkpoint().await?;
            while self.checkpoints.is_writing() {
                self.checkpoints.advance((self.task.clock)()).await?;
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let counters = self.merger.counters();
        let status = MergeStatus {
            watermark_ms: self.merger.watermark(),
            lag: self.task.log.high_watermark().saturating_sub(self.position),
            windows_open: self.merger.windows_open(),
            groups: self.merger.groups(),
            state_bytes: self.merger.state_bytes(),
            results: counters.results,
            late: counters.late,
            dead_letters: counters.dead_letters,
            rows_for_closed_windows: counters.rows_for_closed_windows,
        };
        self.task.status.update(|job| {
            job.merges.insert(self.task.internal_partition, status);
        });
    }
}
