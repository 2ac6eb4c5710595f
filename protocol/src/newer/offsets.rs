//! OffsetCommit and OffsetFetch requests of version 10: topics are named by their ids alone (KIP-848). The responses of version 10 are
//! the message crate's.
//!
//! ```text
//! OffsetCommit: group id │ generation or member epoch i32 │ member id │ group instance id? │ topics │ tags
//!     topic:     topic id │ partitions │ tags
//!     partition: index i32 │ offset i64 │ leader epoch i32 │ metadata? │ tags
//! OffsetFetch:  groups │ require stable bool │ tags
//!     group:     group id │ member id? │ member epoch i32 │ topics? │ tags
//!     topic:     topic id │ partition indexes [i32] │ tags
//! ```

use anyhow::{Result, ensure};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{GroupId, OffsetCommitRequest, OffsetFetchRequest};
use kafka_protocol::protocol::Decodable;
use kafka_protocol::protocol::buf::ByteBuf;

use super::{Newer, array, nullable_array, nullable_string, skip_tags, string, uuid};

const TOPIC_ID_VERSION: i16 = 10;

impl Decodable for Newer<OffsetCommitRequest> {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        if version < TOPIC_ID_VERSION {
            return OffsetCommitRequest::decode(buf, version).map(Newer);
        }
        ensure!(version == TOPIC_ID_VERSION, "no OffsetCommit {version}");
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(string(buf)?))
            .with_generation_id_or_member_epoch(buf.try_get_i32()?)
            .with_member_id(string(buf)?)
            .with_group_instance_id(nullable_string(buf)?)
            .with_topics(array(buf, committed_topic)?);
        skip_tags(buf)?;
        Ok(Newer(request))
    }
}

fn committed_topic<B: ByteBuf>(buf: &mut B) -> Result<OffsetCommitRequestTopic> {
    let topic = OffsetCommitRequestTopic::default()
        .with_topic_id(uuid(buf)?)
        .with_partitions(array(buf, committed_partition)?);
    skip_tags(buf)?;
    Ok(topic)
}

fn committed_partition<B: ByteBuf>(buf: &mut B) -> Result<OffsetCommitRequestPartition> {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(buf.try_get_i32()?)
        .with_committed_offset(buf.try_get_i64()?)
        .with_committed_leader_epoch(buf.try_get_i32()?)
        .with_committed_metadata(nullable_string(buf)?);
    skip_tags(buf)?;
    Ok(partition)
}

impl Decodable for Newer<OffsetFetchRequest> {
    fn decode<B: ByteBuf>(buf: &mut B, version: i16) -> Result<Self> {
        if version < TOPIC_ID_VERSION {
            return OffsetFetchRequest::decode(buf, version).map(Newer);
        }
        ensure!(version == TOPIC_ID_VERSION, "no OffsetFetch {version}");
        let request = OffsetFetchRequest::default()
            .with_groups(array(buf, fetched_group)?)
            .with_require_stable(buf.try_get_u8()? != 0);
        skip_tags(buf)?;
        Ok(Newer(request))
    }
}

fn fetched_group<B: ByteBuf>(buf: &mut B) -> Result<OffsetFetchRequestGroup> {
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(string(buf)?))
        .with_member_id(nullable_string(buf)?)
        .with_member_epoch(buf.try_get_i32()?)
        .with_topics(nullable_array(buf, fetched_topic)?);
    skip_tags(buf)?;
    Ok(group)
}

fn fetched_topic<B: ByteBuf>(buf: &mut B) -> Result<OffsetFetchRequestTopics> {
    let topic = OffsetFetchRequestTopics::default()
        .with_topic_id(uuid(buf)?)
        .with_partition_indexes(array(buf, |buf| Ok(buf.try_get_i32()?))?);
    skip_tags(buf)?;
    Ok(topic)
}

#[cfg(test)]
#[path = "offsets_tests.rs"]
mod tests;
