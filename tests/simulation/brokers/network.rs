//! What lies between brokers, and between them and clients.
//!
//! Links do what the transport promises of its connections: what is sent arrives in order and once, or, when the connection is
//! lost, not at all, and nobody knows which. A link that is cut holds back what is on it; if it stays cut, the connection is
//! lost. Raft's messages are also lost and doubled one by one: Raft must bear more than the transport does.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use streamgauge::cluster::Transport;
use streamgauge::peers::{GroupMessage, PeerError};
use streamgauge::replication::hibernation::Mark;
use tokio::sync::oneshot;

use crate::random::Random;

/// Who sends or receives: a broker by its index, or a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Broker(usize),
    Client(u32),
}

pub fn broker_id(index: usize) -> i32 {
    i32::try_from(index).expect("few brokers") + 1
}

pub fn broker_index(id: i32) -> usize {
    usize::try_from(id - 1).expect("ids begin with 1")
}

/// What a letter holds.
#[derive(Clone)]
pub enum Content {
    Raft(Vec<GroupMessage>),
    Notice(Bytes),
    /// A shard lives.
    Pulse(Mark),
    /// Of a broker (`ClusterRequest`) or a client (a Kafka frame).
    Request {
        call: u64,
        payload: Bytes,
    },
    Answer {
        call: u64,
        payload: Bytes,
    },
}

#[derive(Clone)]
pub struct Letter {
    pub from: Place,
    pub to: Place,
    pub content: Content,
}

/// What a sender learns of its broker's connections.
pub enum News {
    Connected {
        at: usize,
        peer: usize,
    },
    Disconnected {
        at: usize,
        peer: usize,
    },
    Dropped {
        at: usize,
        peer: usize,
        messages: Vec<GroupMessage>,
    },
}

enum Waiting {
    Peer(oneshot::Sender<Result<Bytes, PeerError>>),
    Client(oneshot::Sender<Bytes>),
}

struct Call {
    from: Place,
    to: usize,
    waiting: Waiting,
}

struct Net {
    random: Random,
    now_ms: u64,
    sent: u64,
    /// By time of arrival, and then in the order in which they were sent.
    under_way: BTreeMap<(u64, u64), Letter>,
    /// When the last letter of a link arrives: none overtakes it.
    last_arrival: BTreeMap<(Place, Place), u64>,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    up: BTreeSet<usize>,
    /// Connections, as the one who dials sees them.
    connected: BTreeSet<(usize, usize)>,
    /// Links that carry nothing, each in one direction, and when their connections are lost.
    cut: BTreeMap<(usize, usize), u64>,
    unreliable: bool,
    connections_lost: u64,
    news: Vec<News>,
}

/// How much later than now a letter arrives that is held back by a cut, in milliseconds.
const HELD_BACK_MS: u64 = 40;

/// A connection on which nothing is heard is closed after so many milliseconds.
const SILENCE_MS_MAX: u64 = 5_000;

/// All links. Clones are handles to the same.
#[derive(Clone)]
pub struct Network(Arc<Mutex<Net>>);

