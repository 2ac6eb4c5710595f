//! What a partition knows of its idempotent and transactional producers: the rules of Kafka's
//! `ProducerStateManager` and `ProducerAppendInfo` (KIP-98, KIP-360), as a pure state machine.
//!
//! Two layers. The *committed* layer is a function of the committed batches in log order, so that
//! every replica that has applied the same prefix has the same state. The *in-flight* layer holds
//! what the leader has appended and not yet seen committed; it is checked against, commits batch
//! by batch, and is dropped whole when the leader is deposed.

mod entry;
mod snapshot;
mod verification;

#[cfg(test)]
mod property_tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use streamgauge_protocol::batch::BatchHeader;
pub use streamgauge_protocol::batch::{TransactionMarker, TransactionResult};
use thiserror::Error;

pub use entry::{
    BATCHES_RETAINED, BatchMetadata, NO_PRODUCER_EPOCH, NO_SEQUENCE, ProducerEntry,
    sequence_before, sequence_follows,
};
pub use snapshot::SnapshotError;
pub use verification::{Verification, VerificationGuard, Verifications};

/// Producer state of one partition.
#[derive(Clone, Debug, Default)]
pub struct ProducerState {
    committed: HashMap<i64, ProducerEntry>,
    /// First offset of each open transaction in the committed layer -> its producer.
    open_transactions: BTreeMap<i64, i64>,
    /// Entries as they will be once everything in flight commits; only producers with a batch in flight.
    tips: HashMap<i64, Tip>,
    in_flight: VecDeque<ProducerBatch>,
    committed_end_offset: i64,
    /// For [`Self::note_past`]: the offset after each producer's last marker.
    past_markers: HashMap<i64, i64>,
}

#[derive(Clone, Debug)]
struct Tip {
    entry: ProducerEntry,
    in_flight_batches: usize,
}

/// What the producer state needs to know of one batch with a producer id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBatch {
    pub producer_id: i64,
    pub producer_epoch: i16,
    /// Sequence of the first record; -1 for markers and for batches written by a coordinator.
    pub base_sequence: i32,
    pub base_offset: i64,
    pub last_offset: i64,
    /// The batch header's max timestamp, in ms; for a marker the marker record's timestamp.
    pub max_timestamp: i64,
    pub kind: ProducerBatchKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProducerBatchKind {
    Data { is_transactional: bool },
    EndTransaction(TransactionMarker),
}

/// Who asks for the append; only a client's sequences are checked (Kafka's `AppendOrigin`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOrigin {
    Client,
    /// A group coordinator on this broker: epochs are checked, sequences are not.
    Coordinator,
    /// A transaction coordinator that ends a transaction. From transaction version 2 on (KIP-890) it raises the
    /// producer's epoch first, and a marker of an epoch that has been seen is late.
    Marker {
        transaction_version: i8,
    },
}

/// What is to be done with a batch that somebody wants to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// New: append it.
    Append,
    /// Appended and committed before: answer success with the first append's offsets.
    Duplicate(AppendedBatch),
    /// Appended before, not yet committed: answer when `last_offset` commits, fail if it does not.
    DuplicateInFlight(AppendedBatch),
    Error(ProducerStateError),
}

/// Where an earlier append of the same batch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendedBatch {
    pub base_offset: i64,
    pub last_offset: i64,
    /// Max timestamp of the appended batch, in ms.
    pub timestamp: i64,
}

