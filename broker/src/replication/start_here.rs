//! What a leader sends to a replica for which it has no entry left that would follow: where to
//! begin, and what is known of the producers. It is the data of Raft's snapshot message.
//!
//! ```text
//! version u8 = 2 | offset after the snapshot's entry i64 | log start offset i64 |
//! last membership change included u64 | last assignment reached u64 | producers' offset i64 | producer snapshot, to the end
//! ```
//!
//! Numbers are big-endian. Index and term of the entry stand in the snapshot's metadata. The
//! producers may be known up to a later offset than the log begins at: batches between the two
//! are in them already.

use streamgauge_storage::log::{Log, LogStart};
use streamgauge_storage::producer_state::{ProducerState, SnapshotError};
use streamgauge_storage::{RaftIndex, StorageError, Term};

use super::membership::Membership;

const VERSION: u8 = 2;
const FIXED_BYTES: usize = 1 + 5 * 8;

/// Where a replica is to begin.
#[derive(Debug, Clone)]
pub struct StartHere {
    pub start: LogStart,
    pub log_start_offset: i64,
    /// The last membership change that the snapshot's membership includes.
    pub conf_index: u64,
    /// The epoch of the last assignment that the group has reached.
    pub settled: u64,
    pub producers: ProducerState,
}

/// Why such a message is not usable.
#[derive(Debug, thiserror::Error)]
pub enum StartHereError {
    #[error("the leader's place to begin is not readable")]
    Unreadable,
    #[error("the producers in it are not readable: {0}")]
    Producers(#[from] SnapshotError),
}

/// The message's data for the log as it is.
pub fn encode(log: &Log, membership: &Membership) -> Result<Vec<u8>, StorageError> {
    let start = log.start();
    let (producers_offset, producers) = match log.newest_producer_snapshot()? {
        Some(newest) => newest,
        None => (start.offset, ProducerState::new().to_snapshot()),
    };
    let mut bytes = Vec::with_capacity(FIXED_BYTES + producers.len());
    bytes.push(VERSION);
    bytes.extend(start.offset.to_be_bytes());
    bytes.extend(log.log_start_offset().to_be_bytes());
    bytes.extend(membership.index.to_be_bytes());
    bytes.extend(membership.settled.to_be_bytes());
    bytes.extend(producers_offset.to_be_bytes());
    bytes.extend(producers);
    Ok(bytes)
}

impl StartHere {
    /// Reads the data of a message whose metadata names that entry.
    pub fn decode(
        index: RaftIndex,
        term: Term,
        data: &[u8],
        now_ms: i64,
    ) -> Result<Self, StartHereError> {
        let mut rest = data
            .strip_prefix(&[VERSION])
            .ok_or(StartHereError::Unreadable)?;
        let mut number = || {
            let (number, after) = rest
                .split_first_chunk::<8>()
                .ok_or(StartHereError::Unreadable)?;
            rest = after;
            Ok::<_, StartHereError>(i64::from_be_bytes(*number))
        };
        let offset = number()?;
        let log_start_offset = number()?;
        let conf_index = number()? as u64;
        let settled = number()? as u64;
        let producers_offset = number()?;
        if offset < 0 || log_start_offset < offset || producers_offset < offset {
            return Err(StartHereError::Unreadable);
        }
        Ok(Self {
            start: LogStart {
                index,
                term,
                offset,
            },
            log_start_offset,
            conf_index,
            settled,
            producers: ProducerState::from_snapshot(rest, producers_offset, now_ms)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_refused() {
        let mut bytes = vec![VERSION];
        for number in [10i64, 12, 0, 4, 15] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(ProducerState::new().to_snapshot());
        let decode = |bytes: &[u8]| StartHere::decode(RaftIndex(7), Term(2), bytes, 0);
        let read = decode(&bytes).unwrap();
        assert_eq!((read.start.offset, read.log_start_offset), (10, 12));
        assert_eq!(read.settled, 4);
        assert_eq!(read.producers.committed_end_offset(), 15);
        for length in 0..bytes.len() - 4 {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
