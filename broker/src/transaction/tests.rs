//! What consumers and tools see of transactions in a partition, over a socket: Fetch, ListOffsets, DescribeProducers,
//! WriteTxnMarkers and Produce, of a broker that is stopped and started in between.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use streamgauge_protocol::batch::{BatchBuilder, BatchIter};
use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::messages as m;
use streamgauge_protocol::messages::protocol::StrBytes;
use streamgauge_storage::producer_state::Verification;

use super::markers::{Marker, write_marker};
use crate::client::admin::NewTopic;
use crate::client::connection::Connection;
use crate::client::{Client, ClientOptions};
use crate::clock;
use crate::config::ConfigLoader;
use crate::server::{self, RunningBroker};
use crate::shard::event::{Acks, Appended};
use crate::shard::view::PartitionView;

const PATIENCE: Duration = Duration::from_secs(20);
const TOPIC: &str = "orders";
const READ_COMMITTED: i8 = 1;

struct Host {
    broker: RunningBroker,
    connection: Connection,
}

impl Host {
    async fn start(directory: &Path) -> Self {
        let mut loader = ConfigLoader::new();
        loader.program("log.dirs", directory.to_str().unwrap());
        loader.program("listeners", "PLAINTEXT://127.0.0.1:0");
        Self::start_with(loader).await
    }

    /// Three brokers that are one cluster.
    async fn start_three(directory: &Path) -> [Self; 3] {
        // Held until all are chosen, so that they differ.
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = sockets.map(|socket| socket.local_addr().unwrap().port());
        let voters = ports.iter().zip(1..);
        let voters: Vec<String> = voters
            .map(|(port, node)| format!("{node}@127.0.0.1:{port}"))
            .collect();
        let loader = |node: usize| {
            let mut loader = ConfigLoader::new();
            let data = directory.join(node.to_string());
            loader.program("log.dirs", data.to_str().unwrap());
            loader.program("listeners", "PLAINTEXT://127.0.0.1:0");
            loader.program("node.id", &node.to_string());
            loader.program("controller.quorum.voters", &voters.join(","));
            loader
        };
        let (one, two, three) = tokio::join!(
            Self::start_with(loader(1)),
            Self::start_with(loader(2)),
            Self::start_with(loader(3))
        );
        [one, two, three]
    }

    async fn start_with(loader: ConfigLoader) -> Self {
        let config = loader.finish("localhost").unwrap();
        let broker = server::start(config).await.unwrap();
        let address = broker.address.to_string();
        let connection = Connection::open(&address, "test", PATIENCE).await.unwrap();
        Self { broker, connection }
    }

    async fn create_topic(&self, replicas: i16) {
        let options = ClientOptions::new(&self.broker.address.to_string());
        let mut admin = Client::connect(options).await.unwrap();
        let topic = NewTopic {
            name: TOPIC.to_owned(),
            partitions: Some(1),
            replication_factor: Some(replicas),
            ..NewTopic::default()
        };
        admin.create_topic(&topic, false).await.unwrap();
    }

    /// The replica of the one partition here.
    fn view(&self) -> Option<Arc<PartitionView>> {
        let topic = self.broker.broker.topics.by_name(TOPIC)?;
        Some(Arc::clone(topic.partition(0)?.view()))
    }

    /// Appends as a producer whose transaction has been verified.
    async fn data(&self, producer_id: i64, epoch: i16, sequence: i32) -> Appended {
        let topic = self.broker.broker.topics.by_name(TOPIC).unwrap();
        let partition = topic.open_partition(0).unwrap();
        let wanted = Verification {
            producer_id,
            producer_epoch: epoch,
            base_sequence: sequence,
            supports_epoch_bump: true,
        };
        let guard = partition.begin_verification(wanted).await;
        let batch = batch(producer_id, epoch, sequence);
        let pending = partition.append_verified(batch, Acks::All, 10_000, guard);
        pending.answer().await.unwrap()
    }

    async fn end(&self, producer_id: i64, epoch: i16, committed: bool) -> Result<(), ErrorCode> {
        let marker = Marker {
            producer_id,
            producer_epoch: epoch,
            coordinator_epoch: 3,
            committed,
            transaction_version: 2,
        };
        write_marker(&self.broker.broker, TOPIC, 0, marker).await
    }

