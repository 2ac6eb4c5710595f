//! One client's connection: bytes to frames, frames to handlers, answers back in order.
//!
//! Kafka handles a connection's requests one after another. So do we, but for produce requests:
//! those that follow each other are handed to the log as they arrive and answered in order as they
//! commit, so that a producer with several in flight shares one sync among them. Everything else
//! begins when all before it has been answered.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use streamgauge_protocol::frame::{self, FRAME_SIZE_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::memory::MemoryPermit;
use crate::api::produce::transactional::Turns;
use crate::api::{self, Answer, Handling, RequestFuture};
use crate::broker::Broker;

/// Requests of one connection that may be under way at once; a producer has five by default.
const IN_FLIGHT_MAX: usize = 64;

/// Bytes read from the socket at once while no large frame is under way.
const READ_BYTES: usize = 16 * 1024;

/// How long a request may take to arrive, once memory has been taken for it, beyond what it takes at
/// the least rate: a client that stalls must not keep others from that memory.
const RECEIVE_PATIENCE: Duration = Duration::from_secs(30);
const RECEIVE_BYTES_PER_SECOND_MIN: usize = 256 * 1024;

/// Slices given to the kernel in one write; Linux takes no more than 1024.
const WRITE_SLICES_MAX: usize = 256;

/// Why a connection ended, other than by its client's leaving.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] frame::FrameError),
    #[error("{0}")]
    Request(#[from] api::RequestError),
    #[error("the client does not take its answers")]
    SlowReader,
    #[error("the client does not finish its request of {frame_bytes} bytes")]
    SlowSender { frame_bytes: usize },
}

/// What a connection knows of its client, for handlers and logs.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// One waiter for the whole connection: a fetch registers it with the partitions it waits for.
    pub changed: Arc<Notify>,
    /// The order of its transactional produce requests.
    pub turns: Turns,
}

impl Peer {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            changed: Arc::new(Notify::new()),
            turns: Turns::default(),
        }
    }
}

type Waiting = std::pin::Pin<
    Box<dyn Future<Output = (Result<Answer, api::RequestError>, Option<MemoryPermit>)> + Send>,
>;

/// Serves a client until it leaves, breaks the protocol, is idle for too long, or the broker stops.
pub async fn serve(
    broker: Arc<Broker>,
    stream: TcpStream,
    address: SocketAddr,
    stopping: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let idle_max = Duration::from_millis(broker.config.connections_max_idle_ms.unsigned_abs());
    let connection = Connection {
        peer: Peer::new(address),
        broker,
        stream,
        received: BytesMut::new(),
        in_flight: FuturesOrdered::new(),
        only_produce_in_flight: true,
        held: None,
        idle_max,
    };
    connection.run(stopping).await
}

struct Connection {
    broker: Arc<Broker>,
    stream: TcpStream,
    peer: Peer,
    received: BytesMut,
    in_flight: FuturesOrdered<Waiting>,
    only_produce_in_flight: bool,
    /// A request that must wait until all before it have been answered.
    held: Option<(Bytes, Option<MemoryPermit>)>,
    idle_max: Duration,
}

/// What is being waited for besides answers.
enum Input {
    /// More bytes, to make a frame of this length (with its length field) complete.
    Bytes { frame_bytes: usize },
    /// Memory for the next frame.
    Memory { frame_bytes: usize },
    /// Nothing: what is in flight must be answered first.
    Nothing,
}

