//! All groups of one offsets partition. A request is decided on the state that all earlier decisions have left, and
//! yields a [`Decision`]: records to append, and replies to give once these and all earlier records have committed.
//!
//! Offsets and removals of groups change only by [`PartitionCoordinator::replay`], live as after a failover. A living group's sessions
//! and rebalances are memory only; what must outlive the broker is in the records that each generation writes.

use super::classic::GroupState;
use super::classic::{
    ClassicGroup, Effects, GroupLimits, JoinReply, SyncReply, SyncRequest, Token,
};
use super::config::GroupConfig;
use super::member::{JoinRequest, Protocol};
use super::offsets::{OffsetStore, tombstone};
use super::pending::PendingOffsets;
use super::records::CoordinatorRecord;
use crate::coordinator::machine::{self, EndMarker, Entry, Machine};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponseGroup;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest,
    OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, SyncGroupRequest,
    TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::StrBytes;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use streamgauge_protocol::batch::TransactionResult;
use streamgauge_storage::producer_state::VerificationGuard;
use uuid::Uuid;

/// Who sent a request, and how.
#[derive(Clone, Debug, Default)]
pub struct RequestInfo {
    pub client_id: String,
    /// As Kafka shows it: `/127.0.0.1`.
    pub client_host: String,
    pub api_version: i16,
}

/// A request to the coordinator of one offsets partition. Topics are by name and known to exist.
#[derive(Debug)]
pub enum Request {
    Join {
        info: RequestInfo,
        request: JoinGroupRequest,
        new_member_suffix: String,
    },
    Sync(SyncGroupRequest),
    Heartbeat(HeartbeatRequest),
    Leave(LeaveGroupRequest),
    CommitOffsets {
        request: OffsetCommitRequest,
        api_version: i16,
    },
    /// Its topics exist, and these are their ids; the transaction has been verified.
    CommitInTransaction {
        request: TxnOffsetCommitRequest,
        topic_ids: HashMap<String, Uuid>,
        guard: Option<VerificationGuard>,
    },
    /// The transaction coordinator ends a transaction in this partition.
    EndTransaction(EndMarker),
    FetchOffsets {
        group: OffsetFetchRequestGroup,
        require_stable: bool,
    },
    DeleteOffsets(OffsetDeleteRequest),
    Describe(GroupId),
    List,
    Delete(GroupId),
    TopicsDeleted(Vec<DeletedTopic>),
}

/// A topic that is gone. Another may have its name by now, so the id says which offsets go with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeletedTopic {
    pub name: String,
    pub id: Uuid,
}

/// The answer to a [`Request`] of the same kind.
#[derive(Debug)]
pub enum Reply {
    Join(JoinReply),
    Sync(SyncReply),
    Heartbeat(Result<(), ResponseError>),
    Leave(Result<Vec<Result<(), ResponseError>>, ResponseError>),
    CommitOffsets(OffsetCommitResponse),
    CommitInTransaction(TxnOffsetCommitResponse),
    EndTransaction,
    FetchOffsets(OffsetFetchResponseGroup),
    DeleteOffsets(OffsetDeleteResponse),
    Describe(Option<DescribedGroup>),
    List(Vec<ListedGroup>),
    Delete(Result<(), ResponseError>),
    TopicsDeleted,
}

pub type Decision = machine::Decision<CoordinatorRecord, Reply, Infallible>;

/// The groups and offsets of one offsets partition.
#[derive(Debug)]
pub struct PartitionCoordinator {
    pub(super) config: GroupConfig,
    pub(super) groups: HashMap<String, ClassicGroup>,
    pub(super) offsets: OffsetStore,
    pub(super) pending: PendingOffsets,
    timers: BTreeSet<(i64, String)>,
    next_retention_check_ms: i64,
}

impl Machine for PartitionCoordinator {
    const NAME: &'static str = "group coordinator";
    type Settings = GroupConfig;
    type Request = Request;
    type Reply = Reply;
    type Record = CoordinatorRecord;
    type Effect = Infallible;

    fn new(config: GroupConfig, now_ms: i64) -> Self {
        let next_retention_check_ms =
            now_ms.saturating_add(config.offsets_retention_check_interval_ms);
        Self {
            config,
            groups: HashMap::new(),
            offsets: OffsetStore::default(),
            pending: PendingOffsets::default(),
            timers: BTreeSet::new(),
            next_retention_check_ms,
        }
    }

