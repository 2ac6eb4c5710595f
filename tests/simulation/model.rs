//! What clients were promised and have seen of a partition, and the checks against it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use streamgauge::config::{Flush, TopicConfig};
use streamgauge::shard::event::{Acks, AppendError, Appended, PartitionId};
use streamgauge::shard::view::{PartitionKey, PartitionView};
use streamgauge_protocol::batch::{BatchIter, BatchRecords};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::world::is_expected;

pub struct Batch {
    pub bytes: Bytes,
    pub values: Vec<String>,
}

/// A client that sends numbered values, each once, though a batch perhaps several times.
pub struct Producer {
    number: usize,
    /// Idempotent if it has an id.
    pub id: Option<i64>,
    pub next_sequence: i32,
    next_value: u64,
    /// Sent and not yet acknowledged, in order.
    pub outstanding: VecDeque<Arc<Batch>>,
    /// An answer was an error or did not come: nothing new before the old is through.
    pub must_retry: bool,
}

impl Producer {
    pub fn new(number: usize, id: Option<i64>) -> Self {
        Self {
            number,
            id,
            next_sequence: 0,
            next_value: 0,
            outstanding: VecDeque::new(),
            must_retry: false,
        }
    }

    /// `<producer>/<number>/<padding>`.
    pub fn next_value(&mut self, padding: usize) -> String {
        self.next_value += 1;
        format!(
            "{}/{:08}/{}",
            self.number,
            self.next_value,
            "x".repeat(padding)
        )
    }
}

/// An append whose answer is awaited.
pub struct Promise {
    pub producer: usize,
    pub batch: Arc<Batch>,
    pub acks: Acks,
    pub answer: oneshot::Receiver<Result<Appended, AppendError>>,
    pub after_failed_sync: bool,
}

pub struct Topic {
    pub number: usize,
    pub key: PartitionKey,
    pub config: Arc<TopicConfig>,
    pub producers: Vec<Producer>,
    pub id: Option<PartitionId>,
    pub view: Option<Arc<PartitionView>>,
    pub promises: VecDeque<Promise>,
    /// The highest offset that DeleteRecords asked for.
    pub deleted_before: i64,
    /// Acknowledged or served: whoever asks again must get the same.
    expected: BTreeMap<i64, String>,
    high_watermark_min: i64,
    log_start_min: i64,
}

impl Topic {
    pub fn new(
        number: usize,
        key: PartitionKey,
        config: Arc<TopicConfig>,
        producers: Vec<Producer>,
    ) -> Self {
        Self {
            number,
            key,
            config,
            producers,
            id: None,
            view: None,
            promises: VecDeque::new(),
            deleted_before: 0,
            expected: BTreeMap::new(),
            high_watermark_min: 0,
            log_start_min: 0,
        }
    }

    fn is_relaxed(&self) -> bool {
        matches!(self.config.flush, Flush::Relaxed { .. })
    }

    pub fn opened(&mut self, id: PartitionId, view: Arc<PartitionView>) {
        self.id = Some(id);
        self.view = Some(view);
    }

    /// The broker is gone. What a looser flush policy acknowledged need not survive loss of power.
    pub fn stopped(&mut self, power_failure: bool, next_producer_id: &mut i64) {
        self.id = None;
        self.view = None;
        for producer in &mut self.producers {
            producer.must_retry = true;
        }
        if !(power_failure && self.is_relaxed()) {
            return;
        }
        self.expected.clear();
        self.high_watermark_min = 0;
        self.log_start_min = 0;
        for producer in &mut self.producers {
            producer.outstanding.clear();
            producer.next_sequence = 0;
            if producer.id.is_some() {
                *next_producer_id += 1;
                producer.id = Some(*next_producer_id);
            }
        }
    }

    pub fn start_promised(&mut self, log_start_offset: i64) {
        assert!(
            log_start_offset >= self.log_start_min,
            "log start went back"
        );
        self.log_start_min = log_start_offset;
    }

    /// Takes the answers that have come.
    pub fn collect(&mut self, sync_failed: bool) {
        for mut promise in std::mem::take(&mut self.promises) {
            match promise.answer.try_recv() {
                Err(TryRecvError::Empty) => self.promises.push_back(promise),
                Err(TryRecvError::Closed) => {
                    if promise.acks != Acks::None {
                        self.producers[promise.producer].must_retry = true;
                    }
                }
                Ok(Ok(appended)) => self.acknowledged(&promise, appended),
                Ok(Err(error)) => {
                    assert!(is_expected(&error), "topic {}: {error}", self.number);
                    if promise.after_failed_sync && sync_failed {
                        assert!(
                            matches!(error, AppendError::Storage(_)),
                            "topic {}: after a failed sync: {error}",
                            self.number
                        );
                    }
                    self.producers[promise.producer].must_retry = true;
                }
            }
        }
    }

