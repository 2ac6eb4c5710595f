//! A member of a classic group (Kafka's `ClassicGroupMember`). What members say to each other through the group
//! (protocol metadata, assignments) is opaque here, except for the topics of a consumer's subscription.

use super::classic::Token;
use super::records::MemberMetadata;
use crate::coordinator::wire::{Reader, WireError};
use bytes::Bytes;

/// An assignment protocol that a member offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: String,
    pub metadata: Bytes,
}

/// What a join request says, and what it needs from outside.
#[derive(Clone, Debug, Default)]
pub struct JoinRequest {
    pub member_id: String,
    pub group_instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout_ms: i32,
    pub rebalance_timeout_ms: i32,
    pub protocol_type: String,
    pub protocols: Vec<Protocol>,
    /// JoinGroup 4 and later: a new dynamic member must come back with the id it is given (KIP-394).
    pub requires_known_member_id: bool,
    /// JoinGroup 9 and later (KIP-814).
    pub supports_skip_assignment: bool,
    /// Random text that makes a new member's id unique.
    pub new_member_suffix: String,
}

/// A member and what the coordinator owes it.
#[derive(Clone, Debug)]
pub struct Member {
    pub member_id: String,
    pub group_instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout_ms: i32,
    pub rebalance_timeout_ms: i32,
    pub protocols: Vec<Protocol>,
    pub assignment: Bytes,
    /// Has not completed a join yet.
    pub is_new: bool,
    pub awaiting_join: Option<Token>,
    pub awaiting_sync: Option<Token>,
    pub session_deadline_ms: Option<i64>,
}

impl Member {
    /// A member that joins for the first time.
    pub fn joining(request: JoinRequest, member_id: &str, token: Token) -> Self {
        Self {
            member_id: member_id.to_owned(),
            group_instance_id: request.group_instance_id,
            client_id: request.client_id,
            client_host: request.client_host,
            session_timeout_ms: request.session_timeout_ms,
            rebalance_timeout_ms: request.rebalance_timeout_ms,
            protocols: request.protocols,
            assignment: Bytes::new(),
            is_new: true,
            awaiting_join: Some(token),
            awaiting_sync: None,
            session_deadline_ms: None,
        }
    }

    /// A member read back from the log; of its protocols only the chosen one was stored.
    pub fn from_metadata(stored: &MemberMetadata, protocol: Option<&str>) -> Self {
        let name = protocol.unwrap_or_default().to_owned();
        Self {
            member_id: stored.member_id.clone(),
            group_instance_id: stored.group_instance_id.clone(),
            client_id: stored.client_id.clone(),
            client_host: stored.client_host.clone(),
            session_timeout_ms: stored.session_timeout_ms,
            rebalance_timeout_ms: stored.rebalance_timeout_ms,
            protocols: vec![Protocol {
                name,
                metadata: stored.subscription.clone(),
            }],
            assignment: stored.assignment.clone(),
            is_new: false,
            awaiting_join: None,
            awaiting_sync: None,
            session_deadline_ms: None,
        }
    }

    /// The member as it is stored.
    pub fn to_metadata(&self, protocol: Option<&str>) -> MemberMetadata {
        MemberMetadata {
            member_id: self.member_id.clone(),
            group_instance_id: self.group_instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            subscription: self.metadata(protocol.unwrap_or_default()),
            assignment: self.assignment.clone(),
        }
    }

    /// Takes over what a repeated join says.
    pub fn update(&mut self, request: &JoinRequest) {
        self.client_id.clone_from(&request.client_id);
        self.client_host.clone_from(&request.client_host);
        self.session_timeout_ms = request.session_timeout_ms;
        self.rebalance_timeout_ms = request.rebalance_timeout_ms;
        self.protocols.clone_from(&request.protocols);
    }

    pub fn is_static(&self) -> bool {
        self.group_instance_id.is_some()
    }

    pub fn is_awaiting_join(&self) -> bool {
        self.awaiting_join.is_some()
    }

    pub fn supports(&self, protocol: &str) -> bool {
        self.protocols
            .iter()
            .any(|offered| offered.name == protocol)
    }

    /// The member's metadata for a protocol; empty if it does not offer it.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        let offered = self
            .protocols
            .iter()
            .find(|offered| offered.name == protocol);
        offered
            .map(|offered| offered.metadata.clone())
            .unwrap_or_default()
    }

    /// The topics of a consumer's subscription (`ConsumerProtocolSubscription`, any version: topics come first).
    pub fn subscribed_topics(&self, protocol: &str) -> Option<Vec<String>> {
        let metadata = self.metadata(protocol);
        read_topics(&metadata).ok()
    }
}

fn read_topics(metadata: &[u8]) -> Result<Vec<String>, WireError> {
    let mut reader = Reader::new(metadata);
    reader.int16()?;
    (0..reader.count()?).map(|_| reader.string()).collect()
}
