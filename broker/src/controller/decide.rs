//! What the controller decides: a command and the image in, records and an answer out.
//!
//! Nothing here changes the image; the caller appends the records and applies them once they are
//! committed. The rules are those of Kafka's `ReplicationControlManager`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use streamgauge_protocol::error::ErrorCode;
use uuid::Uuid;

use super::image::{Image, Topic};
use super::record::MetadataRecord;

/// Longest topic name that Kafka takes (`Topic.MAX_NAME_LENGTH`).
const TOPIC_NAME_LENGTH_MAX: usize = 249;

/// Most partitions that one topic may be created with or grown to.
pub const TOPIC_PARTITIONS_MAX: i32 = 100_000;

/// Topics that the brokers keep for themselves (`Topic.INTERNAL_TOPICS`).
pub const GROUP_METADATA_TOPIC: &str = "__consumer_offsets";
pub const TRANSACTION_STATE_TOPIC: &str = "__transaction_state";

/// The prefix of the topics between the two stages of an aggregation.
pub const AGGREGATION_TOPIC_PREFIX: &str = "__aggregation-";

/// Topics that clients see as internal: they may read them, not create or write them by accident.
pub fn is_internal(topic: &str) -> bool {
    topic == GROUP_METADATA_TOPIC
        || topic == TRANSACTION_STATE_TOPIC
        || topic.starts_with(AGGREGATION_TOPIC_PREFIX)
}

/// A refusal, as the client is told it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// A topic that someone wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTopic {
    pub name: String,
    /// Number of partitions; -1 asks for the broker's default (KIP-464).
    pub partitions: i32,
    /// Number of replicas; -1 asks for the broker's default (KIP-464).
    pub replication_factor: i16,
    /// Replicas chosen by the client, by partition index; then the two counts must be -1.
    pub assignments: Vec<(i32, Vec<i32>)>,
    pub configs: BTreeMap<String, String>,
    /// Made by the broker for itself: internal names are allowed.
    pub internal: bool,
}

/// What the decisions need to know of the broker.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Brokers that can take replicas and are there.
    pub brokers: Vec<i32>,
    /// Brokers that can take replicas and are not there now; they come last, as in Kafka.
    pub fenced: Vec<i32>,
    pub partitions_default: i32,
    pub replication_factor_default: i16,
}

/// Decides about a broker that is to be forgotten.
pub fn unregister_broker(
    image: &Image,
    node_id: i32,
    is_alive: bool,
) -> Result<MetadataRecord, Refusal> {
    if image.broker(node_id).is_none() {
        return Err(Refusal::new(
            ErrorCode::BrokerIdNotRegistered,
            format!("Broker ID {node_id} is not currently registered"),
        ));
    }
    if is_alive {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("Broker {node_id} is running; stop it first."),
        ));
    }
    for topic in image.topics() {
        let mut partitions = topic.partitions.iter();
        if let Some(index) = partitions.position(|replicas| replicas.contains(&node_id)) {
            return Err(Refusal::new(
                ErrorCode::InvalidRequest,
                format!(
                    "Broker {node_id} holds replicas, one of them of {}-{index}; they must be moved \
                     or deleted first.",
                    topic.name
                ),
            ));
        }
    }
    Ok(MetadataRecord::BrokerRemoved { node_id })
}

/// Checks a topic's name as Kafka's `Topic.validate`.
pub fn check_topic_name(name: &str) -> Result<(), Refusal> {
    let reason = if name.is_empty() {
        "the empty string is not allowed".to_owned()
    } else if name == "." || name == ".." {
        "'.' or '..' is not allowed".to_owned()
    } else if name.len() > TOPIC_NAME_LENGTH_MAX {
        format!(
            "the length of '{name}' is longer than the max allowed length {TOPIC_NAME_LENGTH_MAX}"
        )
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    {
        format!(
            "'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
        )
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        ErrorCode::InvalidTopicException,
        format!("Topic name is invalid: {reason}"),
    ))
}

/// Decides about one new topic. The records of topics decided earlier in the same command must
/// have been applied to a copy of the image, or names could be given twice.
pub fn create_topic(
    image: &Image,
    placement: &Placement,
    new: &NewTopic,
    topic_id: Uuid,
) -> Result<MetadataRecord, Refusal> {
    check_topic_name(&new.name)?;
    if image.topic(&new.name).is_some() {
        return Err(Refusal::new(
            ErrorCode::TopicAlreadyExists,
            format!("Topic '{}' already exists.", new.name),
        ));
    }
    if let Some(other) = colliding_topic(image, &new.name) {
        return Err(Refusal::new(
            ErrorCode::InvalidTopicException,
            format!("Topic '{}' collides with existing topic: {other}", new.name),
        ));
    }
    if is_internal(&new.name) && !new.internal {
        return Err(Refusal::new(
            ErrorCode::InvalidTopicException,
            format!(
                "Topic '{}' is internal and is created by the broker.",
                new.name
            ),
        ));
    }
    let partitions = if new.assignments.is_empty() {
        assign_replicas(placement, new, image.topics().count())?
    } else {
        check_assignments(placement, new)?
    };
    Ok(MetadataRecord::Topic {
        name: new.name.clone(),
        topic_id,
        partitions,
        configs: new.configs.clone(),
    })
}

