//! Everything that runs: network, Raft host, controller, coordinators, aggregation runtime,
//! configuration and the command line.

pub mod api;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod coordinator;
pub mod group;
pub mod ids;
pub mod jobs;
pub mod peers;
pub mod replication;
pub mod server;
pub mod shard;
pub mod topics;
pub mod transaction;
