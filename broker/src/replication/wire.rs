//! Raft messages between brokers, as bytes.
//!
//! The codec is our own: crate `raft` brings protobuf 2, whose parser has an open advisory and must
//! not see what comes from the network. A message has two parts, so that record data is neither
//! copied nor read here:
//!
//! ```text
//! head      version u8 │ type u8 │ flags u8 │ to │ from │ term │ log term │ index │ commit │ commit term │ request snapshot │
//!           reject hint │ deprecated priority │ priority │ context │ entries: count, entry … │ snapshot, if flagged
//! entry     kind u8 │ term u64 │ index u64 │ context length u32 │ data length u32 │ context │ data, unless it is record data
//! snapshot  flags u8 │ [index │ term, if it has metadata] │ [voters │ learners │ outgoing voters │ next learners, if it has
//!           a conf state: count, id …] │ data
//! data      the record data of all entries, one after the other
//! flags     of a message: 1 reject, 2 snapshot; of a snapshot: 1 metadata, 2 conf state, 4 auto leave
//! kind      0 record data, 1 conf change, 2 conf change v2; 0x80 is added for `sync_log`
//! ```
//!
//! Numbers without a width are varints (seven bits a byte, the lowest first, in the shortest form;
//! `priority` is zigzag-coded), since heartbeats of thousands of groups are mostly small numbers;
//! numbers with a width are big-endian. `context`, a snapshot's data and lists begin with their
//! length. Entries have fixed widths: beside record data a few bytes do not matter, and an entry of
//! few bytes would make a reader allocate many.
//!
//! Record data is the data of an ordinary entry whose context is the prefix of a batch, if it is
//! longer than 256 bytes (a slice of its own would cost more than to copy less). It carries the CRC-32C of
//! its batch, which whoever appends it has to check; all else, also what groups log beside records,
//! lies in the head, over which the transport lays a checksum.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft::eraftpb::{
    ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};
use streamgauge_protocol::batch::BATCH_PREFIX_BYTES;

#[cfg(test)]
mod tests;

const VERSION: u8 = 1;

const FLAG_REJECT: u8 = 1;
const FLAG_SNAPSHOT: u8 = 2;

const SNAPSHOT_METADATA: u8 = 1;
const SNAPSHOT_CONF_STATE: u8 = 2;
const SNAPSHOT_AUTO_LEAVE: u8 = 4;

const ENTRY_SYNC_LOG: u8 = 0x80;
const ENTRY_FIXED_BYTES: usize = 1 + 8 + 8 + 4 + 4;

/// Three fixed bytes and thirteen numbers of at least one: eleven fields, the context's length, the entries' count.
const HEAD_BYTES_MIN: usize = 3 + 13;
/// What the fixed fields of a head take at most.
const HEAD_BYTES_MAX: usize = 3 + 13 * VARINT_BYTES_MAX;
const VARINT_BYTES_MAX: usize = 10;

/// Membership changes are the one thing that crate `raft` still parses with protobuf; real ones
/// have some dozens of bytes.
pub const CONF_CHANGE_BYTES_MAX: usize = 4 * 1024;

/// Data up to this length is copied into the head.
const COPIED_BYTES_MAX: usize = 256;

/// A message takes at least so many bytes.
pub const MESSAGE_BYTES_MIN: usize = HEAD_BYTES_MIN;

