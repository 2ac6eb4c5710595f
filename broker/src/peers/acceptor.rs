//! The connections that other brokers keep open to this one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::{ConnectionError, FrameReader, FrameWriter, halves};
use super::frame::{Answer, Frame, OVERHEAD_BYTES_MAX};
use super::handshake::{Hello, Received, Refusal, Verdict, judge};
use super::{Shared, stopped};

/// How long to wait after the system refused to hand out a connection (no file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts and serves other brokers until told to stop; then waits for those under way.
pub(super) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let registry = Arc::new(Registry::default());
    let places = Arc::new(Semaphore::new(shared.limits.connections_max));
    let mut connections = JoinSet::new();
    let stop = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a broker's connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%address, "a broker's connection refused: too many");
            continue;
        };
        let shared = Arc::clone(&shared);
        let registry = Arc::clone(&registry);
        let stop = stop.clone();
        connections.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = stopped(stop) => ConnectionError::Stopped,
                ended = serve(stream, address, &shared, &registry) => ended,
            };
            // Whoever dialled tells its operator why, once. Here it would be a line for each try.
            tracing::debug!(%address, why = %ended, "a broker's connection ended");
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    shared: &Arc<Shared>,
    registry: &Arc<Registry>,
) -> ConnectionError {
    let time_max = shared.limits.connect_time_max;
    let opened = timeout(time_max, open(stream, shared, registry)).await;
    let opened = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return error,
        Err(_) => return ConnectionError::NotOpened(time_max),
    };
    let Opened {
        peer,
        reader,
        writer,
        mut turn,
    } = opened;
    tracing::debug!(peer, %address, "a broker connected");
    let limits = &shared.limits;
    let (answers, done) = mpsc::channel(limits.requests_in_flight_max.max(1));
    let (busy, refused) = mpsc::channel(limits.requests_in_flight_max.max(1));
    let ended = tokio::select! {
        biased;
        () = turn.replaced() => return ConnectionError::Replaced,
        ended = read_frames(reader, peer, shared, answers, busy) => ended,
        ended = write_answers(writer, shared, done, refused) => ended,
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

struct Opened {
    peer: i32,
    reader: FrameReader,
    writer: FrameWriter,
    turn: Turn,
}

async fn open(
    stream: TcpStream,
    shared: &Shared,
    registry: &Arc<Registry>,
) -> Result<Opened, ConnectionError> {
    let (mut reader, mut writer) = halves(stream, &shared.limits)?;
    let hello = Hello::decode(reader.next_handshake().await?)?;
    let judged = judge(&hello, &shared.identity(), |broker| {
        shared.inbox.directory_of(broker)
    });
    let peer = match (hello, judged) {
        (Received::Known(hello), Ok(())) => hello.sender.node_id,
        (_, judged) => {
            let reason = judged
                .as_ref()
                .err()
                .map_or_else(String::new, ToString::to_string);
            let verdict = match judged {
                Err(Refusal::OtherDirectory(_)) => Verdict::Disowned(reason.clone()),
                _ => Verdict::Refused(reason.clone()),
            };
            writer.write_pieces([verdict.encode()].into()).await?;
            return Err(ConnectionError::Refused(reason));
        }
    };
    // Only when the older connection delivers no more does the peer hear that it may begin: what
    // it sends on two connections never mixes.
    let turn = registry.replace(peer).await;
    writer
        .write_pieces([Verdict::Accepted.encode()].into())
        .await?;
    Ok(Opened {
        peer,
        reader,
        writer,
        turn,
    })
}

async fn read_frames(
    mut reader: FrameReader,
    from: i32,
    shared: &Arc<Shared>,
    answers: mpsc::Sender<(u64, Answer)>,
    busy: mpsc::Sender<u64>,
) -> Result<std::convert::Infallible, ConnectionError> {
    // Dropped with the connection: nobody would get the answers.
    let mut requests = JoinSet::new();
    loop {
        match reader.next().await? {
            Frame::Raft(messages) => shared.inbox.raft(from, messages),
            Frame::Notice(payload) => shared.inbox.notice(from, payload),
            Frame::Pulse(mark) => shared.inbox.pulse(from, mark),
            Frame::Request {
                correlation_id,
                payload,
            } => {
                while requests.try_join_next().is_some() {}
                match answers.clone().try_reserve_owned() {
                    Ok(place) => {
                        let reply = Reply {
                            correlation_id,
                            place: Some(place),
                        };
                        requests.spawn(handle(Arc::clone(shared), from, payload, reply));
                    }
                    Err(_) => busy
                        .try_send(correlation_id)
                        .map_err(|_| ConnectionError::TooManyRequests)?,
                }
            }
            Frame::Ping => {}
            Frame::Answer { .. } => return Err(ConnectionError::Direction("answers")),
        }
    }
}

async fn handle(shared: Arc<Shared>, from: i32, payload: Bytes, mut reply: Reply) {
    let answer = shared.inbox.request(from, payload).await;
    let bytes = answer.len();
    if bytes + OVERHEAD_BYTES_MAX > shared.limits.frame_bytes_max {
        tracing::error!(peer = from, bytes, "an answer is too large to be sent");
        return;
    }
    reply.send(Answer::Done(answer));
}

/// A place among the answers, taken before the work begins, so that giving the answer never waits.
/// Work that ends without an answer, by a panic for one, has failed.
struct Reply {
    correlation_id: u64,
    place: Option<mpsc::OwnedPermit<(u64, Answer)>>,
}

impl Reply {
    fn send(&mut self, answer: Answer) {
        if let Some(place) = self.place.take() {
            place.send((self.correlation_id, answer));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Answer::Failed);
    }
}

async fn write_answers(
    mut writer: FrameWriter,
    shared: &Shared,
    mut done: mpsc::Receiver<(u64, Answer)>,
    mut refused: mpsc::Receiver<u64>,
) -> Result<std::convert::Infallible, ConnectionError> {
    loop {
        let next = async {
            tokio::select! {
                Some((correlation_id, answer)) = done.recv() => Frame::Answer { correlation_id, answer },
                Some(correlation_id) = refused.recv() => Frame::Answer { correlation_id, answer: Answer::Busy },
                // The reader, which holds the other ends, is gone and this is about to be.
                else => std::future::pending().await,
            }
        };
        let frame = match timeout(shared.limits.ping_interval, next).await {
            Ok(frame) => frame,
            Err(_) => Frame::Ping,
        };
        writer.write(&[frame]).await?;
    }
}

/// Which connection of each broker delivers.
#[derive(Default)]
struct Registry {
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_peer: HashMap<i32, Slot>,
    next_generation: u64,
}

struct Slot {
    generation: u64,
    /// Dropped to tell that connection that it is replaced.
    _replace: oneshot::Sender<()>,
    /// One permit: the turn to deliver.
    turns: Arc<Semaphore>,
}

/// Held by the connection that delivers a broker's messages.
struct Turn {
    registry: Arc<Registry>,
    peer: i32,
    generation: u64,
    replaced: oneshot::Receiver<()>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Registry {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the broker's present connection, if there is one, and waits until it has.
    async fn replace(self: &Arc<Self>, peer: i32) -> Turn {
        let (mut turn, turns) = self.register(peer);
        // The semaphore is never closed, so there is always a permit in the end.
        turn.permit = turns.acquire_owned().await.ok();
        turn
    }

    fn register(self: &Arc<Self>, peer: i32) -> (Turn, Arc<Semaphore>) {
        let (replace, replaced) = oneshot::channel();
        let mut slots = self.slots();
        let generation = slots.next_generation;
        slots.next_generation += 1;
        let turns = match slots.by_peer.get(&peer) {
            Some(slot) => Arc::clone(&slot.turns),
            None => Arc::new(Semaphore::new(1)),
        };
        let slot = Slot {
            generation,
            _replace: replace,
            turns: Arc::clone(&turns),
        };
        slots.by_peer.insert(peer, slot);
        let turn = Turn {
            registry: Arc::clone(self),
            peer,
            generation,
            replaced,
            permit: None,
        };
        (turn, turns)
    }
}

impl Turn {
    async fn replaced(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        drop((&mut self.replaced).await);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // One that gave up waiting leaves the slot, so that the next waits for the same turn.
        if self.permit.is_none() {
            return;
        }
        let mut slots = self.registry.slots();
        let newest = slots.by_peer.get(&self.peer);
        if newest.is_some_and(|slot| slot.generation == self.generation) {
            slots.by_peer.remove(&self.peer);
        }
    }
}
