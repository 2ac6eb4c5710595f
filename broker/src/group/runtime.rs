//! The task that runs one offsets partition: requests in, batches to the log, replies when they have committed.
//!
//! ```text
//!   mailbox -> PartitionCoordinator -> records -> one batch -> CoordinatorLog::append
//!                                   -> replies ------- held -------> commit -> callers
//! ```
//!
//! Everything that waits in the mailbox is decided together and becomes one append. Appends are pipelined: the next
//! requests are decided on the state after writes that have not committed yet, and every reply waits for all writes
//! decided before it. If an append fails, all held replies get an error and the state is read again from the log. If it takes too
//! long, its replies are errors too, though the records may commit yet, as in Kafka.

use super::batch;
use super::classic::Token;
use super::config::GroupConfig;
use super::coordinator::{Decision, DeletedTopic, PartitionCoordinator, Reply, Request};
use super::log::CoordinatorLog;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use kafka_protocol::error::ResponseError;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Milliseconds since the epoch, from wherever the host takes time.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;
/// Where a request's answer goes.
pub type Answer = oneshot::Sender<Result<Reply, ResponseError>>;

/// Requests decided together at most; bounds the batch that they become.
const REQUESTS_PER_APPEND_MAX: usize = 256;
/// Replies without records only queue behind the appends that are in flight.
const NOTHING_APPENDED: i64 = -1;
/// Reads without progress before a log counts as unreadable.
const STALLED_READS_MAX: u32 = 20;
const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// A new leader serves a moment after it is elected, so the first retry comes soon; each later one waits twice as long.
const RELOAD_BACKOFF: Duration = Duration::from_millis(10);
const RELOAD_BACKOFF_MAX: Duration = Duration::from_secs(1);
const TIMER_SLEEP_MS_MAX: i64 = 60_000;

/// A request and where its answer goes.
pub struct Envelope {
    pub request: Request,
    pub answer: Answer,
}

struct Commit {
    sequence: u64,
    result: Result<i64, ResponseError>,
    replies: Vec<(Token, Reply)>,
}

/// Replies that an append holds back, and until when.
struct HeldReplies {
    sequence: u64,
    deadline_ms: i64,
    tokens: Vec<Token>,
}

enum Phase {
    Loading(BoxFuture<'static, Result<PartitionCoordinator, ResponseError>>),
    Active(Box<PartitionCoordinator>),
    /// An append failed; the rest of what is in flight must be known before the log is read again.
    Draining,
    /// The log is no longer ours.
    Deposed,
}

/// Runs until the mailbox is closed; then everyone who still waits is told NOT_COORDINATOR.
pub async fn run(
    log: Arc<dyn CoordinatorLog>,
    config: GroupConfig,
    clock: Clock,
    mailbox: mpsc::Receiver<Envelope>,
) {
    let phase = Phase::Loading(Box::pin(load(log.clone(), config.clone(), clock.clone())));
    let (waiting, in_flight) = (HashMap::new(), FuturesOrdered::new());
    let mut task = PartitionTask {
        log,
        config,
        clock,
        phase,
        waiting,
        next_token: 0,
        in_flight,
        deleted_topics: BTreeSet::new(),
        appends: 0,
        held: VecDeque::new(),
    };
    task.run(mailbox).await;
    task.fail_all(ResponseError::NotCoordinator);
}

struct PartitionTask {
    log: Arc<dyn CoordinatorLog>,
    config: GroupConfig,
    clock: Clock,
    phase: Phase,
    waiting: HashMap<Token, Answer>,
    next_token: Token,
    in_flight: FuturesOrdered<BoxFuture<'static, Commit>>,
    /// Topics that were deleted while the log was being read; their offsets go as soon as they are known.
    deleted_topics: BTreeSet<DeletedTopic>,
    /// Appends so far; names them in order.
    appends: u64,
    held: VecDeque<HeldReplies>,
}

impl PartitionTask {
    async fn run(&mut self, mut mailbox: mpsc::Receiver<Envelope>) {
        let mut envelopes = Vec::new();
        loop {
            let room = self.in_flight.len() < APPENDS_IN_FLIGHT_MAX;
            let sleep = self.sleep(room);
            let loading = matches!(self.phase, Phase::Loading(_));
            tokio::select! {
                biased;
                Some(commit) = self.in_flight.next(), if !self.in_flight.is_empty() => self.on_commit(commit),
                loaded = Self::loaded(&mut self.phase), if loading => self.on_loaded(loaded),
                count = mailbox.recv_many(&mut envelopes, REQUESTS_PER_APPEND_MAX), if room => {
                    if count == 0 {
                        return;
                    }
                    self.on_requests(envelopes.drain(..));
                }
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => self.on_time(room),
            }
        }
    }

