//! A disk without a byte left: writes are refused and not lost, reads go on, and all is well once there is room, also after `kill -9`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use streamgauge::client::admin::NewTopic;
use streamgauge::client::{
    Client, ClientError, ClientOptions, Consumer, ConsumerOptions, StartOffset, TopicPartition,
};
use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_protocol::frame::{decode_response, encode_request};
use streamgauge_protocol::messages::error::ParseResponseErrorCode;
use streamgauge_protocol::messages::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use streamgauge_protocol::messages::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse, ProducerId,
    TopicName,
};
use streamgauge_protocol::messages::protocol::{Decodable, HeaderVersion, Request, StrBytes};
use streamgauge_tests::broker::{Broker, Peer, only_streamgauge};
use streamgauge_tests::process::poll;
use streamgauge_tests::small_disk::{ballast, mount, unmount, where_disks_can_be_mounted};
use streamgauge_tests::wire::Wire;

const TOPIC: &str = "full";
const PARTITIONS: i32 = 2;
const DISK_BYTES: usize = 24 << 20;
const BALLAST_BYTES: usize = 6 << 20;
const VALUE_BYTES: usize = 48 << 10;
/// Restarts with a little more room each: enough that every partition goes on to another segment on the way.
const STEPS: usize = 40;
/// Each has a record of more than 64 bytes in the metadata.
const METADATA_TOPICS_MAX: usize = PAGE_BYTES / 64;
const PAGE_BYTES: usize = 4096;
const TIME_MAX: Duration = Duration::from_secs(30);
const TEST_TIME_MAX: Duration = Duration::from_secs(240);
/// Longer than a partition waits before it tries its disk again, which then refuses it again.
const REFUSALS_TIME: Duration = Duration::from_millis(2_500);

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    if only_streamgauge("Apache Kafka stops when its log directory fails") {
        return;
    }
    where_disks_can_be_mounted(
        "full_disk::a_full_disk_refuses_writes_serves_reads_and_recovers",
        TEST_TIME_MAX,
        with_a_small_disk,
    );
}

fn with_a_small_disk() {
    let mut broker = Broker::start_prepared(
        Peer::Streamgauge,
        "full-disk",
        &["log.segment.bytes=1048576"],
        |data_dir| {
            mount(data_dir, DISK_BYTES);
            ballast(&data_dir.join("ballast"), BALLAST_BYTES);
        },
    );
    let disk = broker.data_dir();
    let mut producer = Producer::new(&broker);

    producer.write_until_refused(&disk);
    producer.expect_refusals();
    fill_metadata(&broker);
    producer.expect_all_readable(&broker);
    broker.assert_alive();

    // Room again: what was refused is taken, by the process that refused it.
    free(&disk);
    producer.write_refused();
    producer.write_some();
    let created = poll(TIME_MAX, || create_topic(&broker, "in-time").ok());
    assert!(
        created.is_some(),
        "no topic can be made though there is room"
    );
    producer.expect_all_readable(&broker);
    broker.assert_alive();

    ballast(&disk.join("ballast"), BALLAST_BYTES * 3 / 4);
    producer.write_until_refused(&disk);
    broker.kill_and_restart();
    producer.reconnect(&broker);
    producer.expect_all_readable(&broker);
    producer.expect_refusals();
    producer.expect_all_readable(&broker);
    broker.assert_alive();

    // With a few pages at a time the disk is full at every point of a segment's life, a new one's first bytes among them.
    let before = segments(&disk);
    for step in 0..STEPS {
        shrink(&disk, 1 + step * 7 % 32);
        broker.kill_and_restart();
        producer.reconnect(&broker);
        producer.write_what_fits(step as i32 % PARTITIONS);
        producer.expect_all_readable(&broker);
    }
    let rolled = segments(&disk).into_iter().zip(before);
    assert!(
        rolled.into_iter().all(|(after, before)| after > before),
        "a partition stayed with its segment"
    );

    free(&disk);
    producer.write_refused();
    producer.write_some();
    producer.expect_all_readable(&broker);
    broker.kill_and_restart();
    producer.expect_all_readable(&broker);
    broker.stop();
    unmount(&disk);
}

