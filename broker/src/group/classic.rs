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

use super::member::{JoinRequest, Member, Protocol};
use super::records::{CoordinatorRecord, GroupMetadataValue};
use bytes::Bytes;
use indexmap::IndexMap;
use kafka_protocol::error::ResponseError;
use std::collections::{HashMap, HashSet};

/// Identifies a waiting request to the caller.
pub type Token = u64;

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

    /// A member asks to be in the next generation.
    pub fn join(&mut self, request: JoinRequest, token: Token, now_ms: i64, effects: &mut Effects) {
        if let Err(error) = self.check_join(&request) {
            self.refuse_join(error, request.member_id, token, now_ms, effects);
            return;
        }
        if request.member_id.is_empty() {
            self.join_new(request, token, now_ms, effects);
        } else if self.pending_members.contains_key(&request.member_id) {
            let member_id = request.member_id.clone();
            self.add_member(request, member_id, token, now_ms, effects);
        } else {
            self.join_existing(request, token, now_ms, effects);
        }
    }

    fn refuse_join(
        &mut self,
        error: ResponseError,
        mut member_id: String,
        token: Token,
        now_ms: i64,
        effects: &mut Effects,
    ) {
        if error == ResponseError::GroupMaxSizeReached {
            // Whoever does not fit loses its place, and the id with it.
            self.pending_members.remove(&member_id);
            self.remove_member(&member_id, effects);
            if self.state == GroupState::PreparingRebalance {
                self.complete_join_if_all_joined(now_ms, effects);
            }
            member_id = String::new();
        }
        effects
            .joins
            .push((token, JoinReply::Failed { error, member_id }));
    }

    fn check_join(&self, request: &JoinRequest) -> Result<(), ResponseError> {
        if !self.accepts(&request.member_id, request.group_instance_id.as_deref()) {
            return Err(ResponseError::GroupMaxSizeReached);
        }
        if !self.supports_protocols(request) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        let is_pending = self.pending_members.contains_key(&request.member_id);
        // Ids are handed out to dynamic members only, so no instance may come back with one.
        if request.member_id.is_empty() || is_pending && request.group_instance_id.is_none() {
            return Ok(());
        }
        self.validate_member(&request.member_id, request.group_instance_id.as_deref())
    }

    fn accepts(&self, member_id: &str, instance: Option<&str>) -> bool {
        let known = self.members.get(member_id);
        let replaces = instance.is_some_and(|instance| self.static_members.contains_key(instance));
        match self.state {
            GroupState::Empty => true,
            GroupState::PreparingRebalance => {
                known.is_some_and(Member::is_awaiting_join)
                    || self.awaiting_join_count() < self.limits.group_size_max
            }
            _ => known.is_some() || replaces || self.members.len() < self.limits.group_size_max,
        }
    }

    fn supports_protocols(&self, request: &JoinRequest) -> bool {
        if request.protocol_type.is_empty() || request.protocols.is_empty() {
            return false;
        }
        if self.state == GroupState::Empty {
            return true;
        }
        self.protocol_type.as_deref() == Some(request.protocol_type.as_str())
            && request
                .protocols
                .iter()
                .any(|protocol| self.members.values().all(|m| m.supports(&protocol.name)))
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

    fn join_new(&mut self, request: JoinRequest, token: Token, now_ms: i64, effects: &mut Effects) {
        let prefix = request
            .group_instance_id
            .as_deref()
            .unwrap_or(&request.client_id);
        let member_id = format!("{prefix}-{}", request.new_member_suffix);
        let replaced = request
            .group_instance_id
            .as_ref()
            .and_then(|instance| self.static_members.get(instance));
        if let Some(old_member_id) = replaced.cloned() {
            self.replace_static_member(request, &old_member_id, member_id, token, now_ms, effects);
        } else if request.group_instance_id.is_none() && request.requires_known_member_id {
            if self.pending_members.len() >= PENDING_MEMBERS_MAX {
                let error = ResponseError::GroupMaxSizeReached;
                let member_id = String::new();
                effects
                    .joins
                    .push((token, JoinReply::Failed { error, member_id }));
                return;
            }
            let until_ms = now_ms + i64::from(request.session_timeout_ms);
            self.pending_members.insert(member_id.clone(), until_ms);
            self.wake_by(until_ms);
            let error = ResponseError::MemberIdRequired;
            effects
                .joins
                .push((token, JoinReply::Failed { error, member_id }));
        } else {
            self.add_member(request, member_id, token, now_ms, effects);
        }
    }

    fn join_existing(
        &mut self,
        request: JoinRequest,
        token: Token,
        now_ms: i64,
        effects: &mut Effects,
    ) {
        let member_id = request.member_id.clone();
        let is_leader = self.leader.as_deref() == Some(member_id.as_str());
        let unchanged = self
            .members
            .get(&member_id)
            .is_some_and(|m| m.protocols == request.protocols);
        match self.state {
            // It may have missed the answer to its first join: tell it again.
            GroupState::CompletingRebalance if unchanged => {
                self.answer_current(&member_id, is_leader, token, effects)
            }
            // A follower that joins again unchanged keeps its assignment.
            GroupState::Stable if unchanged && !is_leader => {
                self.answer_current(&member_id, false, token, effects)
            }
            GroupState::Empty => {
                let error = ResponseError::UnknownMemberId;
                effects
                    .joins
                    .push((token, JoinReply::Failed { error, member_id }));
            }
            _ => {
                self.update_member(&member_id, request, token, effects);
                self.rebalance_or_complete_join(now_ms, effects);
            }
        }
    }

    fn answer_current(
        &self,
        member_id: &str,
        with_members: bool,
        token: Token,
        effects: &mut Effects,
    ) {
        let joined = self.joined(member_id, with_members);
        effects.joins.push((token, JoinReply::Joined(joined)));
    }

    fn joined(&self, member_id: &str, with_members: bool) -> Joined {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let members = self.members.values().filter(|_| with_members);
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: member_id.to_owned(),
            skip_assignment: false,
            members: members
                .map(|m| {
                    (
                        m.member_id.clone(),
                        m.group_instance_id.clone(),
                        m.metadata(protocol),
                    )
                })
                .collect(),
        }
    }

    fn add_member(
        &mut self,
        request: JoinRequest,
        member_id: String,
        token: Token,
        now_ms: i64,
        effects: &mut Effects,
    ) {
        if matches!(self.join_timer, Some(JoinTimer::Initial { .. })) {
            self.new_member_added = true;
        }
        self.pending_members.remove(&member_id);
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
        }
        if let Some(instance) = &request.group_instance_id {
            self.static_members
                .insert(instance.clone(), member_id.clone());
        }
        self.leader.get_or_insert_with(|| member_id.clone());
        let mut member = Member::joining(request, &member_id, token);
        member.session_deadline_ms = Some(now_ms + NEW_MEMBER_JOIN_TIMEOUT_MS);
        self.members.insert(member_id, member);
        self.wake_by(now_ms + NEW_MEMBER_JOIN_TIMEOUT_MS);
        self.rebalance_or_complete_join(now_ms, effects);
    }

    fn update_member(
        &mut self,
        member_id: &str,
        request: JoinRequest,
        token: Token,
        effects: &mut Effects,
    ) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        member.update(&request);
        if let Some(earlier) = member.awaiting_join.replace(token) {
            let reply = JoinReply::Failed {
                error: ResponseError::RebalanceInProgress,
                member_id: member_id.to_owned(),
            };
            effects.joins.push((earlier, reply));
        }
    }

    /// A static member came back without its id: the newcomer takes the old one's place (KIP-345).
    fn replace_static_member(
        &mut self,
        request: JoinRequest,
        old_member_id: &str,
        member_id: String,
        token: Token,
        now_ms: i64,
        effects: &mut Effects,
    ) {
        let old_leader = self.leader.clone().unwrap_or_default();
        let was_leader = old_leader == old_member_id;
        let skips = request.supports_skip_assignment;
        let Some((index, _, mut member)) = self.members.swap_remove_full(old_member_id) else {
            return;
        };
        if let Some(waiting) = member.awaiting_join.take() {
            let error = ResponseError::FencedInstanceId;
            effects.joins.push((
                waiting,
                JoinReply::Failed {
                    error,
                    member_id: old_member_id.to_owned(),
                },
            ));
        }
        if let Some(waiting) = member.awaiting_sync.take() {
            effects
                .syncs
                .push((waiting, Err(ResponseError::FencedInstanceId)));
        }
        member.member_id = member_id.clone();
        member.update(&request);
        if let Some(instance) = &member.group_instance_id {
            self.static_members
                .insert(instance.clone(), member_id.clone());
        }
        if self.pending_sync.remove(old_member_id) {
            self.pending_sync.insert(member_id.clone());
        }
        let (last, _) = self.members.insert_full(member_id.clone(), member);
        self.members.swap_indices(index, last);
        if was_leader {
            self.leader = Some(member_id.clone());
        }
        self.restart_session(&member_id, now_ms);

        let record = self.metadata_record();
        let goes_on = self.state == GroupState::Stable && self.fits(&record);
        if goes_on && self.select_protocol() == self.protocol {
            // Nothing changes for the others: store the new id and give it the old assignment, without a rebalance.
            self.subscribed_topics = self.read_subscribed_topics();
            effects.records.push(record);
            let mut joined = self.joined(&member_id, was_leader && skips);
            joined.skip_assignment = was_leader && skips;
            if was_leader && !skips {
                // An old client that thinks it leads would assign anew; the old id tells it that it does not.
                joined.leader = old_leader;
            }
            effects.joins.push((token, JoinReply::Joined(joined)));
            return;
        }
        if let Some(member) = self.members.get_mut(&member_id) {
            member.awaiting_join = Some(token);
        }
        self.rebalance_or_complete_join(now_ms, effects);
    }

    fn rebalance_or_complete_join(&mut self, now_ms: i64, effects: &mut Effects) {
        if self.state == GroupState::PreparingRebalance {
            self.complete_join_if_all_joined(now_ms, effects);
        } else {
            self.prepare_rebalance(now_ms, effects);
        }
    }

    fn complete_join_if_all_joined(&mut self, now_ms: i64, effects: &mut Effects) {
        let initial = matches!(self.join_timer, Some(JoinTimer::Initial { .. }));
        if !initial && self.everyone_joined() {
            self.complete_join(now_ms, effects);
        }
    }

    fn everyone_joined(&self) -> bool {
        self.pending_members.is_empty() && self.members.values().all(Member::is_awaiting_join)
    }

    fn awaiting_join_count(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.is_awaiting_join())
            .count()
    }

    fn prepare_rebalance(&mut self, now_ms: i64, effects: &mut Effects) {
        if self.state == GroupState::CompletingRebalance {
            self.fail_syncs(ResponseError::RebalanceInProgress, now_ms, effects);
        }
        self.pending_sync.clear();
        self.sync_deadline_ms = None;
        let initial = self.state == GroupState::Empty;
        self.enter(GroupState::PreparingRebalance, now_ms);
        let timeout_ms = self.rebalance_timeout_ms();
        if initial {
            let delay_ms = self.limits.initial_rebalance_delay_ms;
            let remaining_ms = (timeout_ms - delay_ms).max(0);
            self.new_member_added = false;
            self.set_join_timer(JoinTimer::Initial {
                at_ms: now_ms + delay_ms,
                delay_ms,
                remaining_ms,
            });
            if delay_ms == 0 {
                self.expire_join_timer(now_ms, effects);
            }
        } else {
            self.set_join_timer(JoinTimer::Complete {
                at_ms: now_ms + timeout_ms,
            });
            self.complete_join_if_all_joined(now_ms, effects);
        }
    }

    fn set_join_timer(&mut self, timer: JoinTimer) {
        self.join_timer = Some(timer);
        self.wake_by(timer.at_ms());
    }

    fn rebalance_timeout_ms(&self) -> i64 {
        self.members
            .values()
            .map(|member| i64::from(member.rebalance_timeout_ms))
            .max()
            .unwrap_or(0)
    }

    fn expire_join_timer(&mut self, now_ms: i64, effects: &mut Effects) {
        match self.join_timer.take() {
            Some(JoinTimer::Initial {
                delay_ms,
                remaining_ms,
                ..
            }) if self.new_member_added && remaining_ms > 0 => {
                self.new_member_added = false;
                let next_delay_ms = self.limits.initial_rebalance_delay_ms.min(remaining_ms);
                self.set_join_timer(JoinTimer::Initial {
                    at_ms: now_ms + next_delay_ms,
                    delay_ms: next_delay_ms,
                    remaining_ms: (remaining_ms - delay_ms).max(0),
                });
            }
            Some(_) => self.complete_join(now_ms, effects),
            None => {}
        }
    }

    /// The join phase is over: whoever came is in the next generation.
    fn complete_join(&mut self, now_ms: i64, effects: &mut Effects) {
        self.join_timer = None;
        let absent = self
            .members
            .values()
            .filter(|member| !member.is_awaiting_join() && !member.is_static());
        let absent: Vec<String> = absent.map(|member| member.member_id.clone()).collect();
        for member_id in absent {
            self.remove_member(&member_id, effects);
        }
        if !self.elect_leader() && !self.members.is_empty() {
            // Only absent static members are left; they keep their places until their sessions end.
            let at_ms = now_ms + self.rebalance_timeout_ms().max(1);
            self.set_join_timer(JoinTimer::Complete { at_ms });
            return;
        }
        self.start_generation(now_ms, effects);
    }

    /// Makes sure that the leader is one of those who joined; false if nobody joined.
    fn elect_leader(&mut self) -> bool {
        let leader = self
            .leader
            .as_ref()
            .and_then(|leader| self.members.get(leader));
        if leader.is_some_and(Member::is_awaiting_join) {
            return true;
        }
        let Some(joined) = self
            .members
            .values()
            .find(|member| member.is_awaiting_join())
        else {
            return false;
        };
        self.leader = Some(joined.member_id.clone());
        true
    }

    fn start_generation(&mut self, now_ms: i64, effects: &mut Effects) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.pending_sync.clear();
        if self.members.is_empty() {
            self.protocol = None;
            self.leader = None;
            self.enter(GroupState::Empty, now_ms);
            self.subscribed_topics = self.read_subscribed_topics();
            effects.records.push(self.metadata_record());
            return;
        }
        self.protocol = self.select_protocol();
        self.enter(GroupState::CompletingRebalance, now_ms);
        self.subscribed_topics = self.read_subscribed_topics();
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in ids {
            let is_leader = self.leader.as_deref() == Some(member_id.as_str());
            let joined = self.joined(&member_id, is_leader);
            self.restart_session(&member_id, now_ms);
            if let Some(member) = self.members.get_mut(&member_id) {
                member.is_new = false;
                if let Some(token) = member.awaiting_join.take() {
                    effects.joins.push((token, JoinReply::Joined(joined)));
                }
            }
            self.pending_sync.insert(member_id);
        }
        let at_ms = now_ms + self.rebalance_timeout_ms();
        self.sync_deadline_ms = Some(at_ms);
        self.wake_by(at_ms);
    }

    /// The protocol that all members have and most prefer; the leader's order breaks ties.
    fn select_protocol(&self) -> Option<String> {
        let leader = self
            .leader
            .as_ref()
            .and_then(|leader| self.members.get(leader))
            .or(self.members.values().next())?;
        let candidates = leader
            .protocols
            .iter()
            .filter(|p| self.members.values().all(|m| m.supports(&p.name)));
        let candidates: Vec<&Protocol> = candidates.collect();
        let mut best: Option<(&str, usize)> = None;
        for candidate in &candidates {
            let votes = self.members.values().filter(|member| {
                let preferred = member
                    .protocols
                    .iter()
                    .find(|p| candidates.iter().any(|c| c.name == p.name));
                preferred.is_some_and(|preferred| preferred.name == candidate.name)
            });
            let votes = votes.count();
            if best.is_none_or(|(_, most)| votes > most) {
                best = Some((&candidate.name, votes));
            }
        }
        best.map(|(name, _)| name.to_owned())
    }

    /// A member asks for its assignment; the leader brings everyone's.
    pub fn sync(&mut self, request: SyncRequest, token: Token, now_ms: i64, effects: &mut Effects) {
        if let Err(error) = self.check_sync(&request) {
            effects.syncs.push((token, Err(error)));
            return;
        }
        self.pending_sync.remove(&request.member_id);
        if self.state == GroupState::Stable {
            let assignment = self
                .members
                .get(&request.member_id)
                .map(|m| m.assignment.clone())
                .unwrap_or_default();
            self.restart_session(&request.member_id, now_ms);
            effects.syncs.push((token, Ok(self.synced(assignment))));
            return;
        }
        if let Some(member) = self.members.get_mut(&request.member_id)
            && let Some(earlier) = member.awaiting_sync.replace(token)
        {
            effects
                .syncs
                .push((earlier, Err(ResponseError::RebalanceInProgress)));
        }
        if self.leader.as_deref() == Some(request.member_id.as_str()) {
            self.assign(request.assignments, now_ms, effects);
        }
    }

    fn check_sync(&self, request: &SyncRequest) -> Result<(), ResponseError> {
        self.validate_member(&request.member_id, request.group_instance_id.as_deref())?;
        if request.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let differs = |wanted: &Option<String>, current: &Option<String>| {
            wanted.is_some() && wanted != current
        };
        if differs(&request.protocol_type, &self.protocol_type)
            || differs(&request.protocol, &self.protocol)
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.state {
            GroupState::Empty => Err(ResponseError::UnknownMemberId),
            GroupState::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    fn assign(
        &mut self,
        mut assignments: HashMap<String, Bytes>,
        now_ms: i64,
        effects: &mut Effects,
    ) {
        for member in self.members.values_mut() {
            member.assignment = assignments.remove(&member.member_id).unwrap_or_default();
        }
        let since_ms = std::mem::replace(&mut self.state_since_ms, now_ms);
        let record = self.metadata_record();
        if !self.fits(&record) {
            // As when Kafka's log refuses the record: the members hear of it, and may join again with less.
            self.state_since_ms = since_ms;
            self.fail_syncs(ResponseError::UnknownServerError, now_ms, effects);
            self.prepare_rebalance(now_ms, effects);
            return;
        }
        self.enter(GroupState::Stable, now_ms);
        effects.records.push(record);
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in ids {
            let Some(member) = self.members.get_mut(&member_id) else {
                continue;
            };
            let assignment = member.assignment.clone();
            if let Some(token) = member.awaiting_sync.take() {
                self.restart_session(&member_id, now_ms);
                effects.syncs.push((token, Ok(self.synced(assignment))));
            }
        }
    }

    fn synced(&self, assignment: Bytes) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment,
        }
    }

    fn fail_syncs(&mut self, error: ResponseError, now_ms: i64, effects: &mut Effects) {
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in ids {
            let Some(member) = self.members.get_mut(&member_id) else {
                continue;
            };
            member.assignment = Bytes::new();
            if let Some(token) = member.awaiting_sync.take() {
                effects.syncs.push((token, Err(error)));
                self.restart_session(&member_id, now_ms);
            }
        }
    }

    /// A member says that it lives.
    pub fn heartbeat(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        now_ms: i64,
    ) -> Result<(), ResponseError> {
        self.validate_member(member_id, instance)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        match self.state {
            GroupState::Empty => Err(ResponseError::UnknownMemberId),
            GroupState::PreparingRebalance => {
                self.restart_session(member_id, now_ms);
                Err(ResponseError::RebalanceInProgress)
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                self.restart_session(member_id, now_ms);
                Ok(())
            }
        }
    }

    /// Members go, each by member id, or by instance id alone (KIP-345). Answers in the same order.
    pub fn leave(
        &mut self,
        members: &[(String, Option<String>)],
        now_ms: i64,
        effects: &mut Effects,
    ) -> Vec<Result<(), ResponseError>> {
        let results: Vec<_> = members
            .iter()
            .map(|(id, instance)| self.leave_one(id, instance.as_deref(), effects))
            .collect();
        if results.iter().any(Result::is_ok) {
            self.after_removal(now_ms, effects);
        }
        results
    }

    fn leave_one(
        &mut self,
        id: &str,
        instance: Option<&str>,
        effects: &mut Effects,
    ) -> Result<(), ResponseError> {
        if id.is_empty() {
            let member_id = instance
                .and_then(|instance| self.static_members.get(instance))
                .cloned();
            let member_id = member_id.ok_or(ResponseError::UnknownMemberId)?;
            self.remove_member(&member_id, effects);
            return Ok(());
        }
        if self.pending_members.remove(id).is_some() {
            return Ok(());
        }
        self.validate_member(id, instance)?;
        self.remove_member(id, effects);
        Ok(())
    }

    fn remove_member(&mut self, member_id: &str, effects: &mut Effects) {
        let Some(mut member) = self.members.shift_remove(member_id) else {
            return;
        };
        if let Some(token) = member.awaiting_join.take() {
            let error = ResponseError::UnknownMemberId;
            effects.joins.push((
                token,
                JoinReply::Failed {
                    error,
                    member_id: member_id.to_owned(),
                },
            ));
        }
        if let Some(token) = member.awaiting_sync.take() {
            effects
                .syncs
                .push((token, Err(ResponseError::UnknownMemberId)));
        }
        if let Some(instance) = &member.group_instance_id {
            self.static_members.remove(instance);
        }
        self.pending_sync.remove(member_id);
        if self.leader.as_deref() == Some(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    fn after_removal(&mut self, now_ms: i64, effects: &mut Effects) {
        match self.state {
            GroupState::Empty => {}
            GroupState::PreparingRebalance => self.complete_join_if_all_joined(now_ms, effects),
            GroupState::CompletingRebalance | GroupState::Stable => {
                self.prepare_rebalance(now_ms, effects)
            }
        }
    }

    /// May this member commit offsets now? (`ClassicGroup.validateOffsetCommit`)
    pub fn check_offset_commit(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        now_ms: i64,
    ) -> Result<(), ResponseError> {
        if generation < 0 && self.state == GroupState::Empty {
            return Ok(());
        }
        if generation < 0 && member_id.is_empty() && instance.is_none() {
            // A stranger must not overwrite the offsets of living members.
            return Err(ResponseError::UnknownMemberId);
        }
        self.validate_member(member_id, instance)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        if self.state == GroupState::CompletingRebalance {
            return Err(ResponseError::RebalanceInProgress);
        }
        self.restart_session(member_id, now_ms);
        Ok(())
    }

    /// Ends what has run out of time.
    pub fn tick(&mut self, now_ms: i64, effects: &mut Effects) {
        if now_ms < self.wakeup_ms {
            return;
        }
        self.expire_sessions(now_ms, effects);
        if self.sync_deadline_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            self.expire_sync(now_ms, effects);
        }
        if self.join_timer.is_some_and(|timer| timer.at_ms() <= now_ms) {
            self.expire_join_timer(now_ms, effects);
        }
        self.wakeup_ms = self.earliest_deadline();
    }

    fn expire_sessions(&mut self, now_ms: i64, effects: &mut Effects) {
        let pending_before = self.pending_members.len();
        self.pending_members
            .retain(|_, until_ms| *until_ms > now_ms);
        if self.pending_members.len() < pending_before
            && self.state == GroupState::PreparingRebalance
        {
            self.complete_join_if_all_joined(now_ms, effects);
        }
        let late = self
            .members
            .values()
            .filter(|m| m.session_deadline_ms.is_some_and(|at_ms| at_ms <= now_ms));
        let late: Vec<String> = late.map(|member| member.member_id.clone()).collect();
        let mut removed = false;
        for member_id in late {
            let Some(member) = self.members.get_mut(&member_id) else {
                continue;
            };
            member.session_deadline_ms = None;
            // While the coordinator owes it an answer, silence is no sign of death; a new member is not trusted so far.
            let waits = member.awaiting_join.is_some() || member.awaiting_sync.is_some();
            if member.is_new || !waits {
                self.remove_member(&member_id, effects);
                removed = true;
            }
        }
        if removed {
            self.after_removal(now_ms, effects);
        }
    }

    fn expire_sync(&mut self, now_ms: i64, effects: &mut Effects) {
        self.sync_deadline_ms = None;
        if self.pending_sync.is_empty() {
            return;
        }
        let silent: Vec<String> = self.pending_sync.drain().collect();
        for member_id in silent {
            self.remove_member(&member_id, effects);
        }
        self.after_removal(now_ms, effects);
    }

    fn earliest_deadline(&self) -> i64 {
        let sessions = self
            .members
            .values()
            .filter_map(|member| member.session_deadline_ms);
        let pending = self.pending_members.values().copied();
        let timers = self
            .join_timer
            .map(JoinTimer::at_ms)
            .into_iter()
            .chain(self.sync_deadline_ms);
        sessions
            .chain(pending)
            .chain(timers)
            .min()
            .unwrap_or(i64::MAX)
    }

    fn restart_session(&mut self, member_id: &str, now_ms: i64) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        let at_ms = now_ms + i64::from(member.session_timeout_ms);
        member.session_deadline_ms = Some(at_ms);
        self.wake_by(at_ms);
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
