use super::*;
use crate::coordinator::coordinators::partition_for;
use crate::coordinator::memory_log::MemoryLog;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetFetchRequest, ProducerId, TopicName};
use streamgauge_protocol::batch::TransactionResult;

use kafka_protocol::messages::OffsetDeleteRequest;
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::protocol::{Encodable, StrBytes};

struct OneTopic;

impl TopicLookup for OneTopic {
    fn topic_id(&self, name: &str) -> Option<uuid::Uuid> {
        (name == "orders").then(|| uuid::Uuid::from_u128(7))
    }

    fn topic_name(&self, id: uuid::Uuid) -> Option<String> {
        (id.as_u128() == 7).then(|| "orders".to_owned())
    }

    fn partition_count(&self, name: &str) -> Option<i32> {
        (name == "orders").then_some(2)
    }
}

fn coordinator(log: &Arc<MemoryLog>) -> GroupCoordinator {
    let config = GroupConfig {
        offsets_topic_partitions: 1,
        initial_rebalance_delay_ms: 0,
        ..GroupConfig::default()
    };
    let coordinator = GroupCoordinator::new(config, Arc::new(OneTopic), Arc::new(|| 1_000));
    coordinator.become_leader(0, log.clone());
    coordinator
}

fn info(api_version: i16) -> RequestInfo {
    RequestInfo {
        client_id: "c".into(),
        client_host: "/h".into(),
        api_version,
    }
}

async fn commit(coordinator: &GroupCoordinator, offset: i64) -> i16 {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(1)
        .with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text("orders")))
        .with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    // A coordinator that loads says so; a bounded number of retries waits for it.
    for _ in 0..1_000 {
        let response = coordinator.offset_commit(info(9), request.clone()).await;
        let code = response.topics[0].partitions[0].error_code;
        if code != ResponseError::CoordinatorLoadInProgress.code() {
            return code;
        }
        tokio::task::yield_now().await;
    }
    panic!("the coordinator never loaded");
}

/// Returns once the coordinator has read its log.
async fn loaded(coordinator: &GroupCoordinator) {
    for _ in 0..1_000 {
        let list = coordinator
            .list_groups(info(5), ListGroupsRequest::default())
            .await;
        if list.error_code == 0 {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the coordinator never loaded");
}

async fn fetch(coordinator: &GroupCoordinator) -> i64 {
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text("g")))
        .with_topics(None);
    let request = OffsetFetchRequest::default().with_groups(vec![group]);
    let response = coordinator.offset_fetch(info(10), request).await;
    assert_eq!(
        response.groups[0].topics[0].topic_id,
        uuid::Uuid::from_u128(7)
    );
    response.groups[0].topics[0].partitions[0].committed_offset
}

#[tokio::test]
async fn a_new_leader_of_the_log_knows_the_committed_offsets() {
    let log = MemoryLog::open();
    assert_eq!(commit(&coordinator(&log), 5).await, 0);
    let next = coordinator(&log);
    assert_eq!(commit(&next, 6).await, 0);
    assert_eq!(fetch(&next).await, 6);
}

#[tokio::test]
async fn a_refused_append_fails_its_commit_and_the_log_stays_the_truth() {
    let log = MemoryLog::open();
    let coordinator = coordinator(&log);
    assert_eq!(commit(&coordinator, 5).await, 0);
    log.fail_next(ResponseError::NotEnoughReplicas);
    assert_eq!(
        commit(&coordinator, 6).await,
        ResponseError::CoordinatorNotAvailable.code()
    );
    for _ in 0..1_000 {
        let list = coordinator
            .list_groups(info(5), ListGroupsRequest::default())
            .await;
        if list.error_code == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(fetch(&coordinator).await, 5);
}

#[tokio::test]
async fn a_join_of_version_4_comes_back_with_its_id() {
    let log = MemoryLog::open();
    let coordinator = coordinator(&log);
    assert_eq!(commit(&coordinator, 1).await, 0);
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(text("h")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    let refused = coordinator.join_group(info(9), request.clone()).await;
    assert_eq!(refused.error_code, ResponseError::MemberIdRequired.code());
    let joined = coordinator
        .join_group(info(9), request.with_member_id(refused.member_id.clone()))
        .await;
    assert_eq!(
        (
            joined.error_code,
            joined.generation_id,
            joined.members.len()
        ),
        (0, 1, 1)
    );
    assert_eq!(joined.leader, refused.member_id);
}

#[test]
fn groups_live_where_java_puts_them() {
    assert_eq!(partition_for("", 50), 0);
    assert_eq!(partition_for("abc", 50), 96_354 % 50);
    // This text's hash is the smallest int.
    assert_eq!(partition_for("polygenelubricants", 50), 0);
}

/// Lets every task run until nothing more happens.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Refuses what this version cannot say, as the connection would.
fn assert_encodes<M: Encodable + std::fmt::Debug>(response: &M, version: i16) {
    let mut buffer = bytes::BytesMut::new();
    let encoded = response.encode(&mut buffer, version);
    assert!(
        encoded.is_ok(),
        "version {version}: {encoded:?} of {response:?}"
    );
}

fn commit_of(group: &str, topic: &str, partitions: std::ops::Range<i32>) -> OffsetCommitRequest {
    let partitions = partitions.map(|index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(7)
            .with_committed_metadata(Some(text("note")))
    });
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text(topic)))
        .with_partitions(partitions.collect());
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

