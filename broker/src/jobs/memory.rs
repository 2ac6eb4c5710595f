//! A cluster in memory for tests. Appends commit a moment later; a crash keeps a part of what had not.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use streamgauge_protocol::batch::{BatchHeader, BatchRecords, RecordView};
use tokio::sync::{Notify, oneshot, watch};
use uuid::Uuid;

use super::cluster::{DerivedTopic, JobCluster, NewJobTopic, TopicInfo};
use super::log::{Chunk, JobLog, LogError};

const COMMIT_AFTER: Duration = Duration::from_millis(2);

/// A log whose appends commit in order, [`COMMIT_AFTER`] later.
#[derive(Clone, Default)]
pub struct MemoryLog {
    inner: Arc<Mutex<Inner>>,
    crash: Arc<CrashPoint>,
}

#[derive(Default)]
struct Inner {
    committed: Vec<(BatchHeader, Bytes)>,
    pending: VecDeque<(Bytes, oneshot::Sender<Result<i64, LogError>>)>,
    start_offset: i64,
    committed_end: i64,
    end: i64,
    /// Last sequences, in-flight ones included.
    tips: HashMap<i64, i32>,
    /// Last sequences of what has committed.
    committed_tips: HashMap<i64, i32>,
    waiters: Vec<Weak<Notify>>,
    deleted: bool,
}

/// Tells a test that so many appends have been made, and refuses one now and then.
#[derive(Default)]
pub struct CrashPoint {
    appends_left: AtomicI64,
    failure_in: AtomicI64,
    pub reached: Notify,
}

impl CrashPoint {
    pub fn arm(&self, appends: i64) {
        self.appends_left.store(appends, Ordering::SeqCst);
    }

    /// The append after so many is refused.
    pub fn arm_failure(&self, appends: i64) {
        self.failure_in.store(appends, Ordering::SeqCst);
    }

    /// True if this append is to be refused.
    fn count(&self) -> bool {
        if self.appends_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.reached.notify_one();
        }
        self.failure_in.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

impl MemoryLog {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends and commits at once, as clients' records that have long been there.
    pub fn append_committed(&self, batch: Bytes) {
        let mut inner = self.lock();
        assert!(inner.pending.is_empty());
        let batch = inner.stamp(batch);
        inner.commit(batch);
        inner.notify();
    }

    /// What a crash leaves: of the appends that had not been answered the first `kept`.
    pub fn crash(&self, kept: usize) {
        self.settle(kept);
        self.lock().waiters.clear();
    }

    /// Another leader has, of the appends that had not been answered, the first `kept`. Nobody is told.
    pub fn change_leader(&self, kept: usize) {
        self.settle(kept);
        self.lock().notify();
    }

    fn settle(&self, kept: usize) {
        let mut inner = self.lock();
        for (position, (batch, _)) in std::mem::take(&mut inner.pending).into_iter().enumerate() {
            if position < kept {
                inner.commit(batch);
            }
        }
        inner.end = inner.committed_end;
        let committed: Vec<BatchHeader> =
            inner.committed.iter().map(|(header, _)| *header).collect();
        inner.committed_tips = committed
            .iter()
            .filter(|header| header.has_producer_id())
            .map(|header| (header.producer_id, header.last_sequence()))
            .collect();
        inner.tips = inner.committed_tips.clone();
    }

    /// The last sequences of what has committed.
    pub fn committed_tips(&self) -> HashMap<i64, i32> {
        self.lock().committed_tips.clone()
    }

    pub fn forget_producers(&self) {
        let mut inner = self.lock();
        inner.tips.clear();
        inner.committed_tips.clear();
    }

    /// All committed records from the log's start.
    pub fn records(&self) -> Vec<RecordView> {
        let inner = self.lock();
        let mut records = Vec::new();
        for (header, batch) in &inner.committed {
            if header.last_offset() < inner.start_offset {
                continue;
            }
            let opened = BatchRecords::open(batch, 1 << 30).unwrap();
            records.extend(opened.views().map(Result::unwrap));
        }
        records
    }

    fn delete(&self) {
        let mut inner = self.lock();
        inner.deleted = true;
        inner.notify();
    }
}

impl Inner {
    fn stamp(&mut self, batch: Bytes) -> Bytes {
        let mut stamped = batch.to_vec();
        stamped[..8].copy_from_slice(&self.end.to_be_bytes());
        self.end = BatchHeader::parse(&stamped).unwrap().last_offset() + 1;
        Bytes::from(stamped)
    }

    fn commit(&mut self, batch: Bytes) {
        let header = BatchHeader::parse(&batch).unwrap();
        assert_eq!(header.base_offset, self.committed_end);
        self.committed_end = header.last_offset() + 1;
        if header.has_producer_id() {
            self.committed_tips
                .insert(header.producer_id, header.last_sequence());
        }
        self.committed.push((header, batch));
    }

