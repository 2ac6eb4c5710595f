//! Which term wrote what: the leader epochs of a log.
//!
//! Kept in memory (it has one entry a term). A sealed segment's `.ridx` holds the terms that wrote
//! to it, and those of the active segment are found again by scanning it. For Kafka's tools there
//! is also `leader-epoch-checkpoint` in Kafka's format; nothing is read back from it.

use crate::ids::{RaftIndex, Term};

/// One term that has written to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEntry {
    pub term: Term,
    pub first_index: RaftIndex,
    /// The first Kafka offset that the term could write.
    pub start_offset: i64,
}

/// The terms of a log, rising.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochTable {
    entries: Vec<EpochEntry>,
}

impl EpochTable {
    /// Notes an entry of the log; only the first of a term changes anything.
    pub fn observe(&mut self, term: Term, index: RaftIndex, offset: i64) {
        let newer = self.entries.last().is_none_or(|last| {
            assert!(
                last.term <= term,
                "term went back from {:?} to {term:?}",
                last.term
            );
            last.term < term
        });
        if newer {
            self.entries.push(EpochEntry {
                term,
                first_index: index,
                start_offset: offset,
            });
        }
    }

    /// The term of an entry, if it is not before the first that the table knows.
    pub fn term_of(&self, index: RaftIndex) -> Option<Term> {
        let after = self
            .entries
            .partition_point(|entry| entry.first_index <= index);
        after.checked_sub(1).map(|at| self.entries[at].term)
    }

    pub fn latest(&self) -> Option<EpochEntry> {
        self.entries.last().copied()
    }

    pub fn entries(&self) -> &[EpochEntry] {
        &self.entries
    }

    /// Drops the terms whose entries all lie at or after `index`.
    pub fn truncate_from(&mut self, index: RaftIndex) {
        self.entries.retain(|entry| entry.first_index < index);
    }

    /// Where an epoch ends, as Kafka's `LeaderEpochFileCache.endOffsetFor`: the largest known epoch
    /// at or below the one asked for, and the start offset of the next, or the log's end for the
    /// latest. `None` if the epoch is newer than all known (or there is none).
    pub fn end_offset_for(&self, epoch: i32, log_end_offset: i64) -> Option<(i32, i64)> {
        if epoch < 0 {
            return None;
        }
        let asked = Term::from_leader_epoch(epoch);
        let latest = self.latest()?;
        if asked == latest.term {
            return Some((epoch, log_end_offset));
        }
        if asked > latest.term {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.term <= asked);
        let next = self.entries.get(after)?;
        match after.checked_sub(1).and_then(|at| self.entries.get(at)) {
            Some(floor) => Some((floor.term.leader_epoch(), next.start_offset)),
            // Older than all that is kept: nothing of it is left.
            None => Some((epoch, next.start_offset)),
        }
    }

    /// Kafka's `leader-epoch-checkpoint`. An epoch that wrote no record before the next began is
    /// left out, as Kafka does.
    pub fn encode_offsets(&self) -> String {
        let mut kept: Vec<EpochEntry> = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            kept.retain(|other| other.start_offset < entry.start_offset);
            kept.push(*entry);
        }
        let lines: String = kept
            .iter()
            .map(|entry| format!("{} {}\n", entry.term.leader_epoch(), entry.start_offset))
            .collect();
        format!("0\n{}\n{lines}", kept.len())
    }

    /// The terms that wrote entries from `first` on; the first of them may have begun before it.
    pub fn since(&self, first: RaftIndex) -> &[EpochEntry] {
        let after = self
            .entries
            .partition_point(|entry| entry.first_index <= first);
        &self.entries[after.saturating_sub(1)..]
    }

    /// Adds terms that were saved with a segment; those that are known already change nothing.
    /// `None` if they do not follow.
    pub fn extend(&mut self, saved: &[EpochEntry]) -> Option<()> {
        for entry in saved {
            match self.entries.last() {
                Some(last) if last.term > entry.term => {
                    self.entries.contains(entry).then_some(())?;
                }
                Some(last) if last.term == entry.term => (last == entry).then_some(())?,
                _ => self.entries.push(*entry),
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> EpochTable {
        let mut table = EpochTable::default();
        table.observe(Term(1), RaftIndex(6), 0);
        table.observe(Term(1), RaftIndex(7), 0);
        table.observe(Term(3), RaftIndex(20), 10);
        table.observe(Term(5), RaftIndex(30), 25);
        table
    }

    #[test]
    fn an_epoch_ends_where_the_next_begins() {
        let table = table();
        assert_eq!(table.end_offset_for(0, 40), Some((0, 10)));
        assert_eq!(table.end_offset_for(1, 40), Some((0, 10)));
        assert_eq!(table.end_offset_for(3, 40), Some((2, 25)));
        assert_eq!(table.end_offset_for(4, 40), Some((4, 40)));
        assert_eq!(table.end_offset_for(5, 40), None);
        assert_eq!(table.end_offset_for(-1, 40), None);
        let mut later = EpochTable::default();
        later.observe(Term(3), RaftIndex(20), 10);
        later.observe(Term(5), RaftIndex(30), 25);
        assert_eq!(later.end_offset_for(0, 40), Some((0, 10)));
    }

    #[test]
    fn terms_are_found_by_index() {
        let table = table();
        assert_eq!(table.term_of(RaftIndex(5)), None);
        assert_eq!(table.term_of(RaftIndex(19)), Some(Term(1)));
        assert_eq!(table.term_of(RaftIndex(20)), Some(Term(3)));
        assert_eq!(table.term_of(RaftIndex(99)), Some(Term(5)));
    }

    #[test]
    fn the_files_hold_the_table() {
        let table = table();
        assert_eq!(table.encode_offsets(), "0\n3\n0 0\n2 10\n4 25\n");
    }

    #[test]
    fn a_table_is_put_together_from_its_segments() {
        let table = table();
        let mut again = EpochTable::default();
        for first in [6, 10, 20, 25, 30] {
            assert_eq!(again.extend(table.since(RaftIndex(first))), Some(()));
        }
        assert_eq!(again, table);
        let other = EpochEntry {
            term: Term(5),
            first_index: RaftIndex(31),
            start_offset: 25,
        };
        assert_eq!(again.extend(&[other]), None);
    }

    #[test]
    fn an_epoch_without_records_is_not_in_kafkas_file() {
        let mut table = table();
        table.observe(Term(6), RaftIndex(31), 25);
        assert_eq!(table.encode_offsets(), "0\n3\n0 0\n2 10\n5 25\n");
    }
}
