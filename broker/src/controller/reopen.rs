//! When partitions that could not be opened are tried again.

use std::time::Duration;

use tokio::time::Instant;

const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Waits longer after each try that leaves some of them closed.
pub(super) struct Reopen {
    wait: Duration,
    at: Instant,
}

impl Reopen {
    pub fn new(now: Instant) -> Self {
        Self {
            wait: WAIT_FIRST,
            at: now + WAIT_FIRST,
        }
    }

    /// When to try again, if any is closed.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// All have been tried.
    pub fn tried(&mut self, some_are_closed: bool, now: Instant) {
        self.wait = match some_are_closed {
            true => (self.wait * 2).min(WAIT_MAX),
            false => WAIT_FIRST,
        };
        self.at = now + self.wait;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_closed_is_tried_less_often_and_never_given_up() {
        let mut now = Instant::now();
        let mut reopen = Reopen::new(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push((reopen.at() - now).as_secs());
            now = reopen.at();
            reopen.tried(true, now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        reopen.tried(false, now);
        assert_eq!(reopen.at() - now, WAIT_FIRST);
    }
}
