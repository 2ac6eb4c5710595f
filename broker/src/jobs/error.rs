//! Why a job stops.

use std::fmt::Display;

use thiserror::Error;

use super::log::LogError;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JobError {
    /// It may pass: the job is started again after a while.
    #[error("{0}")]
    Retry(String),
    /// It does not pass until somebody changes something.
    #[error("{0}")]
    Permanent(String),
    /// The internal topic holds the state of an earlier derived topic of this name.
    #[error("the internal topic belongs to an earlier topic of this name")]
    Stale,
}

impl JobError {
    pub fn retry(what: &str, error: impl Display) -> JobError {
        JobError::Retry(format!("{what}: {error}"))
    }

    pub fn corrupt(offset: i64, error: impl Display) -> JobError {
        JobError::Retry(format!(
            "internal partition, batch at offset {offset}: {error}"
        ))
    }
}

impl From<LogError> for JobError {
    fn from(error: LogError) -> JobError {
        JobError::Retry(error.to_string())
    }
}