    fn notify(&mut self) {
        for waiter in std::mem::take(&mut self.waiters)
            .iter()
            .filter_map(Weak::upgrade)
        {
            waiter.notify_one();
        }
    }

    fn check_sequence(&mut self, batch: &Bytes) -> Result<(), LogError> {
        let header = BatchHeader::parse(batch).unwrap();
        if !header.has_producer_id() {
            return Ok(());
        }
        if let Some(last) = self.tips.get(&header.producer_id)
            && header.base_sequence != last.wrapping_add(1) & i32::MAX
        {
            return Err(LogError::Failed(format!(
                "sequence {} after {last} of producer {}",
                header.base_sequence, header.producer_id
            )));
        }
        self.tips.insert(header.producer_id, header.last_sequence());
        Ok(())
    }
}

impl JobLog for MemoryLog {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, LogError>> {
        if self.crash.count() {
            let error = LogError::Failed("the disk is full".to_owned());
            return Box::pin(std::future::ready(Err(error)));
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut inner = self.lock();
            if inner.deleted {
                return Box::pin(std::future::ready(Err(LogError::NotLeader)));
            }
            if let Err(error) = inner.check_sequence(&batch) {
                return Box::pin(std::future::ready(Err(error)));
            }
            let batch = inner.stamp(batch);
            inner.pending.push_back((batch, reply));
        }
        let log = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(COMMIT_AFTER).await;
            let mut inner = log.lock();
            if let Some((batch, reply)) = inner.pending.pop_front() {
                let base_offset = BatchHeader::parse(&batch).unwrap().base_offset;
                inner.commit(batch);
                inner.notify();
                drop(reply.send(Ok(base_offset)));
            }
        });
        Box::pin(async move { answer.await.unwrap_or(Err(LogError::NotLeader)) })
    }

    fn read(&self, offset: i64, bytes_max: usize) -> BoxFuture<'static, Result<Chunk, LogError>> {
        let inner = self.lock();
        if offset < inner.start_offset || offset > inner.committed_end {
            return Box::pin(std::future::ready(Err(LogError::OutOfRange {
                offset,
                start_offset: inner.start_offset,
            })));
        }
        let mut chunk = Chunk {
            slices: Vec::new(),
            next_offset: offset,
            stable_offset: inner.committed_end,
        };
        let mut bytes = 0;
        for (header, batch) in &inner.committed {
            if header.last_offset() < offset {
                continue;
            }
            if bytes > 0 && bytes + batch.len() > bytes_max {
                break;
            }
            bytes += batch.len();
            chunk.slices.push(batch.clone());
            chunk.next_offset = header.last_offset() + 1;
        }
        Box::pin(std::future::ready(Ok(chunk)))
    }

    fn stable_offset(&self) -> i64 {
        self.lock().committed_end
    }

    fn high_watermark(&self) -> i64 {
        self.lock().committed_end
    }

    fn start_offset(&self) -> i64 {
        self.lock().start_offset
    }

    fn leader_epoch(&self) -> i32 {
        1
    }

    fn is_serving(&self) -> bool {
        !self.lock().deleted
    }

    fn wake(&self, waiter: &Arc<Notify>) {
        let mut inner = self.lock();
        if !inner
            .waiters
            .iter()
            .any(|other| other.as_ptr() == Arc::as_ptr(waiter))
        {
            inner.waiters.push(Arc::downgrade(waiter));
        }
    }

    fn delete_records(&self, before_offset: i64) -> BoxFuture<'static, Result<(), LogError>> {
        let mut inner = self.lock();
        assert!(before_offset <= inner.committed_end);
        inner.start_offset = inner.start_offset.max(before_offset);
        Box::pin(std::future::ready(Ok(())))
    }

    fn last_sequence(&self, producer_id: i64) -> BoxFuture<'static, Result<Option<i32>, LogError>> {
        let last = self.lock().committed_tips.get(&producer_id).copied();
        Box::pin(std::future::ready(Ok(last)))
    }
}

/// Topics by name.
pub struct MemoryCluster {
    topics: Mutex<BTreeMap<String, MemoryTopic>>,
    next_id: AtomicI64,
    version: watch::Sender<u64>,
    pub crash: Arc<CrashPoint>,
}

#[derive(Clone)]
struct MemoryTopic {
    topic_id: Uuid,
    logs: Vec<MemoryLog>,
    declaration: Option<String>,
    producer_id: Option<i64>,
}

