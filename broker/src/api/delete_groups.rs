//! DeleteGroups 0-2 (KIP-229). Only groups without members can be deleted.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse};

/// Answers one request; all versions mean the same.
pub async fn handle(
    coordinator: &GroupCoordinator,
    _info: RequestInfo,
    request: DeleteGroupsRequest,
) -> DeleteGroupsResponse {
    coordinator.delete_groups(request).await
}
