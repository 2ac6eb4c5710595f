//! Which transactions of a log were aborted: kept by segment, in [`AbortedIndex`].

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Log, LogReader, ReadError};
use crate::aborted::{self, AbortedIndex, AbortedTransaction};
use crate::error::StorageError;
use crate::producer_state::{CompletedTransaction, TransactionResult};
use crate::segment::{Segment, base_offset_of};

pub(super) const SUFFIX: &str = "txnindex";

impl Log {
    /// A transaction has ended with a marker that is committed: readers are told if it was aborted.
    /// One that is known already is passed over, so that a replay may tell of more than is missing.
    pub fn note_completed(&self, completed: &CompletedTransaction) -> Result<(), StorageError> {
        if completed.result != TransactionResult::Abort {
            return Ok(());
        }
        let segments = self.shared.segments.load();
        let after =
            segments.partition_point(|segment| segment.base_offset() <= completed.last_offset);
        let Some(segment) = after.checked_sub(1).and_then(|at| segments.get(at)) else {
            // Retention has removed it.
            return Ok(());
        };
        let aborted = AbortedTransaction {
            producer_id: completed.producer_id,
            first_offset: completed.first_offset,
            last_offset: completed.last_offset,
            last_stable_offset: completed.last_stable_offset,
        };
        let path = segment.path(SUFFIX);
        segment
            .aborted()
            .push(aborted, &*self.disk, &path)
            .map_err(|error| StorageError::io("read", &path, error))
    }

    /// Writes what is in memory alone; durable when this returns.
    pub(super) fn save_aborted(&self) -> Result<(), StorageError> {
        let mut is_any = false;
        for segment in self.shared.segments.load().iter() {
            let path = segment.path(SUFFIX);
            let aborted = segment.aborted();
            is_any |= aborted
                .save(&*self.disk, &path)
                .map_err(|error| StorageError::io("write", &path, error))?;
            if segment.is_sealed() {
                // Few read that far back, and memory is not to grow with the log.
                aborted.unload();
            }
        }
        match is_any {
            true => self
                .disk
                .sync_dir(&self.directory)
                .map_err(|error| self.io_error("sync", error)),
            false => Ok(()),
        }
    }

    /// A topic with a looser flush policy may lose its tail with the power: what ended there must be gone for
    /// good before the log grows past it with other records.
    pub(super) fn forget_lost_aborted(&self) -> Result<(), StorageError> {
        let path = self.active.path(SUFFIX);
        let truncated = self
            .active
            .aborted()
            .truncate(self.next_offset(), &*self.disk, &path);
        if truncated.map_err(|error| StorageError::io("read", &path, error))? {
            self.save_aborted()?;
        }
        Ok(())
    }
}

impl LogReader {
    /// The aborted transactions that a reader of `from..to` has to know of, all below the last stable
    /// offset when this is called. May read files.
    pub fn aborted_transactions(
        &self,
        from: i64,
        to: i64,
    ) -> Result<Vec<AbortedTransaction>, ReadError> {
        let segments = self.shared.segments.load();
        let mut found = Vec::new();
        let first = segments.partition_point(|segment| segment.base_offset() <= from);
        for segment in segments.iter().skip(first.saturating_sub(1)) {
            if segment.aborted().is_known_empty() {
                continue;
            }
            self.shared.touch(segment);
            let entries = segment.aborted_entries()?;
            if aborted::collect(&entries, from, to, &mut found) {
                break;
            }
        }
        Ok(found)
    }
}

/// Which segments have a file, by their base offsets; removes those of segments that are not there.
pub(super) fn index_files(names: &[String], bases: &[i64]) -> (BTreeSet<i64>, Vec<String>) {
    let mut found = BTreeSet::new();
    let mut orphans = Vec::new();
    for name in names {
        match base_offset_of(name, SUFFIX) {
            Some(base) if bases.contains(&base) => drop(found.insert(base)),
            Some(_) => orphans.push(name.clone()),
            None => {}
        }
    }
    (found, orphans)
}

impl Segment {
    pub(super) fn aborted_entries(&self) -> std::io::Result<Arc<Vec<AbortedTransaction>>> {
        self.aborted().entries(self.disk(), &self.path(SUFFIX))
    }

    pub(super) fn has_aborted_file(self, has: bool) -> Self {
        if has {
            self.share_aborted(Arc::new(AbortedIndex::saved()));
        }
        self
    }
}