    fn replay(&mut self, entry: Entry<CoordinatorRecord>, now_ms: i64) {
        match entry {
            Entry::Record(record) => self.replay_record(&record, now_ms),
            Entry::Pending {
                producer_id,
                record:
                    CoordinatorRecord::OffsetCommit {
                        key,
                        value: Some(value),
                    },
            } => {
                self.create_simple_group(&key.group_id, now_ms);
                self.pending.add(producer_id, &key, value);
            }
            // Transactions have offsets only.
            Entry::Pending { .. } => {}
            Entry::Marker {
                producer_id,
                result,
            } => {
                let committed = result == TransactionResult::Commit;
                for (key, value) in self.pending.end(producer_id, committed) {
                    self.create_simple_group(&key.group_id, now_ms);
                    self.offsets.replay(&key, Some(&value));
                }
            }
        }
    }

    fn next_deadline(&self) -> i64 {
        let group = self.timers.first().map_or(i64::MAX, |(at_ms, _)| *at_ms);
        group.min(self.next_retention_check_ms)
    }

    fn tick(&mut self, now_ms: i64) -> Decision {
        let mut decision = Decision::default();
        let due: Vec<String> = self
            .timers
            .iter()
            .take_while(|(at, _)| *at <= now_ms)
            .map(|(_, id)| id.clone())
            .collect();
        for group_id in due {
            self.with_group(&group_id, &mut decision, |group, effects| {
                group.tick(now_ms, effects)
            });
        }
        if now_ms >= self.next_retention_check_ms {
            self.next_retention_check_ms =
                now_ms.saturating_add(self.config.offsets_retention_check_interval_ms);
            decision.records.extend(self.expire_offsets(now_ms));
        }
        decision
    }

    fn handle(&mut self, request: Request, token: Token, now_ms: i64) -> Decision {
        match request {
            Request::Join {
                info,
                request,
                new_member_suffix,
            } => self.join(info, request, new_member_suffix, token, now_ms),
            Request::Sync(request) => self.sync(request, token, now_ms),
            Request::Heartbeat(request) => self.heartbeat(&request, token, now_ms),
            Request::Leave(request) => self.leave(&request, token, now_ms),
            Request::CommitOffsets {
                request,
                api_version,
            } => self.commit_offsets(&request, api_version, token, now_ms),
            Request::CommitInTransaction {
                request,
                topic_ids,
                guard,
            } => self.commit_in_transaction(&request, &topic_ids, guard, token, now_ms),
            Request::EndTransaction(marker) => self.end_transaction(marker, token, now_ms),
            Request::FetchOffsets {
                group,
                require_stable,
            } => {
                let fetched = self.fetch_offsets(&group, require_stable);
                Decision::reply(token, Reply::FetchOffsets(fetched))
            }
            Request::DeleteOffsets(request) => self.delete_offsets(&request, token, now_ms),
            Request::Describe(group) => {
                Decision::reply(token, Reply::Describe(self.describe(&group)))
            }
            Request::List => Decision::reply(token, Reply::List(self.list())),
            Request::Delete(group) => self.delete_group(&group, token, now_ms),
            Request::TopicsDeleted(topics) => {
                let mut decision = self.forget_topics(&topics.into_iter().collect(), now_ms);
                decision.replies.push((token, Reply::TopicsDeleted));
                decision
            }
        }
    }

    /// The topics' offsets go as soon as they are known.
    fn waits_for_loading(request: &Request) -> bool {
        matches!(request, Request::TopicsDeleted(_))
    }
}

impl PartitionCoordinator {
    /// Applies a record that holds by itself.
    pub(super) fn replay_record(&mut self, record: &CoordinatorRecord, now_ms: i64) {
        match record {
            CoordinatorRecord::OffsetCommit { key, value } => {
                match value {
                    Some(_) => {
                        self.create_simple_group(&key.group_id, now_ms);
                        self.pending.supersede(key);
                    }
                    None => self.pending.forget(key),
                }
                self.offsets.replay(key, value.as_ref());
            }
            CoordinatorRecord::GroupMetadata {
                group_id,
                value: None,
            } => self.drop_group(group_id),
            CoordinatorRecord::GroupMetadata {
                group_id,
                value: Some(value),
            } => {
                self.drop_group(group_id);
                let group = ClassicGroup::from_value(group_id, value, self.limits(), now_ms);
                self.timers
                    .insert((group.next_deadline(), group_id.clone()));
                self.groups.insert(group_id.clone(), group);
            }
        }
    }

    /// A decision's effect on what is persisted. A living group has already become what its record says.
    pub(super) fn apply(&mut self, records: &[CoordinatorRecord], now_ms: i64) {
        for record in records {
            if !matches!(
                record,
                CoordinatorRecord::GroupMetadata { value: Some(_), .. }
            ) {
                self.replay_record(record, now_ms);
            }
        }
    }

    /// Offsets make a group, if nothing else has: an empty one without a protocol.
    fn create_simple_group(&mut self, group_id: &str, now_ms: i64) {
        if !self.groups.contains_key(group_id) {
            self.create_group(group_id, now_ms);
        }
    }

