//! The client and a broker in one process, over a socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::Header;
use streamgauge_protocol::compression::Compression;

use super::admin::NewTopic;
use super::*;
use crate::config::ConfigLoader;
use crate::server::{self, RunningBroker};

const POLL_WAIT: Duration = Duration::from_millis(100);
const POLLS_MAX: usize = 300;

async fn broker(directory: &Path, port: u16) -> RunningBroker {
    let mut loader = ConfigLoader::new();
    loader.program("log.dirs", directory.to_str().unwrap());
    loader.program("listeners", &format!("PLAINTEXT://127.0.0.1:{port}"));
    loader.program("group.initial.rebalance.delay.ms", "0");
    loader.program("offsets.topic.num.partitions", "1");
    server::start(loader.finish("localhost").unwrap())
        .await
        .unwrap()
}

async fn client(broker: &RunningBroker) -> Client {
    let options = ClientOptions::new(&broker.address.to_string());
    Client::connect(options).await.unwrap()
}

async fn create(client: &mut Client, name: &str, partitions: i32) {
    let topic = NewTopic {
        name: name.to_owned(),
        partitions: Some(partitions),
        ..NewTopic::default()
    };
    client.create_topic(&topic, false).await.unwrap();
}

fn value<'a>(topic: &'a str, value: &'a str) -> ProducerRecord<'a> {
    ProducerRecord {
        topic,
        timestamp: 1,
        value: Some(value.as_bytes()),
        ..ProducerRecord::default()
    }
}

fn text(record: &ConsumedRecord) -> String {
    String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_back_whole_in_order_and_by_key_with_every_codec() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), 0).await;
    let mut admin = client(&broker).await;
    create(&mut admin, "t", 3).await;
    let mut sent: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut number = 0;
    for compression in Compression::ALL {
        let options = ProducerOptions {
            compression,
            ..ProducerOptions::default()
        };
        let mut producer = Producer::new(client(&broker).await, options);
        for _ in 0..100 {
            number += 1;
            let key = format!("k{}", number % 7);
            let headers = [Header {
                key: "h",
                value: Some(b"x"),
            }];
            let record = ProducerRecord {
                topic: "t",
                timestamp: number,
                key: Some(key.as_bytes()),
                headers: &headers,
                ..ProducerRecord::default()
            };
            producer.send(&record).await.unwrap();
            sent.entry(key).or_default().push(number);
        }
        producer.flush().await.unwrap();
    }
    let mut consumer = Consumer::new(admin, ConsumerOptions::default());
    consumer
        .assign_topic("t", StartOffset::Earliest)
        .await
        .unwrap();
    let mut read: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut count = 0;
    for _ in 0..POLLS_MAX {
        if count == number {
            break;
        }
        for record in consumer.poll(POLL_WAIT).await.unwrap() {
            assert!(record.headers.len() == 1 && record.value.is_none());
            let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
            read.entry(key).or_default().push(record.timestamp);
            count += 1;
        }
    }
    assert_eq!(read, sent);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_where_it_was_and_shares_with_a_newcomer() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), 0).await;
    let mut admin = client(&broker).await;
    create(&mut admin, "t", 2).await;
    let mut producer = Producer::new(client(&broker).await, ProducerOptions::default());
    for number in 0..10 {
        let number = number.to_string();
        let record = ProducerRecord {
            partition: Some(0),
            ..value("t", &number)
        };
        producer.send(&record).await.unwrap();
    }
    producer.flush().await.unwrap();

    let options = GroupOptions {
        heartbeat_interval: Duration::from_millis(50),
        ..GroupOptions::new("g", vec!["t".to_owned()], StartOffset::Earliest)
    };
    let mut first = GroupConsumer::new(client(&broker).await, options.clone());
    let mut read = Vec::new();
    for _ in 0..POLLS_MAX {
        let records = first.poll(POLL_WAIT).await.unwrap();
        if let Some(record) = records.get(3) {
            first.processed(record);
            read.extend(records[..4].iter().map(text));
            break;
        }
    }
    assert_eq!(read, ["0", "1", "2", "3"]);
    first.close().await.unwrap();
    let committed = admin.committed_offsets("g").await.unwrap();
    assert_eq!(committed, [(TopicPartition::new("t", 0), 4)]);

    // Each member polls on a task of its own: one that joins waits for the other to come back.
    let (texts, mut received) = tokio::sync::mpsc::unbounded_channel();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut members = Vec::new();
    for _ in 0..2 {
        let member = GroupConsumer::new(client(&broker).await, options.clone());
        members.push(tokio::spawn(poll_until(
            member,
            texts.clone(),
            stopped.clone(),
        )));
    }
    let mut shared = false;
    for _ in 0..POLLS_MAX {
        let group = admin.describe_group("g").await.unwrap();
        shared = group.members.len() == 2
            && group
                .members
                .iter()
                .all(|member| member.partitions.len() == 1);
        if shared && read.len() >= 10 {
            break;
        }
        if let Ok(Some(text)) = tokio::time::timeout(POLL_WAIT, received.recv()).await {
            read.push(text);
        }
    }
    assert!(shared, "each of two members has one of two partitions");
    assert_eq!(read, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    stop.send(true).unwrap();
    for member in members {
        member.await.unwrap();
    }
    broker.stop().await;
}