/// Names that differ only in `.` and `_` share metric names, so Kafka refuses the second.
fn colliding_topic(image: &Image, name: &str) -> Option<String> {
    if !name.contains(['.', '_']) {
        return None;
    }
    let folded = name.replace('.', "_");
    // Colliding names have the same length and agree up to the first of the two characters.
    let prefix = name.split(['.', '_']).next().unwrap_or_default();
    image
        .topics_from(prefix)
        .take_while(|topic| topic.name.starts_with(prefix))
        .find(|topic| topic.name.len() == name.len() && topic.name.replace('.', "_") == folded)
        .map(|topic| topic.name.clone())
}

fn assign_replicas(
    placement: &Placement,
    new: &NewTopic,
    first: usize,
) -> Result<Vec<Vec<i32>>, Refusal> {
    let partitions = match new.partitions {
        -1 => placement.partitions_default,
        count => count,
    };
    if partitions < 1 {
        return Err(Refusal::new(
            ErrorCode::InvalidPartitions,
            "Number of partitions was set to an invalid non-positive value.",
        ));
    }
    if partitions > TOPIC_PARTITIONS_MAX {
        return Err(Refusal::new(
            ErrorCode::InvalidPartitions,
            format!("Number of partitions is larger than the limit of {TOPIC_PARTITIONS_MAX}."),
        ));
    }
    let factor = match new.replication_factor {
        -1 => placement.replication_factor_default,
        factor => factor,
    };
    if factor < 1 {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicationFactor,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        ));
    }
    let brokers = placement.brokers.len() + placement.fenced.len();
    if usize::from(factor.unsigned_abs()) > brokers {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicationFactor,
            format!(
                "Unable to replicate the partition {factor} time(s): The target replication factor \
                 of {factor} cannot be reached because only {brokers} broker(s) are registered."
            ),
        ));
    }
    let factor = usize::from(factor.unsigned_abs());
    Ok((0..partitions.unsigned_abs() as usize)
        .map(|partition| placement.replicas(first + partition, factor))
        .collect())
}

impl Placement {
    /// `count` brokers, beginning with another one for each `first`.
    fn replicas(&self, first: usize, count: usize) -> Vec<i32> {
        let turned = |brokers: &[i32]| {
            let (before, after) = brokers.split_at(first % brokers.len().max(1));
            [after, before].concat()
        };
        let mut replicas = turned(&self.brokers);
        replicas.extend(turned(&self.fenced));
        replicas.truncate(count);
        replicas
    }

    fn knows(&self, broker: i32) -> bool {
        self.brokers.contains(&broker) || self.fenced.contains(&broker)
    }
}

fn check_assignments(placement: &Placement, new: &NewTopic) -> Result<Vec<Vec<i32>>, Refusal> {
    let refuse = |code, message: String| Err(Refusal::new(code, message));
    if new.partitions != -1 {
        return refuse(
            ErrorCode::InvalidRequest,
            "A manual partition assignment was specified, but numPartitions was not set to -1."
                .into(),
        );
    }
    if new.replication_factor != -1 {
        return refuse(
            ErrorCode::InvalidRequest,
            "A manual partition assignment was specified, but replication factor was not set to -1."
                .into(),
        );
    }
    if new.assignments.len() > TOPIC_PARTITIONS_MAX as usize {
        return refuse(
            ErrorCode::InvalidPartitions,
            format!("Number of partitions is larger than the limit of {TOPIC_PARTITIONS_MAX}."),
        );
    }
    let mut by_index = BTreeMap::new();
    for (index, replicas) in &new.assignments {
        check_replicas(placement, replicas)?;
        if by_index.insert(*index, replicas.clone()).is_some() {
            return refuse(
                ErrorCode::InvalidReplicaAssignment,
                format!("Found multiple manual partition assignments for partition {index}"),
            );
        }
    }
    let factor = by_index.values().next().map_or(0, Vec::len);
    for (expected, (index, replicas)) in by_index.iter().enumerate() {
        if usize::try_from(*index) != Ok(expected) {
            return refuse(
                ErrorCode::InvalidReplicaAssignment,
                "partitions should be a consecutive 0-based integer sequence".into(),
            );
        }
        if replicas.len() != factor {
            return refuse(
                ErrorCode::InvalidReplicaAssignment,
                format!(
                    "The manual partition assignment includes a partition with {} replica(s), but \
                     this is not consistent with previous partitions, which have {factor} replica(s).",
                    replicas.len()
                ),
            );
        }
    }
    Ok(by_index.into_values().collect())
}

