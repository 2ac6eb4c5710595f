//! The task that runs one partition's coordinator: requests in, batches to the log, replies when they have committed.
//!
//! Everything that waits in the mailbox is decided together and becomes one append. Appends are pipelined: the next
//! requests are decided on the state after writes that have not committed yet, and every reply waits for all writes
//! decided before it. If an append fails, all held replies get an error and the state is read again from the log. If it takes too
//! long, its replies are errors too, though the records may commit yet, as in Kafka.

use super::batch;
use super::log::CoordinatorLog;
use super::machine::{AppendAs, DecisionOf, Machine, Token};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use kafka_protocol::error::ResponseError;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Milliseconds since the epoch, from wherever the host takes time.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;
/// Where a request's answer goes.
pub type Answer<M> = oneshot::Sender<Result<<M as Machine>::Reply, ResponseError>>;
/// Does what a machine wants done, once that is committed. It must not block.
pub type EffectSink<M> = Box<dyn FnMut(<M as Machine>::Effect) + Send>;

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

/// What the tasks of one kind of coordinator have in common.
#[derive(Clone, Debug)]
pub struct RuntimeSettings {
    /// Size of a batch that is appended; only a single larger record exceeds it. Keep it well below the topic's
    /// `max.message.bytes`.
    pub append_bytes_max: usize,
    /// How long a reply waits for its records to commit before the client is told to try again.
    pub commit_timeout_ms: i64,
    /// Requests that may wait for one partition before clients are told to back off.
    pub mailbox_requests_max: usize,
}

/// A request and where its answer goes.
pub struct Envelope<M: Machine> {
    pub request: M::Request,
    pub answer: Answer<M>,
}

/// What waits for an append.
struct Held<M: Machine> {
    replies: Vec<(Token, M::Reply)>,
    effects: Vec<M::Effect>,
}

struct Commit<M: Machine> {
    sequence: u64,
    result: Result<i64, ResponseError>,
    held: Held<M>,
}

/// Replies that an append holds back, and until when.
struct HeldReplies {
    sequence: u64,
    deadline_ms: i64,
    tokens: Vec<Token>,
}

enum Phase<M> {
    Loading(BoxFuture<'static, Result<M, ResponseError>>),
    Active(Box<M>),
    /// An append failed; the rest of what is in flight must be known before the log is read again.
    Draining,
    /// The log is no longer ours.
    Deposed,
}

/// Runs until the mailbox is closed; then everyone who still waits is told NOT_COORDINATOR.
pub async fn run<M: Machine>(
    log: Arc<dyn CoordinatorLog>,
    machine: M::Settings,
    settings: RuntimeSettings,
    clock: Clock,
    effects: EffectSink<M>,
    mailbox: mpsc::Receiver<Envelope<M>>,
) {
    let phase = Phase::Loading(Box::pin(load(log.clone(), machine.clone(), clock.clone())));
    let (waiting, in_flight) = (HashMap::new(), FuturesOrdered::new());
    let mut task = PartitionTask {
        log,
        machine,
        settings,
        clock,
        effects,
        phase,
        waiting,
        next_token: 0,
        in_flight,
        deferred: Vec::new(),
        appends: 0,
        held: VecDeque::new(),
    };
    task.run(mailbox).await;
    task.fail_all(ResponseError::NotCoordinator);
}

struct PartitionTask<M: Machine> {
    log: Arc<dyn CoordinatorLog>,
    machine: M::Settings,
    settings: RuntimeSettings,
    clock: Clock,
    effects: EffectSink<M>,
    phase: Phase<M>,
    waiting: HashMap<Token, Answer<M>>,
    next_token: Token,
    in_flight: FuturesOrdered<BoxFuture<'static, Commit<M>>>,
    /// Came while the log was being read, and wait until it has been.
    deferred: Vec<Envelope<M>>,
    /// Appends so far; names them in order.
    appends: u64,
    held: VecDeque<HeldReplies>,
}

impl<M: Machine> PartitionTask<M> {
    async fn run(&mut self, mut mailbox: mpsc::Receiver<Envelope<M>>) {
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
            Phase::Active(machine) if room => Some(machine.next_deadline()),
            _ => None,
        };
        let held = self.held.front().map(|held| held.deadline_ms);
        let at_ms = timer.into_iter().chain(held).min()?;
        let wait_ms = at_ms.saturating_sub((self.clock)());
        Some(Duration::from_millis(
            wait_ms.clamp(0, TIMER_SLEEP_MS_MAX) as u64
        ))
    }

