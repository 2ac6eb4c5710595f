//! Kafka's wire protocol: frames, versions, guards and record batches. Pure: no I/O, no clock.

// Tests share files with the fuzz targets, which know the crate by its name.
#[cfg(test)]
extern crate self as streamgauge_protocol;

pub mod batch;
pub mod compression;
pub mod error;
pub mod fetch_response;
pub mod frame;
pub mod guard;
pub mod newer;
pub mod versions;

/// The one version of the message crate that the workspace speaks: every dependent takes message types from here.
pub use kafka_protocol as messages;

pub use error::ErrorCode;
