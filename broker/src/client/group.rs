//! A member of a consumer group, with Kafka's classic protocol and the range assignor.
//!
//! Heartbeats go out from `poll`, so a member that does not poll for a session's time is taken for dead, as with Kafka's
//! `max.poll.interval.ms`. Offsets are committed when the caller says so and before partitions are given up.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, OffsetCommitRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;
use streamgauge_protocol::ErrorCode;
use tokio::time::Instant;

use super::TopicPartition;
use super::cluster::{ANY_VERSION, Client, name_of, text};
use super::consumer::{ConsumedRecord, Consumer, ConsumerOptions, StartOffset};
use super::error::{ClientError, check};
use super::range_assignor::{
    RANGE, assign, decode_assignment, decode_subscription, encode_assignment, encode_subscription,
};

const PROTOCOL_TYPE: &str = "consumer";
/// Later versions take a list of keys.
const FIND_COORDINATOR_VERSION_MAX: i16 = 3;

#[derive(Clone, Debug)]
pub struct GroupOptions {
    pub group: String,
    pub topics: Vec<String>,
    /// Where to begin in partitions for which nothing was committed.
    pub start: StartOffset,
    /// Kafka's `session.timeout.ms`.
    pub session_timeout: Duration,
    /// Kafka's `heartbeat.interval.ms`.
    pub heartbeat_interval: Duration,
    /// How long members have to join again.
    pub rebalance_timeout: Duration,
}

impl GroupOptions {
    /// Kafka's defaults.
    pub fn new(group: &str, topics: Vec<String>, start: StartOffset) -> GroupOptions {
        GroupOptions {
            group: group.to_owned(),
            topics,
            start,
            session_timeout: Duration::from_secs(45),
            heartbeat_interval: Duration::from_secs(3),
            rebalance_timeout: Duration::from_secs(60),
        }
    }
}

/// Reads the partitions that its group gives it.
#[derive(Debug)]
pub struct GroupConsumer {
    consumer: Consumer,
    options: GroupOptions,
    member_id: StrBytes,
    /// `None`: not a member now.
    membership: Option<Membership>,
    /// Next offset of partitions whose records the caller has dealt with and that were not committed yet.
    processed: BTreeMap<TopicPartition, i64>,
}

#[derive(Debug)]
struct Membership {
    generation: i32,
    coordinator: i32,
    heartbeat_due: Instant,
}

impl GroupConsumer {
    pub fn new(client: Client, options: GroupOptions) -> GroupConsumer {
        let consumer_options = ConsumerOptions {
            reset: Some(options.start),
            ..ConsumerOptions::default()
        };
        GroupConsumer {
            consumer: Consumer::new(client, consumer_options),
            options,
            member_id: StrBytes::default(),
            membership: None,
            processed: BTreeMap::new(),
        }
    }

    /// Joins when it must, sends heartbeats when they are due, and waits up to `wait` for records.
    pub async fn poll(&mut self, wait: Duration) -> Result<Vec<ConsumedRecord>, ClientError> {
        let mut retry = self.consumer.client.retry();
        loop {
            match self.keep_membership().await {
                Ok(()) => break,
                Err(error) => {
                    if !self.dismissed(&error) {
                        retry.after(error).await?;
                    }
                }
            }
        }
        self.consumer
            .poll(wait.min(self.options.heartbeat_interval))
            .await
    }

    /// Notes that the caller has dealt with `record` and those before it in its partition.
    pub fn processed(&mut self, record: &ConsumedRecord) {
        let partition = TopicPartition::new(&record.topic, record.partition);
        self.processed.insert(partition, record.offset + 1);
    }