    fn limits(&self) -> GroupLimits {
        GroupLimits {
            initial_rebalance_delay_ms: self.config.initial_rebalance_delay_ms,
            group_size_max: self.config.group_size_max,
            record_bytes_max: self.config.group_record_bytes_max,
        }
    }

    fn create_group(&mut self, group_id: &str, now_ms: i64) {
        let group = ClassicGroup::new(group_id, self.limits(), now_ms);
        self.timers
            .insert((group.next_deadline(), group_id.to_owned()));
        self.groups.insert(group_id.to_owned(), group);
    }

    fn drop_group(&mut self, group_id: &str) {
        if let Some(group) = self.groups.remove(group_id) {
            self.timers
                .remove(&(group.next_deadline(), group_id.to_owned()));
        }
    }

    /// Runs one step of a group, if it exists, and keeps its timer in order.
    pub(super) fn with_group<T>(
        &mut self,
        group_id: &str,
        decision: &mut Decision,
        step: impl FnOnce(&mut ClassicGroup, &mut Effects) -> T,
    ) -> Option<T> {
        let group = self.groups.get_mut(group_id)?;
        let before = group.next_deadline();
        let mut effects = Effects::default();
        let result = step(group, &mut effects);
        let after = group.next_deadline();
        if before != after {
            self.timers.remove(&(before, group_id.to_owned()));
            self.timers.insert((after, group_id.to_owned()));
        }
        decision.records.extend(effects.records);
        decision.replies.extend(
            effects
                .joins
                .into_iter()
                .map(|(token, reply)| (token, Reply::Join(reply))),
        );
        decision.replies.extend(
            effects
                .syncs
                .into_iter()
                .map(|(token, reply)| (token, Reply::Sync(reply))),
        );
        Some(result)
    }

    fn join(
        &mut self,
        info: RequestInfo,
        request: JoinGroupRequest,
        suffix: String,
        token: Token,
        now_ms: i64,
    ) -> Decision {
        let member_id = request.member_id.to_string();
        let fail = |error| {
            Decision::reply(
                token,
                Reply::Join(JoinReply::Failed {
                    error,
                    member_id: member_id.clone(),
                }),
            )
        };
        if request.group_id.is_empty() {
            return fail(ResponseError::InvalidGroupId);
        }
        let bounds = self.config.session_timeout_ms_min..=self.config.session_timeout_ms_max;
        if !bounds.contains(&request.session_timeout_ms) {
            return fail(ResponseError::InvalidSessionTimeout);
        }
        let group_id = request.group_id.to_string();
        let is_new = !self.groups.contains_key(&group_id);
        if is_new && !member_id.is_empty() {
            return fail(ResponseError::UnknownMemberId);
        }
        if is_new {
            self.create_group(&group_id, now_ms);
        }
        let request = join_request(info, request, suffix);
        let mut decision = Decision::default();
        self.with_group(&group_id, &mut decision, |group, effects| {
            group.join(request, token, now_ms, effects)
        });
        if is_new && decision.records.is_empty() {
            let unused = self
                .groups
                .get(&group_id)
                .is_some_and(ClassicGroup::is_unused);
            if unused {
                // The very first join was refused: nothing is left behind.
                self.drop_group(&group_id);
            }
        }
        decision
    }

    fn sync(&mut self, request: SyncGroupRequest, token: Token, now_ms: i64) -> Decision {
        let group_id = request.group_id.to_string();
        if group_id.is_empty() {
            return Decision::reply(token, Reply::Sync(Err(ResponseError::InvalidGroupId)));
        }
        let request = SyncRequest {
            member_id: request.member_id.to_string(),
            group_instance_id: request.group_instance_id.map(|id| id.to_string()),
            generation: request.generation_id,
            protocol_type: request.protocol_type.map(|text| text.to_string()),
            protocol: request.protocol_name.map(|text| text.to_string()),
            assignments: request
                .assignments
                .into_iter()
                .map(|a| (a.member_id.to_string(), a.assignment))
                .collect(),
        };
        let mut decision = Decision::default();
        let done = self.with_group(&group_id, &mut decision, |group, effects| {
            group.sync(request, token, now_ms, effects)
        });
        if done.is_none() {
            decision
                .replies
                .push((token, Reply::Sync(Err(ResponseError::UnknownMemberId))));
        }
        decision
    }

    fn heartbeat(&mut self, request: &HeartbeatRequest, token: Token, now_ms: i64) -> Decision {
        let mut decision = Decision::default();
        let instance = request.group_instance_id.as_deref();
        let result = if request.group_id.is_empty() {
            Err(ResponseError::InvalidGroupId)
        } else {
            let alive = self.with_group(&request.group_id, &mut decision, |group, _| {
                group.heartbeat(&request.member_id, instance, request.generation_id, now_ms)
            });
            alive.unwrap_or(Err(ResponseError::UnknownMemberId))
        };
        decision.replies.push((token, Reply::Heartbeat(result)));
        decision
    }

