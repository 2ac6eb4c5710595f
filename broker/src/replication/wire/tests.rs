use proptest::prelude::*;
use protobuf::ProtobufEnum;

use super::*;

const TRAVELLING: [MessageType; 13] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn joined(pieces: &[Bytes]) -> Bytes {
    pieces.concat().into()
}

fn encoded(message: &Message) -> Bytes {
    joined(&encode(message).unwrap())
}

fn append_of(entries: Vec<Entry>) -> Message {
    Message {
        msg_type: MessageType::MsgAppend,
        entries: entries.into(),
        ..Message::default()
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..300, any::<u64>(), Just(u64::MAX)]
}

fn some_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn entry() -> impl Strategy<Value = Entry> {
    let kinds = prop::sample::select(EntryType::values());
    let data_bytes = prop_oneof![0usize..40, 250usize..260, Just(2000usize)];
    let data = (data_bytes, any::<u8>()).prop_map(|(bytes, byte)| Bytes::from(vec![byte; bytes]));
    let prefix = Just(Bytes::from_static(&[9; BATCH_PREFIX_BYTES]));
    let context = prop_oneof![prefix, some_bytes()];
    (kinds, number(), number(), data, context, any::<bool>()).prop_map(
        |(entry_type, term, index, data, context, sync_log)| Entry {
            entry_type,
            term,
            index,
            data,
            context,
            sync_log,
            ..Entry::default()
        },
    )
}

fn conf_state() -> impl Strategy<Value = ConfState> {
    let ids = || prop::collection::vec(number(), 0..4);
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
            ..ConfState::default()
        },
    )
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let metadata = (prop::option::of(conf_state()), number(), number()).prop_map(
        |(conf_state, index, term)| SnapshotMetadata {
            conf_state: conf_state.into(),
            index,
            term,
            ..SnapshotMetadata::default()
        },
    );
    (prop::option::of(metadata), some_bytes()).prop_map(|(metadata, data)| Snapshot {
        data,
        metadata: metadata.into(),
        ..Snapshot::default()
    })
}

fn message() -> impl Strategy<Value = Message> {
    let ends = (number(), number(), prop::sample::select(&TRAVELLING[..]));
    let positions = (number(), number(), number(), number(), number());
    let answers = (number(), any::<bool>(), number(), number(), any::<i64>());
    let parts = (
        some_bytes(),
        prop::collection::vec(entry(), 0..5),
        prop::option::of(snapshot()),
    );
    (ends, positions, answers, parts).prop_map(|(ends, positions, answers, parts)| Message {
        to: ends.0,
        from: ends.1,
        msg_type: ends.2,
        term: positions.0,
        log_term: positions.1,
        index: positions.2,
        commit: positions.3,
        commit_term: positions.4,
        request_snapshot: answers.0,
        reject: answers.1,
        reject_hint: answers.2,
        deprecated_priority: answers.3,
        priority: answers.4,
        context: parts.0,
        entries: parts.1.into(),
        snapshot: parts.2.into(),
        ..Message::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_message_reads_back(message in message()) {
        let bytes = encoded(&message);
        prop_assert!(bytes.len() <= 4 + bytes_at_most(&message));
        prop_assert!(bytes.len() >= 4 + MESSAGE_BYTES_MIN);
        prop_assert_eq!(decode(bytes).unwrap(), message);
    }

    #[test]
    fn several_messages_share_a_head(messages in prop::collection::vec(message(), 0..4)) {
        let mut out = Encoded::default();
        for message in &messages {
            encode_parts(message, &mut out).unwrap();
        }
        let (mut head, mut data) = (out.head.freeze(), joined(&out.data));
        for message in messages {
            prop_assert_eq!(decode_parts(&mut head, &mut data).unwrap(), message);
        }
        prop_assert_eq!(head.len() + data.len(), 0);
    }

    #[test]
    fn a_cut_message_is_an_error(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&message);
        prop_assert!(decode(bytes.slice(..cut.index(bytes.len()))).is_err());
    }

    #[test]
    fn bytes_behind_a_message_are_an_error(message in message(), more in 1usize..9) {
        let mut bytes = encoded(&message).to_vec();
        bytes.resize(bytes.len() + more, 0);
        prop_assert_eq!(decode(bytes.into()), Err(WireError::Trailing(more)));
    }

    // What is accepted has one form only, so it is also what would be sent.
    #[test]
    fn a_changed_message_is_an_error_or_another_message(
        message in message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&message).to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(message) = decode(bytes.clone().into()) {
            prop_assert_eq!(encoded(&message), bytes);
        }
    }

    #[test]
    fn any_bytes_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(decode(bytes.clone().into()));
        let mut head = vec![VERSION, MessageType::MsgAppend as u8];
        head.extend(bytes);
        drop(decode_parts(&mut head.into(), &mut Bytes::new()));
    }
}