/// Polls and passes on what comes, until told to stop; then leaves the group.
async fn poll_until(
    mut member: GroupConsumer,
    texts: tokio::sync::mpsc::UnboundedSender<String>,
    stopped: tokio::sync::watch::Receiver<bool>,
) {
    while !*stopped.borrow() {
        for record in member.poll(POLL_WAIT).await.unwrap() {
            member.processed(&record);
            // Whoever has read enough does not listen any more.
            let _ = texts.send(text(&record));
        }
    }
    member.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_and_a_consumer_outlive_a_restart_of_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let first = broker(directory.path(), 0).await;
    let port = first.address.port();
    let mut admin = client(&first).await;
    create(&mut admin, "t", 1).await;
    let mut producer = Producer::new(client(&first).await, ProducerOptions::default());
    let mut consumer = Consumer::new(admin, ConsumerOptions::default());
    consumer
        .assign_topic("t", StartOffset::Earliest)
        .await
        .unwrap();
    producer.send(&value("t", "before")).await.unwrap();
    producer.flush().await.unwrap();
    first.stop().await;

    let second = broker(directory.path(), port).await;
    producer.send(&value("t", "after")).await.unwrap();
    producer.flush().await.unwrap();
    let mut read = Vec::new();
    for _ in 0..POLLS_MAX {
        read.extend(consumer.poll(POLL_WAIT).await.unwrap());
        if read.len() >= 2 {
            break;
        }
    }
    let read: Vec<(i64, String)> = read.iter().map(|r| (r.offset, text(r))).collect();
    assert_eq!(read, [(0, "before".to_owned()), (1, "after".to_owned())]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_the_brokers_code() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), 0).await;
    let mut client = client(&broker).await;
    create(&mut client, "t", 1).await;
    let code = |error: ClientError| error.code().unwrap();
    let topic = NewTopic {
        name: "t".to_owned(),
        ..NewTopic::default()
    };
    let error = client.create_topic(&topic, false).await.unwrap_err();
    assert_eq!(code(error), ErrorCode::TopicAlreadyExists);
    let error = client.describe_topic("none").await.unwrap_err();
    assert_eq!(code(error), ErrorCode::UnknownTopicOrPartition);
    let wrong = [("retention.ms".to_owned(), Some("soon".to_owned()))];
    let error = client
        .alter_topic_configs("t", &wrong, false)
        .await
        .unwrap_err();
    assert_eq!(code(error), ErrorCode::InvalidConfig);
    client.delete_topic("t").await.unwrap();
    let error = client.describe_topic("t").await.unwrap_err();
    assert_eq!(code(error), ErrorCode::UnknownTopicOrPartition);
    broker.stop().await;
}
