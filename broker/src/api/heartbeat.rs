//! Heartbeat 0-4 (KIP-345). REBALANCE_IN_PROGRESS tells a member to join again.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

/// Answers one request; all versions mean the same.
pub async fn handle(
    coordinator: &GroupCoordinator,
    _info: RequestInfo,
    request: HeartbeatRequest,
) -> HeartbeatResponse {
    coordinator.heartbeat(request).await
}