    fn sleep(&self, room: bool) -> Option<Duration> {
        let timer = match &self.phase {
            Phase::Active(coordinator) if room => Some(coordinator.next_deadline()),
            _ => None,
        };
        let held = self.held.front().map(|held| held.deadline_ms);
        let at_ms = timer.into_iter().chain(held).min()?;
        let wait_ms = at_ms.saturating_sub((self.clock)());
        Some(Duration::from_millis(
            wait_ms.clamp(0, TIMER_SLEEP_MS_MAX) as u64
        ))
    }

    async fn loaded(phase: &mut Phase) -> Result<PartitionCoordinator, ResponseError> {
        match phase {
            Phase::Loading(load) => load.await,
            _ => std::future::pending().await,
        }
    }

    fn on_loaded(&mut self, loaded: Result<PartitionCoordinator, ResponseError>) {
        self.phase = match loaded {
            Ok(mut coordinator) => {
                let topics = std::mem::take(&mut self.deleted_topics);
                let now_ms = (self.clock)();
                let decision = coordinator.forget_topics(&topics, now_ms);
                self.phase = Phase::Active(Box::new(coordinator));
                self.carry_out(decision, now_ms);
                return;
            }
            Err(error) => {
                tracing::warn!(?error, "group coordinator could not load its partition");
                Phase::Deposed
            }
        };
    }

    fn on_requests(&mut self, envelopes: impl Iterator<Item = Envelope>) {
        let now_ms = (self.clock)();
        let mut combined = Decision::default();
        for envelope in envelopes {
            let coordinator = match &mut self.phase {
                Phase::Active(coordinator) => coordinator,
                Phase::Loading(_) | Phase::Draining => {
                    if let Request::TopicsDeleted(topics) = envelope.request {
                        self.deleted_topics.extend(topics);
                        let _ = envelope.answer.send(Ok(Reply::TopicsDeleted));
                        continue;
                    }
                    // The caller may be gone; then nobody misses the answer.
                    let _ = envelope
                        .answer
                        .send(Err(ResponseError::CoordinatorLoadInProgress));
                    continue;
                }
                Phase::Deposed => {
                    let _ = envelope.answer.send(Err(ResponseError::NotCoordinator));
                    continue;
                }
            };
            self.next_token += 1;
            self.waiting.insert(self.next_token, envelope.answer);
            let decision = coordinator.handle(envelope.request, self.next_token, now_ms);
            combined.records.extend(decision.records);
            combined.replies.extend(decision.replies);
        }
        self.carry_out(combined, now_ms);
    }

    fn on_time(&mut self, room: bool) {
        let now_ms = (self.clock)();
        self.expire_held(now_ms);
        if !room {
            return;
        }
        let Phase::Active(coordinator) = &mut self.phase else {
            return;
        };
        let decision = coordinator.tick(now_ms);
        self.carry_out(decision, now_ms);
    }

    fn expire_held(&mut self, now_ms: i64) {
        let is_late = |held: &HeldReplies| held.deadline_ms <= now_ms;
        while self.held.front().is_some_and(is_late) {
            let Some(held) = self.held.pop_front() else {
                return;
            };
            for token in held.tokens {
                if let Some(answer) = self.waiting.remove(&token) {
                    let _ = answer.send(Err(ResponseError::CoordinatorNotAvailable));
                }
            }
        }
    }

    fn carry_out(&mut self, decision: Decision, now_ms: i64) {
        let Decision { records, replies } = decision;
        if records.is_empty() && self.in_flight.is_empty() {
            self.release(replies);
            return;
        }
        if records.is_empty() && replies.is_empty() {
            return;
        }
        let batches = match batch::encode(&records, now_ms, self.config.append_bytes_max) {
            Ok(batches) => batches,
            Err(error) => {
                tracing::error!(%error, "group coordinator could not encode its records");
                let refused = Box::pin(std::future::ready(Err(ResponseError::UnknownServerError)));
                return self.await_commit(refused, replies, now_ms);
            }
        };
        // Batches commit in order, so the replies only need to wait for the last.
        let mut last: BoxFuture<'static, _> = Box::pin(std::future::ready(Ok(NOTHING_APPENDED)));
        for (index, batch) in batches.into_iter().enumerate() {
            let earlier = std::mem::replace(&mut last, self.log.append(batch));
            if index > 0 {
                self.await_commit(earlier, Vec::new(), now_ms);
            }
        }
        self.await_commit(last, replies, now_ms);
    }

