//! How the rest of the broker reaches a partition: sends to its shard, reads from its view.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use super::event::{
    Acks, Append, AppendError, Appended, DeleteRecordsError, EpochEnd, Event, PartitionId,
    ReplicaPosition,
};
use super::view::PartitionView;
use crate::config::TopicConfig;
use crate::replication::membership::Target;
use streamgauge_storage::StorageError;
use streamgauge_storage::producer_state::{
    AppendOrigin, ProducerBatch, ProducerEntry, Verification, VerificationGuard,
};

type AppendReply = oneshot::Sender<Result<Appended, AppendError>>;

/// Sends events to one shard. The mailbox has no bound of its own: what producers put into it is
/// bounded by the memory that their requests may take.
#[derive(Clone)]
pub struct ShardHandle {
    mailbox: Sender<Event>,
}

impl ShardHandle {
    pub fn new(mailbox: Sender<Event>) -> Self {
        Self { mailbox }
    }

    /// Sends an event. A shard that has stopped drops it, and with it the channel of its answer.
    pub fn send(&self, event: Event) {
        drop(self.mailbox.send(event));
    }
}

/// A partition that this broker holds.
#[derive(Clone)]
pub struct PartitionHandle {
    shard: ShardHandle,
    id: PartitionId,
    view: Arc<PartitionView>,
}

impl PartitionHandle {
    pub fn new(shard: ShardHandle, id: PartitionId, view: Arc<PartitionView>) -> Self {
        Self { shard, id, view }
    }

    pub fn view(&self) -> &Arc<PartitionView> {
        &self.view
    }

    /// Sends a batch to the log. The order of calls is the order in the log; the future of the
    /// answer may be awaited later.
    pub fn append(&self, batch: Bytes, acks: Acks) -> PendingAppend {
        self.append_within(batch, acks, i64::MAX)
    }

    /// As [`Self::append`], answered within so many milliseconds if it waits for replicas.
    pub fn append_within(&self, batch: Bytes, acks: Acks, wait_ms_max: i64) -> PendingAppend {
        self.append_verified(batch, acks, wait_ms_max, None)
    }

    /// As [`Self::append_within`], for a transactional batch that has been verified.
    pub fn append_verified(
        &self,
        batch: Bytes,
        acks: Acks,
        wait_ms_max: i64,
        guard: Option<VerificationGuard>,
    ) -> PendingAppend {
        self.send(|reply| Append {
            batch,
            acks,
            origin: AppendOrigin::Client,
            guard,
            leader_epoch: None,
            wait_ms_max,
            reply,
        })
    }

    /// Appends what a coordinator has decided in that leader epoch: with a client's `origin` a batch of its own; else what it writes
    /// for a producer's transaction, a batch with that producer's id and epoch and without a sequence, verified as a client's, or
    /// a marker. Answered at its commit.
    pub fn append_as_coordinator(
        &self,
        batch: Bytes,
        origin: AppendOrigin,
        guard: Option<VerificationGuard>,
        leader_epoch: i32,
    ) -> PendingAppend {
        self.send(|reply| Append {
            batch,
            acks: Acks::All,
            origin,
            guard,
            leader_epoch: Some(leader_epoch),
            wait_ms_max: i64::MAX,
            reply,
        })
    }

    /// Appends a control batch that ends a transaction (see
    /// [`streamgauge_protocol::batch::TransactionMarker`]); answered at its commit, or within so many milliseconds.
    pub fn append_marker(
        &self,
        batch: Bytes,
        transaction_version: i8,
        wait_ms_max: i64,
    ) -> PendingAppend {
        self.send(|reply| Append {
            batch,
            acks: Acks::All,
            origin: AppendOrigin::Marker {
                transaction_version,
            },
            guard: None,
            leader_epoch: None,
            wait_ms_max,
            reply,
        })
    }

    fn send(&self, append: impl FnOnce(AppendReply) -> Append) -> PendingAppend {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::Append(self.id, append(reply)));
        PendingAppend(answer)
    }

    /// See [`Event::BeginVerification`]. A replica that does not lead refuses the append.
    pub async fn begin_verification(&self, wanted: Verification) -> Option<VerificationGuard> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::BeginVerification {
            partition: self.id,
            wanted,
            reply,
        });
        answer.await.ok().flatten()
    }

    /// See [`Event::Judge`].
    pub async fn judge(
        &self,
        batch: ProducerBatch,
        origin: AppendOrigin,
        guard: Option<VerificationGuard>,
    ) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::Judge {
            partition: self.id,
            batch,
            origin,
            guard,
            reply,
        });
        answer.await.unwrap_or(Err(AppendError::NotLeader))
    }

    /// See [`Event::SaveCommit`].
    pub async fn save_commit(&self) -> Result<(), StorageError> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::SaveCommit {
            partition: self.id,
            reply,
        });
        answer.await.unwrap_or(Err(StorageError::Failed))
    }

    /// Moves the log start offset up; see [`Event::DeleteRecords`].
    pub async fn delete_records(&self, before_offset: i64) -> Result<i64, DeleteRecordsError> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::DeleteRecords {
            partition: self.id,
            before_offset,
            reply,
        });
        answer.await.unwrap_or(Err(DeleteRecordsError::NotLeader))
    }

    pub async fn epoch_end(&self, leader_epoch: i32) -> Option<EpochEnd> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::EpochEnd {
            partition: self.id,
            leader_epoch,
            reply,
        });
        answer.await.ok().flatten()
    }

    pub async fn producers(&self) -> Option<Vec<ProducerEntry>> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::Producers {
            partition: self.id,
            reply,
        });
        answer.await.ok().flatten()
    }

    /// How far the replicas are, if this one leads.
    pub async fn replicas(&self) -> Option<Vec<ReplicaPosition>> {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::Replicas {
            partition: self.id,
            reply,
        });
        answer.await.ok().flatten()
    }

    pub fn configure(&self, config: Arc<TopicConfig>) {
        self.shard.send(Event::Configure {
            partition: self.id,
            config,
        });
    }

    /// Hands the leadership, if it is here, to that broker or to any replica in sync.
    pub fn transfer(&self, to: Option<i32>) {
        self.shard.send(Event::Transfer {
            partition: self.id,
            to,
        });
    }

    /// The members of the partition's group are to be these.
    pub fn assign(&self, target: Target) {
        self.shard.send(Event::Assign {
            partition: self.id,
            target,
        });
    }

    /// Removes this replica, of a partition that is gone, or that lives on elsewhere by the assignment
    /// of that epoch.
    pub async fn delete(&self, lives_on: Option<u64>) {
        let (reply, answer) = oneshot::channel();
        self.shard.send(Event::Delete {
            partition: self.id,
            lives_on,
            reply,
        });
        // A shard that has stopped has nothing left to delete.
        drop(answer.await);
    }
}

/// An append on its way.
pub struct PendingAppend(oneshot::Receiver<Result<Appended, AppendError>>);

impl PendingAppend {
    /// Waits for the answer. A shard that stops before it knows answers as one that does not lead:
    /// the client asks again elsewhere, and an idempotent one is not doubled.
    pub async fn answer(self) -> Result<Appended, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::NotLeader))
    }
}