fn join_of(group: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

/// Joins and syncs the only member of a group; its id and generation.
async fn join_and_sync(
    coordinator: &GroupCoordinator,
    group: &str,
    version: i16,
) -> (StrBytes, i32) {
    let mut request = join_of(group);
    if version >= 4 {
        let refused = coordinator.join_group(info(version), request.clone()).await;
        assert_eq!(refused.error_code, ResponseError::MemberIdRequired.code());
        assert_encodes(&refused, version);
        request.member_id = refused.member_id;
    }
    let joined = coordinator.join_group(info(version), request).await;
    assert_eq!(joined.error_code, 0);
    assert_encodes(&joined, version);
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment(bytes::Bytes::from_static(b"assigned"));
    let request = SyncGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_member_id(joined.member_id.clone())
        .with_generation_id(joined.generation_id)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_assignments(vec![assignment]);
    let version = version.min(5);
    let synced = coordinator.sync_group(info(version), request).await;
    assert_eq!(
        (synced.error_code, &synced.assignment[..]),
        (0, &b"assigned"[..])
    );
    assert_encodes(&synced, version);
    (joined.member_id, joined.generation_id)
}

#[tokio::test]
async fn joins_syncs_heartbeats_and_leaves_can_be_said_in_every_version() {
    let coordinator = coordinator(&MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    for version in 0..=9 {
        let group = format!("group-{version}");
        let (member_id, generation) = join_and_sync(&coordinator, &group, version).await;
        let heartbeat = HeartbeatRequest::default()
            .with_group_id(GroupId(text(&group)))
            .with_member_id(member_id.clone())
            .with_generation_id(generation);
        let alive = coordinator.heartbeat(heartbeat).await;
        assert_eq!(alive.error_code, 0);
        assert_encodes(&alive, version.min(4));
        let leave = LeaveGroupRequest::default().with_group_id(GroupId(text(&group)));
        let version = version.min(5);
        let leave = if version <= 2 {
            leave.with_member_id(member_id)
        } else {
            let stranger = MemberIdentity::default().with_member_id(text("stranger"));
            leave.with_members(vec![
                MemberIdentity::default().with_member_id(member_id),
                stranger,
            ])
        };
        let left = coordinator.leave_group(info(version), leave.clone()).await;
        assert_encodes(&left, version);
        let unknown = ResponseError::UnknownMemberId.code();
        let codes: Vec<i16> = left
            .members
            .iter()
            .map(|member| member.error_code)
            .collect();
        assert_eq!(
            (left.error_code, codes),
            (
                0,
                if version <= 2 {
                    vec![]
                } else {
                    vec![0, unknown]
                }
            )
        );
        let again = coordinator.leave_group(info(version), leave).await;
        assert_encodes(&again, version);
        assert_eq!(again.error_code, if version <= 2 { unknown } else { 0 });
    }
}

#[tokio::test]
async fn refusals_can_be_said_in_every_version() {
    let coordinator = coordinator(&MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    for version in 0..=9 {
        let refused = coordinator.join_group(info(version), join_of("")).await;
        assert_eq!(refused.error_code, ResponseError::InvalidGroupId.code());
        assert_encodes(&refused, version);
        let version = version.min(5);
        let sync = SyncGroupRequest::default()
            .with_group_id(GroupId(text("g")))
            .with_member_id(text("stranger"));
        let refused = coordinator.sync_group(info(version), sync).await;
        let expected = match version {
            5.. => ResponseError::InconsistentGroupProtocol,
            _ => ResponseError::UnknownMemberId,
        };
        assert_eq!(refused.error_code, expected.code());
        assert_encodes(&refused, version);
    }
}

#[tokio::test]
async fn commits_and_fetches_of_offsets_can_be_said_in_every_version() {
    let coordinator = coordinator(&MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    for version in 2..=9 {
        let committed = coordinator
            .offset_commit(info(version), commit_of("v", "orders", 0..3))
            .await;
        assert_encodes(&committed, version);
        let codes: Vec<i16> = committed.topics[0]
            .partitions
            .iter()
            .map(|p| p.error_code)
            .collect();
        let unknown = ResponseError::UnknownTopicOrPartition.code();
        assert_eq!(committed.topics.len(), 1);
        assert_eq!(
            codes.iter().filter(|code| **code == unknown).count(),
            1,
            "{codes:?}"
        );
    }
    for version in 1..=7 {
        let topic = OffsetFetchRequestTopic::default()
            .with_name(TopicName(text("orders")))
            .with_partition_indexes(vec![0, 5]);
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(text("v")))
            .with_topics(Some(vec![topic]));
        let fetched = coordinator.offset_fetch(info(version), request).await;
        assert_encodes(&fetched, version);
        let offsets = fetched.topics[0].partitions.iter();
        let offsets: Vec<_> = offsets
            .map(|p| (p.committed_offset, p.error_code))
            .collect();
        assert_eq!(offsets, [(7, 0), (-1, 0)]);
    }
    for version in 8..=9 {
        let groups = ["v", "nobody's"].map(|group| {
            OffsetFetchRequestGroup::default()
                .with_group_id(GroupId(text(group)))
                // A classic group's coordinator does not look at these (KIP-848).
                .with_member_id(Some(text("stranger")))
                .with_member_epoch(3)
                .with_topics(None)
        });
        let request = OffsetFetchRequest::default().with_groups(groups.into());
        let fetched = coordinator.offset_fetch(info(version), request).await;
        assert_encodes(&fetched, version);
        let found = fetched
            .groups
            .iter()
            .map(|group| (group.error_code, group.topics.len()));
        assert_eq!(found.collect::<Vec<_>>(), [(0, 1), (0, 0)]);
    }
}

/// `orders`, whose id is that of its present life.
struct Reborn(std::sync::atomic::AtomicU64);

impl Reborn {
    fn id(&self) -> uuid::Uuid {
        let life = self.0.load(std::sync::atomic::Ordering::Relaxed);
        uuid::Uuid::from_u128(life.into())
    }
}

impl TopicLookup for Reborn {
    fn topic_id(&self, name: &str) -> Option<uuid::Uuid> {
        (name == "orders").then(|| self.id())
    }

    fn topic_name(&self, id: uuid::Uuid) -> Option<String> {
        (id == self.id()).then(|| "orders".to_owned())
    }

    fn partition_count(&self, name: &str) -> Option<i32> {
        (name == "orders").then_some(2)
    }
}

/// Commits to partitions 0 and 1 of a topic, and 2, which there is not; each partition's error.
async fn commit_by_id(coordinator: &GroupCoordinator, id: u128) -> Vec<i16> {
    let mut request = commit_of("g", "", 0..3);
    request.topics[0].topic_id = uuid::Uuid::from_u128(id);
    let answer = coordinator.offset_commit(info(10), request).await;
    assert_encodes(&answer, 10);
    assert_eq!(answer.topics.len(), 1);
    let topic = &answer.topics[0];
    assert_eq!((topic.topic_id.as_u128(), topic.name.as_str()), (id, ""));
    let mut codes: Vec<_> = topic.partitions.iter().collect();
    codes.sort_by_key(|partition| partition.partition_index);
    codes.iter().map(|partition| partition.error_code).collect()
}

/// Topic id, offset and error of each partition of `g`; of partitions 0 and 1 of the topics `ids`, or of all topics.
async fn fetch_by_id(
    coordinator: &GroupCoordinator,
    ids: Option<&[u128]>,
) -> Vec<(u128, i64, i16)> {
    let wanted = ids.map(|ids| {
        let topics = ids.iter().map(|id| {
            OffsetFetchRequestTopics::default()
                .with_topic_id(uuid::Uuid::from_u128(*id))
                .with_partition_indexes(vec![0, 1])
        });
        topics.collect()
    });
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text("g")))
        .with_topics(wanted);
    let request = OffsetFetchRequest::default().with_groups(vec![group]);
    let answer = coordinator.offset_fetch(info(10), request).await;
    assert_encodes(&answer, 10);
    assert_eq!(answer.groups[0].error_code, 0);
    let topics = answer.groups[0].topics.iter();
    let found = topics.flat_map(|topic| {
        assert_eq!(topic.name.as_str(), "");
        let partitions = topic.partitions.iter();
        partitions.map(|p| (topic.topic_id.as_u128(), p.committed_offset, p.error_code))
    });
    found.collect()
}

async fn fetch_by_name(coordinator: &GroupCoordinator, version: i16) -> Vec<i64> {
    let topic = OffsetFetchRequestTopics::default()
        .with_name(TopicName(text("orders")))
        .with_partition_indexes(vec![0]);
    let mut group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text("g")))
        .with_topics(Some(vec![topic]));
    let mut offsets = Vec::new();
    for _ in 0..2 {
        let request = OffsetFetchRequest::default().with_groups(vec![group.clone()]);
        let answer = coordinator.offset_fetch(info(version), request).await;
        assert_encodes(&answer, version);
        let topics = answer.groups[0].topics.iter();
        offsets.extend(topics.flat_map(|t| t.partitions.iter().map(|p| p.committed_offset)));
        group.topics = None;
    }
    offsets
}

