//! The offset APIs of [`GroupCoordinator`]: topics are looked up here, by name or (from version 10 on) by id, so that
//! the coordinator of a partition only sees names that exist, and ids with them.
//!
//! As in Kafka an offset is stored with its topic's id, and its key is the name. Where a topic was deleted and made anew, an offset that was
//! left over from the old one is not shown for the new one; Kafka says so for version 10 only, here it holds for every version.

use super::coordinator::{Reply, Request, RequestInfo, text};
use super::service::{GroupCoordinator, unexpected};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestTopic;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse, TopicName,
};

impl GroupCoordinator {
    /// OffsetCommit 2-10. Unknown topics and partitions fail alone; an error of the group is given to every partition.
    pub async fn offset_commit(
        &self,
        info: RequestInfo,
        mut request: OffsetCommitRequest,
    ) -> OffsetCommitResponse {
        let by_id = info.api_version >= 10;
        let mut response = OffsetCommitResponse::default();
        let mut known = Vec::new();
        for mut topic in std::mem::take(&mut request.topics) {
            let (id, mut unknown) = (topic.topic_id, ResponseError::UnknownTopicOrPartition);
            let count = if by_id {
                unknown = ResponseError::UnknownTopicId;
                let name = self.topics.topic_name(id);
                topic.name = TopicName(text(name.as_deref().unwrap_or_default()));
                name.and_then(|name| self.topics.partition_count(&name))
            } else {
                topic.topic_id = self.topics.topic_id(&topic.name).unwrap_or_default();
                self.topics.partition_count(&topic.name)
            };
            let exists = |index: i32| count.is_some_and(|count| (0..count).contains(&index));
            let (good, bad): (Vec<_>, Vec<_>) = topic
                .partitions
                .drain(..)
                .partition(|p| exists(p.partition_index));
            if count.is_some() {
                unknown = ResponseError::UnknownTopicOrPartition;
            }
            if !bad.is_empty() {
                let bad = topic.clone().with_partitions(bad);
                response.topics.push(failed_commit(&bad, unknown));
            }
            if !good.is_empty() {
                topic.partitions = good;
                known.push(topic);
            }
        }
        if !known.is_empty() {
            request.topics = known.clone();
            let group_id = request.group_id.clone();
            match self
                .ask_group(
                    &group_id,
                    Request::CommitOffsets {
                        request,
                        api_version: info.api_version,
                    },
                )
                .await
            {
                Ok(Reply::CommitOffsets(committed)) => response.topics.extend(committed.topics),
                other => {
                    // As Kafka: a commit to a coordinator that loads is told to look elsewhere or again.
                    let error = unexpected(other);
                    response
                        .topics
                        .extend(known.iter().map(|topic| failed_commit(topic, error)));
                }
            }
        }
        merge_topics(&mut response.topics);
        for topic in &mut response.topics {
            if by_id {
                topic.name = TopicName::default();
            } else {
                topic.topic_id = uuid::Uuid::nil();
            }
        }
        response
    }

