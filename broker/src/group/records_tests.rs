use super::*;
use proptest::prelude::*;

fn member() -> impl Strategy<Value = MemberMetadata> {
    let text = "[a-zA-Zä0-9-]{0,12}";
    (
        text,
        proptest::option::of(text),
        text,
        text,
        any::<i32>(),
        any::<i32>(),
        any::<Vec<u8>>(),
        any::<Vec<u8>>(),
    )
        .prop_map(
            |(
                member_id,
                group_instance_id,
                client_id,
                client_host,
                rebalance,
                session,
                subscription,
                assignment,
            )| {
                MemberMetadata {
                    member_id,
                    group_instance_id,
                    client_id,
                    client_host,
                    rebalance_timeout_ms: rebalance.checked_abs().unwrap_or(0),
                    session_timeout_ms: session,
                    subscription: subscription.into(),
                    assignment: assignment.into(),
                }
            },
        )
}

fn record() -> impl Strategy<Value = CoordinatorRecord> {
    let text = "[a-zA-Zé0-9._-]{0,20}";
    let offset = (
        any::<i64>(),
        any::<i32>(),
        text,
        any::<i64>(),
        proptest::option::of(0..i64::MAX),
        any::<u128>(),
    )
        .prop_map(
            |(offset, leader_epoch, metadata, commit_timestamp_ms, expire_timestamp_ms, id)| {
                let old = expire_timestamp_ms.is_some();
                OffsetCommitValue {
                    offset,
                    leader_epoch: if old { -1 } else { leader_epoch },
                    metadata,
                    commit_timestamp_ms,
                    expire_timestamp_ms,
                    topic_id: if old || id % 2 == 0 {
                        Uuid::nil()
                    } else {
                        Uuid::from_u128(id)
                    },
                }
            },
        );
    let commit = (text, text, any::<i32>(), proptest::option::of(offset)).prop_map(
        |(group_id, topic, partition, value)| CoordinatorRecord::OffsetCommit {
            key: OffsetCommitKey {
                group_id,
                topic,
                partition,
            },
            value,
        },
    );
    let group = (
        text,
        any::<i32>(),
        proptest::option::of(text),
        proptest::option::of(text),
        any::<i64>(),
        prop::collection::vec(member(), 0..4),
    )
        .prop_map(
            |(protocol_type, generation, protocol, leader, current_state_timestamp_ms, members)| {
                GroupMetadataValue {
                    protocol_type,
                    generation,
                    protocol,
                    leader,
                    current_state_timestamp_ms,
                    members,
                }
            },
        );
    let metadata = (text, proptest::option::of(group))
        .prop_map(|(group_id, value)| CoordinatorRecord::GroupMetadata { group_id, value });
    prop_oneof![commit, metadata]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_back(record in record()) {
        let (key, value) = (record.encode_key(), record.encode_value());
        prop_assert_eq!(CoordinatorRecord::decode(&key, value.as_deref()), Ok(Some(record)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(key in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
        let _ = CoordinatorRecord::decode(&key, Some(&value));
        let group = [&[0, 2, 0, 1, b'g'][..], &key].concat();
        let _ = CoordinatorRecord::decode(&group, Some(&[&[0, (key.len() % 5) as u8][..], &value].concat()));
    }
}

#[test]
fn an_offset_commit_has_kafkas_bytes() {
    let record = CoordinatorRecord::OffsetCommit {
        key: OffsetCommitKey {
            group_id: "g".into(),
            topic: "t".into(),
            partition: 7,
        },
        value: Some(OffsetCommitValue {
            offset: 5,
            leader_epoch: 2,
            metadata: "m".into(),
            commit_timestamp_ms: 9,
            expire_timestamp_ms: None,
            topic_id: Uuid::nil(),
        }),
    };
    assert_eq!(
        &record.encode_key()[..],
        [0, 1, 0, 1, b'g', 0, 1, b't', 0, 0, 0, 7]
    );
    let value = record.encode_value().unwrap_or_default();
    assert_eq!(
        &value[..],
        [
            0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 2, b'm', 0, 0, 0, 0, 0, 0, 0, 9, 0
        ]
    );
}

#[test]
fn an_unknown_key_type_is_skipped_and_an_unknown_version_is_an_error() {
    assert_eq!(
        CoordinatorRecord::decode(&[0, 5, 0, 1, b'g'], None),
        Ok(None)
    );
    let unknown = CoordinatorRecord::decode(&[0, 2, 0, 1, b'g'], Some(&[0, 9]));
    assert_eq!(
        unknown,
        Err(RecordError::Version {
            what: "group metadata",
            version: 9,
            newest: 4
        })
    );
}

#[test]
fn a_group_of_version_0_takes_its_rebalance_timeout_from_the_session() {
    let mut writer = Writer::default();
    writer.int16(0);
    writer.string("consumer");
    writer.int32(3);
    writer.nullable_string(Some("range"));
    writer.nullable_string(Some("a"));
    writer.int32(1);
    for text in ["a", "client", "/host"] {
        writer.string(text);
    }
    writer.int32(10_000);
    writer.bytes(b"s");
    writer.bytes(b"a");
    let decoded = CoordinatorRecord::decode(&[0, 2, 0, 1, b'g'], Some(&writer.finish()));
    let Ok(Some(CoordinatorRecord::GroupMetadata {
        value: Some(value), ..
    })) = decoded
    else {
        panic!("not decoded: {decoded:?}");
    };
    assert_eq!(
        (value.generation, value.current_state_timestamp_ms),
        (3, -1)
    );
    assert_eq!(value.members[0].rebalance_timeout_ms, 10_000);
}
