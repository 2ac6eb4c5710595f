//! Everything that runs: network, Raft host, controller, coordinators, aggregation runtime,
//! configuration and the command line.

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod group;
pub mod jobs;
pub mod replication;
pub mod server;
pub mod shard;
