//! A record's way into a row, a late candidate or a dead letter.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use streamgauge_protocol::batch::{BatchRecords, RecordError, RecordRef};

use super::Combiner;
use super::partitioner::partition_for_key;
use crate::accumulator::{Accumulator, encode_all};
use crate::job::{Job, Reading};
use crate::partial::{SourceRecord, encode_dead_letter, encode_late_candidate};
use crate::watermark::{SourceWatermark, least_active};
use crate::window::{Window, WindowAssigner};

/// What stays the same, or in registers, over the records of a batch.
struct Fold<J> {
    job: Arc<J>,
    assigner: WindowAssigner,
    source_partition: i32,
    bound_ms: i64,
    always_whole: bool,
    covered_max: i64,
    /// Least watermark over the other active sources.
    others: i64,
    state: SourceWatermark,
    next_offset: i64,
}

impl<J: Job> Combiner<J> {
    /// False if the combiner was full before the end.
    pub(super) fn add_records(
        &mut self,
        source_partition: i32,
        records: &BatchRecords,
    ) -> Result<bool, RecordError> {
        let others = self
            .sources
            .iter()
            .filter(|(partition, _)| **partition != source_partition)
            .map(|(_, source)| source.state);
        let others = least_active(others).unwrap_or(i64::MAX);
        let sole = self.is_sole();
        let Some(source) = self.sources.get(&source_partition) else {
            return Ok(true);
        };
        let mut fold = Fold {
            job: self.job.clone(),
            assigner: self.assigner,
            source_partition,
            bound_ms: self.job.max_out_of_orderness_ms(),
            always_whole: source.unconfirmed && !sole,
            covered_max: source.covered_max,
            others,
            state: source.state,
            next_offset: source.next_offset,
        };
        let mut group = Vec::new();
        let mut scratch = J::Scratch::default();
        let mut outcome = Ok(true);
        for record in records.iter() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            if record.offset < fold.next_offset {
                continue;
            }
            if self.pending_bytes() >= self.config.pending_bytes_max {
                outcome = Ok(false);
                break;
            }
            group.clear();
            self.add_record(&mut fold, &record, &mut scratch, &mut group);
            fold.next_offset = record.offset + 1;
        }
        if let Some(source) = self.sources.get_mut(&source_partition) {
            source.state = fold.state;
            source.next_offset = fold.next_offset;
        }
        outcome
    }

    #[inline]
    fn add_record<'a>(
        &mut self,
        fold: &mut Fold<J>,
        record: &RecordRef<'a>,
        scratch: &mut J::Scratch<'a>,
        group: &mut Vec<u8>,
    ) {
        self.counters.records_in += 1;
        let reading = fold.job.read(fold.source_partition, record, scratch, group);
        let (event_time, wanted) = match reading {
            Reading::Row { event_time } => (event_time, true),
            Reading::Filtered { event_time } => (event_time, false),
            Reading::Bad { reason } => return self.add_dead_letter(fold, record, reason),
        };
        let Some(window) = fold.assigner.pane_of(event_time) else {
            return self.add_dead_letter(fold, record, Cow::Borrowed("event time out of range"));
        };
        // The watermark before this record's own time: Flink's operator sees the record first. The record cannot close its own window anyway.
        let watermark = self.watermark;
        fold.state.observe(event_time, fold.bound_ms);
        self.watermark = watermark.max(fold.state.watermark.min(fold.others));
        if !wanted {
            self.counters.filtered += 1;
            return;
        }
        if (fold.always_whole || window.is_closed_at(watermark.max(self.internal_watermark_max)))
            && self.add_late_candidate(fold, record, scratch, watermark, event_time, window, group)
        {
            return;
        }
        let hash = self.pending.hash(window, group);
        let row = match self.pending.find(hash, window, group) {
            Some(row) => row,
            None => {
                let partition = partition_for_key(
                    &fold.job.result_key(group),
                    self.config.internal_partition_count,
                );
                if record.offset < fold.covered_max && self.is_covered(fold, record, partition) {
                    return;
                }
                self.pending.insert(hash, window, group, partition)
            }
        };
        if record.offset < fold.covered_max
            && self.is_covered(fold, record, self.pending.internal_partition(row))
        {
            return;
        }
        let job = &fold.job;
        if is_large(record) {
            self.pending
                .update_and_weigh(row, |accumulators| job.add(scratch, accumulators));
        } else {
            job.add(scratch, self.pending.accumulators_mut(row));
        }
    }

    /// False if the record's window is open after all in the internal partition that the record belongs to.
    #[allow(clippy::too_many_arguments)]
    fn add_late_candidate(
        &mut self,
        fold: &Fold<J>,
        record: &RecordRef<'_>,
        scratch: &J::Scratch<'_>,
        watermark: i64,
        event_time: i64,
        window: Window,
        group: &[u8],
    ) -> bool {
        let partition = partition_for_key(
            &fold.job.result_key(group),
            self.config.internal_partition_count,
        );
        let covered = record.offset < fold.covered_max && self.is_covered(fold, record, partition);
        let Some(internal) = self.internals.get_mut(partition as usize) else {
            return false;
        };
        let judged_at = watermark.max(internal.watermark);
        if !fold.always_whole && !window.is_closed_at(judged_at) {
            return false;
        }
        if covered {
            return true;
        }
        let mut accumulators: Vec<_> = self
            .job
            .functions()
            .iter()
            .map(|function| Accumulator::new(*function))
            .collect();
        self.job.add(scratch, &mut accumulators);
        let whole = source_record(fold.source_partition, record, self.job.keeps_late_records());
        let encoded = encode_late_candidate(
            judged_at,
            event_time,
            window,
            group,
            |out| encode_all(&accumulators, out),
            &whole,
        );
        self.encoded_bytes += encoded.len();
        internal.builder.add_encoded(encoded);
        internal.has_data = true;
        self.counters.late_candidates += 1;
        true
    }

    fn add_dead_letter(
        &mut self,
        fold: &Fold<J>,
        record: &RecordRef<'_>,
        reason: Cow<'static, str>,
    ) {
        if self.job.keeps_dead_letters() {
            let partition = fold
                .source_partition
                .rem_euclid(self.config.internal_partition_count);
            let covered =
                record.offset < fold.covered_max && self.is_covered(fold, record, partition);
            if let (false, Some(internal)) = (covered, self.internals.get_mut(partition as usize)) {
                let encoded = encode_dead_letter(
                    &reason,
                    &source_record(fold.source_partition, record, true),
                );
                self.encoded_bytes += encoded.len();
                internal.builder.add_encoded(encoded);
                internal.has_data = true;
            }
        }
        self.counters.count_bad(reason);
    }

    #[cold]
    fn is_covered(&self, fold: &Fold<J>, record: &RecordRef<'_>, internal_partition: i32) -> bool {
        let internal = self.internals.get(internal_partition as usize);
        let cover = internal.and_then(|internal| internal.sent.get(&fold.source_partition));
        cover.is_some_and(|cover| record.offset < cover.to_offset)
    }
}

fn source_record(source_partition: i32, record: &RecordRef<'_>, whole: bool) -> SourceRecord {
    let headers = record.headers.filter(|_| whole).map_while(Result::ok);
    SourceRecord {
        source_partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.filter(|_| whole).map(Bytes::copy_from_slice),
        value: record.value.filter(|_| whole).map(Bytes::copy_from_slice),
        headers: headers
            .map(|header| {
                (
                    Bytes::copy_from_slice(header.key.as_bytes()),
                    header.value.map(Bytes::copy_from_slice),
                )
            })
            .collect(),
    }
}

/// Large enough that what `min` and `max` keep of it must be weighed.
fn is_large(record: &RecordRef<'_>) -> bool {
    const SMALL_RECORD_BYTES: usize = 512;
    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    length(record.key) + length(record.value) > SMALL_RECORD_BYTES || record.headers.count() > 0
}
