//! Administrators: topics come and go, often under the same name, and hold what was written to them; producer ids are given out. Each has
//! names of its own, so that it knows what must be there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_protocol::messages::messages::create_topics_request::{
    CreatableTopic, CreatableTopicConfig,
};
use streamgauge_protocol::messages::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use streamgauge_protocol::messages::messages::{
    CreateTopicsRequest, DeleteTopicsRequest, InitProducerIdRequest, ProduceRequest, TopicName,
};
use uuid::Uuid;

use crate::client::{Client, text};

/// What must be true of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Absent,
    Exists(Uuid),
    /// An answer is missing: it may have been made or deleted, or be yet.
    Unknown,
}

#[derive(Default)]
pub struct Topics {
    fates: Mutex<BTreeMap<String, Fate>>,
    producer_ids: Mutex<BTreeSet<i64>>,
    /// Where the first partition of a topic ends at least, after what was acknowledged.
    ends: Mutex<BTreeMap<Uuid, i64>>,
}

impl Topics {
    pub fn fates(&self) -> BTreeMap<String, Fate> {
        let fates = self.fates.lock();
        fates.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, name: &str, fate: Fate) {
        let fates = self.fates.lock();
        let mut fates = fates.unwrap_or_else(PoisonError::into_inner);
        fates.insert(name.to_owned(), fate);
    }

    pub fn end(&self, topic_id: Uuid) -> i64 {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(&topic_id).copied().unwrap_or(0)
    }

    /// False if a record has taken the place of another that was acknowledged.
    fn note_end(&self, topic_id: Uuid, offset: i64) -> bool {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let end = ends.entry(topic_id).or_default();
        let is_new = offset >= *end;
        *end = (*end).max(offset + 1);
        is_new
    }

    /// False if it was given out before.
    fn note_producer_id(&self, id: i64) -> bool {
        let ids = self.producer_ids.lock();
        ids.unwrap_or_else(PoisonError::into_inner).insert(id)
    }
}

/// Names that one administrator uses; each is used until an answer is missing.
const NAMES_MAX: u32 = 8;

/// Creates and deletes until it is told to stop.
pub async fn administer(mut client: Client, topics: Arc<Topics>) {
    let mut next_name = 0;
    let mut current: Option<(String, Fate)> = None;
    while !client.is_to_stop() {
        client.pause(900).await;
        if client.random.one_in(4) {
            take_producer_id(&mut client, &topics).await;
            continue;
        }
        let (name, fate) = match current.take() {
            Some(known) => known,
            None if next_name < NAMES_MAX => {
                next_name += 1;
                (format!("own-{}-{next_name}", client.number()), Fate::Absent)
            }
            None => continue,
        };
        if let Fate::Exists(id) = fate {
            write(&mut client, &topics, &name, id).await;
        }
        topics.note(&name, Fate::Unknown);
        let fate = match fate {
            Fate::Exists(_) if !client.random.one_in(4) => delete(&mut client, &name, fate).await,
            _ => create(&mut client, &name, fate).await,
        };
        topics.note(&name, fate);
        if fate != Fate::Unknown {
            current = Some((name, fate));
        }
    }
}

/// A topic as it is asked for.
pub fn new_topic(name: &str, partitions: i32, configs: &[(&str, &str)]) -> CreateTopicsRequest {
    let configs = configs.iter().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name(text(name))
            .with_value(Some(text(value)))
    });
    CreateTopicsRequest::default()
        .with_timeout_ms(10_000)
        .with_topics(vec![
            CreatableTopic::default()
                .with_name(TopicName(text(name)))
                .with_num_partitions(partitions)
                .with_replication_factor(-1)
                .with_configs(configs.collect()),
        ])
}

async fn create(client: &mut Client, name: &str, fate: Fate) -> Fate {
    let broker = client.any_broker();
    let partitions = 1 + client.random.below(2) as i32;
    let request = new_topic(name, partitions, &[]);
    let doubted = client.controllers_doubted();
    let Some(answer) = client.call(broker, 7, &request).await else {
        return Fate::Unknown;
    };
    let Some(topic) = answer.topics.first() else {
        client.violation(format!("no answer for the creation of {name}"));
        return Fate::Unknown;
    };
    match (ErrorCode::try_from_code(topic.error_code), fate) {
        (None, Fate::Absent) => Fate::Exists(topic.topic_id),
        (None, Fate::Exists(id)) => {
            client.violation(format!(
                "{name} was there as {id} and is created again as {}",
                topic.topic_id
            ));
            fate
        }
        (Some(ErrorCode::TopicAlreadyExists), Fate::Absent) => {
            if client.controllers_doubted() != doubted {
                return Fate::Unknown;
            }
            client.violation(format!("{name} was deleted, or never made, and exists"));
            fate
        }
        (Some(ErrorCode::TopicAlreadyExists), Fate::Exists(_)) => fate,
        // Too few brokers: it was not made.
        (Some(ErrorCode::InvalidReplicationFactor), _) => fate,
        _ => Fate::Unknown,
    }
}

async fn delete(client: &mut Client, name: &str, fate: Fate) -> Fate {
    let broker = client.any_broker();
    let request = DeleteTopicsRequest::default()
        .with_topic_names(vec![TopicName(text(name))])
        .with_timeout_ms(10_000);
    let doubted = client.controllers_doubted();
    let Some(answer) = client.call(broker, 5, &request).await else {
        return Fate::Unknown;
    };
    let code = answer
        .responses
        .first()
        .map_or(-1, |topic| topic.error_code);
    match ErrorCode::try_from_code(code) {
        None if code == 0 => Fate::Absent,
        Some(ErrorCode::UnknownTopicOrPartition) if client.controllers_doubted() == doubted => {
            client.violation(format!("{name} was created as {fate:?} and is not there"));
            fate
        }
        _ => Fate::Unknown,
    }
}

/// Tries to add a record to a topic's first partition, by the topic's id: one of the same name is another.
async fn write(client: &mut Client, topics: &Topics, name: &str, topic_id: Uuid) {
    let batch = BatchBuilder::new().record(1, None, Some(b"value"));
    let data = PartitionProduceData::default()
        .with_index(0)
        .with_records(Some(batch.build().expect("a good batch")));
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(2_000)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_topic_id(topic_id)
                .with_partition_data(vec![data]),
        ]);
    let broker = client.any_broker();
    let Some(answer) = client.call(broker, 13, &request).await else {
        return;
    };
    let partition = answer
        .responses
        .first()
        .and_then(|topic| topic.partition_responses.first());
    if let Some(partition) = partition
        && partition.error_code == 0
        && !topics.note_end(topic_id, partition.base_offset)
    {
        client.violation(format!(
            "a record of {name} has the offset {}, which another had",
            partition.base_offset
        ));
    }
}

async fn take_producer_id(client: &mut Client, topics: &Topics) {
    let broker = client.any_broker();
    if let Some(id) = new_producer_id(client, broker).await
        && !topics.note_producer_id(id)
    {
        client.violation(format!("producer id {id} was given out twice"));
    }
}

/// As an idempotent producer gets it.
pub async fn new_producer_id(client: &mut Client, broker: usize) -> Option<i64> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let answer = client.call(broker, 4, &request).await?;
    (answer.error_code == 0).then_some(answer.producer_id.0)
}
