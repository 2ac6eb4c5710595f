//! The producer snapshot file, `<committed end offset, 20 digits>.snapshot`, in Kafka's format
//! version 1 (`ProducerSnapshot.json`, read by `kafka-dump-log`), big-endian:
//!
//! ```text
//! version i16 = 1
//! crc     u32   CRC-32C of everything after this field
//! count   i32
//!   producer id i64 | epoch i16 | last sequence i32 | last offset i64 | offset delta i32
//!   | timestamp i64 | coordinator epoch i32 | current transaction first offset i64     (46 bytes each)
//! --- ours, ignored by Kafka's reader, covered by the CRC; absent in a file that Kafka wrote ---
//! magic   u32 = "SGP1"
//!   for each producer, in the same order:
//!   last seen ms i64 | count of batches u8 (0..=5), oldest first:
//!     last sequence i32 | last offset i64 | offset delta i32 | timestamp i64            (24 bytes each)
//! ```
//!
//! Kafka keeps one batch a producer in the file, so that after a restart a retry of an older one
//! is an error to the client. The added part keeps the whole window.

use thiserror::Error;

use super::ProducerState;
use super::entry::{BATCHES_RETAINED, BatchMetadata, ProducerEntry};

const VERSION: i16 = 1;
const HEADER_BYTES: usize = 2 + 4;
const ENTRY_BYTES: usize = 46;
const EXTENSION_MAGIC: u32 = u32::from_be_bytes(*b"SGP1");

/// Why a snapshot's bytes are not usable. The caller falls back to an older one, or to a replay.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    #[error("producer snapshot has version {0}, expected {VERSION}")]
    UnknownVersion(i16),
    #[error("producer snapshot has checksum {computed:#010x}, its header says {stored:#010x}")]
    ChecksumMismatch { stored: u32, computed: u32 },
    #[error("producer snapshot ends before its {0}")]
    Truncated(&'static str),
    #[error("producer snapshot holds {value} for {field} of producer {producer_id}")]
    InvalidField {
        producer_id: i64,
        field: &'static str,
        value: i64,
    },
}

impl ProducerState {
    /// The committed layer as snapshot file bytes. Entries are sorted, so that equal states give
    /// equal files.
    pub fn to_snapshot(&self) -> Vec<u8> {
        let mut entries: Vec<&ProducerEntry> = self.committed.values().collect();
        entries.sort_unstable_by_key(|entry| entry.producer_id);

        let mut bytes =
            Vec::with_capacity(HEADER_BYTES + 4 + entries.len() * (ENTRY_BYTES + 9 + 24));
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend((entries.len() as i32).to_be_bytes());
        for entry in &entries {
            let last = entry.batches.back();
            bytes.extend(entry.producer_id.to_be_bytes());
            bytes.extend(entry.producer_epoch.to_be_bytes());
            bytes.extend(entry.last_sequence().to_be_bytes());
            bytes.extend(entry.last_data_offset().to_be_bytes());
            bytes.extend(last.map_or(0, |batch| batch.offset_delta).to_be_bytes());
            bytes.extend(entry.last_timestamp.to_be_bytes());
            bytes.extend(entry.coordinator_epoch.to_be_bytes());
            bytes.extend(
                entry
                    .current_transaction_first_offset
                    .unwrap_or(-1)
                    .to_be_bytes(),
            );
        }
        bytes.extend(EXTENSION_MAGIC.to_be_bytes());
        for entry in &entries {
            bytes.extend(entry.last_seen_ms.to_be_bytes());
            bytes.push(entry.batches.len() as u8);
            for batch in &entry.batches {
                bytes.extend(batch.last_sequence.to_be_bytes());
                bytes.extend(batch.last_offset.to_be_bytes());
                bytes.extend(batch.offset_delta.to_be_bytes());
                bytes.extend(batch.timestamp.to_be_bytes());
            }
        }
        let crc = crc32c(&bytes[HEADER_BYTES..]);
        bytes[2..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// The state saved in a snapshot file whose name says `committed_end_offset`. `now_ms` stands
    /// for when producers were last seen if the file (written by Kafka) does not say.
    pub fn from_snapshot(
        bytes: &[u8],
        committed_end_offset: i64,
        now_ms: i64,
    ) -> Result<Self, SnapshotError> {
        let mut reader = Reader { bytes };
        let version = reader.i16("version")?;
        if version != VERSION {
            return Err(SnapshotError::UnknownVersion(version));
        }
        let stored = u32::from_be_bytes(reader.take("checksum")?);
        let computed = crc32c(reader.bytes);
        if stored != computed {
            return Err(SnapshotError::ChecksumMismatch { stored, computed });
        }

        let count = reader.i32("producer count")?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| count.saturating_mul(ENTRY_BYTES) <= reader.bytes.len())
            .ok_or(SnapshotError::Truncated("producers"))?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(read_entry(&mut reader, now_ms)?);
        }
        if reader.bytes.starts_with(&EXTENSION_MAGIC.to_be_bytes()) {
            reader.u32("extension")?;
            for entry in &mut entries {
                read_extension(&mut reader, entry)?;
            }
        }

        let mut state = ProducerState {
            committed_end_offset,
            ..ProducerState::default()
        };
        for entry in entries {
            if let Some(first_offset) = entry.current_transaction_first_offset {
                state
                    .open_transactions
                    .insert(first_offset, entry.producer_id);
            }
            state.committed.insert(entry.producer_id, entry);
        }
        Ok(state)
    }
}

