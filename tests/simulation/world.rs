//! One simulated node: the production shard on a disk in memory, with clients and faults.
//!
//! Everything that happens follows from the seed: the clock, the order in which syncs end among
//! new events, what the clients do, when the disk fills, fails or loses power and what it keeps.

use std::path::PathBuf;
use std::sync::Arc;

use streamgauge::config::{ConfigLoader, Flush, TimestampType, TopicConfig};
use streamgauge::shard::core::{Shard, ShardSettings};
use streamgauge::shard::event::{
    Acks, Append, AppendError, DeleteRecordsError, Effect, Event, OpenPartition,
};
use streamgauge::shard::view::PartitionKey;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_storage::StorageError;
use streamgauge_storage::disk::sim::{Faults, SimDisk};
use streamgauge_storage::log::SyncTicket;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::model::{Batch, Producer, Promise, Topic};

/// Most batches of one producer that await an answer; a broker remembers five.
const IN_FLIGHT_MAX: usize = 3;

/// Numbers that follow from a seed (Marsaglia's xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.number() >> 11) % end
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What went wrong with the disk and not yet been mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Full, or refusing writes: mends without a restart.
    Writes,
    /// A sync failed, or power is about to go: only a restart helps.
    Fatal,
}

pub struct World {
    pub random: Random,
    pub disk: SimDisk,
    pub topics: Vec<Topic>,
    pub trouble: Trouble,
    pub restarts: u64,
    shard: Option<Shard>,
    now_ms: i64,
    syncing: Option<(u64, Vec<SyncTicket>)>,
    sync_failed: bool,
    next_producer_id: i64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            disk: SimDisk::new(),
            topics: Vec::new(),
            trouble: Trouble::None,
            restarts: 0,
            shard: None,
            now_ms: 1_000_000,
            syncing: None,
            sync_failed: false,
            next_producer_id: 1,
        };
        for number in 0..4 {
            let topic = world.new_topic(number);
            world.topics.push(topic);
        }
        world
    }

    fn new_topic(&mut self, number: usize) -> Topic {
        let mut config: TopicConfig = ConfigLoader::new()
            .finish("simulation")
            .expect("the defaults are valid")
            .topic_defaults;
        config.segment_bytes = 700 + i32::try_from(self.random.below(600)).expect("small");
        config.index_interval_bytes = 100;
        config.retention_ms = -1;
        match number {
            1 => config.message_timestamp_type = TimestampType::LogAppendTime,
            2 => config.retention_bytes = 2_000,
            3 => {
                config.flush = Flush::Relaxed {
                    messages: 5,
                    ms: 700,
                }
            }
            _ => {}
        }
        let key = PartitionKey {
            topic_id: Uuid::from_u128(
                u128::from(self.random.number()) << 64 | u128::from(self.random.number()),
            ),
            index: 0,
        };
        let producers = (0..3)
            .map(|number| {
                self.next_producer_id += 1;
                Producer::new(number, (number < 2).then_some(self.next_producer_id))
            })
            .collect();
        Topic::new(number, key, Arc::new(config), producers)
    }

    /// Opens the shard and all its partitions.
    pub fn start(&mut self) -> Result<(), StorageError> {
        let settings = ShardSettings {
            broker_id: 1,
            directory: PathBuf::from("/data/raft-state-0"),
            retention_check_interval_ms: 500,
            producer_expiration_ms: i64::MAX / 4,
        };
        let disk = Arc::new(self.disk.clone());
        self.shard = Some(Shard::open(settings, disk, self.now_ms)?);
        self.restarts += 1;
        for number in 0..self.topics.len() {
            self.open(number)?;
        }
        Ok(())
    }

    fn open(&mut self, number: usize) -> Result<(), StorageError> {
        let topic = &self.topics[number];
        let (reply, mut opened) = oneshot::channel();
        let event = Event::Open(Box::new(OpenPartition {
            key: topic.key,
            topic: format!("topic-{number}").into(),
            directory: PathBuf::from(format!("/data/topic-{number}-0")),
            config: Arc::clone(&topic.config),
            replicas: vec![1],
            reply,
        }));
        self.handle(event);
        let opened = opened.try_recv().expect("opening is answered at once")?;
        self.topics[number].opened(opened.id, opened.view);
        Ok(())
    }

    /// Power goes, or only the process dies and the page cache stays; then all starts again.
    pub fn restart(&mut self, power_failure: bool) {
        self.shard = None;
        self.syncing = None;
        self.collect();
        if power_failure {
            let random = &mut self.random;
            self.disk.crash(&mut || random.number());
        }
        self.disk.set_faults(Faults::default());
        self.trouble = Trouble::None;
        self.sync_failed = false;
        for topic in &mut self.topics {
            topic.stopped(power_failure, &mut self.next_producer_id);
        }
        // Power may go again while the broker recovers.
        for _ in 0..3 {
            if !self.random.one_in(4) {
                break;
            }
            self.disk.set_faults(Faults {
                stop_after: Some(self.random.below(12)),
                ..Faults::default()
            });
            let _interrupted = self.start();
            self.shard = None;
            self.syncing = None;
            let random = &mut self.random;
            self.disk.crash(&mut || random.number());
            for topic in &mut self.topics {
                topic.stopped(true, &mut self.next_producer_id);
            }
        }
        self.start()
            .unwrap_or_else(|error| panic!("a broker does not start after a crash: {error}"));
    }

    fn handle(&mut self, event: Event) {
        let now_ms = self.now_ms;
        if let Some(shard) = &mut self.shard {
            shard.handle(event, now_ms);
        }
    }

    pub fn flush(&mut self) {
        let now_ms = self.now_ms;
        if let Some(shard) = &mut self.shard
            && let Some(Effect::Sync { round, tickets }) = shard.flush(now_ms)
        {
            assert!(self.syncing.is_none(), "two rounds of syncs at once");
            self.syncing = Some((round, tickets));
        }
        self.collect();
    }

    /// Runs one file's sync of the round under way, or ends the round.
    pub fn sync_step(&mut self) {
        let Some((round, tickets)) = &mut self.syncing else {
            return;
        };
        let round = *round;
        let result = match tickets.pop() {
            Some(ticket) => match ticket.run() {
                Ok(()) => return,
                Err(error) => Err(error.to_string()),
            },
            None => Ok(()),
        };
        self.sync_failed |= result.is_err();
        self.syncing = None;
        self.handle(Event::Synced { round, result });
    }

    pub fn tick(&mut self, passed_ms: i64) {
        self.now_ms += passed_ms;
        self.handle(Event::Tick);
    }

    /// Takes the answers that have come and checks what readers see.
    pub fn collect(&mut self) {
        for topic in &mut self.topics {
            topic.collect(self.sync_failed);
            if self.shard.is_some() {
                topic.check_reads();
            }
        }
    }

    /// One thing happens.
    pub fn step(&mut self) {
        let number = self.random.below(self.topics.len() as u64) as usize;
        match self.random.below(100) {
            0..45 => self.produce(number),
            45..52 => self.retry(number),
            52..78 => self.sync_step(),
            78..86 => {
                let passed_ms = i64::try_from(self.random.below(600)).expect("small");
                self.tick(passed_ms);
            }
            86..89 => self.delete_records(number),
            89 if self.random.one_in(3) => self.recreate(number),
            90..95 => self.fault(),
            95 if self.random.one_in(2) => self.restart(true),
            96 if self.random.one_in(2) => self.restart(false),
            97 if self.random.one_in(3) => self.close(),
            _ => {}
        }
        // Several events may come before the shard turns to writing.
        if !self.random.one_in(3) {
            self.flush();
        } else {
            self.collect();
        }
    }

    fn fault(&mut self) {
        match (self.trouble, self.random.below(4)) {
            (Trouble::Fatal, _) => self.restart(true),
            (Trouble::Writes, _) => self.mend(),
            (Trouble::None, 0) => {
                self.trouble = Trouble::Writes;
                self.disk.set_faults(Faults {
                    capacity_bytes: Some(self.disk.used_bytes() + self.random.below(500)),
                    ..Faults::default()
                });
            }
            (Trouble::None, 1) => {
                self.trouble = Trouble::Writes;
                self.disk.set_faults(Faults {
                    fail_writes: true,
                    ..Faults::default()
                });
            }
            (Trouble::None, 2) => {
                self.trouble = Trouble::Fatal;
                self.disk.set_faults(Faults {
                    fail_syncs: true,
                    ..Faults::default()
                });
            }
            (Trouble::None, _) => self.stop_power_after_some(),
        }
    }

    fn stop_power_after_some(&mut self) {
        let after = self.random.below(30);
        self.stop_power_after(after);
    }

    pub fn stop_power_after(&mut self, operations: u64) {
        self.trouble = Trouble::Fatal;
        self.disk.set_faults(Faults {
            stop_after: Some(operations),
            ..Faults::default()
        });
    }

    /// There is space again.
    pub fn mend(&mut self) {
        self.disk.set_faults(Faults::default());
        self.trouble = Trouble::None;
    }

    pub fn produce(&mut self, number: usize) {
        let which = self.random.below(3) as usize;
        let records = 1 + self.random.below(3);
        let padding = self.random.below(120) as usize;
        let producer = &mut self.topics[number].producers[which];
        if producer.must_retry || producer.outstanding.len() >= IN_FLIGHT_MAX {
            return;
        }
        let acks = match (producer.id, self.random.below(3)) {
            (None, 0) => Acks::None,
            (None, 1) => Acks::Leader,
            _ => Acks::All,
        };
        let values: Vec<String> = (0..records).map(|_| producer.next_value(padding)).collect();
        let mut builder = BatchBuilder::new();
        if let Some(id) = producer.id {
            builder = builder.producer(id, 0, producer.next_sequence);
            producer.next_sequence += i32::try_from(records).expect("small");
        }
        for value in &values {
            builder = builder.record(self.now_ms, None, Some(value.as_bytes()));
        }
        let bytes = builder.build().expect("a batch of valid records");
        let batch = Arc::new(Batch { bytes, values });
        if producer.id.is_some() {
            producer.outstanding.push_back(Arc::clone(&batch));
        }
        self.send(number, which, batch, acks);
    }

    /// Sends again, in order, all that a producer has no good answer for.
    pub fn retry(&mut self, topic: usize) {
        for which in 0..self.topics[topic].producers.len() {
            let producer = &mut self.topics[topic].producers[which];
            producer.must_retry = false;
            let again: Vec<_> = producer.outstanding.iter().cloned().collect();
            for batch in again {
                self.send(topic, which, batch, Acks::All);
            }
        }
    }

    fn send(&mut self, number: usize, producer: usize, batch: Arc<Batch>, acks: Acks) {
        let Some(id) = self.topics[number].id else {
            return;
        };
        let (reply, answer) = oneshot::channel();
        let bytes = batch.bytes.clone();
        self.topics[number].promises.push_back(Promise {
            producer,
            batch,
            acks,
            answer,
            after_failed_sync: self.sync_failed,
        });
        self.handle(Event::Append(
            id,
            Append {
                batch: bytes,
                acks,
                reply,
            },
        ));
    }

    fn delete_records(&mut self, number: usize) {
        let (Some(id), Some(view)) = (self.topics[number].id, &self.topics[number].view) else {
            return;
        };
        let (start, end) = (view.log_start_offset(), view.high_watermark());
        let before_offset = start + self.random.below((end - start) as u64 + 2) as i64;
        let (reply, mut answer) = oneshot::channel();
        self.handle(Event::DeleteRecords {
            partition: id,
            before_offset,
            reply,
        });
        let topic = &mut self.topics[number];
        // Asked for is asked for, even if the answer is that it failed.
        topic.deleted_before = topic.deleted_before.max(before_offset.min(end));
        match answer.try_recv() {
            Ok(Ok(start)) => topic.start_promised(start),
            Ok(Err(DeleteRecordsError::OffsetOutOfRange)) => assert!(before_offset > end),
            Ok(Err(_)) => assert_ne!(self.trouble, Trouble::None, "records are not deleted"),
            Err(_) => panic!("DeleteRecords was not answered"),
        }
    }

    /// The topic is deleted and one of the same name created.
    fn recreate(&mut self, number: usize) {
        if self.trouble != Trouble::None {
            return;
        }
        let Some(id) = self.topics[number].id else {
            return;
        };
        let (reply, _deleted) = oneshot::channel();
        self.handle(Event::Delete {
            partition: id,
            reply,
        });
        self.topics[number] = self.new_topic(number);
        self.open(number)
            .unwrap_or_else(|error| panic!("a new partition is not opened: {error}"));
    }

    /// The broker is stopped in order and started again.
    fn close(&mut self) {
        if self.trouble != Trouble::None {
            return;
        }
        while self.syncing.is_some() {
            self.sync_step();
        }
        let (reply, _closed) = oneshot::channel();
        self.handle(Event::Close { reply });
        self.restart(false);
    }

    /// Nothing fails any more: every producer gets its answer, and all that was promised is there.
    pub fn settle(&mut self) {
        match self.trouble {
            Trouble::Fatal => self.restart(true),
            Trouble::Writes => self.mend(),
            Trouble::None => {}
        }
        for _ in 0..12 {
            self.tick(1_100);
            for _ in 0..60 {
                self.flush();
                self.sync_step();
            }
            for number in 0..self.topics.len() {
                self.retry(number);
            }
        }
        for _ in 0..60 {
            self.flush();
            self.sync_step();
        }
        self.collect();
        for topic in &self.topics {
            topic.check_settled();
        }
    }
}

/// Whether an error may be answered.
pub fn is_expected(error: &AppendError) -> bool {
    matches!(
        error,
        AppendError::Storage(_) | AppendError::NotLeader | AppendError::OutOfOrderSequence(_)
    )
}
