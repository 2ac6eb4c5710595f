//! Who leads the partitions that are not here, who reaches whom, and whose replicas are offline: what the other brokers have told.
//!
//! A notice is JSON: the brokers that the sender reaches, its replicas that could not be opened, and partitions that it leads
//! with epoch and in-sync replicas. The highest epoch counts, whatever the order in which notices come.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::base64;
use crate::shard::view::PartitionKey;

/// The leadership of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    pub leader: i32,
    pub leader_epoch: i32,
    /// Broker ids, the leader's among them.
    pub in_sync: Vec<i32>,
}

/// One partition in a notice.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(with = "base64")]
    topic: Uuid,
    partition: i32,
    epoch: i32,
    in_sync: Vec<i32>,
}

/// A replica in a notice.
#[derive(Serialize, Deserialize)]
struct Offline {
    #[serde(with = "base64")]
    topic: Uuid,
    partition: i32,
}

#[derive(Serialize, Deserialize)]
struct Notice {
    reached: Vec<i32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    offline: Vec<Offline>,
    led: Vec<Entry>,
}

/// A notice of the brokers that the sender reaches, of all its replicas that are offline, and of partitions that it leads.
pub fn encode(
    reached: &[i32],
    offline: &[PartitionKey],
    led: &[(PartitionKey, Leadership)],
) -> Bytes {
    let entries = led
        .iter()
        .map(|(key, leadership)| Entry {
            topic: key.topic_id,
            partition: key.index,
            epoch: leadership.leader_epoch,
            in_sync: leadership.in_sync.clone(),
        })
        .collect();
    // Numbers and strings cannot fail to serialise.
    let notice = Notice {
        reached: reached.to_vec(),
        offline: offline
            .iter()
            .map(|key| Offline {
                topic: key.topic_id,
                partition: key.index,
            })
            .collect(),
        led: entries,
    };
    serde_json::to_vec(&notice).unwrap_or_default().into()
}

/// What has been told.
#[derive(Debug, Default)]
pub struct Leaders {
    known: HashMap<PartitionKey, Leadership>,
    reached: HashMap<i32, Vec<i32>>,
    offline: HashMap<i32, HashSet<PartitionKey>>,
}

impl Leaders {
    pub fn of(&self, partition: PartitionKey) -> Option<&Leadership> {
        self.known.get(&partition)
    }

    /// The brokers that have last told that they reach that one.
    pub fn who_reach(&self, broker: i32) -> impl Iterator<Item = i32> {
        self.reached
            .iter()
            .filter(move |(_, reached)| reached.contains(&broker))
            .map(|(by, _)| *by)
    }

    /// Whether that broker has last told that its replica of the partition is offline.
    pub fn is_offline(&self, broker: i32, partition: PartitionKey) -> bool {
        self.offline
            .get(&broker)
            .is_some_and(|offline| offline.contains(&partition))
    }

    /// Takes in a notice.
    pub fn heard(&mut self, from: i32, notice: &[u8]) -> Result<(), serde_json::Error> {
        let notice: Notice = serde_json::from_slice(notice)?;
        self.reached.insert(from, notice.reached);
        let offline = notice.offline.into_iter().map(|replica| PartitionKey {
            topic_id: replica.topic,
            index: replica.partition,
        });
        self.offline.insert(from, offline.collect());
        for entry in notice.led {
            let key = PartitionKey {
                topic_id: entry.topic,
                index: entry.partition,
            };
            let newer = self
                .known
                .get(&key)
                .is_none_or(|known| known.leader_epoch <= entry.epoch);
            if newer {
                let leadership = Leadership {
                    leader: from,
                    leader_epoch: entry.epoch,
                    in_sync: entry.in_sync,
                };
                self.known.insert(key, leadership);
            }
        }
        Ok(())
    }
}

/// What the others have been told by this broker.
#[derive(Debug, Default)]
pub struct Told {
    last: HashMap<PartitionKey, Leadership>,
    reached: Vec<i32>,
    offline: Vec<PartitionKey>,
}

impl Told {
    /// Whether these are other brokers than was told; remembers them as told.
    pub fn reaches_others(&mut self, reached: &[i32]) -> bool {
        let is_new = self.reached != reached;
        if is_new {
            self.reached = reached.to_vec();
        }
        is_new
    }

    /// Whether these are other replicas than was told; remembers them as told.
    pub fn other_offline(&mut self, offline: &[PartitionKey]) -> bool {
        let is_new = self.offline != offline;
        if is_new {
            self.offline = offline.to_vec();
        }
        is_new
    }

    /// What is new or other than was told; remembers it as told.
    pub fn changes(
        &mut self,
        led: Vec<(PartitionKey, Leadership)>,
    ) -> Vec<(PartitionKey, Leadership)> {
        let mut last = std::mem::take(&mut self.last);
        let mut changes = Vec::new();
        for (key, leadership) in led {
            if last.remove(&key).as_ref() != Some(&leadership) {
                changes.push((key, leadership.clone()));
            }
            self.last.insert(key, leadership);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(epoch: i32) -> Vec<(PartitionKey, Leadership)> {
        let key = PartitionKey {
            topic_id: Uuid::from_u128(3),
            index: 1,
        };
        let leadership = Leadership {
            leader: 7,
            leader_epoch: epoch,
            in_sync: vec![7, 8],
        };
        vec![(key, leadership)]
    }

    #[test]
    fn an_older_leader_that_speaks_late_is_not_believed() {
        let mut leaders = Leaders::default();
        leaders.heard(8, &encode(&[7], &[], &led(5))).unwrap();
        leaders.heard(7, &encode(&[], &[], &led(4))).unwrap();
        let known = leaders.of(led(0)[0].0).unwrap();
        assert_eq!((known.leader, known.leader_epoch), (8, 5));
        assert_eq!(leaders.who_reach(7).collect::<Vec<_>>(), [8]);
        assert_eq!(leaders.who_reach(8).count(), 0);
    }

    #[test]
    fn a_replica_is_offline_until_its_broker_tells_otherwise() {
        let key = led(0)[0].0;
        let mut leaders = Leaders::default();
        leaders.heard(7, &encode(&[], &[key], &[])).unwrap();
        assert!(leaders.is_offline(7, key) && !leaders.is_offline(8, key));
        leaders.heard(8, &encode(&[], &[], &[])).unwrap();
        assert!(leaders.is_offline(7, key));
        leaders.heard(7, &encode(&[], &[], &[])).unwrap();
        assert!(!leaders.is_offline(7, key));
        let mut told = Told::default();
        assert!(!told.other_offline(&[]));
        assert!(told.other_offline(&[key]) && !told.other_offline(&[key]));
        assert!(told.other_offline(&[]));
    }

    #[test]
    fn only_changes_are_told() {
        let mut told = Told::default();
        assert!(told.reaches_others(&[2]));
        assert!(!told.reaches_others(&[2]));
        assert!(told.reaches_others(&[]));
        assert_eq!(told.changes(led(1)).len(), 1);
        assert_eq!(told.changes(led(1)).len(), 0);
        assert_eq!(told.changes(Vec::new()).len(), 0);
        assert_eq!(told.changes(led(1)).len(), 1, "it leads again");
    }
}
