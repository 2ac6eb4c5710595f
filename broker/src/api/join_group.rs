//! JoinGroup 0-9 (KIP-134, 345, 394, 559, 800, 814). The answer comes when the generation begins, so it may take as long
//! as the rebalance timeout.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    coordinator.join_group(info, request).await
}
