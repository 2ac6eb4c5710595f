//! How brokers talk to each other.
//!
//! Every broker dials every other and keeps the connection open for all that it sends there: Raft
//! messages of all groups, notices, requests. Only answers and pings come back on it; what the other
//! sends comes on the connection that the other dials.
//!
//! ```text
//! shards ── send ──▶ outbox ── dialer ═══ connection ═══▶ acceptor ──▶ Inbox of the other broker
//!          (bounded)        ◀── answers, pings ───────
//! ```
//!
//! Nothing here waits for a slow or absent peer: what does not fit its queue, or finds no
//! connection, is dropped and told to [`Inbox::unreachable`], and Raft sends it again. Messages of
//! one connection arrive in order and once; when a connection is lost, some of what was sent on it
//! may have arrived and some not.
//!
//! [`outbox`], [`handshake`], [`backoff`] and [`frame`] decide and do no I/O; [`connection`] moves
//! bytes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::replication::hibernation::Mark;
use crate::shard::view::PartitionKey;
use handshake::Identity;
use link::Link;

mod acceptor;
pub mod backoff;
pub mod connection;
mod dialer;
pub mod frame;
pub mod handshake;
mod link;
pub mod outbox;
#[cfg(test)]
mod tests;

pub use crate::shard::event::GroupMessage;

/// What bounds the traffic between brokers. The same on all brokers of a cluster, or what one
/// sends the other refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Waiting for one peer, record data included.
    pub queue_bytes_max: usize,
    pub frame_bytes_max: usize,
    /// Written at once, about: what comes after it, a heartbeat for one, waits for so much at most.
    pub batch_bytes: usize,
    /// Requests to one peer, and of one peer, that may be under way.
    pub requests_in_flight_max: usize,
    /// Connections that other brokers may have open to this one, those in their handshake included.
    pub connections_max: usize,
    /// For connecting, and the handshake.
    pub connect_time_max: Duration,
    /// A side that has sent nothing for so long sends a ping.
    pub ping_interval: Duration,
    /// A connection on which nothing was heard, or nothing could be written, for so long is closed.
    pub silence_max: Duration,
    /// The waits between tries to connect begin with this and double…
    pub redial_wait_min: Duration,
    /// …up to this.
    pub redial_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_bytes_max: 32 * 1024 * 1024,
            frame_bytes_max: 64 * 1024 * 1024,
            batch_bytes: 4 * 1024 * 1024,
            requests_in_flight_max: 256,
            connections_max: 256,
            connect_time_max: Duration::from_secs(3),
            ping_interval: Duration::from_secs(1),
            silence_max: Duration::from_secs(5),
            redial_wait_min: Duration::from_millis(50),
            redial_wait_max: Duration::from_secs(1),
        }
    }
}

/// What a broker needs to talk to the others.
#[derive(Debug)]
pub struct PeersConfig {
    pub node_id: i32,
    /// Of this broker's log directory.
    pub directory_id: Uuid,
    /// `None` if the broker has yet to learn it; see [`Peers::set_cluster_id`].
    pub cluster_id: Option<String>,
    /// Where the others connect to.
    pub listener: TcpListener,
    /// Host and port of the others by id. An entry for this broker itself is passed over.
    pub peers: BTreeMap<i32, String>,
    pub limits: Limits,
}

