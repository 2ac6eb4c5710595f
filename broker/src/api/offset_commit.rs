//! OffsetCommit 2-10 (KIP-211, 320, 345, 848; topic ids from 10 on).

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
