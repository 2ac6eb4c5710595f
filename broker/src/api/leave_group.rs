//! LeaveGroup 0-5 (KIP-345 several members, KIP-800 reasons).

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    coordinator.leave_group(info, request).await
}
