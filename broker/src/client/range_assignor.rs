//! Kafka's range assignor (`org.apache.kafka.clients.consumer.RangeAssignor`) and the bytes that members of a group exchange.
//!
//! ```text
//! version i16 │ ConsumerProtocolSubscription or ConsumerProtocolAssignment
//! ```

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as AssignedTopic;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::TopicPartition;
use super::cluster::{name_of, text};

/// The assignor's name in JoinGroup.
pub(super) const RANGE: &str = "range";
const VERSION_MAX: i16 = 3;

/// Each topic's partitions in order, cut into one range for each of its members in order; the first ranges are one longer where it does
/// not come out even.
pub(super) fn assign(
    members: &BTreeMap<String, Vec<String>>,
    partitions: &BTreeMap<String, Vec<i32>>,
) -> BTreeMap<String, Vec<TopicPartition>> {
    let mut assigned: BTreeMap<String, Vec<TopicPartition>> = members
        .keys()
        .map(|member| (member.clone(), Vec::new()))
        .collect();
    for (topic, partitions) in partitions {
        let subscribed: Vec<&String> = members
            .iter()
            .filter(|(_, topics)| topics.contains(topic))
            .map(|(member, _)| member)
            .collect();
        let Some(each) = partitions.len().checked_div(subscribed.len()) else {
            continue;
        };
        let longer = partitions.len() % subscribed.len();
        let mut rest = partitions.iter();
        for (index, member) in subscribed.into_iter().enumerate() {
            let count = each + usize::from(index < longer);
            let range = rest.by_ref().take(count);
            if let Some(own) = assigned.get_mut(member) {
                own.extend(range.map(|partition| TopicPartition::new(topic, *partition)));
            }
        }
    }
    assigned
}

pub(super) fn encode_subscription(topics: &[String]) -> Option<Bytes> {
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(topics.iter().map(|topic| text(topic)).collect());
    let mut out = BytesMut::new();
    out.put_i16(0);
    subscription.encode(&mut out, 0).ok()?;
    Some(out.freeze())
}

/// A member's topics; `None` for bytes that are no subscription.
pub(super) fn decode_subscription(mut bytes: Bytes) -> Option<Vec<String>> {
    let version = bytes.try_get_i16().ok()?.min(VERSION_MAX);
    let subscription = ConsumerProtocolSubscription::decode(&mut bytes, version).ok()?;
    let topics = subscription.topics.iter().map(ToString::to_string);
    Some(topics.collect())
}

pub(super) fn encode_assignment(partitions: &[TopicPartition]) -> Option<Bytes> {
    let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        let topic = by_topic.entry(&partition.topic).or_default();
        topic.push(partition.partition);
    }
    let topics = by_topic.into_iter().map(|(topic, partitions)| {
        AssignedTopic::default()
            .with_topic(name_of(topic))
            .with_partitions(partitions)
    });
    let assignment =
        ConsumerProtocolAssignment::default().with_assigned_partitions(topics.collect());
    let mut out = BytesMut::new();
    out.put_i16(0);
    assignment.encode(&mut out, 0).ok()?;
    Some(out.freeze())
}

/// A member's partitions; none for empty bytes, `None` for bytes that are no assignment.
pub(super) fn decode_assignment(mut bytes: Bytes) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let version = bytes.try_get_i16().ok()?.min(VERSION_MAX);
    let assignment = ConsumerProtocolAssignment::decode(&mut bytes, version).ok()?;
    let mut partitions = Vec::new();
    for topic in assignment.assigned_partitions {
        for partition in topic.partitions {
            partitions.push(TopicPartition::new(topic.topic.as_str(), partition));
        }
    }
    Some(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_kafkas_javadoc() {
        // Two members, two topics of three partitions each.
        let topics = vec!["t0".to_owned(), "t1".to_owned()];
        let members =
            BTreeMap::from([("C0".to_owned(), topics.clone()), ("C1".to_owned(), topics)]);
        let partitions = BTreeMap::from([
            ("t0".to_owned(), vec![0, 1, 2]),
            ("t1".to_owned(), vec![0, 1, 2]),
        ]);
        let assigned = assign(&members, &partitions);
        let shown = |member: &str| {
            let partitions = assigned[member].iter().map(ToString::to_string);
            partitions.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown("C0"), "t0-0 t0-1 t1-0 t1-1");
        assert_eq!(shown("C1"), "t0-2 t1-2");
    }

    #[test]
    fn a_member_without_the_topic_or_without_partitions_left_gets_none() {
        let members = BTreeMap::from([
            ("a".to_owned(), vec!["t".to_owned()]),
            ("b".to_owned(), vec!["t".to_owned()]),
            ("c".to_owned(), vec!["other".to_owned()]),
        ]);
        let assigned = assign(&members, &BTreeMap::from([("t".to_owned(), vec![0])]));
        assert_eq!(assigned["a"], [TopicPartition::new("t", 0)]);
        assert!(assigned["b"].is_empty() && assigned["c"].is_empty());
    }

    #[test]
    fn what_members_exchange_survives_the_wire() {
        let topics = vec!["one".to_owned(), "two".to_owned()];
        let bytes = encode_subscription(&topics).unwrap();
        assert_eq!(decode_subscription(bytes), Some(topics));
        let partitions = vec![TopicPartition::new("one", 4), TopicPartition::new("two", 0)];
        let bytes = encode_assignment(&partitions).unwrap();
        assert_eq!(decode_assignment(bytes), Some(partitions));
        assert_eq!(decode_assignment(Bytes::from_static(b"\0")), None);
    }
}