#[tokio::test]
async fn in_version_10_topics_are_known_by_their_ids() {
    let coordinator = coordinator(&MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    let unknown_partition = ResponseError::UnknownTopicOrPartition.code();
    let unknown_id = ResponseError::UnknownTopicId.code();
    assert_eq!(
        commit_by_id(&coordinator, 7).await,
        [0, 0, unknown_partition]
    );
    assert_eq!(commit_by_id(&coordinator, 8).await, [unknown_id; 3]);
    assert_eq!(commit_by_id(&coordinator, 0).await, [unknown_id; 3]);
    assert_eq!(
        fetch_by_id(&coordinator, Some(&[8, 7, 0])).await,
        [
            (7, 7, 0),
            (7, 7, 0),
            (8, -1, unknown_id),
            (8, -1, unknown_id),
            (0, -1, unknown_id),
            (0, -1, unknown_id)
        ]
    );
    assert_eq!(
        fetch_by_id(&coordinator, None).await,
        [(7, 7, 0), (7, 7, 0)]
    );
    assert_eq!(fetch_by_name(&coordinator, 9).await, [7, 7, 7]);
}

#[tokio::test]
async fn a_topic_made_anew_does_not_take_over_the_offsets_of_the_old_one() {
    let topics = Arc::new(Reborn(7.into()));
    let config = GroupConfig {
        offsets_topic_partitions: 1,
        ..GroupConfig::default()
    };
    let coordinator = GroupCoordinator::new(config, topics.clone(), Arc::new(|| 1_000));
    coordinator.become_leader(0, MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    let unknown_partition = ResponseError::UnknownTopicOrPartition.code();
    let unknown_id = ResponseError::UnknownTopicId.code();
    assert_eq!(
        commit_by_id(&coordinator, 7).await,
        [0, 0, unknown_partition]
    );
    // As after a crash between the deletion and the removal of its offsets.
    topics.0.store(8, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(commit_by_id(&coordinator, 7).await, [unknown_id; 3]);
    assert_eq!(
        fetch_by_id(&coordinator, Some(&[7, 8])).await,
        [
            (8, -1, 0),
            (8, -1, 0),
            (7, -1, unknown_id),
            (7, -1, unknown_id)
        ]
    );
    assert_eq!(fetch_by_id(&coordinator, None).await, []);
    assert_eq!(fetch_by_name(&coordinator, 8).await, [-1]);
    // Only partition 1 is committed to again.
    assert_eq!(commit(&coordinator, 6).await, 0);
    assert_eq!(fetch_by_id(&coordinator, None).await, [(8, 6, 0)]);
    let deleted = DeletedTopic {
        name: "orders".into(),
        id: uuid::Uuid::from_u128(7),
    };
    coordinator.topics_deleted(vec![deleted]).await;
    assert_eq!(fetch_by_id(&coordinator, None).await, [(8, 6, 0)]);
}

#[tokio::test]
async fn an_error_of_the_group_stands_where_each_version_looks_for_it() {
    let elsewhere =
        GroupCoordinator::new(GroupConfig::default(), Arc::new(OneTopic), Arc::new(|| 0));
    let code = ResponseError::NotCoordinator.code();
    for version in 2..=10 {
        let mut request = commit_of("g", "orders", 0..1);
        request.topics[0].topic_id = uuid::Uuid::from_u128(7);
        let committed = elsewhere.offset_commit(info(version), request).await;
        assert_eq!(committed.topics[0].partitions[0].error_code, code);
        assert_encodes(&committed, version);
    }
    for version in 1..=10 {
        let topic = OffsetFetchRequestTopic::default()
            .with_name(TopicName(text("orders")))
            .with_partition_indexes(vec![0]);
        let request = match version {
            ..=7 => OffsetFetchRequest::default().with_topics(Some(vec![topic])),
            _ => OffsetFetchRequest::default().with_groups(vec![Default::default()]),
        };
        let fetched = elsewhere.offset_fetch(info(version), request).await;
        assert_encodes(&fetched, version);
        let found = match version {
            1 => fetched.topics[0].partitions[0].error_code,
            2..=7 => fetched.error_code,
            _ => fetched.groups[0].error_code,
        };
        assert_eq!(found, code, "version {version}");
    }
    let member = MemberIdentity::default().with_member_id(text("m"));
    let leave = LeaveGroupRequest::default().with_members(vec![member]);
    let left = elsewhere.leave_group(info(5), leave).await;
    assert_eq!((left.error_code, left.members.len()), (code, 0));
}

#[tokio::test]
async fn groups_are_described_as_their_version_allows() {
    let coordinator = coordinator(&MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    join_and_sync(&coordinator, "living", 5).await;
    for version in 0..=6 {
        let groups = ["living", "g", "unknown"].map(|group| GroupId(text(group)));
        let request = DescribeGroupsRequest::default()
            .with_groups(groups.into())
            .with_include_authorized_operations(version >= 3);
        let response = coordinator.describe_groups(info(version), request).await;
        assert_encodes(&response, version);
        let states: Vec<&str> = response
            .groups
            .iter()
            .map(|group| group.group_state.as_str())
            .collect();
        assert_eq!(states, ["Stable", "Empty", "Dead"]);
        let living = &response.groups[0];
        assert_eq!(
            (living.protocol_data.as_str(), living.protocol_type.as_str()),
            ("range", "consumer")
        );
        assert_eq!(living.members[0].member_assignment, &b"assigned"[..]);
        let operations = if version >= 3 {
            0b1101_0100_1000
        } else {
            i32::MIN
        };
        assert_eq!(living.authorized_operations, operations);
        let missing = &response.groups[2];
        let expected = match version {
            6 => (ResponseError::GroupIdNotFound.code(), i32::MIN),
            _ => (0, operations),
        };
        assert_eq!(
            (missing.error_code, missing.authorized_operations),
            expected
        );
    }
    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text("living"))]);
    let response = coordinator.describe_groups(info(6), request).await;
    assert_eq!(
        response.groups[0].authorized_operations,
        i32::MIN,
        "not asked for"
    );
}

#[tokio::test]
async fn groups_are_listed_by_state_and_type_whatever_their_case() {
    let coordinator = coordinator(&MemoryLog::open());
    assert_eq!(commit(&coordinator, 5).await, 0);
    join_and_sync(&coordinator, "living", 5).await;
    let list = async |states: &[&str], types: &[&str], version| {
        let texts = |of: &[&str]| of.iter().map(|value| text(value)).collect();
        let request = ListGroupsRequest::default()
            .with_states_filter(texts(states))
            .with_types_filter(texts(types));
        let response = coordinator.list_groups(info(version), request).await;
        assert_eq!(response.error_code, 0);
        assert_encodes(&response, version);
        let mut ids: Vec<String> = response
            .groups
            .iter()
            .map(|group| group.group_id.to_string())
            .collect();
        ids.sort();
        ids
    };
    for version in 0..=5 {
        assert_eq!(list(&[], &[], version).await, ["g", "living"]);
    }
    assert_eq!(list(&["stable"], &[], 4).await, ["living"]);
    assert_eq!(
        list(&["Empty", "STABLE"], &["CLASSIC"], 5).await,
        ["g", "living"]
    );
    assert!(list(&["Dead"], &[], 5).await.is_empty());
    assert!(list(&[], &["consumer"], 5).await.is_empty());
}

#[tokio::test]
async fn deletions_can_be_said_in_every_version() {
    let coordinator = coordinator(&MemoryLog::open());
    join_after_load(&coordinator).await;
    for version in 0..=2 {
        assert_eq!(commit(&coordinator, 5).await, 0);
        let groups = ["g", "living", "unknown"].map(|group| GroupId(text(group)));
        let request = DeleteGroupsRequest::default().with_groups_names(groups.into());
        let response = coordinator.delete_groups(request).await;
        assert_encodes(&response, version);
        let codes: Vec<i16> = response
            .results
            .iter()
            .map(|result| result.error_code)
            .collect();
        let expected = [ResponseError::NonEmptyGroup, ResponseError::GroupIdNotFound]
            .map(|error| error.code());
        assert_eq!(codes, [0, expected[0], expected[1]]);
    }
    assert_eq!(commit(&coordinator, 5).await, 0);
    let partitions =
        [1, 9].map(|index| OffsetDeleteRequestPartition::default().with_partition_index(index));
    let topic = OffsetDeleteRequestTopic::default()
        .with_name(TopicName(text("orders")))
        .with_partitions(partitions.into());
    let request = OffsetDeleteRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_topics(vec![topic]);
    let response = coordinator.offset_delete(request).await;
    assert_encodes(&response, 0);
    assert_eq!((response.error_code, response.topics.len()), (0, 1));
    let codes = response.topics[0]
        .partitions
        .iter()
        .map(|p| (p.partition_index, p.error_code));
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(codes.collect::<Vec<_>>(), [(1, 0), (9, unknown)]);
}

async fn join_after_load(coordinator: &GroupCoordinator) {
    assert_eq!(commit(coordinator, 5).await, 0);
    join_and_sync(coordinator, "living", 5).await;
}

#[tokio::test]
async fn a_topic_deleted_while_the_log_is_read_leaves_no_offsets() {
    let log = MemoryLog::open();
    assert_eq!(commit(&coordinator(&log), 5).await, 0);
    let held = log.reads.clone().acquire_owned().await;
    let next = coordinator(&log);
    settle().await;
    let deleted = DeletedTopic {
        name: "orders".into(),
        id: uuid::Uuid::from_u128(7),
    };
    let told = next.topics_deleted(vec![deleted]);
    let rest = async {
        let heartbeat = next
            .heartbeat(HeartbeatRequest::default().with_group_id(GroupId(text("g"))))
            .await;
        assert_eq!(
            heartbeat.error_code, 0,
            "a loading coordinator keeps members alive"
        );
        drop(held);
    };
    tokio::join!(told, rest);
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(GroupId(text("g")))
        .with_topics(None);
    let request = OffsetFetchRequest::default().with_groups(vec![group]);
    let fetched = next.offset_fetch(info(9), request).await;
    assert_eq!(
        (fetched.groups[0].error_code, fetched.groups[0].topics.len()),
        (0, 0)
    );
    assert_eq!(log.batches().len(), 2, "the removal is in the log");
}

#[tokio::test]
async fn a_corrupt_log_is_not_served_and_does_not_hang() {
    let log = MemoryLog::open();
    assert_eq!(commit(&coordinator(&log), 5).await, 0);
    log.batches().push(bytes::Bytes::from_static(&[0xff; 80]));
    let next = coordinator(&log);
    settle().await;
    let answer = next.join_group(info(9), join_of("g")).await;
    assert_eq!(answer.error_code, ResponseError::NotCoordinator.code());
}

#[tokio::test]
async fn a_large_commit_is_appended_in_bounded_batches_and_answered_once() {
    let log = MemoryLog::open();
    let config = GroupConfig {
        offsets_topic_partitions: 1,
        append_bytes_max: 200,
        ..GroupConfig::default()
    };
    let coordinator = GroupCoordinator::new(config, Arc::new(ManyPartitions), Arc::new(|| 1_000));
    coordinator.become_leader(0, log.clone());
    settle().await;
    let held = log.appends.clone().acquire_owned().await;
    let answer = coordinator.offset_commit(info(9), commit_of("g", "orders", 0..1_000));
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        _ = &mut answer => panic!("answered before the commit"),
        () = settle() => {}
    }
    assert!(log.batches().len() > 100 && log.batches().iter().all(|batch| batch.len() <= 200));
    drop(held);
    let answer = answer.await;
    assert!(
        answer.topics[0]
            .partitions
            .iter()
            .all(|partition| partition.error_code == 0)
    );
}