/// Why bytes are not a message, or a message must not become bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a raft message ends inside its {0}")]
    Short(&'static str),
    #[error("{0} bytes follow a raft message")]
    Trailing(usize),
    #[error("raft messages of version {0} are not known")]
    Version(u8),
    #[error("raft message type {0} is not known")]
    UnknownType(u8),
    #[error("{0:?} does not travel between brokers")]
    Local(MessageType),
    #[error("raft entry kind {0} is not known")]
    UnknownEntry(u8),
    #[error("flags {0:#04x} are not known")]
    Flags(u8),
    #[error("{0} is not a number in its shortest form")]
    Number(&'static str),
    #[error("a membership change of {0} bytes is too large")]
    ConfChange(usize),
    #[error("{what} of {bytes} bytes is too large")]
    TooLarge { what: &'static str, bytes: usize },
}

/// Whether a message may be sent: [`decode`] refuses the same.
///
/// Proposals stay where they are made. A follower of crate `raft` forwards them to its leader, where
/// the offsets stamped into them could be anybody's.
pub fn check(message: &Message) -> Result<(), WireError> {
    check_travels(message.msg_type)?;
    for entry in message.entries.iter() {
        check_entry(entry.entry_type, entry.data.len())?;
        length_u32("an entry's context", entry.context.len())?;
        length_u32("an entry's data", entry.data.len())?;
    }
    Ok(())
}

fn check_travels(message_type: MessageType) -> Result<(), WireError> {
    match message_type {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => Err(WireError::Local(message_type)),
        MessageType::MsgAppend
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgSnapshot
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTransferLeader
        | MessageType::MsgTimeoutNow
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => Ok(()),
    }
}

fn check_entry(entry_type: EntryType, data_bytes: usize) -> Result<(), WireError> {
    match entry_type {
        EntryType::EntryNormal => Ok(()),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            match data_bytes <= CONF_CHANGE_BYTES_MAX {
                true => Ok(()),
                false => Err(WireError::ConfChange(data_bytes)),
            }
        }
    }
}

/// Whether an entry's data lies apart from the head.
fn is_record_data(entry_type: EntryType, context_bytes: usize, data_bytes: usize) -> bool {
    entry_type == EntryType::EntryNormal
        && context_bytes == BATCH_PREFIX_BYTES
        && data_bytes > COPIED_BYTES_MAX
}

fn length_u32(what: &'static str, bytes: usize) -> Result<u32, WireError> {
    u32::try_from(bytes).map_err(|_| WireError::TooLarge { what, bytes })
}

/// No less than the bytes that a message takes, head and data; queues are counted with it.
pub fn bytes_at_most(message: &Message) -> usize {
    let entries = message.entries.iter();
    let mut bytes = HEAD_BYTES_MAX + message.context.len();
    bytes += entries
        .map(|entry| ENTRY_FIXED_BYTES + entry.context.len() + entry.data.len())
        .sum::<usize>();
    if let Some(snapshot) = message.snapshot.as_ref() {
        let conf_state = snapshot.get_metadata().get_conf_state();
        let ids = conf_state.voters.len()
            + conf_state.learners.len()
            + conf_state.voters_outgoing.len()
            + conf_state.learners_next.len();
        bytes += 1 + VARINT_BYTES_MAX * (7 + ids) + snapshot.data.len();
    }
    bytes
}

/// The two parts of one or several messages.
#[derive(Debug, Default)]
pub struct Encoded {
    pub head: BytesMut,
    /// Slices of the entries' own data.
    pub data: Vec<Bytes>,
}

/// One message as the pieces to be written: its head's length, its head, its record data.
pub fn encode(message: &Message) -> Result<Vec<Bytes>, WireError> {
    let mut encoded = Encoded::default();
    encoded.head.put_u32(0);
    encode_parts(message, &mut encoded)?;
    let head_bytes = length_u32("a head", encoded.head.len() - 4)?;
    encoded.head[..4].copy_from_slice(&head_bytes.to_be_bytes());
    let mut pieces = vec![encoded.head.freeze()];
    pieces.append(&mut encoded.data);
    Ok(pieces)
}

/// Reads what [`encode`] made; the record data are slices of `bytes`.
pub fn decode(mut bytes: Bytes) -> Result<Message, WireError> {
    let head_bytes = bytes
        .try_get_u32()
        .map_err(|_| WireError::Short("head's length"))?;
    let mut head = take(&mut bytes, u64::from(head_bytes), "head")?;
    let message = decode_parts(&mut head, &mut bytes)?;
    match head.len() + bytes.len() {
        0 => Ok(message),
        trailing => Err(WireError::Trailing(trailing)),
    }
}

/// Adds a message to those already there. After an error nothing has been added.
pub fn encode_parts(message: &Message, out: &mut Encoded) -> Result<(), WireError> {
    check(message)?;
    let Encoded { head, data } = out;
    let mut flags = 0;
    if message.reject {
        flags |= FLAG_REJECT;
    }
    if message.snapshot.is_some() {
        flags |= FLAG_SNAPSHOT;
    }
    head.put_u8(VERSION);
    head.put_u8(message.msg_type as u8);
    head.put_u8(flags);
    for number in [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        message.reject_hint,
        message.deprecated_priority,
        zigzag(message.priority),
    ] {
        put_varint(head, number);
    }
    put_sized(head, &message.context);
    put_varint(head, message.entries.len() as u64);
    for entry in message.entries.iter() {
        put_entry(head, data, entry);
    }
    if let Some(snapshot) = message.snapshot.as_ref() {
        put_snapshot(head, snapshot);
    }
    Ok(())
}

fn put_entry(head: &mut BytesMut, data: &mut Vec<Bytes>, entry: &Entry) {
    let mut kind = entry.entry_type as u8;
    if entry.sync_log {
        kind |= ENTRY_SYNC_LOG;
    }
    head.put_u8(kind);
    head.put_u64(entry.term);
    head.put_u64(entry.index);
    // Both lengths have been checked.
    head.put_u32(entry.context.len() as u32);
    head.put_u32(entry.data.len() as u32);
    head.put_slice(&entry.context);
    if is_record_data(entry.entry_type, entry.context.len(), entry.data.len()) {
        data.push(entry.data.clone());
    } else {
        head.put_slice(&entry.data);
    }
}

fn put_snapshot(head: &mut BytesMut, snapshot: &Snapshot) {
    let metadata = snapshot.metadata.as_ref();
    let conf_state = metadata.and_then(|metadata| metadata.conf_state.as_ref());
    let mut flags = 0;
    if metadata.is_some() {
        flags |= SNAPSHOT_METADATA;
    }
    if let Some(conf_state) = conf_state {
        flags |= SNAPSHOT_CONF_STATE;
        if conf_state.auto_leave {
            flags |= SNAPSHOT_AUTO_LEAVE;
        }
    }
    head.put_u8(flags);
    if let Some(metadata) = metadata {
        put_varint(head, metadata.index);
        put_varint(head, metadata.term);
    }
    if let Some(conf_state) = conf_state {
        for ids in [
            &conf_state.voters,
            &conf_state.learners,
            &conf_state.voters_outgoing,
            &conf_state.learners_next,
        ] {
            put_varint(head, ids.len() as u64);
            for id in ids {
                put_varint(head, *id);
            }
        }
    }
    put_sized(head, &snapshot.data);
}

/// Takes one message off the front of both parts. What its entries, context and snapshot hold are
/// slices of them.
pub fn decode_parts(head: &mut Bytes, data: &mut Bytes) -> Result<Message, WireError> {
    let version = get_u8(head, "version")?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let message_type = message_type(get_u8(head, "type")?)?;
    let flags = get_u8(head, "flags")?;
    if flags & !(FLAG_REJECT | FLAG_SNAPSHOT) != 0 {
        return Err(WireError::Flags(flags));
    }
    let mut message = Message {
        msg_type: message_type,
        reject: flags & FLAG_REJECT != 0,
        to: get_varint(head, "receiver")?,
        from: get_varint(head, "sender")?,
        term: get_varint(head, "term")?,
        log_term: get_varint(head, "log term")?,
        index: get_varint(head, "index")?,
        commit: get_varint(head, "commit index")?,
        commit_term: get_varint(head, "commit term")?,
        request_snapshot: get_varint(head, "requested snapshot")?,
        reject_hint: get_varint(head, "reject hint")?,
        deprecated_priority: get_varint(head, "deprecated priority")?,
        priority: unzigzag(get_varint(head, "priority")?),
        context: get_sized(head, "context")?,
        ..Message::default()
    };
    let count = get_count(head, ENTRY_FIXED_BYTES, "entries")?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(get_entry(head, data)?);
    }
    message.entries = entries.into();
    if flags & FLAG_SNAPSHOT != 0 {
        message.snapshot = Some(get_snapshot(head)?).into();
    }
    Ok(message)
}