/// Why a batch is refused. The comment names the Kafka error code that the client is sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProducerStateError {
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`
    #[error(
        "out of order sequence number for producer {producer_id}: {base_sequence} (incoming sequence), \
         {last_sequence} (current last sequence)"
    )]
    OutOfOrderSequence {
        producer_id: i64,
        base_sequence: i32,
        last_sequence: i32,
    },
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`
    #[error(
        "invalid sequence number for new epoch of producer {producer_id}: {producer_epoch} (request epoch), \
         {base_sequence} (sequence number), {current_epoch} (current producer epoch)"
    )]
    NewEpochNotAtZero {
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
        current_epoch: i16,
    },
    /// `INVALID_PRODUCER_EPOCH`
    #[error(
        "epoch of producer {producer_id} is {producer_epoch}, which is smaller than the last seen epoch {current_epoch}"
    )]
    InvalidProducerEpoch {
        producer_id: i64,
        producer_epoch: i16,
        current_epoch: i16,
    },
    /// `INVALID_TXN_STATE`
    #[error(
        "expected transactional write from producer {producer_id}, whose transaction is open since offset {first_offset}"
    )]
    InvalidTransactionState { producer_id: i64, first_offset: i64 },
    /// `TRANSACTION_COORDINATOR_FENCED`
    #[error(
        "invalid coordinator epoch for producer {producer_id}: {coordinator_epoch} (marker), {current_epoch} (last seen)"
    )]
    TransactionCoordinatorFenced {
        producer_id: i64,
        coordinator_epoch: i32,
        current_epoch: i32,
    },
}

/// A transaction whose end marker has committed; aborted ones go to the aborted-transaction index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
    /// Offset of the marker.
    pub last_offset: i64,
    pub result: TransactionResult,
    /// The last stable offset once this transaction is out of the way (a `.txnindex` field).
    pub last_stable_offset: i64,
}

impl ProducerState {
    /// The state of an empty partition, or of one whose log is to be replayed from its start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges a batch against everything appended so far, committed or in flight. Offsets in
    /// `batch` are not looked at. Changes nothing.
    pub fn check(&self, batch: &ProducerBatch, origin: AppendOrigin) -> Verdict {
        let Some(entry) = self.tip(batch.producer_id) else {
            // Never seen, expired, or lost with deleted segments: any sequence is accepted (KIP-360).
            return Verdict::Append;
        };
        if origin == AppendOrigin::Client
            && let Some(original) = entry.find_duplicate(batch)
        {
            let appended = AppendedBatch {
                base_offset: original.base_offset(),
                last_offset: original.last_offset,
                timestamp: original.timestamp,
            };
            return if self.is_in_flight(original.last_offset) {
                Verdict::DuplicateInFlight(appended)
            } else {
                Verdict::Duplicate(appended)
            };
        }
        match entry.validate(batch, origin) {
            Ok(()) => Verdict::Append,
            Err(error) => Verdict::Error(error),
        }
    }

    /// Records a batch that the leader has appended at `batch.base_offset` and not yet committed.
    /// Batches come in offset order.
    pub fn append_in_flight(&mut self, batch: ProducerBatch) {
        assert!(
            batch.base_offset >= self.committed_end_offset
                && self
                    .in_flight
                    .back()
                    .is_none_or(|last| last.last_offset < batch.base_offset),
            "in-flight batch at offset {} is not past what came before it",
            batch.base_offset
        );
        let tip = self.tips.entry(batch.producer_id).or_insert_with(|| Tip {
            entry: self
                .committed
                .get(&batch.producer_id)
                .cloned()
                .unwrap_or_else(|| ProducerEntry::new(batch.producer_id)),
            in_flight_batches: 0,
        });
        tip.entry.apply(&batch);
        tip.in_flight_batches += 1;
        self.in_flight.push_back(batch);
    }

    /// Moves every in-flight batch below `high_watermark` to the committed layer. Returns the
    /// transactions that ended, in log order.
    pub fn commit_through(
        &mut self,
        high_watermark: i64,
        now_ms: i64,
    ) -> Vec<CompletedTransaction> {
        let mut completed = Vec::new();
        while let Some(batch) = self.in_flight.front().copied()
            && batch.last_offset < high_watermark
        {
            self.in_flight.pop_front();
            completed.extend(self.apply_to_committed(&batch, now_ms));
            if let Some(tip) = self.tips.get_mut(&batch.producer_id) {
                tip.in_flight_batches -= 1;
                if tip.in_flight_batches == 0 {
                    self.tips.remove(&batch.producer_id);
                }
            }
        }
        self.committed_end_offset = self.committed_end_offset.max(high_watermark);
        completed
    }