#[tokio::test]
async fn a_commit_that_takes_too_long_is_an_error_but_not_lost() {
    let log = MemoryLog::open();
    let config = GroupConfig {
        offsets_topic_partitions: 1,
        commit_timeout_ms: 0,
        ..GroupConfig::default()
    };
    let coordinator = GroupCoordinator::new(config, Arc::new(OneTopic), Arc::new(|| 1_000));
    coordinator.become_leader(0, log.clone());
    assert_eq!(commit(&coordinator, 5).await, 0);
    let held = log.appends.clone().acquire_owned().await;
    let code = commit(&coordinator, 6).await;
    assert_eq!(code, ResponseError::CoordinatorNotAvailable.code());
    drop(held);
    settle().await;
    assert_eq!(fetch(&coordinator).await, 6);
}

struct ManyPartitions;

impl TopicLookup for ManyPartitions {
    fn topic_id(&self, _: &str) -> Option<uuid::Uuid> {
        None
    }

    fn topic_name(&self, _: uuid::Uuid) -> Option<String> {
        None
    }

    fn partition_count(&self, _: &str) -> Option<i32> {
        Some(1_000)
    }
}

#[tokio::test]
async fn those_who_wait_are_told_when_leadership_ends() {
    let log = MemoryLog::open();
    let coordinator = coordinator(&log);
    join_after_load(&coordinator).await;
    let joining = coordinator.join_group(info(3), join_of("living"));
    let mut joining = std::pin::pin!(joining);
    tokio::select! {
        _ = &mut joining => panic!("the group's other member has not rejoined"),
        () = settle() => {}
    }
    coordinator.resign(0);
    assert_eq!(
        joining.await.error_code,
        ResponseError::NotCoordinator.code()
    );
}

