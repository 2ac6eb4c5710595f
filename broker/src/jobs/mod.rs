//! The runtime of the aggregator: feeds jobs from partitions and appends what they make.

pub mod check;
pub mod cluster;
pub mod log;
pub mod status;

pub use check::{check_aggregation, check_partition_growth};
pub use status::StatusRegistry;
