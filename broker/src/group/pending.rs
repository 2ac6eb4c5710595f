//! Offsets that were committed within transactions which are still open (KIP-98, KIP-447): nobody counts on them before the
//! transaction's marker comes (`OffsetMetadataManager.OpenTransactions`).

use super::records::{OffsetCommitKey, OffsetCommitValue};
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Partition = (String, i32);

/// Pending offsets, by producer and by partition.
#[derive(Debug, Default)]
pub struct PendingOffsets {
    by_producer: HashMap<i64, BTreeMap<OffsetCommitKey, Pending>>,
    /// By group, then by topic and partition: the producers whose transactions have an offset of it. No empty ones.
    open: HashMap<String, BTreeMap<Partition, BTreeSet<i64>>>,
    next_order: u64,
}

#[derive(Debug)]
struct Pending {
    /// Of the log.
    order: u64,
    /// `None` if a later offset of the partition has been committed meanwhile: the newest in the log stays.
    value: Option<OffsetCommitValue>,
}

impl PendingOffsets {
    /// An offset within a transaction.
    pub fn add(&mut self, producer_id: i64, key: &OffsetCommitKey, value: OffsetCommitValue) {
        let pending = Pending {
            order: self.next_order,
            value: Some(value),
        };
        self.next_order += 1;
        self.by_producer
            .entry(producer_id)
            .or_default()
            .insert(key.clone(), pending);
        self.open
            .entry(key.group_id.clone())
            .or_default()
            .entry((key.topic.clone(), key.partition))
            .or_default()
            .insert(producer_id);
    }

    /// An offset was committed outside of transactions; what is pending is older.
    pub fn supersede(&mut self, key: &OffsetCommitKey) {
        self.supersede_before(key, u64::MAX);
    }

    fn supersede_before(&mut self, key: &OffsetCommitKey, order: u64) {
        for producer_id in self.producers(key) {
            let pending = self.by_producer.get_mut(&producer_id);
            if let Some(pending) = pending.and_then(|offsets| offsets.get_mut(key))
                && pending.order < order
            {
                pending.value = None;
            }
        }
    }

    fn producers(&self, key: &OffsetCommitKey) -> Vec<i64> {
        let Some(open) = self.open.get(&key.group_id) else {
            return Vec::new();
        };
        let producers = open.get(&(key.topic.clone(), key.partition));
        producers.into_iter().flatten().copied().collect()
    }

    /// The partition's offset was removed, and with it all that is pending.
    pub fn forget(&mut self, key: &OffsetCommitKey) {
        for producer_id in self.producers(key) {
            self.close(producer_id, key);
            if let Some(offsets) = self.by_producer.get_mut(&producer_id) {
                offsets.remove(key);
                if offsets.is_empty() {
                    self.by_producer.remove(&producer_id);
                }
            }
        }
    }

    /// A transaction ended: the offsets that now hold, if it was committed.
    pub fn end(
        &mut self,
        producer_id: i64,
        committed: bool,
    ) -> Vec<(OffsetCommitKey, OffsetCommitValue)> {
        let ended = self.by_producer.remove(&producer_id).unwrap_or_default();
        let mut hold = Vec::new();
        for (key, pending) in ended {
            self.close(producer_id, &key);
            if let Some(value) = pending.value.filter(|_| committed) {
                self.supersede_before(&key, pending.order);
                hold.push((key, value));
            }
        }
        hold
    }

    fn close(&mut self, producer_id: i64, key: &OffsetCommitKey) {
        let Some(group) = self.open.get_mut(&key.group_id) else {
            return;
        };
        let partition = (key.topic.clone(), key.partition);
        if let Some(producers) = group.get_mut(&partition) {
            producers.remove(&producer_id);
            if producers.is_empty() {
                group.remove(&partition);
            }
        }
        if group.is_empty() {
            self.open.remove(&key.group_id);
        }
    }

    /// Whether a transaction is open that has an offset of this partition.
    pub fn has(&self, group_id: &str, topic: &str, partition: i32) -> bool {
        // Hardly a group has any, so that the key is hardly ever made.
        let open = self.open.get(group_id);
        open.is_some_and(|open| open.contains_key(&(topic.to_owned(), partition)))
    }

    /// Whether a transaction is open that has an offset of this group.
    pub fn has_any(&self, group_id: &str) -> bool {
        self.open.contains_key(group_id)
    }

    /// The partitions of a group that open transactions have offsets of.
    pub fn partitions(&self, group_id: &str) -> impl Iterator<Item = (&str, i32)> {
        let open = self.open.get(group_id).into_iter().flatten();
        open.map(|((topic, partition), _)| (topic.as_str(), *partition))
    }

    /// All pending offsets.
    pub fn offsets(&self) -> impl Iterator<Item = (&OffsetCommitKey, &OffsetCommitValue)> {
        let offsets = self.by_producer.values().flatten();
        offsets.filter_map(|(key, pending)| Some((key, pending.value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(partition: i32) -> OffsetCommitKey {
        OffsetCommitKey {
            group_id: "g".into(),
            topic: "orders".into(),
            partition,
        }
    }

    fn value(offset: i64) -> OffsetCommitValue {
        OffsetCommitValue {
            offset,
            leader_epoch: -1,
            metadata: String::new(),
            commit_timestamp_ms: 0,
            expire_timestamp_ms: None,
            topic_id: uuid::Uuid::nil(),
        }
    }

    fn ended(pending: &mut PendingOffsets, producer_id: i64, committed: bool) -> Vec<(i32, i64)> {
        let hold = pending.end(producer_id, committed).into_iter();
        hold.map(|(key, value)| (key.partition, value.offset))
            .collect()
    }

    #[test]
    fn offsets_hold_when_their_transaction_commits_and_only_then() {
        let mut pending = PendingOffsets::default();
        pending.add(1, &key(0), value(5));
        pending.add(1, &key(1), value(6));
        pending.add(1, &key(1), value(7));
        pending.add(2, &key(1), value(9));
        assert!(pending.has("g", "orders", 0) && pending.has_any("g"));
        assert!(!pending.has("h", "orders", 0));
        assert_eq!(ended(&mut pending, 2, false), []);
        assert_eq!(ended(&mut pending, 1, true), [(0, 5), (1, 7)]);
        assert!(!pending.has_any("g"));
        assert_eq!(ended(&mut pending, 1, true), [], "a marker may come twice");
    }

    #[test]
    fn the_newest_in_the_log_stays_whatever_ends_last() {
        let mut pending = PendingOffsets::default();
        pending.add(1, &key(0), value(5));
        pending.add(2, &key(0), value(6));
        assert_eq!(ended(&mut pending, 2, true), [(0, 6)]);
        assert!(pending.has("g", "orders", 0), "the other is still open");
        assert_eq!(ended(&mut pending, 1, true), []);

        pending.add(1, &key(0), value(7));
        pending.supersede(&key(0));
        pending.add(2, &key(0), value(8));
        assert_eq!(ended(&mut pending, 1, true), []);
        assert_eq!(ended(&mut pending, 2, true), [(0, 8)]);
    }

    #[test]
    fn a_removed_offset_takes_what_is_pending_with_it() {
        let mut pending = PendingOffsets::default();
        pending.add(1, &key(0), value(5));
        pending.add(1, &key(1), value(6));
        pending.forget(&key(0));
        assert_eq!(pending.partitions("g").collect::<Vec<_>>(), [("orders", 1)]);
        assert_eq!(ended(&mut pending, 1, true), [(1, 6)]);
    }
}