fn transaction(offset: i64) -> TxnOffsetCommitRequest {
    let partition = TxnOffsetCommitRequestPartition::default()
        .with_partition_index(1)
        .with_committed_offset(offset);
    let topic = TxnOffsetCommitRequestTopic::default()
        .with_name(TopicName(text("orders")))
        .with_partitions(vec![partition]);
    TxnOffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_producer_id(ProducerId(9))
        .with_generation_id(-1)
        .with_topics(vec![topic])
}

async fn commit_in_transaction(
    coordinator: &GroupCoordinator,
    offset: i64,
) -> Result<i16, ResponseError> {
    let ids = HashMap::from([("orders".to_owned(), uuid::Uuid::from_u128(7))]);
    let committed = coordinator.commit_in_transaction(transaction(offset), ids, None);
    Ok(committed.await?.topics[0].partitions[0].error_code)
}

async fn end(
    coordinator: &GroupCoordinator,
    result: TransactionResult,
) -> Result<(), ResponseError> {
    let marker = EndMarker {
        producer_id: 9,
        producer_epoch: 0,
        coordinator_epoch: 1,
        result,
        transaction_version: 0,
    };
    coordinator.end_transaction(0, marker).await
}

/// The offset and the error, as one is told who wants stable offsets, and as one who does not.
async fn stable(coordinator: &GroupCoordinator) -> [(i64, i16); 2] {
    let mut seen = Vec::new();
    for require_stable in [true, false] {
        let topic = OffsetFetchRequestTopics::default()
            .with_name(TopicName(text("orders")))
            .with_partition_indexes(vec![1]);
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text("g")))
            .with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default()
            .with_require_stable(require_stable)
            .with_groups(vec![group]);
        let response = coordinator.offset_fetch(info(9), request).await;
        let partition = &response.groups[0].topics[0].partitions[0];
        seen.push((partition.committed_offset, partition.error_code));
    }
    seen.try_into().unwrap()
}

