//! A batch's way from a produce request (or a fetch response) to its records.

use bytes::Bytes;
use streamgauge_protocol::batch::header::{crc32c, parse_verified};
use streamgauge_protocol::batch::validate::{ValidationRules, validate};
use streamgauge_protocol::batch::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, BatchIter, BatchRecords, StampedBatch, TimestampType,
};
use streamgauge_protocol::compression::Compression;

/// How far these bodies let a batch unpack.
pub const UNPACKED_BYTES_MAX: usize = 1 << 20;
const NOW_MS: i64 = 10_000;

/// Reads `bytes` as batches and validates each as a producer's, as they are and with a length and checksum that are right: what only
/// a checksum keeps out is no harder to send.
pub fn read_and_validate(bytes: &[u8]) {
    let batches = Bytes::copy_from_slice(bytes);
    for batch in BatchIter::new(batches.clone()) {
        let Ok((_, batch)) = batch else { break };
        read(&batch);
        check(&batch);
    }
    if let Some(mended) = with_right_sums(bytes) {
        read(&mended);
        check(&mended);
    }
    check(&batches);
}

/// The bytes as one batch with the length, magic and checksum that it ought to have.
pub fn with_right_sums(bytes: &[u8]) -> Option<Bytes> {
    if bytes.len() < BATCH_HEADER_BYTES {
        return None;
    }
    let mut batch = bytes.to_vec();
    let length = i32::try_from(batch.len() - 12).ok()?;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[16] = 2;
    let checksum = crc32c(&batch[BATCH_PREFIX_BYTES..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    Some(batch.into())
}

fn read(batch: &Bytes) {
    let _ = parse_verified(batch);
    let Ok(records) = BatchRecords::open(batch, UNPACKED_BYTES_MAX) else {
        return;
    };
    let unpacked = records.as_bytes().len();
    assert!(
        unpacked <= UNPACKED_BYTES_MAX.max(batch.len()),
        "{unpacked} bytes were unpacked"
    );
    let borrowed = records.iter().take_while(Result::is_ok).count();
    let owned = records.views().take_while(Result::is_ok).count();
    // Owned records are read with their headers, so they may end sooner.
    assert!(
        owned <= borrowed && borrowed <= unpacked,
        "{owned} of {borrowed} records"
    );
}

fn check(batch: &Bytes) {
    let plain = ValidationRules {
        batch_bytes_max: UNPACKED_BYTES_MAX / 128,
        compression: None,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        compacted: false,
        produce_version: 9,
    };
    let strict = ValidationRules {
        compression: Some(Compression::Lz4),
        timestamp_after_max_ms: 1_000,
        compacted: true,
        ..plain
    };
    let rewritten = ValidationRules {
        compression: Some(Compression::Zstd),
        timestamp_type: TimestampType::LogAppendTime,
        ..plain
    };
    for rules in [plain, strict, rewritten] {
        let Ok(valid) = validate(batch.clone(), &rules, NOW_MS) else {
            continue;
        };
        // What is taken is served to every consumer: it must be whole.
        let header = parse_verified(&valid.batch).expect("a validated batch has its checksum");
        assert_eq!(header, valid.header);
        let records =
            BatchRecords::open(&valid.batch, UNPACKED_BYTES_MAX).expect("a validated batch opens");
        let views: Vec<_> = records
            .views()
            .collect::<Result<_, _>>()
            .expect("validated records can be read");
        assert_eq!(views.len(), valid.records_count as usize);
        assert!(
            views
                .iter()
                .all(|record| record.timestamp <= valid.max_timestamp)
        );
        StampedBatch::stamp(valid.batch, 42, 7).expect("a validated batch can be stamped");
    }
}
