//! What waits to be sent to one broker. Decides; does no I/O.
//!
//! First in, first out, across groups and kinds. Sending heartbeats ahead of data would gain
//! little, as one write is bounded to a few MiB, and could let a heartbeat commit what the append
//! before it has yet to bring.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::GroupMessage;
use super::frame::{self, Frame};
use crate::replication::hibernation::Mark;
use crate::replication::wire;
use crate::shard::view::PartitionKey;

/// Beside its bytes, what an item takes in memory.
const ITEM_BYTES: usize = size_of::<Item>() + 64;

#[derive(Debug, PartialEq)]
enum Item {
    Raft(GroupMessage),
    Notice(Bytes),
    Pulse(Mark),
    Request { correlation_id: u64, payload: Bytes },
}

impl Item {
    fn bytes(&self) -> usize {
        ITEM_BYTES
            + match self {
                Item::Raft(message) => message_bytes(message),
                Item::Pulse(_) => frame::OVERHEAD_BYTES_MAX,
                Item::Notice(payload) | Item::Request { payload, .. } => {
                    payload.len() + frame::OVERHEAD_BYTES_MAX
                }
            }
    }
}

/// What a message takes in a frame at most.
pub fn message_bytes(message: &GroupMessage) -> usize {
    frame::GROUP_BYTES + wire::bytes_at_most(&message.message)
}

/// Why something was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    NotConnected,
    Full,
}

/// The bounded queue to one broker. Without a connection it is empty and takes nothing: what Raft
/// said a while ago is worth less than what it says when the connection is there.
#[derive(Debug)]
pub struct Outbox {
    bytes_max: usize,
    connected: bool,
    queue: VecDeque<Item>,
    /// Of the queue and of what was taken last and may still be on its way to the socket.
    bytes: usize,
    taken_bytes: usize,
    taken_groups: Vec<PartitionKey>,
    /// Groups of which messages were dropped, until this is reported.
    dropped: BTreeSet<PartitionKey>,
}

impl Outbox {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            connected: false,
            queue: VecDeque::new(),
            bytes: 0,
            taken_bytes: 0,
            taken_groups: Vec::new(),
            dropped: BTreeSet::new(),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.connected
    }

    pub fn connect(&mut self) {
        self.connected = true;
    }

    /// Drops everything, also what was taken last: nobody knows whether it arrived. Says whether
    /// there was a connection.
    pub fn disconnect(&mut self) -> bool {
        for item in self.queue.drain(..) {
            if let Item::Raft(message) = item {
                self.dropped.insert(message.group);
            }
        }
        self.dropped.extend(self.taken_groups.drain(..));
        self.bytes = 0;
        self.taken_bytes = 0;
        std::mem::replace(&mut self.connected, false)
    }

    /// Queues the messages that fit and drops the others.
    pub fn push_raft(&mut self, messages: Vec<GroupMessage>) {
        for message in messages {
            let group = message.group;
            if self.push(Item::Raft(message)).is_err() {
                self.dropped.insert(group);
            }
        }
    }

    /// A message to that group was dropped before it came here.
    pub fn note_dropped(&mut self, group: PartitionKey) {
        self.dropped.insert(group);
    }

    pub fn push_pulse(&mut self, mark: Mark) -> Result<(), Refused> {
        self.push(Item::Pulse(mark))
    }

    pub fn push_notice(&mut self, payload: Bytes) -> Result<(), Refused> {
        self.push(Item::Notice(payload))
    }

    pub fn push_request(&mut self, correlation_id: u64, payload: Bytes) -> Result<(), Refused> {
        self.push(Item::Request {
            correlation_id,
            payload,
        })
    }

    fn push(&mut self, item: Item) -> Result<(), Refused> {
        if !self.connected {
            return Err(Refused::NotConnected);
        }
        let bytes = item.bytes();
        // What is larger than the whole queue is taken by an empty one, or it could never be sent.
        if self.bytes > 0 && self.bytes.saturating_add(bytes) > self.bytes_max {
            return Err(Refused::Full);
        }
        self.bytes += bytes;
        self.queue.push_back(item);
        Ok(())
    }

    /// Takes what is to be written next, about `bytes_max`; what was taken before has been written.
    /// Messages that follow each other share a frame.
    pub fn take(&mut self, bytes_max: usize) -> Vec<Frame> {
        self.bytes -= std::mem::take(&mut self.taken_bytes);
        self.taken_groups.clear();
        let mut frames = Vec::new();
        let mut messages = Vec::new();
        while let Some(item) = self.queue.front() {
            let bytes = item.bytes();
            if self.taken_bytes > 0 && self.taken_bytes + bytes > bytes_max {
                break;
            }
            self.taken_bytes += bytes;
            match self.queue.pop_front() {
                Some(Item::Raft(message)) => {
                    self.taken_groups.push(message.group);
                    messages.push(message);
                    if messages.len() == frame::MESSAGES_MAX {
                        flush(&mut messages, &mut frames);
                    }
                }
                Some(Item::Pulse(mark)) => {
                    flush(&mut messages, &mut frames);
                    frames.push(Frame::Pulse(mark));
                }
                Some(Item::Notice(payload)) => {
                    flush(&mut messages, &mut frames);
                    frames.push(Frame::Notice(payload));
                }
                Some(Item::Request {
                    correlation_id,
                    payload,
                }) => {
                    flush(&mut messages, &mut frames);
                    frames.push(Frame::Request {
                        correlation_id,
                        payload,
                    });
                }
                None => break,
            }
        }
        flush(&mut messages, &mut frames);
        frames
    }

    pub fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// The groups of which messages were dropped since this was last asked.
    pub fn take_dropped(&mut self) -> Vec<PartitionKey> {
        std::mem::take(&mut self.dropped).into_iter().collect()
    }
}

