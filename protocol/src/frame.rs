//! Frames and their headers, both directions.
//!
//! ```text
//! request:  size i32 │ api key i16 │ version i16 │ correlation id i32 │ client id nullable string │ tags (header v2) │ body
//! response: size i32 │ correlation id i32 │ tags (header v1) │ body
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

use crate::guard::{self, GuardError};
use crate::versions::{self, Api};

/// The size field in front of every frame.
pub const FRAME_SIZE_BYTES: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("frame size {size} is not between 1 and {limit}")]
    Size { size: i32, limit: usize },
    #[error("frame ends inside its header")]
    ShortHeader,
    #[error("client id is not UTF-8")]
    ClientId,
    #[error("api key {0} is not served")]
    UnknownApi(i16),
    #[error("request header: {0}")]
    HeaderTags(#[from] GuardError),
    #[error("{0}: {1}")]
    Codec(&'static str, String),
}

/// Checks the size field of a frame before anything is read or allocated for it.
pub fn frame_bytes(size: [u8; FRAME_SIZE_BYTES], bytes_max: usize) -> Result<usize, FrameError> {
    let size = i32::from_be_bytes(size);
    match usize::try_from(size) {
        Ok(bytes) if bytes > 0 && bytes <= bytes_max => Ok(bytes),
        _ => Err(FrameError::Size {
            size,
            limit: bytes_max,
        }),
    }
}

/// What every request begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHeader {
    pub api_key: i16,
    pub api_version: i16,
    pub correlation_id: i32,
    pub client_id: Option<StrBytes>,
}

/// Key and version of a request, before anything else is looked at.
pub fn peek_api(frame: &[u8]) -> Result<(i16, i16), FrameError> {
    let [a, b, c, d, ..] = *frame else {
        return Err(FrameError::ShortHeader);
    };
    Ok((i16::from_be_bytes([a, b]), i16::from_be_bytes([c, d])))
}

/// Takes the header off a request frame (without its size field) and leaves the body. Never panics.
///
/// An ApiVersions request of an unknown version decodes too, so that it can be answered with the versions that are known.
pub fn take_request_header(frame: &mut Bytes) -> Result<(RequestHeader, &'static Api), FrameError> {
    let (api_key, api_version) = peek_api(frame)?;
    let api = versions::lookup(api_key).ok_or(FrameError::UnknownApi(api_key))?;
    frame.advance(4);
    let correlation_id = frame.try_get_i32().map_err(|_| FrameError::ShortHeader)?;
    let length = frame.try_get_i16().map_err(|_| FrameError::ShortHeader)?;
    let client_id = match usize::try_from(length) {
        Ok(length) if length <= frame.len() => {
            Some(StrBytes::from_utf8(frame.split_to(length)).map_err(|_| FrameError::ClientId)?)
        }
        Err(_) if length == -1 => None,
        _ => return Err(FrameError::ShortHeader),
    };
    if api.request_header_version(api_version) >= 2 {
        let consumed = guard::check_tags(frame)?;
        frame.advance(consumed);
    }
    Ok((
        RequestHeader {
            api_key,
            api_version,
            correlation_id,
            client_id,
        },
        api,
    ))
}

/// A whole response frame, size field included. `version` is the codec's, see [`Api::codec_version`].
pub fn encode_response<R: Encodable + HeaderVersion>(
    correlation_id: i32,
    version: i16,
    response: &R,
) -> Result<Bytes, FrameError> {
    let failed = |error: &dyn std::fmt::Display| {
        FrameError::Codec("encoding a response", format!("{error:#}"))
    };
    let size = response
        .compute_size(version)
        .map_err(|error| failed(&error))?;
    let mut out = BytesMut::with_capacity(FRAME_SIZE_BYTES + 5 + size);
    out.put_i32(0);
    out.put_i32(correlation_id);
    if R::header_version(version) >= 1 {
        out.put_u8(0);
    }
    response
        .encode(&mut out, version)
        .map_err(|error| failed(&error))?;
    finish(out)
}

