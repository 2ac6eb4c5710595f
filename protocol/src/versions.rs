//! Which APIs and versions the broker serves: the one table. ApiVersions, dispatch, guard and documentation derive from it.
//!
//! It lists only what is served, so it is not taken from the message crate's own ranges. Minimums are those of Kafka 4.x (KIP-896).
//! Produce is advertised from 0 because librdkafka before 2.11.1 switches features off otherwise (KAFKA-18659).

/// One API: its versions and encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Api {
    pub key: i16,
    pub name: &'static str,
    /// Lowest version in ApiVersions answers.
    pub advertised_min: i16,
    /// Lowest and highest versions that are really answered.
    pub min: i16,
    pub max: i16,
    /// Highest version that can be coded, by the message crate or by [`crate::newer`]; later ones have the same layout.
    pub codec_max: i16,
    /// First version with compact lengths and tagged fields (KIP-482); `i16::MAX` for none.
    pub flexible_from: i16,
}

impl Api {
    pub fn serves(&self, version: i16) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The version to code with.
    pub fn codec_version(&self, version: i16) -> i16 {
        version.min(self.codec_max)
    }

    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible_from
    }

    pub fn request_header_version(&self, version: i16) -> i16 {
        if self.is_flexible(version) { 2 } else { 1 }
    }
}

pub const PRODUCE: i16 = 0;
pub const API_VERSIONS: i16 = 18;

/// Every API that is served, by key.
pub const APIS: &[Api] = &[
    Api {
        advertised_min: 0,
        ..api(0, "Produce", 3, 13, 9)
    },
    api(1, "Fetch", 4, 18, 12),
    // Version 11 differs from 10 only in the special timestamps that it allows.
    Api {
        codec_max: 10,
        ..api(2, "ListOffsets", 1, 11, 6)
    },
    api(3, "Metadata", 0, 13, 9),
    // The requests of version 10 (topic ids) are read by `newer`, as the message crate cannot.
    api(8, "OffsetCommit", 2, 10, 8),
    api(9, "OffsetFetch", 1, 10, 6),
    api(10, "FindCoordinator", 0, 6, 3),
    api(11, "JoinGroup", 0, 9, 6),
    api(12, "Heartbeat", 0, 4, 4),
    api(13, "LeaveGroup", 0, 5, 4),
    api(14, "SyncGroup", 0, 5, 4),
    api(15, "DescribeGroups", 0, 6, 5),
    api(16, "ListGroups", 0, 5, 3),
    api(18, "ApiVersions", 0, 4, 3),
    api(19, "CreateTopics", 2, 7, 5),
    api(20, "DeleteTopics", 1, 6, 4),
    api(21, "DeleteRecords", 0, 2, 2),
    api(22, "InitProducerId", 0, 5, 2),
    api(23, "OffsetForLeaderEpoch", 2, 4, 4),
    api(24, "AddPartitionsToTxn", 0, 5, 3),
    api(25, "AddOffsetsToTxn", 0, 4, 3),
    api(26, "EndTxn", 0, 5, 3),
    // Version 2 is read by `newer`.
    api(27, "WriteTxnMarkers", 1, 2, 1),
    api(28, "TxnOffsetCommit", 0, 5, 3),
    api(32, "DescribeConfigs", 1, 4, 4),
    api(33, "AlterConfigs", 0, 2, 2),
    // Version 5 is coded by `newer`.
    api(35, "DescribeLogDirs", 1, 5, 2),
    api(37, "CreatePartitions", 0, 3, 2),
    api(42, "DeleteGroups", 0, 2, 2),
    api(43, "ElectLeaders", 0, 2, 2),
    api(44, "IncrementalAlterConfigs", 0, 1, 1),
    api(45, "AlterPartitionReassignments", 0, 1, 0),
    api(46, "ListPartitionReassignments", 0, 0, 0),
    api(47, "OffsetDelete", 0, 0, i16::MAX),
    api(55, "DescribeQuorum", 0, 2, 0),
    api(60, "DescribeCluster", 0, 2, 0),
    api(61, "DescribeProducers", 0, 0, 0),
    api(64, "UnregisterBroker", 0, 0, 0),
    api(65, "DescribeTransactions", 0, 0, 0),
    api(66, "ListTransactions", 0, 2, 0),
    api(75, "DescribeTopicPartitions", 0, 0, 0),
    // Version 1 is read by `newer`.
    api(80, "AddRaftVoter", 0, 1, 0),
    api(81, "RemoveRaftVoter", 0, 0, 0),
];

const fn api(key: i16, name: &'static str, min: i16, max: i16, flexible_from: i16) -> Api {
    Api {
        key,
        name,
        advertised_min: min,
        min,
        max,
        codec_max: max,
        flexible_from,
    }
}

/// The API with this key, if it is served.
pub fn lookup(key: i16) -> Option<&'static Api> {
    APIS.iter().find(|api| api.key == key)
}

pub fn is_served(key: i16, version: i16) -> bool {
    lookup(key).is_some_and(|api| api.serves(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::ApiKey;

    #[test]
    fn keys_ascend_and_header_versions_agree_with_the_message_crate() {
        assert!(APIS.is_sorted_by(|a, b| a.key < b.key));
        for api in APIS {
            let key = ApiKey::try_from(api.key).unwrap();
            for version in api.min..=api.codec_max {
                assert_eq!(
                    api.request_header_version(version),
                    key.request_header_version(version),
                    "{} {version}",
                    api.name
                );
            }
        }
        assert!(!is_served(0, 2) && is_served(0, 3) && !is_served(22, 6) && !is_served(4, 0));
    }
}
