//! One classic consumer group: its members, generations and timers (Kafka's `ClassicGroup` and the classic half of
//! `GroupMetadataManager`; KIP-134 initial delay, KIP-345 static members, KIP-394 required member id).
//!
//! ```text
//!           join                       everyone joined, or time is up
//!   Empty --------> PreparingRebalance -------------------------------> CompletingRebalance
//!     ^                 ^  ^                                               |   |
//!     | nobody left     |  +---- a member joins, leaves or times out ------+   | leader syncs
//!     +-----------------+------------- rebalance --------------- Stable <------+
//! ```
//!
//! Requests that must wait (join, sync) are tokens of the caller; they come back in [`Effects`] with their reply.
//! Time is an argument and timers are deadlines: call [`ClassicGroup::tick`] at or after
//! [`ClassicGroup::next_deadline`].

mod join;
mod rebalance;
mod session;
mod sync;

use super::member::Member;
use super::records::{CoordinatorRecord, GroupMetadataValue};
use crate::coordinator::machine::LogRecord;
use bytes::Bytes;
use indexmap::IndexMap;
use kafka_protocol::error::ResponseError;
use std::collections::{HashMap, HashSet};

/// Identifies a waiting request to the caller.
pub use crate::coordinator::machine::Token;

/// How long a member that waits in its first join is kept without a sign of life (`classicGroupNewMemberJoinTimeoutMs`).
const NEW_MEMBER_JOIN_TIMEOUT_MS: i64 = 5 * 60 * 1_000;

/// Ids handed out and not yet used, at most. Kafka has no such bound, so that a client which asks in a loop and never comes back fills
/// the memory.
const PENDING_MEMBERS_MAX: usize = 10_000;

/// Where a group stands. (Dead groups are not kept: they are removed.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// No members, perhaps committed offsets.
    Empty,
    /// Waiting for members to join the next generation.
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    /// Everyone has an assignment.
    Stable,
}

impl GroupState {
    /// Kafka's name of the state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// Answer to a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinReply {
    Joined(Joined),
    /// The member id is the one to come back with (MEMBER_ID_REQUIRED), else the request's.
    Failed {
        error: ResponseError,
        member_id: String,
    },
}

/// A member's place in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub leader: String,
    pub member_id: String,
    pub skip_assignment: bool,
    /// Member id, instance id, metadata of the chosen protocol; only the leader gets them.
    pub members: Vec<(String, Option<String>, Bytes)>,
}

/// Answer to a sync: the member's assignment.
pub type SyncReply = Result<Synced, ResponseError>;

/// A member's assignment and the protocol it was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub assignment: Bytes,
}

/// What one step asks of its caller: records to append, then answers to give once those are committed.
#[derive(Debug, Default)]
pub struct Effects {
    pub records: Vec<CoordinatorRecord>,
    pub joins: Vec<(Token, JoinReply)>,
    pub syncs: Vec<(Token, SyncReply)>,
}

/// What a sync request says.
#[derive(Clone, Debug, Default)]
pub struct SyncRequest {
    pub member_id: String,
    pub group_instance_id: Option<String>,
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub assignments: HashMap<String, Bytes>,
}

#[derive(Clone, Copy, Debug)]
enum JoinTimer {
    /// The first rebalance of an empty group waits a little for others; each newcomer prolongs it.
    Initial {
        at_ms: i64,
        delay_ms: i64,
        remaining_ms: i64,
    },
    Complete {
        at_ms: i64,
    },
}

impl JoinTimer {
    fn at_ms(self) -> i64 {
        match self {
            Self::Initial { at_ms, .. } | Self::Complete { at_ms } => at_ms,
        }
    }
}

/// The limits a group obeys.
#[derive(Clone, Copy, Debug)]
pub struct GroupLimits {
    pub initial_rebalance_delay_ms: i64,
    pub group_size_max: usize,
    /// What the record of a generation may take.
    pub record_bytes_max: usize,
}

/// A classic group.
#[derive(Debug)]
pub struct ClassicGroup {
    group_id: String,
    limits: GroupLimits,
    state: GroupState,
    state_since_ms: i64,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: IndexMap<String, Member>,
    /// Instance id -> member id.
    static_members: HashMap<String, String>,
    /// Ids handed out with MEMBER_ID_REQUIRED, until when they are valid.
    pending_members: HashMap<String, i64>,
    /// Members of this generation that have not sent a sync yet.
    pending_sync: HashSet<String>,
    new_member_added: bool,
    join_timer: Option<JoinTimer>,
    sync_deadline_ms: Option<i64>,
    /// Not later than the next timer; made exact by `tick`.
    wakeup_ms: i64,
    /// Topics that the members consume, when they are consumers and say so readably.
    subscribed_topics: Option<HashSet<String>>,
}

