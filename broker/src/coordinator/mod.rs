//! What all coordinators have in common, as Kafka's `coordinator-common`: a state machine over a partition of an internal topic.
//!
//! ```text
//!   request -> mailbox -> Machine -> records -> one batch -> CoordinatorLog::append
//!                                 -> replies, effects ----- held ----> commit -> callers
//! ```
//!
//! [`coordinators::Coordinators`] has one [`runtime`] task for each partition that this broker leads. The machine decides on the
//! state that all earlier decisions have left; what it answers and does waits until its records have committed. After a
//! failover, and after an append that failed, the same records rebuild the same state.

mod batch;
pub mod coordinators;
pub mod host;
pub mod leadership;
pub mod log;
pub mod machine;
pub mod partition_log;
pub mod runtime;
pub mod wire;

#[cfg(test)]
pub mod memory_log;