    async fn fetch(&mut self, offset: i64) -> m::fetch_response::PartitionData {
        let partition = m::fetch_request::FetchPartition::default()
            .with_partition(0)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20);
        let topic = m::fetch_request::FetchTopic::default()
            .with_topic(name())
            .with_partitions(vec![partition]);
        let request = m::FetchRequest::default()
            .with_isolation_level(READ_COMMITTED)
            .with_max_bytes(1 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.connection.call(&request, 12, PATIENCE).await.unwrap();
        answer.responses[0].partitions[0].clone()
    }

    async fn latest(&mut self, isolation: i8) -> i64 {
        let partition = m::list_offsets_request::ListOffsetsPartition::default().with_timestamp(-1);
        let topic = m::list_offsets_request::ListOffsetsTopic::default()
            .with_name(name())
            .with_partitions(vec![partition]);
        let request = m::ListOffsetsRequest::default()
            .with_isolation_level(isolation)
            .with_topics(vec![topic]);
        let answer = self.connection.call(&request, 7, PATIENCE).await.unwrap();
        answer.topics[0].partitions[0].offset
    }

    /// Producer, start of its transaction and epoch of its last coordinator.
    async fn producers(&mut self) -> Vec<(i64, i64, i32)> {
        let topic = m::describe_producers_request::TopicRequest::default()
            .with_name(name())
            .with_partition_indexes(vec![0]);
        let request = m::DescribeProducersRequest::default().with_topics(vec![topic]);
        let answer = self.connection.call(&request, 0, PATIENCE).await.unwrap();
        let producers = answer.topics[0].partitions[0].active_producers.iter();
        let mut known: Vec<_> = producers
            .map(|known| {
                let start = known.current_txn_start_offset;
                (known.producer_id.0, start, known.coordinator_epoch)
            })
            .collect();
        known.sort_unstable();
        known
    }
}

fn name() -> m::TopicName {
    m::TopicName(StrBytes::from_static_str(TOPIC))
}

fn batch(producer_id: i64, epoch: i16, sequence: i32) -> bytes::Bytes {
    BatchBuilder::new()
        .producer(producer_id, epoch, sequence)
        .transactional()
        .record(clock::now_ms(), None, Some(b"value"))
        .build()
        .unwrap()
}

/// The base offsets of what a consumer is sent, and the transactions that it is to pass over.
fn seen(data: &m::fetch_response::PartitionData) -> (Vec<i64>, Vec<(i64, i64)>) {
    let records = data.records.clone().unwrap_or_default();
    let offsets = BatchIter::new(records).map(|batch| batch.unwrap().0.base_offset);
    let aborted = data.aborted_transactions.iter().flatten();
    (
        offsets.collect(),
        aborted
            .map(|aborted| (aborted.producer_id.0, aborted.first_offset))
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_read_what_is_decided_and_hear_what_was_aborted() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::start(directory.path()).await;
    host.create_topic(1).await;
    assert_eq!(host.data(7, 0, 0).await.base_offset, 0);
    assert_eq!(host.data(8, 0, 0).await.base_offset, 1);
    assert_eq!(host.end(7, 1, false).await, Ok(())); // Offset 2.
    assert_eq!(host.fetch(0).await.last_stable_offset, 1);
    assert_eq!(seen(&host.fetch(0).await), (vec![0], vec![(7, 0)]));
    assert_eq!(host.data(7, 1, 0).await.base_offset, 3);
    assert_eq!(host.end(8, 1, true).await, Ok(())); // Offset 4.
    assert_eq!(seen(&host.fetch(0).await), (vec![0, 1, 2], vec![(7, 0)]));
    assert_eq!(
        (host.latest(0).await, host.latest(READ_COMMITTED).await),
        (5, 3)
    );
    assert_eq!(host.producers().await, [(7, 3, 3), (8, -1, 3)]);
    assert_eq!(
        host.end(7, 1, false).await,
        Err(ErrorCode::InvalidProducerEpoch),
        "the marker of its last transaction is late"
    );

    host.broker.stop().await;
    let mut host = Host::start(directory.path()).await;
    assert_eq!(host.fetch(0).await.last_stable_offset, 3);
    assert_eq!(seen(&host.fetch(0).await), (vec![0, 1, 2], vec![(7, 0)]));
    assert_eq!(seen(&host.fetch(3).await), (vec![], vec![]));
    assert_eq!(host.producers().await, [(7, 3, 3), (8, -1, 3)]);

    // As `kafka-transactions --abort` does: with the producer's epoch, and no transaction version.
    let topic = m::write_txn_markers_request::WritableTxnMarkerTopic::default()
        .with_name(name())
        .with_partition_indexes(vec![0, 1]);
    let marker = m::write_txn_markers_request::WritableTxnMarker::default()
        .with_producer_id(m::ProducerId(7))
        .with_producer_epoch(1)
        .with_coordinator_epoch(3)
        .with_topics(vec![topic]);
    let request = m::WriteTxnMarkersRequest::default().with_markers(vec![marker]);
    let answer = host.connection.call(&request, 1, PATIENCE).await.unwrap();
    let partitions = &answer.markers[0].topics[0].partitions;
    let codes: Vec<_> = partitions
        .iter()
        .map(|partition| partition.error_code)
        .collect();
    assert_eq!(codes, [0, ErrorCode::UnknownTopicOrPartition.code()]);
    let all = host.fetch(0).await;
    assert_eq!(seen(&all), (vec![0, 1, 2, 3, 4, 5], vec![(7, 0), (7, 3)]));
    assert_eq!(seen(&host.fetch(3).await), (vec![3, 4, 5], vec![(7, 3)]));
    assert_eq!(host.latest(READ_COMMITTED).await, 6);
    host.broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactional_batches_come_with_a_transactional_id_and_of_an_open_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::start(directory.path()).await;
    let options = ClientOptions::new(&host.broker.address.to_string());
    let mut admin = Client::connect(options).await.unwrap();
    let topic = NewTopic {
        name: TOPIC.to_owned(),
        partitions: Some(1),
        ..NewTopic::default()
    };
    admin.create_topic(&topic, false).await.unwrap();
    for (id, refused) in [
        (None, ErrorCode::TransactionalIdAuthorizationFailed),
        (Some("mine"), ErrorCode::InvalidProducerIdMapping),
    ] {
        let partition = m::produce_request::PartitionProduceData::default()
            .with_index(0)
            .with_records(Some(batch(7, 0, 0)));
        let topic = m::produce_request::TopicProduceData::default()
            .with_name(name())
            .with_partition_data(vec![partition]);
        let request = m::ProduceRequest::default()
            .with_transactional_id(id.map(|id| StrBytes::from_static_str(id).into()))
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic]);
        let answer = host.connection.call(&request, 11, PATIENCE).await.unwrap();
        let code = answer.responses[0].partition_responses[0].error_code;
        assert_eq!(code, refused.code(), "{id:?}");
    }
    assert_eq!(host.latest(0).await, 0);
    host.broker.stop().await;
}