/// Where what comes from other brokers goes.
///
/// Everything is called from tokio's workers and must not block; a connection reads on when the
/// call returns. Of one peer, `raft`, `notice` and `pulse` are called one after the other, in the order in
/// which it sent; so are `connected` and `disconnected`, and each `disconnected` follows a
/// `connected`.
pub trait Inbox: Send + Sync + 'static {
    /// Messages for groups of this broker, which it may not have, in the order in which they were
    /// sent. Nothing but their form has been checked; record data may even be damaged, see
    /// [`frame`].
    fn raft(&self, from: i32, messages: Vec<GroupMessage>);

    /// Some messages of these groups for `to` were dropped: its queue was full, or there was no
    /// connection, or it was lost before what was sent is known to have arrived. Raft wants to
    /// hear `report_unreachable`, and `report_snapshot` as failed where one was under way, as Raft
    /// waits for that without end.
    fn unreachable(&self, to: i32, groups: Vec<PartitionKey>);

    fn notice(&self, from: i32, payload: Bytes);

    /// A shard of that broker lives.
    fn pulse(&self, from: i32, mark: Mark);

    /// Answers a request. The future runs as a task of its own and is dropped if the connection
    /// is lost, at whichever await it then is.
    fn request(&self, from: i32, payload: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>>;

    /// The data directory with which the cluster knows a broker, if it does.
    fn directory_of(&self, broker: i32) -> Option<Uuid>;

    /// The peer refuses this broker, as the cluster knows its id with another data directory.
    fn disowned(&self, by: i32, reason: &str);

    /// What is sent to the peer from now on leaves.
    fn connected(&self, peer: i32);

    /// The connection that [`Inbox::connected`] told of is lost.
    fn disconnected(&self, peer: i32);
}

/// Why something could not be sent, or a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("broker {peer} is not known")]
    Unknown { peer: i32 },
    #[error("there is no connection to broker {peer}")]
    NotConnected { peer: i32 },
    /// The request may have been carried out.
    #[error("the connection to broker {peer} was lost before its answer came")]
    Disconnected { peer: i32 },
    /// The request may have been carried out.
    #[error("broker {peer} did not answer within {after:?}")]
    Timeout { peer: i32, after: Duration },
    #[error("too much waits to be sent to broker {peer}")]
    QueueFull { peer: i32 },
    #[error("broker {peer} has too many requests under way")]
    Busy { peer: i32 },
    /// The request may have been carried out in part.
    #[error("broker {peer} failed while it worked on a request")]
    Failed { peer: i32 },
    #[error("{bytes} bytes are too many for one frame")]
    TooLarge { bytes: usize },
}

/// Sends to other brokers, and takes in what they send. Clones are handles to the same; when the
/// last is dropped, all connections are closed.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    local_address: SocketAddr,
    /// Where tasks for new peers are started from threads that are not the runtime's.
    runtime: Handle,
    /// Peers that were removed stay, without address: their tasks end with all others, and one
    /// that comes back finds everything about it in order.
    peers: RwLock<BTreeMap<i32, Entry>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stop: watch::Sender<bool>,
}

struct Entry {
    link: Arc<Link>,
    address: watch::Sender<Option<String>>,
}

/// What all tasks know.
struct Shared {
    node_id: i32,
    directory_id: Uuid,
    cluster_id: Mutex<Option<String>>,
    limits: Limits,
    inbox: Arc<dyn Inbox>,
}

impl Shared {
    fn identity(&self) -> Identity {
        let cluster_id = self
            .cluster_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Identity {
            node_id: self.node_id,
            directory_id: self.directory_id,
            cluster_id: cluster_id.clone(),
        }
    }
}

/// Waits for the stop; that its sender is gone is one as well.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    drop(stopping.wait_for(|stop| *stop).await);
}

