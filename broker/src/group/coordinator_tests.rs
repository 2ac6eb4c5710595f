use super::*;
use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;

const RETENTION_MS: i64 = 1_000_000;
const CHECK_MS: i64 = 1_000;

/// A coordinator whose decisions are also replayed into a second one, as a new leader would.
struct Bench {
    live: PartitionCoordinator,
    log: Vec<CoordinatorRecord>,
    now_ms: i64,
    token: Token,
}

impl Bench {
    fn new() -> Self {
        Self {
            live: PartitionCoordinator::new(config(), 0),
            log: Vec::new(),
            now_ms: 0,
            token: 0,
        }
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.token += 1;
        let decision = self.live.handle(request, self.token, self.now_ms);
        self.log.extend(decision.records);
        let mut replies = decision.replies.into_iter();
        let (token, reply) = replies.next().expect("answered at once");
        assert_eq!((token, replies.next().is_none()), (self.token, true));
        reply
    }

    fn pass(&mut self, ms: i64) {
        self.now_ms += ms;
        let decision = self.live.tick(self.now_ms);
        self.log.extend(decision.records);
    }

    fn commit(&mut self, group: &str, topic: &str, generation: i32, api_version: i16) -> i16 {
        let partition = OffsetCommitRequestPartition::default().with_committed_offset(5);
        self.commit_partition(group, topic, partition, -1, generation, api_version)
    }

    fn commit_partition(
        &mut self,
        group: &str,
        topic: &str,
        partition: OffsetCommitRequestPartition,
        retention_time_ms: i64,
        generation: i32,
        api_version: i16,
    ) -> i16 {
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(text(topic)))
            .with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_generation_id_or_member_epoch(generation)
            .with_retention_time_ms(retention_time_ms)
            .with_topics(vec![topic]);
        match self.ask(Request::CommitOffsets {
            request,
            api_version,
        }) {
            Reply::CommitOffsets(response) => response.topics[0].partitions[0].error_code,
            other => panic!("{other:?}"),
        }
    }

    fn topics(&self, group: &str) -> Vec<&str> {
        let replayed = self.reload();
        let names = |coordinator: &PartitionCoordinator| -> Vec<String> {
            coordinator
                .offsets
                .topics(group)
                .map(|(name, _)| name.clone())
                .collect()
        };
        assert_eq!(
            names(&replayed),
            names(&self.live),
            "a new leader knows the same offsets"
        );
        let found = self.live.offsets.topics(group);
        found.map(|(name, _)| name.as_str()).collect()
    }

    fn reload(&self) -> PartitionCoordinator {
        let mut replayed = PartitionCoordinator::new(config(), self.now_ms);
        for record in &self.log {
            replayed.replay(Entry::Record(record.clone()), self.now_ms);
        }
        replayed
    }

    /// Makes a stable group of one member that subscribes to `topics`; its id.
    fn join(&mut self, group: &str, protocol_type: &str, topics: &[&str]) -> String {
        let mut metadata = vec![0, 1];
        metadata.extend((topics.len() as i32).to_be_bytes());
        for topic in topics {
            metadata.extend((topic.len() as i16).to_be_bytes());
            metadata.extend(topic.as_bytes());
        }
        metadata.extend([0xff; 4]);
        let reply = self.ask(Request::Join {
            info: RequestInfo::default(),
            request: join_of(group, protocol_type, metadata.into()),
            new_member_suffix: "1".into(),
        });
        let Reply::Join(JoinReply::Joined(joined)) = reply else {
            panic!("{reply:?}")
        };
        let member_id = text(&joined.member_id);
        let assignment = SyncGroupRequestAssignment::default().with_member_id(member_id.clone());
        let sync = SyncGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(member_id)
            .with_generation_id(joined.generation)
            .with_assignments(vec![assignment]);
        assert!(matches!(self.ask(Request::Sync(sync)), Reply::Sync(Ok(_))));
        joined.member_id
    }

    fn delete_offsets(&mut self, group: &str, topics: &[&str]) -> OffsetDeleteResponse {
        let topics = topics.iter().map(|topic| {
            let partition = OffsetDeleteRequestPartition::default();
            OffsetDeleteRequestTopic::default()
                .with_name(TopicName(text(topic)))
                .with_partitions(vec![partition])
        });
        let request = OffsetDeleteRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_topics(topics.collect());
        match self.ask(Request::DeleteOffsets(request)) {
            Reply::DeleteOffsets(response) => response,
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, group: &str) -> Result<(), ResponseError> {
        match self.ask(Request::Delete(GroupId(text(group)))) {
            Reply::Delete(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn leave(&mut self, group: &str, member_id: &str) {
        let member = kafka_protocol::messages::leave_group_request::MemberIdentity::default()
            .with_member_id(text(member_id));
        let request = LeaveGroupRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_members(vec![member]);
        let reply = self.ask(Request::Leave(request));
        assert!(matches!(reply, Reply::Leave(Ok(results)) if results == [Ok(())]));
    }
}

fn config() -> GroupConfig {
    GroupConfig {
        initial_rebalance_delay_ms: 0,
        offsets_retention_ms: RETENTION_MS,
        offsets_retention_check_interval_ms: CHECK_MS,
        offset_metadata_max: 4,
        ..GroupConfig::default()
    }
}

fn join_of(group: &str, protocol_type: &str, metadata: bytes::Bytes) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(metadata);
    JoinGroupRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_session_timeout_ms(1_800_000)
        .with_rebalance_timeout_ms(1_800_000)
        .with_protocol_type(text(protocol_type))
        .with_protocols(vec![protocol])
}

#[test]
fn offsets_without_group_management_expire_by_their_own_age_and_the_group_with_the_last() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("g", "old", -1, 9), 0);
    bench.pass(RETENTION_MS / 2);
    assert_eq!(bench.commit("g", "new", -1, 9), 0);
    bench.pass(RETENTION_MS / 2 - 1);
    assert_eq!(bench.topics("g"), ["new", "old"]);
    bench.pass(CHECK_MS);
    assert_eq!(bench.topics("g"), ["new"]);
    bench.pass(RETENTION_MS);
    assert!(bench.topics("g").is_empty());
    assert_eq!(bench.delete("g"), Err(ResponseError::GroupIdNotFound));
}

