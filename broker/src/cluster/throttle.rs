//! Gives the shards their quotas for replicas that lag, from the brokers' dynamic settings and from who leads what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::Broker;
use crate::clock;
use crate::config::{FOLLOWER_THROTTLED_RATE, LEADER_THROTTLED_RATE, TopicConfig, dynamic_long};
use crate::replication::throttle::Rates;

/// Between two looks at who leads what, while anything is throttled.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Runs until the broker stops.
pub async fn follow(broker: Arc<Broker>) {
    let mut metadata = broker.controller.changes();
    loop {
        metadata.borrow_and_update();
        let rates = rates(&broker);
        broker.cluster.quotas.set_rates(&rates, clock::now_ms());
        let shares = !rates.followers.is_empty();
        tokio::select! {
            biased;
            () = broker.stopping() => return,
            changed = metadata.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_INTERVAL), if shares => {}
        }
    }
}

fn rates(broker: &Broker) -> Rates {
    let own = broker.id();
    let (leader, followers) = broker.controller.read(|image| {
        let rate = |id, name| dynamic_long(image, id, name).filter(|rate| *rate < i64::MAX);
        let followers = image.broker_ids().into_iter().filter_map(|id| {
            let rate = rate(id, FOLLOWER_THROTTLED_RATE).filter(|_| id != own)?;
            Some((id, rate))
        });
        let followers: BTreeMap<i32, i64> = followers.collect();
        (rate(own, LEADER_THROTTLED_RATE), followers)
    });
    let mut senders: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    if !followers.is_empty() {
        for topic in broker.topics.all() {
            note_senders(broker, topic.topic_id, &topic.config(), &mut senders);
        }
    }
    let followers = followers.into_iter().map(|(id, rate)| {
        let mut others = senders.remove(&id).unwrap_or_default();
        // It may come to send at any time, and is to stay within its share then.
        others.insert(own);
        let share = rate / i64::try_from(others.len()).unwrap_or(i64::MAX);
        (id, share.max(1))
    });
    Rates {
        leader,
        followers: followers.collect(),
    }
}

/// Who leads replicas of a topic that lag and are throttled on the follower's side.
fn note_senders(
    broker: &Broker,
    topic_id: uuid::Uuid,
    config: &TopicConfig,
    senders: &mut BTreeMap<i32, BTreeSet<i32>>,
) {
    let topic = broker
        .controller
        .read(|image| image.topic_by_id(topic_id).cloned());
    let Some(topic) = topic else {
        return;
    };
    for (index, replicas) in (0..).zip(&topic.partitions) {
        let throttled = replicas
            .iter()
            .filter(|id| config.follower_throttled.contains(index, **id));
        for id in throttled {
            if let Some(leadership) = broker.leadership(topic_id, index)
                && !leadership.in_sync.contains(id)
            {
                senders.entry(*id).or_default().insert(leadership.leader);
            }
        }
    }
}
