use super::*;
use crate::coordinator::memory_log::MemoryLog;
use crate::transaction::state::State;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

type Answer = Result<(), ResponseError>;

/// Partitions that answer as they are told, else at once that a marker is in.
struct Partitions {
    answers: Mutex<VecDeque<Answer>>,
    written: Mutex<Vec<(TopicPartition, Marker)>>,
    /// Without permits markers wait.
    gate: Semaphore,
    gone: Mutex<Vec<TopicPartition>>,
    next_producer_id: AtomicI64,
}

impl Partitions {
    fn open() -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::default(),
            written: Mutex::default(),
            gate: Semaphore::new(1),
            gone: Mutex::default(),
            next_producer_id: AtomicI64::new(7),
        })
    }

    fn written(&self) -> MutexGuard<'_, Vec<(TopicPartition, Marker)>> {
        self.written.lock().unwrap()
    }
}

/// What a test holds; the coordinator has a handle of its own.
struct Shared(Arc<Partitions>);

impl Surroundings for Shared {
    fn write_marker(
        &self,
        partition: TopicPartition,
        marker: Marker,
    ) -> BoxFuture<'static, Answer> {
        let partitions = Arc::clone(&self.0);
        Box::pin(async move {
            let _permit = partitions.gate.acquire().await;
            partitions.written().push((partition, marker));
            let told = partitions.answers.lock().unwrap().pop_front();
            told.unwrap_or(Ok(()))
        })
    }

    fn is_gone(&self, partition: TopicPartition) -> BoxFuture<'static, bool> {
        let gone = self.0.gone.lock().unwrap().contains(&partition);
        Box::pin(std::future::ready(gone))
    }

    fn new_producer_id(&self) -> BoxFuture<'static, Result<i64, ResponseError>> {
        let id = self.0.next_producer_id.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(id)))
    }
}

fn coordinator(
    log: &Arc<MemoryLog>,
    partitions: &Arc<Partitions>,
    epoch: i32,
) -> TransactionCoordinator {
    let settings = RuntimeSettings {
        append_bytes_max: APPEND_BYTES_MAX,
        commit_timeout_ms: 30_000,
        mailbox_requests_max: 16,
    };
    let coordinator = TransactionCoordinator {
        config: TransactionConfig {
            writings: Arc::default(),
            abort_interval_ms: 10_000,
            expiration_ms: 1_000_000,
            expiration_interval_ms: 100_000,
        },
        timeout_ms_max: 900_000,
        coordinators: Coordinators::new(settings, Arc::new(|| 1_000), 1),
        surroundings: OnceLock::new(),
    };
    let shared: Arc<dyn Surroundings> = Arc::new(Shared(Arc::clone(partitions)));
    assert!(coordinator.surroundings.set(shared).is_ok());
    coordinator.become_leader(0, epoch, log.clone());
    coordinator
}

fn orders(partition: i32) -> TopicPartition {
    ("orders".to_owned(), partition)
}

async fn initialised(coordinator: &TransactionCoordinator) -> Producer {
    // Time is paused in these tests, so that waiting costs none.
    for _ in 0..1_000 {
        match coordinator.init("t", 60_000, None).await {
            Ok(producer) => return producer,
            Err(
                ResponseError::CoordinatorLoadInProgress | ResponseError::ConcurrentTransactions,
            ) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("never initialised");
}

async fn until(coordinator: &TransactionCoordinator, state: State) {
    for _ in 0..100_000 {
        if coordinator
            .describe("t")
            .await
            .is_ok_and(|t| t.state == state)
        {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("never {state:?}: {:?}", coordinator.describe("t").await);
}

async fn ended(coordinator: &TransactionCoordinator, partitions: &[i32]) -> Producer {
    let producer = initialised(coordinator).await;
    let added = partitions.iter().copied().map(orders).collect();
    coordinator
        .add_partitions("t", producer, added, 2)
        .await
        .unwrap();
    let next = coordinator.end("t", producer, true, 2).await.unwrap();
    next.unwrap()
}

#[tokio::test(start_paused = true)]
async fn markers_are_written_until_they_are_in() {
    let (log, partitions) = (MemoryLog::open(), Partitions::open());
    partitions.answers.lock().unwrap().extend([
        Err(ResponseError::NotLeaderOrFollower),
        Err(ResponseError::UnknownTopicOrPartition),
        Err(ResponseError::NetworkException),
    ]);
    let coordinator = coordinator(&log, &partitions, 3);
    let next = ended(&coordinator, &[0, 1]).await;
    until(&coordinator, State::CompleteCommit).await;
    let mut done: Vec<_> = partitions.written().clone();
    assert_eq!(done.len(), 5);
    assert!(done.iter().all(|(_, marker)| *marker
        == Marker {
            producer_id: next.id,
            producer_epoch: next.epoch,
            coordinator_epoch: 3,
            committed: true,
            transaction_version: 2,
        }));
    done.sort_by(|(a, _), (b, _)| a.cmp(b));
    done.dedup();
    assert_eq!(done.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn partitions_that_are_gone_need_no_marker() {
    let (log, partitions) = (MemoryLog::open(), Partitions::open());
    partitions.gone.lock().unwrap().push(orders(0));
    let answers = [Err(ResponseError::UnknownTopicOrPartition)];
    partitions.answers.lock().unwrap().extend(answers);
    let coordinator = coordinator(&log, &partitions, 3);
    ended(&coordinator, &[0]).await;
    until(&coordinator, State::CompleteCommit).await;
    assert_eq!(partitions.written().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_next_coordinator_writes_what_the_last_has_decided() {
    let (log, partitions) = (MemoryLog::open(), Partitions::open());
    let gate = partitions.gate.acquire().await.unwrap();
    let first = coordinator(&log, &partitions, 3);
    ended(&first, &[0, 1]).await;
    first.resign(0);
    let second = coordinator(&log, &partitions, 4);
    drop(gate);
    until(&second, State::CompleteCommit).await;
    let epochs: Vec<i32> = partitions
        .written()
        .iter()
        .map(|(_, marker)| marker.coordinator_epoch)
        .collect();
    assert_eq!(epochs, [4, 4], "the first has stopped");
    let gone = first.describe("t").await;
    assert_eq!(gone.map(|t| t.state), Err(ResponseError::NotCoordinator));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_coordinator_leaves_the_end_to_another() {
    let (log, partitions) = (MemoryLog::open(), Partitions::open());
    let answers = [Err(ResponseError::TransactionCoordinatorFenced)];
    partitions.answers.lock().unwrap().extend(answers);
    let first = coordinator(&log, &partitions, 3);
    ended(&first, &[0]).await;
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    until(&first, State::PrepareCommit).await;
    assert_eq!(partitions.written().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_not_logged_writes_no_marker() {
    let (log, partitions) = (MemoryLog::open(), Partitions::open());
    let coordinator = coordinator(&log, &partitions, 3);
    let producer = initialised(&coordinator).await;
    let added = vec![orders(0)];
    let added = coordinator.add_partitions("t", producer, added, 2);
    added.await.unwrap();
    log.fail_next(ResponseError::CoordinatorNotAvailable);
    let ended = coordinator.end("t", producer, true, 2).await;
    assert_eq!(ended, Err(ResponseError::CoordinatorNotAvailable));
    until(&coordinator, State::Ongoing).await;
    assert!(partitions.written().is_empty());
    let ended = coordinator.end("t", producer, true, 2).await;
    assert!(ended.is_ok());
    until(&coordinator, State::CompleteCommit).await;
}
