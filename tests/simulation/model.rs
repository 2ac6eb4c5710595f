//! What clients were promised and have seen of a partition, and the checks against it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use streamgauge::config::{Flush, TopicConfig};
use streamgauge::shard::event::{Acks, AppendError, Appended, DeleteRecordsError, PartitionId};
use streamgauge::shard::view::{PartitionKey, PartitionView};
use streamgauge_protocol::batch::{
    BatchHeader, BatchIter, BatchRecords, TransactionMarker, TransactionResult,
};
use streamgauge_storage::producer_state::Verification;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::moves::Moves;
use crate::world::is_expected;

pub struct Batch {
    pub bytes: Bytes,
    pub values: Vec<String>,
    pub kind: BatchKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchKind {
    Plain,
    /// To be verified before it is sent.
    Transactional(Verification),
    Marker,
}

/// A client that sends numbered values, each once, though a batch perhaps several times.
pub struct Producer {
    number: usize,
    /// Idempotent if it has an id.
    pub id: Option<i64>,
    pub next_sequence: i32,
    /// If it writes in transactions; it raises its epoch with each.
    pub transaction: Option<OpenTransaction>,
    next_value: u64,
    /// Sent and not yet acknowledged, in order.
    pub outstanding: VecDeque<Arc<Batch>>,
    /// An answer was an error or did not come: nothing new before the old is through.
    pub must_retry: bool,
    /// The node that it takes for the leader.
    pub target: usize,
}

/// Where a producer's transaction stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenTransaction {
    pub epoch: i16,
    /// Something has been sent in this epoch.
    pub is_open: bool,
}

