//! Producers of records with event times, and what an aggregation of them must have come to.
//!
//! Each partition has one producer, whose event times only grow, so that nothing is ever late: whatever is committed in the source
//! counts, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_protocol::messages::messages::metadata_request::MetadataRequestTopic;
use streamgauge_protocol::messages::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use streamgauge_protocol::messages::messages::{MetadataRequest, ProduceRequest, TopicName};

use crate::client::{Client, text};
use crate::network::broker_index;
use crate::topics::new_producer_id;

pub const SOURCE: &str = "orders";
pub const SOURCE_PARTITIONS: i32 = 2;
pub const DERIVED: &str = "orders-per-window";
pub const DERIVED_PARTITIONS: i32 = 2;
pub const WINDOW_MS: i64 = 2_000;

pub const DECLARATION: &str = "\
topic: orders-per-window
partitions: 2
from: { topic: orders, format: json }
time: { field: t, unit: ms, max_out_of_orderness: 500ms, idle_timeout: 1h }
group_by: [k]
window: { tumbling: 2s }
aggregate:
  n: count(*)
  total: sum(v)
late: { topic: orders-late }
dead_letter: { topic: orders-bad }
";

/// Topics in which nothing may ever be.
pub const SIDE_TOPICS: [&str; 2] = ["orders-late", "orders-bad"];

const KEYS: [&str; 3] = ["a", "b", "c"];

/// The key of the records that close all windows before theirs.
const CLOSING: &str = "end";

/// How far behind all others the closing records lie, in milliseconds.
const CLOSING_MS: i64 = 60_000;

/// A record of the source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    id: i64,
    key: String,
    value: i64,
    time_ms: i64,
}

impl Order {
    fn to_json(&self) -> String {
        format!(
            r#"{{"id":{},"k":"{}","v":{},"t":{}}}"#,
            self.id, self.key, self.value, self.time_ms
        )
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(json: &str) -> Option<Self> {
        Some(Self {
            id: number_field(json, "id")?,
            key: text_field(json, "k")?,
            value: number_field(json, "v")?,
            time_ms: number_field(json, "t")?,
        })
    }
}

fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next()
}

fn number_field(json: &str, name: &str) -> Option<i64> {
    field(json, name)?.parse().ok()
}

fn text_field(json: &str, name: &str) -> Option<String> {
    Some(field(json, name)?.trim_matches('"').to_owned())
}

/// A window of a key, by its start.
pub type Window = (i64, String);

/// Count and sum.
pub type Sums = (i64, i64);

/// A result as it lies in the derived topic, whose timestamp is its window's last millisecond.
pub fn result(json: &str, timestamp_ms: i64) -> Option<(Window, Sums)> {
    let start_ms = timestamp_ms + 1 - WINDOW_MS;
    let sums = (number_field(json, "n")?, number_field(json, "total")?);
    Some(((start_ms, text_field(json, "k")?), sums))
}

/// What the windows of these orders must be, without those that nothing has closed.
pub fn expected(orders: &[Order]) -> BTreeMap<Window, Sums> {
    let mut windows: BTreeMap<Window, Sums> = BTreeMap::new();
    for order in orders.iter().filter(|order| order.key != CLOSING) {
        let start_ms = order.time_ms - order.time_ms.rem_euclid(WINDOW_MS);
        let (count, sum) = windows.entry((start_ms, order.key.clone())).or_default();
        *count += 1;
        *sum += order.value;
    }
    windows
}

#[derive(Default)]
pub struct Orders(Mutex<BTreeSet<i64>>);

impl Orders {
    fn acknowledged(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged().len()
    }

    /// Every acknowledged order is there, and each once.
    pub fn check(&self, committed: &[Order]) -> Result<(), String> {
        let mut ids = BTreeSet::new();
        for order in committed {
            if !ids.insert(order.id) {
                return Err(format!("{order:?} is in the source twice"));
            }
        }
        match self.acknowledged().iter().find(|id| !ids.contains(id)) {
            Some(lost) => Err(format!("order {lost} was acknowledged and is lost")),
            None => Ok(()),
        }
    }
}

