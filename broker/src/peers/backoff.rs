//! How long to wait before a broker is dialled again.

use std::time::Duration;

/// Waits that double from a least to a greatest, each shortened by up to half at random, so that
/// brokers that lost the same peer do not all come back to it at once.
#[derive(Debug)]
pub struct Backoff {
    least: Duration,
    greatest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(least: Duration, greatest: Duration) -> Self {
        Self {
            least,
            greatest,
            next: least,
        }
    }

    /// The next wait; `random` is any number.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let wait = self.next.min(self.greatest);
        self.next = (wait * 2).min(self.greatest);
        let share = (random % 1024) as u32;
        wait - wait / 2 * share / 1024
    }

    /// The peer was there: the next wait is the least again.
    pub fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn waits_double_up_to_the_greatest() {
        let mut backoff = Backoff::new(ms(50), ms(1000));
        let waits: Vec<Duration> = (0..7).map(|_| backoff.next_wait(0)).collect();
        let expected = [50, 100, 200, 400, 800, 1000, 1000].map(ms);
        assert_eq!(waits, expected);
        backoff.reset();
        assert_eq!(backoff.next_wait(0), ms(50));
    }

    #[test]
    fn chance_shortens_a_wait_by_up_to_half() {
        for random in [0, 1, 511, 1023, u64::MAX] {
            let wait = Backoff::new(ms(50), ms(1000)).next_wait(random);
            assert!(wait > ms(25) && wait <= ms(50), "{wait:?}");
        }
    }
}
