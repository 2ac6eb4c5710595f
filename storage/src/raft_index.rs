//! The side index from Raft entries to the frames of one segment.
//!
//! In memory there is one [`EntryPlace`] for each entry of the segment, in order: the entry's
//! ordinal is its Raft index minus the segment's first. The file is written when a segment is
//! sealed and when a log is closed; it tells all that opening the segment needs, so that a sealed
//! segment is not scanned. While a segment is active it has none: every entry is a frame of the
//! log, so a scan makes the index again.
//!
//! ```text
//! NNN.ridx
//!   header  magic "SGRX" | version u32 | base offset i64 | first raft index u64 | log bytes u64 |
//!           next offset i64 | max timestamp i64 | offset of max timestamp i64 |
//!           epochs u32 | entries u32 | crc32 u32
//!   epoch   term u64 | first raft index u64 | start offset i64      the terms that wrote to the segment
//!   entry   position u32 | relative next offset u32 | crc32 of the frame's first 21 bytes u32
//! ```
//!
//! All numbers are big-endian. The checksum covers the header before it and all entries. The
//! frame's first 21 bytes (offset, length, epoch, checksum) lie outside Kafka's own checksum, but
//! hold it; the two together cover the whole batch.

use crate::epochs::EpochEntry;
use crate::ids::{RaftIndex, Term};

const MAGIC: &[u8; 4] = b"SGRX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 4 + 4 + 6 * 8 + 4 + 4 + 4;
const EPOCH_BYTES: usize = 24;
const ENTRY_BYTES: usize = 12;

/// Where one Raft entry lies in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPlace {
    pub position: u32,
    /// The Kafka offset after the entry, relative to the segment's base offset. An entry without
    /// records has that of the entry before.
    pub relative_next_offset: u32,
    pub prefix_crc: u32,
}

/// What a sealed segment is, without looking into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSummary {
    pub base_offset: i64,
    pub first_index: RaftIndex,
    pub log_bytes: u64,
    pub next_offset: i64,
    /// -1 if no batch has a timestamp.
    pub max_timestamp: i64,
    /// The last offset of the first batch that has it; -1 if none has.
    pub max_timestamp_offset: i64,
}

/// What a file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentContents {
    pub summary: SegmentSummary,
    /// The terms that wrote to the segment; the first may have begun before it.
    pub epochs: Vec<EpochEntry>,
    pub places: Vec<EntryPlace>,
}

/// The bytes of a file.
pub fn encode(summary: &SegmentSummary, epochs: &[EpochEntry], places: &[EntryPlace]) -> Vec<u8> {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes =
        Vec::with_capacity(HEADER_BYTES + epochs.len() * EPOCH_BYTES + places.len() * ENTRY_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&summary.base_offset.to_be_bytes());
    bytes.extend_from_slice(&summary.first_index.0.to_be_bytes());
    bytes.extend_from_slice(&summary.log_bytes.to_be_bytes());
    bytes.extend_from_slice(&summary.next_offset.to_be_bytes());
    bytes.extend_from_slice(&summary.max_timestamp.to_be_bytes());
    bytes.extend_from_slice(&summary.max_timestamp_offset.to_be_bytes());
    bytes.extend_from_slice(&count(epochs.len()));
    bytes.extend_from_slice(&count(places.len()));
    bytes.extend_from_slice(&[0; 4]);
    for epoch in epochs {
        bytes.extend_from_slice(&epoch.term.0.to_be_bytes());
        bytes.extend_from_slice(&epoch.first_index.0.to_be_bytes());
        bytes.extend_from_slice(&epoch.start_offset.to_be_bytes());
    }
    for place in places {
        bytes.extend_from_slice(&place.position.to_be_bytes());
        bytes.extend_from_slice(&place.relative_next_offset.to_be_bytes());
        bytes.extend_from_slice(&place.prefix_crc.to_be_bytes());
    }
    let crc = checksum(&bytes);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// Reads a file; `None` if it is not whole and as it was written.
pub fn decode(bytes: &[u8]) -> Option<SegmentContents> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let mut fields = Fields(header);
    let (magic, version) = (fields.take::<4>()?, u32::from_be_bytes(fields.take()?));
    if &magic != MAGIC || version != VERSION {
        return None;
    }
    let summary = SegmentSummary {
        base_offset: i64::from_be_bytes(fields.take()?),
        first_index: RaftIndex(u64::from_be_bytes(fields.take()?)),
        log_bytes: u64::from_be_bytes(fields.take()?),
        next_offset: i64::from_be_bytes(fields.take()?),
        max_timestamp: i64::from_be_bytes(fields.take()?),
        max_timestamp_offset: i64::from_be_bytes(fields.take()?),
    };
    let epoch_bytes = EPOCH_BYTES.checked_mul(u32::from_be_bytes(fields.take()?) as usize)?;
    let place_bytes = ENTRY_BYTES.checked_mul(u32::from_be_bytes(fields.take()?) as usize)?;
    let crc = u32::from_be_bytes(fields.take()?);
    let (epochs, places) = rest.split_at_checked(epoch_bytes)?;
    if places.len() != place_bytes || checksum(bytes) != crc {
        return None;
    }
    let epoch = |bytes| {
        let mut fields = Fields(bytes);
        Some(EpochEntry {
            term: Term(u64::from_be_bytes(fields.take()?)),
            first_index: RaftIndex(u64::from_be_bytes(fields.take()?)),
            start_offset: i64::from_be_bytes(fields.take()?),
        })
    };
    let place = |bytes| {
        let mut fields = Fields(bytes);
        Some(EntryPlace {
            position: u32::from_be_bytes(fields.take()?),
            relative_next_offset: u32::from_be_bytes(fields.take()?),
            prefix_crc: u32::from_be_bytes(fields.take()?),
        })
    };
    Some(SegmentContents {
        summary,
        epochs: epochs.chunks_exact(EPOCH_BYTES).map_while(epoch).collect(),
        places: places.chunks_exact(ENTRY_BYTES).map_while(place).collect(),
    })
}

/// The checksum of a file as if its checksum field were zero.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..HEADER_BYTES - 4]);
    hasher.update(&bytes[HEADER_BYTES..]);
    hasher.finalize()
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_back_and_any_flipped_bit_is_seen() {
        let summary = SegmentSummary {
            base_offset: 100,
            first_index: RaftIndex(6),
            log_bytes: 1234,
            next_offset: 120,
            max_timestamp: 99,
            max_timestamp_offset: 110,
        };
        let entries: Vec<_> = (0..3)
            .map(|step| EntryPlace {
                position: step * 61,
                relative_next_offset: step,
                prefix_crc: step ^ 7,
            })
            .collect();
        let epochs = vec![EpochEntry {
            term: Term(3),
            first_index: RaftIndex(2),
            start_offset: 90,
        }];
        let bytes = encode(&summary, &epochs, &entries);
        let contents = SegmentContents {
            summary,
            epochs,
            places: entries,
        };
        assert_eq!(decode(&bytes), Some(contents));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "cut to {len}");
        }
    }
}
