//! ApiVersions, versions 0 to 4 (KIP-35, KIP-511, KIP-584).
//!
//! Of Kafka's features there is one, `transaction.version`: at its level 2 clients raise their epoch with each transaction and leave
//! the adding of partitions to the leaders (KIP-890).
//!
//! A request of a version that we do not know is answered with the body of version 0, error 35 and
//! the full list, so that a newer client can step down. The response header is always version 0,
//! as a client cannot know yet which header we would use.

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::versions::APIS;

use super::kafka::ApiVersionsRequest;
use super::kafka::api_versions_response::{
    ApiVersion, ApiVersionsResponse, FinalizedFeatureKey, SupportedFeatureKey,
};
use super::{Answer, Context, RequestError, encode};
use crate::transaction::state::EPOCH_BUMP_VERSION;
use streamgauge_protocol::messages::protocol::StrBytes;

const UNSUPPORTED_VERSION_ANSWER: i16 = 0;
/// First version whose clients know features that begin at level 0.
const LEVEL_0_VERSION: i16 = 4;
const TRANSACTION_VERSION: &str = "transaction.version";

pub async fn handle(context: Context, request: ApiVersionsRequest) -> ApiVersionsResponse {
    let mut response = supported(context.version);
    // As the epoch counts how far the metadata is.
    response.finalized_features_epoch = context.broker.controller.applied_offset();
    if context.version >= 3 && !is_valid_software(&request) {
        response.error_code = ErrorCode::InvalidRequest.code();
        response.api_keys = Vec::new();
    }
    response
}

/// The answer to a version that is not served.
pub fn unsupported_version(correlation_id: i32) -> Result<Answer, RequestError> {
    let mut response = supported(UNSUPPORTED_VERSION_ANSWER);
    response.error_code = ErrorCode::UnsupportedVersion.code();
    encode(
        "ApiVersions",
        correlation_id,
        UNSUPPORTED_VERSION_ANSWER,
        &response,
    )
}

fn supported(version: i16) -> ApiVersionsResponse {
    let api_keys = APIS
        .iter()
        .map(|api| {
            ApiVersion::default()
                .with_api_key(api.key)
                .with_min_version(api.advertised_min)
                .with_max_version(api.max)
        })
        .collect();
    let feature = StrBytes::from_static_str(TRANSACTION_VERSION);
    // Older clients fail, whatever they want of us, on a feature that begins at level 0 (KAFKA-17492).
    let tells_level_0 = version >= LEVEL_0_VERSION;
    let supported = tells_level_0.then(|| {
        SupportedFeatureKey::default()
            .with_name(feature.clone())
            .with_min_version(0)
            .with_max_version(EPOCH_BUMP_VERSION)
    });
    let finalized = FinalizedFeatureKey::default()
        .with_name(feature)
        .with_min_version_level(EPOCH_BUMP_VERSION)
        .with_max_version_level(EPOCH_BUMP_VERSION);
    ApiVersionsResponse::default()
        .with_api_keys(api_keys)
        .with_supported_features(supported.into_iter().collect())
        .with_finalized_features_epoch(-1)
        .with_finalized_features(vec![finalized])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_clients_are_not_told_of_features_that_begin_at_level_0() {
        for version in 0..=4 {
            let told = supported(version);
            assert_eq!(told.supported_features.len(), usize::from(version == 4));
            assert_eq!(
                told.finalized_features.len(),
                1,
                "what is on is told in all"
            );
        }
    }
}
