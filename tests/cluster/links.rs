//! The network between the brokers is the tests' own: a cut that no broker feels would prove nothing.

use std::time::{Duration, Instant};
use std::{iter, thread};

use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::messages::error::ParseResponseErrorCode;
use streamgauge_protocol::messages::messages::create_topics_request::CreatableTopic;
use streamgauge_protocol::messages::messages::{CreateTopicsRequest, TopicName};
use streamgauge_protocol::messages::protocol::StrBytes;
use streamgauge_tests::cluster::{Cluster, Cut, NODES};
use streamgauge_tests::process::poll;
use streamgauge_tests::wire::Wire;

const TOPIC: &str = "linked";
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longer than the silence after which a broker closes a link and dials anew.
const CUT_TIME: Duration = Duration::from_secs(7);
const FIND_COORDINATOR: i16 = 10;
const CREATE_TOPICS_VERSION: i16 = 5;
/// Shorter than the harness waits for an answer.
const WAIT_MS: i32 = 2_000;

#[test]
fn all_that_brokers_say_to_each_other_goes_through_the_links() {
    let mut cluster = Cluster::start("cluster-bytes");
    cluster.create_topic(TOPIC, 3);
    cluster.wait_until_in_sync(TOPIC, TIME_MAX);
    wait_until_all_carry(&cluster, "the start");
    for id in NODES {
        // Whom it finds where may be another matter after a restart: it then knows what others have registered.
        cluster.stop(id);
        cluster.launch(id);
        cluster.wait_until_whole();
        cluster.wait_until_in_sync(TOPIC, TIME_MAX);
        wait_until_all_carry(&cluster, "a restart");
    }

    let [cut_off, ..] = NODES;
    let partition = led_by(&cluster, cut_off);
    cluster.cut_off(cut_off, Cut::BothWays);
    // Asked at once, and again once it knows.
    let begun = Instant::now();
    let next = cluster.leader(TOPIC, partition);
    assert_ne!(next, cut_off);
    while begun.elapsed() < CUT_TIME {
        assert_ne!(cluster.write(cut_off, TOPIC, partition), Some(Ok(())));
        assert_ne!(create_topic(&cluster, cut_off, "nowhere"), Some(Ok(())));
        assert_eq!(cluster.bypasses(), [], "broker {cut_off} is cut off");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(
        sends_clients_away(&cluster, cut_off),
        "clients ask whom they are connected to, for ever"
    );
    let before = carried_by(&cluster, cut_off);
    for id in NODES.into_iter().filter(|id| *id != cut_off) {
        let topic = format!("without-{cut_off}-{id}");
        let done = poll(TIME_MAX, || {
            let leader = cluster.leader(TOPIC, partition);
            create_topic(&cluster, id, &topic)?.ok()?;
            cluster.write(leader, TOPIC, partition)?.ok()
        });
        assert!(done.is_some(), "the others do not go on without {cut_off}");
    }
    assert_eq!(
        carried_by(&cluster, cut_off),
        before,
        "links of broker {cut_off} that are cut"
    );
    cluster.heal();
    cluster.wait_until_whole();
    cluster.wait_until_in_sync(TOPIC, TIME_MAX);
    wait_until_all_carry(&cluster, "a cut");
    assert!(!sends_clients_away(&cluster, cut_off));
}

/// Clients may be sent to a leader that only the broker that they ask does not reach, and some ask no other.
#[test]
fn a_broker_tells_clients_of_leaders_that_only_it_does_not_reach() {
    let mut cluster = Cluster::start("cluster-parted");
    cluster.create_topic(TOPIC, 3);
    cluster.wait_until_in_sync(TOPIC, TIME_MAX);
    let [leader, parted, _] = NODES;
    let partition = led_by(&cluster, leader);
    cluster.part(leader, parted);
    let begun = Instant::now();
    while begun.elapsed() < CUT_TIME {
        assert_eq!(cluster.bypasses(), [], "{parted} does not reach {leader}");
        thread::sleep(Duration::from_millis(100));
    }
    // The link is closed at both ends by now.
    let told = poll(TIME_MAX, || {
        let told = cluster.metadata(parted, Some(TOPIC))?;
        let partitions = &told.topics.first()?.partitions;
        let known = partitions
            .iter()
            .find(|known| known.partition_index == partition)?;
        (known.leader_id.0 == leader).then_some(())
    });
    assert!(told.is_some(), "{parted} tells of no leader");
    assert_eq!(cluster.write(leader, TOPIC, partition), Some(Ok(())));
}

/// Whether the broker ends a client's connection once it has said that it knows of no coordinator.
fn sends_clients_away(cluster: &Cluster, id: i32) -> bool {
    let mut wire = Wire::connect(cluster.address(id));
    // Of the group "g".
    wire.request(FIND_COORDINATOR, 0, b"\0\x01g");
    assert!(wire.answer().is_some());
    wire.request(FIND_COORDINATOR, 0, b"\0\x01g");
    wire.answer().is_none()
}

/// Waits until every link has carried something more, both ways; nothing goes past them.
fn wait_until_all_carry(cluster: &Cluster, after: &str) {
    let before = cluster.carried();
    let mut silent = Vec::new();
    let carried = poll(TIME_MAX, || {
        let grown = |between| iter::zip(cluster.carried()[between], before[between]);
        silent = before
            .keys()
            .filter(|between| grown(between).any(|(now, then)| now <= then))
            .collect();
        silent.is_empty().then_some(())
    });
    assert!(
        carried.is_some(),
        "after {after} these links carry nothing: {silent:?}"
    );
    assert_eq!(cluster.bypasses(), [], "after {after}");
}

fn carried_by(cluster: &Cluster, id: i32) -> Vec<[u64; 2]> {
    let carried = cluster.carried().into_iter();
    carried
        .filter(|((from, to), _)| *from == id || *to == id)
        .map(|(_, bytes)| bytes)
        .collect()
}

/// A partition that the broker leads, which it may have to be given first.
fn led_by(cluster: &Cluster, id: i32) -> i32 {
    let partitions = cluster.partitions(TOPIC).into_iter();
    let leaders = partitions.map(|partition| (partition.partition_index, partition.leader_id.0));
    let leaders: Vec<(i32, i32)> = leaders.collect();
    if let Some((partition, _)) = leaders.iter().find(|(_, leader)| *leader == id) {
        return *partition;
    }
    for replicas in [&[id][..], &NODES] {
        cluster.reassign(TOPIC, 0, Some(replicas));
        cluster.wait_until_moved(TIME_MAX);
    }
    cluster.wait_until_in_sync(TOPIC, TIME_MAX);
    assert_eq!(cluster.leader(TOPIC, 0), id, "it was the only replica");
    0
}

fn create_topic(cluster: &Cluster, id: i32, name: &str) -> Option<Result<(), ErrorCode>> {
    let topic = CreatableTopic::default()
        .with_name(TopicName(StrBytes::from_string(name.to_owned())))
        .with_num_partitions(1)
        .with_replication_factor(2);
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(WAIT_MS);
    let answer = cluster.ask(id, CREATE_TOPICS_VERSION, &request)?;
    match answer.topics.first()?.error_code.err() {
        // Asked before, and the answer was lost.
        None | Some(ErrorCode::TopicAlreadyExists) => Some(Ok(())),
        Some(code) => Some(Err(code)),
    }
}
