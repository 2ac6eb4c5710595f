//! Members that catch up no faster than their throttles allow; see [`super::super::throttle`].
//!
//! Raft sends to a member as long as its window of messages under way has room. That of a throttled one is shut,
//! and opened for one message at a time when the quotas are.

use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};

use super::super::broker_id;
use super::super::throttle::{ReplicationQuotas, Sides, ThrottledReplicas};
use super::{INFLIGHT_MESSAGES_MAX, RaftGroup};

/// What a partition's topic says, and the broker's quotas.
#[derive(Clone, Default)]
pub struct Throttle {
    pub quotas: Arc<ReplicationQuotas>,
    pub partition: i32,
    pub leaders: ThrottledReplicas,
    pub followers: ThrottledReplicas,
}

impl Throttle {
    fn names_nobody(&self) -> bool {
        self.leaders == ThrottledReplicas::None && self.followers == ThrottledReplicas::None
    }
}

/// Who is held back.
#[derive(Default)]
pub(super) struct Pace {
    throttle: Throttle,
    held: Vec<(u64, Sides)>,
    /// Bytes of messages not yet handed out that the quotas know of.
    known_bytes: u64,
}

impl RaftGroup {
    pub fn throttle(&mut self, throttle: Throttle) {
        self.pace.throttle = throttle;
    }

    /// To be called at each tick: lets members catch up as far as quotas allow.
    pub fn pace_members(&mut self, now_ms: i64) {
        self.hold_members();
        for (id, sides) in self.pace.held.clone() {
            while self
                .pace
                .throttle
                .quotas
                .is_open(broker_id(id), sides, now_ms)
            {
                self.open_window(id);
                let bytes = self.send_one(id);
                self.shut_window(id);
                if bytes == 0 {
                    break;
                }
                let quotas = &self.pace.throttle.quotas;
                quotas.take(broker_id(id), sides, bytes);
                self.pace.known_bytes += bytes;
            }
            if self.has_been_sent_all(id) {
                // Raft finds out with an empty message that one was lost.
                self.open_window(id);
            }
        }
    }

    /// To be called whenever members or leader may have changed, before Raft hears of a member again: it
    /// sends one that has answered all that it lacks.
    pub(super) fn hold_members(&mut self) {
        if self.pace.throttle.names_nobody() && self.pace.held.is_empty() {
            return;
        }
        let held = match self.is_leader() {
            true => self.to_hold(),
            false => Vec::new(),
        };
        let before = std::mem::replace(&mut self.pace.held, held);
        let is_held = |held: &[(u64, Sides)], id| held.iter().any(|(other, _)| *other == id);
        let released: Vec<u64> = before
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| !is_held(&self.pace.held, *id))
            .collect();
        for id in released {
            self.open_window(id);
            self.send_one(id);
        }
        for (id, _) in self.pace.held.clone() {
            if !self.has_been_sent_all(id) {
                self.shut_window(id);
            }
        }
    }

    fn has_been_sent_all(&self, id: u64) -> bool {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        raft.prs()
            .get(id)
            .is_some_and(|progress| progress.next_idx > last)
    }

    /// The throttled members that are not in sync.
    fn to_hold(&self) -> Vec<(u64, Sides)> {
        let throttle = &self.pace.throttle;
        let own = self.raw.raft.id;
        let leader = throttle
            .leaders
            .contains(throttle.partition, broker_id(own));
        let members = self.raw.raft.prs().iter().map(|(id, _)| *id);
        let throttled = members.filter_map(|id| {
            let follower = throttle
                .followers
                .contains(throttle.partition, broker_id(id));
            let sides = Sides { leader, follower };
            (id != own && sides.any() && !self.keeps_up(id)).then_some((id, sides))
        });
        throttled.collect()
    }

    fn open_window(&mut self, id: u64) {
        let raft = &mut self.raw.raft;
        raft.adjust_max_inflight_msgs(id, INFLIGHT_MESSAGES_MAX);
    }

    fn shut_window(&mut self, id: u64) {
        self.raw.raft.adjust_max_inflight_msgs(id, 0);
    }

    /// Sends the next message of entries, if there are any for that member and it may be sent one; how
    /// many bytes.
    fn send_one(&mut self, id: u64) -> u64 {
        if !self.is_leader() {
            return 0;
        }
        let raft = &mut self.raw.raft;
        let last = raft.raft_log.last_index();
        let has_more = raft
            .prs()
            .get(id)
            .is_some_and(|progress| !progress.is_paused() && progress.next_idx <= last);
        if !has_more {
            return 0;
        }
        let before = raft.msgs.len();
        raft.send_append(id);
        raft.msgs.iter().skip(before).map(entry_bytes).sum()
    }

    /// Charges what Raft sends to members that are held back on its own account: a new one gets a message at
    /// once, and one that is probed with each answer to a heartbeat.
    pub(super) fn charge(&mut self, messages: &[Message]) {
        let mut known = std::mem::take(&mut self.pace.known_bytes);
        if self.pace.throttle.names_nobody() || !self.is_leader() {
            return;
        }
        for (id, sides) in self.to_hold() {
            let to = messages.iter().filter(|message| message.to == id);
            let bytes: u64 = to.map(entry_bytes).sum();
            let unknown = bytes.saturating_sub(known);
            known = known.saturating_sub(bytes);
            let quotas = &self.pace.throttle.quotas;
            quotas.take(broker_id(id), sides, unknown);
        }
    }
}

fn entry_bytes(message: &Message) -> u64 {
    if message.get_msg_type() != MessageType::MsgAppend {
        return 0;
    }
    message
        .entries
        .iter()
        .map(|entry| (entry.data.len() + entry.context.len()) as u64)
        .sum()
}