pub(super) fn check_replicas(placement: &Placement, replicas: &[i32]) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    if replicas.is_empty() {
        return refuse("The manual partition assignment includes an empty replica list.".into());
    }
    for (position, replica) in replicas.iter().enumerate() {
        if !placement.knows(*replica) {
            return refuse(format!(
                "The manual partition assignment includes broker {replica}, but no such broker is registered."
            ));
        }
        if replicas.iter().take(position).any(|other| other == replica) {
            return refuse(format!(
                "The manual partition assignment includes the broker {replica} more than once."
            ));
        }
    }
    Ok(())
}

/// Decides about the growth of a topic to `count` partitions.
pub fn create_partitions(
    topic: &Topic,
    placement: &Placement,
    count: i32,
    assignments: Option<&[Vec<i32>]>,
) -> Result<MetadataRecord, Refusal> {
    let present = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    if count == present {
        return refuse(format!("Topic already has {count} partition(s)."));
    }
    if count < present {
        return refuse(format!(
            "The topic {} currently has {present} partition(s); {count} would not be an increase.",
            topic.name
        ));
    }
    if count > TOPIC_PARTITIONS_MAX {
        return refuse(format!(
            "Number of partitions is larger than the limit of {TOPIC_PARTITIONS_MAX}."
        ));
    }
    let added = (count - present).unsigned_abs() as usize;
    let partitions = match assignments {
        None => {
            let factor = topic.partitions.first().map_or(1, Vec::len);
            (0..added)
                .map(|partition| placement.replicas(topic.partitions.len() + partition, factor))
                .collect()
        }
        Some(given) => {
            if given.len() != added {
                return Err(Refusal::new(
                    ErrorCode::InvalidReplicaAssignment,
                    format!(
                        "Attempted to add {added} additional partition(s), but only {} \
                         assignment(s) were specified.",
                        given.len()
                    ),
                ));
            }
            for replicas in given {
                check_replicas(placement, replicas)?;
            }
            given.to_vec()
        }
    };
    Ok(MetadataRecord::PartitionsAdded {
        topic_id: topic.topic_id,
        partitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement() -> Placement {
        Placement {
            brokers: vec![1],
            fenced: Vec::new(),
            partitions_default: 3,
            replication_factor_default: 1,
        }
    }

    fn new_topic(name: &str) -> NewTopic {
        NewTopic {
            name: name.into(),
            partitions: -1,
            replication_factor: -1,
            assignments: Vec::new(),
            configs: BTreeMap::new(),
            internal: false,
        }
    }

    fn create(image: &Image, new: &NewTopic) -> Result<MetadataRecord, ErrorCode> {
        create_topic(image, &placement(), new, Uuid::from_u128(1)).map_err(|refusal| refusal.code)
    }

    fn image_with(name: &str) -> Image {
        let mut image = Image::default();
        image.apply(create(&image, &new_topic(name)).unwrap());
        image
    }

    #[test]
    fn minus_one_means_the_brokers_defaults() {
        let record = create(&Image::default(), &new_topic("orders")).unwrap();
        let MetadataRecord::Topic { partitions, .. } = record else {
            panic!("not a topic record");
        };
        assert_eq!(partitions, vec![vec![1]; 3]);
    }

    #[test]
    fn names_that_differ_only_in_dots_and_underscores_collide() {
        let image = image_with("a.b_c");
        assert_eq!(
            create(&image, &new_topic("a_b.c")),
            Err(ErrorCode::InvalidTopicException)
        );
        assert!(create(&image, &new_topic("a.b.c.d")).is_ok());
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "x".repeat(250);
        for name in ["", ".", "..", "a b", "ä", &long] {
            assert_eq!(
                create(&Image::default(), &new_topic(name)),
                Err(ErrorCode::InvalidTopicException),
                "{name}"
            );
        }
    }

    #[test]
    fn more_replicas_than_brokers_are_refused() {
        let new = NewTopic {
            replication_factor: 2,
            ..new_topic("a")
        };
        assert_eq!(
            create(&Image::default(), &new),
            Err(ErrorCode::InvalidReplicationFactor)
        );
    }

    #[test]
    fn manual_assignments_must_be_consecutive() {
        let new = NewTopic {
            assignments: vec![(0, vec![1]), (2, vec![1])],
            ..new_topic("a")
        };
        assert_eq!(
            create(&Image::default(), &new),
            Err(ErrorCode::InvalidReplicaAssignment)
        );
    }

    #[test]
    fn partitions_only_grow() {
        let image = image_with("a");
        let topic = image.topic("a").unwrap();
        for count in [3, 2, 0, -1] {
            assert_eq!(
                create_partitions(topic, &placement(), count, None)
                    .unwrap_err()
                    .code,
                ErrorCode::InvalidPartitions
            );
        }
        let MetadataRecord::PartitionsAdded { partitions, .. } =
            create_partitions(topic, &placement(), 5, None).unwrap()
        else {
            panic!("not an addition");
        };
        assert_eq!(partitions, vec![vec![1]; 2]);
    }
}
