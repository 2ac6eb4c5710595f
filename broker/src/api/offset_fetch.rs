//! OffsetFetch 1-9 (KIP-320, 447, 709 several groups). Version 10, with topic ids, is understood but not served yet.

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