impl Network {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Net {
            random: Random::new(seed),
            now_ms: 0,
            sent: 0,
            under_way: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            up: BTreeSet::new(),
            connected: BTreeSet::new(),
            cut: BTreeMap::new(),
            unreliable: false,
            connections_lost: 0,
            news: Vec::new(),
        })))
    }

    fn net(&self) -> MutexGuard<'_, Net> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages are lost and doubled, connections of clients close, and letters take their time.
    pub fn set_unreliable(&self, unreliable: bool) {
        self.net().unreliable = unreliable;
    }

    pub fn cut(&self, from: usize, to: usize) {
        let mut net = self.net();
        let until = net.now_ms + net.random.below(SILENCE_MS_MAX);
        net.cut.insert((from, to), until);
    }

    pub fn mend_links(&self) {
        self.net().cut.clear();
    }

    pub fn is_cut(&self) -> bool {
        !self.net().cut.is_empty()
    }

    /// How often brokers have lost each other.
    pub fn connections_lost(&self) -> u64 {
        self.net().connections_lost
    }

    /// Time goes on; connections come and go.
    pub fn advance(&self, now_ms: u64) {
        let mut net = self.net();
        net.now_ms = now_ms;
        let lost: Vec<(usize, usize)> = net
            .cut
            .iter()
            .filter(|(_, at)| **at <= now_ms)
            .map(|(link, _)| *link)
            .collect();
        for (from, to) in lost {
            net.disconnect(from, to);
        }
        let brokers: Vec<usize> = net.up.iter().copied().collect();
        for from in &brokers {
            for to in &brokers {
                let (from, to) = (*from, *to);
                let free = from != to && !net.connected.contains(&(from, to));
                let passable =
                    !net.cut.contains_key(&(from, to)) && !net.cut.contains_key(&(to, from));
                if free && passable && net.random.one_in(20) {
                    net.connected.insert((from, to));
                    net.news.push(News::Connected { at: from, peer: to });
                }
            }
        }
    }

    /// A broker's process runs and listens.
    pub fn rise(&self, broker: usize) {
        self.net().up.insert(broker);
    }

    /// A broker's process has ended: what it sent and was sent is lost, and who asked it knows nothing.
    pub fn fall(&self, broker: usize) {
        let mut net = self.net();
        net.up.remove(&broker);
        let peers: Vec<(usize, usize)> = net
            .connected
            .iter()
            .copied()
            .filter(|(from, to)| *from == broker || *to == broker)
            .collect();
        for (from, to) in peers {
            net.disconnect(from, to);
        }
        let at = Place::Broker(broker);
        net.under_way
            .retain(|_, letter| letter.from != at && letter.to != at);
        net.calls
            .retain(|_, call| call.to != broker && call.from != at);
    }

    /// The letters that arrive now.
    pub fn take_due(&self) -> Vec<Letter> {
        let mut net = self.net();
        let after = (net.now_ms + 1, 0);
        let later = net.under_way.split_off(&after);
        let due = std::mem::replace(&mut net.under_way, later);
        let mut arrived = Vec::new();
        for ((_, sequence), letter) in due {
            if net.is_held_back(&letter) {
                let at = net.now_ms + HELD_BACK_MS;
                net.under_way.insert((at, sequence), letter);
                continue;
            }
            arrived.push(letter);
        }
        arrived
    }

    /// A letter for somebody who does not read it before then.
    pub fn hold_back(&self, letter: Letter, until_ms: u64) {
        let mut net = self.net();
        net.sent += 1;
        let sequence = net.sent;
        net.under_way.insert((until_ms, sequence), letter);
    }

    pub fn take_news(&self) -> Vec<News> {
        std::mem::take(&mut self.net().news)
    }

    /// Raft's messages of one broker for another.
    pub fn send_raft(&self, from: usize, to: usize, messages: Vec<GroupMessage>) {
        let mut net = self.net();
        let lost =
            !net.connected.contains(&(from, to)) || (net.unreliable && net.random.one_in(100));
        if lost {
            net.news.push(News::Dropped {
                at: from,
                peer: to,
                messages,
            });
            return;
        }
        let twice = (net.unreliable && net.random.one_in(100)).then(|| messages.clone());
        for messages in [Some(messages), twice].into_iter().flatten() {
            net.post(
                Place::Broker(from),
                Place::Broker(to),
                Content::Raft(messages),
            );
        }
    }

    /// A client's request; `None` if its connection is lost before the answer.
    pub fn ask(&self, client: u32, broker: usize, frame: Bytes) -> Option<ClientCall> {
        let mut net = self.net();
        if !net.up.contains(&broker) || (net.unreliable && net.random.one_in(80)) {
            return None;
        }
        let (waiting, answer) = oneshot::channel();
        let from = Place::Client(client);
        let call = net.begin_call(from, broker, Waiting::Client(waiting));
        net.post(
            from,
            Place::Broker(broker),
            Content::Request {
                call,
                payload: frame,
            },
        );
        if net.unreliable && net.random.one_in(80) {
            // It arrives, and nobody is there any more for the answer.
            net.calls.remove(&call);
        }
        Some(ClientCall {
            network: self.clone(),
            call,
            answer,
        })
    }

    /// What a broker answers a call with.
    pub fn answer(&self, broker: usize, to: Place, call: u64, payload: Bytes) {
        self.net()
            .post(Place::Broker(broker), to, Content::Answer { call, payload });
    }

    /// The connection on which a call came is closed without an answer.
    pub fn forget(&self, call: u64) {
        self.net().calls.remove(&call);
    }

    /// An answer has arrived.
    pub fn answered(&self, call: u64, payload: Bytes) {
        let Some(call) = self.net().calls.remove(&call) else {
            return;
        };
        match call.waiting {
            Waiting::Peer(waiting) => drop(waiting.send(Ok(payload))),
            Waiting::Client(waiting) => drop(waiting.send(payload)),
        }
    }
}

impl Net {
    fn begin_call(&mut self, from: Place, to: usize, waiting: Waiting) -> u64 {
        self.next_call += 1;
        self.calls
            .insert(self.next_call, Call { from, to, waiting });
        self.next_call
    }

