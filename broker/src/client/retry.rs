//! When to try again: doubling waits under one deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::ClientError;

const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Kafka's `retry.backoff.max.ms`.
const BACKOFF_MAX: Duration = Duration::from_millis(1000);

/// The attempts of one operation.
#[derive(Debug)]
pub struct Retry {
    deadline: Instant,
    backoff: Duration,
}

impl Retry {
    pub fn within(time: Duration) -> Retry {
        Retry {
            deadline: Instant::now() + time,
            backoff: BACKOFF_MIN,
        }
    }

    /// Waits before the next attempt, or gives `error` back when it will not help or the time is over.
    pub async fn after(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retriable() || Instant::now() + self.backoff >= self.deadline {
            return Err(error);
        }
        tracing::debug!(%error, backoff = ?self.backoff, "trying again");
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        Ok(())
    }
}