#[test]
fn offsets_of_a_living_group_expire_only_for_topics_it_does_not_read() {
    let mut bench = Bench::new();
    for topic in ["read", "unread"] {
        assert_eq!(bench.commit("g", topic, -1, 9), 0);
    }
    let member = bench.join("g", "consumer", &["read"]);
    bench.pass(RETENTION_MS + CHECK_MS);
    assert_eq!(bench.topics("g"), ["read"]);
    bench.leave("g", &member);
    bench.pass(RETENTION_MS - 1);
    assert_eq!(
        bench.topics("g"),
        ["read"],
        "the time since the group is empty counts"
    );
    bench.pass(CHECK_MS);
    assert!(bench.topics("g").is_empty());
}

#[test]
fn offsets_of_a_living_group_of_another_protocol_do_not_expire() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("g", "topic", -1, 9), 0);
    bench.join("g", "connect", &[]);
    bench.pass(RETENTION_MS + CHECK_MS);
    assert_eq!(bench.topics("g"), ["topic"]);
}

#[test]
fn a_client_may_choose_how_long_its_offset_is_kept() {
    let mut bench = Bench::new();
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(1);
    assert_eq!(
        bench.commit_partition("g", "topic", partition, 10, -1, 4),
        0
    );
    bench.pass(9);
    assert_eq!(bench.topics("g"), ["topic"]);
    bench.pass(CHECK_MS);
    assert!(bench.topics("g").is_empty());
}

#[test]
fn offsets_of_topics_in_use_cannot_be_deleted() {
    let mut bench = Bench::new();
    for topic in ["read", "unread"] {
        assert_eq!(bench.commit("g", topic, -1, 9), 0);
    }
    let member = bench.join("g", "consumer", &["read"]);
    let response = bench.delete_offsets("g", &["read", "unread"]);
    let codes: Vec<i16> = response
        .topics
        .iter()
        .map(|t| t.partitions[0].error_code)
        .collect();
    assert_eq!(codes, [ResponseError::GroupSubscribedToTopic.code(), 0]);
    assert_eq!(bench.topics("g"), ["read"]);
    bench.leave("g", &member);
    assert_eq!(
        bench.delete_offsets("g", &["read"]).topics[0].partitions[0].error_code,
        0
    );
    assert!(bench.topics("g").is_empty());
}

#[test]
fn offsets_of_a_group_that_cannot_answer_for_them_are_not_deleted() {
    let mut bench = Bench::new();
    bench.join("connect", "connect", &[]);
    let mut code = |group: &str| bench.delete_offsets(group, &["t"]).error_code;
    assert_eq!(code("connect"), ResponseError::NonEmptyGroup.code());
    assert_eq!(code("unknown"), ResponseError::GroupIdNotFound.code());
    assert_eq!(code(""), ResponseError::InvalidGroupId.code());
}

