//! What a leader is asked to write, on its way to Raft.

use raft::eraftpb::{Entry as RaftEntry, Message, MessageType};
use streamgauge_protocol::batch::StampedBatch;
use streamgauge_storage::RaftIndex;

use super::super::log_storage::InternalKind;
use super::{GroupError, RaftGroup};

impl RaftGroup {
    /// The index that the next proposed entry takes.
    pub fn next_index(&self) -> RaftIndex {
        RaftIndex(self.raw.raft.raft_log.last_index() + self.proposals.len() as u64 + 1)
    }

    /// Proposes one batch that has been stamped with its offset and this leader's epoch.
    ///
    /// The stamped prefix travels in the entry's context and the rest, a slice of the client's
    /// frame, in its data: nothing is copied. A follower would forward a proposal to its leader,
    /// where the offset could be anybody's; so only a leader takes one.
    pub fn propose(&mut self, batch: StampedBatch) -> Result<RaftIndex, GroupError> {
        if !self.is_leader() {
            return Err(GroupError::NotLeader);
        }
        self.propose_entry(RaftEntry {
            context: bytes::Bytes::copy_from_slice(batch.prefix()),
            data: batch.body().clone(),
            ..RaftEntry::default()
        })
    }

    /// Proposes that the log start offset be moved up, on all replicas.
    pub fn propose_log_start(&mut self, offset: i64) -> Result<RaftIndex, GroupError> {
        if !self.is_leader() {
            return Err(GroupError::NotLeader);
        }
        self.propose_entry(RaftEntry {
            context: bytes::Bytes::from_static(&[InternalKind::LogStart as u8]),
            data: bytes::Bytes::copy_from_slice(&offset.to_be_bytes()),
            ..RaftEntry::default()
        })
    }

    /// All that is proposed between two turns goes to Raft, and to each follower, as one message.
    pub(super) fn propose_entry(&mut self, entry: RaftEntry) -> Result<RaftIndex, GroupError> {
        if self.is_handing_over() {
            return Err(GroupError::NotLeader);
        }
        if self.proposals.is_empty() {
            self.proposals_term = self.term();
        } else if self.proposals_term != self.term() {
            return Err(GroupError::NotLeader);
        }
        let index = self.next_index();
        self.proposals.push(entry);
        Ok(index)
    }

    /// Whether Raft took what was proposed. It does not if the leadership was lost since, or is
    /// being handed over.
    pub(super) fn hand_over_proposals(&mut self) -> Result<bool, GroupError> {
        if self.proposals.is_empty() {
            return Ok(true);
        }
        let entries = std::mem::take(&mut self.proposals);
        if !self.is_leader() || self.proposals_term != self.term() {
            self.step_under_way = None;
            return Ok(false);
        }
        let mut message = Message {
            from: self.raw.raft.id,
            ..Message::default()
        };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        match self.raw.raft.step(message) {
            Ok(()) => Ok(true),
            Err(raft::Error::ProposalDropped) => {
                self.step_under_way = None;
                Ok(false)
            }
            Err(error) => Err(GroupError::Propose(error)),
        }
    }
}
