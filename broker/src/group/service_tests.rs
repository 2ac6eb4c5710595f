use super::*;
use crate::group::memory_log::MemoryLog;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{OffsetCommitRequest, OffsetFetchRequest, TopicName};

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
    *log.failure.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(ResponseError::NotEnoughReplicas);
    assert_eq!(
        commit(&coordinator, 6).await,
        ResponseError::CoordinatorNotAvailable.code()
    );
    let _ = log.gate.available_permits();
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
