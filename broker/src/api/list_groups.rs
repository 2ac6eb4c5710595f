//! ListGroups 0-5 (KIP-518 states, KIP-848 types): the groups of the offsets partitions that this broker leads.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{ListGroupsRequest, ListGroupsResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    coordinator.list_groups(info, request).await
}
