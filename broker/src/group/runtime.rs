//! The task that runs one offsets partition: requests in, batches to the log, replies when they have committed.
//!
//! ```text
//!   mailbox -> PartitionCoordinator -> records -> one batch -> CoordinatorLog::append
//!                                   -> replies ------- held -------> commit -> callers
//! ```
//!
//! Everything that waits in the mailbox is decided together and becomes one append. Appends are pipelined: the next
//! requests are decided on the state after writes that have not committed yet, and every reply waits for all writes
//! decided before it. If an append fails, all held replies get an error and the state is read again from the log.

use super::batch;
use super::classic::Token;
use super::config::GroupConfig;
use super::coordinator::{Decision, PartitionCoordinator, Reply, Request};
use super::log::CoordinatorLog;
use super::records::CoordinatorRecord;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use kafka_protocol::error::ResponseError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Milliseconds since the epoch, from wherever the host takes time.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;
/// Where a request's answer goes.
pub type Answer = oneshot::Sender<Result<Reply, ResponseError>>;

/// Requests decided together at most; bounds the batch that they become.
const REQUESTS_PER_APPEND_MAX: usize = 256;
const APPENDS_IN_FLIGHT_MAX: usize = 64;
const RELOAD_BACKOFF: Duration = Duration::from_millis(200);
const TIMER_SLEEP_MS_MAX: i64 = 60_000;

/// A request and where its answer goes.
pub struct Envelope {
    pub request: Request,
    pub answer: Answer,
}

struct Commit {
    result: Result<i64, ResponseError>,
    replies: Vec<(Token, Reply)>,
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
}

impl PartitionTask {
    async fn run(&mut self, mut mailbox: mpsc::Receiver<Envelope>) {
        let mut envelopes = Vec::new();
        loop {
            let room = self.in_flight.len() < APPENDS_IN_FLIGHT_MAX;
            let sleep = self.sleep();
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
                () = tokio::time::sleep(sleep.unwrap_or_default()), if room && sleep.is_some() => self.on_time(),
            }
        }
    }

    fn sleep(&self) -> Option<Duration> {
        let Phase::Active(coordinator) = &self.phase else {
            return None;
        };
        let wait_ms = coordinator.next_deadline().saturating_sub((self.clock)());
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
            Ok(coordinator) => Phase::Active(Box::new(coordinator)),
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

    fn on_time(&mut self) {
        let now_ms = (self.clock)();
        let Phase::Active(coordinator) = &mut self.phase else {
            return;
        };
        let decision = coordinator.tick(now_ms);
        self.carry_out(decision, now_ms);
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
        let commit: BoxFuture<'static, Result<i64, ResponseError>> =
            match self.append(&records, now_ms) {
                Some(commit) => commit,
                // Nothing to write: the replies only queue behind what is in flight.
                None => Box::pin(std::future::ready(Ok(-1))),
            };
        self.in_flight.push_back(Box::pin(async move {
            Commit {
                result: commit.await,
                replies,
            }
        }));
    }

    fn append(
        &self,
        records: &[CoordinatorRecord],
        now_ms: i64,
    ) -> Option<BoxFuture<'static, Result<i64, ResponseError>>> {
        if records.is_empty() {
            return None;
        }
        match batch::encode(records, now_ms) {
            Ok(batch) => Some(self.log.append(batch)),
            Err(error) => {
                tracing::error!(%error, "group coordinator could not encode its records");
                Some(Box::pin(std::future::ready(Err(
                    ResponseError::UnknownServerError,
                ))))
            }
        }
    }

    fn on_commit(&mut self, commit: Commit) {
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
    let mut offset = 0;
    loop {
        let piece = match log.read_from(offset).await {
            Ok(piece) => piece,
            Err(
                error @ (ResponseError::NotLeaderOrFollower
                | ResponseError::UnknownTopicOrPartition),
            ) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(?error, "group coordinator reads its partition again");
                tokio::time::sleep(RELOAD_BACKOFF).await;
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
        if piece.next_offset >= piece.high_watermark || piece.next_offset <= offset {
            return Ok(coordinator);
        }
        offset = piece.next_offset;
    }
}
