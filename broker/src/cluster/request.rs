//! What brokers ask of one another, beside Raft's messages.
//!
//! ```text
//! request   1 │ a command, JSON            to the leader of the metadata log
//!           2 │ a Kafka request, framed    to the leader of the metadata log, which answers in a client's stead
//!           3 │ a hand-over, JSON          to the leader of the partitions
//!           4 │ what a job needs           to the leader of the partition, see `partition_request`
//!           5 │ a transaction's marker     to the leader of the partition, see `transaction::markers`
//!           6 │ is a partition part of     to the coordinator of the transaction, see `transaction::verify`
//!             │ a transaction?
//!           7 │ nothing                    to the leader of the metadata log, to hear how far that is
//!           8 │ a request to a third       to a broker that reaches it, see `relay`
//! answer    status u8 │ metadata offset i64 │ the command's answer, JSON, or the Kafka response
//! ```
//!
//! The metadata offset is where the leader's log ended when it had done what was asked: who waits
//! until its own image is there sees what it asked for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::partition_request;
use super::relay::RELAY;
use crate::api;
use crate::broker::Broker;
use crate::controller::command::{Command, CommandAnswer};
use crate::controller::decide::Refusal;
use crate::ids::base64;
use crate::server::connection::Peer;
use crate::shard::view::PartitionKey;
use crate::transaction::{markers, verify};
use streamgauge_protocol::error::ErrorCode;

const COMMAND: u8 = 1;
const KAFKA: u8 = 2;
const HAND_OVER: u8 = 3;
const PARTITION: u8 = 4;
const MARKER: u8 = 5;
const VERIFY: u8 = 6;
const CATCH_UP: u8 = 7;

const DONE: u8 = 0;
const NOT_DONE: u8 = 1;

/// Partitions whose leader is to hand over to another broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandOver {
    pub to: i32,
    partitions: Vec<Led>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Led {
    #[serde(with = "base64")]
    topic: Uuid,
    partition: i32,
}

impl HandOver {
    pub fn new(to: i32, partitions: &[PartitionKey]) -> Self {
        let partitions = partitions.iter().map(|key| Led {
            topic: key.topic_id,
            partition: key.index,
        });
        Self {
            to,
            partitions: partitions.collect(),
        }
    }

    pub fn partitions(&self) -> impl Iterator<Item = PartitionKey> {
        self.partitions.iter().map(|led| PartitionKey {
            topic_id: led.topic,
            index: led.partition,
        })
    }
}

/// A request to another broker.
#[derive(Debug, Clone)]
pub enum ClusterRequest {
    Command(Command),
    /// Without its length prefix.
    Kafka(Bytes),
    HandOver(HandOver),
    Partition(Bytes),
    Marker(Bytes),
    Verify(Bytes),
    CatchUp,
}

impl ClusterRequest {
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            Self::Command(command) => {
                bytes.put_u8(COMMAND);
                // Strings and numbers cannot fail to serialise.
                bytes.extend(serde_json::to_vec(command).unwrap_or_default());
            }
            Self::Kafka(frame) => {
                bytes.put_u8(KAFKA);
                bytes.extend_from_slice(frame);
            }
            Self::Partition(request) => {
                bytes.put_u8(PARTITION);
                bytes.extend_from_slice(request);
            }
            Self::Marker(request) => {
                bytes.put_u8(MARKER);
                bytes.extend_from_slice(request);
            }
            Self::Verify(request) => {
                bytes.put_u8(VERIFY);
                bytes.extend_from_slice(request);
            }
            Self::CatchUp => bytes.put_u8(CATCH_UP),
            Self::HandOver(hand_over) => {
                bytes.put_u8(HAND_OVER);
                bytes.extend(serde_json::to_vec(hand_over).unwrap_or_default());
            }
        }
        bytes.freeze()
    }
}

/// An answer from another broker.
#[derive(Debug, Clone)]
pub struct ClusterAnswer {
    pub metadata_offset: i64,
    pub payload: Bytes,
}

impl ClusterAnswer {
    /// `None` if the other broker could not do it, or does not lead any more.
    pub fn decode(bytes: Bytes) -> Option<Self> {
        let rest = bytes.strip_prefix(&[DONE])?;
        let (offset, payload) = rest.split_first_chunk::<8>()?;
        Some(Self {
            metadata_offset: i64::from_be_bytes(*offset),
            payload: bytes.slice_ref(payload),
        })
    }
}

pub(super) fn not_ready() -> Bytes {
    Bytes::from_static(&[NOT_DONE])
}

/// Does what another broker asks.
pub async fn serve(broker: Arc<Broker>, from: i32, payload: Bytes) -> Bytes {
    if let Some((&HAND_OVER, hand_over)) = payload.split_first() {
        return match serde_json::from_slice::<HandOver>(hand_over) {
            Ok(hand_over) => {
                broker.hand_over_here(&hand_over);
                done(&broker, &[])
            }
            Err(error) => {
                tracing::warn!(from, %error, "a hand-over of another broker cannot be read");
                not_ready()
            }
        };
    }
    if let Some((&PARTITION, request)) = payload.split_first() {
        return partition_request::serve(&broker, payload.slice_ref(request)).await;
    }
    if let Some((&MARKER, request)) = payload.split_first() {
        return markers::serve(&broker, payload.slice_ref(request)).await;
    }
    if let Some((&VERIFY, request)) = payload.split_first() {
        return verify::serve(&broker, payload.slice_ref(request)).await;
    }
    if let Some((&RELAY, request)) = payload.split_first() {
        return broker.cluster.relay(payload.slice_ref(request)).await;
    }
    if !broker.controller.is_active() {
        return not_ready();
    }
    let answer = match payload.split_first() {
        Some((&CATCH_UP, _)) => Some(Vec::new()),
        Some((&COMMAND, command)) => match serde_json::from_slice::<Command>(command) {
            Ok(command) => {
                let answer = broker.run_command(command).await;
                Some(serde_json::to_vec(&answer).unwrap_or_default())
            }
            Err(error) => {
                tracing::warn!(from, %error, "a command of another broker cannot be read");
                let refusal = Refusal::new(ErrorCode::InvalidRequest, error.to_string());
                Some(serde_json::to_vec(&CommandAnswer::refused(refusal)).unwrap_or_default())
            }
        },
        Some((&KAFKA, frame)) => kafka(&broker, payload.slice_ref(frame)).await,
        _ => None,
    };
    match answer {
        Some(answer) => done(&broker, &answer),
        None => not_ready(),
    }
}

fn done(broker: &Broker, answer: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(answer.len() + 9);
    bytes.put_u8(DONE);
    bytes.put_i64(broker.controller.applied_offset());
    bytes.extend_from_slice(answer);
    bytes.freeze()
}

async fn kafka(broker: &Arc<Broker>, frame: Bytes) -> Option<Vec<u8>> {
    let peer = Peer::new(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let answer = api::handle_here(broker, &peer, frame).ok()?.answer.await;
    let pieces = answer.ok()?.pieces;
    Some(
        pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect(),
    )
}