    /// OffsetFetch 1-10; from 8 on for several groups at once.
    pub async fn offset_fetch(
        &self,
        info: RequestInfo,
        request: OffsetFetchRequest,
    ) -> OffsetFetchResponse {
        let version = info.api_version;
        let mut response = OffsetFetchResponse::default();
        if version >= 8 {
            for group in request.groups {
                let fetched = self.fetch_group(group, version, request.require_stable);
                response.groups.push(fetched.await);
            }
            return response;
        }
        let topics = request.topics.map(|topics| {
            let topics = topics.into_iter();
            let topics = topics.map(|topic| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic.name)
                    .with_partition_indexes(topic.partition_indexes)
            });
            topics.collect()
        });
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(request.group_id)
            .with_topics(topics);
        let asked = group.topics.clone().unwrap_or_default();
        let require_stable = request.require_stable;
        let mut fetched = self.fetch_group(group, version, require_stable).await;
        // Version 1 has no error of its own for the group, so each partition carries it.
        if version >= 2 {
            response.error_code = fetched.error_code;
        } else if fetched.error_code != 0 {
            fetched.topics = failed_fetch(asked, fetched.error_code);
        }
        response.topics = fetched
            .topics
            .into_iter()
            .map(|topic| single_group_topic(topic, version))
            .collect();
        response
    }

    async fn fetch_group(
        &self,
        mut group: OffsetFetchRequestGroup,
        version: i16,
        require_stable: bool,
    ) -> OffsetFetchResponseGroup {
        let by_id = version >= 10;
        let all = group.topics.is_none();
        let mut unknown = Vec::new();
        if let Some(topics) = &mut group.topics {
            for mut topic in std::mem::take(topics) {
                if !by_id {
                    topic.topic_id = self.topics.topic_id(&topic.name).unwrap_or_default();
                    topics.push(topic);
                    continue;
                }
                match self.topics.topic_name(topic.topic_id) {
                    Some(name) => topics.push(topic.with_name(TopicName(text(&name)))),
                    None => unknown.push(topic),
                }
            }
        }
        let group_id = group.group_id.clone();
        let request = Request::FetchOffsets {
            group,
            require_stable,
        };
        let mut fetched = match self.ask_group(&group_id, request).await {
            Ok(Reply::FetchOffsets(fetched)) => fetched,
            other => {
                let code = unexpected(other).code();
                return OffsetFetchResponseGroup::default()
                    .with_group_id(group_id)
                    .with_error_code(code);
            }
        };
        if fetched.error_code != 0 {
            return fetched;
        }
        if all {
            fetched.topics = self.living(fetched.topics, by_id);
        }
        let unknown_id = ResponseError::UnknownTopicId.code();
        fetched.topics.extend(failed_fetch(unknown, unknown_id));
        for topic in &mut fetched.topics {
            if by_id {
                topic.name = TopicName::default();
            } else {
                topic.topic_id = uuid::Uuid::nil();
            }
        }
        fetched
    }

    /// Of all offsets of a group those whose topic is the one that has the name now. A topic that is gone can only be shown by name.
    fn living(
        &self,
        topics: Vec<OffsetFetchResponseTopics>,
        by_id: bool,
    ) -> Vec<OffsetFetchResponseTopics> {
        let mut living: Vec<OffsetFetchResponseTopics> = Vec::with_capacity(topics.len());
        for mut topic in topics {
            match self.topics.topic_id(&topic.name) {
                Some(id) if topic.topic_id.is_nil() || topic.topic_id == id => topic.topic_id = id,
                None if !by_id => {}
                _ => continue,
            }
            // Offsets with and without an id follow each other.
            match living.last_mut().filter(|last| last.name == topic.name) {
                Some(last) => last.partitions.extend(topic.partitions),
                None => living.push(topic),
            }
        }
        living
    }

    /// OffsetDelete 0.
    pub async fn offset_delete(&self, mut request: OffsetDeleteRequest) -> OffsetDeleteResponse {
        let mut unknown = Vec::new();
        for topic in &mut request.topics {
            let count = self.topics.partition_count(&topic.name).unwrap_or(0);
            let mut answer = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
            topic.partitions.retain(|partition| {
                let index = partition.partition_index;
                let exists = (0..count).contains(&index);
                if !exists {
                    let code = ResponseError::UnknownTopicOrPartition.code();
                    let failed = OffsetDeleteResponsePartition::default()
                        .with_partition_index(index)
                        .with_error_code(code);
                    answer.partitions.push(failed);
                }
                exists
            });
            if !answer.partitions.is_empty() {
                unknown.push(answer);
            }
        }
        request.topics.retain(|topic| !topic.partitions.is_empty());
        let group_id = request.group_id.clone();
        match self
            .ask_group(&group_id, Request::DeleteOffsets(request))
            .await
        {
            Ok(Reply::DeleteOffsets(response)) if response.error_code != 0 => response,
            Ok(Reply::DeleteOffsets(mut response)) => {
                for failed in unknown {
                    // A client looks a topic up once, so its failed partitions stand with the others.
                    let same = response.topics.iter_mut().find(|t| t.name == failed.name);
                    match same {
                        Some(topic) => topic.partitions.extend(failed.partitions),
                        None => response.topics.push(failed),
                    }
                }
                response
            }
            other => OffsetDeleteResponse::default().with_error_code(unexpected(other).code()),
        }
    }
}

fn failed_commit(
    topic: &OffsetCommitRequestTopic,
    error: ResponseError,
) -> OffsetCommitResponseTopic {
    let mut failed = OffsetCommitResponseTopic::default()
        .with_name(topic.name.clone())
        .with_topic_id(topic.topic_id);
    for partition in &topic.partitions {
        let index = partition.partition_index;
        let answer = OffsetCommitResponsePartition::default()
            .with_partition_index(index)
            .with_error_code(error.code());
        failed.partitions.push(answer);
    }
    failed
}

/// Clients expect each topic once, even if some of its partitions failed early.
fn merge_topics(topics: &mut Vec<OffsetCommitResponseTopic>) {
    let mut places = std::collections::HashMap::new();
    let mut merged: Vec<OffsetCommitResponseTopic> = Vec::with_capacity(topics.len());
    for topic in topics.drain(..) {
        let place = *places
            .entry((topic.name.clone(), topic.topic_id))
            .or_insert(merged.len());
        match merged.get_mut(place) {
            Some(first) => first.partitions.extend(topic.partitions),
            None => merged.push(topic),
        }
    }
    *topics = merged;
}

fn failed_fetch(
    topics: Vec<OffsetFetchRequestTopics>,
    code: i16,
) -> Vec<OffsetFetchResponseTopics> {
    let failed = topics.into_iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|index| {
            OffsetFetchResponsePartitions::default()
                .with_partition_index(*index)
                .with_committed_offset(-1)
                .with_committed_leader_epoch(-1)
                .with_metadata(Some(text("")))
                .with_error_code(code)
        });
        OffsetFetchResponseTopics::default()
            .with_name(topic.name)
            .with_topic_id(topic.topic_id)
            .with_partitions(partitions.collect())
    });
    failed.collect()
}

fn single_group_topic(topic: OffsetFetchResponseTopics, version: i16) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|partition| {
        let epoch = if version >= 5 {
            partition.committed_leader_epoch
        } else {
            -1
        };
        OffsetFetchResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_committed_offset(partition.committed_offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(partition.metadata)
            .with_error_code(partition.error_code)
    });
    OffsetFetchResponseTopic::default()
        .with_name(topic.name)
        .with_partitions(partitions.collect())
}