    fn await_commit(
        &mut self,
        commit: BoxFuture<'static, Result<i64, ResponseError>>,
        replies: Vec<(Token, Reply)>,
        now_ms: i64,
    ) {
        self.appends += 1;
        let sequence = self.appends;
        if !replies.is_empty() {
            self.held.push_back(HeldReplies {
                sequence,
                deadline_ms: now_ms.saturating_add(self.config.commit_timeout_ms),
                tokens: replies.iter().map(|(token, _)| *token).collect(),
            });
        }
        self.in_flight.push_back(Box::pin(async move {
            Commit {
                sequence,
                result: commit.await,
                replies,
            }
        }));
    }

    fn on_commit(&mut self, commit: Commit) {
        let is_done = |held: &HeldReplies| held.sequence <= commit.sequence;
        while self.held.front().is_some_and(is_done) {
            self.held.pop_front();
        }
        match commit.result {
            Ok(_) if matches!(self.phase, Phase::Active(_)) => self.release(commit.replies),
            // Decided on state that was lost; whoever waited has been told.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    ?error,
                    "an append of the group coordinator failed; its state is read again"
                );
                self.fail_all(coordinator_error(error));
                self.phase = Phase::Draining;
            }
        }
        if matches!(self.phase, Phase::Draining) && self.in_flight.is_empty() {
            let load = load(self.log.clone(), self.config.clone(), self.clock.clone());
            self.phase = Phase::Loading(Box::pin(load));
        }
    }

    fn release(&mut self, replies: Vec<(Token, Reply)>) {
        for (token, reply) in replies {
            if let Some(answer) = self.waiting.remove(&token) {
                let _ = answer.send(Ok(reply));
            }
        }
    }

    fn fail_all(&mut self, error: ResponseError) {
        self.held.clear();
        for (_, answer) in self.waiting.drain() {
            let _ = answer.send(Err(error));
        }
    }
}

/// What a client is told when the log refused (`CoordinatorOperationExceptionHelper`).
fn coordinator_error(error: ResponseError) -> ResponseError {
    match error {
        ResponseError::NotLeaderOrFollower | ResponseError::KafkaStorageError => {
            ResponseError::NotCoordinator
        }
        ResponseError::UnknownTopicOrPartition
        | ResponseError::NotEnoughReplicas
        | ResponseError::NotEnoughReplicasAfterAppend
        | ResponseError::RequestTimedOut => ResponseError::CoordinatorNotAvailable,
        ResponseError::NotCoordinator | ResponseError::CoordinatorNotAvailable => error,
        _ => ResponseError::UnknownServerError,
    }
}

/// Replays the committed log. Reads that fail for a while are repeated; a log that is not ours any more ends it.
async fn load(
    log: Arc<dyn CoordinatorLog>,
    config: GroupConfig,
    clock: Clock,
) -> Result<PartitionCoordinator, ResponseError> {
    let mut coordinator = PartitionCoordinator::new(config, clock());
    let (mut offset, mut stalled_reads) = (0, 0);
    let mut backoff = RELOAD_BACKOFF;
    loop {
        let piece = match log.read_from(offset).await {
            Ok(piece) => piece,
            Err(
                error @ (ResponseError::NotLeaderOrFollower
                | ResponseError::UnknownTopicOrPartition
                | ResponseError::CorruptMessage),
            ) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(?error, "group coordinator reads its partition again");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(RELOAD_BACKOFF_MAX);
                continue;
            }
        };
        let records = batch::decode(piece.batches).map_err(|error| {
            tracing::error!(%error, offset, "a batch of the group coordinator's partition is unreadable");
            ResponseError::CorruptMessage
        })?;
        let now_ms = clock();
        for record in &records {
            coordinator.replay(record, now_ms);
        }
        if piece.next_offset >= piece.high_watermark {
            return Ok(coordinator);
        }
        if piece.next_offset > offset {
            (offset, stalled_reads) = (piece.next_offset, 0);
            backoff = RELOAD_BACKOFF;
            continue;
        }
        // To stop here would forget what has been committed.
        stalled_reads += 1;
        if stalled_reads > STALLED_READS_MAX {
            tracing::error!(
                offset,
                piece.high_watermark,
                "the group coordinator's partition cannot be read on"
            );
            return Err(ResponseError::CorruptMessage);
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(RELOAD_BACKOFF_MAX);
    }
}
