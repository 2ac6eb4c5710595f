//! Merge: partial rows into results, one [`Merger`] for each internal partition, which is also the derived topic's partition.
//!
//! Everything a merger does follows from the internal log alone: after a crash it restores a snapshot, replays the log from the
//! snapshot's offset, and gives each output the same sequence number again. The runtime asks the derived partition how many
//! outputs it has and appends only what comes after; so each output is there exactly once.
//!
//! **Taking a batch.** A batch is taken if every cover in it begins where the merger's cover of that source partition ends and its
//! leader epoch is not older than the last (where it has none the cover must be an initial one); else it is refused entirely ([`Outputs::refused`]): it is a replay, or its sender has lost
//! the source's leadership or is ahead of a batch that was lost. The sender then starts anew from the merger's covers.
//! Nor is it taken if the merger's watermark is above the batch's limit: for a moment two brokers may combine the same sources, and
//! what one has folded while it knew little of one source would be rows of windows that the other's covers of it have closed.
//!
//! **Time.** The watermark is the least over all source partitions of the job that are not marked idle; one that has never reported
//! holds it back. After a batch's rows are in and its late candidates judged, the watermark advances and every window whose last
//! millisecond it has reached fires, in the order of the windows and, within one, of the result keys.
//!
//! **Lateness.** A candidate is late if its window's last millisecond is at or below the greater of the merger's watermark before
//! the batch and the watermark of all sources as of the record: the one that its combiner had, lowered to what the merger
//! knows of the sources that others combine. A candidate that is not late is added as a row.

pub mod state;

use std::sync::Arc;

use bytes::Bytes;
use std::collections::BTreeMap;
use streamgauge_protocol::batch::{BatchError, BatchHeader, BatchRecords};
use thiserror::Error;

use crate::accumulator::AggregateFunction;
use crate::codec::CodecError;
use crate::combine::SourceCover;
use crate::job::Job;
use crate::partial::{
    Cover, DeadLetter, LateCandidate, Partial, PartialHeader, SourceRecord, decode_header,
    decode_partial,
};
use crate::watermark::{SourceWatermark, WATERMARK_MIN, least_active};
use crate::window::Window;

use state::WindowState;

/// Bounds of one merger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergerConfig {
    /// No batch is applied that could close no window while the state is larger than this; see [`MergeError::StateFull`].
    pub state_bytes_max: usize,
    /// The most that one internal batch may decompress to.
    pub decompressed_bytes_max: usize,
}

impl Default for MergerConfig {
    /// 1 GiB of state, 256 MiB for a batch.
    fn default() -> MergerConfig {
        MergerConfig {
            state_bytes_max: 1 << 30,
            decompressed_bytes_max: 256 << 20,
        }
    }
}

/// Why a batch was not applied.
#[derive(Debug, Error)]
pub enum MergeError {
    #[error("internal partition {internal_partition}, batch at offset {offset}: {error}")]
    Batch {
        internal_partition: i32,
        offset: i64,
        error: BatchError,
    },
    /// After this error the merger must be restored: part of the batch may be in its state.
    #[error("internal partition {internal_partition}, batch at offset {offset}: {error}")]
    Corrupt {
        internal_partition: i32,
        offset: i64,
        error: CodecError,
    },
    /// Nothing has changed and nothing is lost: apply the batch again under a greater bound.
    #[error(
        "internal partition {internal_partition}: {state_bytes} bytes in {windows_open} open windows and {groups} groups exceed state_bytes_max = {state_bytes_max}"
    )]
    StateFull {
        internal_partition: i32,
        state_bytes: usize,
        state_bytes_max: usize,
        windows_open: usize,
        groups: usize,
    },
}

/// One record of the derived topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRecord {
    pub key: Bytes,
    pub value: Bytes,
    /// The window's last millisecond.
    pub timestamp: i64,
    /// Results of this merger before this one.
    pub sequence: u64,
}

