//! The accumulators of the open windows: by window, then by group.

use std::collections::BTreeMap;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::accumulator::{Accumulator, AggregateFunction, decode_all};
use crate::codec::CodecError;
use crate::partial::RowBytes;
use crate::window::Window;

/// The groups of one window. Whoever needs an order sorts: a hash map has none.
pub type Groups = HashMap<Box<[u8]>, Box<[Accumulator]>, RandomState>;

/// A group's bytes and its accumulators.
pub type GroupRef<'a> = (&'a [u8], &'a [Accumulator]);

/// See the top of this file.
#[derive(Debug)]
pub struct WindowState {
    functions: Vec<AggregateFunction>,
    windows: BTreeMap<Window, Pane>,
    groups: usize,
    bytes: usize,
    scratch: Vec<Accumulator>,
}

#[derive(Debug, Default)]
struct Pane {
    groups: Groups,
    bytes: usize,
}

impl WindowState {
    pub fn new(functions: Vec<AggregateFunction>) -> WindowState {
        WindowState {
            functions,
            windows: BTreeMap::new(),
            groups: 0,
            bytes: 0,
            scratch: Vec::new(),
        }
    }

    /// Adds a partial row.
    pub fn add(&mut self, row: &RowBytes<'_>) -> Result<(), CodecError> {
        decode_all(&self.functions, row.accumulators, &mut self.scratch)?;
        let pane = self.windows.entry(row.window).or_default();
        let added = match pane.groups.get_mut(row.group) {
            Some(accumulators) => {
                let before = heap_bytes(accumulators);
                for (accumulator, other) in accumulators.iter_mut().zip(self.scratch.drain(..)) {
                    let merged = accumulator.merge(other);
                    debug_assert!(merged, "decode_all has checked the functions");
                }
                heap_bytes(accumulators) as isize - before as isize
            }
            None => {
                let accumulators: Box<[Accumulator]> = self.scratch.drain(..).collect();
                let bytes = row_bytes(row.group, &accumulators);
                pane.groups.insert(row.group.into(), accumulators);
                self.groups += 1;
                bytes as isize
            }
        };
        pane.bytes = pane.bytes.saturating_add_signed(added);
        self.bytes = self.bytes.saturating_add_signed(added);
        Ok(())
    }

    /// Takes out the first window if the watermark has closed it.
    pub fn take_closed(&mut self, watermark: i64) -> Option<(Window, Groups)> {
        let entry = self.windows.first_entry()?;
        if !entry.key().is_closed_at(watermark) {
            return None;
        }
        let (window, pane) = entry.remove_entry();
        self.groups -= pane.groups.len();
        self.bytes -= pane.bytes;
        Some((window, pane.groups))
    }

    pub fn windows(&self) -> impl Iterator<Item = Window> + '_ {
        self.windows.keys().copied()
    }

    /// Every window with its groups in the order of their bytes.
    pub fn sorted(&self) -> impl Iterator<Item = (Window, Vec<GroupRef<'_>>)> + '_ {
        self.windows.iter().map(|(window, pane)| {
            let mut groups: Vec<_> = pane
                .groups
                .iter()
                .map(|(group, accumulators)| (&group[..], &accumulators[..]))
                .collect();
            groups.sort_unstable_by_key(|(group, _)| *group);
            (*window, groups)
        })
    }

    pub fn windows_open(&self) -> usize {
        self.windows.len()
    }

    pub fn groups(&self) -> usize {
        self.groups
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn row_bytes(group: &[u8], accumulators: &[Accumulator]) -> usize {
    // Two boxes and about an eighth of a table that is not full.
    const TABLE_BYTES: usize = 40;
    TABLE_BYTES + group.len() + size_of_val(accumulators) + heap_bytes(accumulators)
}

fn heap_bytes(accumulators: &[Accumulator]) -> usize {
    accumulators.iter().map(Accumulator::heap_bytes).sum()
}
