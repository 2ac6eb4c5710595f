//! What the jobs of one broker ask of the leader of a partition that is elsewhere.
//!
//! ```text
//! request   topic id 16 bytes │ partition i32 │ operation u8 │ …
//!   1 append        length u32, batch …           in this order, answered when all are committed
//!   2 last sequence producer id i64
//!   3 delete        before offset i64
//!   4 positions     known high watermark i64 │ known epoch i32 │ wait at most, ms u32
//!   5 read          offset i64 │ bytes at most u32
//! answer    status u8 (0 done, 1 not the leader, 2 out of range, 3 failed) │ …
//!   append          base offset i64 …
//!   last sequence   known u8 │ sequence i32
//!   positions       log start i64 │ high watermark i64 │ last stable offset i64 │ epoch i32
//!   read            next offset i64 │ last stable offset i64 │ batches
//!   out of range    log start i64
//!   failed          text
//! ```
//!
//! Numbers are big-endian. Only the leader of a term whose first entry is committed answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::broker::Broker;
use crate::jobs::log::{Chunk, JobLog, LogError};
use crate::shard::view::PartitionKey;

const APPEND: u8 = 1;
const LAST_SEQUENCE: u8 = 2;
const DELETE: u8 = 3;
const POSITIONS: u8 = 4;
const READ: u8 = 5;

const DONE: u8 = 0;
const NOT_LEADER: u8 = 1;
const OUT_OF_RANGE: u8 = 2;
const FAILED: u8 = 3;

const READ_BYTES_MAX: u32 = 4 << 20;
const WAIT_MS_MAX: u32 = 5_000;

/// One request for a partition.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    Append(Vec<Bytes>),
    LastSequence {
        producer_id: i64,
    },
    Delete {
        before_offset: i64,
    },
    /// Answered at once if they are others than these, else when they are or the time is up.
    Positions {
        high_watermark: i64,
        leader_epoch: i32,
        wait_ms: u32,
    },
    Read {
        offset: i64,
        bytes_max: u32,
    },
}

/// Where a partition's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    pub start_offset: i64,
    pub high_watermark: i64,
    pub stable_offset: i64,
    pub leader_epoch: i32,
}

impl Positions {
    /// As a replica knows them.
    pub fn of(log: &dyn JobLog) -> Self {
        Self {
            start_offset: log.start_offset(),
            high_watermark: log.high_watermark(),
            stable_offset: log.stable_offset(),
            leader_epoch: log.leader_epoch(),
        }
    }
}

/// The request without the byte that says what it is.
pub fn encode(key: PartitionKey, operation: &Operation) -> Bytes {
    let batches = match operation {
        Operation::Append(batches) => batches.iter().map(|batch| batch.len() + 4).sum(),
        _ => 0,
    };
    let mut bytes = BytesMut::with_capacity(48 + batches);
    bytes.put_slice(key.topic_id.as_bytes());
    bytes.put_i32(key.index);
    match operation {
        Operation::Append(batches) => {
            bytes.put_u8(APPEND);
            for batch in batches {
                bytes.put_u32(u32::try_from(batch.len()).unwrap_or(u32::MAX));
                bytes.put_slice(batch);
            }
        }
        Operation::LastSequence { producer_id } => {
            bytes.put_u8(LAST_SEQUENCE);
            bytes.put_i64(*producer_id);
        }
        Operation::Delete { before_offset } => {
            bytes.put_u8(DELETE);
            bytes.put_i64(*before_offset);
        }
        Operation::Positions {
            high_watermark,
            leader_epoch,
            wait_ms,
        } => {
            bytes.put_u8(POSITIONS);
            bytes.put_i64(*high_watermark);
            bytes.put_i32(*leader_epoch);
            bytes.put_u32(*wait_ms);
        }
        Operation::Read { offset, bytes_max } => {
            bytes.put_u8(READ);
            bytes.put_i64(*offset);
            bytes.put_u32(*bytes_max);
        }
    }
    bytes.freeze()
}

