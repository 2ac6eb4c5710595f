//! The records of `__consumer_offsets`, in Apache Kafka's formats, so that Kafka's own tools read the topic.
//!
//! ```text
//! key    int16 type | fields
//!          0, 1  offset commit:   string group, string topic, int32 partition
//!          2     group metadata:  string group
//! value  int16 version | fields         (no value: a tombstone)
//!          offset commit   v3  int64 offset, int32 leader epoch, string metadata, int64 commit timestamp
//!                          v1  the same without leader epoch, with int64 expire timestamp at the end
//!                          v4  v3 with compact strings and a tagged topic id
//!          group metadata  v3  string protocol type, int32 generation, string? protocol, string? leader,
//!                              int64 state timestamp, members
//! ```
//!
//! All versions are read. Written are those that Kafka 4.1 writes (`GroupCoordinatorRecordHelpers`): offset commits
//! at 4, or at 1 when the client asked for a retention of its own; group metadata at 3.

use crate::coordinator::machine::{LogRecord, RecordError};
use crate::coordinator::wire::{Reader, WireError, Writer};
use bytes::Bytes;
use uuid::Uuid;

const OFFSET_COMMIT_LEGACY: i16 = 0;
const OFFSET_COMMIT: i16 = 1;
const GROUP_METADATA: i16 = 2;
const FIRST_FLEXIBLE_VERSION: i16 = 4;
const NEWEST_VERSION: i16 = 4;

/// One record of the log that a coordinator writes and replays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorRecord {
    /// A committed offset, or its removal.
    OffsetCommit {
        key: OffsetCommitKey,
        value: Option<OffsetCommitValue>,
    },
    /// A group's generation and members, or the group's removal.
    GroupMetadata {
        group_id: String,
        value: Option<GroupMetadataValue>,
    },
}

/// Whose offset of which partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetCommitKey {
    pub group_id: String,
    pub topic: String,
    pub partition: i32,
}

/// A committed offset as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommitValue {
    pub offset: i64,
    /// -1 when the client did not say.
    pub leader_epoch: i32,
    pub metadata: String,
    pub commit_timestamp_ms: i64,
    /// Set only by clients that choose their own retention (OffsetCommit 2-4).
    pub expire_timestamp_ms: Option<i64>,
    /// Nil when not known.
    pub topic_id: Uuid,
}

impl OffsetCommitValue {
    /// Whether this may be an offset of the topic with this id: it is not if both ids are known and differ.
    pub fn may_be_of(&self, topic_id: Uuid) -> bool {
        self.topic_id.is_nil() || topic_id.is_nil() || self.topic_id == topic_id
    }
}

/// A classic group as it is stored after each rebalance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadataValue {
    pub protocol_type: String,
    pub generation: i32,
    pub protocol: Option<String>,
    pub leader: Option<String>,
    /// When the group last changed its state; -1 in records of version 0 and 1.
    pub current_state_timestamp_ms: i64,
    pub members: Vec<MemberMetadata>,
}

/// A member within [`GroupMetadataValue`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberMetadata {
    pub member_id: String,
    pub group_instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub rebalance_timeout_ms: i32,
    pub session_timeout_ms: i32,
    pub subscription: Bytes,
    pub assignment: Bytes,
}

impl LogRecord for CoordinatorRecord {
    fn encode_key(&self) -> Bytes {
        let mut writer = Writer::default();
        match self {
            Self::OffsetCommit { key, .. } => {
                writer.int16(OFFSET_COMMIT);
                writer.string(&key.group_id);
                writer.string(&key.topic);
                writer.int32(key.partition);
            }
            Self::GroupMetadata { group_id, .. } => {
                writer.int16(GROUP_METADATA);
                writer.string(group_id);
            }
        }
        writer.finish()
    }

    fn encode_value(&self) -> Option<Bytes> {
        match self {
            Self::OffsetCommit { value, .. } => value.as_ref().map(encode_offset_commit),
            Self::GroupMetadata { value, .. } => value.as_ref().map(encode_group_metadata),
        }
    }

    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<Self>, RecordError> {
        let mut reader = Reader::new(key);
        let kind = reader.int16().map_err(|source| RecordError::Malformed {
            what: "coordinator key",
            source,
        })?;
        match kind {
            OFFSET_COMMIT_LEGACY | OFFSET_COMMIT => {
                let what = "offset commit";
                let key = decode_offset_commit_key(&mut reader).map_err(malformed(what))?;
                let value = value
                    .map(|bytes| decode_offset_commit(bytes, what))
                    .transpose()?;
                Ok(Some(Self::OffsetCommit { key, value }))
            }
            GROUP_METADATA => {
                let what = "group metadata";
                let group_id = reader.string().map_err(malformed(what))?;
                let value = value
                    .map(|bytes| decode_group_metadata(bytes, what))
                    .transpose()?;
                Ok(Some(Self::GroupMetadata { group_id, value }))
            }
            _ => Ok(None),
        }
    }
}

fn malformed(what: &'static str) -> impl Fn(WireError) -> RecordError {
    move |source| RecordError::Malformed { what, source }
}

fn decode_offset_commit_key(reader: &mut Reader<'_>) -> Result<OffsetCommitKey, WireError> {
    Ok(OffsetCommitKey {
        group_id: reader.string()?,
        topic: reader.string()?,
        partition: reader.int32()?,
    })
}

