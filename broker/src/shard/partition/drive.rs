//! Letting Raft go on: entries are written, what is committed is published.

use raft::eraftpb::Message;
use streamgauge_storage::hard_state::SavedState;
use streamgauge_storage::log::{Log, SyncCover, SyncTicket};
use streamgauge_storage::producer_state::{CompletedTransaction, ProducerBatch};
use streamgauge_storage::{RaftIndex, StorageError};

use super::{Life, Partition, ReadyToken, Turn};
use crate::config::Flush;
use crate::replication::group::{GroupError, Progress, RaftGroup, Replicated};
use crate::replication::membership::Membership;
use crate::shard::event::AppendError;

impl Partition {
    /// Whether [`Self::drive`] has anything to do.
    pub fn has_ready(&self) -> bool {
        matches!(&self.life, Life::Running(group) if group.has_ready())
    }

    /// Lets Raft go on: entries are written, commits are published and answered.
    pub fn drive(&mut self, now_ms: i64) -> Turn {
        let mut turn = Turn::default();
        let Life::Running(group) = &mut self.life else {
            return turn;
        };
        let applied_before = group.committed();
        let progress = match group.drive(now_ms) {
            Ok(progress) => progress,
            Err(error) => {
                self.suspend(&error, now_ms);
                return turn;
            }
        };
        if let Some(offset) = progress.log_start_offset {
            if let Err(error) = group.log_mut().set_log_start_offset(offset) {
                // What this turn has written stays in the log, and the producers have to know it.
                self.take_replicated(&progress);
                self.suspend(&error.into(), now_ms);
                if let Life::Suspended { parts, .. } = &mut self.life {
                    // What was committed and could not be done is handed out again.
                    parts.hard_state.commit = parts.hard_state.commit.min(applied_before.0);
                }
                return turn;
            }
            self.view.publish_change();
        }
        let save = progress.hard_state.is_some() || progress.membership_changed;
        turn.state = save.then(|| saved_state(group));
        if let Some(number) = progress.ready_number {
            let relaxed = match self.config.flush {
                Flush::BeforeAcknowledge => false,
                Flush::Relaxed { messages, ms } => {
                    self.unsynced_messages < messages.unsigned_abs()
                        && now_ms.saturating_sub(self.last_flush_ms) < ms
                }
            };
            // Terms, votes and membership are never relaxed.
            if relaxed && !save && group.only_waits_for(number) {
                turn.messages = group.persisted(number);
            } else {
                self.unsynced_messages = 0;
                self.last_flush_ms = now_ms;
                turn.ready = Some(ReadyToken {
                    incarnation: self.incarnation,
                    number,
                });
                turn.sync = group.log_mut().sync_ticket();
            }
        }
        self.take_replicated(&progress);
        if progress.proposals_refused {
            self.forget_proposals();
        }
        turn.messages.extend(progress.messages);
        for (appended, reply) in self.unwritten.drain(..) {
            drop(reply.send(Ok(appended)));
        }
        if let Some(committed) = progress.committed {
            self.apply(committed, now_ms);
            self.answer_deletes(committed);
        }
        if progress.membership_changed {
            self.publish_settled();
        }
        self.settle_leadership();
        turn
    }

    /// What must be durable before the next turn: it will replace the log by one that begins later.
    pub fn state_to_come(&self, now_ms: i64) -> Option<SavedState> {
        let Life::Running(group) = &self.life else {
            return None;
        };
        let membership = group.membership_to_come(now_ms)?;
        Some(saved_with(group, &membership))
    }

    /// What was proposed last did not get into the log. Whoever waits asks again, perhaps for what
    /// did and will be committed; the producers know it then.
    fn forget_proposals(&mut self) {
        let Some(end) = self.log().map(Log::next_offset) else {
            return;
        };
        self.next_offset = end;
        self.producers.drop_in_flight_from(end);
        self.refuse_pending(&AppendError::NotLeader);
    }

    /// What a follower has written, for the producers: once committed, this replica may have to
    /// tell duplicates from new batches.
    fn take_replicated(&mut self, progress: &Progress) {
        if let Some(start) = &progress.started_anew {
            tracing::info!(
                topic = %self.topic,
                partition = self.view.key().index,
                offset = start.start.offset,
                "the replica was too far behind and begins where the leader's log does"
            );
            self.producers = start.producers.clone();
            self.snapshot_offset = self.producers.committed_end_offset();
            self.view.publish_change();
        }
        let Some(first) = progress.replicated.first() else {
            return;
        };
        let mut past = Vec::new();
        self.producers.drop_in_flight_from(first.header.base_offset);
        for Replicated { header, marker } in &progress.replicated {
            self.unsynced_messages += u64::from(header.records_count.unsigned_abs());
            let Some(batch) = ProducerBatch::from_header(header, *marker) else {
                continue;
            };
            // A leader that says where to begin may tell of the producers of later batches. Those are
            // committed, whatever this replica knows of that.
            if header.base_offset < self.producers.committed_end_offset() {
                past.extend(self.producers.note_past(&batch));
                continue;
            }
            self.producers.append_in_flight(batch);
        }
        self.note_completed(&past);
    }

