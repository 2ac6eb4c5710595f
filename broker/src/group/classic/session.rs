//! How members of a classic group stay in it, and how they leave: heartbeats, commits, departures, and time that is up.

use super::{ClassicGroup, Effects, GroupState, JoinReply, JoinTimer};
use kafka_protocol::error::ResponseError;

impl ClassicGroup {
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

    pub(super) fn leave_one(
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

    pub(super) fn remove_member(&mut self, member_id: &str, effects: &mut Effects) {
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

    pub(super) fn after_removal(&mut self, now_ms: i64, effects: &mut Effects) {
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

    /// May a producer commit offsets for this member within a transaction? It may for a group that only uses offsets, and also while
    /// members are being assigned.
    pub fn check_transactional_commit(
        &self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        if generation < 0 && self.state == GroupState::Empty {
            return Ok(());
        }
        if generation < 0 && member_id.is_empty() && instance.is_none() {
            // Producers before KIP-447 do not say for whom they commit.
            return Ok(());
        }
        self.validate_member(member_id, instance)?;
        match generation == self.generation {
            true => Ok(()),
            false => Err(ResponseError::IllegalGeneration),
        }
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

    pub(super) fn expire_sessions(&mut self, now_ms: i64, effects: &mut Effects) {
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

    pub(super) fn expire_sync(&mut self, now_ms: i64, effects: &mut Effects) {
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

    pub(super) fn earliest_deadline(&self) -> i64 {
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

    pub(super) fn restart_session(&mut self, member_id: &str, now_ms: i64) {
        let Some(member) = self.members.get_mut(member_id) else {
            return;
        };
        let at_ms = now_ms + i64::from(member.session_timeout_ms);
        member.session_deadline_ms = Some(at_ms);
        self.wake_by(at_ms);
    }
}
