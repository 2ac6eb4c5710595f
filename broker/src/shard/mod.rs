//! The owners of partitions.
//!
//! A [`core::Shard`] is a state machine: it is given events and the time, and hands out effects
//! (files to sync). [`runner`] carries them out on a thread of its own, with a pool for syncs; a
//! simulator does the same with simulated time and disks. Everything that arrived while the last
//! round was under way becomes one append, one write and one round of syncs for each partition.
//!
//! Reads do not come here: a partition publishes a [`view::PartitionView`].

pub mod core;
pub mod event;
pub mod handle;
pub mod partition;
#[cfg(test)]
mod replica_tests;
pub mod runner;
#[cfg(test)]
mod transaction_tests;
pub mod view;