impl ClassicGroup {
    /// An empty group.
    pub fn new(group_id: &str, limits: GroupLimits, now_ms: i64) -> Self {
        Self {
            group_id: group_id.to_owned(),
            limits,
            state: GroupState::Empty,
            state_since_ms: now_ms,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: IndexMap::new(),
            static_members: HashMap::new(),
            pending_members: HashMap::new(),
            pending_sync: HashSet::new(),
            new_member_added: false,
            join_timer: None,
            sync_deadline_ms: None,
            wakeup_ms: i64::MAX,
            subscribed_topics: None,
        }
    }

    /// The group that a record describes; every member gets a fresh session from `now_ms`.
    pub fn from_value(
        group_id: &str,
        value: &GroupMetadataValue,
        limits: GroupLimits,
        now_ms: i64,
    ) -> Self {
        let mut group = Self::new(group_id, limits, now_ms);
        group.generation = value.generation;
        group.protocol_type = Some(value.protocol_type.clone()).filter(|kind| !kind.is_empty());
        group.protocol = value.protocol.clone();
        group.leader = value.leader.clone();
        group.state_since_ms = value.current_state_timestamp_ms;
        for stored in &value.members {
            let member = Member::from_metadata(stored, value.protocol.as_deref());
            if let Some(instance) = &member.group_instance_id {
                group
                    .static_members
                    .insert(instance.clone(), member.member_id.clone());
            }
            group.members.insert(member.member_id.clone(), member);
        }
        group.state = if group.members.is_empty() {
            GroupState::Empty
        } else {
            GroupState::Stable
        };
        group.subscribed_topics = group.read_subscribed_topics();
        let ids: Vec<String> = group.members.keys().cloned().collect();
        for id in ids {
            group.restart_session(&id, now_ms);
        }
        group
    }

    /// The record value that describes the group as it is.
    pub fn to_value(&self) -> GroupMetadataValue {
        let protocol = self.protocol.as_deref();
        GroupMetadataValue {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            current_state_timestamp_ms: self.state_since_ms,
            members: self
                .members
                .values()
                .map(|member| member.to_metadata(protocol))
                .collect(),
        }
    }

    pub fn state(&self) -> GroupState {
        self.state
    }

    pub fn state_since_ms(&self) -> i64 {
        self.state_since_ms
    }

    pub fn generation(&self) -> i32 {
        self.generation
    }

    pub fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    pub fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether nobody is in the group nor about to join.
    pub fn is_unused(&self) -> bool {
        self.state == GroupState::Empty && self.pending_members.is_empty()
    }

    /// Whether members may consume this topic. Of consumers whose subscription cannot be read it is assumed.
    pub fn is_subscribed_to(&self, topic: &str) -> bool {
        match &self.subscribed_topics {
            Some(topics) => topics.contains(topic),
            None => self.protocol_type.as_deref() == Some("consumer"),
        }
    }

    /// When [`tick`](Self::tick) is next needed; it may be early, never late. `i64::MAX`: no timer runs.
    pub fn next_deadline(&self) -> i64 {
        self.wakeup_ms
    }

    fn validate_member(
        &self,
        member_id: &str,
        instance: Option<&str>,
    ) -> Result<(), ResponseError> {
        if let Some(instance) = instance {
            match self.static_members.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(current) if current != member_id => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(ResponseError::UnknownMemberId)
        }
    }

    fn wake_by(&mut self, at_ms: i64) {
        self.wakeup_ms = self.wakeup_ms.min(at_ms);
    }

    fn enter(&mut self, state: GroupState, now_ms: i64) {
        self.state = state;
        self.state_since_ms = now_ms;
    }

    fn metadata_record(&self) -> CoordinatorRecord {
        CoordinatorRecord::GroupMetadata {
            group_id: self.group_id.clone(),
            value: Some(self.to_value()),
        }
    }

    fn fits(&self, record: &CoordinatorRecord) -> bool {
        let value_bytes = record.encode_value().map_or(0, |value| value.len());
        value_bytes <= self.limits.record_bytes_max
    }

    fn read_subscribed_topics(&self) -> Option<HashSet<String>> {
        if self.protocol_type.as_deref() != Some("consumer") {
            return None;
        }
        if self.members.is_empty() {
            return Some(HashSet::new());
        }
        let protocol = self.protocol.as_deref()?;
        let mut topics = HashSet::new();
        for member in self.members.values() {
            topics.extend(member.subscribed_topics(protocol)?);
        }
        Some(topics)
    }
}

#[cfg(test)]
#[path = "classic_tests.rs"]
mod tests;
