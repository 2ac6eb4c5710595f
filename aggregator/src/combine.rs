//! Combine: a job's records, where they lie, into partial rows by window and group.
//!
//! One [`Combiner`] a job and broker handles every source partition that the broker leads. It is a state machine without I/O: the
//! runtime hands it committed batches ([`Combiner::add_batch`]) and appends what [`Combiner::flush`] returns, one record batch for each
//! internal partition. What merge needs to take each record exactly once is in the covers (see partial.rs).
//!
//! **Order of reading.** The runtime reads next from the partition that [`Combiner::pick`] names, the one whose own watermark is
//! least. Partitions then stay within one chunk of each other in event time, and reading a backlog judges lateness about as reading
//! live would have (Flink calls this watermark alignment).
//!
//! **Lateness.** A record whose window is over at the least watermark of all the combiner's active partitions, as it was when the
//! record came, goes to merge whole; merge judges it by the whole job's watermark. Everything else is folded into a row. For this to be
//! safe merge must never close a window of which combine still folds records. With all the job's partitions in one combiner that
//! holds because merge's watermark follows from the covers: the combiner keeps for each internal partition what its covers have told,
//! and judges by the greater of the two. With several combiners it could fail for a partition that merge does not wait for, one just
//! assigned or marked idle; all records of such a partition go whole until [`Combiner::confirm_active`] says that merge waits again.
//!
//! **Idleness.** A partition with no record for the job's idle timeout, all of whose records have been read, is marked idle in a cover
//! and no longer holds the watermark back; the next record marks it active. When all are idle the watermark stays (see watermark.rs).
//!
//! **After a crash** the runtime builds a new combiner, tells it what every internal partition has covered
//! ([`Combiner::set_internal_state`]) and reads each source partition from the least such offset. What an internal partition has
//! already is skipped for it, exactly. The same when merge refuses a batch.

mod flush;
mod fold;
pub mod partitioner;
pub mod pending;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use streamgauge_protocol::batch::{BatchError, BatchHeader, BatchRecords};
use thiserror::Error;

use crate::accumulator::encode_all;
use crate::job::Job;
use crate::partial::{PartialBatch, PartialBatchBuilder};
use crate::watermark::{SourceWatermark, WATERMARK_MIN, least_active};
use crate::window::{Window, WindowAssigner};

use pending::PendingRows;

/// Bounds and cadence of one combiner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CombinerConfig {
    /// Distinct for each broker: merge must know which source partitions share a combiner.
    pub combiner_id: i32,
    /// Partitions of the internal topic, and of the derived one.
    pub internal_partition_count: i32,
    /// Partitions of the source topic, whoever combines them.
    pub source_partition_count: i32,
    /// A batch is taken only up to the record that fills this many bytes; the runtime then flushes.
    pub pending_bytes_max: usize,
    /// Covers without rows, when they close no window, are sent this often.
    pub empty_cover_interval_ms: i64,
    /// The most that one source batch may decompress to.
    pub decompressed_bytes_max: usize,
}

impl CombinerConfig {
    /// For a broker that leads all of a job's source partitions: 4 MiB pending, a cover a second, 64 MiB decompressed.
    pub fn new(internal_partition_count: i32, source_partition_count: i32) -> CombinerConfig {
        CombinerConfig {
            combiner_id: 0,
            internal_partition_count,
            source_partition_count,
            pending_bytes_max: 4 << 20,
            empty_cover_interval_ms: 1000,
            decompressed_bytes_max: 64 << 20,
        }
    }
}

/// What an internal partition's merger knows of a source partition: where its cover ends, and what the last cover said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceCover {
    pub leader_epoch: i32,
    pub to_offset: i64,
    pub state: SourceWatermark,
    /// Who sent the last cover.
    pub combiner_id: i32,
}

/// How far [`Combiner::add_batch`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// The source partition's next offset.
    pub next_offset: i64,
    /// False: the combiner is full. Flush, then give it the same batch again.
    pub complete: bool,
}

#[derive(Debug, Error)]
pub enum CombineError {
    #[error("source partition {0} is not assigned")]
    NotAssigned(i32),
    #[error("internal partition {0} does not exist")]
    UnknownInternalPartition(i32),
    #[error("source partition {partition}, batch at offset {base_offset}: {error}")]
    Batch {
        partition: i32,
        base_offset: i64,
        error: BatchError,
    },
}