#[tokio::test]
async fn offsets_of_a_transaction_hold_at_its_marker_whoever_leads_then() {
    let log = MemoryLog::open();
    let first = coordinator(&log);
    assert_eq!(commit(&first, 5).await, 0);
    assert_eq!(commit_in_transaction(&first, 6).await, Ok(0));
    let unstable = ResponseError::UnstableOffsetCommit.code();
    assert_eq!(stable(&first).await, [(-1, unstable), (5, 0)]);
    let second = coordinator(&log);
    loaded(&second).await;
    assert_eq!(stable(&second).await, [(-1, unstable), (5, 0)]);
    assert_eq!(end(&second, TransactionResult::Abort).await, Ok(()));
    assert_eq!(stable(&second).await, [(5, 0); 2]);
    assert_eq!(commit_in_transaction(&second, 7).await, Ok(0));
    assert_eq!(end(&second, TransactionResult::Commit).await, Ok(()));
    assert_eq!(stable(&second).await, [(7, 0); 2]);
    let third = coordinator(&log);
    loaded(&third).await;
    assert_eq!(stable(&third).await, [(7, 0); 2]);
    assert_eq!(
        end(&third, TransactionResult::Commit).await,
        Ok(()),
        "twice"
    );
    assert_eq!(stable(&third).await, [(7, 0); 2]);
}

