//! The guard against the message crate: what the crate writes passes, and what passes decodes without harm.

use bytes::Bytes;
use kafka_protocol::messages as m;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use proptest::prelude::*;

use super::*;
use crate::versions::{APIS, lookup};

/// Decodes a guarded body with the crate; the answer does not matter, that it comes back does.
fn decode(key: i16, version: i16, body: &[u8]) -> bool {
    fn of<R: Decodable>(version: i16, body: &[u8]) -> bool {
        R::decode(&mut Bytes::copy_from_slice(body), version).is_ok()
    }
    let v = lookup(key).unwrap().codec_version(version);
    match key {
        0 => of::<m::ProduceRequest>(v, body),
        1 => of::<m::FetchRequest>(v, body),
        2 => of::<m::ListOffsetsRequest>(v, body),
        3 => of::<m::MetadataRequest>(v, body),
        8 => of::<m::OffsetCommitRequest>(v, body),
        9 => of::<m::OffsetFetchRequest>(v, body),
        10 => of::<m::FindCoordinatorRequest>(v, body),
        11 => of::<m::JoinGroupRequest>(v, body),
        12 => of::<m::HeartbeatRequest>(v, body),
        13 => of::<m::LeaveGroupRequest>(v, body),
        14 => of::<m::SyncGroupRequest>(v, body),
        15 => of::<m::DescribeGroupsRequest>(v, body),
        16 => of::<m::ListGroupsRequest>(v, body),
        18 => of::<m::ApiVersionsRequest>(v, body),
        19 => of::<m::CreateTopicsRequest>(v, body),
        20 => of::<m::DeleteTopicsRequest>(v, body),
        21 => of::<m::DeleteRecordsRequest>(v, body),
        22 => of::<m::InitProducerIdRequest>(v, body),
        23 => of::<m::OffsetForLeaderEpochRequest>(v, body),
        32 => of::<m::DescribeConfigsRequest>(v, body),
        33 => of::<m::AlterConfigsRequest>(v, body),
        35 => of::<m::DescribeLogDirsRequest>(v, body),
        37 => of::<m::CreatePartitionsRequest>(v, body),
        42 => of::<m::DeleteGroupsRequest>(v, body),
        44 => of::<m::IncrementalAlterConfigsRequest>(v, body),
        47 => of::<m::OffsetDeleteRequest>(v, body),
        60 => of::<m::DescribeClusterRequest>(v, body),
        61 => of::<m::DescribeProducersRequest>(v, body),
        75 => of::<m::DescribeTopicPartitionsRequest>(v, body),
        _ => panic!("api {key} has no decoder in this test"),
    }
}

/// A body that fills every field of the layout: counts of 2, texts of 3 bytes.
fn populated(fields: &'static [Field], version: i16, flexible: bool, out: &mut Vec<u8>) {
    for field in fields
        .iter()
        .filter(|field| field.tag.is_none() && field.is_in(version))
    {
        value(&field.kind, version, flexible, out);
    }
    if flexible {
        let tagged: Vec<_> = fields
            .iter()
            .filter(|field| field.tag.is_some() && field.is_in(version))
            .collect();
        out.push(tagged.len() as u8 + 1);
        for field in tagged {
            let mut bytes = Vec::new();
            value(&field.kind, version, flexible, &mut bytes);
            out.extend([field.tag.unwrap() as u8, bytes.len() as u8]);
            out.extend(bytes);
        }
        out.extend([100, 2, 9, 9]); // a tag from the future
    }
}

fn value(kind: &Kind, version: i16, flexible: bool, out: &mut Vec<u8>) {
    let length = |out: &mut Vec<u8>, n: u8| {
        if flexible {
            out.push(n + 1)
        } else {
            out.extend([0, 0, 0, n])
        }
    };
    match *kind {
        Kind::Fixed(bytes) => out.extend(std::iter::repeat_n(0, bytes - 1).chain([1])),
        Kind::Text => {
            if flexible {
                out.push(4)
            } else {
                out.extend([0, 3])
            }
            out.extend(b"abc");
        }
        Kind::Blob => {
            length(out, 3);
            out.extend(b"xyz");
        }
        Kind::Array(fields) => {
            length(out, 2);
            populated(fields, version, flexible, out);
            populated(fields, version, flexible, out);
        }
        Kind::Texts => {
            length(out, 2);
            value(&Kind::Text, version, flexible, out);
            value(&Kind::Text, version, flexible, out);
        }
        Kind::Numbers(bytes) => {
            length(out, 2);
            out.extend(std::iter::repeat_n(1, bytes * 2));
        }
        Kind::Structure(fields) => populated(fields, version, flexible, out),
        Kind::NullableStructure(fields) => {
            out.push(1);
            populated(fields, version, flexible, out);
        }
    }
}

fn body(api: &Api, version: i16) -> Vec<u8> {
    let mut out = Vec::new();
    populated(
        schema::fields(api.key).unwrap(),
        version,
        api.is_flexible(version),
        &mut out,
    );
    out
}

#[test]
fn the_layout_of_every_served_version_is_the_message_crates() {
    for api in APIS {
        for version in api.min..=api.max {
            let full = body(api, version);
            assert_eq!(
                check_request(api, version, &full),
                Ok(()),
                "{} {version}",
                api.name
            );
            assert!(
                decode(api.key, version, &full),
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
                    !decode(api.key, version, cut),
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
        let mut damaged = body(api, version);
        for (at, byte) in flips {
            if damaged.is_empty() {
                break;
            }
            let at = usize::from(at) % damaged.len();
            damaged[at] = if noise { byte } else { 0xff };
        }
        if check_request(api, version, &damaged).is_ok() {
            decode(api.key, version, &damaged);
        }
    }
}
