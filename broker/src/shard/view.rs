//! What a partition shows to readers: its log below the high watermark, without asking its owner.
//!
//! The shard is the only writer. Readers load positions with acquire ordering and read the log's
//! files directly; a position is published only after the bytes below it are.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use streamgauge_storage::log::LogReader;
use tokio::sync::Notify;
use uuid::Uuid;

/// Which partition of which topic; a recreated topic has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey {
    pub topic_id: Uuid,
    pub index: i32,
}

/// The published state of a partition.
pub struct PartitionView {
    key: PartitionKey,
    reader: LogReader,
    /// See [`crate::replication::membership::Membership::joins_after`].
    joins_after: u64,
    high_watermark: AtomicI64,
    last_stable_offset: AtomicI64,
    leader: AtomicI32,
    /// On the leader; broker ids.
    in_sync: ArcSwap<Vec<i32>>,
    leader_epoch: AtomicI32,
    /// The epoch of the last assignment that the group has reached.
    settled: AtomicU64,
    /// Led from here, and the first entry of the leader's term is committed.
    serving: AtomicBool,
    /// Its leader has been heard of since it last could write.
    follows: AtomicBool,
    deleted: AtomicBool,
    damaged: AtomicBool,
    failed: AtomicBool,
    waiters: Waiters,
}

impl PartitionView {
    pub fn new(key: PartitionKey, reader: LogReader, high_watermark: i64) -> Self {
        Self::of_replica(key, reader, high_watermark, 0)
    }

    /// Of a replica that has come after an assignment without it; 0 if there was none.
    pub(super) fn of_replica(
        key: PartitionKey,
        reader: LogReader,
        high_watermark: i64,
        joins_after: u64,
    ) -> Self {
        Self {
            key,
            reader,
            joins_after,
            high_watermark: AtomicI64::new(high_watermark),
            last_stable_offset: AtomicI64::new(high_watermark),
            leader: AtomicI32::new(-1),
            in_sync: ArcSwap::default(),
            leader_epoch: AtomicI32::new(-1),
            settled: AtomicU64::new(0),
            serving: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            waiters: Waiters::default(),
        }
    }

    pub fn key(&self) -> PartitionKey {
        self.key
    }

    /// Whether the replica has come after the assignment of that epoch, which left its predecessor out: a broker that starts again may
    /// hear of that once more, if it did not know what was committed.
    pub fn has_come_after(&self, epoch: u64) -> bool {
        self.joins_after > 0 && self.joins_after >= epoch
    }

    pub fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// The offset after the last committed record: consumers read below it.
    pub fn high_watermark(&self) -> i64 {
        self.high_watermark.load(Ordering::Acquire)
    }

    /// The first offset that an open transaction may still change; consumers with
    /// `read_committed` read below it.
    pub fn last_stable_offset(&self) -> i64 {
        self.last_stable_offset.load(Ordering::Acquire)
    }

    pub fn log_start_offset(&self) -> i64 {
        self.reader.log_start_offset()
    }

    /// Whether the replica was found not to hold what it acknowledged.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// It does not, and takes no more part.
    pub fn publish_damaged(&self) {
        self.damaged.store(true, Ordering::Release);
    }

    /// Whether the replica takes no more writes until its broker starts again.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// It does not, as what its files hold is not known.
    pub fn publish_failed(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether the replica takes part and has heard of a leader, so that it goes on as that does.
    pub fn follows(&self) -> bool {
        self.follows.load(Ordering::Acquire)
    }

    pub(crate) fn publish_follows(&self, follows: bool) {
        self.follows.store(follows, Ordering::Release);
    }

    /// The broker that leads, as far as this replica knows; -1 if it knows of none. One that cannot write may know of a leader that is
    /// none any more.
    pub fn leader(&self) -> i32 {
        self.leader.load(Ordering::Acquire)
    }

    /// On the leader: the brokers whose replicas have been heard of and hold all that is committed.
    pub fn in_sync(&self) -> Arc<Vec<i32>> {
        self.in_sync.load_full()
    }

    pub(super) fn publish_in_sync(&self, mut in_sync: Vec<i32>) {
        in_sync.sort_unstable();
        if **self.in_sync.load() != in_sync {
            self.in_sync.store(Arc::new(in_sync));
        }
    }

    /// The Raft term of the leader less one, or -1 before the first election.
    pub fn leader_epoch(&self) -> i32 {
        self.leader_epoch.load(Ordering::Acquire)
    }

    /// The epoch of the last assignment whose members the group has.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    pub(super) fn publish_settled(&self, epoch: u64) {
        self.settled.store(epoch, Ordering::Release);
        self.waiters.notify();
    }

    /// Whether this broker may answer for the partition as its leader.
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Registers to be notified when records are committed or the partition's state changes.
    /// One that is registered stays so until it is notified once. Register before looking at the
    /// positions, or a change in between is missed.
    pub fn wake(&self, waiter: &Arc<Notify>) {
        self.waiters.add(waiter);
    }

    pub(super) fn publish_positions(&self, high_watermark: i64, last_stable_offset: i64) {
        let before = self.high_watermark.swap(high_watermark, Ordering::AcqRel);
        assert!(
            before <= high_watermark,
            "high watermark of {:?} would go back from {before} to {high_watermark}",
            self.key
        );
        self.last_stable_offset
            .store(last_stable_offset, Ordering::Release);
        self.waiters.notify();
    }

    pub(crate) fn publish_leadership(&self, leader: i32, leader_epoch: i32, serving: bool) {
        self.leader.store(leader, Ordering::Release);
        self.leader_epoch.store(leader_epoch, Ordering::Release);
        self.serving.store(serving, Ordering::Release);
        self.waiters.notify();
    }

    pub(super) fn publish_deleted(&self) {
        self.serving.store(false, Ordering::Release);
        self.deleted.store(true, Ordering::Release);
        self.waiters.notify();
    }

    /// Wakes readers without a change of positions, e.g. after the log start offset moved.
    pub(super) fn publish_change(&self) {
        self.waiters.notify();
    }
}

/// Those who wait for a partition to change.
#[derive(Default)]
struct Waiters {
    /// Spares the lock when nobody waits, which is the common case under load.
    any: AtomicBool,
    list: Mutex<Vec<Weak<Notify>>>,
}

impl Waiters {
    fn add(&self, waiter: &Arc<Notify>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        // Fetches that time out on a quiet partition leave their entries behind; dropping the dead
        // ones whenever the list is about to grow keeps it as long as there are live waiters.
        if list.len() == list.capacity() {
            list.retain(|other| other.strong_count() > 0);
        }
        if !list
            .iter()
            .any(|other| other.as_ptr() == Arc::as_ptr(waiter))
        {
            list.push(Arc::downgrade(waiter));
        }
        // A swap and not a store: if a notification has just found nobody, this reads what it wrote
        // and so sees the positions published before it. A store could be overtaken by the look at
        // the positions that follows, and the change would be missed.
        self.any.swap(true, Ordering::SeqCst);
    }

    fn notify(&self) {
        if !self.any.swap(false, Ordering::SeqCst) {
            return;
        }
        let waiting =
            std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner));
        for waiter in waiting.iter().filter_map(Weak::upgrade) {
            waiter.notify_one();
        }
    }
}
