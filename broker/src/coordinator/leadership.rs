//! Which partitions of an internal topic this broker coordinates, and since which leader epoch.

use crate::shard::handle::PartitionHandle;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// The partitions whose work has been taken up, with the epoch in which this broker leads them.
#[derive(Debug, Default)]
pub struct Taken(Mutex<HashMap<i32, i32>>);

impl Taken {
    /// Takes up the work of partitions that are led here, and lays it down where they are no longer. One that was lost and won
    /// again meanwhile is begun anew. `partitions` lists those that have a replica here; it is asked when nobody else follows, since an
    /// older list would have what others took up laid down again.
    pub fn follow(
        &self,
        partitions: impl FnOnce() -> Vec<PartitionHandle>,
        mut take_up: impl FnMut(i32, i32, PartitionHandle),
        mut lay_down: impl FnMut(i32),
    ) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut here = HashSet::new();
        for partition in partitions() {
            let view = partition.view();
            let index = view.key().index;
            here.insert(index);
            let epoch = view.is_serving().then(|| view.leader_epoch());
            match (taken.get(&index).copied(), epoch) {
                (before, Some(epoch)) if before != Some(epoch) => {
                    if before.is_some() {
                        lay_down(index);
                    }
                    taken.insert(index, epoch);
                    take_up(index, epoch, partition);
                }
                (Some(_), None) => {
                    lay_down(index);
                    taken.remove(&index);
                }
                _ => {}
            }
        }
        // Replicas may have moved away.
        taken.retain(|index, _| {
            let stays = here.contains(index);
            if !stays {
                lay_down(*index);
            }
            stays
        });
    }

    /// Lays down all of it.
    pub fn lay_down_all(&self, lay_down: impl FnMut(i32)) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.drain().map(|(index, _)| index).for_each(lay_down);
    }
}