/// A record that came when its window was over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateRecord {
    /// Whole if the job keeps late records, else without key, value and headers.
    pub record: SourceRecord,
    pub event_time: i64,
    pub window: Window,
    /// The watermark that had closed the window.
    pub watermark: i64,
    /// Late records of this merger before this one.
    pub sequence: u64,
}

/// A record that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRecord {
    pub letter: DeadLetter,
    /// Dead letters of this merger before this one.
    pub sequence: u64,
}

/// A batch that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Whose batch it was: if it is a running combiner's, that one starts anew; a refused replay needs nothing.
    pub combiner_id: i32,
    pub reason: RefusalReason,
}

/// Why a batch was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The first cover that does not go on from what the merger has of that source partition.
    Cover {
        cover: Cover,
        known: Option<SourceCover>,
    },
    /// The merger's watermark is above the batch's limit.
    Watermark { limit: i64, reached: i64 },
}

/// What one batch brought about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    pub results: Vec<ResultRecord>,
    pub late: Vec<LateRecord>,
    pub dead_letters: Vec<DeadLetterRecord>,
    pub refused: Option<Refusal>,
}

/// Counts that are part of the state: they depend on the internal log only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergerCounters {
    pub batches: u64,
    pub batches_refused: u64,
    pub rows: u64,
    /// Outputs so far, and thereby the next sequence numbers.
    pub results: u64,
    pub late: u64,
    pub dead_letters: u64,
    /// Rows for a window that had fired. Combine prevents them; were one to come its records are neither counted in nor whole.
    pub rows_for_closed_windows: u64,
}

/// See the top of this file.
#[derive(Debug)]
pub struct Merger<J> {
    pub(crate) job: Arc<J>,
    pub(crate) config: MergerConfig,
    pub(crate) internal_partition: i32,
    /// Internal offsets below have been applied.
    pub(crate) next_offset: i64,
    pub(crate) source_partition_count: i32,
    pub(crate) sources: BTreeMap<i32, SourceCover>,
    pub(crate) watermark: i64,
    pub(crate) state: WindowState,
    pub(crate) counters: MergerCounters,
}

impl<J: Job> Merger<J> {
    /// An empty merger that begins at the start of its internal partition. `source_partition_count` is what is known of the source topic;
    /// covers may raise it.
    pub fn new(
        job: Arc<J>,
        internal_partition: i32,
        source_partition_count: i32,
        config: MergerConfig,
    ) -> Merger<J> {
        let functions: Vec<AggregateFunction> = job.functions().to_vec();
        Merger {
            job,
            config,
            internal_partition,
            next_offset: 0,
            source_partition_count,
            sources: BTreeMap::new(),
            watermark: WATERMARK_MIN,
            state: WindowState::new(functions),
            counters: MergerCounters::default(),
        }
    }

    /// Applies one committed record batch of the internal partition. One that was applied before changes nothing.
    pub fn apply_batch(&mut self, batch: &Bytes) -> Result<Outputs, MergeError> {
        let failed = |offset, error| MergeError::Batch {
            internal_partition: self.internal_partition,
            offset,
            error,
        };
        let header = BatchHeader::parse(batch).map_err(|error| failed(self.next_offset, error))?;
        if header.is_internal() || header.last_offset() < self.next_offset {
            return Ok(Outputs::default());
        }
        if header.is_control() {
            self.next_offset = header.last_offset() + 1;
            return Ok(Outputs::default());
        }
        let records = BatchRecords::open(batch, self.config.decompressed_bytes_max)
            .map_err(|error| failed(header.base_offset, error))?;
        let mut values = Vec::new();
        for record in records.iter() {
            let record =
                record.map_err(|error| failed(header.base_offset, BatchError::Records(error)))?;
            values.push(record.value.unwrap_or_default());
        }
        self.apply(header.base_offset, header.last_offset() + 1, &values)
    }

