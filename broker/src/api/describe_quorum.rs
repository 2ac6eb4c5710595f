//! DescribeQuorum, versions 0 to 2 (KIP-595, KIP-836, KIP-853): the replicas of the metadata log.
//!
//! Answered by the controller, to which other brokers hand the request on. Brokers that do not vote are
//! observers. Any other partition is unknown here, as in Kafka.

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;
use uuid::Uuid;

use super::Context;
use super::kafka::describe_quorum_response::{
    DescribeQuorumResponse, Listener, Node, PartitionData, ReplicaState, TopicData,
};
use super::kafka::{BrokerId, DescribeQuorumRequest};
use crate::broker::Broker;
use crate::clock;
use crate::controller::METADATA_TOPIC;
use crate::shard::event::ReplicaPosition;

/// The name of the listener at which brokers talk to each other.
const LISTENER: &str = "CONTROLLER";

pub async fn handle(context: Context, request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let broker = &context.broker;
    let is_valid = matches!(request.topics.as_slice(), [topic]
        if topic.topic_name.as_str() == METADATA_TOPIC
            && matches!(topic.partitions.as_slice(), [partition] if partition.partition_index == 0));
    if !is_valid {
        return unknown_partitions(request);
    }
    let positions = match broker.controller.is_active() {
        true => broker.controller.log().replicas().await,
        false => None,
    };
    let Some(positions) = positions else {
        return DescribeQuorumResponse::default()
            .with_error_code(ErrorCode::NotLeaderOrFollower.code())
            .with_error_message(Some(StrBytes::from_static_str(
                "this broker does not lead the metadata log",
            )));
    };
    let now_ms = clock::now_ms();
    let (voters, observers): (Vec<_>, Vec<_>) =
        positions.iter().partition(|position| position.is_voter);
    let states = |positions: Vec<&ReplicaPosition>| {
        let states = positions.into_iter();
        states
            .map(|position| replica(broker, position, now_ms))
            .collect()
    };
    let partition = PartitionData::default()
        .with_leader_id(BrokerId(broker.id()))
        .with_leader_epoch(broker.controller.leader_epoch())
        .with_high_watermark(broker.controller.log().view().high_watermark())
        .with_current_voters(states(voters))
        .with_observers(states(observers));
    let nodes = match context.version >= 2 {
        true => nodes(broker),
        false => Vec::new(),
    };
    DescribeQuorumResponse::default()
        .with_topics(vec![
            TopicData::default()
                .with_topic_name(super::metadata::topic_name(METADATA_TOPIC))
                .with_partitions(vec![partition]),
        ])
        .with_nodes(nodes)
}

fn replica(broker: &Broker, position: &ReplicaPosition, now_ms: i64) -> ReplicaState {
    let ago = |ms: Option<i64>| ms.map_or(-1, |ms| now_ms - ms);
    let directory_id = broker
        .endpoint_of(position.broker)
        .map_or(Uuid::nil(), |known| known.directory_id);
    ReplicaState::default()
        .with_replica_id(BrokerId(position.broker))
        .with_replica_directory_id(directory_id)
        .with_log_end_offset(position.log_end_offset)
        .with_last_fetch_timestamp(ago(position.heard_ms_ago))
        .with_last_caught_up_timestamp(ago(position.caught_up_ms_ago))
}

fn nodes(broker: &Broker) -> Vec<Node> {
    let voters = broker.voters();
    let addresses = voters.into_iter().filter_map(|id| {
        let registered = broker.endpoint_of(id).and_then(|known| known.peer);
        let configured = || broker.config.controller_quorum_voters.get(&id).cloned();
        Some((id, registered.or_else(configured)?))
    });
    addresses
        .map(|(id, address)| {
            let (host, port) = address.rsplit_once(':').unwrap_or((&address, "0"));
            Node::default()
                .with_node_id(BrokerId(id))
                .with_listeners(vec![
                    Listener::default()
                        .with_name(StrBytes::from_static_str(LISTENER))
                        .with_host(StrBytes::from_string(host.to_owned()))
                        .with_port(port.parse().unwrap_or(0)),
                ])
        })
        .collect()
}

fn unknown_partitions(request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|partition| {
            PartitionData::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(ErrorCode::UnknownTopicOrPartition.code())
        });
        TopicData::default()
            .with_topic_name(topic.topic_name)
            .with_partitions(partitions.collect())
    });
    DescribeQuorumResponse::default().with_topics(topics.collect())
}
