//! Which replica a consumer should read from (KIP-392): Kafka's `RackAwareReplicaSelector`.

use std::cmp::Reverse;

use crate::broker::Broker;
use crate::shard::view::PartitionView;

/// A replica in sync, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    broker: i32,
    rack: Option<String>,
}

/// The follower that a consumer in that rack should read from; `None` if it may stay here, with the
/// leader.
pub fn preferred(broker: &Broker, view: &PartitionView, client_rack: &str) -> Option<i32> {
    if !broker.config.selects_replicas_by_rack || client_rack.is_empty() {
        return None;
    }
    let in_sync = view.in_sync();
    let candidates: Vec<Candidate> = in_sync
        .iter()
        .filter(|replica| broker.cluster.is_alive(**replica))
        .filter_map(|replica| broker.endpoint_of(*replica))
        .map(|known| Candidate {
            broker: known.node_id,
            rack: known.rack,
        })
        .collect();
    select(broker.id(), &candidates, client_rack)
}

fn select(leader: i32, candidates: &[Candidate], client_rack: &str) -> Option<i32> {
    let near = candidates
        .iter()
        .filter(|candidate| candidate.rack.as_deref() == Some(client_rack));
    // The leader first if it is near; of several followers, the same for all.
    let chosen = near.min_by_key(|near| (Reverse(near.broker == leader), near.broker))?;
    (chosen.broker != leader).then_some(chosen.broker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(racks: &[&str]) -> Vec<Candidate> {
        (1..)
            .zip(racks)
            .map(|(broker, rack)| Candidate {
                broker,
                rack: (!rack.is_empty()).then(|| (*rack).to_owned()),
            })
            .collect()
    }

    #[test]
    fn a_replica_in_the_clients_rack_is_preferred_and_the_leader_above_all() {
        let racks = candidates(&["a", "b", "b"]);
        assert_eq!(select(1, &racks, "b"), Some(2));
        assert_eq!(select(3, &racks, "b"), None, "the leader is near enough");
        assert_eq!(select(2, &racks, "a"), Some(1));
        assert_eq!(select(1, &racks, "c"), None, "nobody is near");
        assert_eq!(select(1, &candidates(&["", ""]), "a"), None);
    }
}