    fn post(&mut self, from: Place, to: Place, content: Content) {
        let delay_ms = match self.unreliable && self.random.one_in(40) {
            true => self.random.below(400),
            false => self.random.below(3),
        };
        let last = self.last_arrival.entry((from, to)).or_default();
        let at = (self.now_ms + delay_ms).max(*last);
        *last = at;
        self.sent += 1;
        self.under_way
            .insert((at, self.sent), Letter { from, to, content });
    }

    fn is_held_back(&self, letter: &Letter) -> bool {
        match (letter.from, letter.to) {
            (Place::Broker(from), Place::Broker(to)) => self.cut.contains_key(&(from, to)),
            _ => false,
        }
    }

    /// The connection that `from` dialled to `to` is lost, with all that is on it.
    fn disconnect(&mut self, from: usize, to: usize) {
        if !self.connected.remove(&(from, to)) {
            return;
        }
        self.connections_lost += 1;
        let (here, there) = (Place::Broker(from), Place::Broker(to));
        let mut dropped = Vec::new();
        self.under_way.retain(|_, letter| {
            let forth = letter.from == here
                && letter.to == there
                && !matches!(letter.content, Content::Answer { .. });
            let back = letter.from == there
                && letter.to == here
                && matches!(letter.content, Content::Answer { .. });
            if forth && let Content::Raft(messages) = &letter.content {
                dropped.extend(messages.iter().cloned());
            }
            !forth && !back
        });
        self.news.push(News::Disconnected { at: from, peer: to });
        if !dropped.is_empty() {
            self.news.push(News::Dropped {
                at: from,
                peer: to,
                messages: dropped,
            });
        }
        let lost: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| call.from == here && call.to == to)
            .map(|(number, _)| *number)
            .collect();
        for number in lost {
            if let Some(Call {
                waiting: Waiting::Peer(waiting),
                ..
            }) = self.calls.remove(&number)
            {
                let peer = broker_id(to);
                drop(waiting.send(Err(PeerError::Disconnected { peer })));
            }
        }
    }
}

/// A client's request that is under way. Dropped, it takes its request along if that has not arrived.
pub struct ClientCall {
    network: Network,
    call: u64,
    answer: oneshot::Receiver<Bytes>,
}

impl ClientCall {
    /// `None`: the connection was lost.
    pub async fn answer(mut self) -> Option<Bytes> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for ClientCall {
    fn drop(&mut self) {
        let mut net = self.network.net();
        net.calls.remove(&self.call);
        let call = self.call;
        net.under_way.retain(
            |_, letter| !matches!(&letter.content, Content::Request { call: other, .. } if *other == call),
        );
    }
}

/// One broker's way to the others.
pub struct Wire {
    pub network: Network,
    pub broker: usize,
}

impl Transport for Wire {
    fn send(&self, to: i32, messages: Vec<GroupMessage>) {
        self.network
            .send_raft(self.broker, broker_index(to), messages);
    }

    fn pulse(&self, to: i32, mark: Mark) {
        let mut net = self.network.net();
        let peer = broker_index(to);
        let lost = !net.connected.contains(&(self.broker, peer))
            || (net.unreliable && net.random.one_in(100));
        if !lost {
            net.post(
                Place::Broker(self.broker),
                Place::Broker(peer),
                Content::Pulse(mark),
            );
        }
    }

    fn notify(&self, to: i32, payload: Bytes) -> Result<(), PeerError> {
        let mut net = self.network.net();
        let peer = broker_index(to);
        if !net.connected.contains(&(self.broker, peer)) {
            return Err(PeerError::NotConnected { peer: to });
        }
        net.post(
            Place::Broker(self.broker),
            Place::Broker(peer),
            Content::Notice(payload),
        );
        Ok(())
    }

    fn request(
        &self,
        to: i32,
        payload: Bytes,
        time_max: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, PeerError>> + Send>> {
        let peer = broker_index(to);
        let mut net = self.network.net();
        if !net.connected.contains(&(self.broker, peer)) {
            return Box::pin(std::future::ready(Err(PeerError::NotConnected {
                peer: to,
            })));
        }
        let (waiting, answer) = oneshot::channel();
        let from = Place::Broker(self.broker);
        let call = net.begin_call(from, peer, Waiting::Peer(waiting));
        net.post(
            from,
            Place::Broker(peer),
            Content::Request { call, payload },
        );
        Box::pin(async move {
            match tokio::time::timeout(time_max, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(PeerError::Disconnected { peer: to }),
                Err(_) => Err(PeerError::Timeout {
                    peer: to,
                    after: time_max,
                }),
            }
        })
    }

    fn is_connected(&self, peer: i32) -> bool {
        let net = self.network.net();
        net.connected.contains(&(self.broker, broker_index(peer)))
    }

    /// The simulated brokers are known by their ids.
    fn set_peer(&self, _id: i32, _address: String) {}

    fn set_cluster_id(&self, _id: String) {}
}
