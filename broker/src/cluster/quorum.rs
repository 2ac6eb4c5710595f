//! Who keeps the metadata log: all registered brokers follow it, the voters among them vote.
//!
//! The metadata log is a group like any other; who is to take part in it is its target, made from the
//! image that it makes. A broker that joins is known to nobody before it has registered, so it asks the
//! founders, whose addresses its configuration has.

use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, ClusterAnswer, ClusterRequest};
use crate::config::BrokerConfig;
use crate::controller::Controller;
use crate::controller::command::{Command, CommandAnswer};
use crate::controller::decide::Refusal;
use crate::controller::image::{BrokerInfo, Image};
use crate::replication::membership::Target;
use crate::replication::raft_id;
use streamgauge_protocol::error::ErrorCode;

const ASK_PATIENCE: Duration = Duration::from_secs(2);
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The members that the metadata log is to have.
pub fn target(image: &Image, founders: &[i32]) -> Target {
    let voters = image.voters().map_or(founders, Vec::as_slice);
    let learners = image
        .brokers()
        .map(|known| known.node_id)
        .filter(|id| !voters.contains(id));
    Target {
        epoch: image.quorum_epoch(),
        voters: voters.iter().map(|id| raft_id(*id)).collect(),
        learners: learners.map(raft_id).collect(),
    }
}

/// Keeps the metadata log's members, and the addresses of the other brokers, as the image has them. Ends
/// with the controller.
pub async fn follow(cluster: Arc<Cluster>, controller: Controller, config: Arc<BrokerConfig>) {
    let mut changes = controller.changes();
    let founders = config.voters();
    loop {
        changes.borrow_and_update();
        let (target, addresses) = controller.read(|image| {
            let addresses: Vec<(i32, String)> = image
                .brokers()
                // What this broker was told of the founders counts: it may have another way to them.
                .filter(|known| !config.controller_quorum_voters.contains_key(&known.node_id))
                .filter_map(|known| Some((known.node_id, known.peer.clone()?)))
                .collect();
            (target(image, &founders), addresses)
        });
        controller.log().assign(target);
        if let Some(peers) = cluster.peers() {
            for (id, address) in addresses {
                peers.set_peer(id, address);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The id of the cluster that a broker which is none of its founders is to join. Goes on asking until
/// its controller answers.
pub async fn cluster_to_join(cluster: &Cluster, config: &BrokerConfig) -> String {
    loop {
        if let Some(CommandAnswer::Cluster { cluster_id }) =
            ask_founders(cluster, config, Command::TellCluster).await
        {
            return cluster_id;
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Has the cluster know a broker that is none of its founders; goes on trying until it does, or says
/// that it never will.
pub async fn join(
    cluster: &Cluster,
    config: &BrokerConfig,
    info: &BrokerInfo,
) -> Result<(), Refusal> {
    loop {
        let command = Command::RegisterBroker(info.clone());
        let answer = ask_founders(cluster, config, command).await;
        match answer.map(CommandAnswer::into_result) {
            Some(Ok(_)) => return Ok(()),
            Some(Err(refusal)) if refusal.code == ErrorCode::DuplicateBrokerRegistration => {
                return Err(refusal);
            }
            Some(Err(refusal)) => tracing::debug!(%refusal, "not joined yet"),
            None => {}
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Only the controller answers, and which of them it is is not known.
async fn ask_founders(
    cluster: &Cluster,
    config: &BrokerConfig,
    command: Command,
) -> Option<CommandAnswer> {
    let request = ClusterRequest::Command(command);
    for founder in config.voters() {
        let Ok(answer) = cluster.ask(founder, &request, ASK_PATIENCE).await else {
            continue;
        };
        if let Some(answer) = ClusterAnswer::decode(answer) {
            return serde_json::from_slice(&answer.payload).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::controller::record::MetadataRecord;

    fn register(image: &mut Image, node_id: i32) {
        image.apply(MetadataRecord::Broker(BrokerInfo {
            node_id,
            directory_id: Uuid::from_u128(7),
            host: "h".into(),
            port: 9092,
            rack: None,
            peer: None,
        }));
    }

    #[test]
    fn every_registered_broker_follows_and_each_change_has_an_epoch_of_its_own() {
        let mut image = Image::default();
        let founders = [1, 2];
        assert_eq!(target(&image, &founders).epoch, 0);
        register(&mut image, 1);
        register(&mut image, 4);
        let with_four = target(&image, &founders);
        assert_eq!(
            (with_four.voters, with_four.learners),
            (vec![2, 3], vec![5])
        );
        register(&mut image, 4);
        assert_eq!(target(&image, &founders).epoch, 2, "known already");
        image.apply(MetadataRecord::Voters { voters: vec![1, 4] });
        let changed = target(&image, &founders);
        assert_eq!((changed.voters, changed.learners), (vec![2, 5], vec![]));
        image.apply(MetadataRecord::BrokerRemoved { node_id: 4 });
        assert_eq!(target(&image, &founders).epoch, 4);
    }
}