    /// Applies a batch that is committed already: on a follower, and when the log is replayed.
    /// Nothing may be in flight below it. Checks nothing: what is committed has been judged.
    pub fn apply_committed(
        &mut self,
        batch: &ProducerBatch,
        now_ms: i64,
    ) -> Option<CompletedTransaction> {
        assert!(
            self.in_flight.is_empty(),
            "batch at offset {} applied past {} batches in flight",
            batch.base_offset,
            self.in_flight.len()
        );
        let completed = self.apply_to_committed(batch, now_ms);
        self.committed_end_offset = self.committed_end_offset.max(batch.last_offset + 1);
        completed
    }

    /// Looks at a batch that the state knows already, of a log that begins before a leader's snapshot of
    /// the state: which transactions ended there it does not know. Batches come in offset order.
    ///
    /// Where a transaction began is not known either. The end of the producer's last one does as well: in
    /// between it has written nothing else.
    pub fn note_past(&mut self, batch: &ProducerBatch) -> Option<CompletedTransaction> {
        let ProducerBatchKind::EndTransaction(marker) = batch.kind else {
            return None;
        };
        let ended_before = self
            .past_markers
            .insert(batch.producer_id, batch.last_offset + 1);
        Some(CompletedTransaction {
            producer_id: batch.producer_id,
            first_offset: ended_before.unwrap_or(0),
            last_offset: batch.last_offset,
            result: marker.result,
            // Others that are not known may have been open since any offset: readers look on.
            last_stable_offset: 0,
        })
    }

    /// Forgets what is in flight: the leader was deposed, or the append was lost.
    pub fn drop_in_flight(&mut self) {
        self.in_flight.clear();
        self.tips.clear();
    }

    /// Forgets what is in flight at `offset` and above: those appends were lost, the earlier ones
    /// are in the log and will be committed.
    pub fn drop_in_flight_from(&mut self, offset: i64) {
        let mut kept = std::mem::take(&mut self.in_flight);
        self.tips.clear();
        kept.retain(|batch| batch.last_offset < offset);
        for batch in kept {
            self.append_in_flight(batch);
        }
    }

    /// Forgets producers not heard of for `producer_id_expiration_ms`
    /// (`producer.id.expiration.ms`), except those with an open transaction or a batch in flight.
    /// Returns how many went. Unlike Kafka, age is counted from when the batch was applied, not
    /// from its own timestamp: a producer of old records keeps its duplicate window.
    pub fn expire(&mut self, now_ms: i64, producer_id_expiration_ms: i64) -> usize {
        let before = self.committed.len();
        let tips = &self.tips;
        self.committed.retain(|producer_id, entry| {
            entry.current_transaction_first_offset.is_some()
                || tips.contains_key(producer_id)
                || now_ms.saturating_sub(entry.last_seen_ms) < producer_id_expiration_ms
        });
        before - self.committed.len()
    }

    /// Says that offsets below `log_start_offset` are gone. Producers stay (KIP-360), and so do open
    /// transactions that began there: what follows of them is as undecided as before.
    pub fn advance_log_start(&mut self, log_start_offset: i64) {
        self.committed_end_offset = self.committed_end_offset.max(log_start_offset);
    }

    /// First offset of the oldest open transaction in the committed layer; it may lie before the
    /// log's start.
    pub fn first_unstable_offset(&self) -> Option<i64> {
        self.open_transactions.keys().next().copied()
    }

    /// The last stable offset of a log that begins at `log_start_offset`, if all below
    /// `high_watermark` is applied (`UnifiedLog.lastStableOffset`). `None` while the state knows more
    /// than that: which transactions were open then is not known.
    pub fn last_stable_offset(&self, log_start_offset: i64, high_watermark: i64) -> Option<i64> {
        if self.committed_end_offset > high_watermark {
            return None;
        }
        let first_unstable = self.first_unstable_offset().unwrap_or(high_watermark);
        Some(first_unstable.max(log_start_offset).min(high_watermark))
    }