impl Producer {
    pub fn new(number: usize, id: Option<i64>) -> Self {
        Self {
            transaction: None,
            number,
            id,
            next_sequence: 0,
            next_value: 0,
            outstanding: VecDeque::new(),
            must_retry: false,
            target: 0,
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
    pub node: usize,
    pub producer: usize,
    pub batch: Arc<Batch>,
    pub acks: Acks,
    pub answer: oneshot::Receiver<Result<Appended, AppendError>>,
    pub after_failed_sync: bool,
}

/// An answer to DeleteRecords that is awaited.
pub struct Deletion {
    pub answer: oneshot::Receiver<Result<i64, DeleteRecordsError>>,
}

/// A topic's partition on one node, and what was seen of it there since it was opened.
pub struct Replica {
    pub id: PartitionId,
    pub view: Arc<PartitionView>,
    high_watermark_min: i64,
    last_stable_min: i64,
    log_start_min: i64,
}

pub struct Topic {
    pub number: usize,
    pub key: PartitionKey,
    pub config: Arc<TopicConfig>,
    pub producers: Vec<Producer>,
    /// By node; `None` where the node is down.
    pub replicas: Vec<Option<Replica>>,
    pub moves: Moves,
    pub promises: VecDeque<Promise>,
    pub deletions: Vec<Deletion>,
    /// The highest offset that DeleteRecords asked for.
    pub deleted_before: i64,
    /// Acknowledged or served: whoever asks again must get the same.
    expected: BTreeMap<i64, String>,
    /// What a leader of the highest epoch has shown; later ones must not fall behind it.
    high_watermark_min: i64,
    log_start_min: i64,
    leader_epoch_max: i32,
    /// Everything below it was acknowledged or shown by a leader.
    promised_end: i64,
    pub acknowledged_count: u64,
}

impl Topic {
    pub fn new(
        number: usize,
        key: PartitionKey,
        config: Arc<TopicConfig>,
        producers: Vec<Producer>,
        nodes: usize,
        founders: Vec<i32>,
    ) -> Self {
        Self {
            number,
            key,
            config,
            producers,
            replicas: (0..nodes).map(|_| None).collect(),
            moves: Moves::new(founders, nodes),
            promises: VecDeque::new(),
            deletions: Vec::new(),
            deleted_before: 0,
            expected: BTreeMap::new(),
            high_watermark_min: 0,
            log_start_min: 0,
            leader_epoch_max: -1,
            promised_end: 0,
            acknowledged_count: 0,
        }
    }

    fn is_relaxed(&self) -> bool {
        matches!(self.config.flush, Flush::Relaxed { .. })
    }

    pub fn opened(&mut self, node: usize, id: PartitionId, view: Arc<PartitionView>) {
        self.replicas[node] = Some(Replica {
            id,
            view,
            high_watermark_min: 0,
            last_stable_min: 0,
            log_start_min: 0,
        });
    }

    pub fn id(&self, node: usize) -> Option<PartitionId> {
        self.replicas[node].as_ref().map(|replica| replica.id)
    }

    /// How often the leadership changed, as far as readers saw.
    pub fn leader_epoch(&self) -> i32 {
        self.leader_epoch_max
    }

    /// The node that serves as leader of the highest epoch.
    pub fn leader(&self) -> Option<usize> {
        (0..self.replicas.len())
            .filter_map(|node| Some((node, &self.replicas[node].as_ref()?.view)))
            .filter(|(_, view)| view.is_serving())
            .max_by_key(|(_, view)| view.leader_epoch())
            .map(|(node, _)| node)
    }

    /// A node is gone. What a looser flush policy acknowledged need not survive loss of power.
    pub fn stopped(&mut self, node: usize, power_failure: bool, next_producer_id: &mut i64) {
        self.replicas[node] = None;
        for producer in &mut self.producers {
            producer.must_retry |= producer.target == node;
        }
        if !(power_failure && self.is_relaxed()) {
            return;
        }
        self.expected.clear();
        self.promised_end = 0;
        self.high_watermark_min = 0;
        self.log_start_min = 0;
        for producer in &mut self.producers {
            producer.outstanding.clear();
            producer.next_sequence = 0;
            producer.transaction = producer.transaction.map(|_| OpenTransaction::default());
            if producer.id.is_some() {
                *next_producer_id += 1;
                producer.id = Some(*next_producer_id);
            }
        }
    }

    /// Takes the answers that have come. `sync_failed` is by node.
    pub fn collect(&mut self, sync_failed: &[bool]) {
        let alone = self.replicas.len() == 1;
        for mut deletion in std::mem::take(&mut self.deletions) {
            match deletion.answer.try_recv() {
                Err(TryRecvError::Empty) => self.deletions.push(deletion),
                Ok(Ok(start)) => {
                    if !self.has_retention() {
                        assert!(start >= self.log_start_min, "log start went back");
                        self.log_start_min = start;
                    }
                }
                // Whoever cannot write does not delete either.
                Ok(Err(_)) | Err(TryRecvError::Closed) => {}
            }
        }
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
                    if alone && promise.after_failed_sync && sync_failed[promise.node] {
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

    fn has_retention(&self) -> bool {
        self.config.retention_bytes >= 0
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
        self.acknowledged_count += 1;
        self.leader_epoch_max = self.leader_epoch_max.max(appended.leader_epoch);
        self.promised_end = self.promised_end.max(appended.last_offset + 1);
        if let Some(replica) = &self.replicas[promise.node] {
            assert!(
                replica.view.high_watermark() > appended.last_offset,
                "topic {topic}: acknowledged above the high watermark"
            );
        }
        if self.moves.is_untouched() {
            self.check_holders(appended);
        }
        for (offset, value) in (appended.base_offset..).zip(&promise.batch.values) {
            self.expect(offset, value);
        }
        let producer = &mut self.producers[promise.producer];
        producer
            .outstanding
            .retain(|batch| !Arc::ptr_eq(batch, &promise.batch));
    }

    fn check_holders(&self, appended: Appended) {
        let topic = self.number;
        // Who is down cannot be asked.
        let lacking = self
            .replicas
            .iter()
            .flatten()
            .filter(|replica| replica.view.reader().log_end_offset() <= appended.last_offset);
        let founders = self.moves.founders().len();
        let holders = founders - lacking.count();
        let wanted = usize::try_from(self.config.min_insync_replicas).expect("positive");
        assert!(
            holders >= wanted.min(founders),
            "topic {topic}: acknowledged with {holders} replicas that hold it"
        );
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

    /// Reads all that a consumer may, from every replica, and compares it with what was promised
    /// and seen.
    pub fn check_reads(&mut self) {
        // The newest leader first: what others do not know yet is measured by it.
        let leader = self.leader();
        if let Some(leader) = leader {
            self.check_replica(leader);
        }
        for node in 0..self.replicas.len() {
            if Some(node) != leader {
                self.check_replica(node);
            }
        }
    }

    fn check_replica(&mut self, node: usize) {
        let topic = self.number;
        let has_retention = self.has_retention();
        let Some(replica) = &mut self.replicas[node] else {
            return;
        };
        let view = Arc::clone(&replica.view);
        // In this order: the log may start anew further on.
        let (start, end) = (view.log_start_offset(), view.high_watermark());
        let epoch = view.leader_epoch();
        // A leader that was deposed and does not know it yet knows less.
        let leads = view.is_serving() && epoch >= self.leader_epoch_max;
        assert!(
            end >= replica.high_watermark_min,
            "topic {topic}, node {node}: high watermark went back from {} to {end}",
            replica.high_watermark_min
        );
        assert!(
            start >= replica.log_start_min,
            "topic {topic}, node {node}: log start went back from {} to {start}",
            replica.log_start_min
        );
        replica.high_watermark_min = end;
        replica.log_start_min = start;
        let stable = view.last_stable_offset();
        assert!(
            (replica.last_stable_min..=end.max(start)).contains(&stable),
            "topic {topic}, node {node}: last stable offset {stable} after {}, high watermark {end}",
            replica.last_stable_min
        );
        replica.last_stable_min = stable;
        if leads {
            self.leader_epoch_max = epoch;
            assert!(
                end >= self.high_watermark_min,
                "topic {topic}, node {node}: leader shows {end}, another showed {}",
                self.high_watermark_min
            );
            self.high_watermark_min = end;
            self.promised_end = self.promised_end.max(end);
            if !has_retention {
                assert!(
                    start >= self.log_start_min,
                    "topic {topic}, node {node}: log start went back from {} to {start}",
                    self.log_start_min
                );
                self.log_start_min = start;
            }
            assert!(start <= end, "topic {topic}: log starts after its end");
        }
        if !has_retention {
            assert!(
                start <= self.deleted_before,
                "topic {topic}: records below {start} are gone and nobody asked"
            );
        }
        let end = end.max(start);

        let mut found = BTreeMap::new();
        let mut transactions = Transactions::default();
        let mut offset = start;
        while offset < end {
            let read = view
                .reader()
                .read(offset, 1_000, end, true)
                .unwrap_or_else(|error| panic!("topic {topic}: {error}"));
            for batch in read.slices.into_iter().flat_map(BatchIter::new) {
                let (header, batch) = batch.expect("a whole batch");
                transactions.take(&header, &batch);
                if header.is_control() {
                    let value = marker_value(header.producer_id, header.producer_epoch);
                    found.insert(header.base_offset, value);
                    continue;
                }
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
        transactions.check(topic, node, &view, start, stable);
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
                // A marker may be written again, and does no harm.
                assert!(
                    before < number || (before == number && producer.starts_with('m')),
                    "topic {topic}: producer {producer}: {number} after {before} at {offset}"
                );
            }
        }
        assert_eq!(
            found.len() as i64,
            end - start,
            "topic {topic}: records missing"
        );
        // A follower may know of a commit that its leader, whose own sync lags, does not show yet.
        let promised_end = if leads { self.promised_end } else { end };
        for (offset, value) in self.expected.range(start..promised_end.max(start)) {
            assert_eq!(
                found.get(offset),
                Some(value),
                "topic {topic}, node {node}: promised at {offset} and not there"
            );
        }
        self.expected.extend(found);
        self.expected = self.expected.split_off(&self.log_start_min);
    }

    /// Once nothing fails, everybody has an answer, and all replicas hold the same.
    pub fn check_settled(&self) {
        let topic = self.number;
        let Some(leader) = self.leader() else {
            panic!("topic {topic} is not served");
        };
        assert!(!self.moves.is_moving(), "topic {topic} moves for ever");
        let mut views = Vec::new();
        for (node, replica) in self.replicas.iter().enumerate() {
            let is_here = replica.is_some();
            assert_eq!(
                is_here,
                self.moves.has_replica(node),
                "topic {topic}: node {node}"
            );
            views.extend(replica.as_ref().map(|replica| (node, &replica.view)));
        }
        let led = views.iter().find(|(node, _)| *node == leader);
        let (_, led) = *led.expect("the leader is a replica");
        for (node, view) in &views {
            assert_eq!(
                view.high_watermark(),
                led.high_watermark(),
                "topic {topic}: node {node} is not where its leader {leader} is"
            );
            assert_eq!(view.leader_epoch(), led.leader_epoch());
        }
        // Records and all: what a batch's header says of its epoch, producer and timestamps, too.
        let start = views.iter().map(|(_, view)| view.log_start_offset()).max();
        let start = start.unwrap_or_default();
        let expected = committed_batches(led, start);
        for (node, view) in &views {
            assert!(
                committed_batches(view, start) == expected,
                "topic {topic}: node {node} has other bytes than its leader {leader}"
            );
        }
        assert!(self.promises.is_empty(), "topic {topic}: no answer came");
        assert!(self.deletions.is_empty(), "topic {topic}: no answer came");
        for producer in &self.producers {
            assert!(
                producer.outstanding.is_empty(),
                "topic {topic}: producer {} gets no write through",
                producer.number
            );
        }
    }
}

/// As what a marker counts in the model.
pub fn marker_value(producer_id: i64, producer_epoch: i16) -> String {
    format!("m{producer_id}/{producer_epoch:08}/")
}

/// What the batches of a log say of transactions, read naively from its start.
#[derive(Default)]
struct Transactions {
    /// First offset by producer.
    open: HashMap<i64, i64>,
    /// Producer, first offset, marker.
    aborted: Vec<(i64, i64, i64)>,
}

impl Transactions {
    fn take(&mut self, header: &BatchHeader, batch: &Bytes) {
        if !header.is_transactional() {
            return;
        }
        if !header.is_control() {
            let first = self.open.entry(header.producer_id);
            first.or_insert(header.base_offset);
            return;
        }
        let marker = TransactionMarker::of_batch(batch).expect("a marker");
        if let Some(first) = self.open.remove(&header.producer_id)
            && marker.result == TransactionResult::Abort
        {
            let last = header.base_offset;
            self.aborted.push((header.producer_id, first, last));
        }
    }

    /// Nothing below the last stable offset is undecided, and readers are told of all that was aborted there.
    fn check(&self, topic: usize, node: usize, view: &PartitionView, start: i64, stable: i64) {
        // A log may start within a batch.
        let undecided = |first: i64| first.max(start) < stable;
        if let Some((producer, first)) = self.open.iter().find(|(_, first)| undecided(**first)) {
            panic!("topic {topic}, node {node}: {producer} is open since {first}, below {stable}");
        }
        let told = view.reader().aborted_transactions(start, stable);
        let told = told.unwrap_or_else(|error| panic!("topic {topic}, node {node}: {error}"));
        for (producer, first, last) in &self.aborted {
            assert!(
                *first >= stable
                    || told.iter().any(|told| told.producer_id == *producer
                        && told.last_offset == *last
                        && told.first_offset <= *first),
                "topic {topic}, node {node}: {producer} has aborted {first}..{last}, readers below \
                 {stable} are told of {told:?}"
            );
        }
    }
}

/// The bytes of all committed batches from the one with that offset on.
fn committed_batches(view: &PartitionView, start: i64) -> Vec<u8> {
    let end = view.high_watermark();
    let mut bytes = Vec::new();
    let mut offset = start;
    while offset < end {
        let read = view.reader().read(offset, 1_000, end, true);
        let read = read.expect("what is committed can be read");
        assert!(read.next_offset > offset, "nothing at {offset}");
        offset = read.next_offset;
        bytes.extend(read.slices.into_iter().flatten());
    }
    bytes
}
