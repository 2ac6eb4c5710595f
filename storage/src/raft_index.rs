//! The side index from Raft entries to the frames of one segment.
//!
//! There is one [`EntryPlace`] for each entry of the segment, in order: the entry's ordinal is its
//! Raft index minus the segment's first. For the active segment they are in memory. The file is
//! written when a segment is sealed and when a log is closed; it tells all that opening the segment
//! needs, so that a sealed segment is not scanned, and its places are read a block at a time. It can
//! be made again by scanning the log, so it is not synced: whoever reads one checks it.
//!
//! ```text
//! NNN.ridx
//!   header  magic "SGRX" | version u32 | base offset i64 | first raft index u64 | log bytes u64 |
//!           next offset i64 | max timestamp i64 | offset of max timestamp i64 |
//!           crc32 of the .index file u32 | crc32 of the .timeindex file u32 |
//!           epochs u32 | entries u32 | crc32 of the header before it and the epochs u32
//!   epoch   term u64 | first raft index u64 | start offset i64      the terms that wrote to the segment
//!   block   crc32 of the entries u32 | up to 256 entries
//!   entry   position u32 | relative next offset u32 | crc32 of the frame's first 21 bytes u32
//! ```
//!
//! All numbers are big-endian. A frame's first 21 bytes (offset, length, epoch, checksum) lie
//! outside Kafka's own checksum, but hold it; the two together cover the whole batch.

use std::io;

use crate::disk::DiskFile;
use crate::epochs::EpochEntry;
use crate::ids::{RaftIndex, Term};

const MAGIC: &[u8; 4] = b"SGRX";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4 + 4 + 6 * 8 + 5 * 4;
const EPOCH_BYTES: usize = 24;
const ENTRY_BYTES: usize = 12;
const CRC_BYTES: usize = 4;

/// Entries that are read at once.
pub const BLOCK_ENTRIES: usize = if cfg!(test) { 8 } else { 256 };

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

/// The index files of a segment that takes no more appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexFiles {
    /// In the `.ridx` file.
    pub entries: usize,
    epochs: usize,
    pub offset_index_crc: u32,
    pub time_index_crc: u32,
}

/// All of a file but the places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub summary: SegmentSummary,
    pub files: IndexFiles,
    /// The terms that wrote to the segment; the first may have begun before it.
    pub epochs: Vec<EpochEntry>,
}

