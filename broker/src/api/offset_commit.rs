//! OffsetCommit 2-10 (KIP-211, 320, 345, 848). From version 10 on a topic is known by its id alone, so a commit for a deleted topic
//! does not reach the one that took its name.

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
