//! Consumer groups: a state machine over `__consumer_offsets`.
//!
//! [`service`] is the way in. A request goes to the [runtime](crate::coordinator::runtime) task of its group's offsets partition, whose
//! [`coordinator`] decides: records to append and replies to give. The replies wait until the records have committed.
//! After a failover the same records rebuild the same state.

pub mod classic;
pub mod config;
pub mod coordinator;
mod coordinator_offsets;
pub mod member;
pub mod offsets;
mod pending;
pub mod records;
pub mod service;
mod service_offsets;
pub mod topics;

pub use service::GroupCoordinator;
