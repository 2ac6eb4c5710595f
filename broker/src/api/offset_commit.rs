//! OffsetCommit 2-9 (KIP-211, 320, 345, 848). Version 10, with topic ids, is understood but not served yet.

use crate::group::coordinator::RequestInfo;
use crate::group::service::GroupCoordinator;
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};

/// Answers one request; the version and the client are in `info`.
pub async fn handle(
    coordinator: &GroupCoordinator,
    info: RequestInfo,
    request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    coordinator.offset_commit(info, request).await
}
