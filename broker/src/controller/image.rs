//! What the metadata log says: the topics, configs and ids of the cluster at one offset.
//!
//! The only way to change it is [`Image::apply`], on a live broker and after a restart alike.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::assignment::Moved;
use super::record::MetadataRecord;
use crate::config::{ConfigImage, ConfigMap};
use crate::ids::base64;

/// A topic as the metadata log declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub topic_id: Uuid,
    /// The replicas (broker ids) of each partition; the index is the partition's number.
    pub partitions: Vec<Vec<i32>>,
    /// The configs set on this topic; what is absent follows the broker's default.
    pub configs: BTreeMap<String, String>,
    /// The producer id of the merge stage, if the topic is derived.
    pub aggregation_producer_id: Option<i64>,
    /// The partitions that move or have moved, by index.
    pub moved: BTreeMap<i32, Moved>,
}

/// A broker as it registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerInfo {
    pub node_id: i32,
    /// Of its data directory: tells a broker that comes back from one with an empty disk.
    #[serde(with = "base64")]
    pub directory_id: Uuid,
    /// Where clients reach it.
    pub host: String,
    pub port: u16,
    #[serde(default)]
    pub rack: Option<String>,
    /// Where other brokers connect to; absent on a broker alone.
    #[serde(default)]
    pub peer: Option<String>,
}

/// The state that the metadata log makes.
#[derive(Debug, Clone, Default)]
pub struct Image {
    cluster_id: String,
    topics: BTreeMap<String, Arc<Topic>>,
    names: HashMap<Uuid, String>,
    brokers: BTreeMap<i32, BrokerInfo>,
    /// The data directories of brokers that are gone for good: they voted, and nobody else may in
    /// their name.
    former: BTreeMap<i32, Uuid>,
    /// Who votes on the metadata, if others than the cluster's founders.
    voters: Option<Vec<i32>>,
    /// Counts the changes of who follows the metadata log.
    quorum_epoch: u64,
    broker_configs: BTreeMap<Option<i32>, BTreeMap<String, String>>,
    next_producer_id: i64,
}

impl Image {
    /// Applies one committed record. A record about a topic that is no longer there changes nothing.
    pub fn apply(&mut self, record: MetadataRecord) {
        match record {
            MetadataRecord::Cluster { cluster_id } => self.cluster_id = cluster_id,
            MetadataRecord::Broker(info) => {
                self.former.remove(&info.node_id);
                if self.brokers.insert(info.node_id, info).is_none() {
                    self.quorum_epoch += 1;
                }
            }
            MetadataRecord::BrokerRemoved { node_id } => {
                if let Some(gone) = self.brokers.remove(&node_id) {
                    self.former.insert(node_id, gone.directory_id);
                    self.quorum_epoch += 1;
                }
            }
            MetadataRecord::Voters { voters } => {
                self.voters = Some(voters);
                self.quorum_epoch += 1;
            }
            MetadataRecord::Topic {
                name,
                topic_id,
                partitions,
                configs,
            } => {
                self.names.insert(topic_id, name.clone());
                let topic = Topic {
                    name: name.clone(),
                    topic_id,
                    partitions,
                    configs,
                    aggregation_producer_id: None,
                    moved: BTreeMap::new(),
                };
                self.topics.insert(name, Arc::new(topic));
            }
            MetadataRecord::PartitionsAdded {
                topic_id,
                partitions,
            } => {
                if let Some(topic) = self.topic_mut(topic_id) {
                    topic.partitions.extend(partitions);
                }
            }
            MetadataRecord::PartitionReassigning {
                topic_id,
                partition,
                target,
                then,
            } => {
                if let Some(topic) = self.topic_mut(topic_id) {
                    topic.reassign(partition, target, then);
                }
            }
            MetadataRecord::PartitionReassigned {
                topic_id,
                partition,
                epoch,
            } => {
                if let Some(topic) = self.topic_mut(topic_id) {
                    topic.reassigned(partition, epoch);
                }
            }
            MetadataRecord::TopicRemoved { topic_id } => {
                if let Some(name) = self.names.remove(&topic_id) {
                    self.topics.remove(&name);
                }
            }
            MetadataRecord::TopicConfigs { topic_id, configs } => {
                if let Some(topic) = self.topic_mut(topic_id) {
                    topic.configs = configs;
                }
            }
            MetadataRecord::BrokerConfigs { broker_id, configs } => {
                self.broker_configs.insert(broker_id, configs);
            }
            MetadataRecord::ProducerIds { next_producer_id } => {
                self.next_producer_id = self.next_producer_id.max(next_producer_id);
            }
            MetadataRecord::AggregationProducer {
                topic_id,
                producer_id,
            } => {
                if let Some(topic) = self.topic_mut(topic_id) {
                    topic.aggregation_producer_id = Some(producer_id);
                }
            }
        }
    }

