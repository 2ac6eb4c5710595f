//! What a shard is told and what it wants done.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::Message;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::StorageError;
use streamgauge_storage::log::SyncTicket;
use streamgauge_storage::producer_state::{
    AppendOrigin, ProducerBatch, ProducerEntry, Verification, VerificationGuard,
};
use tokio::sync::oneshot;

use super::view::{PartitionKey, PartitionView};
use crate::config::TopicConfig;
use crate::replication::hibernation::Mark;
use crate::replication::membership::Target;

/// Names a partition within its shard. Never given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u32);

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// `acks=0`: answered as soon as it is proposed; the client is not told.
    None,
    /// `acks=1`: once the leader has appended.
    Leader,
    /// `acks=all`: once it is committed.
    All,
}

/// One record batch for one partition, validated but not yet stamped.
#[derive(Debug)]
pub struct Append {
    pub batch: Bytes,
    pub acks: Acks,
    pub origin: AppendOrigin,
    /// What the transaction's verification began with; see [`Event::BeginVerification`].
    pub guard: Option<VerificationGuard>,
    /// Only while the replica leads in this epoch: what was decided in an earlier one may not hold.
    pub leader_epoch: Option<i32>,
    /// How long an answer at the commit may take, in milliseconds.
    pub wait_ms_max: i64,
    pub reply: oneshot::Sender<Result<Appended, AppendError>>,
}

/// Where a batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: i64,
    pub last_offset: i64,
    /// Milliseconds since the epoch, or -1 for a topic with create time.
    pub log_append_time_ms: i64,
    pub log_start_offset: i64,
    pub leader_epoch: i32,
}

/// Why a batch was not appended, or why it is not known whether it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// See [`crate::shard::partition::Partition::append`]; nothing else is wrong with it.
    #[error("a batch that comes before this one has been refused, and has to be sent again first")]
    PredecessorRefused,
    #[error("the partition does not exist on this broker")]
    UnknownPartition,
    #[error("out of order sequence: {0}")]
    OutOfOrderSequence(String),
    #[error("invalid producer epoch: {0}")]
    InvalidProducerEpoch(String),
    /// A transaction is open that the batch is not of, or none that it could be of.
    #[error("invalid transaction state: {0}")]
    InvalidTxnState(String),
    /// Another coordinator has taken over the transaction.
    #[error("the transaction coordinator is fenced: {0}")]
    TransactionCoordinatorFenced(String),
    #[error("the batch is refused: {0}")]
    InvalidRecord(String),
    #[error("the disk refused the write: {0}")]
    Storage(String),
    #[error("{in_sync} replicas are in sync, and min.insync.replicas asks for {wanted}")]
    NotEnoughReplicas { in_sync: usize, wanted: usize },
    /// It is committed, and will stay.
    #[error("the batch was written, but fewer than {wanted} replicas are known to hold it")]
    NotEnoughReplicasAfterAppend { wanted: usize },
    /// It may be committed later, or not.
    #[error("the batch was not committed in time")]
    TimedOut,
}

impl AppendError {
    /// What a client is told. Never UNKNOWN_SERVER_ERROR, on which Java producers lose their sequence
    /// (KAFKA-14034).
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotLeader | Self::PredecessorRefused => ErrorCode::NotLeaderOrFollower,
            Self::UnknownPartition => ErrorCode::UnknownTopicOrPartition,
            Self::OutOfOrderSequence(_) => ErrorCode::OutOfOrderSequenceNumber,
            Self::InvalidProducerEpoch(_) => ErrorCode::InvalidProducerEpoch,
            Self::InvalidTxnState(_) => ErrorCode::InvalidTxnState,
            Self::TransactionCoordinatorFenced(_) => ErrorCode::TransactionCoordinatorFenced,
            Self::InvalidRecord(_) => ErrorCode::InvalidRecord,
            Self::Storage(_) => ErrorCode::KafkaStorageError,
            Self::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
            Self::NotEnoughReplicasAfterAppend { .. } => ErrorCode::NotEnoughReplicasAfterAppend,
            Self::TimedOut => ErrorCode::RequestTimedOut,
        }
    }
}

/// What opening a partition needs.
pub struct OpenPartition {
    pub key: PartitionKey,
    /// For logs and messages.
    pub topic: Arc<str>,
    pub directory: PathBuf,
    pub config: Arc<TopicConfig>,
    /// Broker ids of the replicas that the partition was created with. They alone are enough to
    /// elect its first leader.
    pub founders: Vec<i32>,
    /// The members that the group is to have now.
    pub target: Target,
    /// Assignments that leave this broker out remove the replica.
    pub may_be_removed: bool,
    pub reply: oneshot::Sender<Result<OpenedPartition, StorageError>>,
}