fn decode(mut bytes: Bytes) -> Option<(PartitionKey, Operation)> {
    let topic_id = Uuid::from_slice(bytes.get(..16)?).ok()?;
    bytes.advance(16);
    let key = PartitionKey {
        topic_id,
        index: bytes.try_get_i32().ok()?,
    };
    let operation = match bytes.try_get_u8().ok()? {
        APPEND => {
            let mut batches = Vec::new();
            while bytes.has_remaining() {
                let length = bytes.try_get_u32().ok()? as usize;
                if length > bytes.remaining() {
                    return None;
                }
                batches.push(bytes.split_to(length));
            }
            Operation::Append(batches)
        }
        LAST_SEQUENCE => Operation::LastSequence {
            producer_id: bytes.try_get_i64().ok()?,
        },
        DELETE => Operation::Delete {
            before_offset: bytes.try_get_i64().ok()?,
        },
        POSITIONS => Operation::Positions {
            high_watermark: bytes.try_get_i64().ok()?,
            leader_epoch: bytes.try_get_i32().ok()?,
            wait_ms: bytes.try_get_u32().ok()?,
        },
        READ => Operation::Read {
            offset: bytes.try_get_i64().ok()?,
            bytes_max: bytes.try_get_u32().ok()?,
        },
        _ => return None,
    };
    Some((key, operation))
}

/// Does what another broker's job asks of a partition that is led here.
pub async fn serve(broker: &Arc<Broker>, request: Bytes) -> Bytes {
    let partition = |key: PartitionKey| -> Option<Arc<dyn JobLog>> {
        let topic = broker.topics.by_id(key.topic_id)?;
        Some(Arc::new(topic.partition(key.index)?))
    };
    serve_from(partition, request).await
}

/// Does it on the log that `partition` finds, if that leads.
pub async fn serve_from(
    partition: impl FnOnce(PartitionKey) -> Option<Arc<dyn JobLog>>,
    request: Bytes,
) -> Bytes {
    let mut answer = BytesMut::new();
    answer.put_u8(DONE);
    let result = match decode(request) {
        Some((key, operation)) => match partition(key).filter(|log| log.is_serving()) {
            Some(log) => answer_to(&*log, operation, &mut answer).await,
            None => Err(LogError::NotLeader),
        },
        None => Err(LogError::Failed("the request cannot be read".to_owned())),
    };
    match result {
        Ok(()) => answer.freeze(),
        Err(error) => encode_error(&error),
    }
}

async fn answer_to(
    log: &dyn JobLog,
    operation: Operation,
    answer: &mut BytesMut,
) -> Result<(), LogError> {
    match operation {
        Operation::Append(batches) => {
            // All enter the log before the first is waited for, and nothing comes between.
            let pending: Vec<_> = batches.into_iter().map(|batch| log.append(batch)).collect();
            for appended in pending {
                answer.put_i64(appended.await?);
            }
        }
        Operation::LastSequence { producer_id } => {
            let last = log.last_sequence(producer_id).await?;
            answer.put_u8(u8::from(last.is_some()));
            answer.put_i32(last.unwrap_or(-1));
        }
        Operation::Delete { before_offset } => log.delete_records(before_offset).await?,
        Operation::Positions {
            high_watermark,
            leader_epoch,
            wait_ms,
        } => {
            let known = (high_watermark, leader_epoch);
            let wait = Duration::from_millis(u64::from(wait_ms.min(WAIT_MS_MAX)));
            // That nothing has changed is an answer, too.
            drop(tokio::time::timeout(wait, wait_for_news(log, known)).await);
            if !log.is_serving() {
                return Err(LogError::NotLeader);
            }
            let now = Positions::of(log);
            answer.put_i64(now.start_offset);
            answer.put_i64(now.high_watermark);
            answer.put_i64(now.stable_offset);
            answer.put_i32(now.leader_epoch);
        }
        Operation::Read { offset, bytes_max } => {
            let chunk = log
                .read(offset, bytes_max.min(READ_BYTES_MAX) as usize)
                .await?;
            answer.put_i64(chunk.next_offset);
            answer.put_i64(chunk.stable_offset);
            for slice in chunk.slices {
                answer.put_slice(&slice);
            }
        }
    }
    Ok(())
}

async fn wait_for_news(log: &dyn JobLog, known: (i64, i32)) {
    let changed = Arc::new(Notify::new());
    loop {
        log.wake(&changed);
        let is_same = (log.high_watermark(), log.leader_epoch()) == known;
        if !is_same || !log.is_serving() {
            return;
        }
        changed.notified().await;
    }
}

