//! Moving the log's start: retention by size and time, and DeleteRecords.
//!
//! Only whole sealed segments are removed; records before the log start offset in the segment that
//! remains are there but are not served. The new start is durable before a file goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::places::Places;
use super::{Log, LogStart};
use crate::error::StorageError;
use crate::ids::RaftIndex;
use crate::segment::{NO_TIMESTAMP, Segment};

impl Log {
    /// Moves the log start offset up to `offset`, which must be committed. Moving it back is not
    /// possible and does nothing.
    pub fn set_log_start_offset(&mut self, offset: i64) -> Result<(), StorageError> {
        if offset <= self.log_start_offset() {
            return Ok(());
        }
        self.write_start(self.start, offset)?;
        self.shared
            .log_start_offset
            .store(offset, Ordering::Release);
        Ok(())
    }

    /// Removes the segments that retention lets go (`UnifiedLog.deleteOldSegments`) and answers
    /// with their base offsets. Nothing at or above `offset_limit` goes, and no segment that ends
    /// in entries without records which that offset does not show to be committed: see
    /// [`Self::expire_committed`].
    pub fn expire(&mut self, now_ms: i64, offset_limit: i64) -> Result<Vec<i64>, StorageError> {
        let committed = self.committed_by_offset(offset_limit)?;
        self.expire_committed(now_ms, offset_limit, committed)
    }

    /// The last entry that is committed for certain if all offsets below `offset_limit` are.
    fn committed_by_offset(&self, offset_limit: i64) -> Result<RaftIndex, StorageError> {
        let mut committed = self.start.index;
        for segment in self.shared.segments.load().iter() {
            if segment.next_offset() > offset_limit {
                break;
            }
            let count = self.entry_count_of(segment) as u64;
            let mut last = RaftIndex((segment.first_index().0 + count).saturating_sub(1));
            if segment.next_offset() == offset_limit {
                let mut places = Places::new(self);
                while last > committed && self.is_internal(last, &mut places)? {
                    last.0 -= 1;
                }
            }
            committed = committed.max(last);
        }
        Ok(committed)
    }

    fn entry_count_of(&self, segment: &Arc<Segment>) -> usize {
        match Arc::ptr_eq(segment, &self.active) {
            true => self.places.len(),
            false => segment.entry_count(),
        }
    }

    /// As [`Self::expire`] for an owner that knows the last committed entry: segments that end in
    /// committed entries without records go, too.
    pub fn expire_committed(
        &mut self,
        now_ms: i64,
        offset_limit: i64,
        committed: RaftIndex,
    ) -> Result<Vec<i64>, StorageError> {
        let mut count = self.expired_count(now_ms, offset_limit, committed);
        if count == self.shared.segments.load().len() {
            if self.next_offset() == self.active.base_offset() {
                // Only internal frames: nothing is won by rolling.
                count -= 1;
            } else {
                self.roll(now_ms)?;
            }
        }
        self.remove_first(count)
    }

    /// How many of the first segments [`Self::expire_committed`] would remove.
    pub fn expired_count(&self, now_ms: i64, offset_limit: i64, committed: RaftIndex) -> usize {
        let segments = self.shared.segments.load();
        let mut count = 0;
        let mut excess = self.excess_bytes(&segments);
        for segment in segments.iter() {
            let bytes = i64::try_from(segment.end()).unwrap_or(i64::MAX);
            let expired = segment.next_offset() <= self.log_start_offset()
                || self.is_too_old(segment, now_ms)
                || (excess >= bytes && bytes > 0);
            let count_in_it = self.entry_count_of(segment) as u64;
            let is_committed = segment.next_offset() <= offset_limit
                && segment.first_index().0 + count_in_it <= committed.0 + 1;
            if !expired || !is_committed || segment.end() == 0 {
                break;
            }
            excess -= bytes;
            count += 1;
        }
        count
    }

    fn is_too_old(&self, segment: &Segment, now_ms: i64) -> bool {
        let (max_timestamp, _) = segment.max_timestamp();
        self.config.delete
            && self.config.retention_ms >= 0
            && max_timestamp != NO_TIMESTAMP
            && now_ms.saturating_sub(max_timestamp) > self.config.retention_ms
    }

    fn excess_bytes(&self, segments: &[Arc<Segment>]) -> i64 {
        if !self.config.delete || self.config.retention_bytes < 0 {
            return 0;
        }
        let total: u64 = segments.iter().map(|segment| segment.end()).sum();
        i64::try_from(total).unwrap_or(i64::MAX) - self.config.retention_bytes
    }

    fn remove_first(&mut self, count: usize) -> Result<Vec<i64>, StorageError> {
        let segments = self.shared.segments.load_full();
        let (removed, kept) = segments.split_at_checked(count).unwrap_or((&[], &segments));
        let (Some(_), Some(first)) = (removed.first(), kept.first()) else {
            return Ok(Vec::new());
        };
        let index = RaftIndex(first.first_index().0 - 1);
        let start = LogStart {
            index,
            term: self.term(index).unwrap_or(self.start.term),
            offset: first.base_offset(),
        };
        let log_start_offset = self.log_start_offset().max(start.offset);
        self.write_start(start, log_start_offset)?;
        self.start = start;
        self.shared
            .log_start_offset
            .store(log_start_offset, Ordering::Release);
        self.publish_segments(kept.to_vec());
        self.dirty_directories.push(self.directory.clone());
        for segment in removed {
            segment
                .remove_files()
                .map_err(|error| self.io_error("remove a segment of", error))?;
        }
        Ok(removed
            .iter()
            .map(|segment| segment.base_offset())
            .collect())
    }
}