impl Connection {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), ConnectionError> {
        // Memory taken for the frame that is being received.
        let mut permit: Option<MemoryPermit> = None;
        let mut deadline = None;
        loop {
            self.release_held()?;
            let input = self.next_input(&mut permit)?;
            let idle = self.in_flight.is_empty();
            let receiving = match (&input, &permit) {
                (Input::Bytes { frame_bytes }, Some(_)) => Some(*frame_bytes),
                _ => None,
            };
            deadline = receiving.map(|bytes| deadline.unwrap_or_else(|| receive_deadline(bytes)));
            tokio::select! {
                biased;
                Some((answer, memory)) = self.in_flight.next(), if !idle => {
                    let answer = answer?;
                    let close = answer.close_after;
                    self.write(answer.pieces).await?;
                    drop(memory);
                    if close {
                        return Ok(());
                    }
                }
                // A client that has an answer coming may still send; one that has none is not
                // waited for once the broker stops.
                () = stopped(&mut stopping), if idle => return Ok(()),
                result = read(&mut self.stream, &mut self.received, &input, self.idle_max, idle) => {
                    match result? {
                        Received::Some => {}
                        Received::Closed | Received::Idle => return Ok(()),
                    }
                }
                taken = take_memory(&self.broker, &input) => permit = taken,
                () = until(deadline) => {
                    return Err(ConnectionError::SlowSender {
                        frame_bytes: receiving.unwrap_or(0),
                    });
                }
            }
        }
    }

    /// Starts as many requests as the received bytes hold, and says what is wanted next.
    fn next_input(&mut self, permit: &mut Option<MemoryPermit>) -> Result<Input, ConnectionError> {
        loop {
            if self.held.is_some() || self.in_flight.len() >= IN_FLIGHT_MAX {
                return Ok(Input::Nothing);
            }
            let request_bytes_max = self.broker.config.socket_request_max_bytes;
            let Some(size) = self.received.first_chunk::<FRAME_SIZE_BYTES>() else {
                return Ok(Input::Bytes {
                    frame_bytes: READ_BYTES,
                });
            };
            let frame_bytes = FRAME_SIZE_BYTES + frame::frame_bytes(*size, request_bytes_max)?;
            if permit.is_none() {
                return Ok(Input::Memory { frame_bytes });
            }
            if self.received.len() < frame_bytes {
                return Ok(Input::Bytes { frame_bytes });
            }
            let mut frame = self.received.split_to(frame_bytes).freeze();
            frame.advance(FRAME_SIZE_BYTES);
            self.accept(frame, permit.take())?;
        }
    }

    fn accept(
        &mut self,
        frame: Bytes,
        permit: Option<MemoryPermit>,
    ) -> Result<(), ConnectionError> {
        let may_overtake = self.only_produce_in_flight && api::is_produce(&frame);
        if self.in_flight.is_empty() || may_overtake {
            self.start(frame, permit)
        } else {
            self.held = Some((frame, permit));
            Ok(())
        }
    }

    fn release_held(&mut self) -> Result<(), ConnectionError> {
        if self.in_flight.is_empty()
            && let Some((frame, permit)) = self.held.take()
        {
            return self.start(frame, permit);
        }
        Ok(())
    }

    /// Hands a request to its handler. A produce request reaches its partitions in this call.
    fn start(&mut self, frame: Bytes, permit: Option<MemoryPermit>) -> Result<(), ConnectionError> {
        self.only_produce_in_flight = api::is_produce(&frame);
        let Handling { answer } = api::handle(&self.broker, &self.peer, frame)?;
        let answer: RequestFuture = answer;
        self.in_flight
            .push_back(Box::pin(async move { (answer.await, permit) }));
        Ok(())
    }

    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), ConnectionError> {
        if pieces.is_empty() {
            return Ok(());
        }
        match tokio::time::timeout(self.idle_max, write_all(&mut self.stream, pieces)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ConnectionError::SlowReader),
        }
    }
}

fn receive_deadline(frame_bytes: usize) -> Instant {
    let seconds = frame_bytes / RECEIVE_BYTES_PER_SECOND_MIN;
    Instant::now() + RECEIVE_PATIENCE + Duration::from_secs(seconds as u64)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    drop(stopping.wait_for(|stop| *stop).await);
}

async fn take_memory(broker: &Broker, input: &Input) -> Option<MemoryPermit> {
    match input {
        Input::Memory { frame_bytes } => broker.memory.take(*frame_bytes).await,
        _ => std::future::pending().await,
    }
}

enum Received {
    Some,
    Closed,
    Idle,
}

/// Reads what is there. Cancelling it loses nothing: bytes are only ever added to `received`.
async fn read(
    stream: &mut TcpStream,
    received: &mut BytesMut,
    input: &Input,
    idle_max: Duration,
    idle: bool,
) -> io::Result<Received> {
    let frame_bytes = match input {
        Input::Bytes { frame_bytes } => *frame_bytes,
        _ => return std::future::pending().await,
    };
    // Room for the rest of the frame, so that it lies in one piece and is never moved again.
    received.reserve(frame_bytes.saturating_sub(received.len()).max(READ_BYTES));
    let read = stream.read_buf(received);
    let count = if idle {
        match tokio::time::timeout(idle_max, read).await {
            Ok(count) => count?,
            Err(_) => return Ok(Received::Idle),
        }
    } else {
        read.await?
    };
    Ok(if count == 0 {
        Received::Closed
    } else {
        Received::Some
    })
}

/// Writes all pieces with as few system calls as the kernel allows, copying none.
async fn write_all(stream: &mut TcpStream, pieces: Vec<Bytes>) -> io::Result<()> {
    let mut pieces: std::collections::VecDeque<Bytes> = pieces
        .into_iter()
        .filter(|piece| !piece.is_empty())
        .collect();
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> = pieces
            .iter()
            .take(WRITE_SLICES_MAX)
            .map(|piece| IoSlice::new(piece))
            .collect();
        let mut written = stream.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            pieces.pop_front();
        }
    }
    Ok(())
}
