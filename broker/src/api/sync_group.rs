//! SyncGroup 0-5 (KIP-345, 559). Followers wait until the leader's assignment has committed.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    coordinator.sync_group(info, request).await
}
