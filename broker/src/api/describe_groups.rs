//! DescribeGroups 0-6 (KIP-430, 1043: an unknown group is an error from 6 on, before that it is Dead).

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    coordinator.describe_groups(info, request).await
}
