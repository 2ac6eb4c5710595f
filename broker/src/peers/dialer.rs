//! The connection that this broker keeps open to another, for all that it sends there.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::backoff::Backoff;
use super::connection::{ConnectionError, FrameReader, FrameWriter, halves};
use super::frame::Frame;
use super::handshake::{Hello, Verdict};
use super::link::Link;
use super::{Shared, stopped};

pub(super) struct Dialer {
    pub link: Arc<Link>,
    pub shared: Arc<Shared>,
    /// Where the peer is; `None` while there is none of this id.
    pub address: watch::Receiver<Option<String>>,
    pub stopping: watch::Receiver<bool>,
}

impl Dialer {
    /// Keeps the connection open until told to stop.
    pub async fn run(mut self) {
        let link = Arc::clone(&self.link);
        let shared = Arc::clone(&self.shared);
        let stopping = self.stopping.clone();
        tokio::select! {
            biased;
            () = stopped(stopping) => {}
            () = report_dropped(&link, &shared) => {}
            () = self.dial() => {}
        }
        lose(&link, &shared);
        let dropped = link.take_dropped();
        if !dropped.is_empty() {
            shared.inbox.unreachable(link.peer, dropped);
        }
    }

    /// Ends when nobody can tell it addresses any more.
    async fn dial(&mut self) {
        let limits = &self.shared.limits;
        let mut backoff = Backoff::new(limits.redial_wait_min, limits.redial_wait_max);
        // A peer that is away for long is one line in the log and not one a second.
        let mut logged: Option<String> = None;
        loop {
            let address = self.address.borrow_and_update().clone();
            let Some(address) = address else {
                match self.address.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            let begun = Instant::now();
            let ended = tokio::select! {
                ended = converse(&self.link, &self.shared, &address) => ended,
                changed = self.address.changed() => {
                    lose(&self.link, &self.shared);
                    backoff.reset();
                    logged = None;
                    match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    }
                }
            };
            let was_connected = lose(&self.link, &self.shared);
            // One that is closed as soon as it opens (two brokers of the same id do that to each
            // other) is waited for like one that does not open.
            if was_connected && begun.elapsed() >= limits.silence_max {
                backoff.reset();
                logged = None;
            }
            let why = ended.to_string();
            let peer = self.link.peer;
            if logged.as_ref() != Some(&why) {
                tracing::warn!(peer, %address, %why, was_connected, "no connection to a broker");
                logged = Some(why);
            }
            let wait = backoff.next_wait(Uuid::new_v4().as_u64_pair().1);
            // A change of the address is seen at the top of the loop.
            drop(timeout(wait, changed(&mut self.address)).await);
        }
    }
}

/// Waits for a change and leaves it to be seen by whoever asks next.
async fn changed(address: &mut watch::Receiver<Option<String>>) {
    if address.changed().await.is_ok() {
        address.mark_changed();
    }
}

async fn report_dropped(link: &Link, shared: &Shared) {
    loop {
        let groups = link.next_dropped().await;
        shared.inbox.unreachable(link.peer, groups);
    }
}

fn lose(link: &Link, shared: &Shared) -> bool {
    let was_connected = link.disconnect();
    if was_connected {
        shared.inbox.disconnected(link.peer);
    }
    was_connected
}

/// Opens the connection and uses it until it ends.
async fn converse(link: &Link, shared: &Shared, address: &str) -> ConnectionError {
    let time_max = shared.limits.connect_time_max;
    let opened = timeout(time_max, open(link.peer, shared, address)).await;
    let (reader, writer) = match opened {
        Ok(Ok(halves)) => halves,
        Ok(Err(error)) => return error,
        Err(_) => return ConnectionError::NotOpened(time_max),
    };
    tracing::info!(peer = link.peer, %address, "connected to a broker");
    link.connect();
    shared.inbox.connected(link.peer);
    let ended = tokio::select! {
        ended = read_answers(reader, link) => ended,
        ended = write_queued(writer, link, shared.limits.ping_interval) => ended,
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn open(
    peer: i32,
    shared: &Shared,
    address: &str,
) -> Result<(FrameReader, FrameWriter), ConnectionError> {
    let stream = TcpStream::connect(address).await?;
    let (mut reader, mut writer) = halves(stream, &shared.limits)?;
    let hello = Hello {
        sender: shared.identity(),
        target: peer,
    };
    writer.write_pieces([hello.encode()].into()).await?;
    match Verdict::decode(reader.next_handshake().await?)? {
        Verdict::Accepted => Ok((reader, writer)),
        Verdict::Refused(reason) => Err(ConnectionError::Refused(reason)),
        Verdict::Disowned(reason) => {
            shared.inbox.disowned(peer, &reason);
            Err(ConnectionError::Refused(reason))
        }
    }
}

async fn read_answers(
    mut reader: FrameReader,
    link: &Link,
) -> Result<std::convert::Infallible, ConnectionError> {
    loop {
        match reader.next().await? {
            Frame::Answer {
                correlation_id,
                answer,
            } => link.answered(correlation_id, answer),
            Frame::Ping => {}
            Frame::Raft(_) => return Err(ConnectionError::Direction("raft messages")),
            Frame::Notice(_) => return Err(ConnectionError::Direction("notices")),
            Frame::Pulse(_) => return Err(ConnectionError::Direction("pulses")),
            Frame::Request { .. } => return Err(ConnectionError::Direction("requests")),
        }
    }
}

async fn write_queued(
    mut writer: FrameWriter,
    link: &Link,
    ping_interval: Duration,
) -> Result<std::convert::Infallible, ConnectionError> {
    loop {
        let frames = match timeout(ping_interval, link.next_frames()).await {
            Ok(frames) => frames,
            Err(_) => vec![Frame::Ping],
        };
        writer.write(&frames).await?;
    }
}
