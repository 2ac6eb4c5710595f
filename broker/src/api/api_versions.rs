//! ApiVersions, versions 0 to 4 (KIP-35, KIP-511, KIP-584).
//!
//! A request of a version that we do not know is answered with the body of version 0, error 35 and
//! the full list, so that a newer client can step down. The response header is always version 0,
//! as a client cannot know yet which header we would use.

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::versions::APIS;

use super::kafka::ApiVersionsRequest;
use super::kafka::api_versions_response::{ApiVersion, ApiVersionsResponse};
use super::{Answer, Context, RequestError, encode};

const UNSUPPORTED_VERSION_ANSWER: i16 = 0;

pub async fn handle(context: Context, request: ApiVersionsRequest) -> ApiVersionsResponse {
    let mut response = supported();
    if context.version >= 3 && !is_valid_software(&request) {
        response.error_code = ErrorCode::InvalidRequest.code();
        response.api_keys = Vec::new();
    }
    response
}

/// The answer to a version that is not served.
pub fn unsupported_version(correlation_id: i32) -> Result<Answer, RequestError> {
    let mut response = supported();
    response.error_code = ErrorCode::UnsupportedVersion.code();
    encode(
        "ApiVersions",
        correlation_id,
        UNSUPPORTED_VERSION_ANSWER,
        &response,
    )
}

fn supported() -> ApiVersionsResponse {
    let api_keys = APIS
        .iter()
        .map(|api| {
            ApiVersion::default()
                .with_api_key(api.key)
                .with_min_version(api.advertised_min)
                .with_max_version(api.max)
        })
        .collect();
    ApiVersionsResponse::default()
        .with_api_keys(api_keys)
        .with_finalized_features_epoch(-1)
}

/// `ApiVersionsRequest.isValid`: name and version are given, in characters fit for metrics.
fn is_valid_software(request: &ApiVersionsRequest) -> bool {
    [
        &request.client_software_name,
        &request.client_software_version,
    ]
    .into_iter()
    .all(|text| {
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let bytes = text.as_bytes();
        edge(bytes.first().copied())
            && edge(bytes.last().copied())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    })
}