    fn leave(&mut self, request: &LeaveGroupRequest, token: Token, now_ms: i64) -> Decision {
        if request.group_id.is_empty() {
            return Decision::reply(token, Reply::Leave(Err(ResponseError::InvalidGroupId)));
        }
        let mut members: Vec<(String, Option<String>)> = Vec::with_capacity(request.members.len());
        for member in &request.members {
            let instance = member.group_instance_id.as_ref().map(|id| id.to_string());
            members.push((member.member_id.to_string(), instance));
        }
        let mut decision = Decision::default();
        let results = self.with_group(&request.group_id, &mut decision, |group, effects| {
            group.leave(&members, now_ms, effects)
        });
        let results =
            results.unwrap_or_else(|| vec![Err(ResponseError::UnknownMemberId); members.len()]);
        decision.replies.push((token, Reply::Leave(Ok(results))));
        decision
    }

    fn delete_group(&mut self, group_id: &str, token: Token, now_ms: i64) -> Decision {
        let error = match self.groups.get(group_id) {
            None => Some(ResponseError::GroupIdNotFound),
            Some(group) if group.state() != GroupState::Empty => Some(ResponseError::NonEmptyGroup),
            Some(_) => None,
        };
        if let Some(error) = error {
            return Decision::reply(token, Reply::Delete(Err(error)));
        }
        let mut records = self.offsets.tombstones(group_id, |_, _, _| true);
        for (topic, partition) in self.pending.partitions(group_id) {
            if self.offsets.get(group_id, topic, partition).is_none() {
                records.push(tombstone(group_id, topic, partition));
            }
        }
        records.push(CoordinatorRecord::GroupMetadata {
            group_id: group_id.to_owned(),
            value: None,
        });
        self.apply(&records, now_ms);
        Decision {
            records,
            ..Decision::reply(token, Reply::Delete(Ok(())))
        }
    }

    fn describe(&self, group_id: &GroupId) -> Option<DescribedGroup> {
        let group = self.groups.get(group_id.as_str())?;
        let stable = group.state() == GroupState::Stable;
        let protocol = group.protocol().filter(|_| stable).unwrap_or_default();
        let mut described = DescribedGroup::default()
            .with_group_id(group_id.clone())
            .with_group_state(text(group.state().name()))
            .with_protocol_type(text(group.protocol_type().unwrap_or_default()))
            .with_protocol_data(text(protocol));
        for member in group.members() {
            let mut shown = DescribedGroupMember::default()
                .with_member_id(text(&member.member_id))
                .with_group_instance_id(member.group_instance_id.as_deref().map(text))
                .with_client_id(text(&member.client_id))
                .with_client_host(text(&member.client_host));
            if stable {
                shown.member_metadata = member.metadata(protocol);
                shown.member_assignment = member.assignment.clone();
            }
            described.members.push(shown);
        }
        Some(described)
    }

    fn list(&self) -> Vec<ListedGroup> {
        let listed = self.groups.iter().map(|(group_id, group)| {
            ListedGroup::default()
                .with_group_id(GroupId(text(group_id)))
                .with_protocol_type(text(group.protocol_type().unwrap_or_default()))
                .with_group_state(text(group.state().name()))
                .with_group_type(text("classic"))
        });
        listed.collect()
    }
}

/// Owned text for a response.
pub fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn join_request(
    info: RequestInfo,
    request: JoinGroupRequest,
    new_member_suffix: String,
) -> JoinRequest {
    // JoinGroup 0 knows only the session's timeout.
    let knows_rebalance_timeout = info.api_version >= 1 && request.rebalance_timeout_ms >= 0;
    let rebalance_timeout_ms = if knows_rebalance_timeout {
        request.rebalance_timeout_ms
    } else {
        request.session_timeout_ms
    };
    let protocols = request.protocols.into_iter();
    JoinRequest {
        member_id: request.member_id.to_string(),
        group_instance_id: request.group_instance_id.map(|id| id.to_string()),
        requires_known_member_id: info.api_version >= 4,
        supports_skip_assignment: info.api_version >= 9,
        client_id: info.client_id,
        client_host: info.client_host,
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms,
        protocol_type: request.protocol_type.to_string(),
        // Copied, so that a stored member does not keep its whole request frame alive.
        protocols: protocols
            .map(|p| Protocol {
                name: p.name.to_string(),
                metadata: bytes::Bytes::copy_from_slice(&p.metadata),
            })
            .collect(),
        new_member_suffix,
    }
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
