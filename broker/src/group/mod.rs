//! Consumer groups: a state machine over `__consumer_offsets`.
//!
//! [`service`] is the way in. A request goes to the [`runtime`] task of its group's offsets partition, whose
//! [`coordinator`] decides: records to append and replies to give. The replies wait until the records have committed.
//! After a failover the same records rebuild the same state.

mod batch;
pub mod classic;
pub mod config;
pub mod coordinator;
pub mod log;
pub mod member;
pub mod offsets;
pub mod records;
pub mod runtime;
pub mod service;
mod service_offsets;
mod wire;

pub use service::GroupCoordinator;

#[cfg(test)]
mod memory_log;