    /// A producer's committed entry.
    pub fn committed(&self, producer_id: i64) -> Option<&ProducerEntry> {
        self.committed.get(&producer_id)
    }

    /// A producer's entry as it will be once everything in flight commits.
    pub fn tip(&self, producer_id: i64) -> Option<&ProducerEntry> {
        self.tips
            .get(&producer_id)
            .map(|tip| &tip.entry)
            .or_else(|| self.committed.get(&producer_id))
    }

    /// All committed entries, in no order (DescribeProducers, metrics).
    pub fn entries(&self) -> impl Iterator<Item = &ProducerEntry> {
        self.committed.values()
    }

    /// How many producers the committed layer knows.
    pub fn producer_count(&self) -> usize {
        self.committed.len()
    }

    /// How many batches are in flight.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Every batch below this offset has been applied to the committed layer; a snapshot of the
    /// state carries this offset in its file name.
    pub fn committed_end_offset(&self) -> i64 {
        self.committed_end_offset
    }

    fn is_in_flight(&self, last_offset: i64) -> bool {
        self.in_flight
            .front()
            .is_some_and(|first| last_offset >= first.base_offset)
    }

    fn apply_to_committed(
        &mut self,
        batch: &ProducerBatch,
        now_ms: i64,
    ) -> Option<CompletedTransaction> {
        let entry = self
            .committed
            .entry(batch.producer_id)
            .or_insert_with(|| ProducerEntry::new(batch.producer_id));
        let first_offset_before = entry.current_transaction_first_offset;
        entry.apply(batch);
        entry.last_seen_ms = entry.last_seen_ms.max(now_ms);
        match (first_offset_before, entry.current_transaction_first_offset) {
            (None, Some(first_offset)) => {
                self.open_transactions
                    .insert(first_offset, batch.producer_id);
                None
            }
            (Some(first_offset), None) => {
                self.open_transactions.remove(&first_offset);
                let ProducerBatchKind::EndTransaction(marker) = batch.kind else {
                    return None;
                };
                Some(CompletedTransaction {
                    producer_id: batch.producer_id,
                    first_offset,
                    last_offset: batch.last_offset,
                    result: marker.result,
                    last_stable_offset: self
                        .first_unstable_offset()
                        .unwrap_or(batch.last_offset + 1),
                })
            }
            _ => None,
        }
    }
}

impl ProducerBatch {
    /// What the state needs of a batch; `None` if it has no producer id, or is a control batch
    /// without `marker`, the content of its one record. The header has been validated.
    pub fn from_header(header: &BatchHeader, marker: Option<TransactionMarker>) -> Option<Self> {
        let kind = match (header.is_control(), marker) {
            _ if !header.has_producer_id() => return None,
            (true, None) => return None,
            (true, Some(marker)) => ProducerBatchKind::EndTransaction(marker),
            (false, _) => ProducerBatchKind::Data {
                is_transactional: header.is_transactional(),
            },
        };
        Some(Self {
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            max_timestamp: header.max_timestamp,
            kind,
        })
    }

    /// Of a transaction, as a coordinator writes it on a producer's behalf; without a place in the log yet.
    pub fn unsequenced(producer_id: i64, producer_epoch: i16) -> Self {
        Self {
            producer_id,
            producer_epoch,
            base_sequence: NO_SEQUENCE,
            base_offset: -1,
            last_offset: -1,
            max_timestamp: -1,
            kind: ProducerBatchKind::Data {
                is_transactional: true,
            },
        }
    }

    /// Sequence of the batch's last record; -1 if it has no sequence.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            return NO_SEQUENCE;
        }
        // `last_offset - base_offset` is the header's last offset delta, which the batch's
        // validation has bounded to 0..=i32::MAX.
        entry::sequence_after(
            self.base_sequence,
            (self.last_offset - self.base_offset) as i32,
        )
    }
}

#[cfg(test)]
mod tests;