/// A whole request frame, size field included.
pub fn encode_request<R: Request>(
    correlation_id: i32,
    client_id: &str,
    version: i16,
    request: &R,
) -> Result<Bytes, FrameError> {
    let failed = |error: &dyn std::fmt::Display| {
        FrameError::Codec("encoding a request", format!("{error:#}"))
    };
    let client_id_length = i16::try_from(client_id.len()).map_err(|error| failed(&error))?;
    let mut out = BytesMut::new();
    out.put_i32(0);
    out.put_i16(R::KEY);
    out.put_i16(version);
    out.put_i32(correlation_id);
    out.put_i16(client_id_length);
    out.put_slice(client_id.as_bytes());
    if R::header_version(version) >= 2 {
        out.put_u8(0);
    }
    request
        .encode(&mut out, version)
        .map_err(|error| failed(&error))?;
    finish(out)
}

/// Correlation id and body of a response frame (without its size field). For answers from a broker that one trusts: lengths inside the
/// body are the message crate's to check.
pub fn decode_response<R: Decodable + HeaderVersion>(
    mut frame: Bytes,
    version: i16,
) -> Result<(i32, R), FrameError> {
    let correlation_id = frame.try_get_i32().map_err(|_| FrameError::ShortHeader)?;
    if R::header_version(version) >= 1 {
        let consumed = guard::check_tags(&frame)?;
        frame.advance(consumed);
    }
    let body = R::decode(&mut frame, version)
        .map_err(|error| FrameError::Codec("decoding a response", format!("{error:#}")))?;
    Ok((correlation_id, body))
}

/// Guards and decodes a request's body, in this order; `frame` is what [`take_request_header`] left.
pub fn decode_request<R: Decodable>(
    api: &Api,
    version: i16,
    mut frame: Bytes,
) -> Result<R, FrameError> {
    guard::check_request(api, version, &frame)?;
    R::decode(&mut frame, api.codec_version(version))
        .map_err(|error| FrameError::Codec(api.name, format!("{error:#}")))
}

fn finish(mut out: BytesMut) -> Result<Bytes, FrameError> {
    let size = i32::try_from(out.len() - FRAME_SIZE_BYTES)
        .map_err(|error| FrameError::Codec("framing", error.to_string()))?;
    out[..FRAME_SIZE_BYTES].copy_from_slice(&size.to_be_bytes());
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::{ApiVersionsResponse, MetadataRequest};

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert!(frame_bytes([0, 0, 0, 0], 10).is_err());
        assert!(frame_bytes([0xff; 4], 10).is_err());
        assert!(frame_bytes([0, 0, 0, 11], 10).is_err());
        assert_eq!(frame_bytes([0, 0, 0, 10], 10).unwrap(), 10);
    }

    #[test]
    fn every_cut_of_a_header_is_an_error_and_no_panic() {
        let frame = encode_request(7, "me", 12, &MetadataRequest::default())
            .unwrap()
            .slice(4..);
        let (header, api) = take_request_header(&mut frame.clone()).unwrap();
        assert_eq!(
            (header.correlation_id, header.client_id.as_deref(), api.name),
            (7, Some("me"), "Metadata")
        );
        for length in 0..13 {
            assert!(take_request_header(&mut frame.slice(..length)).is_err());
        }
    }

    #[test]
    fn the_header_of_an_api_versions_response_has_no_tags() {
        let frame = encode_response(1, 3, &ApiVersionsResponse::default()).unwrap();
        assert_eq!(&frame[4..], [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn eight_hostile_bytes_are_refused_before_the_codec_sees_them() {
        let api = versions::lookup(3).unwrap();
        let body = Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff]);
        assert!(matches!(
            decode_request::<MetadataRequest>(api, 1, body),
            Err(FrameError::HeaderTags(_))
        ));
    }
}
