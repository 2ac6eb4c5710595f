//! The layout of every request that is served, in wire order, from Kafka 4.3's message schemas.
//!
//! Only what a length check needs: sizes and versions. Nullability is the decoder's business.

/// One field: what it is, and in which versions.
pub(super) struct Field {
    pub(super) kind: Kind,
    pub(super) tag: Option<u32>,
    since: i16,
    until: i16,
}

pub(super) enum Kind {
    /// A number, boolean or UUID of so many bytes.
    Fixed(usize),
    Text,
    /// Bytes or records.
    Blob,
    Array(&'static [Field]),
    Texts,
    /// An array of numbers of so many bytes each.
    Numbers(usize),
    Structure(&'static [Field]),
    /// Preceded by a byte: negative for null.
    NullableStructure(&'static [Field]),
}

impl Field {
    pub(super) fn is_in(&self, version: i16) -> bool {
        (self.since..=self.until).contains(&version)
    }

    const fn since(mut self, version: i16) -> Field {
        self.since = version;
        self
    }

    const fn until(mut self, version: i16) -> Field {
        self.until = version;
        self
    }

    const fn tag(mut self, tag: u32) -> Field {
        self.tag = Some(tag);
        self
    }
}

/// The layout of the request with this API key.
pub(super) fn fields(api_key: i16) -> Option<&'static [Field]> {
    Some(match api_key {
        0 => PRODUCE,
        1 => FETCH,
        2 => LIST_OFFSETS,
        3 => METADATA,
        8 => OFFSET_COMMIT,
        9 => OFFSET_FETCH,
        10 => FIND_COORDINATOR,
        11 => JOIN_GROUP,
        12 => HEARTBEAT,
        13 => LEAVE_GROUP,
        14 => SYNC_GROUP,
        15 => DESCRIBE_GROUPS,
        16 => LIST_GROUPS,
        18 => API_VERSIONS,
        19 => CREATE_TOPICS,
        20 => DELETE_TOPICS,
        21 => DELETE_RECORDS,
        22 => INIT_PRODUCER_ID,
        23 => OFFSET_FOR_LEADER_EPOCH,
        24 => ADD_PARTITIONS_TO_TXN,
        25 => ADD_OFFSETS_TO_TXN,
        26 => END_TXN,
        27 => WRITE_TXN_MARKERS,
        28 => TXN_OFFSET_COMMIT,
        32 => DESCRIBE_CONFIGS,
        33 => ALTER_CONFIGS,
        35 => DESCRIBE_LOG_DIRS,
        37 => CREATE_PARTITIONS,
        42 => DELETE_GROUPS,
        43 => ELECT_LEADERS,
        44 => INCREMENTAL_ALTER_CONFIGS,
        45 => ALTER_PARTITION_REASSIGNMENTS,
        46 => LIST_PARTITION_REASSIGNMENTS,
        47 => OFFSET_DELETE,
        55 => DESCRIBE_QUORUM,
        60 => DESCRIBE_CLUSTER,
        61 => DESCRIBE_PRODUCERS,
        64 => UNREGISTER_BROKER,
        65 => DESCRIBE_TRANSACTIONS,
        66 => LIST_TRANSACTIONS,
        75 => DESCRIBE_TOPIC_PARTITIONS,
        80 => ADD_RAFT_VOTER,
        81 => REMOVE_RAFT_VOTER,
        _ => return None,
    })
}

const PRODUCE: &[Field] = &[
    text().since(3), // transactional_id
    fixed(2),        // acks
    fixed(4),        // timeout_ms
    array(&[
        text().until(12),    // name
        fixed(16).since(13), // topic_id
        array(&[
            fixed(4), // index
            blob(),   // records
        ]), // partition_data
    ]), // topic_data
];

const FETCH: &[Field] = &[
    text().since(12).tag(0), // cluster_id
    fixed(4).until(14),      // replica_id
    structure(&[
        fixed(4).since(15), // replica_id
        fixed(8).since(15), // replica_epoch
    ])
    .since(15)
    .tag(1), // replica_state
    fixed(4),                // max_wait_ms
    fixed(4),                // min_bytes
    fixed(4).since(3),       // max_bytes
    fixed(1).since(4),       // isolation_level
    fixed(4).since(7),       // session_id
    fixed(4).since(7),       // session_epoch
    array(&[
        text().until(12),    // topic
        fixed(16).since(13), // topic_id
        array(&[
            fixed(4),                   // partition
            fixed(4).since(9),          // current_leader_epoch
            fixed(8),                   // fetch_offset
            fixed(4).since(12),         // last_fetched_epoch
            fixed(8).since(5),          // log_start_offset
            fixed(4),                   // partition_max_bytes
            fixed(16).since(17).tag(0), // replica_directory_id
            fixed(8).since(18).tag(1),  // high_watermark
        ]), // partitions
    ]), // topics
    array(&[
        text().since(7).until(12), // topic
        fixed(16).since(13),       // topic_id
        numbers(4).since(7),       // partitions
    ])
    .since(7), // forgotten_topics_data
    text().since(11),        // rack_id
];

const LIST_OFFSETS: &[Field] = &[
    fixed(4),          // replica_id
    fixed(1).since(2), // isolation_level
    array(&[
        text(), // name
        array(&[
            fixed(4),          // partition_index
            fixed(4).since(4), // current_leader_epoch
            fixed(8),          // timestamp
        ]), // partitions
    ]), // topics
    fixed(4).since(10), // timeout_ms
];

const METADATA: &[Field] = &[
    array(&[
        fixed(16).since(10), // topic_id
        text(),              // name
    ]), // topics
    fixed(1).since(4),           // allow_auto_topic_creation
    fixed(1).since(8).until(10), // include_cluster_authorized_operations
    fixed(1).since(8),           // include_topic_authorized_operations
];

const OFFSET_COMMIT: &[Field] = &[
    text(),                     // group_id
    fixed(4).since(1),          // generation_id_or_member_epoch
    text().since(1),            // member_id
    text().since(7),            // group_instance_id
    fixed(8).since(2).until(4), // retention_time_ms
    array(&[
        text().until(9),     // name
        fixed(16).since(10), // topic_id
        array(&[
            fixed(4),          // partition_index
            fixed(8),          // committed_offset
            fixed(4).since(6), // committed_leader_epoch
            text(),            // committed_metadata
        ]), // partitions
    ]), // topics
];

const OFFSET_FETCH: &[Field] = &[
    text().until(7), // group_id
    array(&[
        text().until(7),     // name
        numbers(4).until(7), // partition_indexes
    ])
    .until(7), // topics
    array(&[
        text().since(8),   // group_id
        text().since(9),   // member_id
        fixed(4).since(9), // member_epoch
        array(&[
            text().since(8).until(9), // name
            fixed(16).since(10),      // topic_id
            numbers(4).since(8),      // partition_indexes
        ])
        .since(8), // topics
    ])
    .since(8), // groups
    fixed(1).since(7), // require_stable
];

const FIND_COORDINATOR: &[Field] = &[
    text().until(3),   // key
    fixed(1).since(1), // key_type
    texts().since(4),  // coordinator_keys
];

const JOIN_GROUP: &[Field] = &[
    text(),            // group_id
    fixed(4),          // session_timeout_ms
    fixed(4).since(1), // rebalance_timeout_ms
    text(),            // member_id
    text().since(5),   // group_instance_id
    text(),            // protocol_type
    array(&[
        text(), // name
        blob(), // metadata
    ]), // protocols
    text().since(8),   // reason
];

const HEARTBEAT: &[Field] = &[
    text(),          // group_id
    fixed(4),        // generation_id
    text(),          // member_id
    text().since(3), // group_instance_id
];

const LEAVE_GROUP: &[Field] = &[
    text(),          // group_id
    text().until(2), // member_id
    array(&[
        text().since(3), // member_id
        text().since(3), // group_instance_id
        text().since(5), // reason
    ])
    .since(3), // members
];

const SYNC_GROUP: &[Field] = &[
    text(),          // group_id
    fixed(4),        // generation_id
    text(),          // member_id
    text().since(3), // group_instance_id
    text().since(5), // protocol_type
    text().since(5), // protocol_name
    array(&[
        text(), // member_id
        blob(), // assignment
    ]), // assignments
];

const DESCRIBE_GROUPS: &[Field] = &[
    texts(),           // groups
    fixed(1).since(3), // include_authorized_operations
];

const LIST_GROUPS: &[Field] = &[
    texts().since(4), // states_filter
    texts().since(5), // types_filter
];

const API_VERSIONS: &[Field] = &[
    text().since(3), // client_software_name
    text().since(3), // client_software_version
];

const CREATE_TOPICS: &[Field] = &[
    array(&[
        text(),   // name
        fixed(4), // num_partitions
        fixed(2), // replication_factor
        array(&[
            fixed(4),   // partition_index
            numbers(4), // broker_ids
        ]), // assignments
        array(&[
            text(), // name
            text(), // value
        ]), // configs
    ]), // topics
    fixed(4),          // timeout_ms
    fixed(1).since(1), // validate_only
];

const DELETE_TOPICS: &[Field] = &[
    array(&[
        text().since(6),    // name
        fixed(16).since(6), // topic_id
    ])
    .since(6), // topics
    texts().until(5), // topic_names
    fixed(4),         // timeout_ms
];

const DELETE_RECORDS: &[Field] = &[
    array(&[
        text(), // name
        array(&[
            fixed(4), // partition_index
            fixed(8), // offset
        ]), // partitions
    ]), // topics
    fixed(4), // timeout_ms
];

const INIT_PRODUCER_ID: &[Field] = &[
    text(),            // transactional_id
    fixed(4),          // transaction_timeout_ms
    fixed(8).since(3), // producer_id
    fixed(2).since(3), // producer_epoch
    fixed(1).since(6), // enable2_pc
    fixed(1).since(6), // keep_prepared_txn
];

const OFFSET_FOR_LEADER_EPOCH: &[Field] = &[
    fixed(4).since(3), // replica_id
    array(&[
        text(), // topic
        array(&[
            fixed(4),          // partition
            fixed(4).since(2), // current_leader_epoch
            fixed(4),          // leader_epoch
        ]), // partitions
    ]), // topics
];

const ADD_PARTITIONS_TO_TXN: &[Field] = &[
    array(&[
        text(),   // transactional_id
        fixed(8), // producer_id
        fixed(2), // producer_epoch
        fixed(1), // verify_only
        array(TXN_TOPIC),
    ])
    .since(4), // transactions
    text().until(3),           // v3_and_below_transactional_id
    fixed(8).until(3),         // v3_and_below_producer_id
    fixed(2).until(3),         // v3_and_below_producer_epoch
    array(TXN_TOPIC).until(3), // v3_and_below_topics
];

const TXN_TOPIC: &[Field] = &[
    text(),     // name
    numbers(4), // partitions
];

const ADD_OFFSETS_TO_TXN: &[Field] = &[
    text(),   // transactional_id
    fixed(8), // producer_id
    fixed(2), // producer_epoch
    text(),   // group_id
];

const END_TXN: &[Field] = &[
    text(),   // transactional_id
    fixed(8), // producer_id
    fixed(2), // producer_epoch
    fixed(1), // committed
];

const TXN_OFFSET_COMMIT: &[Field] = &[
    text(),            // transactional_id
    text(),            // group_id
    fixed(8),          // producer_id
    fixed(2),          // producer_epoch
    fixed(4).since(3), // generation_id
    text().since(3),   // member_id
    text().since(3),   // group_instance_id
    array(&[
        text(), // name
        array(&[
            fixed(4),          // partition_index
            fixed(8),          // committed_offset
            fixed(4).since(2), // committed_leader_epoch
            text(),            // committed_metadata
        ]), // partitions
    ]), // topics
];

const DESCRIBE_TRANSACTIONS: &[Field] = &[
    texts(), // transactional_ids
];

const LIST_TRANSACTIONS: &[Field] = &[
    texts(),           // state_filters
    numbers(8),        // producer_id_filters
    fixed(8).since(1), // duration_filter
    text().since(2),   // transactional_id_pattern
];

const WRITE_TXN_MARKERS: &[Field] = &[
    array(&[
        fixed(8), // producer_id
        fixed(2), // producer_epoch
        fixed(1), // transaction_result
        array(&[
            text(),     // name
            numbers(4), // partition_indexes
        ]), // topics
        fixed(4), // coordinator_epoch
        fixed(1).since(2), // transaction_version
    ]), // markers
];

const DESCRIBE_CONFIGS: &[Field] = &[
    array(&[
        fixed(1), // resource_type
        text(),   // resource_name
        texts(),  // configuration_keys
    ]), // resources
    fixed(1).since(1), // include_synonyms
    fixed(1).since(3), // include_documentation
];

const ALTER_CONFIGS: &[Field] = &[
    array(&[
        fixed(1), // resource_type
        text(),   // resource_name
        array(&[
            text(), // name
            text(), // value
        ]), // configs
    ]), // resources
    fixed(1), // validate_only
];

const DESCRIBE_LOG_DIRS: &[Field] = &[
    array(&[
        text(),     // topic
        numbers(4), // partitions
    ]), // topics
];

const CREATE_PARTITIONS: &[Field] = &[
    array(&[
        text(),   // name
        fixed(4), // count
        array(&[
            numbers(4), // broker_ids
        ]), // assignments
    ]), // topics
    fixed(4), // timeout_ms
    fixed(1), // validate_only
];

const DELETE_GROUPS: &[Field] = &[
    texts(), // groups_names
];

const ELECT_LEADERS: &[Field] = &[
    fixed(1).since(1), // election_type
    array(&[
        text(),     // topic
        numbers(4), // partitions
    ]), // topic_partitions
    fixed(4),          // timeout_ms
];

const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[
    array(&[
        fixed(1), // resource_type
        text(),   // resource_name
        array(&[
            text(),   // name
            fixed(1), // config_operation
            text(),   // value
        ]), // configs
    ]), // resources
    fixed(1), // validate_only
];

const ALTER_PARTITION_REASSIGNMENTS: &[Field] = &[
    fixed(4),          // timeout_ms
    fixed(1).since(1), // allow_replication_factor_change
    array(&[
        text(), // name
        array(&[
            fixed(4),   // partition_index
            numbers(4), // replicas
        ]), // partitions
    ]), // topics
];

const LIST_PARTITION_REASSIGNMENTS: &[Field] = &[
    fixed(4), // timeout_ms
    array(&[
        text(),     // name
        numbers(4), // partition_indexes
    ]), // topics
];

const OFFSET_DELETE: &[Field] = &[
    text(), // group_id
    array(&[
        text(), // name
        array(&[
            fixed(4), // partition_index
        ]), // partitions
    ]), // topics
];

const DESCRIBE_QUORUM: &[Field] = &[
    array(&[
        text(), // topic_name
        array(&[
            fixed(4), // partition_index
        ]), // partitions
    ]), // topics
];

const DESCRIBE_CLUSTER: &[Field] = &[
    fixed(1),          // include_cluster_authorized_operations
    fixed(1).since(1), // endpoint_type
    fixed(1).since(2), // include_fenced_brokers
];

const DESCRIBE_PRODUCERS: &[Field] = &[
    array(&[
        text(),     // name
        numbers(4), // partition_indexes
    ]), // topics
];

const UNREGISTER_BROKER: &[Field] = &[
    fixed(4), // broker_id
];

const ADD_RAFT_VOTER: &[Field] = &[
    text(),    // cluster_id
    fixed(4),  // timeout_ms
    fixed(4),  // voter_id
    fixed(16), // voter_directory_id
    array(&[
        text(),   // name
        text(),   // host
        fixed(2), // port
    ]), // listeners
    fixed(1).since(1), // ack_when_committed
];

const REMOVE_RAFT_VOTER: &[Field] = &[
    text(),    // cluster_id
    fixed(4),  // voter_id
    fixed(16), // voter_directory_id
];

const DESCRIBE_TOPIC_PARTITIONS: &[Field] = &[
    array(&[
        text(), // name
    ]), // topics
    fixed(4), // response_partition_limit
    nullable(&[
        text(),   // topic_name
        fixed(4), // partition_index
    ]), // cursor
];

const fn field(kind: Kind) -> Field {
    Field {
        kind,
        tag: None,
        since: 0,
        until: i16::MAX,
    }
}

const fn fixed(bytes: usize) -> Field {
    field(Kind::Fixed(bytes))
}

const fn text() -> Field {
    field(Kind::Text)
}

const fn blob() -> Field {
    field(Kind::Blob)
}

const fn array(fields: &'static [Field]) -> Field {
    field(Kind::Array(fields))
}

const fn texts() -> Field {
    field(Kind::Texts)
}

const fn numbers(bytes: usize) -> Field {
    field(Kind::Numbers(bytes))
}

const fn structure(fields: &'static [Field]) -> Field {
    field(Kind::Structure(fields))
}

const fn nullable(fields: &'static [Field]) -> Field {
    field(Kind::NullableStructure(fields))
}
