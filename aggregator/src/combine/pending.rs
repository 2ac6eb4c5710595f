//! The rows since the last flush: a hash table over (window, group) whose keys and accumulators lie in flat vectors.
//!
//! A record of a group that is there already costs one hash and one comparison, and allocates nothing.

use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::accumulator::{Accumulator, AggregateFunction};
use crate::window::Window;

/// Partial rows in the order in which their groups first came.
#[derive(Debug)]
pub struct PendingRows {
    functions: Vec<AggregateFunction>,
    // Its seed decides only where a row lies in memory; nothing that leaves this file depends on it.
    hasher: RandomState,
    table: HashTable<u32>,
    rows: Vec<PendingRow>,
    /// The groups' bytes, one after another.
    groups: Vec<u8>,
    /// As many for each row as there are functions.
    accumulators: Vec<Accumulator>,
    /// What the accumulators of large records have allocated.
    heap_bytes: usize,
}

#[derive(Debug)]
struct PendingRow {
    hash: u64,
    window: Window,
    group: Range<usize>,
    internal_partition: i32,
}

/// Where a (window, group) was found.
#[derive(Debug, Clone, Copy)]
pub struct RowIndex(u32);

impl PendingRows {
    pub fn new(functions: &[AggregateFunction]) -> PendingRows {
        PendingRows {
            functions: functions.to_vec(),
            hasher: RandomState::default(),
            table: HashTable::new(),
            rows: Vec::new(),
            groups: Vec::new(),
            accumulators: Vec::new(),
            heap_bytes: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// About how many bytes the rows take in memory and, being of the same order, on the wire.
    pub fn bytes(&self) -> usize {
        self.groups.len()
            + self.heap_bytes
            + self.rows.len()
                * (size_of::<PendingRow>() + self.functions.len() * size_of::<Accumulator>())
    }

    pub fn hash(&self, window: Window, group: &[u8]) -> u64 {
        self.hasher.hash_one((window.start(), window.end(), group))
    }

    #[inline]
    pub fn find(&self, hash: u64, window: Window, group: &[u8]) -> Option<RowIndex> {
        self.table
            .find(hash, |index| {
                let row = &self.rows[*index as usize];
                row.window == window && &self.groups[row.group.clone()] == group
            })
            .map(|index| RowIndex(*index))
    }

    /// Adds a row that [`PendingRows::find`] has not found.
    pub fn insert(
        &mut self,
        hash: u64,
        window: Window,
        group: &[u8],
        internal_partition: i32,
    ) -> RowIndex {
        let index = self.rows.len() as u32;
        let start = self.groups.len();
        self.groups.extend_from_slice(group);
        self.rows.push(PendingRow {
            hash,
            window,
            group: start..self.groups.len(),
            internal_partition,
        });
        self.accumulators.extend(
            self.functions
                .iter()
                .map(|function| Accumulator::new(*function)),
        );
        self.table
            .insert_unique(hash, index, |index| self.rows[*index as usize].hash);
        RowIndex(index)
    }

    pub fn internal_partition(&self, row: RowIndex) -> i32 {
        self.rows[row.0 as usize].internal_partition
    }

    #[inline]
    pub fn accumulators_mut(&mut self, row: RowIndex) -> &mut [Accumulator] {
        let count = self.functions.len();
        let start = row.0 as usize * count;
        &mut self.accumulators[start..start + count]
    }

    /// Updates a row's accumulators and counts what they then hold on the heap.
    pub fn update_and_weigh(&mut self, row: RowIndex, update: impl FnOnce(&mut [Accumulator])) {
        let weigh = |accumulators: &[Accumulator]| -> usize {
            accumulators.iter().map(Accumulator::heap_bytes).sum()
        };
        let accumulators = self.accumulators_mut(row);
        let before = weigh(accumulators);
        update(accumulators);
        let after = weigh(accumulators);
        self.heap_bytes = (self.heap_bytes + after).saturating_sub(before);
    }

    /// Hands out every row (internal partition, window, group, accumulators) in the order of insertion and keeps the memory for the next.
    pub fn drain(&mut self, mut each: impl FnMut(i32, Window, &[u8], &[Accumulator])) {
        let count = self.functions.len();
        for (index, row) in self.rows.iter().enumerate() {
            let accumulators = &self.accumulators[index * count..(index + 1) * count];
            each(
                row.internal_partition,
                row.window,
                &self.groups[row.group.clone()],
                accumulators,
            );
        }
        self.table.clear();
        self.rows.clear();
        self.groups.clear();
        self.accumulators.clear();
        self.heap_bytes = 0;
    }
}
