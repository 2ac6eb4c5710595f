//! Appends: what is checked before a batch is proposed, and when its producer is answered.

use std::collections::VecDeque;

use bytes::Bytes;
use streamgauge_protocol::batch::validate::with_timestamps;
use streamgauge_protocol::batch::{BatchHeader, StampedBatch, TimestampType as BatchTimestampType};
use streamgauge_storage::RaftIndex;
use streamgauge_storage::log::Log;
use streamgauge_storage::producer_state::{
    AppendOrigin, ProducerBatch, ProducerBatchKind, ProducerState, ProducerStateError,
    TransactionMarker, Verdict, Verification, VerificationGuard, Verifications,
};

use super::{EARLIER_FAILURE, Life, Partition, Pending};
use crate::config::{TimestampType, TopicConfig};
use crate::replication::group::{GroupError, RaftGroup};
use crate::shard::event::{Acks, Append, AppendError, Appended};

impl Partition {
    /// Takes one batch: gives it its offset and epoch and proposes it. Answers at once if it is
    /// refused or a duplicate of what is committed; else the answer comes with `acks`.
    pub fn append(&mut self, append: Append, now_ms: i64) {
        let Append {
            batch,
            acks,
            origin,
            guard,
            leader_epoch,
            wait_ms_max,
            reply,
        } = append;
        if leader_epoch.is_some_and(|epoch| epoch != self.view.leader_epoch()) {
            drop(reply.send(Err(AppendError::NotLeader)));
            return;
        }
        // A client that has gone away does not want to know.
        match self.propose(batch, acks, (origin, guard), now_ms) {
            Err(error) => {
                if matches!(
                    error,
                    AppendError::NotLeader
                        | AppendError::NotEnoughReplicas { .. }
                        | AppendError::Storage(_)
                ) {
                    self.refusals.note(self.log_end(), now_ms);
                }
                drop(reply.send(Err(error)));
            }
            Ok(Proposed::Done(appended)) => drop(reply.send(Ok(appended))),
            Ok(Proposed::AtCommit { index, appended }) => match acks {
                // Who wants no answer is told all the same: silence would be taken for an error,
                // and the connection closed.
                Acks::None | Acks::Leader => self.unwritten.push((appended, reply)),
                Acks::All => self.pending.push_back(Pending {
                    index,
                    appended,
                    deadline_ms: now_ms.saturating_add(wait_ms_max),
                    reply,
                }),
            },
        }
    }

