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

/// The batch of a snapshot's chunk.
pub fn chunk_batch(number: u32, chunk: &[u8], now_ms: i64) -> Result<Bytes, JobError> {
    let key = [KEY_CHUNK, &number.to_be_bytes()].concat();
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
    let number = key
        .strip_prefix(KEY_CHUNK)
        .and_then(|number| <[u8; 4]>::try_from(number).ok());
    Ok(number.map_or(Entry::Foreign, |number| Entry::Chunk {
        number: u32::from_be_bytes(number),
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
    /// The last complete one.
    pub checkpoint: Option<Checkpoint>,
    pub start: Option<StartMark>,
}

impl Found {
    /// Where and whose the job's state is, from wherever it is known.
    pub fn start_mark(&self) -> Option<&StartMark> {
        let of_checkpoint = self.checkpoint.as_ref().map(|found| &found.meta.start);
        self.start.as_ref().or(of_checkpoint)
    }
}

/// Reads the committed log from its start and keeps the last complete checkpoint.
pub async fn scan(log: &Arc<dyn JobLog>) -> Result<Found, JobError> {
    let end = log.stable_offset();
    let mut offset = log.start_offset();
    let mut found = Found::default();
    let mut partial: Option<Checkpoint> = None;
    while offset < end {
        let chunk = log.read(offset, READ_BYTES_MAX)?;
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

fn collect(entry: Entry, partial: &mut Option<Checkpoint>, found: &mut Found) {
    match entry {
        Entry::Partials | Entry::Foreign => {}
        Entry::Start(start) => found.start = Some(start),
        Entry::Checkpoint(meta) => {
            *partial = (1..=CHUNKS_MAX).contains(&meta.chunks).then(|| Checkpoint {
                meta,
                chunks: Vec::new(),
            });
        }
        Entry::Chunk { number, bytes } => {
            let Some(building) = partial else { return };
            if number as usize != building.chunks.len() {
                *partial = None;
                return;
            }
            // A copy, since a slice would keep the piece of the log alive that it was read with.
            building.chunks.push(Bytes::copy_from_slice(&bytes));
            if building.chunks.len() as u32 == building.meta.chunks {
                found.checkpoint = partial.take();
            }
        }
    }
}
