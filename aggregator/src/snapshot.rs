//! A merger's state as bytes: a stream cut into chunks that fit into records, each with a checksum.
//!
//! ```text
//! chunk    version u8 = 1 | last u8 | number u32 LE | CRC-32C u32 LE of the other bytes of the chunk | stream bytes
//! stream   internal partition signed32 | next offset signed | source partitions signed32 | watermark signed
//!          | counters: 7 times unsigned
//!          | sources: count, each: a cover (see partial.rs) from = to, combiner signed32
//!          | windows: count, each: start signed, length unsigned, groups: count, each: group bytes, accumulators bytes
//! ```
//!
//! Equal states have equal bytes.

use std::sync::Arc;

use bytes::Bytes;
use streamgauge_protocol::batch::header::crc32c;
use thiserror::Error;

use crate::accumulator::encode_all;
use crate::codec::{CodecError, Reader, put_bytes, put_signed, put_unsigned};
use crate::combine::SourceCover;
use crate::job::Job;
use crate::merge::{Merger, MergerConfig, MergerCounters};
use crate::partial::{Cover, RowBytes, put_cover, put_window, read_cover, read_window};
use crate::watermark::SourceWatermark;

const VERSION: u8 = 1;
const CHUNK_HEADER_BYTES: usize = 10;

/// A chunk is at most this long.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Why chunks are no snapshot of this merger's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SnapshotError {
    #[error("snapshot chunk {number} is shorter than its header")]
    Truncated { number: usize },
    #[error("snapshot chunk {number} has version {version}, this program reads {VERSION}")]
    Version { number: usize, version: u8 },
    #[error("snapshot chunk {number} fails its checksum")]
    Checksum { number: usize },
    #[error("snapshot chunk {number} is missing or out of order")]
    Order { number: usize },
    #[error("snapshot of internal partition {found}, not of {expected}")]
    Partition { expected: i32, found: i32 },
    #[error("snapshot: {0}")]
    Codec(#[from] CodecError),
}

impl<J: Job> Merger<J> {
    /// The state after everything below [`Merger::next_offset`], in chunks of at most [`SNAPSHOT_CHUNK_BYTES_MAX`].
    pub fn snapshot(&self) -> Vec<Bytes> {
        let stream = self.encode_state();
        let pieces: Vec<&[u8]> = stream
            .chunks(SNAPSHOT_CHUNK_BYTES_MAX - CHUNK_HEADER_BYTES)
            .collect();
        let last = pieces.len().saturating_sub(1);
        pieces
            .iter()
            .enumerate()
            .map(|(number, piece)| encode_chunk(number as u32, number == last, piece))
            .collect()
    }

    /// The merger that [`Merger::snapshot`] has saved; `chunks` in their order.
    pub fn restore(
        job: Arc<J>,
        internal_partition: i32,
        config: MergerConfig,
        chunks: impl IntoIterator<Item = Bytes>,
    ) -> Result<Merger<J>, SnapshotError> {
        let stream = join_chunks(chunks)?;
        let mut reader = Reader::new("snapshot", &stream);
        let found = reader.signed32()?;
        if found != internal_partition {
            return Err(SnapshotError::Partition {
                expected: internal_partition,
                found,
            });
        }
        let next_offset = reader.signed()?;
        let source_partition_count = reader.signed32()?;
        let mut merger = Merger::new(job, internal_partition, source_partition_count, config);
        merger.next_offset = next_offset;
        merger.watermark = reader.signed()?;
        merger.counters = MergerCounters {
            batches: reader.unsigned()?,
            batches_refused: reader.unsigned()?,
            rows: reader.unsigned()?,
            results: reader.unsigned()?,
            late: reader.unsigned()?,
            dead_letters: reader.unsigned()?,
            rows_for_closed_windows: reader.unsigned()?,
        };
        for _ in 0..reader.count()? {
            let cover = read_cover(&mut reader)?;
            let known = SourceCover {
                leader_epoch: cover.leader_epoch,
                to_offset: cover.to_offset,
                state: SourceWatermark {
                    watermark: cover.watermark,
                    idle: cover.idle,
                },
                combiner_id: reader.signed32()?,
            };
            merger.sources.insert(cover.source_partition, known);
        }
        for _ in 0..reader.count()? {
            let window = read_window(&mut reader)?;
            for _ in 0..reader.count()? {
                let row = RowBytes {
                    window,
                    group: reader.bytes()?,
                    accumulators: reader.bytes()?,
                };
                merger.state.add(&row)?;
            }
        }
        reader.finish()?;
        Ok(merger)
    }

