//! The records of `__transaction_state`, in Apache Kafka's formats, so that Kafka's own tools read the topic.
//!
//! ```text
//! key    int16 type 0 | string transactional id
//! value  int16 version | int64 producer id, int16 producer epoch, int32 timeout ms, int8 state,
//!                        [topic, [int32 partition]] or null, int64 last update ms, int64 start ms
//!        version 1: compact, with tags 0 previous producer id, 1 next producer id, 2 int16 client transaction version
//! ```
//!
//! Both versions are read; written is version 1, as Kafka does from `transaction.version` 1 on.

use super::state::{NO_PRODUCER_EPOCH, NO_PRODUCER_ID, State, Transaction};
use crate::coordinator::machine::{LogRecord, RecordError};
use crate::coordinator::wire::{Reader, WireError, Writer};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

const TRANSACTION_LOG: i16 = 0;
const FIRST_FLEXIBLE_VERSION: i16 = 1;
const NEWEST_VERSION: i16 = 1;

const PREVIOUS_PRODUCER_ID_TAG: u32 = 0;
const NEXT_PRODUCER_ID_TAG: u32 = 1;
const CLIENT_VERSION_TAG: u32 = 2;

/// What is known of a transactional id, or that it is forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRecord {
    pub transactional_id: String,
    pub value: Option<Transaction>,
}

impl LogRecord for TransactionRecord {
    fn encode_key(&self) -> Bytes {
        let mut writer = Writer::default();
        writer.int16(TRANSACTION_LOG);
        writer.string(&self.transactional_id);
        writer.finish()
    }

    fn encode_value(&self) -> Option<Bytes> {
        self.value.as_ref().map(encode)
    }

    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<Self>, RecordError> {
        let mut reader = Reader::new(key);
        let kind = reader.int16().map_err(malformed)?;
        if kind != TRANSACTION_LOG {
            return Ok(None);
        }
        let transactional_id = reader.string().map_err(malformed)?;
        let value = value.map(decode).transpose()?;
        Ok(Some(Self {
            transactional_id,
            value,
        }))
    }
}

fn malformed(source: WireError) -> RecordError {
    RecordError::Malformed {
        what: "transaction",
        source,
    }
}

fn encode(transaction: &Transaction) -> Bytes {
    let mut writer = Writer::default();
    writer.int16(NEWEST_VERSION);
    writer.int64(transaction.producer_id);
    writer.int16(transaction.producer_epoch);
    writer.int32(transaction.timeout_ms);
    writer.raw(&transaction.state.id().to_be_bytes());
    if transaction.state == State::Empty {
        writer.unsigned_varint(0);
    } else {
        let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for (topic, partition) in &transaction.partitions {
            topics.entry(topic).or_default().push(*partition);
        }
        writer.unsigned_varint(compact_length(topics.len()));
        for (topic, partitions) in topics {
            writer.compact_string(topic);
            writer.unsigned_varint(compact_length(partitions.len()));
            for partition in partitions {
                writer.int32(partition);
            }
            writer.unsigned_varint(0);
        }
    }
    writer.int64(transaction.last_update_timestamp_ms);
    writer.int64(transaction.start_timestamp_ms);
    // Tags with their defaults are left out.
    let ids = [
        (PREVIOUS_PRODUCER_ID_TAG, transaction.previous_producer_id),
        (NEXT_PRODUCER_ID_TAG, transaction.next_producer_id),
    ];
    let ids = ids.into_iter().filter(|(_, id)| *id != NO_PRODUCER_ID);
    let has_version = transaction.client_version != 0;
    writer.unsigned_varint(ids.clone().count() as u32 + u32::from(has_version));
    for (tag, id) in ids {
        writer.unsigned_varint(tag);
        writer.unsigned_varint(8);
        writer.int64(id);
    }
    if has_version {
        writer.unsigned_varint(CLIENT_VERSION_TAG);
        writer.unsigned_varint(2);
        writer.int16(transaction.client_version);
    }
    writer.finish()
}

fn compact_length(count: usize) -> u32 {
    u32::try_from(count + 1).unwrap_or(u32::MAX)
}

