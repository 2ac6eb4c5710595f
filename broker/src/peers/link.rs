//! What the rest of the broker and a peer's own task share: its outbox, and who waits for answers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::frame::{Answer, Frame, OVERHEAD_BYTES_MAX};
use super::outbox::{Outbox, Refused, message_bytes};
use super::{GroupMessage, Limits, PeerError};
use crate::replication::hibernation::Mark;
use crate::replication::wire;
use crate::shard::view::PartitionKey;

pub(super) struct Link {
    pub peer: i32,
    limits: Limits,
    /// Held for moments and never across an await.
    state: Mutex<State>,
    /// Something was queued.
    queued: Notify,
    /// Something was dropped.
    dropped: Notify,
}

struct State {
    outbox: Outbox,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    next_correlation_id: u64,
}

impl Link {
    pub fn new(peer: i32, limits: Limits) -> Self {
        Self {
            peer,
            state: Mutex::new(State {
                outbox: Outbox::new(limits.queue_bytes_max),
                waiting: HashMap::new(),
                next_correlation_id: 0,
            }),
            limits,
            queued: Notify::new(),
            dropped: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_connected(&self) -> bool {
        self.state().outbox.is_connected()
    }

    pub fn send(&self, mut messages: Vec<GroupMessage>) {
        let mut unsendable = Vec::new();
        messages.retain(|message| {
            let sendable = self.is_sendable(message);
            if !sendable {
                unsendable.push(message.group);
            }
            sendable
        });
        let mut state = self.state();
        for group in unsendable {
            state.outbox.note_dropped(group);
        }
        state.outbox.push_raft(messages);
        let has_dropped = state.outbox.has_dropped();
        drop(state);
        self.queued.notify_one();
        if has_dropped {
            self.dropped.notify_one();
        }
    }

    /// The other side would close the connection on a message that it must not take, and all
    /// groups would lose it again and again.
    fn is_sendable(&self, message: &GroupMessage) -> bool {
        let group = message.group;
        if let Err(error) = wire::check(&message.message) {
            tracing::error!(peer = self.peer, ?group, %error, "a raft message is not sent");
            return false;
        }
        let bytes = message_bytes(message) + OVERHEAD_BYTES_MAX;
        if bytes > self.limits.frame_bytes_max {
            tracing::error!(
                peer = self.peer,
                ?group,
                bytes,
                "a raft message is too large to be sent"
            );
            return false;
        }
        true
    }

    /// Lost if it does not fit: there will be another.
    pub fn pulse(&self, mark: Mark) {
        if self.state().outbox.push_pulse(mark).is_ok() {
            self.queued.notify_one();
        }
    }

    pub fn notify(&self, payload: Bytes) -> Result<(), PeerError> {
        self.check_payload(&payload)?;
        let pushed = self.state().outbox.push_notice(payload);
        pushed.map_err(|refused| self.error(refused))?;
        self.queued.notify_one();
        Ok(())
    }

    /// Sends a request and waits for its answer.
    pub async fn request(&self, payload: Bytes, time_max: Duration) -> Result<Bytes, PeerError> {
        self.check_payload(&payload)?;
        let (waiting, answer) = self.ask(payload)?;
        self.queued.notify_one();
        let answered = tokio::time::timeout(time_max, answer).await;
        drop(waiting);
        let peer = self.peer;
        match answered {
            Ok(Ok(Answer::Done(payload))) => Ok(payload),
            Ok(Ok(Answer::Busy)) => Err(PeerError::Busy { peer }),
            Ok(Ok(Answer::Failed)) => Err(PeerError::Failed { peer }),
            Ok(Err(_)) => Err(PeerError::Disconnected { peer }),
            Err(_) => Err(PeerError::Timeout {
                peer,
                after: time_max,
            }),
        }
    }

    fn ask(&self, payload: Bytes) -> Result<(Waiting<'_>, oneshot::Receiver<Answer>), PeerError> {
        let mut state = self.state();
        if state.waiting.len() >= self.limits.requests_in_flight_max {
            return Err(PeerError::QueueFull { peer: self.peer });
        }
        let correlation_id = state.next_correlation_id;
        let pushed = state.outbox.push_request(correlation_id, payload);
        pushed.map_err(|refused| self.error(refused))?;
        state.next_correlation_id += 1;
        let (sender, receiver) = oneshot::channel();
        state.waiting.insert(correlation_id, sender);
        let waiting = Waiting {
            link: self,
            correlation_id,
        };
        Ok((waiting, receiver))
    }

    fn check_payload(&self, payload: &Bytes) -> Result<(), PeerError> {
        match payload.len() + OVERHEAD_BYTES_MAX <= self.limits.frame_bytes_max {
            true => Ok(()),
            false => Err(PeerError::TooLarge {
                bytes: payload.len(),
            }),
        }
    }

    fn error(&self, refused: Refused) -> PeerError {
        let peer = self.peer;
        match refused {
            Refused::NotConnected => PeerError::NotConnected { peer },
            Refused::Full => PeerError::QueueFull { peer },
        }
    }

    pub fn connect(&self) {
        self.state().outbox.connect();
    }

    /// Drops what is queued and fails those who wait. Says whether there was a connection.
    pub fn disconnect(&self) -> bool {
        let mut state = self.state();
        let was_connected = state.outbox.disconnect();
        // Dropping the senders wakes the receivers.
        let waiting = std::mem::take(&mut state.waiting);
        let has_dropped = state.outbox.has_dropped();
        drop(state);
        drop(waiting);
        if has_dropped {
            self.dropped.notify_one();
        }
        was_connected
    }

    /// An answer has come. One that nobody waits for any more came too late.
    pub fn answered(&self, correlation_id: u64, answer: Answer) {
        let waiting = self.state().waiting.remove(&correlation_id);
        if let Some(waiting) = waiting {
            drop(waiting.send(answer));
        }
    }

    /// What is to be written next, as soon as there is something. What was taken before has been
    /// written.
    pub async fn next_frames(&self) -> Vec<Frame> {
        let limits = &self.limits;
        let bytes_max = limits.batch_bytes.min(limits.frame_bytes_max);
        loop {
            let frames = self.state().outbox.take(bytes_max);
            if !frames.is_empty() {
                return frames;
            }
            self.queued.notified().await;
        }
    }

    /// Groups of which messages were dropped, as soon as there are any.
    pub async fn next_dropped(&self) -> Vec<PartitionKey> {
        loop {
            let groups = self.take_dropped();
            if !groups.is_empty() {
                return groups;
            }
            self.dropped.notified().await;
        }
    }

    pub fn take_dropped(&self) -> Vec<PartitionKey> {
        self.state().outbox.take_dropped()
    }
}

/// Forgets a request whose caller has its answer or has given up.
struct Waiting<'a> {
    link: &'a Link,
    correlation_id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.link.state().waiting.remove(&self.correlation_id);
    }
}
