//! What becomes of Raft's `Ready`: entries are written and applied, messages leave or wait for a sync.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry as RaftEntry, EntryType, Message, Snapshot};
use streamgauge_storage::{RaftIndex, Term};

use super::super::log_storage::{InternalKind, internal_kind, to_log_entry};
use super::super::membership::Membership;
use super::super::start_here::StartHere;
use super::{GroupError, Progress, RaftGroup, Replicated};

impl RaftGroup {
    /// Whether [`Self::drive`] has anything to do.
    pub fn has_ready(&self) -> bool {
        !self.proposals.is_empty() || self.raw.has_ready()
    }

    /// The membership that the log's replacement, which the next turn makes, will come with. It must be
    /// durable before: the new log does not tell it, and the old one does not contradict it.
    pub fn membership_to_come(&self, now_ms: i64) -> Option<Membership> {
        let snapshot = self.raw.snap()?;
        let metadata = snapshot.get_metadata();
        let (index, term) = (RaftIndex(metadata.index), Term(metadata.term));
        let start = StartHere::decode(index, term, &snapshot.data, now_ms).ok()?;
        Some(Membership {
            conf: metadata.get_conf_state().clone(),
            index: start.conf_index,
            settled: start.settled,
            joins_after: self.membership().joins_after,
        })
    }

    /// Takes what Raft has ready: appends its entries to the log, applies membership changes and
    /// reports what the caller must save, sync and send.
    ///
    /// After an error the group must not be driven again; [`Self::into_parts`] gives its log back.
    pub fn drive(&mut self, now_ms: i64) -> Result<Progress, GroupError> {
        self.check_readable()?;
        let mut progress = Progress {
            proposals_refused: !self.hand_over_proposals()?,
            ..Progress::default()
        };
        let mut ready = self.raw.ready();
        progress.messages = ready.take_messages();
        let mut after_sync = ready.take_persisted_messages();
        self.charge(&progress.messages);
        self.mark_messages(&mut progress.messages);
        self.mark_messages(&mut after_sync);
        self.stamp_messages(&mut progress.messages);
        self.stamp_messages(&mut after_sync);
        if ready.snapshot().get_metadata().index > 0 {
            let start = self.start_anew(ready.snapshot(), now_ms)?;
            progress.membership_changed = true;
            progress.committed = Some(start.start.index);
            progress.started_anew = Some(Box::new(start));
        }
        let entries = ready.take_entries();
        if let Some(first) = entries.first() {
            progress.replicated = self.append(first.index, &entries, now_ms)?;
        }
        if let Some(hard_state) = ready.hs() {
            self.raw.mut_store().hard_state = hard_state.clone();
            if ready.must_sync() {
                progress.hard_state = Some(hard_state.clone());
            }
        }
        if ready.must_sync() {
            progress.ready_number = Some(ready.number());
        }
        let number = ready.number();
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        if progress.started_anew.is_some() {
            self.started_in = Some((number, self.committed.0));
        }
        self.last_ready = number;
        if progress.ready_number.is_some() {
            self.unsynced.push_back(number);
        } else if self.unsynced.is_empty() {
            self.raw.on_persist_ready(number);
        }
        if !after_sync.is_empty() {
            self.held_back.push_back((number, after_sync));
        }
        progress.messages.extend(self.release());
        self.apply(committed, &mut progress)?;
        self.changed();
        self.hold_members();
        Ok(progress)
    }

    /// A leader whose log cannot be read cannot bring up others. The only voter goes on: there is nobody else.
    fn check_readable(&self) -> Result<(), GroupError> {
        let Some(error) = self.raw.store().unread.take() else {
            return Ok(());
        };
        if self.membership().is_sole_voter(self.raw.raft.id) {
            tracing::error!(%error, "the log cannot be read for a follower");
            return Ok(());
        }
        Err(GroupError::Unreadable(error))
    }

    /// Replaces the log by an empty one that begins where the leader says.
    fn start_anew(&mut self, snapshot: &Snapshot, now_ms: i64) -> Result<StartHere, GroupError> {
        let metadata = snapshot.get_metadata();
        let (index, term) = (RaftIndex(metadata.index), Term(metadata.term));
        let start = StartHere::decode(index, term, &snapshot.data, now_ms)?;
        let storage = self.raw.mut_store();
        storage.log.start_anew(
            start.start,
            start.log_start_offset,
            &start.producers,
            now_ms,
        )?;
        storage.membership = Membership {
            conf: metadata.get_conf_state().clone(),
            index: start.conf_index,
            settled: start.settled,
            joins_after: storage.membership.joins_after,
        };
        self.committed = index;
        Ok(start)
    }

