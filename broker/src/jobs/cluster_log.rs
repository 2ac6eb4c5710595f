//! A partition's log wherever its leader is.
//!
//! What is committed is read from the replica on this broker if there is one, whoever leads; the
//! replica may be a moment behind. Appends and questions go to the leader. If there is no replica here,
//! the leader is asked for everything, and a task follows its high watermark: closely while somebody waits
//! for it to move.
//!
//! Appends to a leader elsewhere wait in a queue and go one request after the other, each with all that
//! has gathered: so they arrive in order. After an error it is not known what was appended; whoever
//! gets it must look.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::log::{Chunk, JobLog, LogError};
use crate::cluster::partition_request::{self, Operation, Positions};

/// What one request for appends holds at most, if more than one batch.
const APPEND_BYTES_MAX: usize = 4 << 20;

/// An append is committed or given up by then.
const APPEND_PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the leader may keep the question for its positions.
const WAIT_MS: u32 = 1_000;
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How often the leader is asked where it stands while nobody waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

type Queued = (Bytes, oneshot::Sender<Result<i64, LogError>>);

/// A partition as one broker sees it.
pub trait PartitionPlace: Send + Sync + 'static {
    /// The replica on this broker. It serves if it leads.
    fn replica(&self) -> Option<Arc<dyn JobLog>>;

    /// Who leads the partition, if it is another broker.
    fn leader(&self) -> Option<i32>;

    /// Asks that broker. Without an answer it may have done it all the same.
    fn ask(
        &self,
        leader: i32,
        operation: &Operation,
        time_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LogError>>;
}

struct Shared {
    place: Box<dyn PartitionPlace>,
    /// What the leader has told, or the replica here has known last.
    told: Mutex<Option<Positions>>,
    /// Everything below was answered as appended.
    appended_end: AtomicI64,
    waiters: Mutex<Vec<Arc<Notify>>>,
    /// Somebody has begun to wait.
    is_waited_for: Notify,
}

/// See the file's head.
pub struct ClusterLog {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedSender<Queued>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for ClusterLog {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl ClusterLog {
    /// Must be called within a runtime, which runs the log's tasks.
    pub fn new(place: impl PartitionPlace) -> Self {
        let shared = Arc::new(Shared {
            place: Box::new(place),
            told: Mutex::default(),
            appended_end: AtomicI64::new(0),
            waiters: Mutex::default(),
            is_waited_for: Notify::new(),
        });
        shared.tell(shared.positions());
        let (queue, queued) = mpsc::unbounded_channel();
        let tasks = [
            tokio::spawn(send_appends(Arc::clone(&shared), queued)),
            tokio::spawn(follow(Arc::clone(&shared))),
        ];
        Self {
            shared,
            queue,
            tasks,
        }
    }
}

impl Shared {
    fn local(&self) -> Option<Arc<dyn JobLog>> {
        self.place.replica()
    }

    /// The replica here, if it leads.
    fn led_here(&self) -> Option<Arc<dyn JobLog>> {
        self.local().filter(|replica| replica.is_serving())
    }

    /// Asks the leader, which is elsewhere.
    async fn ask(&self, operation: &Operation, time_max: Duration) -> Result<Bytes, LogError> {
        let leader = self.place.leader().ok_or(LogError::NotLeader)?;
        self.place.ask(leader, operation, time_max).await
    }

    fn told(&self) -> Option<Positions> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, positions: Option<Positions>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *told != positions;
        *told = positions;
        drop(told);
        if is_news {
            let waiters =
                std::mem::take(&mut *self.waiters.lock().unwrap_or_else(PoisonError::into_inner));
            for waiter in waiters {
                waiter.notify_one();
            }
        }
    }

    fn has_waiters(&self) -> bool {
        let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.iter().any(|waiter| Arc::strong_count(waiter) > 1)
    }

    fn positions(&self) -> Option<Positions> {
        match self.local() {
            Some(replica) => Some(Positions::of(&*replica)),
            None => self.told(),
        }
    }

    fn note_appended(&self, end: i64) {
        self.appended_end.fetch_max(end, Ordering::AcqRel);
    }

    async fn read_there(&self, offset: i64, bytes_max: usize) -> Result<Chunk, LogError> {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        let operation = Operation::Read { offset, bytes_max };
        let answer = self.ask(&operation, PATIENCE).await?;
        partition_request::read(answer, offset)
    }

    async fn read(&self, offset: i64, bytes_max: usize) -> Result<Chunk, LogError> {
        let Some(here) = self.local() else {
            return self.read_there(offset, bytes_max).await;
        };
        let is_leading = here.is_serving();
        if !is_leading && offset >= here.stable_offset() {
            // The replica may know less than somebody did before.
            return self.read_there(offset, bytes_max).await;
        }
        match here.read(offset, bytes_max).await {
            // And it may keep less than its leader.
            Err(LogError::OutOfRange { .. }) if !is_leading => {
                self.read_there(offset, bytes_max).await
            }
            read => read,
        }
    }

    /// Where the leader's log stands now.
    async fn fresh(&self) -> Result<Positions, LogError> {
        if let Some(replica) = self.led_here() {
            return Ok(Positions::of(&*replica));
        }
        let question = Operation::Positions {
            high_watermark: -1,
            leader_epoch: -1,
            wait_ms: 0,
        };
        partition_request::positions(self.ask(&question, PATIENCE).await?)
    }