/// Waits until it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_finds_the_leader_on_another_broker() {
    let directory = tempfile::tempdir().unwrap();
    let mut hosts = Host::start_three(directory.path()).await;
    hosts[0].create_topic(3).await;
    until("all replicas know their leader", || {
        let leads = |host: &Host| host.view().is_some_and(|view| view.is_serving());
        let knows = |host: &Host| host.view().is_some_and(|view| view.leader() > 0);
        hosts.iter().any(leads) && hosts.iter().all(knows)
    })
    .await;
    hosts.sort_by_key(|host| !host.view().is_some_and(|view| view.is_serving()));
    let [leader, other, third] = &hosts;

    leader.data(7, 0, 0).await;
    assert_eq!(other.end(7, 1, false).await, Ok(()));
    until("what was aborted is known everywhere", || {
        hosts.iter().all(|host| {
            let view = host.view().unwrap();
            let aborted = view.reader().aborted_transactions(0, 2).unwrap();
            view.last_stable_offset() == 2 && aborted.len() == 1
        })
    })
    .await;
    leader.data(7, 1, 0).await;
    assert_eq!(
        other.end(7, 1, true).await,
        Err(ErrorCode::InvalidProducerEpoch)
    );
    let deposed = Marker {
        producer_id: 7,
        producer_epoch: 2,
        coordinator_epoch: 2,
        committed: true,
        transaction_version: 2,
    };
    assert_eq!(
        write_marker(&third.broker.broker, TOPIC, 0, deposed).await,
        Err(ErrorCode::TransactionCoordinatorFenced)
    );
    for (topic, partition) in [(TOPIC, 1), ("none", 0), (TOPIC, -1)] {
        let marker = Marker {
            coordinator_epoch: 3,
            ..deposed
        };
        assert_eq!(
            write_marker(&third.broker.broker, topic, partition, marker).await,
            Err(ErrorCode::UnknownTopicOrPartition)
        );
    }
    assert_eq!(third.end(7, 2, true).await, Ok(()));
    let [one, two, three] = hosts;
    tokio::join!(one.broker.stop(), two.broker.stop(), three.broker.stop());
}
