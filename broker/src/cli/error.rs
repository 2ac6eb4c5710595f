//! Why a command failed.

use std::io;

use thiserror::Error;

use crate::client::ClientError;

#[derive(Debug, Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}")]
    Refused(String),
    /// Every mistake has already been told.
    #[error("failed")]
    Told,
    /// Whoever read our output has gone: no failure.
    #[error("the output is closed")]
    OutputClosed,
}

impl CommandError {
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> CommandError {
        let what = what.into();
        |source| CommandError::Io { what, source }
    }

    /// What a write to stdout can meet.
    pub fn output(source: io::Error) -> CommandError {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return CommandError::OutputClosed;
        }
        CommandError::Io {
            what: "stdout".to_owned(),
            source,
        }
    }
}