fn encode_error(error: &LogError) -> Bytes {
    let mut bytes = BytesMut::new();
    match error {
        LogError::NotLeader => bytes.put_u8(NOT_LEADER),
        LogError::OutOfRange { start_offset, .. } => {
            bytes.put_u8(OUT_OF_RANGE);
            bytes.put_i64(*start_offset);
        }
        LogError::Failed(reason) => {
            bytes.put_u8(FAILED);
            bytes.put_slice(reason.as_bytes());
        }
    }
    bytes.freeze()
}

/// What follows the status of an answer to a request about `offset`.
fn body(mut answer: Bytes, offset: i64) -> Result<Bytes, LogError> {
    match answer.try_get_u8() {
        Ok(DONE) => Ok(answer),
        Ok(NOT_LEADER) => Err(LogError::NotLeader),
        Ok(OUT_OF_RANGE) => Err(LogError::OutOfRange {
            offset,
            start_offset: answer.try_get_i64().map_err(|_| unreadable())?,
        }),
        Ok(FAILED) => Err(LogError::Failed(
            String::from_utf8_lossy(&answer).into_owned(),
        )),
        _ => Err(unreadable()),
    }
}

fn unreadable() -> LogError {
    LogError::Failed("another broker's answer cannot be read".to_owned())
}

/// The base offsets of `count` batches.
pub fn appended(answer: Bytes, count: usize) -> Result<Vec<i64>, LogError> {
    let mut body = body(answer, -1)?;
    let offsets = (0..count).map(|_| body.try_get_i64().map_err(|_| unreadable()));
    offsets.collect()
}

pub fn last_sequence(answer: Bytes) -> Result<Option<i32>, LogError> {
    let mut body = body(answer, -1)?;
    let is_known = body.try_get_u8().map_err(|_| unreadable())? != 0;
    let last = body.try_get_i32().map_err(|_| unreadable())?;
    Ok(is_known.then_some(last))
}

pub fn deleted(answer: Bytes) -> Result<(), LogError> {
    body(answer, -1).map(|_| ())
}

pub fn positions(answer: Bytes) -> Result<Positions, LogError> {
    let mut body = body(answer, -1)?;
    let mut number = || body.try_get_i64().map_err(|_| unreadable());
    let (start_offset, high_watermark, stable_offset) = (number()?, number()?, number()?);
    Ok(Positions {
        start_offset,
        high_watermark,
        stable_offset,
        leader_epoch: body.try_get_i32().map_err(|_| unreadable())?,
    })
}

pub fn read(answer: Bytes, offset: i64) -> Result<Chunk, LogError> {
    let mut body = body(answer, offset)?;
    let next_offset = body.try_get_i64().map_err(|_| unreadable())?;
    let stable_offset = body.try_get_i64().map_err(|_| unreadable())?;
    Ok(Chunk {
        slices: (!body.is_empty()).then_some(body).into_iter().collect(),
        next_offset,
        stable_offset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back_as_they_were_written_and_nothing_shorter_does() {
        let key = PartitionKey {
            topic_id: Uuid::from_u128(7),
            index: 3,
        };
        let operations = [
            Operation::Append(vec![
                Bytes::from_static(b"one"),
                Bytes::from_static(b"four"),
            ]),
            Operation::LastSequence { producer_id: 9 },
            Operation::Delete { before_offset: 5 },
            Operation::Positions {
                high_watermark: 1,
                leader_epoch: -1,
                wait_ms: 9,
            },
            Operation::Read {
                offset: 4,
                bytes_max: 10,
            },
        ];
        for operation in operations {
            let bytes = encode(key, &operation);
            assert_eq!(decode(bytes.clone()), Some((key, operation.clone())));
            for length in 0..bytes.len() {
                assert_ne!(
                    decode(bytes.slice(..length)),
                    Some((key, operation.clone())),
                    "{length} bytes"
                );
            }
        }
    }

    #[test]
    fn errors_read_back_as_they_were_written() {
        for error in [
            LogError::NotLeader,
            LogError::OutOfRange {
                offset: 4,
                start_offset: 8,
            },
            LogError::Failed("why".to_owned()),
        ] {
            assert_eq!(read(encode_error(&error), 4).unwrap_err(), error);
        }
        assert!(positions(Bytes::from_static(&[DONE, 1, 2])).is_err());
    }
}