#[test]
fn consumers_with_an_unreadable_subscription_are_assumed_to_read_everything() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("g", "topic", -1, 9), 0);
    let reply = bench.ask(Request::Join {
        info: RequestInfo::default(),
        request: join_of("g", "consumer", bytes::Bytes::from_static(b"?")),
        new_member_suffix: "1".into(),
    });
    assert!(matches!(reply, Reply::Join(JoinReply::Joined(_))));
    let code = bench.delete_offsets("g", &["topic"]).topics[0].partitions[0].error_code;
    assert_eq!(code, ResponseError::GroupSubscribedToTopic.code());
}

#[test]
fn only_an_empty_group_can_be_deleted_and_its_offsets_go_with_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("g", "topic", -1, 9), 0);
    let member = bench.join("g", "consumer", &["topic"]);
    assert_eq!(bench.delete("g"), Err(ResponseError::NonEmptyGroup));
    bench.leave("g", &member);
    assert_eq!(bench.delete("g"), Ok(()));
    assert!(bench.topics("g").is_empty());
    assert!(bench.reload().groups.is_empty());
    assert_eq!(bench.delete("g"), Err(ResponseError::GroupIdNotFound));
}

#[test]
fn a_deleted_topics_offsets_go_in_every_group() {
    let mut bench = Bench::new();
    for group in ["g", "h"] {
        for topic in ["gone", "stays"] {
            assert_eq!(bench.commit(group, topic, -1, 9), 0);
        }
    }
    let deleted = ["gone", "never seen"].map(|name| DeletedTopic {
        name: name.into(),
        id: Uuid::from_u128(1),
    });
    bench.ask(Request::TopicsDeleted(deleted.into()));
    assert_eq!(
        (bench.topics("g"), bench.topics("h")),
        (vec!["stays"], vec!["stays"])
    );
}

#[test]
fn session_timeouts_are_bounded() {
    let mut bench = Bench::new();
    let refused = |reply| matches!(reply, Reply::Join(JoinReply::Failed { error, .. }) if error == ResponseError::InvalidSessionTimeout);
    for (timeout_ms, is_refused) in [
        (5_999, true),
        (6_000, false),
        (1_800_000, false),
        (1_800_001, true),
        (-1, true),
    ] {
        let request = join_of(&format!("g{timeout_ms}"), "consumer", bytes::Bytes::new());
        let reply = bench.ask(Request::Join {
            info: RequestInfo::default(),
            request: request.with_session_timeout_ms(timeout_ms),
            new_member_suffix: "1".into(),
        });
        assert_eq!(refused(reply), is_refused, "{timeout_ms}");
    }
}

#[test]
fn a_refused_first_join_leaves_no_group_behind() {
    let mut bench = Bench::new();
    let reply = bench.ask(Request::Join {
        info: RequestInfo::default(),
        request: join_of("g", "", bytes::Bytes::new()),
        new_member_suffix: "1".into(),
    });
    let expected = ResponseError::InconsistentGroupProtocol;
    assert!(matches!(reply, Reply::Join(JoinReply::Failed { error, .. }) if error == expected));
    assert!(bench.live.groups.is_empty() && bench.live.timers.is_empty());
}

#[test]
fn commit_metadata_is_bounded_in_utf_16_units() {
    let mut bench = Bench::new();
    let mut commit = |metadata: &str| {
        let partition =
            OffsetCommitRequestPartition::default().with_committed_metadata(Some(text(metadata)));
        bench.commit_partition("g", "topic", partition, -1, -1, 9)
    };
    assert_eq!(commit("éééé"), 0);
    assert_eq!(
        commit("ééééé"),
        ResponseError::OffsetMetadataTooLarge.code()
    );
    assert_eq!(commit("😀😀"), 0);
    assert_eq!(
        commit("😀😀😀"),
        ResponseError::OffsetMetadataTooLarge.code()
    );
}

#[test]
fn a_generation_of_an_unknown_group_fails_as_the_version_knows_it() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.commit("g", "topic", 1, 8),
        ResponseError::IllegalGeneration.code()
    );
    assert_eq!(
        bench.commit("g", "topic", 1, 9),
        ResponseError::GroupIdNotFound.code()
    );
}

#[test]
fn a_reloaded_group_goes_on_and_its_members_get_a_fresh_session() {
    let mut bench = Bench::new();
    let member = bench.join("g", "consumer", &["read"]);
    bench.pass(1_000);
    let mut replayed = bench.reload();
    let heartbeat = HeartbeatRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(text(&member))
        .with_generation_id(1);
    let decision = replayed.handle(Request::Heartbeat(heartbeat), 1, bench.now_ms);
    assert!(matches!(
        decision.replies[..],
        [(1, Reply::Heartbeat(Ok(())))]
    ));
    let decision = replayed.tick(bench.now_ms + 1_800_000);
    assert!(decision.records.iter().any(|record| {
        matches!(record, CoordinatorRecord::GroupMetadata { value: Some(value), .. } if value.members.is_empty())
    }));
}