fn flush(messages: &mut Vec<GroupMessage>, frames: &mut Vec<Frame>) {
    if !messages.is_empty() {
        frames.push(Frame::Raft(std::mem::take(messages)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{append, key};
    use super::*;

    fn connected(bytes_max: usize) -> Outbox {
        let mut outbox = Outbox::new(bytes_max);
        outbox.connect();
        outbox
    }

    fn all(outbox: &mut Outbox) -> Vec<Frame> {
        outbox.take(usize::MAX)
    }

    #[test]
    fn messages_that_follow_each_other_share_a_frame_and_keep_their_order() {
        let mut outbox = connected(1 << 20);
        outbox.push_raft(vec![append(1, 10), append(2, 10)]);
        outbox.push_raft(vec![append(1, 20)]);
        outbox.push_notice(Bytes::from_static(b"news")).unwrap();
        outbox.push_raft(vec![append(3, 10)]);
        assert_eq!(
            all(&mut outbox),
            [
                Frame::Raft(vec![append(1, 10), append(2, 10), append(1, 20)]),
                Frame::Notice(Bytes::from_static(b"news")),
                Frame::Raft(vec![append(3, 10)]),
            ]
        );
        assert_eq!(all(&mut outbox), []);
    }

    #[test]
    fn one_take_is_bounded_but_takes_at_least_one() {
        let mut outbox = connected(1 << 20);
        outbox.push_raft(vec![append(1, 4000), append(2, 4000), append(3, 40_000)]);
        let taken = outbox.take(10_000);
        assert_eq!(taken, [Frame::Raft(vec![append(1, 4000), append(2, 4000)])]);
        assert_eq!(outbox.take(10_000), [Frame::Raft(vec![append(3, 40_000)])]);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_told_once() {
        let mut outbox = connected(10_000);
        outbox.push_raft(vec![append(1, 6000), append(2, 6000), append(3, 100)]);
        outbox.push_raft(vec![append(2, 6000)]);
        assert_eq!(outbox.take_dropped(), [key(2)]);
        assert!(!outbox.has_dropped());
        assert_eq!(outbox.push_notice(vec![0; 6000].into()), Err(Refused::Full));
        let kept = [Frame::Raft(vec![append(1, 6000), append(3, 100)])];
        assert_eq!(all(&mut outbox), kept);
    }

    #[test]
    fn what_is_being_written_still_counts() {
        let mut outbox = connected(10_000);
        outbox.push_raft(vec![append(1, 6000)]);
        all(&mut outbox);
        outbox.push_raft(vec![append(2, 6000)]);
        assert_eq!(outbox.take_dropped(), [key(2)]);
        assert_eq!(all(&mut outbox), []);
        outbox.push_raft(vec![append(2, 6000)]);
        assert!(!outbox.has_dropped());
        all(&mut outbox);
        all(&mut outbox);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn a_message_larger_than_the_queue_is_taken_by_an_empty_one() {
        let mut outbox = connected(1000);
        outbox.push_raft(vec![append(1, 6000), append(2, 1)]);
        assert_eq!(outbox.take_dropped(), [key(2)]);
        assert_eq!(all(&mut outbox), [Frame::Raft(vec![append(1, 6000)])]);
    }

    #[test]
    fn a_lost_connection_drops_what_waited_and_what_was_on_its_way() {
        let mut outbox = connected(1 << 20);
        outbox.push_raft(vec![append(1, 10)]);
        all(&mut outbox);
        outbox.push_raft(vec![append(2, 10)]);
        assert!(outbox.disconnect());
        assert_eq!(outbox.take_dropped(), [key(1), key(2)]);
        assert!(!outbox.disconnect());

        outbox.push_raft(vec![append(3, 10)]);
        assert_eq!(outbox.take_dropped(), [key(3)]);
        let refused = outbox.push_request(1, Bytes::new());
        assert_eq!(refused, Err(Refused::NotConnected));
        outbox.connect();
        assert_eq!(all(&mut outbox), []);
    }
}
