//! Coordinators of consumer groups on several brokers.

use std::time::Duration;

use streamgauge_protocol::messages::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use streamgauge_protocol::messages::messages::offset_fetch_request::OffsetFetchRequestTopic;
use streamgauge_protocol::messages::messages::{
    DeleteTopicsRequest, FindCoordinatorRequest, GroupId, OffsetCommitRequest, OffsetFetchRequest,
    TopicName,
};
use streamgauge_protocol::messages::protocol::StrBytes;
use streamgauge_tests::cluster::{Cluster, NODES};
use streamgauge_tests::process::poll;

const TIME_MAX: Duration = Duration::from_secs(60);
const TOPIC: &str = "read";
const GROUPS: usize = 12;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn coordinator(cluster: &Cluster, group: &str) -> i32 {
    let request = FindCoordinatorRequest::default().with_key(text(group));
    let found = poll(TIME_MAX, || {
        let answer = cluster.ask(1, 2, &request)?;
        (answer.error_code == 0).then_some(answer.node_id.0)
    });
    found.expect("a coordinator")
}

fn commit(cluster: &Cluster, group: &str, offset: i64) {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(vec![
            OffsetCommitRequestTopic::default()
                .with_name(TopicName(text(TOPIC)))
                .with_partitions(vec![partition]),
        ]);
    let done = poll(TIME_MAX, || {
        let answer = cluster.ask(coordinator(cluster, group), 6, &request)?;
        let partition = answer.topics.first()?.partitions.first()?;
        (partition.error_code == 0).then_some(())
    });
    assert!(done.is_some(), "{group} cannot commit");
}

fn committed(cluster: &Cluster, group: &str) -> Option<i64> {
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![
            OffsetFetchRequestTopic::default()
                .with_name(TopicName(text(TOPIC)))
                .with_partition_indexes(vec![0]),
        ]));
    let answer = cluster.ask(coordinator(cluster, group), 5, &request)?;
    let partition = answer.topics.first()?.partitions.first()?;
    (answer.error_code == 0 && partition.error_code == 0).then_some(partition.committed_offset)
}

#[test]
fn all_coordinators_forget_the_offsets_of_a_deleted_topic() {
    let cluster = Cluster::start("cluster-deleted-offsets");
    cluster.create_topic(TOPIC, 1);
    let groups: Vec<String> = (0..GROUPS)
        .map(|number| format!("group-{number}"))
        .collect();
    for group in &groups {
        commit(&cluster, group, 7);
        assert_eq!(committed(&cluster, group), Some(7));
    }
    let coordinators = groups.iter().map(|group| coordinator(&cluster, group));
    let mut coordinators: Vec<i32> = coordinators.collect();
    coordinators.sort_unstable();
    coordinators.dedup();
    assert_eq!(coordinators, NODES, "every broker has groups");
    let request = DeleteTopicsRequest::default()
        .with_topic_names(vec![TopicName(text(TOPIC))])
        .with_timeout_ms(30_000);
    let answer = cluster.ask(1, 4, &request).expect("an answer");
    assert_eq!(answer.responses[0].error_code, 0);
    for group in &groups {
        let forgotten = poll(TIME_MAX, || {
            (committed(&cluster, group) == Some(-1)).then_some(())
        });
        assert!(
            forgotten.is_some(),
            "{group} has an offset of a topic that is gone"
        );
    }
}
