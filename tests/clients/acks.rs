//! `acks=0` on the wire: no answer, and the connection goes on.

use std::time::Duration;

use bytes::Bytes;
use streamgauge_protocol::batch::BatchBuilder;
use streamgauge_protocol::frame::{decode_response, encode_request};
use streamgauge_protocol::messages::messages::metadata_request::MetadataRequestTopic;
use streamgauge_protocol::messages::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use streamgauge_protocol::messages::messages::{
    MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse, TopicName,
};
use streamgauge_protocol::messages::protocol::{Request, StrBytes};
use streamgauge_tests::broker::shared;
use streamgauge_tests::process::poll;
use streamgauge_tests::wire::Wire;

const METADATA_VERSION: i16 = 9;
const PRODUCE_VERSION: i16 = 9;
const TOPIC: &str = "acks-zero";
const TIME_MAX: Duration = Duration::from_secs(30);

fn topic() -> TopicName {
    TopicName(StrBytes::from_static_str(TOPIC))
}

fn send(wire: &mut Wire, correlation: i32, version: i16, request: &impl Request) {
    let frame = encode_request(correlation, "test", version, request).expect("it can be encoded");
    wire.send(&frame);
}

fn produce(acks: i16) -> ProduceRequest {
    let batch = BatchBuilder::new().record(1, Some(b"k"), Some(b"v"));
    let data = PartitionProduceData::default()
        .with_index(0)
        .with_records(Some(batch.build().expect("a batch can be built")));
    ProduceRequest::default()
        .with_acks(acks)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(topic())
                .with_partition_data(vec![data]),
        ])
}

/// Asks for the topic, which makes it, until it has a leader.
fn make_topic(wire: &mut Wire) {
    let request = MetadataRequest::default()
        .with_topics(Some(vec![
            MetadataRequestTopic::default().with_name(Some(topic())),
        ]))
        .with_allow_auto_topic_creation(true);
    let led = poll(TIME_MAX, || {
        send(wire, 1, METADATA_VERSION, &request);
        let answer = Bytes::from(wire.answer()?);
        let (_, answer): (_, MetadataResponse) = decode_response(answer, METADATA_VERSION).ok()?;
        let topic = answer.topics.first()?;
        (topic.error_code == 0 && topic.partitions.iter().all(|one| one.leader_id.0 >= 0))
            .then_some(())
    });
    led.expect("the topic has a leader");
}

/// Produces one record, with an answer; its offset, or `None` if it was refused.
fn produce_and_ask(wire: &mut Wire, correlation: i32) -> Option<i64> {
    send(wire, correlation, PRODUCE_VERSION, &produce(1));
    let answer = wire.answer().expect("the connection is still there");
    let (answered, answer): (_, ProduceResponse) =
        decode_response(Bytes::from(answer), PRODUCE_VERSION).expect("it can be read");
    assert_eq!(answered, correlation, "what has acks=0 gets no answer");
    let partition = answer.responses.first()?.partition_responses.first()?;
    (partition.error_code == 0).then_some(partition.base_offset)
}

#[test]
fn acks_zero_gets_no_answer_and_keeps_the_connection() {
    let broker = shared("clients");
    let mut wire = Wire::connect(broker.address());
    make_topic(&mut wire);
    // Kafka may name a leader that does not lead yet, and would close the connection upon a refused acks=0.
    let first = poll(TIME_MAX, || produce_and_ask(&mut wire, 2));
    assert_eq!(first, Some(0));
    for correlation in [3, 4] {
        send(&mut wire, correlation, PRODUCE_VERSION, &produce(0));
    }
    assert_eq!(produce_and_ask(&mut wire, 5), Some(3));
}
