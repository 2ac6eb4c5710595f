//! The partition log on disk, readable by Kafka's tools and by Raft.

mod aborted;
pub mod checkpoint;
pub mod disk;
pub mod epochs;
mod error;
mod frames;
pub mod hard_state;
mod ids;
pub mod lock;
pub mod log;
pub mod producer_state;
mod raft_index;
mod segment;
mod segment_index;

pub use aborted::AbortedTransaction;
pub use error::{Corruption, StorageError};
pub use ids::{RaftIndex, Term};
