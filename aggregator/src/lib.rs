//! Declared windowed aggregations as pure state machines: records in, records out.

pub mod accumulator;
pub mod change;
pub mod codec;
pub mod combine;
pub mod decimal;
pub mod declaration;
pub mod decode;
pub mod diagnostic;
pub mod expression;
pub mod job;
pub mod merge;
pub mod partial;
pub mod plan;
pub mod snapshot;
pub mod value;
pub mod watermark;
pub mod window;

#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod testing;
