//! The group APIs: hand a request and what is known of its client to the coordinator.

use super::kafka::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest,
    ListGroupsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest,
    OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use super::{Context, find_coordinator as find};
use crate::controller::decide::GROUP_METADATA_TOPIC;
use crate::group::coordinator::RequestInfo;

fn info(context: &Context) -> RequestInfo {
    RequestInfo {
        client_id: context.client_id.clone().unwrap_or_default(),
        client_host: format!("/{}", context.peer.address.ip().to_canonical()),
        api_version: context.version,
    }
}

/// The offsets topic is made when somebody first looks for a coordinator, as in Kafka.
pub async fn find_coordinator(
    context: Context,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let broker = &context.broker;
    if let Err(refusal) = broker.coordinate_groups().await {
        tracing::warn!(%refusal, "the offsets topic could not be created");
    }
    find::handle(context.version, &request, |group| {
        let topic = broker
            .controller
            .read(|image| image.topic(GROUP_METADATA_TOPIC).cloned())?;
        let led = broker.leadership(topic.topic_id, broker.groups.partition_for(group))?;
        let leader = broker.endpoint_of(led.leader)?;
        Some(find::BrokerAddress {
            node_id: leader.node_id,
            host: leader.host,
            port: leader.port,
        })
    })
}

macro_rules! coordinated {
    ($($name:ident: $Request:ident -> $Response:ident;)*) => {
        $(pub async fn $name(context: Context, request: $Request) -> $Response {
            super::$name::handle(&context.broker.groups, info(&context), request).await
        })*
    };
}

coordinated! {
    join_group: JoinGroupRequest -> JoinGroupResponse;
    sync_group: SyncGroupRequest -> SyncGroupResponse;
    heartbeat: HeartbeatRequest -> HeartbeatResponse;
    leave_group: LeaveGroupRequest -> LeaveGroupResponse;
    offset_commit: OffsetCommitRequest -> OffsetCommitResponse;
    offset_fetch: OffsetFetchRequest -> OffsetFetchResponse;
    offset_delete: OffsetDeleteRequest -> OffsetDeleteResponse;
    describe_groups: DescribeGroupsRequest -> DescribeGroupsResponse;
    list_groups: ListGroupsRequest -> ListGroupsResponse;
    delete_groups: DeleteGroupsRequest -> DeleteGroupsResponse;
}