impl MemoryCluster {
    pub fn new() -> Arc<MemoryCluster> {
        Arc::new(MemoryCluster {
            topics: Mutex::default(),
            next_id: AtomicI64::new(1),
            version: watch::channel(0).0,
            crash: Arc::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, MemoryTopic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn new_log(&self) -> MemoryLog {
        MemoryLog {
            inner: Arc::default(),
            crash: Arc::clone(&self.crash),
        }
    }

    pub fn create(&self, name: &str, partitions: usize, declaration: Option<&str>) {
        let id = self.next_id.fetch_add(1, Ordering::SeqCst);
        let topic = MemoryTopic {
            topic_id: Uuid::from_u128(id as u128),
            logs: (0..partitions).map(|_| self.new_log()).collect(),
            declaration: declaration.map(str::to_owned),
            producer_id: None,
        };
        self.lock().entry(name.to_owned()).or_insert(topic);
        self.changed();
    }

    pub fn alter(&self, name: &str, declaration: &str) {
        if let Some(topic) = self.lock().get_mut(name) {
            topic.declaration = Some(declaration.to_owned());
        }
        self.changed();
    }

    pub fn grow(&self, name: &str, partitions: usize) {
        let mut topics = self.lock();
        let topic = topics.get_mut(name).unwrap();
        topic.logs.resize_with(partitions, || self.new_log());
        drop(topics);
        self.changed();
    }

    pub fn delete(&self, name: &str) {
        if let Some(topic) = self.lock().remove(name) {
            topic.logs.iter().for_each(MemoryLog::delete);
        }
        self.changed();
    }

    /// Every partition there is.
    pub fn all(&self) -> Vec<(Uuid, i32, MemoryLog)> {
        let topics = self.lock();
        let partitions = topics.values().flat_map(|topic| {
            let logs = (0..).zip(&topic.logs);
            logs.map(|(index, log)| (topic.topic_id, index, log.clone()))
        });
        partitions.collect()
    }

    pub fn find(&self, topic_id: Uuid, partition: i32) -> Option<MemoryLog> {
        let topics = self.lock();
        let topic = topics.values().find(|topic| topic.topic_id == topic_id)?;
        topic.logs.get(usize::try_from(partition).ok()?).cloned()
    }

    pub fn partition(&self, name: &str, partition: usize) -> MemoryLog {
        self.lock()[name].logs[partition].clone()
    }

    pub fn partitions(&self, name: &str) -> Vec<MemoryLog> {
        self.lock()
            .get(name)
            .map(|topic| topic.logs.clone())
            .unwrap_or_default()
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The broker dies; `kept` says how many of each log's unanswered appends outlive it.
    pub fn crash(&self, mut kept: impl FnMut() -> usize) {
        for topic in self.lock().values() {
            for log in &topic.logs {
                log.crash(kept());
            }
        }
    }
}

impl JobCluster for MemoryCluster {
    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn derived_topics(&self) -> Vec<DerivedTopic> {
        let topics = self.lock();
        let derived = topics.iter().filter_map(|(name, topic)| {
            Some(DerivedTopic {
                name: name.clone(),
                topic_id: topic.topic_id,
                partitions: topic.logs.len() as i32,
                replication_factor: 1,
                declaration: topic.declaration.clone()?,
                producer_id: topic.producer_id,
            })
        });
        derived.collect()
    }

    fn topics_with_prefix(&self, prefix: &str) -> Vec<(String, Uuid)> {
        let topics = self.lock();
        let found = topics.iter().filter(|(name, _)| name.starts_with(prefix));
        found
            .map(|(name, topic)| (name.clone(), topic.topic_id))
            .collect()
    }

    fn topic(&self, name: &str) -> Option<TopicInfo> {
        self.lock().get(name).map(|topic| TopicInfo {
            topic_id: topic.topic_id,
            partitions: topic.logs.len() as i32,
        })
    }

    fn log(&self, topic_id: Uuid, partition: i32) -> Option<Arc<dyn JobLog>> {
        Some(Arc::new(self.find(topic_id, partition)?))
    }

    fn runs_here(&self, _: &str) -> bool {
        true
    }

    fn create_topic(&self, new: NewJobTopic) -> BoxFuture<'static, Result<(), String>> {
        let partitions = if new.partitions < 0 {
            2
        } else {
            new.partitions
        };
        self.create(&new.name, partitions as usize, None);
        Box::pin(std::future::ready(Ok(())))
    }

    fn delete_topic(&self, topic_id: Uuid) -> BoxFuture<'static, Result<(), String>> {
        let topics = self.lock();
        let mut found = topics.iter();
        let found = found.find(|(_, topic)| topic.topic_id == topic_id);
        let name = found.map(|(name, _)| name.clone());
        drop(topics);
        if let Some(name) = name {
            self.delete(&name);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn assign_producer_ids(
        &self,
        topic_id: Uuid,
        count: i64,
    ) -> BoxFuture<'static, Result<i64, String>> {
        let first = self.next_id.fetch_add(count, Ordering::SeqCst);
        let mut topics = self.lock();
        let topic = topics.values_mut().find(|topic| topic.topic_id == topic_id);
        let id = topic.map(|topic| *topic.producer_id.get_or_insert(first));
        drop(topics);
        self.changed();
        Box::pin(std::future::ready(
            id.ok_or_else(|| "no such topic".to_owned()),
        ))
    }
}
