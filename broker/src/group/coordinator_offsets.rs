//! What becomes of committed offsets: the part of [`PartitionCoordinator`] that Kafka has in `OffsetMetadataManager`.

use super::classic::{GroupState, Token};
use super::coordinator::{Decision, DeletedTopic, PartitionCoordinator, Reply, text};
use super::offsets::tombstone;
use super::records::{CoordinatorRecord, OffsetCommitKey, OffsetCommitValue};
use crate::coordinator::machine::{AppendAs, EndMarker, Entry, Machine};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    TopicName, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use streamgauge_protocol::error::code_of;
use streamgauge_storage::producer_state::VerificationGuard;
use uuid::Uuid;

/// What the records of one commit may take, as they are one batch: the default of `max.message.bytes`, which in Kafka is the bound.
const COMMIT_BYTES_MAX: usize = 1024 * 1024;
/// What a record takes besides its texts, at most.
const COMMIT_OVERHEAD_BYTES: usize = 80;

/// Refuses a commit that is too large before anything is made of it: a group's name stands in every record, so that a small request can
/// ask for very much.
fn check_size<'a>(
    group_id: &str,
    offsets: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Result<(), ResponseError> {
    let sizes = offsets.map(|(topic, metadata)| {
        COMMIT_OVERHEAD_BYTES + group_id.len() + topic.len() + metadata.map_or(0, str::len)
    });
    match sizes.sum::<usize>() <= COMMIT_BYTES_MAX {
        true => Ok(()),
        false => Err(ResponseError::InvalidCommitOffsetSize),
    }
}

/// An offset as a client commits it.
struct Committed<'a> {
    group_id: &'a str,
    topic: &'a str,
    topic_id: Uuid,
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: Option<&'a str>,
    timestamp_ms: i64,
    expire_timestamp_ms: Option<i64>,
}

impl PartitionCoordinator {
    pub(super) fn commit_offsets(
        &mut self,
        request: &OffsetCommitRequest,
        api_version: i16,
        token: Token,
        now_ms: i64,
    ) -> Decision {
        let group_id = request.group_id.to_string();
        let mut decision = Decision::default();
        let generation = request.generation_id_or_member_epoch;
        let instance = request.group_instance_id.as_deref();
        let checked = self.with_group(&group_id, &mut decision, |group, _| {
            group.check_offset_commit(&request.member_id, instance, generation, now_ms)
        });
        // Without such a group, -1 is a consumer that manages its partitions itself, or an admin client.
        let unknown = match generation {
            ..0 => Ok(()),
            // The error of KIP-848; older clients do not expect it.
            _ if api_version >= 9 => Err(ResponseError::GroupIdNotFound),
            _ => Err(ResponseError::IllegalGeneration),
        };
        let offsets = request.topics.iter().flat_map(|topic| {
            let partitions = topic.partitions.iter();
            partitions
                .map(|partition| (topic.name.as_str(), partition.committed_metadata.as_deref()))
        });
        let checked = checked
            .unwrap_or(unknown)
            .and_then(|()| check_size(&group_id, offsets));
        let expire_timestamp_ms = Some(request.retention_time_ms)
            .filter(|ms| *ms >= 0)
            .map(|ms| now_ms.saturating_add(ms));
        let mut response = OffsetCommitResponse::default();
        for topic in &request.topics {
            let mut answer = OffsetCommitResponseTopic::default()
                .with_name(topic.name.clone())
                .with_topic_id(topic.topic_id);
            for partition in &topic.partitions {
                let index = partition.partition_index;
                let committed = checked.and_then(|()| {
                    self.offset_commit(Committed {
                        group_id: &group_id,
                        topic: &topic.name,
                        topic_id: topic.topic_id,
                        partition: index,
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: partition.committed_metadata.as_deref(),
                        timestamp_ms: now_ms,
                        expire_timestamp_ms,
                    })
                });
                answer.partitions.push(
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(index)
                        .with_error_code(code_of(committed.as_ref().err().copied())),
                );
                decision.records.extend(committed);
            }
            response.topics.push(answer);
        }
        self.apply(&decision.records, now_ms);
        decision
            .replies
            .push((token, Reply::CommitOffsets(response)));
        decision
    }

