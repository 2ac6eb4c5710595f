//! What a coordinator is to the task that runs it.

use super::wire::WireError;
use bytes::Bytes;
use streamgauge_protocol::batch::{TransactionMarker, TransactionResult};
use streamgauge_storage::producer_state::VerificationGuard;

/// Names a waiting caller within one partition's coordinator.
pub type Token = u64;

/// The state of one partition's coordinator. It has no clock and no log: the time is given, and what it decides is written by others.
pub trait Machine: Sized + Send + 'static {
    /// For logs.
    const NAME: &'static str;
    type Settings: Clone + Send + Sync + 'static;
    type Request: Send + 'static;
    type Reply: Send + 'static;
    type Record: LogRecord + Send + 'static;
    /// What is to be done, once it is committed, besides answering.
    type Effect: Send + 'static;

    /// The state before the first record.
    fn new(settings: Self::Settings, now_ms: i64) -> Self;

    /// Applies what was read back from the log.
    fn replay(&mut self, entry: Entry<Self::Record>, now_ms: i64);

    /// All of the log has been replayed.
    fn loaded(&mut self, now_ms: i64) -> DecisionOf<Self> {
        let _ = now_ms;
        Decision::default()
    }

    /// Decides a request. The token comes back with its reply in this or a later decision, exactly once.
    fn handle(&mut self, request: Self::Request, token: Token, now_ms: i64) -> DecisionOf<Self>;

    /// Does what is due.
    fn tick(&mut self, now_ms: i64) -> DecisionOf<Self>;

    /// When [`Self::tick`] is next needed, in milliseconds since the epoch.
    fn next_deadline(&self) -> i64;

    /// Whether a request that comes while the log is being read is kept until it has been. Others are told to come again.
    fn waits_for_loading(request: &Self::Request) -> bool {
        let _ = request;
        false
    }
}

/// A machine's [`Decision`].
pub type DecisionOf<M> =
    Decision<<M as Machine>::Record, <M as Machine>::Reply, <M as Machine>::Effect>;

/// Records to append; replies and effects for when these and all earlier records have committed.
#[derive(Debug)]
pub struct Decision<Record, Reply, Effect> {
    pub records: Vec<Record>,
    pub replies: Vec<(Token, Reply)>,
    pub effects: Vec<Effect>,
    pub append: AppendAs,
}

/// How a decision's records enter the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAs {
    /// Together with what else is decided now.
    #[default]
    Plain,
    /// As part of a producer's transaction, which the guard says is open. Nobody is to count on these records before a marker
    /// comes.
    Transactional {
        producer_id: i64,
        producer_epoch: i16,
        guard: Option<VerificationGuard>,
    },
    /// As the control batch that ends a transaction; the decision has no records.
    Marker(EndMarker),
}

/// The end of a producer's transaction in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndMarker {
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub coordinator_epoch: i32,
    pub result: TransactionResult,
    /// See [`crate::transaction::markers::Marker`].
    pub transaction_version: i8,
}

impl EndMarker {
    /// What stands in the control batch.
    pub fn content(&self) -> TransactionMarker {
        TransactionMarker {
            result: self.result,
            coordinator_epoch: self.coordinator_epoch,
        }
    }
}

impl<Record, Reply, Effect> Default for Decision<Record, Reply, Effect> {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            replies: Vec::new(),
            effects: Vec::new(),
            append: AppendAs::Plain,
        }
    }
}

impl<Record, Reply, Effect> Decision<Record, Reply, Effect> {
    /// An answer, and nothing to write.
    pub fn reply(token: Token, reply: Reply) -> Self {
        Self {
            replies: vec![(token, reply)],
            ..Self::default()
        }
    }

    /// Appends another decision that is written in the same way.
    pub fn extend(&mut self, other: Self) {
        self.records.extend(other.records);
        self.replies.extend(other.replies);
        self.effects.extend(other.effects);
    }
}

/// What is read back from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<Record> {
    Record(Record),
    /// Of a transaction that is open until its marker comes.
    Pending {
        producer_id: i64,
        record: Record,
    },
    Marker {
        producer_id: i64,
        result: TransactionResult,
    },
}

/// A record in the form in which Kafka writes it.
pub trait LogRecord: Sized {
    fn encode_key(&self) -> Bytes;
    /// `None` is a tombstone.
    fn encode_value(&self) -> Option<Bytes>;
    /// `Ok(None)` is a kind of record that this version does not know: as Kafka does, it is skipped, so that a log written by
    /// a newer coordinator still loads.
    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<Self>, RecordError>;
}

/// A record that is not what its type and version say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    #[error("{what} record does not decode: {source}")]
    Malformed {
        what: &'static str,
        source: WireError,
    },
    #[error("{what} record has version {version}, newest known is {newest}")]
    Version {
        what: &'static str,
        version: i16,
        newest: i16,
    },
}
