//! What can go wrong between a client and its brokers.

use std::io;
use std::time::Duration;

use kafka_protocol::error::ParseResponseErrorCode;
use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::frame::FrameError;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no broker among {servers} answers: {reason}")]
    Unreachable { servers: String, reason: String },
    #[error("{address}: {source}")]
    Io { address: String, source: io::Error },
    #[error("{address} did not answer {api} within {}", humantime::format_duration(*.after))]
    Timeout {
        address: String,
        api: &'static str,
        after: Duration,
    },
    #[error("{address} does not serve {api} in a version that this client speaks")]
    Unsupported { address: String, api: &'static str },
    #[error("{address}: {source}")]
    Frame { address: String, source: FrameError },
    #[error("{address}: {reason}")]
    Protocol { address: String, reason: String },
    /// A broker's error code for `what`, with its own words if it gave any.
    #[error("{what}: {}", said(*.code, .message))]
    Refused {
        what: String,
        code: ErrorCode,
        message: Option<String>,
    },
    #[error("{what}: {reason}")]
    Invalid { what: String, reason: String },
}

impl ClientError {
    /// Whether the same request may succeed later: the connection failed, or Kafka lists the code as retriable.
    pub fn is_retriable(&self) -> bool {
        match self {
            ClientError::Unreachable { .. }
            | ClientError::Io { .. }
            | ClientError::Timeout { .. } => true,
            ClientError::Refused { code, .. } => code.is_retriable(),
            ClientError::Unsupported { .. }
            | ClientError::Frame { .. }
            | ClientError::Protocol { .. }
            | ClientError::Invalid { .. } => false,
        }
    }

    /// The broker's code, if a broker gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// `Err` unless `code` is 0.
pub(super) fn check(
    code: i16,
    what: impl FnOnce() -> String,
    message: Option<String>,
) -> Result<(), ClientError> {
    match code.err() {
        None => Ok(()),
        Some(code) => Err(ClientError::Refused {
            what: what(),
            code,
            message,
        }),
    }
}

fn said(code: ErrorCode, message: &Option<String>) -> String {
    match message {
        Some(message) if !message.is_empty() => format!("{message} ({code:?})"),
        _ => format!("{code:?}"),
    }
}
