//! Declared windowed aggregations as pure state machines: records in, records out.

pub mod accumulator;
pub mod combine;
pub mod decimal;
pub mod job;
pub mod merge;
pub mod partial;
pub mod snapshot;
pub mod value;
pub mod watermark;
pub mod window;

pub mod codec;

#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod testing;
