//! Frames between brokers, once a connection is open.
//!
//! ```text
//! frame     length u32 │ crc u32 │ type u8 │ head length u32 │ head │ data
//! 1 raft    head: count u32, (topic id 16 bytes │ partition i32 │ message's head) …; data: the messages' record data
//! 2 notice  head: payload
//! 3 request head: correlation id u64 │ payload
//! 4 answer  head: correlation id u64 │ outcome u8 (0 done, 1 busy, 2 failed) │ payload, if done
//! 5 ping    nothing
//! 6 pulse   head: shard u32 │ epoch u64; see [`crate::replication::hibernation`]
//! ```
//!
//! Numbers are big-endian; the length counts what follows it. The CRC-32 covers the length and all
//! from the type to the end of the head. It does not cover the data: these are the bodies of record
//! batches ([`wire`] says which), which carry the CRC-32C of whoever produced them, and summing
//! gigabytes twice on their way from disk to socket would cost more than the rest of sending them.
//! Who appends a batch that came from a peer checks that checksum first.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32fast::Hasher;
use uuid::Uuid;

use super::GroupMessage;
use crate::replication::hibernation::Mark;
use crate::replication::wire::{self, WireError};
use crate::shard::view::PartitionKey;

/// The length in front of every frame.
pub const LENGTH_BYTES: usize = 4;

/// Checksum, type and the head's length.
const FIXED_BYTES: usize = 4 + 1 + 4;
const PREFIX_BYTES: usize = LENGTH_BYTES + FIXED_BYTES;

/// What a frame takes at most beside its payload or its messages.
pub const OVERHEAD_BYTES_MAX: usize = PREFIX_BYTES + 16;

/// What a message takes beside its own bytes: the group that it is for.
pub const GROUP_BYTES: usize = 16 + 4;

/// Messages in one frame. A message in memory is some ten times as large as the smallest on the
/// wire, so their number is bounded as well as their bytes.
pub const MESSAGES_MAX: usize = 64 * 1024;

const TYPE_RAFT: u8 = 1;
const TYPE_NOTICE: u8 = 2;
const TYPE_REQUEST: u8 = 3;
const TYPE_ANSWER: u8 = 4;
const TYPE_PING: u8 = 5;
const TYPE_PULSE: u8 = 6;

const OUTCOME_DONE: u8 = 0;
const OUTCOME_BUSY: u8 = 1;
const OUTCOME_FAILED: u8 = 2;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes is not between {FIXED_BYTES} and {limit}")]
    Length { length: u32, limit: usize },
    #[error("a frame ends inside its {0}")]
    Short(&'static str),
    #[error("a frame's checksum does not fit its bytes")]
    Checksum,
    #[error("frames of type {0} are not known")]
    UnknownType(u8),
    #[error("outcome {0} of a request is not known")]
    UnknownOutcome(u8),
    #[error("{0} bytes follow the last part of a frame")]
    Trailing(usize),
    #[error(transparent)]
    Message(#[from] WireError),
}

/// What one frame says.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    Raft(Vec<GroupMessage>),
    Notice(Bytes),
    Request {
        correlation_id: u64,
        payload: Bytes,
    },
    Answer {
        correlation_id: u64,
        answer: Answer,
    },
    Ping,
    /// A shard lives.
    Pulse(Mark),
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done(Bytes),
    /// Too many requests were under way.
    Busy,
    /// Whoever worked on it gave up.
    Failed,
}

/// Checks a frame's length before anything is read or allocated for it.
pub fn checked_length(length: [u8; LENGTH_BYTES], bytes_max: usize) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(length);
    match usize::try_from(length) {
        Ok(bytes) if bytes >= FIXED_BYTES && bytes <= bytes_max => Ok(bytes),
        _ => Err(FrameError::Length {
            length,
            limit: bytes_max,
        }),
    }
}

impl Frame {
    /// The pieces to be written, one after the other. Record data and payloads are not copied.
    pub fn encode(&self) -> Result<Vec<Bytes>, FrameError> {
        match self {
            Frame::Raft(messages) => encode_raft(messages),
            Frame::Notice(payload) => seal(TYPE_NOTICE, start(), payload, Vec::new()),
            Frame::Request {
                correlation_id,
                payload,
            } => {
                let mut head = start();
                head.put_u64(*correlation_id);
                seal(TYPE_REQUEST, head, payload, Vec::new())
            }
            Frame::Answer {
                correlation_id,
                answer,
            } => {
                let mut head = start();
                head.put_u64(*correlation_id);
                let (outcome, payload) = match answer {
                    Answer::Done(payload) => (OUTCOME_DONE, payload.clone()),
                    Answer::Busy => (OUTCOME_BUSY, Bytes::new()),
                    Answer::Failed => (OUTCOME_FAILED, Bytes::new()),
                };
                head.put_u8(outcome);
                seal(TYPE_ANSWER, head, &payload, Vec::new())
            }
            Frame::Ping => seal(TYPE_PING, start(), &Bytes::new(), Vec::new()),
            Frame::Pulse(mark) => seal(TYPE_PULSE, start(), &mark.encode(), Vec::new()),
        }
    }

