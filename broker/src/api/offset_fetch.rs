//! OffsetFetch 1-10 (KIP-320, 447, 709 several groups, 848 topic ids from version 10 on).

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    coordinator.offset_fetch(info, request).await
}
