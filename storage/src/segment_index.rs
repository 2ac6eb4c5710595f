//! The sparse indexes of a segment, in memory and in Kafka's files.
//!
//! ```text
//! NNN.index       offset index: one entry of 8 bytes for about every index.interval.bytes
//!   relative offset u32 | position u32      the last offset of a batch, where the batch begins
//! NNN.timeindex   time index: one entry of 12 bytes
//!   timestamp i64 | relative offset u32     the largest timestamp so far, the batch that has it
//! ```
//!
//! All numbers are big-endian and relative to the segment's base offset. A lookup gives the last
//! entry at or before what is sought; from there the log is scanned. An index promises nothing
//! about what lies behind its last entry. It can always be made again from the log, so it is
//! neither synced nor trusted: whoever loads one checks it against the log.

/// Bytes of one entry of the offset index.
pub const OFFSET_ENTRY_BYTES: usize = 8;
/// Bytes of one entry of the time index.
pub const TIME_ENTRY_BYTES: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetEntry {
    pub relative_offset: u32,
    pub position: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeEntry {
    pub timestamp: i64,
    pub relative_offset: u32,
}

/// Both indexes of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseIndex {
    offsets: Vec<OffsetEntry>,
    times: Vec<TimeEntry>,
}

impl SparseIndex {
    /// Adds an entry for a batch. Entries come in the order of the log.
    pub fn push_offset(&mut self, entry: OffsetEntry) {
        let in_order = self
            .offsets
            .last()
            .is_none_or(|last| last.relative_offset < entry.relative_offset);
        if in_order {
            self.offsets.push(entry);
        }
    }

    /// Adds the largest timestamp so far, unless it has not grown.
    pub fn push_time(&mut self, entry: TimeEntry) {
        let grown = self.times.last().is_none_or(|last| {
            last.timestamp < entry.timestamp && last.relative_offset < entry.relative_offset
        });
        if grown {
            self.times.push(entry);
        }
    }

    /// Where to begin a scan for an offset.
    pub fn position_before(&self, relative_offset: u32) -> u32 {
        let after = self
            .offsets
            .partition_point(|entry| entry.relative_offset <= relative_offset);
        match after.checked_sub(1) {
            Some(at) => self.offsets[at].position,
            None => 0,
        }
    }

    /// The last entry with a timestamp below `timestamp`: batches up to it have nothing as late.
    pub fn time_before(&self, timestamp: i64) -> Option<TimeEntry> {
        let after = self
            .times
            .partition_point(|entry| entry.timestamp < timestamp);
        after.checked_sub(1).map(|at| self.times[at])
    }

    pub fn offset_entries(&self) -> usize {
        self.offsets.len()
    }

    pub fn time_entries(&self) -> usize {
        self.times.len()
    }

    /// Drops entries of batches at or after a position and offset.
    pub fn truncate(&mut self, relative_offset: u32, position: u32) {
        self.offsets.retain(|entry| entry.position < position);
        self.times
            .retain(|entry| entry.relative_offset < relative_offset);
    }

    /// The bytes of the `.index` file.
    pub fn encode_offsets(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.offsets.len() * OFFSET_ENTRY_BYTES);
        for entry in &self.offsets {
            bytes.extend_from_slice(&entry.relative_offset.to_be_bytes());
            bytes.extend_from_slice(&entry.position.to_be_bytes());
        }
        bytes
    }

    /// The bytes of the `.timeindex` file.
    pub fn encode_times(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.times.len() * TIME_ENTRY_BYTES);
        for entry in &self.times {
            bytes.extend_from_slice(&entry.timestamp.to_be_bytes());
            bytes.extend_from_slice(&entry.relative_offset.to_be_bytes());
        }
        bytes
    }

    /// Reads both files' bytes; `None` if their entries are not in order or lie outside a log of
    /// `log_bytes` bytes, so that they must be made anew.
    pub fn decode(offsets: &[u8], times: &[u8], log_bytes: u64) -> Option<Self> {
        let mut index = Self::default();
        let offset_entries = offsets.chunks_exact(OFFSET_ENTRY_BYTES);
        let time_entries = times.chunks_exact(TIME_ENTRY_BYTES);
        if !offset_entries.remainder().is_empty() || !time_entries.remainder().is_empty() {
            return None;
        }
        for entry in offset_entries {
            let (relative_offset, position) = entry.split_at(4);
            let entry = OffsetEntry {
                relative_offset: u32::from_be_bytes(relative_offset.try_into().ok()?),
                position: u32::from_be_bytes(position.try_into().ok()?),
            };
            let follows = index.offsets.last().is_none_or(|last| {
                last.relative_offset < entry.relative_offset && last.position < entry.position
            });
            if !follows || u64::from(entry.position) >= log_bytes {
                return None;
            }
            index.offsets.push(entry);
        }
        for entry in time_entries {
            let (timestamp, relative_offset) = entry.split_at(8);
            let entry = TimeEntry {
                timestamp: i64::from_be_bytes(timestamp.try_into().ok()?),
                relative_offset: u32::from_be_bytes(relative_offset.try_into().ok()?),
            };
            let follows = index.times.last().is_none_or(|last| {
                last.timestamp < entry.timestamp && last.relative_offset < entry.relative_offset
            });
            if !follows {
                return None;
            }
            index.times.push(entry);
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> SparseIndex {
        let mut index = SparseIndex::default();
        for step in 1..=5u32 {
            index.push_offset(OffsetEntry {
                relative_offset: step * 10,
                position: step * 100,
            });
            index.push_time(TimeEntry {
                timestamp: i64::from(step) * 1000,
                relative_offset: step * 10,
            });
        }
        index
    }

    #[test]
    fn a_lookup_gives_the_last_entry_at_or_before() {
        assert_eq!(index().position_before(9), 0);
        assert_eq!(index().position_before(10), 100);
        assert_eq!(index().position_before(29), 200);
        assert_eq!(index().position_before(1000), 500);
    }

    #[test]
    fn a_time_lookup_stays_strictly_before() {
        assert_eq!(index().time_before(1000), None);
        assert_eq!(index().time_before(1001).unwrap().timestamp, 1000);
        assert_eq!(index().time_before(i64::MAX).unwrap().timestamp, 5000);
    }

    #[test]
    fn files_read_back_and_bad_ones_are_refused() {
        let index = index();
        let (offsets, times) = (index.encode_offsets(), index.encode_times());
        assert_eq!(SparseIndex::decode(&offsets, &times, 501), Some(index));
        assert_eq!(SparseIndex::decode(&offsets, &times, 500), None);
        assert_eq!(SparseIndex::decode(&offsets[1..], &times, 501), None);
        let mut swapped = times.clone();
        swapped.rotate_left(TIME_ENTRY_BYTES);
        assert_eq!(SparseIndex::decode(&offsets, &swapped, 501), None);
    }

    #[test]
    fn the_time_index_holds_only_growth() {
        let mut index = SparseIndex::default();
        for (timestamp, relative_offset) in [(5, 1), (3, 2), (5, 3), (6, 4)] {
            index.push_time(TimeEntry {
                timestamp,
                relative_offset,
            });
        }
        assert_eq!(index.time_entries(), 2);
    }
}
