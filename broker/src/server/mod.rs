//! The way in: sockets, connections, limits, shutdown.

pub mod accept;
pub mod connection;
pub mod core;
pub mod memory;
pub mod start;

pub use start::{RunningBroker, ServeError, serve, start};
