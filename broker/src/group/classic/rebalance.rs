//! From one generation of a classic group to the next: waiting for its members, leader, protocol.

use super::{ClassicGroup, Effects, GroupState, JoinReply, JoinTimer};
use crate::group::member::{Member, Protocol};
use kafka_protocol::error::ResponseError;

impl ClassicGroup {
    pub(super) fn rebalance_or_complete_join(&mut self, now_ms: i64, effects: &mut Effects) {
        if self.state == GroupState::PreparingRebalance {
            self.complete_join_if_all_joined(now_ms, effects);
        } else {
            self.prepare_rebalance(now_ms, effects);
        }
    }

    pub(super) fn complete_join_if_all_joined(&mut self, now_ms: i64, effects: &mut Effects) {
        let initial = matches!(self.join_timer, Some(JoinTimer::Initial { .. }));
        if !initial && self.everyone_joined() {
            self.complete_join(now_ms, effects);
        }
    }

    pub(super) fn everyone_joined(&self) -> bool {
        self.pending_members.is_empty() && self.members.values().all(Member::is_awaiting_join)
    }

    pub(super) fn awaiting_join_count(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.is_awaiting_join())
            .count()
    }

    pub(super) fn prepare_rebalance(&mut self, now_ms: i64, effects: &mut Effects) {
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

    pub(super) fn set_join_timer(&mut self, timer: JoinTimer) {
        self.join_timer = Some(timer);
        self.wake_by(timer.at_ms());
    }

    pub(super) fn rebalance_timeout_ms(&self) -> i64 {
        self.members
            .values()
            .map(|member| i64::from(member.rebalance_timeout_ms))
            .max()
            .unwrap_or(0)
    }

    pub(super) fn expire_join_timer(&mut self, now_ms: i64, effects: &mut Effects) {
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
    pub(super) fn complete_join(&mut self, now_ms: i64, effects: &mut Effects) {
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
    pub(super) fn elect_leader(&mut self) -> bool {
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

    pub(super) fn start_generation(&mut self, now_ms: i64, effects: &mut Effects) {
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
    pub(super) fn select_protocol(&self) -> Option<String> {
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
}