    /// Applies the record values of one batch that takes the offsets `[base_offset, end_offset)`.
    pub fn apply(
        &mut self,
        base_offset: i64,
        end_offset: i64,
        values: &[&[u8]],
    ) -> Result<Outputs, MergeError> {
        if end_offset <= self.next_offset {
            return Ok(Outputs::default());
        }
        let internal_partition = self.internal_partition;
        let corrupt = |error| MergeError::Corrupt {
            internal_partition,
            offset: base_offset,
            error,
        };
        let (header, partials) = decode_batch(values).map_err(corrupt)?;
        if let Some(refusal) = self.refusal(&header) {
            self.next_offset = end_offset;
            self.counters.batches_refused += 1;
            return Ok(Outputs {
                refused: Some(refusal),
                ..Outputs::default()
            });
        }
        let watermark_after = self.watermark_after(&header);
        self.check_state_bytes(watermark_after)?;

        self.take_covers(&header);
        let mut outputs = Outputs::default();
        let others = self.least_of_other_combiners(header.combiner_id);
        for partial in partials {
            match partial {
                Partial::Rows(rows) => {
                    for row in rows.iter() {
                        let row = row.map_err(corrupt)?;
                        self.counters.rows += 1;
                        if row.window.is_closed_at(self.watermark) {
                            self.counters.rows_for_closed_windows += 1;
                        } else {
                            self.state.add(&row).map_err(corrupt)?;
                        }
                    }
                }
                Partial::LateCandidate(candidate) => self
                    .judge(candidate, others, &mut outputs)
                    .map_err(corrupt)?,
                Partial::DeadLetter(letter) => {
                    outputs.dead_letters.push(DeadLetterRecord {
                        letter,
                        sequence: self.counters.dead_letters,
                    });
                    self.counters.dead_letters += 1;
                }
            }
        }
        self.watermark = watermark_after;
        self.fire(&mut outputs);
        self.counters.batches += 1;
        self.next_offset = end_offset;
        Ok(outputs)
    }

