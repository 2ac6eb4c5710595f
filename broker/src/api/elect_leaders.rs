//! ElectLeaders, versions 0 to 2 (KIP-183, KIP-460).
//!
//! A partition's leader hands over to the preferred replica, the first of its list, if that is in
//! sync; the answer comes when it leads, or with PREFERRED_LEADER_NOT_AVAILABLE when `timeout_ms`
//! has passed. No list means all partitions; those that need no election are left out then. An
//! unclean election is never held: a leader needs a majority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;
use tokio::time::Instant;

use super::Context;
use super::kafka::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use super::kafka::{ElectLeadersRequest, ElectLeadersResponse};
use super::metadata::topic_name;
use crate::broker::Broker;
use crate::cluster::leaders::Leadership;
use crate::controller::image::Topic;
use crate::shard::view::PartitionKey;

const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// Between two looks whether a leader has changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// After so long without a change the leader is asked again: Raft gives a transfer up after an
/// election timeout.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What one partition needs.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// Its leader is to hand over to that broker.
    Transfer {
        from: i32,
        to: i32,
    },
    Refused(ErrorCode, &'static str),
}

/// A partition whose election is under way.
struct Election {
    key: PartitionKey,
    to: i32,
    topic: String,
}

pub async fn handle(context: Context, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let broker = &context.broker;
    let election_type = match context.version {
        0 => PREFERRED,
        _ => request.election_type,
    };
    if !matches!(election_type, PREFERRED | UNCLEAN) {
        return ElectLeadersResponse::default().with_error_code(ErrorCode::InvalidRequest.code());
    }
    let asks_for_all = request.topic_partitions.is_none();
    let wait = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let wanted = wanted(broker, request);
    let mut results: BTreeMap<String, Vec<PartitionResult>> = BTreeMap::new();
    let mut elections = Vec::new();
    for (topic, index) in wanted {
        match need(broker, &topic, index, election_type) {
            (Some(key), Need::Transfer { from, to }) => {
                broker.hand_over(from, to, vec![key]).await;
                elections.push(Election { key, to, topic });
            }
            (_, Need::Refused(ErrorCode::ElectionNotNeeded, _)) if asks_for_all => {}
            (_, Need::Refused(code, message)) => {
                let result = result(index, code, message);
                results.entry(topic).or_default().push(result);
            }
            (None, Need::Transfer { .. }) => {}
        }
    }
    for (election, elected) in wait_for(broker, elections, wait).await {
        let result = match elected {
            true => PartitionResult::default().with_partition_id(election.key.index),
            false => result(
                election.key.index,
                ErrorCode::PreferredLeaderNotAvailable,
                "The preferred leader did not take over in time.",
            ),
        };
        results.entry(election.topic).or_default().push(result);
    }
    let results = results.into_iter().map(|(topic, mut partitions)| {
        partitions.sort_by_key(|partition| partition.partition_id);
        ReplicaElectionResult::default()
            .with_topic(topic_name(&topic))
            .with_partition_result(partitions)
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}

fn wanted(broker: &Broker, request: ElectLeadersRequest) -> Vec<(String, i32)> {
    match request.topic_partitions {
        Some(topics) => topics
            .into_iter()
            .flat_map(|topic| {
                let name = topic.topic.to_string();
                let indexes = topic.partitions.into_iter();
                indexes.map(move |index| (name.clone(), index))
            })
            .collect(),
        None => broker.controller.read(|image| {
            image
                .topics()
                .flat_map(|topic| {
                    (0..)
                        .zip(&topic.partitions)
                        .map(move |(index, _)| (topic, index))
                })
                .map(|(topic, index)| (topic.name.clone(), index))
                .collect()
        }),
    }
}

fn result(index: i32, code: ErrorCode, message: &'static str) -> PartitionResult {
    PartitionResult::default()
        .with_partition_id(index)
        .with_error_code(code.code())
        .with_error_message(Some(StrBytes::from_static_str(message)))
}

fn need(broker: &Broker, topic: &str, index: i32, kind: i8) -> (Option<PartitionKey>, Need) {
    let unknown = |message| Need::Refused(ErrorCode::UnknownTopicOrPartition, message);
    let Some(topic): Option<Arc<Topic>> =
        broker.controller.read(|image| image.topic(topic).cloned())
    else {
        return (None, unknown("No such topic."));
    };
    let at = usize::try_from(index).ok();
    let Some(replicas) = at.and_then(|at| topic.partitions.get(at)) else {
        return (None, unknown("No such partition."));
    };
    let key = PartitionKey {
        topic_id: topic.topic_id,
        index,
    };
    let led = broker
        .leadership(topic.topic_id, index)
        .filter(|led| broker.cluster.is_there(led.leader));
    (Some(key), decide(led.as_ref(), replicas, kind))
}

/// Kafka's `ReplicationControlManager.electLeader`.
fn decide(led: Option<&Leadership>, replicas: &[i32], kind: i8) -> Need {
    let preferred = replicas.first().copied().unwrap_or(-1);
    match led {
        Some(led) if kind == UNCLEAN || led.leader == preferred => Need::Refused(
            ErrorCode::ElectionNotNeeded,
            "Leader election not needed for topic partition.",
        ),
        None if kind == UNCLEAN => Need::Refused(
            ErrorCode::EligibleLeadersNotAvailable,
            "A leader needs a majority of the replicas, and there is none.",
        ),
        Some(led) if led.in_sync.contains(&preferred) => Need::Transfer {
            from: led.leader,
            to: preferred,
        },
        _ => Need::Refused(
            ErrorCode::PreferredLeaderNotAvailable,
            "The preferred leader is not in sync, or there is no leader to hand over.",
        ),
    }
}

/// Each election, and whether it was won in time.
async fn wait_for(
    broker: &Arc<Broker>,
    mut elections: Vec<Election>,
    wait: Duration,
) -> Vec<(Election, bool)> {
    let deadline = Instant::now() + wait;
    let mut ask_at = Instant::now() + ASK_INTERVAL;
    let mut ended = Vec::with_capacity(elections.len());
    loop {
        let (won, open): (Vec<_>, Vec<_>) = elections.into_iter().partition(|election| {
            broker
                .leadership(election.key.topic_id, election.key.index)
                .is_some_and(|led| led.leader == election.to)
        });
        ended.extend(won.into_iter().map(|election| (election, true)));
        elections = open;
        if elections.is_empty() || Instant::now() >= deadline {
            break;
        }
        if Instant::now() >= ask_at {
            ask_at = Instant::now() + ASK_INTERVAL;
            for Election { key, to, .. } in &elections {
                if let Some(led) = broker.leadership(key.topic_id, key.index) {
                    broker.hand_over(led.leader, *to, vec![*key]).await;
                }
            }
        }
        tokio::select! {
            biased;
            () = broker.stopping() => break,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    ended.extend(elections.into_iter().map(|election| (election, false)));
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(leader: i32, in_sync: &[i32]) -> Leadership {
        Leadership {
            leader,
            leader_epoch: 3,
            in_sync: in_sync.to_vec(),
        }
    }

    fn code(need: Need) -> Option<ErrorCode> {
        match need {
            Need::Refused(code, _) => Some(code),
            Need::Transfer { .. } => None,
        }
    }

    #[test]
    fn the_preferred_replica_is_elected_if_it_is_in_sync_and_does_not_lead() {
        let replicas = [1, 2, 3];
        let elected = decide(Some(&led(2, &[1, 2])), &replicas, PREFERRED);
        assert_eq!(elected, Need::Transfer { from: 2, to: 1 });
        let refused = |led: Option<&Leadership>| code(decide(led, &replicas, PREFERRED)).unwrap();
        assert_eq!(refused(Some(&led(1, &[1]))), ErrorCode::ElectionNotNeeded);
        let not_there = ErrorCode::PreferredLeaderNotAvailable;
        assert_eq!(refused(Some(&led(2, &[2, 3]))), not_there);
        assert_eq!(refused(None), not_there);
    }

    #[test]
    fn an_unclean_election_is_not_needed_or_not_possible() {
        let refused = |led: Option<&Leadership>| code(decide(led, &[1, 2], UNCLEAN)).unwrap();
        assert_eq!(
            refused(Some(&led(2, &[1, 2]))),
            ErrorCode::ElectionNotNeeded
        );
        assert_eq!(refused(None), ErrorCode::EligibleLeadersNotAvailable);
    }
}