fn message_type(byte: u8) -> Result<MessageType, WireError> {
    use protobuf::ProtobufEnum;
    let message_type =
        MessageType::from_i32(i32::from(byte)).ok_or(WireError::UnknownType(byte))?;
    check_travels(message_type)?;
    Ok(message_type)
}

fn get_entry(head: &mut Bytes, data: &mut Bytes) -> Result<Entry, WireError> {
    let kind = get_u8(head, "entry")?;
    let entry_type = match kind & !ENTRY_SYNC_LOG {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(WireError::UnknownEntry(kind)),
    };
    let short = |_| WireError::Short("entry");
    let term = head.try_get_u64().map_err(short)?;
    let index = head.try_get_u64().map_err(short)?;
    let context_bytes = head.try_get_u32().map_err(short)?;
    let data_bytes = head.try_get_u32().map_err(short)?;
    check_entry(entry_type, data_bytes as usize)?;
    let context = take(head, u64::from(context_bytes), "entry's context")?;
    let source = match is_record_data(entry_type, context.len(), data_bytes as usize) {
        true => data,
        false => head,
    };
    Ok(Entry {
        entry_type,
        term,
        index,
        context,
        data: take(source, u64::from(data_bytes), "entry's data")?,
        sync_log: kind & ENTRY_SYNC_LOG != 0,
        ..Entry::default()
    })
}

