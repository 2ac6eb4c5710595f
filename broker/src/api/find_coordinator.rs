//! FindCoordinator 0-6 (KIP-699: several keys from 4 on), of groups and transactions. Share groups get INVALID_REQUEST.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

const KEY_TYPE_GROUP: i8 = 0;
const KEY_TYPE_TRANSACTION: i8 = 1;

/// A broker as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    pub node_id: i32,
    pub host: String,
    pub port: u16,
}

/// What has a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Group,
    Transaction,
}

impl Kind {
    /// By its number on the wire; versions before 1 know groups only.
    pub fn of(request: &FindCoordinatorRequest) -> Option<Self> {
        match request.key_type {
            KEY_TYPE_GROUP => Some(Self::Group),
            KEY_TYPE_TRANSACTION => Some(Self::Transaction),
            _ => None,
        }
    }
}

/// Answers one request. `leader_of` gives the leader of the partition that a group or a transactional id belongs to; `None` while
/// it has none or the topic does not exist yet.
pub fn handle(
    version: i16,
    request: &FindCoordinatorRequest,
    leader_of: impl Fn(Kind, &str) -> Option<BrokerAddress>,
) -> FindCoordinatorResponse {
    let kind = Kind::of(request);
    let find = |key: &StrBytes| find(key, kind, &leader_of);
    let mut response = FindCoordinatorResponse::default();
    if version >= 4 {
        response.coordinators = request.coordinator_keys.iter().map(find).collect();
        return response;
    }
    let found = find(&request.key);
    response
        .with_error_code(found.error_code)
        .with_error_message(found.error_message.filter(|_| version >= 1))
        .with_node_id(found.node_id)
        .with_host(found.host)
        .with_port(found.port)
}

fn find(
    key: &StrBytes,
    kind: Option<Kind>,
    leader_of: impl Fn(Kind, &str) -> Option<BrokerAddress>,
) -> Coordinator {
    let failed = |error: ResponseError, message: &'static str| {
        Coordinator::default()
            .with_key(key.clone())
            .with_node_id(BrokerId(-1))
            .with_port(-1)
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(message)))
    };
    let Some(kind) = kind else {
        return failed(
            ResponseError::InvalidRequest,
            "this broker knows coordinators of groups and transactions only",
        );
    };
    let Some(broker) = leader_of(kind, key) else {
        return failed(
            ResponseError::CoordinatorNotAvailable,
            "the coordinator's partition has no leader",
        );
    };
    Coordinator::default()
        .with_key(key.clone())
        .with_node_id(BrokerId(broker.node_id))
        .with_host(StrBytes::from_string(broker.host))
        .with_port(i32::from(broker.port))
}