#[tokio::test]
async fn a_fenced_producer_is_told_so_and_others_come_again() {
    let log = MemoryLog::open();
    let coordinator = coordinator(&log);
    assert_eq!(commit(&coordinator, 5).await, 0);
    log.fail_next(ResponseError::InvalidProducerEpoch);
    let gate = log.appends.clone().acquire_owned().await.unwrap();
    let (refused, other, _) = tokio::join!(
        commit_in_transaction(&coordinator, 6),
        commit(&coordinator, 7),
        async { drop(gate) }
    );
    assert_eq!(refused, Err(ResponseError::InvalidProducerEpoch));
    assert_eq!(other, 0, "after another try");
    assert_eq!(stable(&coordinator).await, [(7, 0); 2]);
}

#[tokio::test]
async fn a_member_that_is_not_of_the_group_commits_nothing() {
    let log = MemoryLog::open();
    let coordinator = coordinator(&log);
    assert_eq!(commit(&coordinator, 5).await, 0);
    let request = transaction(6)
        .with_generation_id(3)
        .with_member_id(text("m"));
    let answer = coordinator.commit_in_transaction(request, HashMap::new(), None);
    let code = answer.await.unwrap().topics[0].partitions[0].error_code;
    assert_eq!(code, ResponseError::UnknownMemberId.code());
    assert_eq!(stable(&coordinator).await, [(5, 0); 2]);
}

