//! What lies in an internal partition beside combine's batches: where the job began, and merge's checkpoints.
//!
//! ```text
//! combine's batch    records without keys, see the aggregator's partial.rs
//! start mark         one record: key "start", value a StartMark as JSON; partition 0's first batch
//! checkpoint         key "checkpoint", value a CheckpointMeta as JSON
//!   then each chunk  key "chunk" | number u32 BE, value a chunk of the merger's snapshot
//! ```
//!
//! A checkpoint's batches lie among combine's, in order, and count only when the last chunk is there. It holds the state at an offset
//! before its own, so a restart restores it and then applies combine's batches from that offset on. Only when it has committed does
//! the start of the log move up to that offset; so there is always a complete one, or the whole log.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use streamgauge_protocol::batch::{
    BatchBuilder, BatchError, BatchHeader, BatchIter, BatchRecords, RecordError,
};
use uuid::Uuid;

use super::error::JobError;
use super::log::JobLog;

const KEY_START: &[u8] = b"start";
const KEY_CHECKPOINT: &[u8] = b"checkpoint";
const KEY_CHUNK: &[u8] = b"chunk";

/// One internal batch may decompress to this much. Ours are not compressed.
pub const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;
/// A checkpoint with more chunks than this (of 256 KiB) is none of ours.
const CHUNKS_MAX: u32 = 1 << 20;
const READ_BYTES_MAX: usize = 1 << 20;

/// Whose internal topic this is and where its sources begin. Written once, before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartMark {
    pub derived_topic_id: String,
    pub source_topic_id: String,
    /// Of the plan whose state this is.
    pub fingerprint: u64,
    /// By source partition; those that the topic has grown since begin at their start.
    pub start_offsets: Vec<i64>,
}

impl StartMark {
    pub fn is_of_derived(&self, topic_id: Uuid) -> bool {
        self.derived_topic_id == topic_id.to_string()
    }

    pub fn is_of_source(&self, topic_id: Uuid) -> bool {
        self.source_topic_id == topic_id.to_string()
    }

    /// The batch to be appended to partition 0.
    pub fn to_batch(&self, now_ms: i64) -> Result<Bytes, JobError> {
        json_batch(KEY_START, self, now_ms)
    }
}

/// What precedes a snapshot's chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// Tells its chunks from those of another that is written at the same time: for a moment two
    /// brokers may take a job for theirs.
    #[serde(default)]
    pub id: u64,
    /// The state has everything below this offset of the log.
    #[serde(default)]
    pub state_offset: i64,
    pub start: StartMark,
    pub chunks: u32,
    /// The ends of the logs of results, late records and dead letters, all outputs of the state's past being below. After a long rest
    /// the partitions may have forgotten the job as a producer; then what it wrote since is looked for from here.
    pub output_ends: Vec<Option<i64>>,
}

impl CheckpointMeta {
    pub fn to_batch(&self, now_ms: i64) -> Result<Bytes, JobError> {
        json_batch(KEY_CHECKPOINT, self, now_ms)
    }
}

/// The batch of a chunk of the checkpoint with that id.
pub fn chunk_batch(id: u64, number: u32, chunk: &[u8], now_ms: i64) -> Result<Bytes, JobError> {
    let key = [KEY_CHUNK, &id.to_be_bytes(), &number.to_be_bytes()].concat();
    BatchBuilder::new()
        .record(now_ms, Some(&key), Some(chunk))
        .build()
        .map_err(|error| JobError::retry("a checkpoint's chunk cannot be written", error))
}

fn json_batch(key: &[u8], value: &impl Serialize, now_ms: i64) -> Result<Bytes, JobError> {
    let value = serde_json::to_vec(value)
        .map_err(|error| JobError::retry("an internal record cannot be written", error))?;
    BatchBuilder::new()
        .record(now_ms, Some(key), Some(&value))
        .build()
        .map_err(|error| JobError::retry("an internal record cannot be written", error))
}