    /// The first internal offset that has not been applied.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    pub fn watermark(&self) -> i64 {
        self.watermark
    }

    /// The end of what this merger has of a source partition; `None` if it has nothing.
    pub fn cover(&self, source_partition: i32) -> Option<i64> {
        self.sources
            .get(&source_partition)
            .map(|cover| cover.to_offset)
    }

    /// For [`crate::combine::Combiner::set_internal_state`].
    pub fn covers(&self) -> impl Iterator<Item = (i32, SourceCover)> + '_ {
        self.sources
            .iter()
            .map(|(partition, cover)| (*partition, *cover))
    }

    /// The windows that hold state, in the order in which they will fire.
    pub fn open_windows(&self) -> impl Iterator<Item = Window> + '_ {
        self.state.windows()
    }

    pub fn counters(&self) -> MergerCounters {
        self.counters
    }

    pub fn windows_open(&self) -> usize {
        self.state.windows_open()
    }

    pub fn groups(&self) -> usize {
        self.state.groups()
    }

    /// About how much memory the open windows take.
    pub fn state_bytes(&self) -> usize {
        self.state.bytes()
    }

    fn refusal(&self, header: &PartialHeader) -> Option<Refusal> {
        let of_cover = header.covers.iter().find_map(|cover| {
            let known = self.sources.get(&cover.source_partition).copied();
            let fits = match known {
                None => cover.initial,
                Some(known) => {
                    cover.from_offset == known.to_offset && cover.leader_epoch >= known.leader_epoch
                }
            };
            (!fits).then_some(RefusalReason::Cover {
                cover: *cover,
                known,
            })
        });
        let of_watermark = || {
            (self.watermark > header.watermark_limit).then_some(RefusalReason::Watermark {
                limit: header.watermark_limit,
                reached: self.watermark,
            })
        };
        Some(Refusal {
            combiner_id: header.combiner_id,
            reason: of_cover.or_else(of_watermark)?,
        })
    }

    fn watermark_after(&self, header: &PartialHeader) -> i64 {
        let mut states: BTreeMap<i32, SourceWatermark> = self
            .sources
            .iter()
            .map(|(partition, cover)| (*partition, cover.state))
            .collect();
        for cover in &header.covers {
            states.insert(
                cover.source_partition,
                SourceWatermark {
                    watermark: cover.watermark,
                    idle: cover.idle,
                },
            );
        }
        let expected = self
            .source_partition_count
            .max(header.source_partition_count);
        if i64::from(expected) > states.len() as i64 {
            return self.watermark;
        }
        least_active(states.into_values()).map_or(self.watermark, |least| self.watermark.max(least))
    }

    fn take_covers(&mut self, header: &PartialHeader) {
        self.source_partition_count = self
            .source_partition_count
            .max(header.source_partition_count);
        for cover in &header.covers {
            let known = SourceCover {
                leader_epoch: cover.leader_epoch,
                to_offset: cover.to_offset,
                state: SourceWatermark {
                    watermark: cover.watermark,
                    idle: cover.idle,
                },
                combiner_id: header.combiner_id,
            };
            self.sources.insert(cover.source_partition, known);
        }
    }

    /// How far the sources have come that this combiner knows nothing of; the end of time if there are none that count.
    fn least_of_other_combiners(&self, combiner_id: i32) -> i64 {
        if i64::from(self.source_partition_count) > self.sources.len() as i64 {
            return WATERMARK_MIN;
        }
        let others = self
            .sources
            .values()
            .filter(|cover| cover.combiner_id != combiner_id)
            .map(|cover| cover.state);
        least_active(others).unwrap_or(i64::MAX)
    }

    fn judge(
        &mut self,
        candidate: LateCandidate<'_>,
        others: i64,
        outputs: &mut Outputs,
    ) -> Result<(), CodecError> {
        let watermark = self.watermark.max(candidate.judged_at.min(others));
        let window = candidate.row.window;
        if !window.is_closed_at(watermark) {
            return self.state.add(&candidate.row);
        }
        outputs.late.push(LateRecord {
            record: candidate.record,
            event_time: candidate.event_time,
            window,
            watermark,
            sequence: self.counters.late,
        });
        self.counters.late += 1;
        Ok(())
    }

    fn check_state_bytes(&self, watermark_after: i64) -> Result<(), MergeError> {
        let closes_window = self
            .state
            .windows()
            .next()
            .is_some_and(|window| window.is_closed_at(watermark_after));
        if self.state.bytes() <= self.config.state_bytes_max || closes_window {
            return Ok(());
        }
        Err(MergeError::StateFull {
            internal_partition: self.internal_partition,
            state_bytes: self.state.bytes(),
            state_bytes_max: self.config.state_bytes_max,
            windows_open: self.windows_open(),
            groups: self.groups(),
        })
    }

    fn fire(&mut self, outputs: &mut Outputs) {
        while let Some((window, groups)) = self.state.take_closed(self.watermark) {
            let mut keyed: Vec<_> = groups
                .into_iter()
                .map(|(group, accumulators)| (self.job.result_key(&group), group, accumulators))
                .collect();
            keyed.sort_unstable_by(|left, right| {
                left.0.cmp(&right.0).then_with(|| left.1.cmp(&right.1))
            });
            for (key, group, accumulators) in keyed {
                let Some(value) = self.job.result_value(&group, window, &accumulators) else {
                    continue;
                };
                outputs.results.push(ResultRecord {
                    key: Bytes::from(key),
                    value: Bytes::from(value),
                    timestamp: window.max_timestamp(),
                    sequence: self.counters.results,
                });
                self.counters.results += 1;
            }
        }
    }
}

/// Reads the header and every record behind it, so that a batch is known to be whole before anything changes.
fn decode_batch<'a>(values: &[&'a [u8]]) -> Result<(PartialHeader, Vec<Partial<'a>>), CodecError> {
    let (first, rest) = values.split_first().ok_or(CodecError::Truncated {
        what: "partial batch",
    })?;
    let header = decode_header(first)?;
    if header.records as usize != rest.len() {
        let detail = format!(
            "{} records where the header says {}",
            rest.len(),
            header.records
        );
        return Err(CodecError::Invalid {
            what: "partial batch",
            detail,
        });
    }
    let partials = rest
        .iter()
        .map(|value| decode_partial(value))
        .collect::<Result<_, _>>()?;
    Ok((header, partials))
}

#[cfg(test)]
mod tests;
