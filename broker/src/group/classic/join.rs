//! Joining a classic group: who is let in, as a new member, as one that comes back, or in a static member's place.

use super::{ClassicGroup, Effects, GroupState, JoinReply, JoinTimer, Joined, Token};
use super::{NEW_MEMBER_JOIN_TIMEOUT_MS, PENDING_MEMBERS_MAX};
use crate::group::member::{JoinRequest, Member};
use kafka_protocol::error::ResponseError;

impl ClassicGroup {
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

    pub(super) fn refuse_join(
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

    pub(super) fn check_join(&self, request: &JoinRequest) -> Result<(), ResponseError> {
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

    pub(super) fn accepts(&self, member_id: &str, instance: Option<&str>) -> bool {
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

    pub(super) fn supports_protocols(&self, request: &JoinRequest) -> bool {
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

    pub(super) fn join_new(
        &mut self,
        request: JoinRequest,
        token: Token,
        now_ms: i64,
        effects: &mut Effects,
    ) {
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

    pub(super) fn join_existing(
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

    pub(super) fn answer_current(
        &self,
        member_id: &str,
        with_members: bool,
        token: Token,
        effects: &mut Effects,
    ) {
        let joined = self.joined(member_id, with_members);
        effects.joins.push((token, JoinReply::Joined(joined)));
    }

    pub(super) fn joined(&self, member_id: &str, with_members: bool) -> Joined {
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

    pub(super) fn add_member(
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

    pub(super) fn update_member(
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
    pub(super) fn replace_static_member(
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
}
