//! Declared windowed aggregations as pure state machines: records in, records out.

pub mod codec;
pub mod watermark;
pub mod window;