/// What an internal batch is.
#[derive(Debug)]
pub enum Entry {
    /// Combine's: to be applied.
    Partials,
    Start(StartMark),
    Checkpoint(CheckpointMeta),
    Chunk {
        id: u64,
        number: u32,
        bytes: Bytes,
    },
    /// Not ours: passed over.
    Foreign,
}

/// Looks at a batch's first record.
pub fn classify(header: &BatchHeader, batch: &Bytes) -> Result<Entry, BatchError> {
    if header.is_internal() || header.is_control() {
        return Ok(Entry::Foreign);
    }
    let records = BatchRecords::open(batch, DECOMPRESSED_BYTES_MAX)?;
    let Some(first) = records.views().next() else {
        return Ok(Entry::Foreign);
    };
    let first = first.map_err(|error: RecordError| BatchError::Records(error))?;
    let (Some(key), value) = (first.key, first.value.unwrap_or_default()) else {
        return Ok(Entry::Partials);
    };
    if key == KEY_START {
        return Ok(serde_json::from_slice(&value).map_or(Entry::Foreign, Entry::Start));
    }
    if key == KEY_CHECKPOINT {
        return Ok(serde_json::from_slice(&value).map_or(Entry::Foreign, Entry::Checkpoint));
    }
    let chunk = key.strip_prefix(KEY_CHUNK).and_then(|rest| {
        let (id, number) = rest.split_last_chunk::<4>()?;
        let id = match id.is_empty() {
            // As they were before two could be written at once.
            true => 0,
            false => u64::from_be_bytes(id.try_into().ok()?),
        };
        Some((id, u32::from_be_bytes(*number)))
    });
    Ok(chunk.map_or(Entry::Foreign, |(id, number)| Entry::Chunk {
        id,
        number,
        bytes: value,
    }))
}

/// A complete checkpoint.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub meta: CheckpointMeta,
    pub chunks: Vec<Bytes>,
}

/// What an internal partition holds beside combine's batches.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The first offset that there was, and the one that was read up to.
    pub start_offset: i64,
    pub end_offset: i64,
    /// The last complete one.
    pub checkpoint: Option<Checkpoint>,
    pub start: Option<StartMark>,
}

impl Found {
    /// Where and whose the job's state is, from wherever it is known.
    pub fn start_mark(&self) -> Option<&StartMark> {
        // A checkpoint has the one that counted; another that begins the job later is of a broker that was behind.
        let of_checkpoint = self.checkpoint.as_ref().map(|found| &found.meta.start);
        of_checkpoint.or(self.start.as_ref())
    }
}

/// Reads the committed log from its start and keeps the last complete checkpoint.
pub async fn scan(log: &Arc<dyn JobLog>) -> Result<Found, JobError> {
    // In this order: what lies before the start is in a checkpoint that lies before the end.
    let mut offset = log.start_offset();
    let end = log.stable_offset();
    let mut found = Found {
        start_offset: offset,
        end_offset: end,
        ..Found::default()
    };
    let mut partial = Vec::new();
    while offset < end {
        let chunk = log.read(offset, READ_BYTES_MAX).await?;
        for slice in &chunk.slices {
            for batch in BatchIter::new(slice.clone()) {
                let (header, batch) = batch.map_err(|error| JobError::corrupt(offset, error))?;
                let entry = classify(&header, &batch)
                    .map_err(|error| JobError::corrupt(header.base_offset, error))?;
                collect(entry, &mut partial, &mut found);
            }
        }
        if chunk.next_offset <= offset {
            break;
        }
        offset = chunk.next_offset;
        tokio::task::yield_now().await;
    }
    Ok(found)
}

/// Checkpoints that are written at the same time, at most.
const PARTIAL_MAX: usize = 8;