    /// Offsets within a transaction, to be appended as part of it (`OffsetMetadataManager.commitTransactionalOffset`). They hold when
    /// its marker comes.
    pub(super) fn commit_in_transaction(
        &mut self,
        request: &TxnOffsetCommitRequest,
        topic_ids: &HashMap<String, Uuid>,
        guard: Option<VerificationGuard>,
        token: Token,
        now_ms: i64,
    ) -> Decision {
        let group_id = request.group_id.as_str();
        let generation = request.generation_id;
        let checked = match self.groups.get(group_id) {
            Some(group) => group.check_transactional_commit(
                &request.member_id,
                request.group_instance_id.as_deref(),
                generation,
            ),
            None if generation < 0 => Ok(()),
            None => Err(ResponseError::IllegalGeneration),
        };
        let offsets = request.topics.iter().flat_map(|topic| {
            let partitions = topic.partitions.iter();
            partitions
                .map(|partition| (topic.name.as_str(), partition.committed_metadata.as_deref()))
        });
        let checked = checked.and_then(|()| check_size(group_id, offsets));
        let producer_id = request.producer_id.0;
        let mut decision = Decision {
            append: AppendAs::Transactional {
                producer_id,
                producer_epoch: request.producer_epoch,
                guard,
            },
            ..Decision::default()
        };
        let mut response = TxnOffsetCommitResponse::default();
        for topic in &request.topics {
            let mut answer = TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone());
            let topic_id = topic_ids
                .get(topic.name.as_str())
                .copied()
                .unwrap_or_default();
            for partition in &topic.partitions {
                let index = partition.partition_index;
                let committed = checked.and_then(|()| {
                    self.offset_commit(Committed {
                        group_id,
                        topic: &topic.name,
                        topic_id,
                        partition: index,
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: partition.committed_metadata.as_deref(),
                        timestamp_ms: now_ms,
                        expire_timestamp_ms: None,
                    })
                });
                answer.partitions.push(
                    TxnOffsetCommitResponsePartition::default()
                        .with_partition_index(index)
                        .with_error_code(code_of(committed.as_ref().err().copied())),
                );
                decision.records.extend(committed);
            }
            response.topics.push(answer);
        }
        for record in decision.records.clone() {
            self.replay(
                Entry::Pending {
                    producer_id,
                    record,
                },
                now_ms,
            );
        }
        decision
            .replies
            .push((token, Reply::CommitInTransaction(response)));
        decision
    }

    fn offset_commit(&self, committed: Committed<'_>) -> Result<CoordinatorRecord, ResponseError> {
        let metadata = committed.metadata.unwrap_or_default();
        if metadata.encode_utf16().count() > self.config.offset_metadata_max {
            return Err(ResponseError::OffsetMetadataTooLarge);
        }
        Ok(CoordinatorRecord::OffsetCommit {
            key: OffsetCommitKey {
                group_id: committed.group_id.to_owned(),
                topic: committed.topic.to_owned(),
                partition: committed.partition,
            },
            value: Some(OffsetCommitValue {
                offset: committed.offset,
                leader_epoch: committed.leader_epoch,
                metadata: metadata.to_owned(),
                commit_timestamp_ms: committed.timestamp_ms,
                expire_timestamp_ms: committed.expire_timestamp_ms,
                topic_id: committed.topic_id,
            }),
        })
    }

    /// A transaction ends whose offsets may be pending here.
    pub(super) fn end_transaction(
        &mut self,
        marker: EndMarker,
        token: Token,
        now_ms: i64,
    ) -> Decision {
        let entry = Entry::Marker {
            producer_id: marker.producer_id,
            result: marker.result,
        };
        self.replay(entry, now_ms);
        Decision {
            append: AppendAs::Marker(marker),
            ..Decision::reply(token, Reply::EndTransaction)
        }
    }

    /// Offsets of a topic that went and whose name another has are not its. When all are asked for, a name stands once for
    /// every id under which offsets were committed, and the caller, who knows the living one, chooses.
    ///
    /// Who asks for stable offsets is told to wait where a transaction is open that has one (KIP-447).
    pub(super) fn fetch_offsets(
        &self,
        request: &OffsetFetchRequestGroup,
        require_stable: bool,
    ) -> OffsetFetchResponseGroup {
        let group_id = request.group_id.as_str();
        let show = |topic: &str, index: i32, value: Option<&OffsetCommitValue>| {
            if require_stable && self.pending.has(group_id, topic, index) {
                let code = ResponseError::UnstableOffsetCommit.code();
                return fetched(index, None).with_error_code(code);
            }
            fetched(index, value)
        };
        let mut response =
            OffsetFetchResponseGroup::default().with_group_id(request.group_id.clone());
        let Some(topics) = &request.topics else {
            for (name, partitions) in self.offsets.topics(group_id) {
                let mut by_id: BTreeMap<Uuid, Vec<_>> = BTreeMap::new();
                for (index, value) in partitions {
                    let same = by_id.entry(value.topic_id).or_default();
                    same.push(show(name, *index, Some(value)));
                }
                for (topic_id, partitions) in by_id {
                    let topic = OffsetFetchResponseTopics::default()
                        .with_name(TopicName(text(name)))
                        .with_topic_id(topic_id)
                        .with_partitions(partitions);
                    response.topics.push(topic);
                }
            }
            return response;
        };
        for wanted in topics {
            let mut topic = OffsetFetchResponseTopics::default()
                .with_name(wanted.name.clone())
                .with_topic_id(wanted.topic_id);
            for index in &wanted.partition_indexes {
                let value = self.offsets.get(group_id, &wanted.name, *index);
                let value = value.filter(|value| value.may_be_of(wanted.topic_id));
                topic.partitions.push(show(&wanted.name, *index, value));
            }
            response.topics.push(topic);
        }
        response
    }

    pub(super) fn delete_offsets(
        &mut self,
        request: &OffsetDeleteRequest,
        token: Token,
        now_ms: i64,
    ) -> Decision {
        let group_id = request.group_id.as_str();
        let mut response = OffsetDeleteResponse::default();
        let error = match self.groups.get(group_id) {
            _ if group_id.is_empty() => Some(ResponseError::InvalidGroupId),
            None => Some(ResponseError::GroupIdNotFound),
            Some(group)
                if group.state() != GroupState::Empty
                    && group.protocol_type() != Some("consumer") =>
            {
                Some(ResponseError::NonEmptyGroup)
            }
            Some(_) => None,
        };
        if let Some(error) = error {
            return Decision::reply(
                token,
                Reply::DeleteOffsets(response.with_error_code(error.code())),
            );
        }
        let group = self.groups.get(group_id);
        let mut records = Vec::new();
        for topic in &request.topics {
            let in_use = group.is_some_and(|group| group.is_subscribed_to(&topic.name));
            let error = if in_use {
                ResponseError::GroupSubscribedToTopic.code()
            } else {
                0
            };
            let mut answer = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
            for partition in &topic.partitions {
                let index = partition.partition_index;
                answer.partitions.push(
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(index)
                        .with_error_code(error),
                );
                let is_known = self.offsets.get(group_id, &topic.name, index).is_some()
                    || self.pending.has(group_id, &topic.name, index);
                if !in_use && is_known {
                    records.push(tombstone(group_id, &topic.name, index));
                }
            }
            response.topics.push(answer);
        }
        self.apply(&records, now_ms);
        Decision {
            records,
            ..Decision::reply(token, Reply::DeleteOffsets(response))
        }
    }

    /// Removes the offsets of topics that are gone.
    pub fn forget_topics(&mut self, topics: &BTreeSet<DeletedTopic>, now_ms: i64) -> Decision {
        let mut decision = Decision::default();
        if topics.is_empty() {
            return decision;
        }
        let mut deleted: HashMap<&str, Vec<Uuid>> = HashMap::new();
        for topic in topics {
            deleted.entry(&topic.name).or_default().push(topic.id);
        }
        let ids: Vec<String> = self.offsets.group_ids().cloned().collect();
        for group_id in ids {
            let gone = self.offsets.tombstones(&group_id, |topic, _, value| {
                let ids = deleted.get(topic);
                ids.is_some_and(|ids| ids.iter().any(|id| value.may_be_of(*id)))
            });
            decision.records.extend(gone);
        }
        let is_gone = |key: &OffsetCommitKey, value: &OffsetCommitValue| {
            let ids = deleted.get(key.topic.as_str());
            ids.is_some_and(|ids| ids.iter().any(|id| value.may_be_of(*id)))
                && self
                    .offsets
                    .get(&key.group_id, &key.topic, key.partition)
                    .is_none()
        };
        let pending: BTreeSet<&OffsetCommitKey> = self
            .pending
            .offsets()
            .filter(|(key, value)| is_gone(key, value))
            .map(|(key, _)| key)
            .collect();
        let pending = pending
            .into_iter()
            .map(|key| tombstone(&key.group_id, &key.topic, key.partition));
        decision.records.extend(pending);
        self.apply(&decision.records, now_ms);
        decision
    }

    pub(super) fn expire_offsets(&mut self, now_ms: i64) -> Vec<CoordinatorRecord> {
        let mut records = Vec::new();
        let ids: Vec<String> = self.groups.keys().cloned().collect();
        for group_id in ids {
            let Some(group) = self.groups.get(&group_id) else {
                continue;
            };
            let mut expired =
                self.offsets
                    .expired(&group_id, group, self.config.offsets_retention_ms, now_ms);
            expired.retain(|record| match record {
                CoordinatorRecord::OffsetCommit { key, .. } => {
                    !self.pending.has(&group_id, &key.topic, key.partition)
                }
                CoordinatorRecord::GroupMetadata { .. } => true,
            });
            let unused = group.is_unused() && !self.pending.has_any(&group_id);
            self.apply(&expired, now_ms);
            records.extend(expired);
            if unused && self.offsets.is_empty(&group_id) {
                let tombstone = CoordinatorRecord::GroupMetadata {
                    group_id,
                    value: None,
                };
                self.replay_record(&tombstone, now_ms);
                records.push(tombstone);
            }
        }
        records
    }
}

fn fetched(index: i32, value: Option<&OffsetCommitValue>) -> OffsetFetchResponsePartitions {
    let partition = OffsetFetchResponsePartitions::default().with_partition_index(index);
    match value {
        Some(value) => partition
            .with_committed_offset(value.offset)
            .with_committed_leader_epoch(value.leader_epoch)
            .with_metadata(Some(text(&value.metadata))),
        None => partition
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(text(""))),
    }
}