    fn acknowledged(&mut self, promise: &Promise, appended: Appended) {
        let topic = self.number;
        assert!(
            !promise.after_failed_sync,
            "topic {topic}: a write was taken after a failed sync"
        );
        let count = promise.batch.values.len() as i64;
        assert_eq!(appended.last_offset - appended.base_offset + 1, count);
        if promise.acks != Acks::All {
            return;
        }
        if let Some(view) = &self.view {
            assert!(
                view.high_watermark() > appended.last_offset,
                "topic {topic}: acknowledged above the high watermark"
            );
        }
        for (offset, value) in (appended.base_offset..).zip(&promise.batch.values) {
            self.expect(offset, value);
        }
        let producer = &mut self.producers[promise.producer];
        producer
            .outstanding
            .retain(|batch| !Arc::ptr_eq(batch, &promise.batch));
    }

    fn expect(&mut self, offset: i64, value: &str) {
        let known = self
            .expected
            .entry(offset)
            .or_insert_with(|| value.to_owned());
        assert_eq!(
            known, value,
            "topic {}: offset {offset} was something else before",
            self.number
        );
    }

    /// Reads all that a consumer may and compares it with what was promised and seen.
    pub fn check_reads(&mut self) {
        let topic = self.number;
        let Some(view) = self.view.clone() else {
            return;
        };
        if !view.is_serving() {
            return;
        }
        let (start, end) = (view.log_start_offset(), view.high_watermark());
        assert!(
            end >= self.high_watermark_min,
            "topic {topic}: high watermark went back from {} to {end}",
            self.high_watermark_min
        );
        assert!(
            start >= self.log_start_min,
            "topic {topic}: log start went back from {} to {start}",
            self.log_start_min
        );
        assert!(start <= end, "topic {topic}: log starts after its end");
        if self.config.retention_bytes < 0 {
            assert!(
                start <= self.deleted_before,
                "topic {topic}: records below {start} are gone and nobody asked"
            );
        }
        self.high_watermark_min = end;
        self.log_start_min = start;
        self.expected = self.expected.split_off(&start);

        let mut found = BTreeMap::new();
        let mut offset = start;
        while offset < end {
            let read = view
                .reader()
                .read(offset, 1_000, end, true)
                .unwrap_or_else(|error| panic!("topic {topic}: {error}"));
            for batch in read.slices.into_iter().flat_map(BatchIter::new) {
                let (_, batch) = batch.expect("a whole batch");
                let records = BatchRecords::open(&batch, 1 << 20).expect("a batch that opens");
                for record in records.iter() {
                    let record = record.expect("a record that reads");
                    let value = String::from_utf8_lossy(record.value.unwrap_or_default());
                    if record.offset >= start {
                        found.insert(record.offset, value.into_owned());
                    }
                }
            }
            assert!(
                read.next_offset > offset,
                "topic {topic}: nothing at {offset}"
            );
            offset = read.next_offset;
        }
        if let Some((last, _)) = found.last_key_value() {
            assert!(*last < end, "topic {topic}: {last} served above {end}");
        }
        // Offsets are numbered without a gap, each producer's values come in order and once.
        let mut last_of: HashMap<String, String> = HashMap::new();
        for (offset, (at, value)) in (start..).zip(&found) {
            assert_eq!(offset, *at, "topic {topic}: a gap in the offsets");
            let mut parts = value.splitn(3, '/').map(str::to_owned);
            let (producer, number) = (parts.next(), parts.next());
            let (producer, number) = (producer.expect("ours"), number.expect("ours"));
            if let Some(before) = last_of.insert(producer.clone(), number.clone()) {
                assert!(
                    before < number,
                    "topic {topic}: producer {producer}: {number} after {before} at {offset}"
                );
            }
        }
        assert_eq!(
            found.len() as i64,
            end - start,
            "topic {topic}: records missing"
        );
        for (offset, value) in &self.expected {
            assert_eq!(
                found.get(offset),
                Some(value),
                "topic {topic}: promised at {offset} and not there"
            );
        }
        self.expected = found;
    }

    /// Once nothing fails, everybody has an answer.
    pub fn check_settled(&self) {
        let topic = self.number;
        assert!(
            self.view.as_ref().is_some_and(|view| view.is_serving()),
            "topic {topic} does not serve"
        );
        assert!(self.promises.is_empty(), "topic {topic}: no answer came");
        for producer in &self.producers {
            assert!(
                producer.outstanding.is_empty(),
                "topic {topic}: producer {} gets no write through",
                producer.number
            );
        }
    }
}