/// A group's name stands in every record: a small request must not become a batch that no broker can send to another.
#[tokio::test]
async fn a_commit_that_would_be_too_large_is_refused_alone() {
    let log = MemoryLog::open();
    let coordinator = coordinator(&log);
    assert_eq!(commit(&coordinator, 5).await, 0);
    let group = GroupId(text(&"g".repeat(30_000)));
    let code = ResponseError::InvalidCommitOffsetSize.code();

    let partition = TxnOffsetCommitRequestPartition::default().with_partition_index(1);
    let mut request = transaction(6).with_group_id(group.clone());
    request.topics[0].partitions = vec![partition; 40];
    let answer = coordinator.commit_in_transaction(request, HashMap::new(), None);
    let answer = answer.await.unwrap();
    let refused = &answer.topics[0].partitions;
    assert!(refused.iter().all(|partition| partition.error_code == code));

    let partition = OffsetCommitRequestPartition::default().with_partition_index(1);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text("orders")))
        .with_partitions(vec![partition; 40]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group)
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let answer = coordinator.offset_commit(info(9), request).await;
    let refused = &answer.topics[0].partitions;
    assert!(refused.iter().all(|partition| partition.error_code == code));
    assert_eq!(log.batches().len(), 1);
    assert_eq!(stable(&coordinator).await, [(5, 0); 2]);
}

#[tokio::test]
async fn members_that_sync_while_the_log_is_read_join_again() {
    let log = MemoryLog::open();
    let held = log.reads.clone().acquire_owned().await;
    let coordinator = coordinator(&log);
    let request = SyncGroupRequest::default().with_group_id(GroupId(text("g")));
    let answer = coordinator.sync_group(info(3), request).await;
    // Java consumers throw LOAD_IN_PROGRESS at their callers.
    assert_eq!(answer.error_code, ResponseError::RebalanceInProgress.code());
    drop(held);
}

#[tokio::test]
async fn ids_are_spread_over_the_partitions_that_the_topic_has() {
    let coordinator = GroupCoordinator::new(
        GroupConfig::default(),
        Arc::new(OneTopic),
        Arc::new(|| 1_000),
    );
    assert_eq!(coordinator.partition_for("abc"), 96_354 % 50);
    coordinator.set_partition_count(7);
    assert_eq!(coordinator.partition_for("abc"), 96_354 % 7);
}
