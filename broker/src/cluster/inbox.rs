//! What comes from other brokers, handed to whom it is for.

use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use uuid::Uuid;

use super::Cluster;
use crate::broker::Broker;
use crate::controller::{Controller, Placed};
use crate::peers::{GroupMessage, Inbox};
use crate::replication::hibernation::Mark;
use crate::shard::event::Event;
use crate::shard::runner::Outbound;
use crate::shard::view::PartitionKey;

/// Carries the shards' messages to the peers.
pub struct ShardOutbound(pub Arc<Cluster>);

impl Outbound for ShardOutbound {
    fn send(&self, to: i32, messages: Vec<GroupMessage>) {
        // Before the broker is connected nothing is owed to anybody; Raft sends it again.
        if let Some(peers) = self.0.peers() {
            peers.send(to, messages);
        }
    }

    fn pulse(&self, to: i32, mark: Mark) {
        if let Some(peers) = self.0.peers() {
            peers.pulse(to, mark);
        }
    }
}

/// Takes what other brokers send.
pub struct ClusterInbox {
    pub cluster: Arc<Cluster>,
    pub placed: Placed,
    pub controller: Controller,
    /// Set once the broker runs; before, requests are refused.
    pub broker: OnceLock<Weak<Broker>>,
}

impl ClusterInbox {
    /// Splits by shard, in order.
    fn by_shard<T>(&self, items: Vec<T>, key: impl Fn(&T) -> PartitionKey) -> Vec<Vec<T>> {
        let mut split: Vec<Vec<T>> = self.placed.shards.iter().map(|_| Vec::new()).collect();
        for item in items {
            if let Some(part) = split.get_mut(self.placed.shard_number(key(&item))) {
                part.push(item);
            }
        }
        split
    }

    fn send_each<T>(&self, split: Vec<Vec<T>>, event: impl Fn(Vec<T>) -> Event) {
        for (shard, part) in self.placed.shards.iter().zip(split) {
            if !part.is_empty() {
                shard.send(event(part));
            }
        }
    }
}

impl Inbox for ClusterInbox {
    fn raft(&self, _from: i32, messages: Vec<GroupMessage>) {
        let split = self.by_shard(messages, |message| message.group);
        self.send_each(split, |messages| Event::Raft { messages });
    }

    fn unreachable(&self, to: i32, groups: Vec<PartitionKey>) {
        let split = self.by_shard(groups, |group| *group);
        self.send_each(split, |groups| Event::Unreachable { broker: to, groups });
    }

    fn notice(&self, from: i32, payload: Bytes) {
        self.cluster.heard(from, &payload);
    }

    /// Groups need not lie on the same shard everywhere.
    fn pulse(&self, from: i32, mark: Mark) {
        for shard in &self.placed.shards {
            shard.send(Event::Pulse { broker: from, mark });
        }
    }

    fn request(&self, from: i32, payload: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>> {
        let broker = self.broker.get().and_then(Weak::upgrade);
        Box::pin(async move {
            match broker {
                Some(broker) => super::serve(broker, from, payload).await,
                None => super::request::not_ready(),
            }
        })
    }

    fn directory_of(&self, broker: i32) -> Option<Uuid> {
        self.controller.read(|image| image.directory_of(broker))
    }

    fn disowned(&self, by: i32, reason: &str) {
        tracing::error!(by, %reason, "the cluster refuses this broker");
        self.cluster.disowned.send_replace(Some(reason.to_owned()));
    }

    fn connected(&self, peer: i32) {
        tracing::info!(peer, "connected to another broker");
        self.cluster.met(peer);
    }

    fn disconnected(&self, peer: i32) {
        tracing::info!(peer, "connection to another broker lost");
        for shard in &self.placed.shards {
            shard.send(Event::Disconnected { broker: peer });
        }
    }
}
