//! The guard against the message crate: what the crate writes passes, and what passes decodes without harm.

use kafka_protocol::messages as m;
use kafka_protocol::protocol::{Encodable, StrBytes};
use proptest::prelude::*;

use super::*;
use crate::versions::{APIS, lookup};

// Bodies and request types are those that fuzzing uses.
#[path = "../../fuzz/src/layout.rs"]
mod layout;
#[allow(dead_code)]
#[path = "../../fuzz/src/request.rs"]
mod request;

use layout::{SMALL, Shape, body};
use request::decodes_unguarded;

#[test]
fn the_layout_of_every_served_version_is_the_message_crates() {
    for api in APIS {
        for version in api.min..=api.max {
            let full = body(api, version, SMALL);
            assert_eq!(
                check_request(api, version, &full),
                Ok(()),
                "{} {version}",
                api.name
            );
            assert!(
                decodes_unguarded(api, version, &full),
                "{} {version} decodes",
                api.name
            );
            for length in 0..full.len() {
                // A cut that the crate took would show a field that only the layout has.
                let cut = &full[..length];
                assert!(
                    check_request(api, version, cut).is_err(),
                    "{} {version} cut at {length}",
                    api.name
                );
                assert!(
                    !decodes_unguarded(api, version, cut),
                    "{} {version} cut at {length} decodes",
                    api.name
                );
            }
        }
    }
}

#[test]
fn what_the_message_crate_writes_passes() {
    let name = || StrBytes::from_static_str("orders");
    let request = m::MetadataRequest::default().with_topics(Some(vec![
        m::metadata_request::MetadataRequestTopic::default().with_name(Some(m::TopicName(name()))),
    ]));
    for version in 0..=13 {
        let mut out = Vec::new();
        let request = if version < 4 {
            request.clone().with_allow_auto_topic_creation(true)
        } else {
            request.clone()
        };
        request.encode(&mut out, version).unwrap();
        assert_eq!(check_request(lookup(3).unwrap(), version, &out), Ok(()));
    }
}

#[test]
fn unknown_tags_are_taken_in_proportion_to_the_request() {
    // A client of tomorrow adds a field to every partition of a fetch session.
    let fetch = lookup(1).unwrap();
    let tomorrow = Shape {
        elements: 40,
        text_bytes: 1,
        unknown_tags: 1,
        tag_bytes: 4,
    };
    assert_eq!(check_request(fetch, 12, &body(fetch, 12, tomorrow)), Ok(()));
    // Topics of two bytes, each with a map of its own for nothing.
    let metadata = lookup(3).unwrap();
    let hostile = Shape {
        elements: 100,
        text_bytes: 0,
        unknown_tags: 1,
        tag_bytes: 0,
    };
    assert_eq!(
        check_request(metadata, 9, &body(metadata, 9, hostile)),
        Err(GuardError::UnknownTags)
    );
}

/// Kafka refuses them too; what is written of them with two bytes of length would be cut.
#[test]
fn longer_texts_than_kafka_has_are_refused() {
    let api = lookup(26).unwrap();
    let frame = |length: usize| {
        let request = m::EndTxnRequest::default()
            .with_transactional_id(StrBytes::from_string("t".repeat(length)).into());
        let mut bytes = bytes::BytesMut::new();
        request.encode(&mut bytes, 5).unwrap();
        bytes.freeze()
    };
    assert_eq!(check_request(api, 5, &frame(32_767)), Ok(()));
    let refused = check_request(api, 5, &frame(32_768));
    assert_eq!(refused, Err(GuardError::Text(32_768)));
}

#[test]
fn too_many_elements_are_refused() {
    let api = lookup(42).unwrap();
    let count = ELEMENTS_MAX as u32 + 1;
    let mut hostile = count.to_be_bytes().to_vec();
    hostile.resize(4 + 2 * count as usize, 0);
    assert_eq!(check_request(api, 0, &hostile), Err(GuardError::Elements));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn what_passes_after_damage_decodes_without_harm(
        api in 0..APIS.len(), version in 0i16..19, flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6), noise in any::<bool>(),
    ) {
        let api = &APIS[api];
        let version = api.min + version % (api.max - api.min + 1);
        let mut damaged = body(api, version, SMALL);
        for (at, byte) in flips {
            if damaged.is_empty() {
                break;
            }
            let at = usize::from(at) % damaged.len();
            damaged[at] = if noise { byte } else { 0xff };
        }
        if check_request(api, version, &damaged).is_ok() {
            decodes_unguarded(api, version, &damaged);
        }
    }
}
