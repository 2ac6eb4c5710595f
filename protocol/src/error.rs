//! Kafka's error codes. The enum is the message crate's, complete to Kafka 4.1; this is the one place that names it.
//!
//! It has no variant for 0: an answer without error is `None`, see [`code_of`].

pub use kafka_protocol::ResponseError as ErrorCode;

pub const NO_ERROR: i16 = 0;

/// The number for a response field: 0 for no error.
pub fn code_of(error: Option<ErrorCode>) -> i16 {
    error.map_or(NO_ERROR, |error| error.code())
}