    /// What the group must not forget, if it runs.
    pub fn saved_state(&self) -> Option<SavedState> {
        match &self.life {
            Life::Running(group) => Some(saved_state(group)),
            _ => None,
        }
    }

    /// The group's state could not be written: what depends on it must not leave.
    pub fn state_not_saved(&mut self, error: &StorageError, now_ms: i64) {
        self.suspend(&GroupError::State(error.to_string()), now_ms);
    }

    /// Syncs what a looser flush policy has left unsynced for its interval.
    pub fn flush_overdue(&mut self, now_ms: i64) -> Option<SyncTicket> {
        let Flush::Relaxed { ms, .. } = self.config.flush else {
            return None;
        };
        if self.unsynced_messages == 0 || now_ms.saturating_sub(self.last_flush_ms) < ms {
            return None;
        }
        self.unsynced_messages = 0;
        self.last_flush_ms = now_ms;
        self.log_mut()?.sync_ticket()
    }

    /// Tells the log of transactions that have ended; `false` if the disk did not let it.
    fn note_completed(&mut self, completed: &[CompletedTransaction]) -> bool {
        let Some(log) = self.log() else {
            return false;
        };
        let noted = completed
            .iter()
            .try_for_each(|completed| log.note_completed(completed));
        if let Err(error) = noted {
            self.fail(&error.to_string());
            return false;
        }
        true
    }

    pub(super) fn apply(&mut self, committed: RaftIndex, now_ms: i64) {
        let Life::Running(group) = &self.life else {
            return;
        };
        let high_watermark = match group.log().offset_after(committed) {
            Ok(offset) => offset,
            Err(error) => {
                self.fail(&error.to_string());
                return;
            }
        };
        // A group that starts anew may know less of what is committed than it did.
        let high_watermark = high_watermark.max(self.view.high_watermark());
        let completed = self.producers.commit_through(high_watermark, now_ms);
        // Before it is shown that they are decided.
        if !self.note_completed(&completed) {
            return;
        }
        let last_stable_offset = self
            .producers
            .last_stable_offset(self.view.log_start_offset(), high_watermark)
            .unwrap_or_default()
            .max(self.view.last_stable_offset());
        self.view
            .publish_positions(high_watermark, last_stable_offset);
        self.answer_held();
    }

    /// The sync of that `Ready` has ended; returns the messages that waited for it.
    pub fn synced(&mut self, token: ReadyToken) -> Vec<Message> {
        match &mut self.life {
            Life::Running(group) if token.incarnation == self.incarnation => {
                let messages = group.persisted(token.number);
                self.answer_held();
                messages
            }
            _ => Vec::new(),
        }
    }

    /// What has to be synced and then saved, for a restart to know what is committed now; `None` if the group does not run.
    pub fn commit_to_save(&mut self) -> Option<(Option<SyncTicket>, SavedState)> {
        let Life::Running(group) = &mut self.life else {
            return None;
        };
        let state = saved_state(group);
        Some((group.log_mut().sync_ticket(), state))
    }

    /// What a sync covers is durable.
    pub fn durable(&mut self, cover: SyncCover) {
        if let Some(log) = self.log_mut() {
            log.synced(cover);
        }
    }
}

pub(super) fn saved_state(group: &RaftGroup) -> SavedState {
    saved_with(group, group.membership())
}

fn saved_with(group: &RaftGroup, membership: &Membership) -> SavedState {
    let (hard_state, conf_state) = (group.hard_state(), &membership.conf);
    SavedState {
        term: hard_state.term,
        vote: hard_state.vote,
        // What has been applied: a restart goes on from there.
        commit: group.committed().0,
        conf_index: membership.index,
        settled: membership.settled,
        joins_after: membership.joins_after,
        voters: conf_state.voters.clone(),
        learners: conf_state.learners.clone(),
        voters_outgoing: conf_state.voters_outgoing.clone(),
        learners_next: conf_state.learners_next.clone(),
        auto_leave: conf_state.auto_leave,
    }
}
