//! A replica that is removed and added again forgets all that it had acknowledged. What its former
//! self hears and says must not count for it.
//!
//! Brokers hear of assignments one after the other, and some later than others. Where a partition leaves a
//! broker and comes back, its leader may know of both before the broker has heard of the first: the replica
//! that is still there has all that the new one is to have, and acknowledges it, and is removed then. Its
//! group would count on entries that nobody holds.
//!
//! So leaders say which assignment their group has reached last, and a replica that has not heard that it is
//! part of that one, or of the group on its way to a later one, does not listen. Followers say up to which
//! assignment they are known to last, and a leader does not count what comes from before its own.
//!
//! Both travel in a field that Raft uses in votes only, and there no more.

use raft::eraftpb::{Message, MessageType};

use super::super::membership::Target;
use super::RaftGroup;

impl RaftGroup {
    /// From now on this replica may be removed by an assignment that leaves it out, and come back.
    /// Those of the metadata log, from which assignments are learnt, are not.
    pub fn may_be_removed(&mut self) {
        self.lasts_through = Some(lasts_through(self.raw.raft.id, &self.target));
    }

    /// To be called when there is a new target.
    pub(super) fn assigned(&mut self) {
        if self.lasts_through.is_some() {
            self.may_be_removed();
        }
    }

    /// Says in what is sent what the other side must know.
    pub(super) fn stamp_messages(&self, messages: &mut [Message]) {
        let Some(lasts_through) = self.lasts_through else {
            return;
        };
        for message in messages {
            match message.get_msg_type() {
                MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                    message.deprecated_priority = self.membership().settled;
                }
                MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
                    message.deprecated_priority = lasts_through;
                }
                _ => {}
            }
        }
    }

    /// Whether that message is for a replica that this one is not, or from one that is no more. Takes
    /// off what [`Self::stamp_messages`] said.
    pub(super) fn is_of_another_replica(&self, message: &mut Message) -> bool {
        let Some(lasts_through) = self.lasts_through else {
            return false;
        };
        match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                std::mem::take(&mut message.deprecated_priority) > lasts_through
            }
            MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
                std::mem::take(&mut message.deprecated_priority) < self.membership().settled
            }
            _ => false,
        }
    }
}

/// The last assignment that this replica outlives for sure, as far as it has heard. One that leaves it out
/// ends it once it is reached, and not before: until then the group needs it.
fn lasts_through(own_id: u64, target: &Target) -> u64 {
    let stays =
        target.epoch == 0 || target.voters.contains(&own_id) || target.learners.contains(&own_id);
    match stays {
        true => target.epoch,
        false => target.epoch - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_lasts_until_an_assignment_without_it_is_reached() {
        let target = |epoch, voters: &[u64]| Target {
            epoch,
            voters: voters.to_vec(),
            learners: Vec::new(),
        };
        assert_eq!(lasts_through(1, &Target::default()), 0);
        assert_eq!(lasts_through(1, &target(3, &[2, 1])), 3);
        assert_eq!(lasts_through(1, &target(3, &[2])), 2);
    }
}
