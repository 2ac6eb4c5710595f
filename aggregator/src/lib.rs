//! Declared windowed aggregations as pure state machines: records in, records out.

mod codec;
pub mod decimal;
pub mod value;
pub mod watermark;
pub mod window;
