//! Declared windowed aggregations as pure state machines: records in, records out.

mod exactly_once;
mod testing;
pub mod accumulator;
pub mod codec;
pub mod combine;
pub mod decimal;
pub mod decode;
pub mod diagnostic;
pub mod expression;
pub mod job;
pub mod merge;
pub mod partial;
pub mod snapshot;
pub mod value;
pub mod watermark;
pub mod window;