/// A partition that its shard has taken in.
pub struct OpenedPartition {
    pub id: PartitionId,
    pub view: Arc<PartitionView>,
}

/// Answers where a leader epoch ends (`OffsetForLeaderEpoch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    pub leader_epoch: i32,
    pub end_offset: i64,
}

/// What a leader knows of a replica, itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaPosition {
    pub broker: i32,
    /// It has a vote.
    pub is_voter: bool,
    /// -1 if not known.
    pub log_end_offset: i64,
    pub heard_ms_ago: Option<i64>,
    /// When it last held all that the leader held then.
    pub caught_up_ms_ago: Option<i64>,
}

/// An input of a shard.
pub enum Event {
    Open(Box<OpenPartition>),
    Append(PartitionId, Append),
    /// A producer's first batch of a transaction is to be appended, and its coordinator asked about it
    /// before. Answers with what the append is to bring along; with `None` if the transaction is open here, and
    /// nobody need be asked.
    BeginVerification {
        partition: PartitionId,
        wanted: Verification,
        reply: oneshot::Sender<Option<VerificationGuard>>,
    },
    /// Whether an append of this producer would be refused if it came now. A coordinator asks before it decides on what its append
    /// is to say: to take that back, it would have to read its log again.
    Judge {
        partition: PartitionId,
        batch: ProducerBatch,
        origin: AppendOrigin,
        guard: Option<VerificationGuard>,
        reply: oneshot::Sender<Result<(), AppendError>>,
    },
    /// Makes durable what is known to be committed, log and index. A restart else goes back to what was saved with a later entry, and
    /// hears of the rest once more.
    SaveCommit {
        partition: PartitionId,
        reply: oneshot::Sender<Result<(), StorageError>>,
    },
    /// Moves the log start offset up (`DeleteRecords`); answers with the new one.
    DeleteRecords {
        partition: PartitionId,
        before_offset: i64,
        reply: oneshot::Sender<Result<i64, DeleteRecordsError>>,
    },
    EpochEnd {
        partition: PartitionId,
        leader_epoch: i32,
        reply: oneshot::Sender<Option<EpochEnd>>,
    },
    /// What is known of the producers of a partition, committed batches only.
    Producers {
        partition: PartitionId,
        reply: oneshot::Sender<Option<Vec<ProducerEntry>>>,
    },
    /// How far the replicas are, on their leader; `None` elsewhere.
    Replicas {
        partition: PartitionId,
        reply: oneshot::Sender<Option<Vec<ReplicaPosition>>>,
    },
    Configure {
        partition: PartitionId,
        config: Arc<TopicConfig>,
    },
    /// The members of the group are to be others.
    Assign {
        partition: PartitionId,
        target: Target,
    },
    /// Forgets the partition and removes its files; not its vote if the partition lives on
    /// elsewhere, and this replica may be wanted again.
    Delete {
        partition: PartitionId,
        /// The epoch of the assignment that does without this replica.
        lives_on: Option<u64>,
        reply: oneshot::Sender<()>,
    },
    /// A replica that is not here any more may have left files.
    RemoveLeftovers {
        key: PartitionKey,
        directory: PathBuf,
        /// As in [`Event::Delete`].
        epoch: u64,
    },
    /// Raft messages from another broker.
    Raft {
        messages: Vec<GroupMessage>,
    },
    /// A shard of that broker lives, and vouches for what rests on it.
    Pulse {
        broker: i32,
        mark: Mark,
    },
    /// Messages to that broker were lost on the way.
    Unreachable {
        broker: i32,
        groups: Vec<PartitionKey>,
    },
    /// The connection to that broker is lost.
    Disconnected {
        broker: i32,
    },
    /// Hand the leadership over: to that broker, or to any replica in sync.
    Transfer {
        partition: PartitionId,
        to: Option<i32>,
    },
    /// A round of syncs has ended.
    Synced {
        round: u64,
        result: Result<(), String>,
    },
    /// Time has passed; retention, looser flushes and retries look at the clock.
    Tick,
    /// Write checkpoints and mark the logs clean; answers when all is synced.
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// Why records were not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteRecordsError {
    #[error("the offset is above the high watermark or below zero")]
    OffsetOutOfRange,
    #[error("this broker does not lead the partition")]
    NotLeader,
    #[error("the disk refused the write: {0}")]
    Storage(String),
}

/// A message of a partition's Raft group on its way between two brokers.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupMessage {
    pub group: PartitionKey,
    pub message: Message,
}

/// An output of a shard.
pub enum Effect {
    /// Sync these files, in any order or at once, then send [`Event::Synced`] with this number.
    Sync {
        round: u64,
        tickets: Vec<SyncTicket>,
    },
}