    /// The cluster's id; empty before the first record of a new log.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Who votes on the metadata, if others than the cluster's founders.
    pub fn voters(&self) -> Option<&Vec<i32>> {
        self.voters.as_ref()
    }

    /// Counts the changes of who follows the metadata log.
    pub fn quorum_epoch(&self) -> u64 {
        self.quorum_epoch
    }

    pub fn broker(&self, node_id: i32) -> Option<&BrokerInfo> {
        self.brokers.get(&node_id)
    }

    /// The data directory with which that node id came first, also if the broker is gone.
    pub fn directory_of(&self, node_id: i32) -> Option<Uuid> {
        let known = self.brokers.get(&node_id).map(|known| known.directory_id);
        known.or_else(|| self.former.get(&node_id).copied())
    }

    /// All brokers that have registered, by id.
    pub fn brokers(&self) -> impl Iterator<Item = &BrokerInfo> {
        self.brokers.values()
    }

    pub fn broker_ids(&self) -> Vec<i32> {
        self.brokers.keys().copied().collect()
    }

    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    pub fn topic_by_id(&self, topic_id: Uuid) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(&topic_id)?)
    }

    /// All topics in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// All topics whose names come after `name`, in order.
    pub fn topics_from<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<Topic>> {
        self.topics
            .range::<str, _>((std::ops::Bound::Included(name), std::ops::Bound::Unbounded))
            .map(|(_, topic)| topic)
    }

    pub fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }

    /// The image as it would be with this topic in it.
    pub fn with_topic(&self, topic: &Topic) -> Self {
        let mut image = self.clone();
        image.names.insert(topic.topic_id, topic.name.clone());
        image
            .topics
            .insert(topic.name.clone(), Arc::new(topic.clone()));
        image
    }

    fn topic_mut(&mut self, topic_id: Uuid) -> Option<&mut Topic> {
        let name = self.names.get(&topic_id)?;
        self.topics.get_mut(name).map(Arc::make_mut)
    }
}

impl ConfigImage for Image {
    fn topic_overrides(&self, topic: &str) -> Option<&ConfigMap> {
        self.topics.get(topic).map(|topic| &topic.configs)
    }

    fn knows_broker(&self, broker: i32) -> bool {
        self.brokers.contains_key(&broker)
    }

    fn broker_overrides(&self, broker: Option<i32>) -> Option<&ConfigMap> {
        self.broker_configs.get(&broker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str, id: u128) -> MetadataRecord {
        MetadataRecord::Topic {
            name: name.into(),
            topic_id: Uuid::from_u128(id),
            partitions: vec![vec![1]],
            configs: BTreeMap::new(),
        }
    }

    #[test]
    fn a_recreated_topic_has_its_new_id_only() {
        let mut image = Image::default();
        image.apply(topic("a", 1));
        image.apply(MetadataRecord::TopicRemoved {
            topic_id: Uuid::from_u128(1),
        });
        image.apply(topic("a", 2));
        assert!(image.topic_by_id(Uuid::from_u128(1)).is_none());
        assert_eq!(image.topic("a").unwrap().topic_id, Uuid::from_u128(2));
    }

    #[test]
    fn configs_of_a_removed_topic_are_ignored() {
        let mut image = Image::default();
        image.apply(topic("a", 1));
        image.apply(MetadataRecord::TopicRemoved {
            topic_id: Uuid::from_u128(1),
        });
        image.apply(MetadataRecord::TopicConfigs {
            topic_id: Uuid::from_u128(1),
            configs: BTreeMap::new(),
        });
        assert_eq!(image.topics().count(), 0);
    }

    #[test]
    fn producer_ids_never_go_back() {
        let mut image = Image::default();
        image.apply(MetadataRecord::ProducerIds {
            next_producer_id: 2000,
        });
        image.apply(MetadataRecord::ProducerIds {
            next_producer_id: 1000,
        });
        assert_eq!(image.next_producer_id(), 2000);
    }
}
