//! OffsetDelete 0 (KIP-496). Offsets of topics that the group still consumes are kept.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

/// Answers one request; all versions mean the same.
pub async fn handle(
    coordinator: &GroupCoordinator,
    _info: RequestInfo,
    request: OffsetDeleteRequest,
) -> OffsetDeleteResponse {
    coordinator.offset_delete(request).await
}
