//! What mutation begins with: good frames of every API and version, good batches of every codec.

use streamgauge_protocol::batch::{BatchBuilder, Header, TimestampType};
use streamgauge_protocol::compression::Compression;
use streamgauge_protocol::versions::{APIS, Api};

use super::layout::{self, SMALL, Shape};

/// A good frame, without its size field.
#[derive(Debug, Clone)]
pub struct Seed {
    pub api: &'static Api,
    pub version: i16,
    pub frame: Vec<u8>,
}

/// One small frame of every API and version of the table.
pub fn frames() -> impl Iterator<Item = Seed> {
    APIS.iter()
        .flat_map(|api| (api.min..=api.max).map(move |version| frame(api, version, SMALL)))
}

/// A frame whose body has this shape.
pub fn frame(api: &'static Api, version: i16, shape: Shape) -> Seed {
    let mut frame = Vec::new();
    frame.extend(api.key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(7_i32.to_be_bytes());
    frame.extend(4_i16.to_be_bytes());
    frame.extend(b"seed");
    if api.request_header_version(version) >= 2 {
        frame.push(0);
    }
    frame.extend(layout::body(api, version, shape));
    Seed {
        api,
        version,
        frame,
    }
}

/// Batches of every codec: plain, with headers and nulls, of an idempotent producer, and two after each other.
pub fn batches() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for codec in Compression::ALL {
        let plain =
            BatchBuilder::new()
                .compression(codec)
                .record(1_000, Some(b"key"), Some(b"value"));
        let mut rich = BatchBuilder::new().compression(codec).producer(5, 1, 9);
        let headers = [
            Header {
                key: "trace",
                value: Some(b"1"),
            },
            Header {
                key: "",
                value: None,
            },
        ];
        rich.push(2_000, None, Some(&[b'z'; 300]), &headers);
        rich.push(1_500, Some(b""), None, &[]);
        let stamped = plain.clone().timestamp_type(TimestampType::LogAppendTime);
        let built =
            [plain, rich, stamped].map(|batch| batch.build().expect("a good batch").to_vec());
        seeds.push([&built[0][..], &built[1]].concat());
        seeds.extend(built);
    }
    seeds
}
