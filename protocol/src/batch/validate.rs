//! What a broker checks of a batch before it takes it from a producer (Kafka's `LogValidator` and `UnifiedLog.analyzeAndValidateRecords`).

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::builder::{assemble, write_crc};
use super::header::{
    ATTRIBUTE_LOG_APPEND_TIME, BATCH_HEADER_BYTES, BatchHeader, TimestampType, parse_verified,
};
use super::records::RecordIter;
use super::{BatchError, BatchRecords, RecordError};
use crate::compression::{Compression, CompressionError};
use crate::error::ErrorCode;

/// First Produce version whose batches may use zstd (KIP-110).
const PRODUCE_ZSTD_VERSION_MIN: i16 = 7;
/// How far a batch may unpack, as a multiple of the largest batch allowed; a limit of ours that stops bombs and leaves real data alone.
const UNPACK_RATIO_MAX: usize = 128;
/// No batch is unpacked further than this, whatever the topic allows; whoever reads accepted batches may have to unpack this much.
pub const UNPACK_BYTES_MAX: usize = 512 << 20;
/// Records that an answer names as wrong, the first ones; a small batch can unpack to millions, and naming one takes more memory than
/// the record did.
pub const RECORD_ERRORS_MAX: usize = 100;

/// The settings of a topic that decide what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidationRules {
    /// `max.message.bytes`: largest batch.
    pub batch_bytes_max: usize,
    /// `compression.type`: `None` for `producer`, which keeps what comes.
    pub compression: Option<Compression>,
    /// `message.timestamp.type`
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`
    pub timestamp_after_max_ms: i64,
    /// `cleanup.policy` has `compact`: every record needs a key.
    pub compacted: bool,
    /// The version of the Produce request.
    pub produce_version: i16,
}

/// A batch that may be appended, rewritten where the topic's settings ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedBatch {
    pub batch: Bytes,
    pub header: BatchHeader,
    pub max_timestamp: i64,
    /// Offset delta of the record that has `max_timestamp`.
    pub offset_of_max_timestamp_delta: i32,
    pub records_count: i32,
}

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    #[error("batch of {bytes} bytes is larger than max.message.bytes {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error(transparent)]
    Corrupt(BatchError),
    #[error("{0}")]
    Invalid(String),
    #[error("magic {0} is not supported; only 2 is")]
    Magic(i8),
    #[error("zstd needs Produce version {PRODUCE_ZSTD_VERSION_MIN} or later")]
    ZstdVersion,
    #[error("one or more records have been rejected: no key on a compacted topic")]
    MissingKeys { records: BTreeMap<i32, String> },
    #[error("one or more records have been rejected due to invalid timestamp")]
    Timestamps { records: BTreeMap<i32, String> },
}

impl ValidationError {
    /// The code for the partition's answer.
    pub fn code(&self) -> ErrorCode {
        match self {
            ValidationError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            ValidationError::Corrupt(_) => ErrorCode::CorruptMessage,
            ValidationError::Invalid(_)
            | ValidationError::Magic(_)
            | ValidationError::MissingKeys { .. } => ErrorCode::InvalidRecord,
            ValidationError::ZstdVersion => ErrorCode::UnsupportedCompressionType,
            ValidationError::Timestamps { .. } => ErrorCode::InvalidTimestamp,
        }
    }

    /// Records at fault by their index in the batch, with what to tell the producer (KIP-467). At most [`RECORD_ERRORS_MAX`].
    pub fn record_errors(&self) -> Option<&BTreeMap<i32, String>> {
        match self {
            ValidationError::MissingKeys { records } | ValidationError::Timestamps { records } => {
                Some(records)
            }
            _ => None,
        }
    }
}

/// Checks one batch; the caller has made sure that the `records` field of the request holds exactly one.
pub fn validate(
    batch: Bytes,
    rules: &ValidationRules,
    now_ms: i64,
) -> Result<ValidatedBatch, ValidationError> {
    if batch.len() > rules.batch_bytes_max {
        return Err(ValidationError::TooLarge {
            bytes: batch.len(),
            limit: rules.batch_bytes_max,
        });
    }
    let header = parse_verified(&batch).map_err(|error| match error {
        BatchError::Magic(magic) => ValidationError::Magic(magic),
        error => ValidationError::Corrupt(error),
    })?;
    check_header(&header, batch.len())?;
    let codec = header
        .compression()
        .map_err(|error| ValidationError::Invalid(error.to_string()))?;
    if codec == Compression::Zstd && rules.produce_version < PRODUCE_ZSTD_VERSION_MIN {
        return Err(ValidationError::ZstdVersion);
    }

    let unpacked_bytes_max = rules
        .batch_bytes_max
        .saturating_mul(UNPACK_RATIO_MAX)
        .min(UNPACK_BYTES_MAX);
    let records = BatchRecords::open(&batch, unpacked_bytes_max).map_err(|error| match error {
        BatchError::Compression(CompressionError::TooLarge { limit, .. }) => {
            ValidationError::TooLarge {
                bytes: limit,
                limit: rules.batch_bytes_max,
            }
        }
        error => ValidationError::Corrupt(error),
    })?;
    let (max_timestamp, max_delta) = check_records(&header, records.as_bytes(), rules, now_ms)?;

    let append_time = rules.timestamp_type == TimestampType::LogAppendTime;
    // With append time every record has the same timestamp, so the batch's last record stands for it.
    let (max_timestamp, max_delta) = if append_time {
        (now_ms, header.last_offset_delta)
    } else {
        (max_timestamp, max_delta)
    };
    let rewritten = match rules.compression {
        Some(wanted) if wanted != codec => {
            let mut header = header;
            header.max_timestamp = max_timestamp;
            if append_time {
                header.attributes |= ATTRIBUTE_LOG_APPEND_TIME;
            }
            let batch =
                assemble(header, wanted, records.as_bytes()).map_err(ValidationError::Corrupt)?;
            if batch.len() > rules.batch_bytes_max {
                return Err(ValidationError::TooLarge {
                    bytes: batch.len(),
                    limit: rules.batch_bytes_max,
                });
            }
            batch
        }
        _ if append_time || header.max_timestamp != max_timestamp => {
            with_timestamps(&batch, rules.timestamp_type, max_timestamp)
                .map_err(ValidationError::Corrupt)?
        }
        _ => batch,
    };
    let header = BatchHeader::parse(&rewritten).map_err(ValidationError::Corrupt)?;
    Ok(ValidatedBatch {
        batch: rewritten,
        header,
        max_timestamp,
        offset_of_max_timestamp_delta: max_delta,
        records_count: header.records_count,
    })
}

/// A copy of one whole batch with another timestamp type and maximum timestamp, and the checksum that goes with them.
pub fn with_timestamps(
    batch: &Bytes,
    timestamp_type: TimestampType,
    max_timestamp: i64,
) -> Result<Bytes, BatchError> {
    let mut header = BatchHeader::parse(batch)?;
    header.max_timestamp = max_timestamp;
    match timestamp_type {
        TimestampType::CreateTime => header.attributes &= !ATTRIBUTE_LOG_APPEND_TIME,
        TimestampType::LogAppendTime => header.attributes |= ATTRIBUTE_LOG_APPEND_TIME,
    }
    let mut out = BytesMut::from(&batch[..]);
    out[..BATCH_HEADER_BYTES].copy_from_slice(&header.to_bytes());
    write_crc(&mut out);
    Ok(out.freeze())
}

fn check_header(header: &BatchHeader, bytes: usize) -> Result<(), ValidationError> {
    let invalid = |reason: String| Err(ValidationError::Invalid(reason));
    if header.size_in_bytes() != bytes {
        return invalid(format!(
            "batch of {} bytes stands in {bytes} bytes; exactly one is allowed",
            header.size_in_bytes()
        ));
    }
    if header.is_internal() || header.is_control() {
        return invalid("clients are not allowed to write control records".to_owned());
    }
    if header.has_delete_horizon() {
        return invalid("clients are not allowed to set the delete horizon".to_owned());
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        let reason = "producers must not set the timestamp type to LogAppendTime";
        return Err(ValidationError::Timestamps {
            records: BTreeMap::from([(0, reason.to_owned())]),
        });
    }
    if header.records_count <= 0 || header.last_offset_delta != header.records_count - 1 {
        return invalid(format!(
            "{} records do not go with last offset delta {}",
            header.records_count, header.last_offset_delta
        ));
    }
    if header
        .base_offset
        .checked_add(i64::from(header.last_offset_delta))
        .is_none()
    {
        return invalid(format!("base offset {} overflows", header.base_offset));
    }
    if header.has_producer_id() && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return invalid(format!(
            "producer {} with epoch {} and sequence {}",
            header.producer_id, header.producer_epoch, header.base_sequence
        ));
    }
    Ok(())
}

/// Walks every record. Returns the greatest timestamp and the offset delta of the first record that has it.
fn check_records(
    header: &BatchHeader,
    records: &[u8],
    rules: &ValidationRules,
    now_ms: i64,
) -> Result<(i64, i32), ValidationError> {
    // Producers' own offsets mean nothing here; from 0 the offset is the delta. Their clock counts, so CreateTime.
    let plain = BatchHeader {
        base_offset: 0,
        attributes: 0,
        ..*header
    };
    let oldest = now_ms.saturating_sub(rules.timestamp_before_max_ms);
    let newest = now_ms.saturating_add(rules.timestamp_after_max_ms);
    let check_times = rules.timestamp_type == TimestampType::CreateTime;
    let (mut max_timestamp, mut max_delta) = (i64::MIN, 0);
    let (mut keyless, mut untimely) = (BTreeMap::new(), BTreeMap::new());
    let malformed = |error: RecordError| ValidationError::Invalid(error.to_string());
    for (index, record) in (0i32..).zip(RecordIter::new(&plain, records)) {
        let record = record.map_err(malformed)?;
        if record.offset != i64::from(index) {
            return Err(ValidationError::Invalid(format!(
                "record {index} has offset delta {}",
                record.offset
            )));
        }
        for header in record.headers {
            header.map_err(malformed)?;
        }
        if rules.compacted && record.key.is_none() && keyless.len() < RECORD_ERRORS_MAX {
            keyless.insert(
                index,
                "Compacted topic cannot accept message without key.".to_owned(),
            );
        }
        let timestamp = record.timestamp;
        // -1 is "no timestamp", which Kafka lets pass.
        let timely = timestamp == -1 || (oldest..=newest).contains(&timestamp);
        if check_times && !timely && untimely.len() < RECORD_ERRORS_MAX {
            untimely.insert(
                index,
                format!("Timestamp {timestamp} is not between {oldest} and {newest}."),
            );
        }
        if timestamp > max_timestamp {
            (max_timestamp, max_delta) = (timestamp, index);
        }
    }
    if !keyless.is_empty() {
        return Err(ValidationError::MissingKeys { records: keyless });
    }
    if !untimely.is_empty() {
        return Err(ValidationError::Timestamps { records: untimely });
    }
    Ok((max_timestamp, max_delta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    const RULES: ValidationRules = ValidationRules {
        batch_bytes_max: 1 << 20,
        compression: None,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: 1000,
        compacted: false,
        produce_version: 9,
    };

    fn batch() -> BatchBuilder {
        BatchBuilder::new()
            .record(100, Some(b"k"), Some(b"v"))
            .record(300, None, Some(b"w"))
            .record(200, None, None)
    }

    #[test]
    fn a_good_batch_passes_untouched() {
        for codec in Compression::ALL {
            let bytes = batch().compression(codec).build().unwrap();
            let valid = validate(bytes.clone(), &RULES, 1000).unwrap();
            assert_eq!(valid.batch, bytes);
            assert_eq!(
                (
                    valid.max_timestamp,
                    valid.offset_of_max_timestamp_delta,
                    valid.records_count
                ),
                (300, 1, 3)
            );
        }
    }

    #[test]
    fn recompression_and_append_time_keep_the_records_and_mend_the_checksum() {
        let rules = ValidationRules {
            compression: Some(Compression::Zstd),
            timestamp_type: TimestampType::LogAppendTime,
            ..RULES
        };
        let valid = validate(batch().build().unwrap(), &rules, 5000).unwrap();
        parse_verified(&valid.batch).unwrap();
        assert_eq!(valid.header.compression(), Ok(Compression::Zstd));
        let records = BatchRecords::open(&valid.batch, 4096).unwrap();
        assert!(
            records
                .iter()
                .all(|record| record.unwrap().timestamp == 5000)
        );
        assert_eq!(records.iter().count(), 3);
    }

    #[test]
    fn each_refusal_has_kafkas_code_and_names_its_records() {
        let good = batch().build().unwrap();
        let mut torn = good.to_vec();
        torn[70] ^= 1;
        assert_eq!(
            validate(torn.into(), &RULES, 0).unwrap_err().code(),
            ErrorCode::CorruptMessage
        );
        let small = ValidationRules {
            batch_bytes_max: 10,
            ..RULES
        };
        assert_eq!(
            validate(good.clone(), &small, 0).unwrap_err().code(),
            ErrorCode::MessageTooLarge
        );
        let control = batch().control().build().unwrap();
        assert_eq!(
            validate(control, &RULES, 1000).unwrap_err().code(),
            ErrorCode::InvalidRecord
        );
        let zstd = batch().compression(Compression::Zstd).build().unwrap();
        let old = ValidationRules {
            produce_version: 6,
            ..RULES
        };
        assert_eq!(
            validate(zstd, &old, 1000).unwrap_err().code(),
            ErrorCode::UnsupportedCompressionType
        );

        let compacted = ValidationRules {
            compacted: true,
            ..RULES
        };
        let error = validate(good.clone(), &compacted, 1000).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidRecord);
        assert_eq!(
            error
                .record_errors()
                .unwrap()
                .keys()
                .copied()
                .collect::<Vec<_>>(),
            [1, 2]
        );
        let strict = ValidationRules {
            timestamp_after_max_ms: 50,
            ..RULES
        };
        let error = validate(good, &strict, 200).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidTimestamp);
        assert_eq!(
            error
                .record_errors()
                .unwrap()
                .keys()
                .copied()
                .collect::<Vec<_>>(),
            [1]
        );
    }
}