fn get_snapshot(head: &mut Bytes) -> Result<Snapshot, WireError> {
    let flags = get_u8(head, "snapshot")?;
    let has_metadata = flags & SNAPSHOT_METADATA != 0;
    let has_conf_state = flags & SNAPSHOT_CONF_STATE != 0;
    let auto_leave = flags & SNAPSHOT_AUTO_LEAVE != 0;
    let known = SNAPSHOT_METADATA | SNAPSHOT_CONF_STATE | SNAPSHOT_AUTO_LEAVE;
    // Each flag speaks of a part of what the one before it announces.
    if flags & !known != 0 || (has_conf_state && !has_metadata) || (auto_leave && !has_conf_state) {
        return Err(WireError::Flags(flags));
    }
    let mut snapshot = Snapshot::default();
    if has_metadata {
        let mut metadata = SnapshotMetadata {
            index: get_varint(head, "snapshot's index")?,
            term: get_varint(head, "snapshot's term")?,
            ..SnapshotMetadata::default()
        };
        if has_conf_state {
            metadata.conf_state = Some(ConfState {
                voters: get_ids(head)?,
                learners: get_ids(head)?,
                voters_outgoing: get_ids(head)?,
                learners_next: get_ids(head)?,
                auto_leave,
                ..ConfState::default()
            })
            .into();
        }
        snapshot.metadata = Some(metadata).into();
    }
    snapshot.data = get_sized(head, "snapshot's data")?;
    Ok(snapshot)
}

fn get_ids(head: &mut Bytes) -> Result<Vec<u64>, WireError> {
    let count = get_count(head, 1, "members")?;
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        ids.push(get_varint(head, "member")?);
    }
    Ok(ids)
}

fn get_u8(from: &mut Bytes, what: &'static str) -> Result<u8, WireError> {
    from.try_get_u8().map_err(|_| WireError::Short(what))
}

/// A count of things that take at least `bytes_min` each, of which there must be as many bytes.
fn get_count(from: &mut Bytes, bytes_min: usize, what: &'static str) -> Result<usize, WireError> {
    let count = get_varint(from, what)?;
    match usize::try_from(count) {
        Ok(count) if count <= from.len() / bytes_min => Ok(count),
        _ => Err(WireError::Short(what)),
    }
}

fn get_sized(from: &mut Bytes, what: &'static str) -> Result<Bytes, WireError> {
    let length = get_varint(from, what)?;
    take(from, length, what)
}

fn take(from: &mut Bytes, length: u64, what: &'static str) -> Result<Bytes, WireError> {
    match usize::try_from(length) {
        // An empty slice would still hold on to the whole frame.
        Ok(0) => Ok(Bytes::new()),
        Ok(length) if length <= from.len() => Ok(from.split_to(length)),
        _ => Err(WireError::Short(what)),
    }
}

fn put_sized(head: &mut BytesMut, bytes: &[u8]) {
    put_varint(head, bytes.len() as u64);
    head.put_slice(bytes);
}

fn put_varint(head: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        head.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    head.put_u8(number as u8);
}

fn get_varint(from: &mut Bytes, what: &'static str) -> Result<u64, WireError> {
    let mut number = 0;
    for position in 0..VARINT_BYTES_MAX {
        let byte = get_u8(from, what)?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for the highest bit alone.
        if position == VARINT_BYTES_MAX - 1 && bits > 1 {
            return Err(WireError::Number(what));
        }
        number |= bits << (7 * position);
        if byte & 0x80 == 0 {
            return match byte == 0 && position > 0 {
                true => Err(WireError::Number(what)),
                false => Ok(number),
            };
        }
    }
    Err(WireError::Number(what))
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}