/// How many segments each partition has.
fn segments(disk: &Path) -> Vec<usize> {
    let count = |partition| {
        let files = fs::read_dir(disk.join(format!("{TOPIC}-{partition}")));
        let names = files
            .expect("a partition has a directory")
            .map(|file| file.expect("an entry").path());
        names
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .count()
    };
    (0..PARTITIONS).map(count).collect()
}

/// Takes pages of the ballast away.
fn shrink(disk: &Path, pages: usize) {
    let ballast = File::options().write(true).open(disk.join("ballast"));
    let ballast = ballast.expect("there is ballast");
    let bytes = ballast.metadata().expect("a size").len() - (pages * PAGE_BYTES) as u64;
    ballast.set_len(bytes).expect("ballast can be cut");
}

fn free(disk: &Path) {
    fs::remove_file(disk.join("ballast")).expect("the ballast can be removed");
}

/// An idempotent producer that keeps what it was refused and knows all that was acknowledged.
struct Producer {
    wire: Wire,
    id: (i64, i16),
    /// Values by partition, in the order of their acknowledgement; the index is the offset.
    acknowledged: BTreeMap<i32, Vec<Bytes>>,
    /// The batch of each partition that was refused last, with its value.
    refused: BTreeMap<i32, Bytes>,
    written: u64,
}

impl Producer {
    fn new(broker: &Broker) -> Producer {
        create_topic(broker, TOPIC).expect("a topic can be made");
        let mut producer = Producer {
            wire: Wire::connect(broker.address()),
            id: (-1, -1),
            acknowledged: (0..PARTITIONS).map(|index| (index, Vec::new())).collect(),
            refused: BTreeMap::new(),
            written: 0,
        };
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let response: InitProducerIdResponse = producer.call(4, &request);
        assert_eq!(response.error_code, 0, "a producer id");
        producer.id = (response.producer_id.0, response.producer_epoch);
        producer
    }

    fn reconnect(&mut self, broker: &Broker) {
        self.wire = Wire::connect(broker.address());
    }

    /// Fills the disk with acknowledged records until every partition refuses one, then its last bytes with ballast.
    fn write_until_refused(&mut self, disk: &Path) {
        while self.refused.len() < PARTITIONS as usize {
            for partition in 0..PARTITIONS {
                if !self.refused.contains_key(&partition) {
                    self.write_next(partition);
                }
            }
            assert!(
                self.written < 2 * (DISK_BYTES / VALUE_BYTES) as u64,
                "the disk is never full"
            );
        }
        ballast(&disk.join("ballast"), DISK_BYTES);
    }

    /// What was refused is refused again and again.
    fn expect_refusals(&mut self) {
        let start = Instant::now();
        while start.elapsed() < REFUSALS_TIME {
            for partition in 0..PARTITIONS {
                let value = self.refused[&partition].clone();
                let code = self.write(partition, &value);
                assert!(
                    matches!(
                        code,
                        Some(ErrorCode::KafkaStorageError | ErrorCode::NotLeaderOrFollower)
                    ),
                    "partition {partition} of a full disk answered {code:?}"
                );
            }
        }
    }

    fn write_refused(&mut self) {
        for (partition, value) in self.refused.clone() {
            let mut last = None;
            let written = poll(TIME_MAX, || {
                last = self.write(partition, &value);
                last.is_none().then_some(())
            });
            assert!(
                written.is_some(),
                "partition {partition} takes nothing though there is room: {last:?}"
            );
        }
        self.refused.clear();
    }

    /// Tries once what a partition was refused, and goes on if it was taken.
    fn write_what_fits(&mut self, partition: i32) {
        let value = self.refused[&partition].clone();
        if self.write(partition, &value).is_none() {
            self.refused.remove(&partition);
            while !self.refused.contains_key(&partition) {
                self.write_next(partition);
            }
        }
    }