    /// The messages that wait for nothing any more.
    fn release(&mut self) -> Vec<Message> {
        let mut released = Vec::new();
        let first_unsynced = self.unsynced.front().copied().unwrap_or(u64::MAX);
        while let Some((_, messages)) = self
            .held_back
            .pop_front_if(|(number, _)| *number < first_unsynced)
        {
            released.extend(messages);
        }
        released
    }

    fn append(
        &mut self,
        first: u64,
        entries: &[RaftEntry],
        now_ms: i64,
    ) -> Result<Vec<Replicated>, GroupError> {
        let term = self.raw.raft.term;
        let is_leader = self.is_leader();
        let log = self.log_mut();
        if first <= log.last_index().0 {
            log.truncate_from(RaftIndex(first))?;
        }
        let mut frames = Vec::with_capacity(entries.len());
        let mut next_offset = log.next_offset();
        for entry in entries {
            let frame = to_log_entry(entry, next_offset)?;
            next_offset = frame.batch.header().next_offset();
            frames.push(frame);
        }
        log.append(&frames, now_ms)?;
        if is_leader && self.term_start.is_none_or(|(of, _)| of != Term(term)) {
            // A new leader's first entry is its no-op; earlier terms' entries are in the log already.
            self.term_start = entries
                .iter()
                .find(|entry| entry.term == term)
                .map(|entry| (Term(term), RaftIndex(entry.index)));
        }
        // What a leader writes it has proposed in this very term, and knows.
        let is_own = is_leader && entries.iter().all(|entry| entry.term == term);
        if is_own {
            return Ok(Vec::new());
        }
        let replicated = frames.iter().map(|frame| Replicated {
            header: frame.batch.header(),
            marker: frame.batch.transaction_marker(),
        });
        Ok(replicated.collect())
    }

    fn apply(
        &mut self,
        committed: Vec<RaftEntry>,
        progress: &mut Progress,
    ) -> Result<(), GroupError> {
        let Some(last) = committed.last() else {
            return Ok(());
        };
        let last = RaftIndex(last.index);
        for entry in &committed {
            if entry.get_entry_type() == EntryType::EntryNormal {
                let payload = entry.data.first_chunk();
                match (internal_kind(entry), payload) {
                    (Some(InternalKind::LogStart), Some(offset)) => {
                        let offset = i64::from_be_bytes(*offset);
                        progress.log_start_offset = progress.log_start_offset.max(Some(offset));
                    }
                    (Some(InternalKind::Settled), Some(epoch)) => {
                        let membership = &mut self.raw.mut_store().membership;
                        membership.settled = membership.settled.max(u64::from_be_bytes(*epoch));
                        progress.membership_changed = true;
                    }
                    _ => {}
                }
                continue;
            }
            if entry.index <= self.membership().index {
                // The leader's place to begin came with a membership that includes it.
                continue;
            }
            let change = ConfChangeV2::parse_from_bytes(&entry.data)
                .map_err(|error| GroupError::ConfChange(error.to_string()))?;
            let conf_state = self.raw.apply_conf_change(&change).map_err(|error| {
                let (index, members) = (entry.index, self.membership());
                GroupError::ConfChange(format!("entry {index} after {members:?}: {error}"))
            })?;
            tracing::info!(
                ?conf_state,
                index = entry.index,
                "the group's members changed"
            );
            let membership = &mut self.raw.mut_store().membership;
            membership.conf = conf_state;
            membership.index = entry.index;
            let members = self.raw.raft.prs();
            self.followers.keep_only(|id| members.get(id).is_some());
            progress.membership_changed = true;
            self.leave_if_removed();
        }
        self.raw.advance_apply_to(last.0);
        self.committed = last;
        progress.committed = Some(last);
        Ok(())
    }

    /// Whether nothing but the `Ready` with that number waits for a sync.
    pub fn only_waits_for(&self, ready_number: u64) -> bool {
        self.unsynced.iter().all(|number| *number == ready_number)
    }

    /// The log and the hard state of that `Ready`, and of those before it, are synced. Returns the
    /// messages that waited for it.
    #[must_use]
    pub fn persisted(&mut self, ready_number: u64) -> Vec<Message> {
        while self
            .unsynced
            .pop_front_if(|number| *number <= ready_number)
            .is_some()
        {}
        let through = match self.unsynced.is_empty() {
            true => self.last_ready,
            false => ready_number,
        };
        self.raw.on_persist_ready(through);
        if let Some((_, index)) = self.started_in.take_if(|(number, _)| *number <= through) {
            self.raw.advance_apply_to(index);
        }
        self.release()
    }
}
