//! Finding where entries lie: in memory for the active segment, a block at a time for sealed ones,
//! so that memory does not grow with the log.

use std::sync::Arc;

use streamgauge_protocol::batch::BATCH_PREFIX_BYTES;

use super::Log;
use super::append::{frame_of, place_of};
use crate::error::{Corruption, StorageError};
use crate::frames::Frames;
use crate::ids::RaftIndex;
use crate::raft_index::EntryPlace;
use crate::segment::Segment;

/// Looks places up and keeps the last block, for lookups that follow each other.
pub(super) struct Places<'a> {
    log: &'a Log,
    block: Option<Block>,
}

struct Block {
    segment: Arc<Segment>,
    /// The ordinal of the first place.
    first: usize,
    places: Vec<EntryPlace>,
}

impl<'a> Places<'a> {
    pub fn new(log: &'a Log) -> Self {
        Self { log, block: None }
    }

    /// The place of the entry with this ordinal in its segment, if it is there.
    pub fn get(
        &mut self,
        segment: &Arc<Segment>,
        ordinal: usize,
    ) -> Result<Option<EntryPlace>, StorageError> {
        if Arc::ptr_eq(segment, &self.log.active) {
            return Ok(self.log.places.get(ordinal).copied());
        }
        if ordinal >= segment.entry_count() {
            return Ok(None);
        }
        if let Some(block) = &self.block
            && Arc::ptr_eq(segment, &block.segment)
            && let Some(place) = ordinal
                .checked_sub(block.first)
                .and_then(|at| block.places.get(at))
        {
            return Ok(Some(*place));
        }
        let (first, places) = self.log.places_around(segment, ordinal)?;
        let place = ordinal.checked_sub(first).and_then(|at| places.get(at));
        let place = place.copied();
        self.block = Some(Block {
            segment: Arc::clone(segment),
            first,
            places,
        });
        Ok(place)
    }
}

impl Log {
    /// All places of a sealed segment.
    pub(super) fn all_places(
        &self,
        segment: &Arc<Segment>,
    ) -> Result<Vec<EntryPlace>, StorageError> {
        let count = segment.entry_count();
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let (first, places) = self.places_around(segment, all.len())?;
            if first != all.len() || places.is_empty() {
                let reason = "its entry index ends early".to_owned();
                return Err(corrupt(segment, 0, reason));
            }
            all.extend(places);
        }
        Ok(all)
    }

    fn places_around(
        &self,
        segment: &Arc<Segment>,
        ordinal: usize,
    ) -> Result<(usize, Vec<EntryPlace>), StorageError> {
        let found = segment
            .places_around(ordinal)
            .map_err(|error| StorageError::io("read", &segment.path("ridx"), error))?;
        match found {
            Some(found) => Ok(found),
            None => Ok((0, self.rebuild_places(segment)?)),
        }
    }

    /// Makes the places of a sealed segment again. The term table, the offsets' order and the
    /// batches' own checksums together cover every byte that a place's checksum does.
    fn rebuild_places(&self, segment: &Arc<Segment>) -> Result<Vec<EntryPlace>, StorageError> {
        let path = segment.path("log");
        tracing::warn!(log = %path.display(), "making a lost or damaged entry index again");
        let mut places = Vec::new();
        let mut next_offset = segment.base_offset();
        let mut frames = Frames::new(segment, 0, usize::MAX);
        let failed = |error| StorageError::io("read", &path, error);
        while let Some(frame) = frames.next().map_err(failed)? {
            let bytes = frame.bytes();
            let (prefix, body) = bytes.split_at(BATCH_PREFIX_BYTES.min(bytes.len()));
            let index = RaftIndex(segment.first_index().0 + places.len() as u64);
            let term = self.term(index).map(|term| term.leader_epoch());
            let is_right = frame.header.base_offset == next_offset
                && Ok(frame.header.partition_leader_epoch) == term
                && frame.header.verify_crc(body).is_ok();
            if !is_right {
                let reason = "a batch in a sealed segment is damaged".to_owned();
                return Err(corrupt(segment, frame.position, reason));
            }
            let appended = frame_of(frame.position, &frame.header);
            let prefix_crc = crc32fast::hash(prefix);
            places.push(place_of(&appended, segment.base_offset(), prefix_crc));
            next_offset = frame.header.next_offset();
        }
        if next_offset != segment.next_offset() || places.len() != segment.entry_count() {
            let reason = "a sealed segment does not hold what it did".to_owned();
            return Err(corrupt(segment, segment.end(), reason));
        }
        let epochs = self.epochs.since(segment.first_index());
        // Loads the sparse index while its files are known by their checksums.
        segment.with_index(|_| ());
        if segment.write_index_files(epochs, &places).is_err() {
            segment.set_resident_places(places.clone());
        }
        Ok(places)
    }
}

fn corrupt(segment: &Segment, position: u64, reason: String) -> StorageError {
    StorageError::Corrupt(Corruption {
        file: segment.path("log"),
        position,
        reason,
    })
}