    /// Reads a frame without its length. Record data and payloads are slices of it.
    pub fn decode(mut frame: Bytes) -> Result<Frame, FrameError> {
        let short = |_| FrameError::Short("fixed fields");
        let length = u32::try_from(frame.len()).map_err(|_| FrameError::Short("length"))?;
        let crc = frame.try_get_u32().map_err(short)?;
        let checked = frame.clone();
        let kind = frame.try_get_u8().map_err(short)?;
        let head_bytes = frame.try_get_u32().map_err(short)? as usize;
        if head_bytes > frame.len() {
            return Err(FrameError::Short("head"));
        }
        let mut hasher = Hasher::new();
        hasher.update(&length.to_be_bytes());
        hasher.update(&checked.slice(..FIXED_BYTES - 4 + head_bytes));
        if hasher.finalize() != crc {
            return Err(FrameError::Checksum);
        }
        let mut head = frame.split_to(head_bytes);
        let mut data = frame;
        let correlation = |head: &mut Bytes| {
            head.try_get_u64()
                .map_err(|_| FrameError::Short("correlation id"))
        };
        let whole = |head: &mut Bytes| head.split_to(head.len());
        let decoded = match kind {
            TYPE_RAFT => Frame::Raft(decode_raft(&mut head, &mut data)?),
            TYPE_NOTICE => Frame::Notice(whole(&mut head)),
            TYPE_REQUEST => Frame::Request {
                correlation_id: correlation(&mut head)?,
                payload: whole(&mut head),
            },
            TYPE_ANSWER => Frame::Answer {
                correlation_id: correlation(&mut head)?,
                answer: decode_answer(&mut head)?,
            },
            TYPE_PING => Frame::Ping,
            TYPE_PULSE => {
                let mark = Mark::decode(&whole(&mut head));
                Frame::Pulse(mark.ok_or(FrameError::Short("pulse"))?)
            }
            other => return Err(FrameError::UnknownType(other)),
        };
        match head.len() + data.len() {
            0 => Ok(decoded),
            trailing => Err(FrameError::Trailing(trailing)),
        }
    }
}

fn encode_raft(messages: &[GroupMessage]) -> Result<Vec<Bytes>, FrameError> {
    let mut encoded = wire::Encoded {
        head: start(),
        data: Vec::new(),
    };
    encoded.head.put_u32(u32_length(messages.len())?);
    for GroupMessage { group, message } in messages {
        encoded.head.put_slice(group.topic_id.as_bytes());
        encoded.head.put_i32(group.index);
        wire::encode_parts(message, &mut encoded)?;
    }
    seal(TYPE_RAFT, encoded.head, &Bytes::new(), encoded.data)
}

fn decode_raft(head: &mut Bytes, data: &mut Bytes) -> Result<Vec<GroupMessage>, FrameError> {
    let count = head.try_get_u32().map_err(|_| FrameError::Short("count"))? as usize;
    if count > MESSAGES_MAX || count > head.len() / (GROUP_BYTES + wire::MESSAGE_BYTES_MIN) {
        return Err(FrameError::Short("messages"));
    }
    let mut messages = Vec::with_capacity(count);
    for _ in 0..count {
        let short = |_| FrameError::Short("group");
        let topic_id = Uuid::from_u128(head.try_get_u128().map_err(short)?);
        let index = head.try_get_i32().map_err(short)?;
        messages.push(GroupMessage {
            group: PartitionKey { topic_id, index },
            message: wire::decode_parts(head, data)?,
        });
    }
    Ok(messages)
}

fn decode_answer(head: &mut Bytes) -> Result<Answer, FrameError> {
    let outcome = head
        .try_get_u8()
        .map_err(|_| FrameError::Short("outcome"))?;
    match outcome {
        OUTCOME_DONE => Ok(Answer::Done(head.split_to(head.len()))),
        OUTCOME_BUSY => Ok(Answer::Busy),
        OUTCOME_FAILED => Ok(Answer::Failed),
        other => Err(FrameError::UnknownOutcome(other)),
    }
}

/// Room for the prefix, which is known last.
fn start() -> BytesMut {
    BytesMut::zeroed(PREFIX_BYTES)
}