    async fn catch_up(&self) -> Result<(), LogError> {
        let goal = self.fresh().await?;
        let changed = Arc::new(Notify::new());
        loop {
            let Some(replica) = self.local() else {
                self.tell(Some(goal));
                return Ok(());
            };
            replica.wake(&changed);
            if replica.stable_offset() >= goal.stable_offset {
                return Ok(());
            }
            if self.place.leader().is_none() && !replica.is_serving() {
                return Err(LogError::NotLeader);
            }
            // A replica that begins anew says so by its positions only.
            drop(tokio::time::timeout(RETRY_DELAY, changed.notified()).await);
        }
    }
}

async fn send_appends(shared: Arc<Shared>, mut queued: mpsc::UnboundedReceiver<Queued>) {
    while let Some(first) = queued.recv().await {
        let mut bytes = first.0.len();
        let mut taken = vec![first];
        while bytes < APPEND_BYTES_MAX
            && let Ok(next) = queued.try_recv()
        {
            bytes += next.0.len();
            taken.push(next);
        }
        let batches: Vec<Bytes> = taken.iter().map(|(batch, _)| batch.clone()).collect();
        let count = batches.len();
        let operation = Operation::Append(batches);
        let answer = shared.ask(&operation, APPEND_PATIENCE).await;
        let appended = answer.and_then(|answer| partition_request::appended(answer, count));
        match appended {
            Ok(offsets) => {
                for ((_, reply), offset) in taken.into_iter().zip(offsets) {
                    shared.note_appended(offset + 1);
                    drop(reply.send(Ok(offset)));
                }
            }
            Err(error) => {
                // What has been queued meanwhile would follow something that may not be there.
                while let Ok(next) = queued.try_recv() {
                    taken.push(next);
                }
                for (_, reply) in taken {
                    drop(reply.send(Err(error.clone())));
                }
            }
        }
    }
}

/// Keeps the positions of a leader elsewhere while there is no replica here.
async fn follow(shared: Arc<Shared>) {
    loop {
        if let Some(replica) = shared.local() {
            // For when it has been moved away.
            shared.tell(Some(Positions::of(&*replica)));
            tokio::time::sleep(RETRY_DELAY).await;
            continue;
        }
        let known = shared.told();
        let wait_ms = if shared.has_waiters() { WAIT_MS } else { 0 };
        let question = Operation::Positions {
            high_watermark: known.map_or(-1, |known| known.high_watermark),
            leader_epoch: known.map_or(-1, |known| known.leader_epoch),
            wait_ms,
        };
        let answer = shared.ask(&question, PATIENCE).await;
        match answer.and_then(partition_request::positions) {
            Ok(positions) => shared.tell(Some(positions)),
            Err(_) => tokio::time::sleep(RETRY_DELAY).await,
        }
        if !shared.has_waiters() {
            let waited_for = shared.is_waited_for.notified();
            drop(tokio::time::timeout(LOOK_INTERVAL, waited_for).await);
        }
    }
}

impl JobLog for ClusterLog {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, LogError>> {
        let shared = Arc::clone(&self.shared);
        if let Some(here) = shared.led_here() {
            let pending = here.append(batch);
            return Box::pin(async move {
                let offset = pending.await?;
                shared.note_appended(offset + 1);
                Ok(offset)
            });
        }
        let (reply, answer) = oneshot::channel();
        drop(self.queue.send((batch, reply)));
        Box::pin(async move { answer.await.unwrap_or(Err(LogError::NotLeader)) })
    }

    fn read(&self, offset: i64, bytes_max: usize) -> BoxFuture<'static, Result<Chunk, LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.read(offset, bytes_max).await })
    }

    fn catch_up(&self) -> BoxFuture<'static, Result<(), LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            tokio::time::timeout(PATIENCE, shared.catch_up())
                .await
                .unwrap_or_else(|_| {
                    let reason = "the replica here does not catch up with its leader";
                    Err(LogError::Failed(reason.to_owned()))
                })
        })
    }

    fn stable_offset(&self) -> i64 {
        let positions = self.shared.positions();
        positions.map_or(0, |positions| positions.stable_offset)
    }

    fn appended_end(&self) -> i64 {
        let appended = self.shared.appended_end.load(Ordering::Acquire);
        appended.max(self.stable_offset())
    }

    fn high_watermark(&self) -> i64 {
        let positions = self.shared.positions();
        positions.map_or(0, |positions| positions.high_watermark)
    }

    fn start_offset(&self) -> i64 {
        let positions = self.shared.positions();
        positions.map_or(0, |positions| positions.start_offset)
    }

    fn leader_epoch(&self) -> i32 {
        let positions = self.shared.positions();
        positions.map_or(-1, |positions| positions.leader_epoch)
    }

    fn is_serving(&self) -> bool {
        self.shared.led_here().is_some()
            || (self.shared.place.leader().is_some() && self.shared.positions().is_some())
    }

    fn wake(&self, waiter: &Arc<Notify>) {
        if let Some(replica) = self.shared.local() {
            replica.wake(waiter);
        }
        let mut waiters = self
            .shared
            .waiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !waiters.iter().any(|other| Arc::ptr_eq(other, waiter)) {
            waiters.retain(|other| Arc::strong_count(other) > 1);
            waiters.push(Arc::clone(waiter));
            self.shared.is_waited_for.notify_one();
        }
    }

    fn delete_records(&self, before_offset: i64) -> BoxFuture<'static, Result<(), LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            if let Some(here) = shared.led_here() {
                return here.delete_records(before_offset).await;
            }
            let operation = Operation::Delete { before_offset };
            partition_request::deleted(shared.ask(&operation, PATIENCE).await?)
        })
    }

    fn last_sequence(&self, producer_id: i64) -> BoxFuture<'static, Result<Option<i32>, LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            if let Some(here) = shared.led_here() {
                return here.last_sequence(producer_id).await;
            }
            let operation = Operation::LastSequence { producer_id };
            partition_request::last_sequence(shared.ask(&operation, PATIENCE).await?)
        })
    }
}
