//! What brokers ask of the controller for themselves. Clients' requests are handed on as they are.

use serde::{Deserialize, Serialize};
use streamgauge_protocol::error::ErrorCode;
use uuid::Uuid;

use super::decide::{NewTopic, Refusal};
use super::image::{BrokerInfo, Image};
use super::reassign;
use super::record::MetadataRecord;
use crate::ids::base64;

/// A change of the metadata that a broker wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A topic that a client's request implies, or that the brokers keep for themselves.
    CreateTopic(NewTopic),
    /// Not another topic that has come to have its name.
    DeleteTopic {
        #[serde(with = "base64")]
        topic_id: Uuid,
    },
    /// Producer ids that nobody else has or will have.
    AllocateProducerIds { count: i64 },
    /// The producer ids of an aggregation, the same whenever they are asked for.
    AssignAggregationProducers {
        #[serde(with = "base64")]
        topic_id: Uuid,
        count: i64,
    },
    /// The partition's group has the members of that assignment.
    PartitionSettled {
        #[serde(with = "base64")]
        topic_id: Uuid,
        partition: i32,
        epoch: u64,
    },
    /// The files of that broker's replica are not what was written.
    ReplicaDamaged {
        #[serde(with = "base64")]
        topic_id: Uuid,
        partition: i32,
        broker: i32,
    },
    /// Which cluster is this?
    TellCluster,
    /// This is me, and here I am.
    RegisterBroker(BrokerInfo),
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandAnswer {
    Done,
    Cluster {
        cluster_id: String,
    },
    /// The first of the ids.
    ProducerIds {
        first: i64,
    },
    Refused {
        code: i16,
        message: String,
    },
}

impl CommandAnswer {
    pub fn refused(refusal: Refusal) -> Self {
        Self::Refused {
            code: refusal.code.code(),
            message: refusal.message,
        }
    }

    pub fn into_result(self) -> Result<Option<i64>, Refusal> {
        match self {
            Self::Done | Self::Cluster { .. } => Ok(None),
            Self::ProducerIds { first } => Ok(Some(first)),
            Self::Refused { code, message } => {
                let code = ErrorCode::try_from_code(code).unwrap_or(ErrorCode::UnknownServerError);
                Err(Refusal::new(code, message))
            }
        }
    }
}

/// Decides about all but the creation of topics, for which the brokers' configuration counts.
pub fn decide(image: &Image, command: Command) -> (Vec<MetadataRecord>, CommandAnswer) {
    match command {
        Command::CreateTopic(_) => (Vec::new(), CommandAnswer::Done),
        Command::DeleteTopic { topic_id } => {
            let removed = image
                .topic_by_id(topic_id)
                .map(|_| MetadataRecord::TopicRemoved { topic_id });
            (removed.into_iter().collect(), CommandAnswer::Done)
        }
        Command::AllocateProducerIds { count } => {
            let first = image.next_producer_id();
            let record = MetadataRecord::ProducerIds {
                next_producer_id: first.saturating_add(count.max(0)),
            };
            (vec![record], CommandAnswer::ProducerIds { first })
        }
        Command::AssignAggregationProducers { topic_id, count } => {
            let Some(topic) = image.topic_by_id(topic_id) else {
                let refusal = Refusal::new(ErrorCode::UnknownTopicId, "the topic was deleted");
                return (Vec::new(), CommandAnswer::refused(refusal));
            };
            if let Some(first) = topic.aggregation_producer_id {
                return (Vec::new(), CommandAnswer::ProducerIds { first });
            }
            let producer_id = image.next_producer_id();
            let records = vec![
                MetadataRecord::ProducerIds {
                    next_producer_id: producer_id.saturating_add(count.max(0)),
                },
                MetadataRecord::AggregationProducer {
                    topic_id,
                    producer_id,
                },
            ];
            (records, CommandAnswer::ProducerIds { first: producer_id })
        }
        Command::PartitionSettled {
            topic_id,
            partition,
            epoch,
        } => {
            let records = reassign::settled(image, topic_id, partition, epoch);
            (records, CommandAnswer::Done)
        }
        Command::ReplicaDamaged {
            topic_id,
            partition,
            broker,
        } => {
            let records = reassign::replace(image, topic_id, partition, broker);
            (records, CommandAnswer::Done)
        }
        Command::TellCluster => {
            let cluster_id = image.cluster_id().to_owned();
            (Vec::new(), CommandAnswer::Cluster { cluster_id })
        }
        Command::RegisterBroker(info) => register(image, info),
    }
}

/// A node id belongs to the directory that it came with first: one that comes with an empty disk
/// has forgotten its votes and what it acknowledged, and must not pass for its former self.
fn register(image: &Image, info: BrokerInfo) -> (Vec<MetadataRecord>, CommandAnswer) {
    let directory_id = image.directory_of(info.node_id);
    if directory_id.is_some_and(|known| known != info.directory_id) {
        let refusal = Refusal::new(
            ErrorCode::DuplicateBrokerRegistration,
            format!(
                "broker {} is known with another data directory; if its disk is lost, give the new broker \
                 another node.id",
                info.node_id
            ),
        );
        return (Vec::new(), CommandAnswer::refused(refusal));
    }
    let is_known = image.broker(info.node_id) == Some(&info);
    let record = (!is_known).then_some(MetadataRecord::Broker(info));
    (record.into_iter().collect(), CommandAnswer::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::decide::unregister_broker;

    fn info(directory: u128) -> BrokerInfo {
        BrokerInfo {
            node_id: 2,
            directory_id: Uuid::from_u128(directory),
            host: "b".into(),
            port: 9092,
            rack: None,
            peer: None,
        }
    }

    #[test]
    fn a_broker_that_comes_back_with_another_disk_is_refused() {
        let mut image = Image::default();
        let (records, answer) = decide(&image, Command::RegisterBroker(info(1)));
        assert_eq!(answer, CommandAnswer::Done);
        for record in records {
            image.apply(record);
        }
        let (records, _) = decide(&image, Command::RegisterBroker(info(1)));
        assert!(records.is_empty(), "nothing new");
        let (records, answer) = decide(&image, Command::RegisterBroker(info(9)));
        assert!(records.is_empty());
        assert!(matches!(answer, CommandAnswer::Refused { .. }));
    }

    #[test]
    fn a_broker_that_was_unregistered_comes_back_with_its_own_disk_only() {
        let mut image = Image::default();
        image.apply(MetadataRecord::Broker(info(1)));
        let removed = unregister_broker(&image, 2, false).unwrap();
        image.apply(removed);
        assert!(image.broker(2).is_none());
        let (records, _) = decide(&image, Command::RegisterBroker(info(9)));
        assert!(records.is_empty());
        let (records, _) = decide(&image, Command::RegisterBroker(info(1)));
        assert_eq!(records.len(), 1);
    }

    #[test]
    fn a_broker_that_is_there_or_holds_replicas_is_not_unregistered() {
        let mut image = Image::default();
        let code =
            |image: &Image, is_alive| unregister_broker(image, 2, is_alive).unwrap_err().code;
        assert_eq!(code(&image, false), ErrorCode::BrokerIdNotRegistered);
        image.apply(MetadataRecord::Broker(info(1)));
        assert_eq!(code(&image, true), ErrorCode::InvalidRequest);
        image.apply(MetadataRecord::Topic {
            name: "t".into(),
            topic_id: Uuid::from_u128(4),
            partitions: vec![vec![1, 3], vec![3, 2]],
            configs: Default::default(),
        });
        let refusal = unregister_broker(&image, 2, false).unwrap_err();
        assert!(refusal.message.contains("t-1"), "{refusal}");
    }
}