    fn encode_state(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.state_bytes() / 2);
        put_signed(&mut out, i64::from(self.internal_partition));
        put_signed(&mut out, self.next_offset);
        put_signed(&mut out, i64::from(self.source_partition_count));
        put_signed(&mut out, self.watermark);
        let MergerCounters {
            batches,
            batches_refused,
            rows,
            results,
            late,
            dead_letters,
            rows_for_closed_windows,
        } = self.counters;
        for counter in [
            batches,
            batches_refused,
            rows,
            results,
            late,
            dead_letters,
            rows_for_closed_windows,
        ] {
            put_unsigned(&mut out, counter);
        }
        put_unsigned(&mut out, self.sources.len() as u64);
        for (partition, known) in &self.sources {
            let cover = Cover {
                source_partition: *partition,
                leader_epoch: known.leader_epoch,
                from_offset: known.to_offset,
                to_offset: known.to_offset,
                watermark: known.state.watermark,
                idle: known.state.idle,
                initial: false,
            };
            put_cover(&mut out, &cover);
            put_signed(&mut out, i64::from(known.combiner_id));
        }
        put_unsigned(&mut out, self.windows_open() as u64);
        let mut accumulator_bytes = Vec::new();
        for (window, groups) in self.state.sorted() {
            put_window(&mut out, window);
            put_unsigned(&mut out, groups.len() as u64);
            for (group, accumulators) in groups {
                put_bytes(&mut out, group);
                accumulator_bytes.clear();
                encode_all(accumulators, &mut accumulator_bytes);
                put_bytes(&mut out, &accumulator_bytes);
            }
        }
        out
    }
}

fn encode_chunk(number: u32, last: bool, piece: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(CHUNK_HEADER_BYTES + piece.len());
    out.extend_from_slice(&[VERSION, u8::from(last)]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(piece);
    let checksum = chunk_checksum(&out);
    out[6..CHUNK_HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Bytes::from(out)
}

/// Over a chunk whose checksum field is zero.
fn chunk_checksum(chunk: &[u8]) -> u32 {
    crc32c(chunk)
}

fn join_chunks(chunks: impl IntoIterator<Item = Bytes>) -> Result<Vec<u8>, SnapshotError> {
    let mut stream = Vec::new();
    let mut complete = false;
    let mut expected = 0;
    for chunk in chunks {
        let number = expected;
        let Some((header, piece)) = chunk.split_first_chunk::<CHUNK_HEADER_BYTES>() else {
            return Err(SnapshotError::Truncated { number });
        };
        let [version, last, n0, n1, n2, n3, c0, c1, c2, c3] = *header;
        if version != VERSION {
            return Err(SnapshotError::Version { number, version });
        }
        let mut zeroed = chunk.to_vec();
        zeroed[6..CHUNK_HEADER_BYTES].fill(0);
        if chunk_checksum(&zeroed) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(SnapshotError::Checksum { number });
        }
        if complete || u32::from_le_bytes([n0, n1, n2, n3]) as usize != number {
            return Err(SnapshotError::Order { number });
        }
        complete = last == 1;
        stream.extend_from_slice(piece);
        expected += 1;
    }
    if complete {
        Ok(stream)
    } else {
        Err(SnapshotError::Order { number: expected })
    }
}

#[cfg(test)]
mod tests;