/// The bytes of a file beside the given index files, and what it will be found by.
pub fn encode(
    summary: &SegmentSummary,
    epochs: &[EpochEntry],
    places: &[EntryPlace],
    offset_index: &[u8],
    time_index: &[u8],
) -> (Vec<u8>, IndexFiles) {
    let files = IndexFiles {
        entries: places.len(),
        epochs: epochs.len(),
        offset_index_crc: crc32fast::hash(offset_index),
        time_index_crc: crc32fast::hash(time_index),
    };
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = Vec::with_capacity(usize::try_from(files.file_bytes()).unwrap_or(0));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&summary.base_offset.to_be_bytes());
    bytes.extend_from_slice(&summary.first_index.0.to_be_bytes());
    bytes.extend_from_slice(&summary.log_bytes.to_be_bytes());
    bytes.extend_from_slice(&summary.next_offset.to_be_bytes());
    bytes.extend_from_slice(&summary.max_timestamp.to_be_bytes());
    bytes.extend_from_slice(&summary.max_timestamp_offset.to_be_bytes());
    bytes.extend_from_slice(&files.offset_index_crc.to_be_bytes());
    bytes.extend_from_slice(&files.time_index_crc.to_be_bytes());
    bytes.extend_from_slice(&count(epochs.len()));
    bytes.extend_from_slice(&count(places.len()));
    bytes.extend_from_slice(&[0; CRC_BYTES]);
    for epoch in epochs {
        bytes.extend_from_slice(&epoch.term.0.to_be_bytes());
        bytes.extend_from_slice(&epoch.first_index.0.to_be_bytes());
        bytes.extend_from_slice(&epoch.start_offset.to_be_bytes());
    }
    let crc = head_checksum(&bytes);
    bytes[HEADER_BYTES - CRC_BYTES..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    for block in places.chunks(BLOCK_ENTRIES) {
        let at = bytes.len();
        bytes.extend_from_slice(&[0; CRC_BYTES]);
        for place in block {
            bytes.extend_from_slice(&place.position.to_be_bytes());
            bytes.extend_from_slice(&place.relative_next_offset.to_be_bytes());
            bytes.extend_from_slice(&place.prefix_crc.to_be_bytes());
        }
        let crc = crc32fast::hash(&bytes[at + CRC_BYTES..]);
        bytes[at..at + CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
    }
    (bytes, files)
}

/// Reads the head of a file; `None` if the head is not what was written or the file's length does
/// not fit it.
pub fn read_head(file: &dyn DiskFile) -> io::Result<Option<Head>> {
    let len = file.len()?;
    let mut bytes = vec![0; HEADER_BYTES];
    if len < HEADER_BYTES as u64 {
        return Ok(None);
    }
    file.read_at(0, &mut bytes)?;
    let Some((_, files)) = decode_header(&bytes) else {
        return Ok(None);
    };
    // The length bounds what the counts make us read.
    if files.file_bytes() != len {
        return Ok(None);
    }
    bytes.resize(HEADER_BYTES + files.epochs * EPOCH_BYTES, 0);
    file.read_at(HEADER_BYTES as u64, &mut bytes[HEADER_BYTES..])?;
    Ok(decode_head(&bytes))
}

/// Reads the block of places that holds the entry with an ordinal; `None` if it is not what was
/// written.
pub fn read_block(
    file: &dyn DiskFile,
    files: &IndexFiles,
    ordinal: usize,
) -> io::Result<Option<Vec<EntryPlace>>> {
    let first = ordinal - ordinal % BLOCK_ENTRIES;
    let entries = files.entries.saturating_sub(first).min(BLOCK_ENTRIES);
    if entries == 0 {
        return Ok(Some(Vec::new()));
    }
    let position = files.places_position()
        + (first / BLOCK_ENTRIES) as u64 * (CRC_BYTES + BLOCK_ENTRIES * ENTRY_BYTES) as u64;
    let mut bytes = vec![0; CRC_BYTES + entries * ENTRY_BYTES];
    match file.read_at(position, &mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    Ok(decode_block(&bytes))
}

impl IndexFiles {
    fn places_position(&self) -> u64 {
        HEADER_BYTES as u64 + self.epochs as u64 * EPOCH_BYTES as u64
    }

    /// The length of the `.ridx` file.
    fn file_bytes(&self) -> u64 {
        let blocks = self.entries.div_ceil(BLOCK_ENTRIES) as u64;
        self.places_position()
            + blocks * CRC_BYTES as u64
            + self.entries as u64 * ENTRY_BYTES as u64
    }
}

fn decode_header(header: &[u8]) -> Option<(SegmentSummary, IndexFiles)> {
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
    let files = IndexFiles {
        offset_index_crc: u32::from_be_bytes(fields.take()?),
        time_index_crc: u32::from_be_bytes(fields.take()?),
        epochs: u32::from_be_bytes(fields.take()?) as usize,
        entries: u32::from_be_bytes(fields.take()?) as usize,
    };
    Some((summary, files))
}

fn decode_head(bytes: &[u8]) -> Option<Head> {
    let (header, epochs) = bytes.split_at_checked(HEADER_BYTES)?;
    let (summary, files) = decode_header(header)?;
    let crc = header.last_chunk::<CRC_BYTES>()?;
    if u32::from_be_bytes(*crc) != head_checksum(bytes) {
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
    Some(Head {
        summary,
        files,
        epochs: epochs.chunks_exact(EPOCH_BYTES).map_while(epoch).collect(),
    })
}

fn decode_block(bytes: &[u8]) -> Option<Vec<EntryPlace>> {
    let (crc, places) = bytes.split_first_chunk::<CRC_BYTES>()?;
    if u32::from_be_bytes(*crc) != crc32fast::hash(places) {
        return None;
    }
    let place = |bytes| {
        let mut fields = Fields(bytes);
        Some(EntryPlace {
            position: u32::from_be_bytes(fields.take()?),
            relative_next_offset: u32::from_be_bytes(fields.take()?),
            prefix_crc: u32::from_be_bytes(fields.take()?),
        })
    };
    places.chunks_exact(ENTRY_BYTES).map(place).collect()
}

/// Of the header without its checksum, and the epochs.
fn head_checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..HEADER_BYTES - CRC_BYTES]);
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
    use std::io::IoSlice;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;

    fn file(bytes: &[u8]) -> Arc<dyn DiskFile> {
        let file = SimDisk::new().create(Path::new("/ridx")).unwrap();
        file.write_at(0, &[IoSlice::new(bytes)]).unwrap();
        file
    }

    /// Everything a file tells, or `None` if any part of it is refused.
    fn read(bytes: &[u8]) -> Option<(Head, Vec<EntryPlace>)> {
        let file = file(bytes);
        let head = read_head(&*file).unwrap()?;
        let mut places = Vec::new();
        while places.len() < head.files.entries {
            places.extend(read_block(&*file, &head.files, places.len()).unwrap()?);
        }
        Some((head, places))
    }

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
        let places: Vec<_> = (0..BLOCK_ENTRIES as u32 + 3)
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
        let (bytes, files) = encode(&summary, &epochs, &places, b"offsets", b"times");
        let head = Head {
            summary,
            files,
            epochs,
        };
        assert_eq!(read(&bytes), Some((head, places)));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), None, "cut to {len}");
        }
    }
}
