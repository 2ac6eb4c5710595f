//! The group coordinator of a broker: every group API as an async method that takes and returns the wire's messages.
//!
//! A group belongs to one partition of `__consumer_offsets` (Kafka's rule, [`GroupCoordinator::partition_for`]), and
//! is served by the leader of that partition. The host says which partitions it leads.

use super::classic::{JoinReply, Joined};
use super::config::GroupConfig;
use super::coordinator::{DeletedTopic, PartitionCoordinator, Reply, Request, RequestInfo, text};
use super::topics::TopicLookup;
use crate::coordinator::coordinators::{self, Coordinators};
use crate::coordinator::log::CoordinatorLog;
use crate::coordinator::machine::EndMarker;
use crate::coordinator::runtime::{Clock, RuntimeSettings};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, SyncGroupRequest,
    SyncGroupResponse, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use std::collections::HashMap;
use std::sync::Arc;
use streamgauge_storage::producer_state::VerificationGuard;
use uuid::Uuid;

/// All offsets partitions that this broker leads.
pub struct GroupCoordinator {
    pub(super) config: GroupConfig,
    pub(super) topics: Arc<dyn TopicLookup>,
    coordinators: Coordinators<PartitionCoordinator>,
}

impl GroupCoordinator {
    /// A coordinator that leads no partition yet.
    pub fn new(config: GroupConfig, topics: Arc<dyn TopicLookup>, clock: Clock) -> Self {
        let settings = RuntimeSettings {
            append_bytes_max: config.append_bytes_max,
            commit_timeout_ms: config.commit_timeout_ms,
            mailbox_requests_max: config.mailbox_requests_max,
        };
        Self {
            coordinators: Coordinators::new(settings, clock, config.offsets_topic_partitions),
            config,
            topics,
        }
    }

    /// The broker leads this offsets partition from now on; see [`Coordinators::become_leader`].
    pub fn become_leader(&self, partition: i32, log: Arc<dyn CoordinatorLog>) {
        self.coordinators
            .become_leader(partition, log, self.config.clone(), |_| {
                Box::new(|never| match never {})
            });
    }

    /// The broker does not lead this partition any more: its groups' waiting requests get NOT_COORDINATOR.
    pub fn resign(&self, partition: i32) {
        self.coordinators.resign(partition);
    }

    /// The offsets partition of a group.
    pub fn partition_for(&self, group_id: &str) -> i32 {
        self.coordinators.partition_for(group_id)
    }

    /// See [`Coordinators::set_partition_count`].
    pub fn set_partition_count(&self, count: i32) {
        self.coordinators.set_partition_count(count);
    }

    /// Topics are gone: removes their committed offsets here. Call on every broker.
    pub async fn topics_deleted(&self, topics: Vec<DeletedTopic>) {
        // One that is loading does it afterwards; of one that has moved, the new leader hears of the deletion too.
        let asked = self.coordinators.all().into_iter().map(|mailbox| {
            coordinators::ask(Some(mailbox), Request::TopicsDeleted(topics.clone()))
        });
        futures_util::future::join_all(asked).await;
    }

    /// Commits offsets within a transaction, which has been verified. Its topics exist, and have these ids.
    pub async fn commit_in_transaction(
        &self,
        request: TxnOffsetCommitRequest,
        topic_ids: HashMap<String, Uuid>,
        guard: Option<VerificationGuard>,
    ) -> Result<TxnOffsetCommitResponse, ResponseError> {
        let group_id = request.group_id.clone();
        let request = Request::CommitInTransaction {
            request,
            topic_ids,
            guard,
        };
        match self.ask_group(&group_id, request).await {
            Ok(Reply::CommitInTransaction(response)) => Ok(response),
            other => Err(unexpected(other)),
        }
    }