impl Peers {
    /// Begins to listen and to dial. To be called on a tokio runtime.
    pub fn start(config: PeersConfig, inbox: Arc<dyn Inbox>) -> io::Result<Peers> {
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            node_id: config.node_id,
            directory_id: config.directory_id,
            cluster_id: Mutex::new(config.cluster_id),
            limits: config.limits,
            inbox,
        });
        let local_address = config.listener.local_addr()?;
        let runtime = Handle::current();
        let accepting = acceptor::run(config.listener, Arc::clone(&shared), stopping);
        let peers = Peers {
            inner: Arc::new(Inner {
                shared,
                local_address,
                tasks: Mutex::new(vec![runtime.spawn(accepting)]),
                runtime,
                peers: RwLock::default(),
                stop,
            }),
        };
        for (id, address) in config.peers {
            peers.set_peer(id, address);
        }
        Ok(peers)
    }

    /// Where this broker listens for others.
    pub fn local_address(&self) -> SocketAddr {
        self.inner.local_address
    }

    /// Queues messages in their order. Never waits; what is dropped is told to
    /// [`Inbox::unreachable`], from another thread.
    pub fn send(&self, to: i32, messages: Vec<GroupMessage>) {
        if messages.is_empty() {
            return;
        }
        match self.link(to) {
            Ok(link) => link.send(messages),
            Err(_) => {
                let inbox = Arc::clone(&self.inner.shared.inbox);
                let groups = messages.iter().map(|message| message.group).collect();
                // Not from here: the caller may be whom the inbox wants to tell.
                self.inner
                    .runtime
                    .spawn(async move { inbox.unreachable(to, groups) });
            }
        }
    }

    /// Sends a shard's pulse, if there is a connection.
    pub fn pulse(&self, to: i32, mark: Mark) {
        if let Ok(link) = self.link(to) {
            link.pulse(mark);
        }
    }

    /// Sends a notice, of which one hears no more: it is lost with its connection.
    pub fn notify(&self, to: i32, payload: Bytes) -> Result<(), PeerError> {
        self.link(to)?.notify(payload)
    }

    /// Sends a request and waits for its answer. Fails at once if there is no connection, or when
    /// it is lost.
    pub async fn request(
        &self,
        to: i32,
        payload: Bytes,
        time_max: Duration,
    ) -> Result<Bytes, PeerError> {
        self.link(to)?.request(payload, time_max).await
    }

    /// Whether what is sent to the peer leaves.
    pub fn is_connected(&self, peer: i32) -> bool {
        self.link(peer).is_ok_and(|link| link.is_connected())
    }

    /// Adds a peer, or dials it elsewhere.
    pub fn set_peer(&self, id: i32, address: String) {
        let inner = &self.inner;
        if id == inner.shared.node_id || *inner.stop.borrow() {
            return;
        }
        let mut peers = inner.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = peers.get(&id) {
            entry.address.send_if_modified(|present| {
                let is_new = present.as_ref() != Some(&address);
                if is_new {
                    *present = Some(address);
                }
                is_new
            });
            return;
        }
        let (address, addresses) = watch::channel(Some(address));
        let link = Arc::new(Link::new(id, inner.shared.limits.clone()));
        let dialer = dialer::Dialer {
            link: Arc::clone(&link),
            shared: Arc::clone(&inner.shared),
            address: addresses,
            stopping: inner.stop.subscribe(),
        };
        let task = inner.runtime.spawn(dialer.run());
        let mut tasks = inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(task);
        peers.insert(id, Entry { link, address });
    }

    /// Closes the connection to a peer and dials it no more. What it sends still arrives.
    pub fn remove_peer(&self, id: i32) {
        let peers = self.inner.peers.read();
        let peers = peers.unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = peers.get(&id) {
            entry
                .address
                .send_if_modified(|present| present.take().is_some());
        }
    }

    /// The broker has learned of which cluster it is. Counts for connections from now on.
    pub fn set_cluster_id(&self, id: String) {
        let mut cluster_id = self
            .inner
            .shared
            .cluster_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *cluster_id = Some(id);
    }

    /// Closes all connections and waits until their tasks have ended. What is queued is dropped;
    /// requests of others that are being answered end at their next await.
    pub async fn stop(&self) {
        self.inner.stop.send_replace(true);
        let tasks = std::mem::take(
            &mut *self
                .inner
                .tasks
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task for other brokers failed");
            }
        }
    }

    fn link(&self, peer: i32) -> Result<Arc<Link>, PeerError> {
        let peers = self.inner.peers.read();
        let peers = peers.unwrap_or_else(PoisonError::into_inner);
        match peers.get(&peer) {
            Some(entry) => Ok(Arc::clone(&entry.link)),
            None => Err(PeerError::Unknown { peer }),
        }
    }
}