fn encode_offset_commit(value: &OffsetCommitValue) -> Bytes {
    let mut writer = Writer::default();
    if let Some(expire_timestamp_ms) = value.expire_timestamp_ms {
        writer.int16(1);
        writer.int64(value.offset);
        writer.string(&value.metadata);
        writer.int64(value.commit_timestamp_ms);
        writer.int64(expire_timestamp_ms);
        return writer.finish();
    }
    writer.int16(4);
    writer.int64(value.offset);
    writer.int32(value.leader_epoch);
    writer.compact_string(&value.metadata);
    writer.int64(value.commit_timestamp_ms);
    if value.topic_id.is_nil() {
        writer.unsigned_varint(0);
    } else {
        writer.unsigned_varint(1);
        writer.unsigned_varint(0);
        writer.unsigned_varint(16);
        writer.raw(value.topic_id.as_bytes());
    }
    writer.finish()
}

fn decode_offset_commit(
    bytes: &[u8],
    what: &'static str,
) -> Result<OffsetCommitValue, RecordError> {
    let mut reader = Reader::new(bytes);
    let version = read_version(&mut reader, what)?;
    let read = || -> Result<OffsetCommitValue, WireError> {
        let offset = reader.int64()?;
        let leader_epoch = if version >= 3 { reader.int32()? } else { -1 };
        let metadata = if version >= FIRST_FLEXIBLE_VERSION {
            reader.compact_string()?
        } else {
            reader.string()?
        };
        let commit_timestamp_ms = reader.int64()?;
        let expire_timestamp_ms = if version == 1 {
            Some(reader.int64()?).filter(|at| *at >= 0)
        } else {
            None
        };
        let mut topic_id = Uuid::nil();
        if version >= FIRST_FLEXIBLE_VERSION {
            reader.tagged_fields(|tag, field| {
                if tag == 0 {
                    topic_id = Uuid::from_slice(field).map_err(|_| WireError::Length)?;
                }
                Ok(())
            })?;
        }
        Ok(OffsetCommitValue {
            offset,
            leader_epoch,
            metadata,
            commit_timestamp_ms,
            expire_timestamp_ms,
            topic_id,
        })
    };
    run(read, what)
}

fn run<T>(
    read: impl FnOnce() -> Result<T, WireError>,
    what: &'static str,
) -> Result<T, RecordError> {
    read().map_err(malformed(what))
}

fn encode_group_metadata(value: &GroupMetadataValue) -> Bytes {
    let mut writer = Writer::default();
    writer.int16(3);
    writer.string(&value.protocol_type);
    writer.int32(value.generation);
    writer.nullable_string(value.protocol.as_deref());
    writer.nullable_string(value.leader.as_deref());
    writer.int64(value.current_state_timestamp_ms);
    writer.int32(i32::try_from(value.members.len()).unwrap_or(i32::MAX));
    for member in &value.members {
        writer.string(&member.member_id);
        writer.nullable_string(member.group_instance_id.as_deref());
        writer.string(&member.client_id);
        writer.string(&member.client_host);
        writer.int32(member.rebalance_timeout_ms);
        writer.int32(member.session_timeout_ms);
        writer.bytes(&member.subscription);
        writer.bytes(&member.assignment);
    }
    writer.finish()
}

fn decode_group_metadata(
    bytes: &[u8],
    what: &'static str,
) -> Result<GroupMetadataValue, RecordError> {
    let mut reader = Reader::new(bytes);
    let version = read_version(&mut reader, what)?;
    run(|| read_group_metadata(&mut reader, version), what)
}

fn read_group_metadata(
    reader: &mut Reader<'_>,
    version: i16,
) -> Result<GroupMetadataValue, WireError> {
    let flexible = version >= FIRST_FLEXIBLE_VERSION;
    let protocol_type = if flexible {
        reader.compact_string()?
    } else {
        reader.string()?
    };
    let generation = reader.int32()?;
    let protocol = reader.nullable_string_of(flexible)?;
    let leader = reader.nullable_string_of(flexible)?;
    let current_state_timestamp_ms = if version >= 2 { reader.int64()? } else { -1 };
    let count = if flexible {
        reader.compact_count()?
    } else {
        reader.count()?
    };
    let mut members = Vec::new();
    for _ in 0..count {
        let member_id = reader.string_of(flexible)?;
        let group_instance_id = if version >= 3 {
            reader.nullable_string_of(flexible)?
        } else {
            None
        };
        let client_id = reader.string_of(flexible)?;
        let client_host = reader.string_of(flexible)?;
        let rebalance_timeout = if version >= 1 {
            Some(reader.int32()?)
        } else {
            None
        };
        let session_timeout_ms = reader.int32()?;
        let subscription = reader.bytes_of(flexible)?;
        let assignment = reader.bytes_of(flexible)?;
        if flexible {
            reader.tagged_fields(|_, _| Ok(()))?;
        }
        // A missing timeout is the session's, as Kafka's loader has it.
        let rebalance_timeout_ms = rebalance_timeout
            .filter(|t| *t >= 0)
            .unwrap_or(session_timeout_ms);
        members.push(MemberMetadata {
            member_id,
            group_instance_id,
            client_id,
            client_host,
            rebalance_timeout_ms,
            session_timeout_ms,
            subscription,
            assignment,
        });
    }
    if flexible {
        reader.tagged_fields(|_, _| Ok(()))?;
    }
    Ok(GroupMetadataValue {
        protocol_type,
        generation,
        protocol,
        leader,
        current_state_timestamp_ms,
        members,
    })
}

fn read_version(reader: &mut Reader<'_>, what: &'static str) -> Result<i16, RecordError> {
    let version = reader.int16().map_err(malformed(what))?;
    if (0..=NEWEST_VERSION).contains(&version) {
        Ok(version)
    } else {
        Err(RecordError::Version {
            what,
            version,
            newest: NEWEST_VERSION,
        })
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