/// What a combiner has seen since it was made. After a restart records may be counted again; results never are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CombinerCounters {
    pub records_in: u64,
    pub filtered: u64,
    pub late_candidates: u64,
    pub bad: BTreeMap<Cow<'static, str>, u64>,
    pub rows_out: u64,
}

/// Reasons are counted apart up to this many; the rest share one count.
pub const BAD_REASONS_MAX: usize = 64;

impl CombinerCounters {
    fn count_bad(&mut self, reason: Cow<'static, str>) {
        let room = self.bad.len() < BAD_REASONS_MAX || self.bad.contains_key(&reason);
        let reason = if room {
            reason
        } else {
            Cow::Borrowed("other reasons")
        };
        *self.bad.entry(reason).or_default() += 1;
    }
}

/// See the top of this file.
#[derive(Debug)]
pub struct Combiner<J> {
    job: Arc<J>,
    config: CombinerConfig,
    assigner: WindowAssigner,
    sources: BTreeMap<i32, Source>,
    internals: Vec<Internal>,
    pending: PendingRows,
    encoded_bytes: usize,
    /// Least watermark over the active sources, at its greatest since the last was assigned.
    watermark: i64,
    /// The greatest [`Internal::watermark`].
    internal_watermark_max: i64,
    counters: CombinerCounters,
}

#[derive(Debug)]
struct Source {
    leader_epoch: i32,
    next_offset: i64,
    state: SourceWatermark,
    /// When a record last came, or the partition was assigned.
    active_at_ms: i64,
    /// Some internal partition has covered everything below.
    covered_max: i64,
    /// Merge may not be waiting for this partition: see "Lateness".
    unconfirmed: bool,
}

#[derive(Debug, Default)]
struct Internal {
    /// For each source partition what merge knows once it has everything sent.
    sent: BTreeMap<i32, SourceCover>,
    /// Source partitions of which merge has nothing and nothing was sent.
    unreported: BTreeSet<i32>,
    /// Merge's watermark once it has everything sent, as far as this combiner's covers move it.
    watermark: i64,
    builder: PartialBatchBuilder,
    has_data: bool,
    /// Windows that rows were sent for and that are not known to be closed.
    open_windows: BTreeSet<Window>,
    sent_at_ms: Option<i64>,
}

impl<J: Job> Combiner<J> {
    pub fn new(job: Arc<J>, config: CombinerConfig) -> Combiner<J> {
        assert!(
            config.internal_partition_count > 0,
            "a job without internal partitions"
        );
        let internals = (0..config.internal_partition_count).map(|_| Internal {
            watermark: WATERMARK_MIN,
            ..Internal::default()
        });
        Combiner {
            assigner: job.windows(),
            pending: PendingRows::new(job.functions()),
            internals: internals.collect(),
            job,
            config,
            sources: BTreeMap::new(),
            encoded_bytes: 0,
            watermark: WATERMARK_MIN,
            internal_watermark_max: WATERMARK_MIN,
            counters: CombinerCounters::default(),
        }
    }

    /// Tells what an internal partition's merger has: its covers, its watermark, and the windows that are open in it. To be called for
    /// every internal partition before the first source is assigned, also for empty ones; to take sources on later, make a new combiner.
    pub fn set_internal_state(
        &mut self,
        internal_partition: i32,
        covers: impl IntoIterator<Item = (i32, SourceCover)>,
        watermark: i64,
        open_windows: impl IntoIterator<Item = Window>,
    ) -> Result<(), CombineError> {
        let index = usize::try_from(internal_partition).ok();
        let internal = index
            .and_then(|index| self.internals.get_mut(index))
            .ok_or(CombineError::UnknownInternalPartition(internal_partition))?;
        internal.sent = covers.into_iter().collect();
        internal.watermark = internal.watermark.max(watermark);
        internal.open_windows = open_windows.into_iter().collect();
        self.internal_watermark_max = self.internal_watermark_max.max(internal.watermark);
        Ok(())
    }

