//! Measurements of whole processes, side by side with their peers: what the benchmarks share.
//!
//! `server` starts a broker and reads what it cost, `load` is the client that drives it, `table` makes medians and ranges of
//! repeats.

pub mod cluster;
pub mod load;
pub mod server;
pub mod table;
