//! Brokers that talk over real sockets. Nothing sleeps: tests wait for what the inbox is told.

use std::collections::VecDeque;
use std::future::pending;

use raft::eraftpb::{Entry as RaftEntry, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frame::Frame;
use super::handshake::{Hello, Received, Verdict};
use super::*;
use raft::eraftpb::Message;

const PATIENCE: Duration = Duration::from_secs(20);

pub fn key(index: i32) -> PartitionKey {
    PartitionKey {
        topic_id: Uuid::from_u128(77),
        index,
    }
}

/// An append to that group with so much record data.
pub fn append(index: i32, data_bytes: usize) -> GroupMessage {
    let entry = RaftEntry {
        context: Bytes::from_static(&[3; 21]),
        data: vec![index as u8; data_bytes].into(),
        ..RaftEntry::default()
    };
    GroupMessage {
        group: key(index),
        message: Message {
            msg_type: MessageType::MsgAppend,
            entries: vec![entry].into(),
            ..Message::default()
        },
    }
}

fn heartbeat(index: i32, commit: u64) -> GroupMessage {
    GroupMessage {
        group: key(index),
        message: Message {
            msg_type: MessageType::MsgHeartbeat,
            commit,
            ..Message::default()
        },
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Raft(i32, GroupMessage),
    Unreachable(i32, Vec<PartitionKey>),
    Notice(i32, Bytes),
    Connected(i32),
    Disconnected(i32),
    Pulse(i32, Mark),
}

struct TestInbox {
    events: mpsc::UnboundedSender<Event>,
}

impl TestInbox {
    fn tell(&self, event: Event) {
        // A test that is done listens no more.
        drop(self.events.send(event));
    }
}

impl Inbox for TestInbox {
    fn raft(&self, from: i32, messages: Vec<GroupMessage>) {
        for message in messages {
            self.tell(Event::Raft(from, message));
        }
    }

    fn unreachable(&self, to: i32, groups: Vec<PartitionKey>) {
        self.tell(Event::Unreachable(to, groups));
    }

    fn notice(&self, from: i32, payload: Bytes) {
        self.tell(Event::Notice(from, payload));
    }

    fn pulse(&self, from: i32, mark: Mark) {
        self.tell(Event::Pulse(from, mark));
    }

    fn request(&self, _from: i32, payload: Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>> {
        Box::pin(async move {
            match &payload[..] {
                b"wait" => pending().await,
                b"panic" => panic!("asked to"),
                _ => [&payload[..], b"!"].concat().into(),
            }
        })
    }

    fn directory_of(&self, _broker: i32) -> Option<Uuid> {
        None
    }

    fn disowned(&self, by: i32, reason: &str) {
        panic!("disowned by {by}: {reason}");
    }

    fn connected(&self, peer: i32) {
        self.tell(Event::Connected(peer));
    }

    fn disconnected(&self, peer: i32) {
        self.tell(Event::Disconnected(peer));
    }
}

struct Broker {
    peers: Peers,
    events: mpsc::UnboundedReceiver<Event>,
}

struct Start {
    limits: Limits,
    cluster_id: Option<&'static str>,
    address: String,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            cluster_id: Some("ours"),
            address: "127.0.0.1:0".to_owned(),
        }
    }
}

impl Start {
    async fn broker(self, node_id: i32) -> Broker {
        let listener = TcpListener::bind(&self.address).await.unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let config = PeersConfig {
            node_id,
            directory_id: Uuid::from_u128(1),
            cluster_id: self.cluster_id.map(str::to_owned),
            listener,
            peers: BTreeMap::new(),
            limits: self.limits,
        };
        let inbox = Arc::new(TestInbox { events: sender });
        Broker {
            peers: Peers::start(config, inbox).unwrap(),
            events,
        }
    }
}

impl Broker {
    async fn start(node_id: i32) -> Broker {
        Start::default().broker(node_id).await
    }

    fn address(&self) -> String {
        self.peers.local_address().to_string()
    }

    async fn dial(&mut self, id: i32, other: &Broker) {
        self.peers.set_peer(id, other.address());
        self.until(Event::Connected(id)).await;
    }

    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("nothing happened for too long")
            .expect("the inbox is gone")
    }

    async fn until(&mut self, event: Event) {
        while self.next().await != event {}
    }

    /// The Raft messages among the next events.
    async fn receive(&mut self, count: usize) -> Vec<(i32, GroupMessage)> {
        let mut received = Vec::new();
        while received.len() < count {
            if let Event::Raft(from, message) = self.next().await {
                received.push((from, message));
            }
        }
        received
    }

    async fn ask(&self, to: i32, payload: &'static [u8]) -> Result<Bytes, PeerError> {
        let payload = Bytes::from_static(payload);
        self.peers.request(to, payload, PATIENCE).await
    }
}