    fn propose(
        &mut self,
        batch: Bytes,
        acks: Acks,
        (origin, guard): (AppendOrigin, Option<VerificationGuard>),
        now_ms: i64,
    ) -> Result<Proposed, AppendError> {
        let Life::Running(group) = &mut self.life else {
            return Err(AppendError::Storage(EARLIER_FAILURE.to_owned()));
        };
        // A handover refuses before the producer is checked: of the batches that it has sent one after
        // the other, the first would be refused for that, the next for the gap that this left, and a
        // client that hears of a gap may begin a new epoch, in which duplicates are not known.
        if !self.leads || !group.may_serve() || group.is_handing_over() {
            return Err(AppendError::NotLeader);
        }
        let wanted = replicas_wanted(&self.config, group);
        if acks == Acks::All && wanted > 1 {
            let in_sync = group.in_sync_count();
            if in_sync < wanted {
                return Err(AppendError::NotEnoughReplicas { in_sync, wanted });
            }
        }
        let leader_epoch = group.term().leader_epoch();
        let append_time = self.config.message_timestamp_type == TimestampType::LogAppendTime;
        let batch = if append_time {
            with_timestamps(&batch, BatchTimestampType::LogAppendTime, now_ms)
                .map_err(|error| AppendError::InvalidRecord(error.to_string()))?
        } else {
            batch
        };
        let header = BatchHeader::parse(&batch)
            .map_err(|error| AppendError::InvalidRecord(error.to_string()))?;
        let log_append_time_ms = if append_time { now_ms } else { -1 };
        let log_start_offset = self.view.log_start_offset();
        let placed = |base_offset, last_offset| Appended {
            base_offset,
            last_offset,
            log_append_time_ms,
            log_start_offset,
            leader_epoch,
        };
        let base_offset = self.next_offset;
        let placed_header = BatchHeader {
            base_offset,
            partition_leader_epoch: leader_epoch,
            ..header
        };
        let marker = marker_of(&header, &batch, origin)?;
        let from_producer = ProducerBatch::from_header(&placed_header, marker);
        if let Some(batch) = &from_producer {
            let tip = self.producers.tip(batch.producer_id);
            if origin == AppendOrigin::Client && self.refusals.may_have_made_gap(batch, tip, now_ms)
            {
                return Err(AppendError::PredecessorRefused);
            }
            match self.producers.check(batch, origin) {
                Verdict::Append => {}
                Verdict::Duplicate(original) => {
                    let appended = placed(original.base_offset, original.last_offset);
                    if acks == Acks::All && wanted > group.majority() {
                        // Committed, and perhaps not yet where the setting wants it.
                        let index = RaftIndex(group.next_index().0 - 1);
                        return Ok(Proposed::AtCommit { index, appended });
                    }
                    return Ok(Proposed::Done(appended));
                }
                Verdict::DuplicateInFlight(original) => {
                    return Ok(Proposed::AtCommit {
                        // The original's entry is at or before the last proposed one.
                        index: RaftIndex(group.next_index().0 - 1),
                        appended: placed(original.base_offset, original.last_offset),
                    });
                }
                Verdict::Error(error) => return Err(error.into()),
            }
            check_verified(batch, origin, guard, &self.verifications, &self.producers)?;
        }
        let stamped = StampedBatch::stamp(batch, base_offset, leader_epoch)
            .map_err(|error| AppendError::InvalidRecord(error.to_string()))?;
        let index = group.propose(stamped)?;
        if let Some(batch) = from_producer {
            self.producers.append_in_flight(batch);
            if header.is_transactional() {
                self.verifications.end(batch.producer_id);
            }
        }
        self.next_offset = placed_header.next_offset();
        self.unsynced_messages += u64::from(header.records_count.unsigned_abs());
        Ok(Proposed::AtCommit {
            index,
            appended: placed(base_offset, placed_header.last_offset()),
        })
    }

    /// The offset after all that has been written or proposed here.
    fn log_end(&self) -> i64 {
        let written = self.log().map_or(0, Log::next_offset);
        written.max(self.next_offset)
    }

    /// See [`crate::shard::event::Event::BeginVerification`].
    pub fn begin_verification(
        &mut self,
        wanted: &Verification,
        now_ms: i64,
    ) -> Option<VerificationGuard> {
        if !self.leads {
            return None;
        }
        let tip = self.producers.tip(wanted.producer_id);
        self.verifications.begin(wanted, tip, now_ms)
    }

    /// See [`crate::shard::event::Event::Judge`].
    pub fn judge(
        &self,
        batch: &ProducerBatch,
        origin: AppendOrigin,
        guard: Option<VerificationGuard>,
    ) -> Result<(), AppendError> {
        if !self.leads {
            return Err(AppendError::NotLeader);
        }
        match self.producers.check(batch, origin) {
            Verdict::Error(error) => Err(error.into()),
            _ => check_verified(batch, origin, guard, &self.verifications, &self.producers),
        }
    }

    /// Answers the appends that are committed and held by as many replicas as the topic wants.
    pub(super) fn answer_held(&mut self) {
        let Life::Running(group) = &self.life else {
            return;
        };
        if self.pending.is_empty() {
            return;
        }
        let committed = group.committed();
        let wanted = replicas_wanted(&self.config, group);
        // A majority holds whatever is committed.
        let majority_will_do = wanted <= group.majority();
        while let Some(pending) = self.pending.pop_front_if(|pending| {
            pending.index <= committed
                && (majority_will_do || group.holders_count(pending.index) >= wanted)
        }) {
            drop(pending.reply.send(Ok(pending.appended)));
        }
    }

