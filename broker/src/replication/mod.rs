//! A partition as a Raft group over its log.
//!
//! [`group::RaftGroup`] drives crate `raft` without doing I/O of its own beyond page-cache writes
//! through the log; [`log_storage::LogStorage`] shows the log to it. Nothing here knows of Kafka's
//! requests, of threads or of clocks.

mod followers;
pub mod group;
pub mod hibernation;
pub mod log_storage;
pub mod membership;
mod raft_logger;
pub mod start_here;
pub mod throttle;
pub mod wire;

/// The Raft id of a broker. Raft reserves 0, which is a legal broker id.
pub fn raft_id(broker_id: i32) -> u64 {
    u64::try_from(broker_id).unwrap_or(0) + 1
}

/// The broker of a Raft id.
pub fn broker_id(raft_id: u64) -> i32 {
    i32::try_from(raft_id.saturating_sub(1)).unwrap_or(i32::MAX)
}
