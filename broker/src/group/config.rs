//! Settings of the group coordinator, with Apache Kafka's defaults (`GroupCoordinatorConfig`, `OffsetConfig`).

/// Names are Kafka's, with the unit last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// `group.min.session.timeout.ms`
    pub session_timeout_ms_min: i32,
    /// `group.max.session.timeout.ms`
    pub session_timeout_ms_max: i32,
    /// `group.initial.rebalance.delay.ms`: how long a new group waits for more members before its first generation.
    pub initial_rebalance_delay_ms: i64,
    /// `group.max.size`
    pub group_size_max: usize,
    /// Size of the record that describes a group's generation: every member's metadata and assignment. In Kafka the offsets topic's
    /// `max.message.bytes` (1 MiB) is the bound.
    pub group_record_bytes_max: usize,
    /// `offset.metadata.max.bytes` (Kafka counts UTF-16 units)
    pub offset_metadata_max: usize,
    /// `offsets.retention.minutes`
    pub offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`
    pub offsets_retention_check_interval_ms: i64,
    /// `offsets.commit.timeout.ms`: how long a reply waits for its records to commit before the client is told to try again.
    pub commit_timeout_ms: i64,
    /// `offsets.topic.num.partitions`; must never change while the topic lives.
    pub offsets_topic_partitions: i32,
    /// Size of a batch that the coordinator appends; only a single larger record exceeds it. Keep it well below the offsets topic's
    /// `max.message.bytes`.
    pub append_bytes_max: usize,
    /// Requests that may wait for one offsets partition before clients are told to back off.
    pub mailbox_requests_max: usize,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            session_timeout_ms_min: 6_000,
            session_timeout_ms_max: 1_800_000,
            initial_rebalance_delay_ms: 3_000,
            group_size_max: i32::MAX as usize,
            group_record_bytes_max: 8 << 20,
            offset_metadata_max: 4_096,
            offsets_retention_ms: 7 * 24 * 60 * 60 * 1_000,
            offsets_retention_check_interval_ms: 600_000,
            commit_timeout_ms: 5_000,
            offsets_topic_partitions: 50,
            append_bytes_max: 512 * 1_024,
            mailbox_requests_max: 1_024,
        }
    }
}