    /// Takes a source partition on, in the epoch in which this broker leads it, and says from which offset to read it: the least that
    /// all internal partitions have covered, or `start_offset` if none has anything of it. (A merger without a cover of the source begins at
    /// whatever offset its first cover names.)
    pub fn assign_source(
        &mut self,
        source_partition: i32,
        leader_epoch: i32,
        start_offset: i64,
        now_ms: i64,
    ) -> i64 {
        let covers = || {
            self.internals
                .iter()
                .filter_map(|internal| internal.sent.get(&source_partition))
        };
        let covered_max = covers()
            .map(|cover| cover.to_offset)
            .max()
            .unwrap_or(start_offset);
        let some_have_none = self
            .internals
            .iter()
            .any(|internal| !internal.sent.contains_key(&source_partition));
        let least = covers().min_by_key(|cover| cover.to_offset);
        let (next_offset, state) = match least {
            Some(cover) if !some_have_none || cover.to_offset <= start_offset => {
                (cover.to_offset, cover.state)
            }
            _ => (start_offset, SourceWatermark::NEW),
        };
        for internal in &mut self.internals {
            if !internal.sent.contains_key(&source_partition) {
                internal.unreported.insert(source_partition);
            }
            internal
                .sent
                .entry(source_partition)
                .or_insert(SourceCover {
                    leader_epoch,
                    to_offset: next_offset,
                    state: SourceWatermark::NEW,
                    combiner_id: self.config.combiner_id,
                });
        }
        let source = Source {
            leader_epoch,
            next_offset,
            state,
            active_at_ms: now_ms,
            covered_max,
            unconfirmed: true,
        };
        self.sources.insert(source_partition, source);
        // Found out without this source, so it says nothing of the sources that there are now. What merge knows stays.
        self.watermark = WATERMARK_MIN;
        next_offset
    }

    /// Gives a source partition up. What is pending is flushed first, for its rows may hold records of several sources; those records
    /// were committed, so merge takes them unless the next leader was faster.
    pub fn revoke_source(&mut self, source_partition: i32, now_ms: i64) -> Vec<PartialBatch> {
        let batches = self.flush(now_ms);
        self.sources.remove(&source_partition);
        for internal in &mut self.internals {
            internal.sent.remove(&source_partition);
            internal.unreported.remove(&source_partition);
        }
        batches
    }

    /// The source topic has grown.
    pub fn set_source_partition_count(&mut self, count: i32) {
        self.config.source_partition_count = self.config.source_partition_count.max(count);
    }

    /// Which of the partitions that have records to read is read next: the one whose own watermark is least.
    pub fn pick(&self, available: &[i32]) -> Option<i32> {
        let known = available.iter().filter_map(|partition| {
            Some((self.sources.get(partition)?.state.watermark, *partition))
        });
        known.min().map(|(_, partition)| partition)
    }

    /// Folds a committed batch of a source partition. Records below the partition's next offset are passed over, so a batch may be given
    /// again. Control batches only move the offset. Aborted transactions must be passed over with [`Combiner::skip_to`].
    pub fn add_batch(
        &mut self,
        source_partition: i32,
        batch: &Bytes,
        now_ms: i64,
    ) -> Result<Added, CombineError> {
        let failed = |base_offset, error| CombineError::Batch {
            partition: source_partition,
            base_offset,
            error,
        };
        let source = self
            .sources
            .get_mut(&source_partition)
            .ok_or(CombineError::NotAssigned(source_partition))?;
        let header =
            BatchHeader::parse(batch).map_err(|error| failed(source.next_offset, error))?;
        let end_offset = header.last_offset() + 1;
        if end_offset <= source.next_offset || header.is_internal() {
            return Ok(Added {
                next_offset: source.next_offset,
                complete: true,
            });
        }
        if header.is_control() {
            source.next_offset = end_offset;
            return Ok(Added {
                next_offset: end_offset,
                complete: true,
            });
        }
        let records = BatchRecords::open(batch, self.config.decompressed_bytes_max)
            .map_err(|error| failed(header.base_offset, error))?;
        source.active_at_ms = now_ms;
        source.state.idle = false;
        let result = self.add_records(source_partition, &records);
        let complete =
            result.map_err(|error| failed(header.base_offset, BatchError::Records(error)))?;
        let source = self
            .sources
            .get_mut(&source_partition)
            .ok_or(CombineError::NotAssigned(source_partition))?;
        if complete {
            source.next_offset = end_offset;
        }
        Ok(Added {
            next_offset: source.next_offset,
            complete,
        })
    }

