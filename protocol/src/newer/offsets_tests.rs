use super::*;
use crate::frame::{FrameError, decode_request};
use crate::versions::lookup;
use bytes::Bytes;
use kafka_protocol::protocol::{Encodable, StrBytes};
use proptest::prelude::*;
use uuid::Uuid;

/// Written by Apache Kafka's OffsetCommitRequestData, version 10: two topics, the second without partitions.
const COMMIT: &[u8] = b"\x02g\x00\x00\x00\x07\x02m\x02i\x03\
    \x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x03\
    \x00\x00\x00\x03\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x05\x05note\x00\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x09\xff\xff\xff\xff\x00\x00\x00\
    \x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x20\x01\x00\x00";

/// Written by Apache Kafka's OffsetFetchRequestData, version 10: partitions of one topic for `g`, everything for `all`.
const FETCH: &[u8] = b"\x03\x02g\x02m\x00\x00\x00\x07\x02\
    \x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x03\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\
    \x04all\x00\xff\xff\xff\xff\x00\x00\x01\x00";

fn first_topic() -> Uuid {
    Uuid::from_u128(0x0102030405060708090a0b0c0d0e0f10)
}

fn second_topic() -> Uuid {
    Uuid::from_u128(0x1112131415161718191a1b1c1d1e1f20)
}

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn commit() -> OffsetCommitRequest {
    let noted = OffsetCommitRequestPartition::default()
        .with_partition_index(3)
        .with_committed_offset(1 << 33)
        .with_committed_leader_epoch(5)
        .with_committed_metadata(Some(text("note")));
    let plain = OffsetCommitRequestPartition::default()
        .with_partition_index(4)
        .with_committed_offset(9)
        .with_committed_metadata(None);
    let topics = vec![
        OffsetCommitRequestTopic::default()
            .with_topic_id(first_topic())
            .with_partitions(vec![noted, plain]),
        OffsetCommitRequestTopic::default().with_topic_id(second_topic()),
    ];
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(7)
        .with_member_id(text("m"))
        .with_group_instance_id(Some(text("i")))
        .with_topics(topics)
}

fn fetch() -> OffsetFetchRequest {
    let topic = OffsetFetchRequestTopics::default()
        .with_topic_id(first_topic())
        .with_partition_indexes(vec![0, 3]);
    let groups = vec![
        OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text("g")))
            .with_member_id(Some(text("m")))
            .with_member_epoch(7)
            .with_topics(Some(vec![topic])),
        OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text("all")))
            .with_topics(None),
    ];
    OffsetFetchRequest::default()
        .with_groups(groups)
        .with_require_stable(true)
}

fn decode<M>(api_key: i16, version: i16, body: &[u8]) -> Result<M, FrameError>
where
    Newer<M>: Decodable,
{
    let api = lookup(api_key).unwrap();
    decode_request(api, version, Bytes::copy_from_slice(body)).map(|Newer(message)| message)
}

#[test]
fn what_kafka_writes_in_version_10_is_read() {
    assert_eq!(
        decode::<OffsetCommitRequest>(8, 10, COMMIT).unwrap(),
        commit()
    );
    assert_eq!(decode::<OffsetFetchRequest>(9, 10, FETCH).unwrap(), fetch());
}

#[test]
fn older_versions_are_the_message_crates() {
    for version in 2..10 {
        let mut written = Vec::new();
        let request = OffsetCommitRequest::default().with_group_id(GroupId(text("g")));
        request.encode(&mut written, version).unwrap();
        assert_eq!(
            decode::<OffsetCommitRequest>(8, version, &written).unwrap(),
            request
        );
    }
    assert!(Newer::<OffsetCommitRequest>::decode(&mut Bytes::from_static(COMMIT), 11).is_err());
    assert!(Newer::<OffsetFetchRequest>::decode(&mut Bytes::from_static(FETCH), 11).is_err());
}

#[test]
fn every_cut_is_an_error_and_no_panic_also_without_the_guard() {
    for length in 0..COMMIT.len() {
        let cut = &COMMIT[..length];
        assert!(decode::<OffsetCommitRequest>(8, 10, cut).is_err());
        assert!(Newer::<OffsetCommitRequest>::decode(&mut &*cut, 10).is_err());
    }
    for length in 0..FETCH.len() {
        let cut = &FETCH[..length];
        assert!(decode::<OffsetFetchRequest>(9, 10, cut).is_err());
        assert!(Newer::<OffsetFetchRequest>::decode(&mut &*cut, 10).is_err());
    }
}

#[test]
fn a_count_that_the_bytes_cannot_hold_is_refused_by_the_guard() {
    let mut topics = COMMIT.to_vec();
    topics.splice(10..11, [0xff, 0xff, 0xff, 0xff, 0x0f]);
    let mut indexes = FETCH.to_vec();
    indexes.splice(26..27, [0xff, 0xff, 0xff, 0xff, 0x0f]);
    let refused = [
        decode::<OffsetCommitRequest>(8, 10, &topics).unwrap_err(),
        decode::<OffsetFetchRequest>(9, 10, &indexes).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, FrameError::HeaderTags(_)), "{error}");
    }
    assert!(Newer::<OffsetCommitRequest>::decode(&mut &topics[..], 10).is_err());
    assert!(Newer::<OffsetFetchRequest>::decode(&mut &indexes[..], 10).is_err());
}

#[test]
fn a_null_array_is_refused_where_kafka_has_none() {
    let mut null_topics = COMMIT[..10].to_vec();
    null_topics.extend([0, 0]);
    assert!(decode::<OffsetCommitRequest>(8, 10, &null_topics).is_err());
    assert!(decode::<OffsetFetchRequest>(9, 10, &[0, 1, 0]).is_err());
}

#[test]
fn tags_from_the_future_are_passed_over() {
    let mut tagged = COMMIT[..COMMIT.len() - 1].to_vec();
    tagged.extend([1, 100, 2, 9, 9]);
    assert_eq!(
        decode::<OffsetCommitRequest>(8, 10, &tagged).unwrap(),
        commit()
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Newer::<OffsetCommitRequest>::decode(&mut &bytes[..], 10);
        let _ = Newer::<OffsetFetchRequest>::decode(&mut &bytes[..], 10);
    }
}