    fn write_some(&mut self) {
        for round in 0..10 {
            for partition in 0..PARTITIONS {
                self.write_next(partition);
                assert!(self.refused.is_empty(), "round {round}: refused");
            }
        }
    }

    fn write_next(&mut self, partition: i32) {
        self.written += 1;
        let mut value = self.written.to_be_bytes().to_vec();
        value.resize(VALUE_BYTES, partition as u8);
        let value = Bytes::from(value);
        if let Some(code) = self.write(partition, &value) {
            assert_eq!(code, ErrorCode::KafkaStorageError, "partition {partition}");
            self.refused.insert(partition, value);
        }
    }

    /// Sends one record with the sequence that is next, acks=all; `None` when it is acknowledged.
    fn write(&mut self, partition: i32, value: &Bytes) -> Option<ErrorCode> {
        let sequence = self.acknowledged[&partition].len();
        let batch = BatchBuilder::new()
            .producer(self.id.0, self.id.1, sequence as i32)
            .record(1_000, None, Some(value))
            .build()
            .expect("a good batch");
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch));
        let topic = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_static_str(TOPIC)))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(5_000)
            .with_topic_data(vec![topic]);
        let response: ProduceResponse = self.call(9, &request);
        let answer = &response.responses[0].partition_responses[0];
        if let Some(code) = answer.error_code.err() {
            return Some(code);
        }
        assert_eq!(
            answer.base_offset, sequence as i64,
            "offset in partition {partition}"
        );
        self.acknowledged
            .get_mut(&partition)
            .expect("one of ours")
            .push(value.clone());
        None
    }

    fn call<Q: Request, S: Decodable + HeaderVersion>(&mut self, version: i16, request: &Q) -> S {
        let frame = encode_request(1, "full-disk", version, request).expect("a good request");
        self.wire.send(&frame);
        let answer = self.wire.answer().expect("an answer");
        let (_, response) = decode_response(answer.into(), version).expect("a good answer");
        response
    }

    /// Reads every partition from its start: what was acknowledged is there, once, in order, and nothing else.
    fn expect_all_readable(&self, broker: &Broker) {
        runtime().block_on(async {
            for (&partition, values) in &self.acknowledged {
                let mut consumer = Consumer::new(client(broker).await, ConsumerOptions::default());
                let partition = TopicPartition::new(TOPIC, partition);
                let start = StartOffset::Earliest;
                consumer
                    .assign(partition.clone(), start)
                    .await
                    .expect("a first offset");
                let end = consumer
                    .end_offset(&partition)
                    .await
                    .expect("a last offset");
                let mut read = Vec::new();
                while (read.len() as i64) < end {
                    let records = consumer.poll(TIME_MAX).await.expect("reads go on");
                    assert!(!records.is_empty(), "{partition} ends at {}", read.len());
                    read.extend(records);
                }
                assert_eq!(read.len(), values.len(), "records of {partition}");
                for (index, (record, value)) in read.iter().zip(values).enumerate() {
                    assert_eq!(record.offset, index as i64, "{partition}");
                    assert!(
                        record.value.as_ref() == Some(value),
                        "{partition} has another record at {index}"
                    );
                }
            }
        });
    }
}

/// Makes topics, of which each takes some bytes of the metadata's last page, until the broker has none left and says so.
fn fill_metadata(broker: &Broker) {
    for number in 0..METADATA_TOPICS_MAX {
        if let Err(error) = create_topic(broker, &format!("small-{number}")) {
            let code = error.code();
            assert_eq!(code, Some(ErrorCode::KafkaStorageError), "{error}");
            return;
        }
    }
    panic!("the metadata's last page is never full");
}

fn create_topic(broker: &Broker, name: &str) -> Result<(), ClientError> {
    let topic = NewTopic {
        name: name.to_owned(),
        partitions: Some(PARTITIONS),
        replication_factor: Some(1),
        configs: Vec::new(),
    };
    runtime().block_on(async { client(broker).await.create_topic(&topic, false).await })
}

async fn client(broker: &Broker) -> Client {
    Client::connect(ClientOptions::new(&broker.bootstrap()))
        .await
        .expect("a client connects")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