    /// Commits what was processed.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let Some(membership) = &self.membership else {
            return Ok(());
        };
        if self.processed.is_empty() {
            return Ok(());
        }
        let mut topics: Vec<OffsetCommitRequestTopic> = Vec::new();
        for (partition, offset) in &self.processed {
            let committed = OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition)
                .with_committed_offset(*offset)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::default()));
            match topics.last_mut() {
                Some(last) if last.name.as_str() == partition.topic => {
                    last.partitions.push(committed);
                }
                _ => topics.push(
                    OffsetCommitRequestTopic::default()
                        .with_name(name_of(&partition.topic))
                        .with_partitions(vec![committed]),
                ),
            }
        }
        let request = OffsetCommitRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id_or_member_epoch(membership.generation)
            .with_member_id(self.member_id.clone())
            .with_topics(topics);
        let coordinator = membership.coordinator;
        let mut retry = self.consumer.client.retry();
        loop {
            match self.send_commit(coordinator, &request).await {
                Ok(()) => break,
                Err(error) => retry.after(error).await?,
            }
        }
        self.processed.clear();
        Ok(())
    }

    /// Commits what was processed and leaves, so that the others need not wait for the session to expire.
    pub async fn close(mut self) -> Result<(), ClientError> {
        let committed = self.commit().await;
        let Some(membership) = self.membership.take() else {
            return committed;
        };
        // From version 3 on a list; every broker since Kafka 2.4 serves it.
        let member = MemberIdentity::default().with_member_id(self.member_id.clone());
        let request = LeaveGroupRequest::default()
            .with_group_id(self.group_id())
            .with_members(vec![member]);
        let response = self
            .consumer
            .client
            .call_broker(membership.coordinator, &request, ANY_VERSION)
            .await?;
        committed?;
        check(response.error_code, || self.name(), None)
    }

    async fn send_commit(
        &mut self,
        coordinator: i32,
        request: &OffsetCommitRequest,
    ) -> Result<(), ClientError> {
        let client = &mut self.consumer.client;
        let response = client
            .call_broker(coordinator, request, ANY_VERSION)
            .await?;
        for topic in response.topics {
            for partition in topic.partitions {
                check(partition.error_code, || self.name(), None)?;
            }
        }
        Ok(())
    }

    async fn keep_membership(&mut self) -> Result<(), ClientError> {
        let Some(membership) = &self.membership else {
            return self.join().await;
        };
        if Instant::now() < membership.heartbeat_due {
            return Ok(());
        }
        let (coordinator, generation) = (membership.coordinator, membership.generation);
        let request = HeartbeatRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(generation)
            .with_member_id(self.member_id.clone());
        let client = &mut self.consumer.client;
        let response = client
            .call_broker(coordinator, &request, ANY_VERSION)
            .await?;
        if response.error_code == ErrorCode::RebalanceInProgress.code() {
            if let Err(error) = self.commit().await {
                tracing::warn!(%error, group = self.options.group, "not committed before rebalancing");
            }
            return self.join().await;
        }
        check(response.error_code, || self.name(), None)?;
        self.heartbeat_sent();
        Ok(())
    }

    /// Whether `error` means to join anew, at once.
    fn dismissed(&mut self, error: &ClientError) -> bool {
        match error.code() {
            Some(ErrorCode::UnknownMemberId) => {
                self.member_id = StrBytes::default();
                self.membership = None;
                self.processed.clear();
                true
            }
            Some(ErrorCode::IllegalGeneration | ErrorCode::RebalanceInProgress) => {
                self.membership = None;
                self.processed.clear();
                true
            }
            _ => {
                if error.is_retriable() {
                    self.membership = None;
                }
                false
            }
        }
    }

    async fn join(&mut self) -> Result<(), ClientError> {
        self.membership = None;
        self.consumer.unassign_all();
        let group = self.options.group.clone();
        let coordinator = self.consumer.client.find_group_coordinator(&group).await?;
        let joined = self.ask_join(coordinator).await?;
        let assignments = if joined.leader == self.member_id {
            self.assign_members(&joined).await?
        } else {
            Vec::new()
        };
        let request = SyncGroupRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(joined.generation_id)
            .with_member_id(self.member_id.clone())
            .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
            .with_protocol_name(Some(StrBytes::from_static_str(RANGE)))
            .with_assignments(assignments);
        let answers = self
            .consumer
            .client
            .call_each(
                vec![(coordinator, request)],
                ANY_VERSION,
                self.rebalance_time_max(),
            )
            .await;
        let synced = only(answers)?;
        check(synced.error_code, || self.name(), None)?;
        let Some(assigned) = decode_assignment(synced.assignment) else {
            return Err(ClientError::Invalid {
                what: self.name(),
                reason: "the leader's assignment cannot be read".to_owned(),
            });
        };
        self.membership = Some(Membership {
            generation: joined.generation_id,
            coordinator,
            heartbeat_due: Instant::now() + self.options.heartbeat_interval,
        });
        self.begin(assigned).await
    }

    async fn ask_join(&mut self, coordinator: i32) -> Result<JoinGroupResponse, ClientError> {
        let metadata =
            encode_subscription(&self.options.topics).ok_or_else(|| ClientError::Invalid {
                what: self.name(),
                reason: "the topics' names are too long".to_owned(),
            })?;
        let milliseconds = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        // A coordinator first gives a new member its id (KIP-394).
        for _ in 0..2 {
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(StrBytes::from_static_str(RANGE))
                .with_metadata(metadata.clone());
            let request = JoinGroupRequest::default()
                .with_group_id(self.group_id())
                .with_session_timeout_ms(milliseconds(self.options.session_timeout))
                .with_rebalance_timeout_ms(milliseconds(self.options.rebalance_timeout))
                .with_member_id(self.member_id.clone())
                .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
                .with_protocols(vec![protocol]);
            let answers = self
                .consumer
                .client
                .call_each(
                    vec![(coordinator, request)],
                    ANY_VERSION,
                    self.rebalance_time_max(),
                )
                .await;
            let response = only(answers)?;
            if !response.member_id.is_empty() {
                self.member_id = response.member_id.clone();
            }
            if response.error_code == ErrorCode::MemberIdRequired.code() {
                continue;
            }
            check(response.error_code, || self.name(), None)?;
            return Ok(response);
        }
        Err(ClientError::Refused {
            what: self.name(),
            code: ErrorCode::MemberIdRequired,
            message: None,
        })
    }

    /// As the group's leader: every member's part.
    async fn assign_members(
        &mut self,
        joined: &JoinGroupResponse,
    ) -> Result<Vec<SyncGroupRequestAssignment>, ClientError> {
        let mut members = BTreeMap::new();
        for member in &joined.members {
            let topics = decode_subscription(member.metadata.clone()).unwrap_or_default();
            members.insert(member.member_id.to_string(), topics);
        }
        let mut partitions = BTreeMap::new();
        for topic in members.values().flatten() {
            if !partitions.contains_key(topic) {
                let ids = self.consumer.client.partitions_of(topic).await?;
                partitions.insert(topic.clone(), ids);
            }
        }
        let mut assignments = Vec::with_capacity(members.len());
        for (member, partitions) in assign(&members, &partitions) {
            let bytes = encode_assignment(&partitions).unwrap_or_default();
            assignments.push(
                SyncGroupRequestAssignment::default()
                    .with_member_id(text(&member))
                    .with_assignment(bytes),
            );
        }
        Ok(assignments)
    }

    /// Begins to read the assigned partitions where the group was.
    async fn begin(&mut self, assigned: Vec<TopicPartition>) -> Result<(), ClientError> {
        self.processed.clear();
        let committed = if assigned.is_empty() {
            Vec::new()
        } else {
            let group = self.options.group.clone();
            self.consumer.client.committed_offsets(&group).await?
        };
        for partition in assigned {
            let found = committed.iter().find(|(known, _)| *known == partition);
            let start = found.map_or(self.options.start, |(_, offset)| StartOffset::At(*offset));
            tracing::info!(%partition, ?start, group = self.options.group, "assigned");
            self.consumer.assign(partition, start).await?;
        }
        Ok(())
    }

    fn heartbeat_sent(&mut self) {
        if let Some(membership) = &mut self.membership {
            membership.heartbeat_due = Instant::now() + self.options.heartbeat_interval;
        }
    }

    fn rebalance_time_max(&self) -> Duration {
        self.options.rebalance_timeout + self.consumer.client.options.request_timeout
    }

    fn group_id(&self) -> GroupId {
        GroupId(text(&self.options.group))
    }

    fn name(&self) -> String {
        format!("group {}", self.options.group)
    }
}

impl Client {
    /// The broker that coordinates a group.
    pub(super) async fn find_group_coordinator(&mut self, group: &str) -> Result<i32, ClientError> {
        let request = FindCoordinatorRequest::default().with_key(text(group));
        let response = self
            .call_any(&request, FIND_COORDINATOR_VERSION_MAX)
            .await?;
        let message = response.error_message.map(|message| message.to_string());
        check(response.error_code, || format!("group {group}"), message)?;
        let address = format!("{}:{}", response.host, response.port);
        self.learn_broker(response.node_id.0, address);
        Ok(response.node_id.0)
    }
}

fn only<T>(answers: Vec<(i32, Result<T, ClientError>)>) -> Result<T, ClientError> {
    match answers.into_iter().next() {
        Some((_, answer)) => answer,
        None => Err(ClientError::Invalid {
            what: "a request".to_owned(),
            reason: "was not sent".to_owned(),
        }),
    }
}