    /// Passes over offsets that hold no records for this job.
    pub fn skip_to(&mut self, source_partition: i32, offset: i64) -> Result<(), CombineError> {
        let source = self
            .sources
            .get_mut(&source_partition)
            .ok_or(CombineError::NotAssigned(source_partition))?;
        source.next_offset = source.next_offset.max(offset);
        Ok(())
    }

    /// All records there are have been read: after the idle timeout the partition stops holding the watermark back.
    pub fn caught_up(&mut self, source_partition: i32, now_ms: i64) -> Result<(), CombineError> {
        let source = self
            .sources
            .get_mut(&source_partition)
            .ok_or(CombineError::NotAssigned(source_partition))?;
        if let Some(timeout) = self.job.idle_timeout_ms()
            && now_ms.saturating_sub(source.active_at_ms) >= timeout
        {
            source.state.idle = true;
            self.advance_watermark_of_job();
        }
        Ok(())
    }

    /// The broker knows that no record at or below `at_least` can come any more, for instance by append times.
    pub fn advance_watermark(
        &mut self,
        source_partition: i32,
        at_least: i64,
    ) -> Result<(), CombineError> {
        let source = self
            .sources
            .get_mut(&source_partition)
            .ok_or(CombineError::NotAssigned(source_partition))?;
        source.state.raise(at_least);
        self.advance_watermark_of_job();
        Ok(())
    }

    /// Every merger has a cover that shows the source partition active, and none has a watermark above `watermark`. Needed only
    /// where several combiners share a job.
    pub fn confirm_active(
        &mut self,
        source_partition: i32,
        watermark: i64,
    ) -> Result<(), CombineError> {
        let source = self
            .sources
            .get_mut(&source_partition)
            .ok_or(CombineError::NotAssigned(source_partition))?;
        source.unconfirmed = source.state.idle;
        self.internal_watermark_max = self.internal_watermark_max.max(watermark);
        for internal in &mut self.internals {
            internal.watermark = internal.watermark.max(watermark);
        }
        Ok(())
    }

    /// What is pending: for each internal partition at most one batch, to be appended as one record batch, in the order of the flushes.
    pub fn flush(&mut self, now_ms: i64) -> Vec<PartialBatch> {
        let internals = &mut self.internals;
        let counters = &mut self.counters;
        self.pending
            .drain(|internal_partition, window, group, accumulators| {
                let Some(internal) = internals.get_mut(internal_partition as usize) else {
                    return;
                };
                internal
                    .builder
                    .add_row(window, group, |out| encode_all(accumulators, out));
                internal.open_windows.insert(window);
                internal.has_data = true;
                counters.rows_out += 1;
            });
        self.encoded_bytes = 0;
        let mut batches = Vec::new();
        for index in 0..self.internals.len() {
            batches.extend(self.flush_internal(index, now_ms));
        }
        batches
    }

    /// About how many bytes wait for the next flush.
    pub fn pending_bytes(&self) -> usize {
        self.pending.bytes() + self.encoded_bytes
    }

    /// The next offset to read of a source partition.
    pub fn next_offset(&self, source_partition: i32) -> Option<i64> {
        self.sources
            .get(&source_partition)
            .map(|source| source.next_offset)
    }

    /// The least watermark over the active source partitions of this combiner.
    pub fn watermark(&self) -> i64 {
        self.watermark
    }

    /// Each source partition's own watermark and whether it is idle, for an operator who asks which one holds the job back.
    pub fn source_watermarks(&self) -> impl Iterator<Item = (i32, SourceWatermark)> + '_ {
        self.sources
            .iter()
            .map(|(partition, source)| (*partition, source.state))
    }

    pub fn counters(&self) -> &CombinerCounters {
        &self.counters
    }

    /// All of the job's source partitions are here, so that this combiner's watermark is the job's.
    fn is_sole(&self) -> bool {
        self.sources.len() as i64 >= i64::from(self.config.source_partition_count)
    }

    fn advance_watermark_of_job(&mut self) {
        if let Some(least) = least_active(self.sources.values().map(|source| source.state)) {
            self.watermark = self.watermark.max(least);
        }
    }
}

#[cfg(test)]
mod tests;
