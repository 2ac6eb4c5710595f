//! This broker among others: who leads what, who is there, and what brokers ask of one another.
//!
//! A broker alone is a cluster of one and takes the same paths; it has nobody to send to.

pub mod damage;
mod inbox;
pub mod leaders;
pub mod partition_request;
pub mod quorum;
pub mod reassignments;
mod relay;
mod request;
pub mod throttle;

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

pub use inbox::{ClusterInbox, ShardOutbound};
pub use request::{ClusterAnswer, ClusterRequest, HandOver, serve};

use crate::broker::Broker;
use crate::peers::{GroupMessage, PeerError, Peers};
use crate::replication::hibernation::Mark;
use crate::replication::throttle::ReplicationQuotas;
use crate::shard::view::PartitionKey;
use leaders::{Leaders, Leadership};
use streamgauge_protocol::error::{ErrorCode, NO_ERROR};

/// How often it is looked for changes of leadership to tell.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(100);

/// Carries what one broker has for the others; what comes from them goes to the [`crate::peers::Inbox`]. [`Peers`] does so with sockets,
/// the simulator without.
pub trait Transport: Send + Sync {
    /// See [`Peers::send`].
    fn send(&self, to: i32, messages: Vec<GroupMessage>);

    /// See [`Peers::pulse`].
    fn pulse(&self, to: i32, mark: Mark);

    /// See [`Peers::notify`].
    fn notify(&self, to: i32, payload: Bytes) -> Result<(), PeerError>;

    /// See [`Peers::request`].
    fn request(
        &self,
        to: i32,
        payload: Bytes,
        time_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>>;

    /// Whether what is sent to the peer leaves.
    fn is_connected(&self, peer: i32) -> bool;

    /// Adds a peer, or reaches it elsewhere.
    fn set_peer(&self, id: i32, address: String);

    /// The broker has learned of which cluster it is.
    fn set_cluster_id(&self, id: String);
}

impl Transport for Peers {
    fn send(&self, to: i32, messages: Vec<GroupMessage>) {
        Peers::send(self, to, messages);
    }

    fn pulse(&self, to: i32, mark: Mark) {
        Peers::pulse(self, to, mark);
    }

    fn notify(&self, to: i32, payload: Bytes) -> Result<(), PeerError> {
        Peers::notify(self, to, payload)
    }

    fn request(
        &self,
        to: i32,
        payload: Bytes,
        time_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        let peers = self.clone();
        Box::pin(async move { Peers::request(&peers, to, payload, time_max).await })
    }

    fn is_connected(&self, peer: i32) -> bool {
        Peers::is_connected(self, peer)
    }

    fn set_peer(&self, id: i32, address: String) {
        Peers::set_peer(self, id, address);
    }

    fn set_cluster_id(&self, id: String) {
        Peers::set_cluster_id(self, id);
    }
}

/// The other brokers, as this one reaches them.
pub struct Cluster {
    node_id: i32,
    peers: OnceLock<Arc<dyn Transport>>,
    leaders: RwLock<Leaders>,
    /// A broker has come: it is to be told all.
    newcomers: RwLock<Vec<i32>>,
    changed: Notify,
    /// What the shards send to replicas that lag is bounded by these.
    pub quotas: Arc<ReplicationQuotas>,
    /// Why the others refuse this broker for good.
    disowned: watch::Sender<Option<String>>,
}

impl Cluster {
    pub fn new(node_id: i32) -> Self {
        Self {
            node_id,
            peers: OnceLock::new(),
            leaders: RwLock::default(),
            newcomers: RwLock::default(),
            changed: Notify::new(),
            quotas: Arc::default(),
            disowned: watch::Sender::new(None),
        }
    }

    /// From now on messages leave. Done once, at start.
    pub fn connect(&self, peers: Arc<dyn Transport>) {
        let _ = self.peers.set(peers);
    }

    pub fn peers(&self) -> Option<&Arc<dyn Transport>> {
        self.peers.get()
    }

    /// Returns, with the reason, when another broker says that this one's id belongs to another data
    /// directory.
    pub async fn disowned(&self) -> String {
        let mut told = self.disowned.subscribe();
        loop {
            if let Some(reason) = told.borrow_and_update().clone() {
                return reason;
            }
            // The sender lives as long as this does.
            drop(told.changed().await);
        }
    }

    /// Whether that broker can be reached.
    pub fn is_alive(&self, broker: i32) -> bool {
        broker == self.node_id
            || self
                .peers
                .get()
                .is_some_and(|peers| peers.is_connected(broker))
    }

    /// Whether that broker is there for this one, or for another that is.
    pub fn is_there(&self, broker: i32) -> bool {
        self.is_alive(broker) || self.way_to(broker).is_some()
    }

    /// Whether that broker cannot be reached from here, and can from another that is reached.
    pub fn is_there_for_others(&self, broker: i32) -> bool {
        !self.is_alive(broker) && self.way_to(broker).is_some()
    }