    async fn loaded(phase: &mut Phase<M>) -> Result<M, ResponseError> {
        match phase {
            Phase::Loading(load) => load.await,
            _ => std::future::pending().await,
        }
    }

    fn on_loaded(&mut self, loaded: Result<M, ResponseError>) {
        match loaded {
            Ok(mut machine) => {
                let now_ms = (self.clock)();
                let decision = machine.loaded(now_ms);
                self.phase = Phase::Active(Box::new(machine));
                self.carry_out(decision, now_ms);
            }
            Err(error) => {
                tracing::warn!(?error, "a {} could not load its partition", M::NAME);
                self.phase = Phase::Deposed;
            }
        }
        let deferred = std::mem::take(&mut self.deferred);
        self.on_requests(deferred.into_iter());
    }

    fn on_requests(&mut self, envelopes: impl Iterator<Item = Envelope<M>>) {
        let now_ms = (self.clock)();
        let mut combined = DecisionOf::<M>::default();
        for envelope in envelopes {
            let machine = match &mut self.phase {
                Phase::Active(machine) => machine,
                Phase::Loading(_) | Phase::Draining => {
                    if M::waits_for_loading(&envelope.request) {
                        self.deferred.push(envelope);
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
            let decision = machine.handle(envelope.request, self.next_token, now_ms);
            if decision.append == AppendAs::Plain {
                combined.extend(decision);
                continue;
            }
            // It has a batch of its own, and its place in the order of decisions.
            self.carry_out(std::mem::take(&mut combined), now_ms);
            self.carry_out(decision, now_ms);
        }
        self.carry_out(combined, now_ms);
    }

    fn on_time(&mut self, room: bool) {
        let now_ms = (self.clock)();
        self.expire_held(now_ms);
        if !room {
            return;
        }
        let Phase::Active(machine) = &mut self.phase else {
            return;
        };
        let decision = machine.tick(now_ms);
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

    fn carry_out(&mut self, decision: DecisionOf<M>, now_ms: i64) {
        let append = decision.append;
        let held = Held {
            replies: decision.replies,
            effects: decision.effects,
        };
        let nothing_to_write =
            decision.records.is_empty() && !matches!(append, AppendAs::Marker(_));
        if nothing_to_write && self.in_flight.is_empty() {
            return self.release(held);
        }
        if nothing_to_write && held.replies.is_empty() && held.effects.is_empty() {
            return;
        }
        let batches = match append {
            _ if nothing_to_write => Ok(Vec::new()),
            AppendAs::Plain => {
                batch::encode(&decision.records, now_ms, self.settings.append_bytes_max)
            }
            AppendAs::Transactional {
                producer_id,
                producer_epoch,
                ..
            } => {
                batch::encode_transactional(&decision.records, now_ms, producer_id, producer_epoch)
                    .map(|batch| vec![batch])
            }
            AppendAs::Marker(marker) => {
                let commit = self.log.append_marker(marker, now_ms);
                return self.await_commit(commit, held, now_ms);
            }
        };
        let batches = match batches {
            Ok(batches) => batches,
            Err(error) => {
                tracing::error!(%error, "a {} could not encode its records", M::NAME);
                let refused = Box::pin(std::future::ready(Err(ResponseError::UnknownServerError)));
                return self.await_commit(refused, held, now_ms);
            }
        };
        // Batches commit in order, so the replies only need to wait for the last.
        let mut last: BoxFuture<'static, _> = Box::pin(std::future::ready(Ok(NOTHING_APPENDED)));
        for (index, batch) in batches.into_iter().enumerate() {
            let next = match append {
                AppendAs::Transactional { guard, .. } => {
                    self.log.append_transactional(batch, guard)
                }
                _ => self.log.append(batch),
            };
            let earlier = std::mem::replace(&mut last, next);
            if index > 0 {
                let nothing = Held {
                    replies: Vec::new(),
                    effects: Vec::new(),
                };
                self.await_commit(earlier, nothing, now_ms);
            }
        }
        self.await_commit(last, held, now_ms);
    }

    fn await_commit(
        &mut self,
        commit: BoxFuture<'static, Result<i64, ResponseError>>,
        held: Held<M>,
        now_ms: i64,
    ) {
        self.appends += 1;
        let sequence = self.appends;
        if !held.replies.is_empty() {
            self.held.push_back(HeldReplies {
                sequence,
                deadline_ms: now_ms.saturating_add(self.settings.commit_timeout_ms),
                tokens: held.replies.iter().map(|(token, _)| *token).collect(),
            });
        }
        self.in_flight.push_back(Box::pin(async move {
            Commit {
                sequence,
                result: commit.await,
                held,
            }
        }));
    }

    fn on_commit(&mut self, commit: Commit<M>) {
        let is_done = |held: &HeldReplies| held.sequence <= commit.sequence;
        while self.held.front().is_some_and(is_done) {
            self.held.pop_front();
        }
        match commit.result {
            Ok(_) if matches!(self.phase, Phase::Active(_)) => self.release(commit.held),
            // Decided on state that was lost; whoever waited has been told.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    ?error,
                    "an append of a {} failed; its state is read again",
                    M::NAME
                );
                self.fail(&commit.held, error);
                self.fail_all(error_of_others(error));
                self.phase = Phase::Draining;
            }
        }
        if matches!(self.phase, Phase::Draining) && self.in_flight.is_empty() {
            let load = load(self.log.clone(), self.machine.clone(), self.clock.clone());
            self.phase = Phase::Loading(Box::pin(load));
        }
    }

    fn release(&mut self, held: Held<M>) {
        for effect in held.effects {
            (self.effects)(effect);
        }
        for (token, reply) in held.replies {
            if let Some(answer) = self.waiting.remove(&token) {
                let _ = answer.send(Ok(reply));
            }
        }
    }

    fn fail(&mut self, held: &Held<M>, error: ResponseError) {
        for (token, _) in &held.replies {
            if let Some(answer) = self.waiting.remove(token) {
                let _ = answer.send(Err(coordinator_error(error)));
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
        _ if is_producers(error) => error,
        _ => ResponseError::UnknownServerError,
    }
}

/// What those are told who wait for other appends than the one that was refused.
fn error_of_others(error: ResponseError) -> ResponseError {
    match is_producers(error) {
        // Nothing is wrong with theirs, but it was decided on a state that is not.
        true => ResponseError::CoordinatorLoadInProgress,
        false => coordinator_error(error),
    }
}

/// Whether it says something of one producer's transaction only.
fn is_producers(error: ResponseError) -> bool {
    matches!(
        error,
        ResponseError::InvalidProducerEpoch
            | ResponseError::InvalidTxnState
            | ResponseError::TransactionCoordinatorFenced
    )
}

/// Replays the committed log. Reads that fail for a while are repeated; a log that is not ours any more ends it.
async fn load<M: Machine>(
    log: Arc<dyn CoordinatorLog>,
    settings: M::Settings,
    clock: Clock,
) -> Result<M, ResponseError> {
    let mut machine = M::new(settings, clock());
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
                tracing::warn!(?error, "a {} reads its partition again", M::NAME);
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(RELOAD_BACKOFF_MAX);
                continue;
            }
        };
        let entries = batch::decode(piece.batches).map_err(|error| {
            tracing::error!(%error, offset, "a batch of a {}'s partition is unreadable", M::NAME);
            ResponseError::CorruptMessage
        })?;
        let now_ms = clock();
        for entry in entries {
            machine.replay(entry, now_ms);
        }
        if piece.next_offset >= piece.high_watermark {
            return Ok(machine);
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
                "the partition of a {} cannot be read on",
                M::NAME
            );
            return Err(ResponseError::CorruptMessage);
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(RELOAD_BACKOFF_MAX);
    }
}