/// `partial` are the checkpoints that have begun, the last one last.
fn collect(entry: Entry, partial: &mut Vec<Checkpoint>, found: &mut Found) {
    match entry {
        Entry::Partials | Entry::Foreign => {}
        // Of two brokers that begin a job at once, the first in the log has begun it.
        Entry::Start(start) => drop(found.start.get_or_insert(start)),
        Entry::Checkpoint(meta) => {
            partial.retain(|other| other.meta.id != meta.id);
            if partial.len() == PARTIAL_MAX {
                partial.remove(0);
            }
            if (1..=CHUNKS_MAX).contains(&meta.chunks) {
                partial.push(Checkpoint {
                    meta,
                    chunks: Vec::new(),
                });
            }
        }
        Entry::Chunk { id, number, bytes } => {
            let Some(at) = partial.iter().position(|begun| begun.meta.id == id) else {
                return;
            };
            if partial[at].chunks.len() != number as usize {
                partial.remove(at);
                return;
            }
            // A copy, since a slice would keep the piece of the log alive that it was read with.
            partial[at].chunks.push(Bytes::copy_from_slice(&bytes));
            if partial[at].chunks.len() as u32 == partial[at].meta.chunks {
                let complete = partial.remove(at);
                // Of two that were written at once the log may have been cut for the later state.
                let known = found.checkpoint.as_ref();
                if known.is_none_or(|known| known.meta.state_offset <= complete.meta.state_offset) {
                    found.checkpoint = Some(complete);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::memory::MemoryLog;

    fn mark(fingerprint: u64) -> StartMark {
        StartMark {
            derived_topic_id: "d".to_owned(),
            source_topic_id: "s".to_owned(),
            fingerprint,
            start_offsets: vec![0],
        }
    }

    fn meta(id: u64, state_offset: i64, chunks: u32) -> Bytes {
        let meta = CheckpointMeta {
            id,
            state_offset,
            start: mark(1),
            chunks,
            output_ends: Vec::new(),
        };
        meta.to_batch(0).unwrap()
    }

    fn chunk(id: u64, number: u32) -> Bytes {
        let text = format!("{id}-{number}");
        chunk_batch(id, number, text.as_bytes(), 0).unwrap()
    }

    async fn found_in(batches: Vec<Bytes>) -> Found {
        let log = MemoryLog::default();
        for batch in batches {
            log.append_committed(batch);
        }
        let log: Arc<dyn JobLog> = Arc::new(log);
        scan(&log).await.unwrap()
    }

    fn chunks(found: &Found) -> Vec<&[u8]> {
        let checkpoint = found.checkpoint.as_ref().unwrap();
        checkpoint.chunks.iter().map(|chunk| &chunk[..]).collect()
    }

    #[tokio::test]
    async fn checkpoints_that_two_brokers_write_at_once_are_not_mixed() {
        let found = found_in(vec![
            meta(7, 10, 2),
            chunk(7, 0),
            meta(8, 12, 2),
            chunk(8, 0),
            chunk(7, 1),
            chunk(8, 1),
        ])
        .await;
        assert_eq!(chunks(&found), [b"8-0", b"8-1"]);
    }

    /// Its writer has cut the log up to where its state goes.
    #[tokio::test]
    async fn the_checkpoint_with_the_later_state_counts() {
        let found = found_in(vec![
            meta(7, 12, 1),
            meta(8, 10, 1),
            chunk(7, 0),
            chunk(8, 0),
        ])
        .await;
        assert_eq!(chunks(&found), [b"7-0"]);
    }

    #[tokio::test]
    async fn a_checkpoint_without_all_its_chunks_does_not_count() {
        let found = found_in(vec![
            meta(7, 10, 1),
            chunk(7, 0),
            meta(8, 12, 3),
            chunk(8, 0),
            chunk(8, 2),
        ])
        .await;
        assert_eq!(chunks(&found), [b"7-0"]);
    }

    #[tokio::test]
    async fn a_job_that_has_a_checkpoint_is_not_begun_again() {
        let found = found_in(vec![
            mark(2).to_batch(0).unwrap(),
            meta(7, 10, 1),
            chunk(7, 0),
        ])
        .await;
        assert_eq!(found.start_mark().unwrap().fingerprint, 1);
    }

    #[tokio::test]
    async fn of_two_that_begin_a_job_the_first_has_begun_it() {
        let marks = [mark(1), mark(2)].map(|mark| mark.to_batch(0).unwrap());
        let found = found_in(marks.into()).await;
        assert_eq!(found.start_mark().unwrap().fingerprint, 1);
    }
}
