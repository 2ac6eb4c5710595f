//! What one replica holds, read from the files of a broker that has stopped.

use std::path::Path;
use std::sync::Arc;

use streamgauge_protocol::batch::{BatchIter, BatchRecords};
use streamgauge_storage::disk::real::RealDisk;
use streamgauge_storage::log::{Log, LogConfig};

const READ_BYTES_MAX: usize = 1 << 20;
const BATCH_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    /// A client begins a new one when it has lost track of its sequence.
    pub producer_epoch: i16,
    /// Ends a transaction; its value is not a client's.
    pub is_control: bool,
    pub value: String,
}

/// The records of a partition's replica, in order.
///
/// # Panics
/// If the files are not those of a whole log that was closed well.
pub fn records(directory: &Path) -> Vec<Record> {
    let config = LogConfig {
        segment_bytes: 1 << 30,
        segment_ms: i64::MAX,
        index_interval_bytes: 4096,
        segment_index_bytes: 10 << 20,
        delete: false,
        retention_bytes: -1,
        retention_ms: -1,
    };
    let (log, report) = Log::open(Arc::new(RealDisk), directory, config, 0)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let corruption = report.corruption;
    assert!(
        corruption.is_none(),
        "{}: {corruption:?}",
        directory.display()
    );
    let (reader, end) = (log.reader(), log.next_offset());
    let mut records = Vec::new();
    let mut offset = log.log_start_offset();
    while offset < end {
        let read = reader
            .read(offset, READ_BYTES_MAX, end, true)
            .unwrap_or_else(|error| panic!("{} at {offset}: {error}", directory.display()));
        let before = offset;
        for batch in read
            .slices
            .iter()
            .flat_map(|slice| BatchIter::new(slice.clone()))
        {
            let (header, batch) = batch.expect("a batch");
            assert_eq!(offset, header.base_offset, "{}", directory.display());
            offset = header.next_offset();
            let batch = BatchRecords::open(&batch, BATCH_BYTES_MAX).expect("records");
            for record in batch.iter() {
                let record = record.expect("a record");
                let value = String::from_utf8_lossy(record.value.unwrap_or_default());
                records.push(Record {
                    offset: record.offset,
                    producer_epoch: header.producer_epoch,
                    is_control: header.is_control(),
                    value: value.into_owned(),
                });
            }
        }
        assert!(
            before < offset,
            "{} ends at {offset} for {end}",
            directory.display()
        );
    }
    records
}