/// A connection to a broker that speaks as the test wants.
struct Raw {
    stream: TcpStream,
}

impl Raw {
    async fn connect(address: &str) -> Raw {
        Raw {
            stream: TcpStream::connect(address).await.unwrap(),
        }
    }

    async fn greet(address: &str, sender: i32, target: i32, cluster_id: &str) -> (Raw, Verdict) {
        let mut raw = Raw::connect(address).await;
        let hello = Hello {
            sender: Identity {
                node_id: sender,
                directory_id: Uuid::nil(),
                cluster_id: Some(cluster_id.to_owned()),
            },
            target,
        };
        raw.write(&hello.encode()).await;
        let verdict = Verdict::decode(raw.read_sized().await).unwrap();
        (raw, verdict)
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn send(&mut self, frame: &Frame) {
        self.write(&frame.encode().unwrap().concat()).await;
    }

    async fn read_sized(&mut self) -> Bytes {
        let reading = async {
            let length = self.stream.read_u32().await.unwrap();
            let mut bytes = vec![0; length as usize];
            self.stream.read_exact(&mut bytes).await.unwrap();
            bytes.into()
        };
        timeout(PATIENCE, reading).await.unwrap()
    }

    /// Whatever the other side still says, it closes the connection.
    async fn expect_close(mut self) {
        let mut rest = Vec::new();
        let reading = self.stream.read_to_end(&mut rest);
        // A reset is a close as well.
        drop(timeout(PATIENCE, reading).await.unwrap());
    }
}

#[tokio::test]
async fn messages_arrive_in_order_both_ways_and_from_several() {
    let (mut one, mut two, mut three) =
        tokio::join!(Broker::start(1), Broker::start(2), Broker::start(3),);
    one.dial(2, &two).await;
    two.dial(1, &one).await;
    three.dial(2, &two).await;
    assert!(one.peers.is_connected(2) && !one.peers.is_connected(3));

    // Together more than one batch.
    let sent: Vec<GroupMessage> = (0..40).map(|index| append(index, 300_000)).collect();
    for messages in sent.chunks(7) {
        one.peers.send(2, messages.to_vec());
    }
    let expected: Vec<_> = sent.into_iter().map(|message| (1, message)).collect();
    assert!(two.receive(40).await == expected);

    two.peers.send(1, vec![heartbeat(1, 5), heartbeat(2, 6)]);
    assert_eq!(
        one.receive(2).await,
        [(2, heartbeat(1, 5)), (2, heartbeat(2, 6))]
    );
    three.peers.send(2, vec![heartbeat(9, 1)]);
    assert_eq!(two.receive(1).await, [(3, heartbeat(9, 1))]);

    one.peers.notify(2, Bytes::from_static(b"news")).unwrap();
    let mark = Mark { shard: 2, epoch: 9 };
    one.peers.pulse(2, mark);
    two.until(Event::Notice(1, Bytes::from_static(b"news")))
        .await;
    two.until(Event::Pulse(1, mark)).await;
}

#[tokio::test]
async fn messages_may_be_sent_from_a_plain_thread() {
    let (mut one, mut two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;
    let peers = one.peers.clone();
    let address = one.address();
    std::thread::spawn(move || {
        peers.send(2, vec![heartbeat(1, 1)]);
        peers.send(9, vec![heartbeat(3, 1)]);
        peers.set_peer(8, address);
    })
    .join()
    .unwrap();
    assert_eq!(two.receive(1).await, [(1, heartbeat(1, 1))]);
    one.until(Event::Unreachable(9, vec![key(3)])).await;
}

#[tokio::test]
async fn requests_are_answered_each_by_its_own_answer() {
    let (mut one, two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;
    let waiting = one
        .peers
        .request(2, Bytes::from_static(b"wait"), Duration::from_millis(1));
    let (a, b, panicked, timed_out) = tokio::join!(
        one.ask(2, b"a"),
        one.ask(2, b"b"),
        one.ask(2, b"panic"),
        waiting,
    );
    assert_eq!(a.as_deref(), Ok(&b"a!"[..]));
    assert_eq!(b.as_deref(), Ok(&b"b!"[..]));
    assert_eq!(panicked, Err(PeerError::Failed { peer: 2 }));
    assert!(matches!(timed_out, Err(PeerError::Timeout { peer: 2, .. })));
    assert_eq!(one.ask(3, b"a").await, Err(PeerError::Unknown { peer: 3 }));
    let not_connected = two.peers.notify(1, Bytes::new());
    assert_eq!(not_connected, Err(PeerError::Unknown { peer: 1 }));
}

#[tokio::test]
async fn more_requests_than_may_be_under_way_are_refused() {
    let limits = Limits {
        requests_in_flight_max: 1,
        ..Limits::default()
    };
    let start = |limits| Start {
        limits,
        ..Start::default()
    };
    let mut one = Broker::start(1).await;
    let two = start(limits.clone()).broker(2).await;
    one.dial(2, &two).await;
    // The second finds the only place taken, whichever of them comes first.
    let answered = tokio::select! {
        answered = one.ask(2, b"wait") => answered,
        answered = one.ask(2, b"wait") => answered,
    };
    assert_eq!(answered, Err(PeerError::Busy { peer: 2 }));

    let mut three = start(limits).broker(3).await;
    three.dial(2, &two).await;
    let answered = tokio::select! {
        answered = three.ask(2, b"wait") => answered,
        answered = three.ask(2, b"wait") => answered,
    };
    assert_eq!(answered, Err(PeerError::QueueFull { peer: 2 }));
}

#[tokio::test]
async fn a_request_fails_at_once_when_its_connection_is_lost() {
    let (mut one, two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;
    let (answer, ()) = tokio::join!(one.ask(2, b"wait"), two.peers.stop());
    assert_eq!(answer, Err(PeerError::Disconnected { peer: 2 }));
    one.until(Event::Disconnected(2)).await;
    let answer = one.ask(2, b"a").await;
    assert_eq!(answer, Err(PeerError::NotConnected { peer: 2 }));
}

#[tokio::test]
async fn a_peer_that_restarts_on_its_port_is_found_again() {
    let (mut one, two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;
    let address = two.address();
    two.peers.stop().await;
    drop(two);
    one.until(Event::Disconnected(2)).await;
    one.peers.send(2, vec![heartbeat(4, 1)]);
    one.until(Event::Unreachable(2, vec![key(4)])).await;

    let start = Start {
        address,
        ..Start::default()
    };
    let mut two = start.broker(2).await;
    one.until(Event::Connected(2)).await;
    one.peers.send(2, vec![heartbeat(5, 1)]);
    assert_eq!(two.receive(1).await, [(1, heartbeat(5, 1))]);
    assert_eq!(one.ask(2, b"a").await.as_deref(), Ok(&b"a!"[..]));
}

#[tokio::test]
async fn a_peer_moves_and_is_removed() {
    let (mut one, mut old, mut new) =
        tokio::join!(Broker::start(1), Broker::start(2), Broker::start(2),);
    one.dial(2, &old).await;
    one.peers.send(2, vec![heartbeat(1, 1)]);
    old.receive(1).await;

    one.peers.set_peer(2, new.address());
    one.until(Event::Disconnected(2)).await;
    one.until(Event::Connected(2)).await;
    one.peers.send(2, vec![heartbeat(1, 2)]);
    assert_eq!(new.receive(1).await, [(1, heartbeat(1, 2))]);

    one.peers.remove_peer(2);
    one.until(Event::Disconnected(2)).await;
    one.peers.send(2, vec![heartbeat(1, 3)]);
    one.until(Event::Unreachable(2, vec![key(1)])).await;
    one.dial(2, &new).await;
}

#[tokio::test]
async fn what_a_full_queue_does_not_take_is_told() {
    let limits = Limits {
        queue_bytes_max: 100_000,
        ..Limits::default()
    };
    let start = Start {
        limits,
        ..Start::default()
    };
    let mut one = start.broker(1).await;
    let mut two = Broker::start(2).await;
    one.dial(2, &two).await;
    // Queued in one step, so nothing can be written in between.
    let messages = (0..5).map(|index| append(index, 40_000)).collect();
    one.peers.send(2, messages);
    let dropped = vec![key(2), key(3), key(4)];
    one.until(Event::Unreachable(2, dropped)).await;
    let arrived = [(1, append(0, 40_000)), (1, append(1, 40_000))];
    assert!(two.receive(2).await == arrived);
}

#[tokio::test]
async fn what_may_not_travel_is_dropped_by_its_sender_alone() {
    let (mut one, mut two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;
    let mut proposal = append(1, 10);
    proposal.message.msg_type = MessageType::MsgPropose;
    one.peers.send(2, vec![proposal, heartbeat(2, 1)]);
    assert_eq!(two.receive(1).await, [(1, heartbeat(2, 1))]);
    one.until(Event::Unreachable(2, vec![key(1)])).await;
    assert!(one.peers.is_connected(2));
}

#[tokio::test]
async fn garbage_closes_only_its_own_connection() {
    let (mut one, mut two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;

    let mut raw = Raw::connect(&two.address()).await;
    raw.write(b"GET / HTTP/1.1\r\n\r\n").await;
    raw.expect_close().await;

    // Of the right length, but no handshake.
    let mut raw = Raw::connect(&two.address()).await;
    raw.write(&[0, 0, 0, 20]).await;
    raw.write(&[7; 20]).await;
    raw.expect_close().await;

    for bytes in [
        // Longer than any frame may be.
        vec![0xff; 8],
        // A frame of the right length whose checksum is wrong.
        [&[0, 0, 0, 9][..], &[5; 9]].concat(),
    ] {
        let (mut raw, verdict) = Raw::greet(&two.address(), 7, 2, "ours").await;
        assert_eq!(verdict, Verdict::Accepted);
        raw.send(&Frame::Raft(vec![heartbeat(3, 1)])).await;
        assert_eq!(two.receive(1).await, [(7, heartbeat(3, 1))]);
        raw.write(&bytes).await;
        raw.expect_close().await;
    }

    one.peers.send(2, vec![heartbeat(1, 1)]);
    assert_eq!(two.receive(1).await, [(1, heartbeat(1, 1))]);
    assert!(one.peers.is_connected(2));
}

#[tokio::test]
async fn a_frame_that_the_receiver_finds_too_large_closes_the_connection() {
    let limits = Limits {
        frame_bytes_max: 10_000,
        ..Limits::default()
    };
    let start = Start {
        limits,
        ..Start::default()
    };
    let mut one = Broker::start(1).await;
    let mut two = start.broker(2).await;
    one.dial(2, &two).await;
    two.dial(1, &one).await;
    one.peers.send(2, vec![append(1, 20_000)]);
    one.until(Event::Disconnected(2)).await;
    one.until(Event::Connected(2)).await;

    // A sender with that limit does not even try.
    two.peers.send(1, vec![append(1, 20_000), append(2, 2000)]);
    two.until(Event::Unreachable(1, vec![key(1)])).await;
    assert_eq!(one.receive(1).await, [(2, append(2, 2000))]);
    let large = vec![0; 20_000].into();
    let refused = two.peers.notify(1, large);
    assert_eq!(refused, Err(PeerError::TooLarge { bytes: 20_000 }));
}

#[tokio::test]
async fn strangers_are_refused_and_told_why() {
    let two = Broker::start(2).await;
    for (sender, target, cluster_id, reason) in [
        (
            1,
            2,
            "theirs",
            "this broker is of cluster 'ours', not 'theirs'",
        ),
        (1, 3, "ours", "this is broker 2, not 3"),
        (2, 2, "ours", "2 is this broker's own id"),
    ] {
        let (raw, verdict) = Raw::greet(&two.address(), sender, target, cluster_id).await;
        // As it is written to the log of the other.
        let reason = reason.escape_debug().to_string();
        assert_eq!(verdict, Verdict::Refused(reason));
        raw.expect_close().await;
    }
}

#[tokio::test]
async fn a_broker_without_a_cluster_is_let_in_until_it_names_another() {
    let start = |cluster_id| Start {
        cluster_id,
        ..Start::default()
    };
    let mut one = start(None).broker(1).await;
    let mut two = Broker::start(2).await;
    one.dial(2, &two).await;
    two.dial(1, &one).await;
    one.peers.set_cluster_id("theirs".to_owned());
    let (_, verdict) = Raw::greet(&one.address(), 5, 1, "ours").await;
    assert!(matches!(verdict, Verdict::Refused(_)));
}

#[tokio::test]
async fn a_newer_connection_of_a_broker_replaces_the_older() {
    let mut two = Broker::start(2).await;
    let (older, _) = Raw::greet(&two.address(), 7, 2, "ours").await;
    let (mut newer, verdict) = Raw::greet(&two.address(), 7, 2, "ours").await;
    assert_eq!(verdict, Verdict::Accepted);
    older.expect_close().await;
    newer.send(&Frame::Raft(vec![heartbeat(3, 1)])).await;
    assert_eq!(two.receive(1).await, [(7, heartbeat(3, 1))]);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_dialled_anew() {
    let limits = Limits {
        silence_max: Duration::from_millis(100),
        ping_interval: Duration::from_millis(20),
        ..Limits::default()
    };
    let start = Start {
        limits,
        ..Start::default()
    };
    let mut one = start.broker(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    one.peers.set_peer(2, address);
    // Kept open, as a link is whose other end lost its power.
    let mut silent = VecDeque::new();
    for _ in 0..2 {
        let accepted = timeout(PATIENCE, listener.accept()).await.unwrap();
        let mut raw = Raw {
            stream: accepted.unwrap().0,
        };
        let hello = Hello::decode(raw.read_sized().await).unwrap();
        assert!(matches!(hello, Received::Known(hello) if hello.target == 2));
        raw.write(&Verdict::Accepted.encode()).await;
        one.until(Event::Connected(2)).await;
        let ping = Frame::decode(raw.read_sized().await).unwrap();
        assert_eq!(ping, Frame::Ping);
        one.until(Event::Disconnected(2)).await;
        silent.push_back(raw);
    }
}

#[tokio::test]
async fn a_peer_that_lives_but_does_not_read_is_dialled_anew() {
    let limits = Limits {
        silence_max: Duration::from_millis(300),
        queue_bytes_max: 256 * 1024 * 1024,
        ..Limits::default()
    };
    let start = Start {
        limits,
        ..Start::default()
    };
    let mut one = start.broker(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.peers
        .set_peer(2, listener.local_addr().unwrap().to_string());
    let (stream, _) = listener.accept().await.unwrap();
    let mut raw = Raw { stream };
    raw.read_sized().await;
    raw.write(&Verdict::Accepted.encode()).await;
    one.until(Event::Connected(2)).await;
    // More than the sockets' buffers hold.
    let messages = (0..16).map(|index| append(index, 8 << 20)).collect();
    one.peers.send(2, messages);
    let pinging = async {
        let ping = Frame::Ping.encode().unwrap().concat();
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        loop {
            beat.tick().await;
            // Fails once the other side has given up.
            drop(raw.stream.write_all(&ping).await);
        }
    };
    tokio::select! {
        () = one.until(Event::Disconnected(2)) => {}
        () = pinging => {}
    }
    // What the buffers took may have arrived; the last message certainly has not.
    loop {
        if let Event::Unreachable(2, groups) = one.next().await {
            assert!(groups.contains(&key(15)));
            break;
        }
    }
}

#[tokio::test]
async fn pings_keep_a_quiet_connection_open() {
    let limits = Limits {
        silence_max: Duration::from_secs(5),
        ping_interval: Duration::from_millis(5),
        ..Limits::default()
    };
    let start = Start {
        limits,
        ..Start::default()
    };
    let two = start.broker(2).await;
    let (mut raw, _) = Raw::greet(&two.address(), 7, 2, "ours").await;
    for _ in 0..3 {
        assert_eq!(Frame::decode(raw.read_sized().await), Ok(Frame::Ping));
    }
}

#[tokio::test]
async fn dropping_the_last_handle_closes_everything() {
    let (mut one, mut two) = tokio::join!(Broker::start(1), Broker::start(2));
    one.dial(2, &two).await;
    two.dial(1, &one).await;
    drop(two.peers);
    while timeout(PATIENCE, two.events.recv())
        .await
        .unwrap()
        .is_some()
    {}
    one.until(Event::Disconnected(2)).await;
}