/// Fills one partition until told to stop, and closes all windows then.
pub async fn produce(mut client: Client, orders: Arc<Orders>, partition: i32) {
    let producer_id = loop {
        let broker = client.any_broker();
        match new_producer_id(&mut client, broker).await {
            Some(id) => break id,
            None => client.pause(300).await,
        }
    };
    let (mut sequence, mut last_ms, mut next_id) = (0, 0, i64::from(partition) << 32);
    let mut is_closing = false;
    while !is_closing {
        client.pause(250).await;
        is_closing = client.is_to_stop();
        let count = match is_closing {
            true => 1,
            false => 1 + client.random.below(4),
        };
        let mut batch = Vec::new();
        for _ in 0..count {
            last_ms = now_ms().max(last_ms + client.random.below(40) as i64);
            next_id += 1;
            batch.push(Order {
                id: next_id,
                key: KEYS[client.random.below(KEYS.len() as u64) as usize].to_owned(),
                value: client.random.below(100) as i64,
                time_ms: last_ms,
            });
        }
        if let (true, Some(last)) = (is_closing, batch.last_mut()) {
            CLOSING.clone_into(&mut last.key);
            last.time_ms += CLOSING_MS;
        }
        let mut records = BatchBuilder::new().producer(producer_id, 0, sequence);
        for order in &batch {
            let timestamp = now_ms();
            records = records.record(timestamp, None, Some(order.to_json().as_bytes()));
        }
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(records.build().expect("a batch of valid records")));
        send(&mut client, data).await;
        sequence += batch.len() as i32;
        let mut acknowledged = orders.acknowledged();
        acknowledged.extend(batch.iter().map(|order| order.id));
    }
}

/// Again and again, until it is acknowledged.
async fn send(client: &mut Client, data: PartitionProduceData) {
    let partition = data.index;
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(TopicName(text(SOURCE)))
                .with_partition_data(vec![data]),
        ]);
    let mut broker = client.any_broker();
    loop {
        let doubted = client.leaders_doubted();
        let answer = client.call(broker, 9, &request).await;
        let answered = answer.as_ref().and_then(|answer| {
            let topic = answer.responses.first()?;
            topic.partition_responses.first()
        });
        match answered.map(|answer| {
            (
                answer.error_code,
                ErrorCode::try_from_code(answer.error_code),
            )
        }) {
            Some((0, _)) => return,
            Some((_, Some(ErrorCode::DuplicateSequenceNumber))) => return,
            Some((_, Some(ErrorCode::OutOfOrderSequenceNumber)))
                if client.leaders_doubted() == doubted =>
            {
                client.violation(format!(
                    "the producer of partition {partition} is told of a gap: what came before was acknowledged"
                ));
                return;
            }
            _ => {}
        }
        client.pause(150).await;
        broker = match leader(client, partition).await {
            Some(leader) => leader,
            None => client.any_broker(),
        };
    }
}

async fn leader(client: &mut Client, partition: i32) -> Option<usize> {
    let request = MetadataRequest::default().with_topics(Some(vec![
        MetadataRequestTopic::default().with_name(Some(TopicName(text(SOURCE)))),
    ]));
    let broker = client.any_broker();
    let answer = client.call(broker, 9, &request).await?;
    let topic = answer.topics.first()?;
    let found = topic
        .partitions
        .iter()
        .find(|known| known.partition_index == partition)?;
    (found.leader_id.0 > 0).then(|| broker_index(found.leader_id.0))
}

/// The clients' clock.
fn now_ms() -> i64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |passed| passed.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_results_are_read_as_they_are_written() {
        let order = Order {
            id: 7,
            key: "b".into(),
            value: 12,
            time_ms: 5_001,
        };
        assert_eq!(Order::from_json(&order.to_json()), Some(order.clone()));
        let json = r#"{"window_start":"1970-01-01T00:00:04.000Z","window_end":"1970-01-01T00:00:06.000Z","k":"b","n":1,"total":12}"#;
        let read = result(json, 5_999).expect("a result");
        let expected = expected(&[order]);
        assert_eq!(expected.into_iter().collect::<Vec<_>>(), [read]);
    }
}