    /// Writes the end of a transaction into an offsets partition that is led here, and lets the offsets that it had hold, or not.
    pub async fn end_transaction(
        &self,
        partition: i32,
        marker: EndMarker,
    ) -> Result<(), ResponseError> {
        let request = Request::EndTransaction(marker);
        match self.coordinators.ask(partition, request).await {
            Ok(Reply::EndTransaction) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn ask_group(
        &self,
        group_id: &str,
        request: Request,
    ) -> Result<Reply, ResponseError> {
        self.coordinators.ask_for(group_id, request).await
    }

    /// JoinGroup 0-9; answers when the generation begins.
    pub async fn join_group(
        &self,
        info: RequestInfo,
        request: JoinGroupRequest,
    ) -> JoinGroupResponse {
        let version = info.api_version;
        let (group_id, member_id) = (request.group_id.clone(), request.member_id.to_string());
        let new_member_suffix = uuid::Uuid::new_v4().to_string();
        let reply = match self
            .ask_group(
                &group_id,
                Request::Join {
                    info,
                    request,
                    new_member_suffix,
                },
            )
            .await
        {
            Ok(Reply::Join(reply)) => reply,
            Ok(_) => JoinReply::Failed {
                error: ResponseError::UnknownServerError,
                member_id,
            },
            Err(error) => JoinReply::Failed { error, member_id },
        };
        join_response(reply, version)
    }

    /// SyncGroup 0-5; answers when the leader's assignment has committed.
    pub async fn sync_group(
        &self,
        info: RequestInfo,
        request: SyncGroupRequest,
    ) -> SyncGroupResponse {
        let named = request.protocol_name.is_some() && request.protocol_type.is_some();
        if info.api_version >= 5 && !named {
            let code = ResponseError::InconsistentGroupProtocol.code();
            return SyncGroupResponse::default().with_error_code(code);
        }
        let group_id = request.group_id.clone();
        let synced = match self.ask_group(&group_id, Request::Sync(request)).await {
            Ok(Reply::Sync(synced)) => synced,
            // The rebalance is lost with the state, and members do not expect to hear of loading here.
            Err(ResponseError::CoordinatorLoadInProgress) => {
                Err(ResponseError::RebalanceInProgress)
            }
            other => Err(unexpected(other)),
        };
        match synced {
            Ok(synced) => SyncGroupResponse::default()
                .with_protocol_type(synced.protocol_type.as_deref().map(text))
                .with_protocol_name(synced.protocol.as_deref().map(text))
                .with_assignment(synced.assignment),
            Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
        }
    }

    /// Heartbeat 0-4.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> HeartbeatResponse {
        let group_id = request.group_id.clone();
        let error = match self.ask_group(&group_id, Request::Heartbeat(request)).await {
            Ok(Reply::Heartbeat(Ok(()))) => 0,
            Ok(Reply::Heartbeat(Err(error))) => error.code(),
            // A loading coordinator keeps members alive anyway, so that clients need not rejoin.
            Err(ResponseError::CoordinatorLoadInProgress) => 0,
            other => unexpected(other).code(),
        };
        HeartbeatResponse::default().with_error_code(error)
    }

    /// LeaveGroup 0-5; from 3 on several members at once.
    pub async fn leave_group(
        &self,
        info: RequestInfo,
        mut request: LeaveGroupRequest,
    ) -> LeaveGroupResponse {
        let single = info.api_version <= 2;
        if single {
            request.members =
                vec![MemberIdentity::default().with_member_id(request.member_id.clone())];
        }
        let (group_id, members) = (request.group_id.clone(), request.members.clone());
        let results = match self.ask_group(&group_id, Request::Leave(request)).await {
            Ok(Reply::Leave(Ok(results))) => results,
            Ok(Reply::Leave(Err(error))) => {
                return LeaveGroupResponse::default().with_error_code(error.code());
            }
            other => {
                return LeaveGroupResponse::default().with_error_code(unexpected(other).code());
            }
        };
        let code = |result: &Result<(), ResponseError>| {
            result.as_ref().err().map_or(0, ResponseError::code)
        };
        let mut response = LeaveGroupResponse::default();
        if single {
            response.error_code = results.first().map_or(0, code);
            return response;
        }
        for (member, result) in members.into_iter().zip(&results) {
            response.members.push(
                MemberResponse::default()
                    .with_member_id(member.member_id)
                    .with_group_instance_id(member.group_instance_id)
                    .with_error_code(code(result)),
            );
        }
        response
    }

    /// DescribeGroups 0-6.
    pub async fn describe_groups(
        &self,
        info: RequestInfo,
        request: DescribeGroupsRequest,
    ) -> DescribeGroupsResponse {
        let mut response = DescribeGroupsResponse::default();
        for group_id in request.groups {
            let mut described = match self
                .ask_group(&group_id, Request::Describe(group_id.clone()))
                .await
            {
                Ok(Reply::Describe(Some(described))) => described,
                Ok(Reply::Describe(None)) => missing_group(group_id, info.api_version),
                other => DescribedGroup::default()
                    .with_group_id(group_id)
                    .with_error_code(unexpected(other).code()),
            };
            if request.include_authorized_operations
                && info.api_version >= 3
                && described.error_code == 0
            {
                described.authorized_operations = GROUP_OPERATIONS;
            }
            response.groups.push(described);
        }
        response
    }

    /// ListGroups 0-5, of the partitions led here. Filters ignore case, as Kafka's do.
    pub async fn list_groups(
        &self,
        info: RequestInfo,
        request: ListGroupsRequest,
    ) -> ListGroupsResponse {
        let mut response = ListGroupsResponse::default();
        for mailbox in self.coordinators.all() {
            match coordinators::ask(Some(mailbox), Request::List).await {
                Ok(Reply::List(groups)) => response.groups.extend(groups),
                Err(ResponseError::NotCoordinator) => {}
                other => {
                    let code = unexpected(other).code();
                    return ListGroupsResponse::default().with_error_code(code);
                }
            }
        }
        let passes = |filter: &[kafka_protocol::protocol::StrBytes], value: &str| {
            filter.is_empty()
                || filter
                    .iter()
                    .any(|wanted| wanted.eq_ignore_ascii_case(value))
        };
        response.groups.retain(|group| {
            passes(&request.states_filter, &group.group_state)
                && passes(&request.types_filter, &group.group_type)
        });
        for group in &mut response.groups {
            if info.api_version < 4 {
                group.group_state = Default::default();
            }
            if info.api_version < 5 {
                group.group_type = Default::default();
            }
        }
        response
    }

    /// DeleteGroups 0-2.
    pub async fn delete_groups(&self, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
        let mut response = DeleteGroupsResponse::default();
        for group_id in request.groups_names {
            let error = match self
                .ask_group(&group_id, Request::Delete(group_id.clone()))
                .await
            {
                Ok(Reply::Delete(Ok(()))) => 0,
                Ok(Reply::Delete(Err(error))) => error.code(),
                other => unexpected(other).code(),
            };
            response.results.push(
                DeletableGroupResult::default()
                    .with_group_id(group_id)
                    .with_error_code(error),
            );
        }
        response
    }
}

/// What may be done with a group, one bit an operation (`AclOperation` codes; `AclEntry.supportedOperations`): all of it, unless an
/// authorizer says less.
const GROUP_OPERATIONS: i32 = 1 << 3 // READ
    | 1 << 6 // DELETE
    | 1 << 8 // DESCRIBE
    | 1 << 10 // DESCRIBE_CONFIGS
    | 1 << 11; // ALTER_CONFIGS

/// The error in an answer, or the one that says the answer is of the wrong kind.
pub(super) fn unexpected(answer: Result<Reply, ResponseError>) -> ResponseError {
    answer.err().unwrap_or(ResponseError::UnknownServerError)
}

fn missing_group(group_id: GroupId, version: i16) -> DescribedGroup {
    let described = DescribedGroup::default()
        .with_group_id(group_id.clone())
        .with_group_state(text("Dead"));
    if version < 6 {
        return described;
    }
    let message = format!("Group {} not found.", group_id.as_str());
    described
        .with_error_code(ResponseError::GroupIdNotFound.code())
        .with_error_message(Some(text(&message)))
}

fn join_response(reply: JoinReply, version: i16) -> JoinGroupResponse {
    // Before version 7 the protocol's name cannot be null.
    let no_name = if version >= 7 {
        None
    } else {
        Some(Default::default())
    };
    match reply {
        JoinReply::Failed { error, member_id } => JoinGroupResponse::default()
            .with_error_code(error.code())
            .with_generation_id(-1)
            .with_protocol_name(no_name)
            .with_member_id(text(&member_id)),
        JoinReply::Joined(joined) => joined_response(joined, version),
    }
}

fn joined_response(joined: Joined, version: i16) -> JoinGroupResponse {
    let mut response = JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type(
            joined
                .protocol_type
                .as_deref()
                .filter(|_| version >= 7)
                .map(text),
        )
        .with_protocol_name(Some(text(joined.protocol.as_deref().unwrap_or_default())))
        .with_leader(text(&joined.leader))
        .with_skip_assignment(joined.skip_assignment && version >= 9)
        .with_member_id(text(&joined.member_id));
    for (member_id, instance, metadata) in joined.members {
        let instance = instance.as_deref().filter(|_| version >= 5).map(text);
        response.members.push(
            JoinGroupResponseMember::default()
                .with_member_id(text(&member_id))
                .with_group_instance_id(instance)
                .with_metadata(metadata),
        );
    }
    response
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
