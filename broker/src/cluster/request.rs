//! What brokers ask of one another, beside Raft's messages.
//!
//! ```text
//! request   1 │ a command, JSON            to the leader of the metadata log
//!           2 │ a Kafka request, framed    to the leader of the metadata log, which answers in a client's stead
//! answer    status u8 │ metadata offset i64 │ the command's answer, JSON, or the Kafka response
//! ```
//!
//! The metadata offset is where the leader's log ended when it had done what was asked: who waits
//! until its own image is there sees what it asked for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Notify;

use crate::api;
use crate::broker::Broker;
use crate::controller::command::{Command, CommandAnswer};
use crate::controller::decide::Refusal;
use crate::server::connection::Peer;
use streamgauge_protocol::error::ErrorCode;

const COMMAND: u8 = 1;
const KAFKA: u8 = 2;

const DONE: u8 = 0;
const NOT_DONE: u8 = 1;

/// A request to another broker.
#[derive(Debug, Clone)]
pub enum ClusterRequest {
    Command(Command),
    /// Without its length prefix.
    Kafka(Bytes),
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
    if !broker.controller.is_active() {
        return not_ready();
    }
    let answer = match payload.split_first() {
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
    let Some(answer) = answer else {
        return not_ready();
    };
    let mut bytes = BytesMut::with_capacity(answer.len() + 9);
    bytes.put_u8(DONE);
    bytes.put_i64(broker.controller.applied_offset());
    bytes.extend(answer);
    bytes.freeze()
}

async fn kafka(broker: &Arc<Broker>, frame: Bytes) -> Option<Vec<u8>> {
    let peer = Peer {
        address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        changed: Arc::new(Notify::new()),
    };
    let answer = api::handle_here(broker, &peer, frame).ok()?.answer.await;
    let pieces = answer.ok()?.pieces;
    Some(
        pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect(),
    )
}
