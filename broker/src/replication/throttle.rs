//! How fast replicas that lag may catch up (KIP-73): `leader.replication.throttled.rate` bounds what a broker sends to such, and
//! `follower.replication.throttled.rate` what a broker is sent as one.
//!
//! Only replicas count that the topic's lists name and that are not in sync. Entries are pushed here, so the sender
//! keeps both bounds: of the rate that a follower takes, each broker that leads such replicas of it has an equal share.
//! Heartbeats, votes and the commit index are never held back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The replicas that a topic setting names, as partition and broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ThrottledReplicas {
    #[default]
    None,
    All,
    Of(Arc<[(i32, i32)]>),
}

impl ThrottledReplicas {
    /// Reads a checked value: `*`, or `partition:broker` each.
    pub fn parse(list: &[String]) -> Self {
        if list.iter().any(|element| element == "*") {
            return Self::All;
        }
        let replicas = list.iter().filter_map(|element| {
            let (partition, broker) = element.split_once(':')?;
            Some((partition.trim().parse().ok()?, broker.trim().parse().ok()?))
        });
        let replicas: Arc<[(i32, i32)]> = replicas.collect();
        match replicas.is_empty() {
            true => Self::None,
            false => Self::Of(replicas),
        }
    }

    pub fn contains(&self, partition: i32, broker: i32) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Of(replicas) => replicas.contains(&(partition, broker)),
        }
    }
}

/// Whose bounds a replica is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sides {
    pub leader: bool,
    pub follower: bool,
}

impl Sides {
    pub fn any(self) -> bool {
        self.leader || self.follower
    }
}

const MILLI: i128 = 1_000;

/// Bytes by the second, with debts: a message is sent whole as soon as anything is left.
#[derive(Debug)]
struct Bucket {
    rate: i64,
    /// In thousandths of a byte; at most what a second brings.
    level: i128,
    filled_ms: i64,
}

impl Bucket {
    fn new(rate: i64, now_ms: i64) -> Self {
        Self {
            rate,
            level: 0,
            filled_ms: now_ms,
        }
    }

    fn fill(&mut self, now_ms: i64) {
        let passed_ms = now_ms.saturating_sub(self.filled_ms).max(0);
        self.filled_ms = now_ms;
        let full = i128::from(self.rate) * MILLI;
        self.level = (self.level + i128::from(self.rate) * i128::from(passed_ms)).min(full);
    }

    fn is_open(&mut self, now_ms: i64) -> bool {
        self.fill(now_ms);
        self.level > 0
    }

    fn take(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * MILLI;
    }
}

/// The bounds that a broker's settings give, in bytes a second; absent: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rates {
    pub leader: Option<i64>,
    /// This broker's share of what each follower takes.
    pub followers: BTreeMap<i32, i64>,
}

#[derive(Debug, Default)]
struct Buckets {
    leader: Option<Bucket>,
    followers: BTreeMap<i32, Bucket>,
}

/// What a broker has left of its bounds; one for all of its shards.
#[derive(Debug, Default)]
pub struct ReplicationQuotas(Mutex<Buckets>);

impl ReplicationQuotas {
    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings have changed, or leaders have.
    pub fn set_rates(&self, rates: &Rates, now_ms: i64) {
        let mut buckets = self.buckets();
        set_rate(&mut buckets.leader, rates.leader, now_ms);
        let before = std::mem::take(&mut buckets.followers);
        let mut before: BTreeMap<i32, Option<Bucket>> = before
            .into_iter()
            .map(|(broker, bucket)| (broker, Some(bucket)))
            .collect();
        for (broker, rate) in &rates.followers {
            let mut bucket = before.remove(broker).flatten();
            set_rate(&mut bucket, Some(*rate), now_ms);
            buckets
                .followers
                .extend(bucket.map(|bucket| (*broker, bucket)));
        }
    }

    /// Whether anything may be sent to such a replica on that broker.
    pub fn is_open(&self, broker: i32, sides: Sides, now_ms: i64) -> bool {
        self.buckets()
            .of(broker, sides)
            .all(|bucket| bucket.is_open(now_ms))
    }

    /// So much is sent.
    pub fn take(&self, broker: i32, sides: Sides, bytes: u64) {
        self.buckets()
            .of(broker, sides)
            .for_each(|bucket| bucket.take(bytes));
    }
}

impl Buckets {
    fn of(&mut self, broker: i32, sides: Sides) -> impl Iterator<Item = &mut Bucket> {
        let leader = self.leader.as_mut().filter(|_| sides.leader);
        let follower = self.followers.get_mut(&broker).filter(|_| sides.follower);
        leader.into_iter().chain(follower)
    }
}

fn set_rate(bucket: &mut Option<Bucket>, rate: Option<i64>, now_ms: i64) {
    match (bucket.as_mut(), rate) {
        (Some(bucket), Some(rate)) => {
            bucket.fill(now_ms);
            bucket.rate = rate;
        }
        _ => *bucket = rate.map(|rate| Bucket::new(rate, now_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Sides = Sides {
        leader: true,
        follower: true,
    };

    fn list(text: &str) -> ThrottledReplicas {
        let list: Vec<String> = text.split(',').map(str::to_owned).collect();
        ThrottledReplicas::parse(&list)
    }

    #[test]
    fn lists_name_replicas() {
        assert!(list("0:1,2:3").contains(2, 3));
        assert!(!list("0:1,2:3").contains(2, 1));
        assert!(list("*").contains(7, 7));
        assert_eq!(list(""), ThrottledReplicas::None);
    }

    /// How much leaves in `seconds`, tried every 100 ms, in messages of `message` bytes.
    fn sent(quotas: &ReplicationQuotas, from_ms: i64, seconds: i64, message: u64) -> u64 {
        let mut sent = 0;
        for now_ms in (from_ms..from_ms + seconds * 1_000).step_by(100) {
            while quotas.is_open(2, BOTH, now_ms) {
                quotas.take(2, BOTH, message);
                sent += message;
            }
        }
        sent
    }

    #[test]
    fn what_leaves_is_within_the_lower_bound_and_near_it() {
        for (leader, follower, message) in [
            (10_000, 4_000, 100),
            (4_000, 10_000, 100),
            (4_000, 1 << 40, 30_000),
        ] {
            let quotas = ReplicationQuotas::default();
            let rates = Rates {
                leader: Some(leader),
                followers: BTreeMap::from([(2, follower)]),
            };
            quotas.set_rates(&rates, 0);
            let sent = sent(&quotas, 0, 100, message);
            assert!((396_000..=400_000 + message).contains(&sent), "{sent}");
        }
    }

    #[test]
    fn a_rate_of_a_byte_is_not_rounded_away_and_none_is_no_bound() {
        let quotas = ReplicationQuotas::default();
        assert!(quotas.is_open(2, BOTH, 0));
        let rates = Rates {
            leader: Some(1),
            ..Rates::default()
        };
        quotas.set_rates(&rates, 0);
        assert!((9..=11).contains(&sent(&quotas, 0, 10, 1)));
        // Said again, it starts nothing over.
        quotas.set_rates(&rates, 10_000);
        assert!((9..=11).contains(&sent(&quotas, 10_000, 10, 1)));
        quotas.set_rates(&Rates::default(), 20_000);
        quotas.take(2, BOTH, 1 << 40);
        assert!(quotas.is_open(2, BOTH, 20_000));
    }
}
