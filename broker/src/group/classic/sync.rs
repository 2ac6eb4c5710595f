//! Handing out the leader's assignment in a classic group.

use super::{ClassicGroup, Effects, GroupState, SyncRequest, Synced, Token};
use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use std::collections::HashMap;

impl ClassicGroup {
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

    pub(super) fn check_sync(&self, request: &SyncRequest) -> Result<(), ResponseError> {
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

    pub(super) fn assign(
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

    pub(super) fn synced(&self, assignment: Bytes) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment,
        }
    }

    pub(super) fn fail_syncs(&mut self, error: ResponseError, now_ms: i64, effects: &mut Effects) {
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
}
