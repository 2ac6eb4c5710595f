//! The records of the cluster's metadata log, `__cluster_metadata`.
//!
//! Each record is one JSON object in the value of a Kafka record, tagged by `type`: low in volume,
//! readable with any Kafka tool (`kafka-dump-log`, a console consumer), and open to new fields.
//! The image ([`super::image::Image`]) is what applying them in order makes, and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::image::BrokerInfo;
use crate::ids::base64;

/// One change of the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum MetadataRecord {
    /// The identity of the cluster; the first record of a new log.
    Cluster { cluster_id: String },
    /// A broker that has come, or come back with another address.
    Broker(BrokerInfo),
    /// A broker is gone for good.
    BrokerRemoved { node_id: i32 },
    /// Who votes on the metadata from here on (KIP-853); before the first of these, the founders do.
    Voters { voters: Vec<i32> },
    /// A topic with its partitions and the configs that it was created with.
    Topic {
        name: String,
        #[serde(with = "base64")]
        topic_id: Uuid,
        /// The replicas (broker ids) of each partition, in partition order.
        partitions: Vec<Vec<i32>>,
        #[serde(default)]
        configs: BTreeMap<String, String>,
    },
    /// Partitions added to a topic, after those that it has.
    PartitionsAdded {
        #[serde(with = "base64")]
        topic_id: Uuid,
        partitions: Vec<Vec<i32>>,
    },
    /// A partition is to have other replicas (KIP-455). Until it has, it keeps those that it had.
    PartitionReassigning {
        #[serde(with = "base64")]
        topic_id: Uuid,
        partition: i32,
        target: Vec<i32>,
        /// The replicas that it is to have after those, at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        then: Option<Vec<i32>>,
    },
    /// A partition has the replicas that its reassignment of that epoch asked for.
    PartitionReassigned {
        #[serde(with = "base64")]
        topic_id: Uuid,
        partition: i32,
        epoch: u64,
    },
    /// A topic was deleted, with its partitions, configs and declaration.
    TopicRemoved {
        #[serde(with = "base64")]
        topic_id: Uuid,
    },
    /// All dynamic configs of a topic, replacing those that it had.
    TopicConfigs {
        #[serde(with = "base64")]
        topic_id: Uuid,
        configs: BTreeMap<String, String>,
    },
    /// All dynamic configs of a broker, or of all brokers if `broker_id` is absent.
    BrokerConfigs {
        broker_id: Option<i32>,
        configs: BTreeMap<String, String>,
    },
    /// Producer ids below this one have been given out.
    ProducerIds { next_producer_id: i64 },
    /// The producer id with which the merge stage of a derived topic writes its results.
    AggregationProducer {
        #[serde(with = "base64")]
        topic_id: Uuid,
        producer_id: i64,
    },
}

impl MetadataRecord {
    /// The bytes of the record's value.
    pub fn encode(&self) -> Vec<u8> {
        // A tree of strings and integers with string keys cannot fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a record's value; fails on bytes that no version of this program wrote.
    pub fn decode(value: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = MetadataRecord::Topic {
            name: "orders".into(),
            topic_id: Uuid::from_u128(7),
            partitions: vec![vec![1], vec![1]],
            configs: BTreeMap::from([("retention.ms".into(), "1000".into())]),
        };
        assert_eq!(MetadataRecord::decode(&record.encode()).unwrap(), record);
    }
}
