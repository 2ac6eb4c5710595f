//! The committed offsets of all groups of one offsets partition, and when they expire (KIP-211).

use super::classic::{ClassicGroup, GroupState};
use super::records::{CoordinatorRecord, OffsetCommitKey, OffsetCommitValue};
use std::collections::{BTreeMap, HashMap};

type TopicOffsets = BTreeMap<i32, OffsetCommitValue>;

/// Committed offsets by group, topic and partition.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OffsetStore {
    groups: HashMap<String, BTreeMap<String, TopicOffsets>>,
}

impl OffsetStore {
    /// Applies a record: the only way in which offsets change.
    pub fn replay(&mut self, key: &OffsetCommitKey, value: Option<&OffsetCommitValue>) {
        if let Some(value) = value {
            let topics = self.groups.entry(key.group_id.clone()).or_default();
            topics
                .entry(key.topic.clone())
                .or_default()
                .insert(key.partition, value.clone());
            return;
        }
        let Some(topics) = self.groups.get_mut(&key.group_id) else {
            return;
        };
        if let Some(partitions) = topics.get_mut(&key.topic) {
            partitions.remove(&key.partition);
            if partitions.is_empty() {
                topics.remove(&key.topic);
            }
        }
        if topics.is_empty() {
            self.groups.remove(&key.group_id);
        }
    }

    /// A partition's committed offset.
    pub fn get(&self, group_id: &str, topic: &str, partition: i32) -> Option<&OffsetCommitValue> {
        self.groups.get(group_id)?.get(topic)?.get(&partition)
    }

    /// All of a group's offsets.
    pub fn topics(&self, group_id: &str) -> impl Iterator<Item = (&String, &TopicOffsets)> {
        self.groups.get(group_id).into_iter().flatten()
    }

    /// Whether a group has no offsets.
    pub fn is_empty(&self, group_id: &str) -> bool {
        !self.groups.contains_key(group_id)
    }

    /// Groups that have offsets.
    pub fn group_ids(&self) -> impl Iterator<Item = &String> {
        self.groups.keys()
    }

    /// Tombstones for those of a group's offsets that `doomed` picks.
    pub fn tombstones(
        &self,
        group_id: &str,
        mut doomed: impl FnMut(&str, i32, &OffsetCommitValue) -> bool,
    ) -> Vec<CoordinatorRecord> {
        let mut records = Vec::new();
        for (topic, partitions) in self.topics(group_id) {
            for (partition, value) in partitions {
                if doomed(topic, *partition, value) {
                    records.push(tombstone(group_id, topic, *partition));
                }
            }
        }
        records
    }

    /// Tombstones for what has expired. Offsets live while their group does: in a group without members the time
    /// since it became empty counts, in a stable consumer group the age of offsets of topics nobody subscribes to,
    /// and without group management the age of each offset.
    pub fn expired(
        &self,
        group_id: &str,
        group: &ClassicGroup,
        retention_ms: i64,
        now_ms: i64,
    ) -> Vec<CoordinatorRecord> {
        self.tombstones(group_id, |topic, _, value| {
            let Some(base_ms) = expiration_base(group, topic, value) else {
                return false;
            };
            match value.expire_timestamp_ms {
                Some(at_ms) => now_ms >= at_ms,
                None => now_ms.saturating_sub(base_ms) >= retention_ms,
            }
        })
    }
}

fn expiration_base(group: &ClassicGroup, topic: &str, value: &OffsetCommitValue) -> Option<i64> {
    if group.protocol_type().is_none() {
        return Some(value.commit_timestamp_ms);
    }
    match group.state() {
        // Version 0 and 1 records do not say since when the group is empty.
        GroupState::Empty if group.state_since_ms() < 0 => Some(value.commit_timestamp_ms),
        // A lone commit may be newer than the group's last change.
        GroupState::Empty => Some(group.state_since_ms().max(value.commit_timestamp_ms)),
        GroupState::Stable if !group.is_subscribed_to(topic) && is_consumer(group) => {
            Some(value.commit_timestamp_ms)
        }
        _ => None,
    }
}

/// Members of other protocols do not say what they read.
fn is_consumer(group: &ClassicGroup) -> bool {
    group.protocol_type() == Some("consumer")
}

/// The record that removes an offset.
pub fn tombstone(group_id: &str, topic: &str, partition: i32) -> CoordinatorRecord {
    let key = OffsetCommitKey {
        group_id: group_id.to_owned(),
        topic: topic.to_owned(),
        partition,
    };
    CoordinatorRecord::OffsetCommit { key, value: None }
}
