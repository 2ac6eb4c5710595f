//! Record batches, magic 2: parsing, walking, building and checking them.

pub mod builder;
pub mod control;
pub mod header;
pub mod iter;
pub mod records;
pub mod stamped;
pub mod validate;

pub use builder::BatchBuilder;
pub use control::{TransactionMarker, TransactionResult};
pub use header::{BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, BatchHeader, NO_SEQUENCE, TimestampType};
pub use iter::BatchIter;
pub use records::{BatchRecords, Header, HeaderView, RecordRef, RecordView};
pub use stamped::StampedBatch;

use crate::compression::CompressionError;

/// What is wrong with the bytes of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("batch needs {needed} bytes, {available} are there")]
    Truncated { needed: usize, available: usize },
    #[error("batch length field {0} is smaller than the header")]
    Length(i32),
    #[error("magic {0} is not 2")]
    Magic(i8),
    #[error("crc {stored:#010x} is stored, {computed:#010x} was computed")]
    Crc { stored: u32, computed: u32 },
    #[error("compression code {0} is unknown")]
    UnknownCompression(i16),
    #[error("records: {0}")]
    Records(#[from] RecordError),
    #[error(transparent)]
    Compression(#[from] CompressionError),
    #[error("batch of {0} bytes does not fit its 4-byte length field")]
    TooLarge(usize),
}

/// What is wrong with the records inside a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a varint is cut off or longer than its type allows")]
    Varint,
    #[error("a length field is negative or reaches past the end of what holds it")]
    Length,
    #[error("a record has bytes left over after its last header")]
    Trailing,
    #[error("the header says {declared} records, {found} were found")]
    Count { declared: i32, found: i32 },
    #[error("bytes follow the last record")]
    TrailingRecords,
    #[error("offset delta {found} where more than {above} and at most {max} was due")]
    OffsetDelta { found: i32, above: i32, max: i32 },
    #[error("a header key is not UTF-8")]
    HeaderKey,
}
