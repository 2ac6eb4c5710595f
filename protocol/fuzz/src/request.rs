//! A frame's way from the connection to its handler: header, guard, decode.

use bytes::Bytes;
use streamgauge_protocol::frame::{self, FrameError};
use streamgauge_protocol::messages::messages as m;
use streamgauge_protocol::messages::protocol::Decodable;
use streamgauge_protocol::newer::{Newer, TxnMarkers, VoterAddition};
use streamgauge_protocol::versions::Api;

/// Calls a function of a request type with the type that an API key has.
macro_rules! with_request_type {
    ($key:expr, $function:ident($($argument:expr),*)) => {
        match $key {
            0 => $function::<m::ProduceRequest>($($argument),*),
            1 => $function::<m::FetchRequest>($($argument),*),
            2 => $function::<m::ListOffsetsRequest>($($argument),*),
            3 => $function::<m::MetadataRequest>($($argument),*),
            8 => $function::<Newer<m::OffsetCommitRequest>>($($argument),*),
            9 => $function::<Newer<m::OffsetFetchRequest>>($($argument),*),
            10 => $function::<m::FindCoordinatorRequest>($($argument),*),
            11 => $function::<m::JoinGroupRequest>($($argument),*),
            12 => $function::<m::HeartbeatRequest>($($argument),*),
            13 => $function::<m::LeaveGroupRequest>($($argument),*),
            14 => $function::<m::SyncGroupRequest>($($argument),*),
            15 => $function::<m::DescribeGroupsRequest>($($argument),*),
            16 => $function::<m::ListGroupsRequest>($($argument),*),
            18 => $function::<m::ApiVersionsRequest>($($argument),*),
            19 => $function::<m::CreateTopicsRequest>($($argument),*),
            20 => $function::<m::DeleteTopicsRequest>($($argument),*),
            21 => $function::<m::DeleteRecordsRequest>($($argument),*),
            22 => $function::<m::InitProducerIdRequest>($($argument),*),
            23 => $function::<m::OffsetForLeaderEpochRequest>($($argument),*),
            24 => $function::<m::AddPartitionsToTxnRequest>($($argument),*),
            25 => $function::<m::AddOffsetsToTxnRequest>($($argument),*),
            26 => $function::<m::EndTxnRequest>($($argument),*),
            27 => $function::<TxnMarkers>($($argument),*),
            28 => $function::<m::TxnOffsetCommitRequest>($($argument),*),
            32 => $function::<m::DescribeConfigsRequest>($($argument),*),
            33 => $function::<m::AlterConfigsRequest>($($argument),*),
            35 => $function::<Newer<m::DescribeLogDirsRequest>>($($argument),*),
            37 => $function::<m::CreatePartitionsRequest>($($argument),*),
            42 => $function::<m::DeleteGroupsRequest>($($argument),*),
            43 => $function::<m::ElectLeadersRequest>($($argument),*),
            45 => $function::<m::AlterPartitionReassignmentsRequest>($($argument),*),
            46 => $function::<m::ListPartitionReassignmentsRequest>($($argument),*),
            44 => $function::<m::IncrementalAlterConfigsRequest>($($argument),*),
            47 => $function::<m::OffsetDeleteRequest>($($argument),*),
            55 => $function::<m::DescribeQuorumRequest>($($argument),*),
            60 => $function::<m::DescribeClusterRequest>($($argument),*),
            61 => $function::<m::DescribeProducersRequest>($($argument),*),
            64 => $function::<m::UnregisterBrokerRequest>($($argument),*),
            65 => $function::<m::DescribeTransactionsRequest>($($argument),*),
            66 => $function::<m::ListTransactionsRequest>($($argument),*),
            75 => $function::<m::DescribeTopicPartitionsRequest>($($argument),*),
            80 => $function::<VoterAddition>($($argument),*),
            81 => $function::<m::RemoveRaftVoterRequest>($($argument),*),
            key => panic!("api {key} is served and has no request type here"),
        }
    };
}

/// What a whole frame (without its size field) came to. The message itself is dropped.
pub fn decode_frame(bytes: &[u8]) -> Result<Decoded, FrameError> {
    decode(Bytes::copy_from_slice(bytes))
}

/// As [`decode_frame`], for bytes that are owned already, as the connection's are.
pub fn decode(mut frame: Bytes) -> Result<Decoded, FrameError> {
    if let Some(size) = frame.first_chunk() {
        let _ = frame::frame_bytes(*size, 100 << 20);
    }
    let (header, api) = frame::take_request_header(&mut frame)?;
    if !api.serves(header.api_version) {
        return Ok(Decoded::NotServed);
    }
    with_request_type!(api.key, guarded(api, header.api_version, frame))
}

/// How far a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    NotServed,
    Message,
}

fn guarded<R: Decodable>(api: &Api, version: i16, body: Bytes) -> Result<Decoded, FrameError> {
    frame::decode_request::<R>(api, version, body).map(|_| Decoded::Message)
}

/// Whether the codec alone, without the guard, reads a body.
pub fn decodes_unguarded(api: &Api, version: i16, body: &[u8]) -> bool {
    fn reads<R: Decodable>(version: i16, body: &[u8]) -> bool {
        R::decode(&mut Bytes::copy_from_slice(body), version).is_ok()
    }
    let version = api.codec_version(version);
    with_request_type!(api.key, reads(version, body))
}