    /// Answers the appends that have waited as long as their clients do, and those for which there
    /// are too few replicas now. What is written stays written.
    pub(super) fn refuse_overdue(&mut self, now_ms: i64) {
        let Life::Running(group) = &self.life else {
            return;
        };
        if self.pending.is_empty() {
            return;
        }
        let committed = group.committed();
        let wanted = replicas_wanted(&self.config, group);
        let too_few = wanted > 1 && group.in_sync_count() < wanted;
        let mut waiting = VecDeque::with_capacity(self.pending.len());
        for pending in self.pending.drain(..) {
            let is_committed = pending.index <= committed;
            let error = if is_committed && (too_few || pending.deadline_ms <= now_ms) {
                AppendError::NotEnoughReplicasAfterAppend { wanted }
            } else if pending.deadline_ms <= now_ms {
                AppendError::TimedOut
            } else {
                waiting.push_back(pending);
                continue;
            };
            drop(pending.reply.send(Err(error)));
        }
        self.pending = waiting;
    }
}

enum Proposed {
    Done(Appended),
    AtCommit {
        index: RaftIndex,
        appended: Appended,
    },
}

/// The marker in a control batch, which a transaction coordinator alone may write.
fn marker_of(
    header: &BatchHeader,
    batch: &Bytes,
    origin: AppendOrigin,
) -> Result<Option<TransactionMarker>, AppendError> {
    let invalid = |reason: &str| Err(AppendError::InvalidRecord(reason.to_owned()));
    match (header.is_control(), origin) {
        (false, AppendOrigin::Marker { .. }) => invalid("a marker stands in a control batch"),
        (false, _) => Ok(None),
        (true, AppendOrigin::Marker { .. }) => match TransactionMarker::of_batch(batch) {
            Some(marker) => Ok(Some(marker)),
            None => invalid("a control batch without a readable marker"),
        },
        (true, _) => invalid("only a transaction coordinator writes control batches"),
    }
}

/// A transactional batch belongs to a transaction that is open here, or that its coordinator has said to
/// be open (KIP-890).
fn check_verified(
    batch: &ProducerBatch,
    origin: AppendOrigin,
    guard: Option<VerificationGuard>,
    verifications: &Verifications,
    producers: &ProducerState,
) -> Result<(), AppendError> {
    let ProducerBatchKind::Data {
        is_transactional: true,
    } = batch.kind
    else {
        return Ok(());
    };
    let tip = producers.tip(batch.producer_id);
    if !verifications.allows(batch, tip, guard) {
        return Err(AppendError::InvalidTxnState(
            "the transaction has not been verified with its coordinator".to_owned(),
        ));
    }
    if origin == AppendOrigin::Client {
        verifications.check_sequence(batch, tip)?;
    }
    Ok(())
}

impl From<ProducerStateError> for AppendError {
    fn from(error: ProducerStateError) -> Self {
        let text = error.to_string();
        match error {
            ProducerStateError::OutOfOrderSequence { .. }
            | ProducerStateError::NewEpochNotAtZero { .. } => Self::OutOfOrderSequence(text),
            ProducerStateError::InvalidProducerEpoch { .. } => Self::InvalidProducerEpoch(text),
            ProducerStateError::InvalidTransactionState { .. } => Self::InvalidTxnState(text),
            ProducerStateError::TransactionCoordinatorFenced { .. } => {
                Self::TransactionCoordinatorFenced(text)
            }
        }
    }
}

impl From<GroupError> for AppendError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::NotLeader => Self::NotLeader,
            other => Self::Storage(other.to_string()),
        }
    }
}

/// How many replicas must be in sync, and hold a batch, for `acks=all`: no more than there are.
fn replicas_wanted(config: &TopicConfig, group: &RaftGroup) -> usize {
    usize::try_from(config.min_insync_replicas)
        .unwrap_or(1)
        .min(group.voters_count())
}