    /// A broker that is reached, and that has told that it reaches that one.
    fn way_to(&self, broker: i32) -> Option<i32> {
        let leaders = self.leaders.read().unwrap_or_else(PoisonError::into_inner);
        let mut by = leaders.who_reach(broker);
        by.find(|by| *by != broker && *by != self.node_id && self.is_alive(*by))
    }

    /// Asks another broker; fails if there is none such. Where the link between the two is cut, a third passes it on.
    pub async fn ask(
        &self,
        broker: i32,
        request: &ClusterRequest,
        time_max: Duration,
    ) -> Result<Bytes, PeerError> {
        let Some(peers) = self.peers.get() else {
            return Err(PeerError::Unknown { peer: broker });
        };
        let by = match self.is_alive(broker) {
            true => None,
            false => self.way_to(broker),
        };
        let Some(by) = by else {
            return peers.request(broker, request.encode(), time_max).await;
        };
        let relayed = relay::request(broker, time_max, &request.encode());
        let answer = peers.request(by, relayed, time_max).await?;
        relay::answer(answer).ok_or(PeerError::Failed { peer: broker })
    }

    /// As [`Self::ask`], of what is answered by a code of Kafka alone. NETWORK_EXCEPTION: nobody knows whether it was done.
    pub async fn ask_code(
        &self,
        broker: i32,
        request: &ClusterRequest,
        time_max: Duration,
    ) -> Result<(), ErrorCode> {
        let answer = self.ask(broker, request, time_max).await;
        let mut answer = answer.map_err(|error| {
            tracing::debug!(broker, %error, "another broker was not reached");
            ErrorCode::NetworkException
        })?;
        match answer.try_get_i16() {
            Ok(NO_ERROR) => Ok(()),
            Ok(code) => {
                Err(ErrorCode::try_from_code(code).unwrap_or(ErrorCode::UnknownServerError))
            }
            Err(_) => Err(ErrorCode::UnknownServerError),
        }
    }

    /// Passes on what another broker asks of a third.
    async fn relay(&self, request: Bytes) -> Bytes {
        let asked = match (self.peers.get(), relay::decode(request)) {
            (Some(peers), Some((to, time_max, payload))) => {
                peers.request(to, payload, time_max).await.ok()
            }
            _ => None,
        };
        relay::answered(asked)
    }

    /// Who leads a partition that is not here, as its leader has told.
    pub fn told_leader(&self, partition: PartitionKey) -> Option<Leadership> {
        self.leaders
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .of(partition)
            .cloned()
    }

    /// Whether that other broker has told that its replica of the partition is offline.
    pub fn told_offline(&self, broker: i32, partition: PartitionKey) -> bool {
        self.leaders
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_offline(broker, partition)
    }

    fn heard(&self, from: i32, notice: &[u8]) {
        let mut leaders = self.leaders.write().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = leaders.heard(from, notice) {
            tracing::warn!(from, %error, "what another broker leads could not be read");
        }
    }

    fn met(&self, broker: i32) {
        self.newcomers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(broker);
        self.changed.notify_one();
    }
}

/// Tells the other brokers what this one leads, whom it reaches and which of its replicas are offline: changes as they come, all of
/// it to a newcomer.
/// Runs until the broker stops.
pub async fn announce(broker: Arc<Broker>) {
    let mut told = leaders::Told::default();
    loop {
        tokio::select! {
            biased;
            () = broker.stopping() => return,
            () = broker.cluster.changed.notified() => {}
            () = tokio::time::sleep(ANNOUNCE_INTERVAL) => {}
        }
        let Some(peers) = broker.cluster.peers.get() else {
            return;
        };
        let led: Vec<(PartitionKey, Leadership)> = broker
            .topics
            .all()
            .iter()
            .flat_map(|topic| topic.handles())
            .filter(|partition| partition.view().is_serving())
            .map(|partition| {
                let view = partition.view();
                let leadership = Leadership {
                    leader: broker.id(),
                    leader_epoch: view.leader_epoch(),
                    in_sync: view.in_sync().as_ref().clone(),
                };
                (view.key(), leadership)
            })
            .collect();
        let mut offline = broker.topics.offline();
        offline.sort_by_key(|key| (key.topic_id, key.index));
        let mut others = broker.controller.read(|image| image.broker_ids());
        others.retain(|other| *other != broker.id());
        let reached: Vec<i32> = others
            .iter()
            .copied()
            .filter(|other| broker.cluster.is_alive(*other))
            .collect();
        let newcomers = std::mem::take(
            &mut *broker
                .cluster
                .newcomers
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
        if !newcomers.is_empty() {
            let all = leaders::encode(&reached, &offline, &led);
            for newcomer in newcomers {
                // It will be told again when it comes back.
                let _ = peers.notify(newcomer, all.clone());
            }
        }
        let changes = told.changes(led);
        let is_news = told.reaches_others(&reached) | told.other_offline(&offline);
        if !is_news && changes.is_empty() {
            continue;
        }
        let notice = leaders::encode(&reached, &offline, &changes);
        for other in others {
            let _ = peers.notify(other, notice.clone());
        }
    }
}

#[cfg(test)]
mod tests;