fn read_entry(reader: &mut Reader<'_>, now_ms: i64) -> Result<ProducerEntry, SnapshotError> {
    let mut entry = ProducerEntry::new(reader.i64("producer id")?);
    entry.producer_epoch = reader.i16("producer epoch")?;
    let last_sequence = reader.i32("last sequence")?;
    let last_offset = reader.i64("last offset")?;
    let offset_delta = reader.i32("offset delta")?;
    entry.last_timestamp = reader.i64("timestamp")?;
    entry.coordinator_epoch = reader.i32("coordinator epoch")?;
    let first_offset = reader.i64("current transaction first offset")?;
    entry.current_transaction_first_offset = (first_offset >= 0).then_some(first_offset);
    entry.last_seen_ms = now_ms;
    if last_offset >= 0 {
        let batch = BatchMetadata {
            last_sequence,
            last_offset,
            offset_delta,
            timestamp: entry.last_timestamp,
        };
        entry
            .batches
            .push_back(validated(batch, entry.producer_id)?);
    }
    Ok(entry)
}

fn read_extension(reader: &mut Reader<'_>, entry: &mut ProducerEntry) -> Result<(), SnapshotError> {
    entry.last_seen_ms = reader.i64("last seen time")?;
    let [count] = reader.take("count of batches")?;
    if usize::from(count) > BATCHES_RETAINED {
        return Err(SnapshotError::InvalidField {
            producer_id: entry.producer_id,
            field: "count of batches",
            value: i64::from(count),
        });
    }
    entry.batches.clear();
    for _ in 0..count {
        let batch = BatchMetadata {
            last_sequence: reader.i32("batch")?,
            last_offset: reader.i64("batch")?,
            offset_delta: reader.i32("batch")?,
            timestamp: reader.i64("batch")?,
        };
        entry
            .batches
            .push_back(validated(batch, entry.producer_id)?);
    }
    Ok(())
}

/// A batch whose numbers cannot overflow what is computed from them.
fn validated(batch: BatchMetadata, producer_id: i64) -> Result<BatchMetadata, SnapshotError> {
    let invalid = |field, value| SnapshotError::InvalidField {
        producer_id,
        field,
        value,
    };
    if batch.offset_delta < 0 {
        return Err(invalid("offset delta", i64::from(batch.offset_delta)));
    }
    if batch.last_offset < i64::from(batch.offset_delta) {
        return Err(invalid("last offset", batch.last_offset));
    }
    Ok(batch)
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Big-endian numbers off the front of a slice.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], SnapshotError> {
        let (head, tail) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(SnapshotError::Truncated(what))?;
        self.bytes = tail;
        Ok(*head)
    }

    fn i16(&mut self, what: &'static str) -> Result<i16, SnapshotError> {
        self.take(what).map(i16::from_be_bytes)
    }

    fn i32(&mut self, what: &'static str) -> Result<i32, SnapshotError> {
        self.take(what).map(i32::from_be_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, SnapshotError> {
        self.take(what).map(u32::from_be_bytes)
    }

    fn i64(&mut self, what: &'static str) -> Result<i64, SnapshotError> {
        self.take(what).map(i64::from_be_bytes)
    }
}
