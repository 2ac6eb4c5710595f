//! The partition log on disk, readable by Kafka's tools and by Raft.

pub mod lock;
pub mod producer_state;