fn decode(bytes: &[u8]) -> Result<Transaction, RecordError> {
    let mut reader = Reader::new(bytes);
    let version = reader.int16().map_err(malformed)?;
    if !(0..=NEWEST_VERSION).contains(&version) {
        return Err(RecordError::Version {
            what: "transaction",
            version,
            newest: NEWEST_VERSION,
        });
    }
    read(&mut reader, version >= FIRST_FLEXIBLE_VERSION).map_err(malformed)
}

fn read(reader: &mut Reader<'_>, flexible: bool) -> Result<Transaction, WireError> {
    let producer_id = reader.int64()?;
    let producer_epoch = reader.int16()?;
    let timeout_ms = reader.int32()?;
    let state = State::from_id(reader.int8()?).ok_or(WireError::Length)?;
    let mut partitions = BTreeSet::new();
    for _ in 0..reader.nullable_count_of(flexible)?.unwrap_or(0) {
        let topic = reader.string_of(flexible)?;
        for _ in 0..reader.nullable_count_of(flexible)?.unwrap_or(0) {
            partitions.insert((topic.clone(), reader.int32()?));
        }
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
    }
    let last_update_timestamp_ms = reader.int64()?;
    let start_timestamp_ms = reader.int64()?;
    let (mut previous_producer_id, mut next_producer_id) = (NO_PRODUCER_ID, NO_PRODUCER_ID);
    let mut client_version = 0;
    if flexible {
        reader.tagged_fields(|tag, field| {
            let mut field = Reader::new(field);
            match tag {
                PREVIOUS_PRODUCER_ID_TAG => previous_producer_id = field.int64()?,
                NEXT_PRODUCER_ID_TAG => next_producer_id = field.int64()?,
                CLIENT_VERSION_TAG => client_version = field.int16()?,
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(Transaction {
        producer_id,
        previous_producer_id,
        next_producer_id,
        producer_epoch,
        last_producer_epoch: NO_PRODUCER_EPOCH,
        timeout_ms,
        state,
        partitions,
        start_timestamp_ms,
        last_update_timestamp_ms,
        client_version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ongoing() -> Transaction {
        Transaction {
            producer_id: 7,
            previous_producer_id: 6,
            producer_epoch: 3,
            timeout_ms: 60_000,
            state: State::Ongoing,
            partitions: BTreeSet::from([
                ("orders".to_owned(), 0),
                ("orders".to_owned(), 2),
                ("__consumer_offsets".to_owned(), 13),
            ]),
            start_timestamp_ms: 5,
            last_update_timestamp_ms: 6,
            client_version: 2,
            ..Transaction::new(7, 0)
        }
    }

    #[test]
    fn records_read_back_as_they_were_written() {
        for state in State::ALL {
            let mut value = Transaction { state, ..ongoing() };
            if state == State::Empty {
                value.partitions.clear();
            }
            let record = TransactionRecord {
                transactional_id: "t".into(),
                value: Some(value),
            };
            let (key, bytes) = (record.encode_key(), record.encode_value());
            assert_eq!(
                TransactionRecord::decode(&key, bytes.as_deref()),
                Ok(Some(record))
            );
        }
        let forgotten = TransactionRecord {
            transactional_id: "t".into(),
            value: None,
        };
        let read = TransactionRecord::decode(&forgotten.encode_key(), None);
        assert_eq!(read, Ok(Some(forgotten)));
    }

    #[test]
    fn records_of_version_0_are_read() {
        let mut writer = Writer::default();
        writer.int16(0);
        writer.int64(7);
        writer.int16(3);
        writer.int32(60_000);
        writer.raw(&[1]);
        writer.int32(1);
        writer.string("orders");
        writer.int32(2);
        writer.int32(0);
        writer.int32(2);
        writer.int64(6);
        writer.int64(5);
        let read = decode(&writer.finish()).unwrap();
        assert_eq!(
            read,
            Transaction {
                previous_producer_id: NO_PRODUCER_ID,
                partitions: BTreeSet::from([("orders".to_owned(), 0), ("orders".to_owned(), 2)]),
                client_version: 0,
                ..ongoing()
            }
        );
    }

    #[test]
    fn newer_kinds_are_skipped_and_newer_versions_refused() {
        assert_eq!(TransactionRecord::decode(&[0, 9, 0, 0], None), Ok(None));
        assert!(matches!(
            decode(&[0, 2]),
            Err(RecordError::Version { version: 2, .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = TransactionRecord::decode(&bytes, Some(&bytes));
        }
    }
}