#[test]
fn record_data_is_not_copied() {
    let data = Bytes::from(vec![7; 1000]);
    let entry = Entry {
        context: Bytes::from_static(&[0; BATCH_PREFIX_BYTES]),
        data: data.clone(),
        ..Entry::default()
    };
    let pieces = encode(&append_of(vec![entry])).unwrap();
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[1].as_ptr(), data.as_ptr());

    let received = joined(&pieces);
    let message = decode(received.clone()).unwrap();
    let place = received.len() - data.len();
    assert_eq!(
        message.entries[0].data.as_ptr(),
        received.slice(place..).as_ptr()
    );
}

#[test]
fn what_has_no_checksum_of_its_own_lies_in_the_head() {
    let large = Bytes::from(vec![7; 1000]);
    let small = Bytes::from(vec![7; COPIED_BYTES_MAX]);
    let prefix = Bytes::from_static(&[0; BATCH_PREFIX_BYTES]);
    let other = Bytes::from_static(&[2]);
    for (entry_type, context, data) in [
        (EntryType::EntryNormal, &other, &large),
        (EntryType::EntryNormal, &prefix, &small),
        (EntryType::EntryConfChangeV2, &prefix, &large),
    ] {
        let message = append_of(vec![Entry {
            entry_type,
            context: context.clone(),
            data: data.clone(),
            ..Entry::default()
        }]);
        let pieces = encode(&message).unwrap();
        assert_eq!(pieces.len(), 1);
        assert_eq!(decode(joined(&pieces)), Ok(message));
    }
}

#[test]
fn local_messages_and_proposals_do_not_travel() {
    for local in MessageType::values()
        .iter()
        .filter(|message_type| !TRAVELLING.contains(message_type))
    {
        let message = Message {
            msg_type: *local,
            ..Message::default()
        };
        assert_eq!(encode(&message), Err(WireError::Local(*local)));
        let mut bytes = encoded(&append_of(Vec::new())).to_vec();
        bytes[5] = *local as u8;
        assert_eq!(decode(bytes.into()), Err(WireError::Local(*local)));
    }
}

#[test]
fn unknown_versions_types_entries_and_flags_are_refused() {
    let with = |place: usize, byte: u8| {
        let mut bytes = encoded(&append_of(vec![Entry::default()])).to_vec();
        bytes[place] = byte;
        decode(bytes.into())
    };
    assert_eq!(with(4, 2), Err(WireError::Version(2)));
    assert_eq!(with(5, 19), Err(WireError::UnknownType(19)));
    assert_eq!(with(6, 4), Err(WireError::Flags(4)));
    let entry_place = 4 + HEAD_BYTES_MIN;
    assert_eq!(with(entry_place, 3), Err(WireError::UnknownEntry(3)));
}

#[test]
fn large_membership_changes_are_refused_on_both_sides() {
    let change = |entry_type, bytes| {
        append_of(vec![Entry {
            entry_type,
            data: vec![0; bytes].into(),
            ..Entry::default()
        }])
    };
    for entry_type in [EntryType::EntryConfChange, EntryType::EntryConfChangeV2] {
        let largest = change(entry_type, CONF_CHANGE_BYTES_MAX);
        assert_eq!(decode(encoded(&largest)), Ok(largest));
        let refused = WireError::ConfChange(CONF_CHANGE_BYTES_MAX + 1);
        let larger = change(entry_type, CONF_CHANGE_BYTES_MAX + 1);
        assert_eq!(encode(&larger), Err(refused.clone()));

        // The same bytes as record data, which may be larger, then called a membership change.
        let as_records = change(EntryType::EntryNormal, CONF_CHANGE_BYTES_MAX + 1);
        let mut bytes = encoded(&as_records).to_vec();
        bytes[4 + HEAD_BYTES_MIN] = entry_type as u8;
        assert_eq!(decode(bytes.into()), Err(refused));
    }
}

#[test]
fn counts_beyond_the_bytes_are_refused_before_anything_is_allocated() {
    let mut bytes = encoded(&append_of(Vec::new())).to_vec();
    // The count of entries is the last byte: make it 2^63.
    bytes.pop();
    bytes.extend([0x80; 9]);
    bytes.push(1);
    let head_bytes = u32::try_from(bytes.len() - 4).unwrap();
    bytes[..4].copy_from_slice(&head_bytes.to_be_bytes());
    assert_eq!(decode(bytes.into()), Err(WireError::Short("entries")));
}

#[test]
fn numbers_have_one_form() {
    let read = |bytes: &'static [u8]| get_varint(&mut Bytes::from_static(bytes), "n");
    assert_eq!(read(&[0]), Ok(0));
    assert_eq!(read(&[0x80, 1]), Ok(128));
    assert_eq!(read(&[0x80, 0]), Err(WireError::Number("n")));
    assert_eq!(read(&[0x80]), Err(WireError::Short("n")));
    assert_eq!(
        read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        Ok(u64::MAX)
    );
    assert_eq!(
        read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
        Err(WireError::Number("n"))
    );
    for number in [0, -1, 1, i64::MIN, i64::MAX] {
        assert_eq!(unzigzag(zigzag(number)), number);
    }
}
