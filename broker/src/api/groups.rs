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
use crate::controller::decide::{GROUP_METADATA_TOPIC, TRANSACTION_STATE_TOPIC};
use crate::group::coordinator::RequestInfo;

fn info(context: &Context) -> RequestInfo {
    RequestInfo {
        client_id: context.client_id.clone().unwrap_or_default(),
        client_host: format!("/{}", context.peer.address.ip().to_canonical()),
        api_version: context.version,
    }
}

/// The coordinators' topics are made when somebody first looks for one, as in Kafka.
pub async fn find_coordinator(
    context: Context,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let broker = &context.broker;
    let coordinated = match find::Kind::of(&request) {
        Some(find::Kind::Transaction) => broker.coordinate_transactions().await,
        _ => broker.coordinate_groups().await,
    };
    if let Err(refusal) = coordinated {
        tracing::warn!(%refusal, "the topic of the coordinators could not be created");
    }
    find::handle(context.version, &request, |kind, key| {
        let (topic, partition) = match kind {
            find::Kind::Group => (GROUP_METADATA_TOPIC, broker.groups.partition_for(key)),
            find::Kind::Transaction => {
                let partition = broker.transactions.partition_for(key);
                (TRANSACTION_STATE_TOPIC, partition)
            }
        };
        let topic = broker
            .controller
            .read(|image| image.topic(topic).cloned())?;
        let led = broker.leadership(topic.topic_id, partition)?;
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