/// Fills the prefix in. The head is what `head` holds behind it, and then `tail`.
fn seal(
    kind: u8,
    mut head: BytesMut,
    tail: &Bytes,
    mut data: Vec<Bytes>,
) -> Result<Vec<Bytes>, FrameError> {
    let head_bytes = head.len() - PREFIX_BYTES + tail.len();
    let data_bytes: usize = data.iter().map(Bytes::len).sum();
    let length = u32_length(FIXED_BYTES + head_bytes + data_bytes)?.to_be_bytes();
    head[8] = kind;
    head[9..13].copy_from_slice(&u32_length(head_bytes)?.to_be_bytes());
    let mut hasher = Hasher::new();
    hasher.update(&length);
    hasher.update(&head[8..]);
    hasher.update(tail);
    head[..4].copy_from_slice(&length);
    head[4..8].copy_from_slice(&hasher.finalize().to_be_bytes());
    let mut pieces = Vec::with_capacity(2 + data.len());
    pieces.push(head.freeze());
    if !tail.is_empty() {
        pieces.push(tail.clone());
    }
    pieces.append(&mut data);
    Ok(pieces)
}

fn u32_length(bytes: usize) -> Result<u32, FrameError> {
    u32::try_from(bytes).map_err(|_| FrameError::Length {
        length: u32::MAX,
        limit: u32::MAX as usize,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::{Entry, Message, MessageType};

    use super::*;

    const RECORDS: [u8; 300] = [8; 300];

    fn append(index: i32, data: &'static [u8]) -> GroupMessage {
        let entry = Entry {
            index: 7,
            context: Bytes::from_static(&[1; 21]),
            data: Bytes::from_static(data),
            ..Entry::default()
        };
        GroupMessage {
            group: PartitionKey {
                topic_id: Uuid::from_u128(9),
                index,
            },
            message: Message {
                msg_type: MessageType::MsgAppend,
                entries: vec![entry].into(),
                ..Message::default()
            },
        }
    }

    fn frames() -> Vec<Frame> {
        let done = Answer::Done(Bytes::from_static(b"yes"));
        let answer = |answer| Frame::Answer {
            correlation_id: 4,
            answer,
        };
        vec![
            Frame::Raft(vec![append(0, &RECORDS), append(1, b"few")]),
            Frame::Raft(Vec::new()),
            Frame::Notice(Bytes::from_static(b"news")),
            Frame::Request {
                correlation_id: u64::MAX,
                payload: Bytes::from_static(b"?"),
            },
            answer(done),
            answer(Answer::Busy),
            answer(Answer::Failed),
            Frame::Ping,
            Frame::Pulse(Mark {
                shard: 3,
                epoch: u64::MAX,
            }),
        ]
    }

    fn bytes_of(frame: &Frame) -> Bytes {
        frame.encode().unwrap().concat().into()
    }

    #[test]
    fn frames_read_back() {
        for frame in frames() {
            let mut bytes = bytes_of(&frame);
            let length = bytes.split_to(LENGTH_BYTES);
            let length = checked_length(length[..].try_into().unwrap(), 1000).unwrap();
            assert_eq!(length, bytes.len());
            assert_eq!(Frame::decode(bytes), Ok(frame));
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused() {
        assert!(checked_length([0, 0, 0, 8], 100).is_err());
        assert!(checked_length([0xff; 4], 100).is_err());
        assert!(checked_length([0, 0, 0, 101], 100).is_err());
        assert_eq!(checked_length([0, 0, 0, 100], 100), Ok(100));
    }

    #[test]
    fn every_cut_of_a_frame_is_an_error() {
        for frame in frames() {
            let bytes = bytes_of(&frame).slice(LENGTH_BYTES..);
            for length in 0..bytes.len() {
                assert!(Frame::decode(bytes.slice(..length)).is_err());
            }
        }
    }

    #[test]
    fn record_data_is_the_only_thing_that_the_checksum_leaves_out() {
        let frame = Frame::Raft(vec![append(0, &RECORDS)]);
        let bytes = bytes_of(&frame).slice(LENGTH_BYTES..);
        for place in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[place] ^= 0x10;
            let is_record_data = place >= bytes.len() - RECORDS.len();
            assert_eq!(Frame::decode(changed.into()).is_ok(), is_record_data);
        }
    }

    #[test]
    fn more_messages_than_bytes_are_refused() {
        let mut head = start();
        head.put_u32(u32::MAX);
        let bytes = seal(TYPE_RAFT, head, &Bytes::new(), Vec::new()).unwrap();
        let frame = Bytes::from(bytes.concat()).slice(LENGTH_BYTES..);
        assert_eq!(Frame::decode(frame), Err(FrameError::Short("messages")));
    }

    proptest! {
        #[test]
        fn no_head_is_a_reason_to_panic(
            kind in 0u8..7,
            tail in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let bytes = seal(kind, start(), &tail.into(), Vec::new()).unwrap();
            drop(Frame::decode(Bytes::from(bytes.concat()).slice(LENGTH_BYTES..)));
        }
    }
}
