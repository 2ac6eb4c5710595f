//! Groups that rest: nothing is said and nothing counted for a group in which nothing happens.
//!
//! A leader whose followers hold, and know as committed, all that it holds offers rest with its next
//! heartbeats. A follower that agrees answers so and stops its clock; once all have agreed the leader
//! stops its own. From then on each side relies on the shard of the other: shards that have met send
//! each other a *pulse* a few times a second, whatever the number of their groups, and it vouches for
//! all groups that rest on its epoch. A replica wakes, and is where it would be had its clock never
//! stopped,
//!
//! - when it has something to do, or any message of its group comes,
//! - when the connection to a broker that it relies on is lost,
//! - when a shard that it relies on is silent for an election timeout: a leader of any follower, so
//!   that it steps down if too few are left; a follower of its leader, so that it stands for election,
//! - when the epoch of a shard that it relies on changes. A shard changes it when it starts, and when
//!   a replica of it ends without a word to its group: its disk failed, or it was removed.
//!
//! Raft's safety does not rest on clocks, so a replica that sleeps too long can cost time only. That
//! it does not follows from this: as long as an epoch is vouched for, each of its groups has a
//! replica there that lives, and either rests too or keeps the clock and speaks to all members.
//!
//! The offer and its answers are Raft's heartbeats; their context, which Raft would use for read
//! requests that we do not make, carries the [`Mark`].

use std::collections::{BTreeSet, HashMap};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft::eraftpb::{Message, MessageType};

/// Ticks between two pulses.
pub const PULSE_TICKS: u64 = 3;

/// Ticks without a pulse after which nobody relies on a shard any more: Raft's election timeout.
pub const SILENCE_TICKS_MAX: u64 = super::group::ELECTION_TICKS as u64;

/// Shards of other brokers that are listened to. A broker has as many as its machine has cores.
const SHARDS_MAX: usize = 16 * 1024;

const MARK_BYTES: usize = 4 + 8;

/// Names what a shard vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The shard's number on its broker.
    pub shard: u32,
    pub epoch: u64,
}

impl Mark {
    pub fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(MARK_BYTES);
        bytes.put_u32(self.shard);
        bytes.put_u64(self.epoch);
        bytes.freeze()
    }

    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let shard = bytes.try_get_u32().ok()?;
        let epoch = bytes.try_get_u64().ok()?;
        bytes.is_empty().then_some(Self { shard, epoch })
    }

    /// The mark that a heartbeat or the answer to one carries.
    pub fn of(message: &Message) -> Option<Self> {
        let carries = matches!(
            message.get_msg_type(),
            MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse
        );
        carries.then(|| Self::decode(&message.context)).flatten()
    }
}

/// On whom a resting replica relies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reliance {
    pub raft_id: u64,
    pub mark: Mark,
}

/// What is known of a shard elsewhere.
#[derive(Debug, Clone, Copy)]
struct Heard {
    epoch: u64,
    at: u64,
}

/// A shard's watch over the shards that its resting groups rely on.
#[derive(Debug)]
pub struct Watch {
    own: Mark,
    tick: u64,
    /// By Raft id of the broker and number of the shard.
    heard: HashMap<(u64, u32), Heard>,
    /// The brokers that rely on this shard, or did.
    partners: BTreeSet<u64>,
}

impl Watch {
    /// `epoch` must be another after each start of the broker.
    pub fn new(shard: u32, epoch: u64) -> Self {
        Self {
            own: Mark { shard, epoch },
            tick: 0,
            heard: HashMap::new(),
            partners: BTreeSet::new(),
        }
    }

    /// What this shard vouches for its own groups with.
    pub fn own(&self) -> Mark {
        self.own
    }

    /// A replica here has ended and cannot tell its group: who relies on it must look.
    pub fn disavow(&mut self) {
        self.own.epoch = self.own.epoch.wrapping_add(1);
    }

    /// Time moves on. Returns the shards that have been silent for too long, which are forgotten when
    /// [`Self::forget`] is called.
    pub fn tick(&mut self) -> Vec<(u64, u32)> {
        self.tick += 1;
        let heard = self.heard.iter();
        heard
            .filter(|(_, heard)| self.tick - heard.at > SILENCE_TICKS_MAX)
            .map(|(shard, _)| *shard)
            .collect()
    }

    /// Whom to send a pulse now.
    pub fn pulses(&self) -> Vec<u64> {
        match self.tick.is_multiple_of(PULSE_TICKS) {
            true => self.partners.iter().copied().collect(),
            false => Vec::new(),
        }
    }

    /// A pulse has come. Says whether it is of another epoch than the last, so that those who rely on
    /// that have to be woken.
    pub fn pulse(&mut self, raft_id: u64, mark: Mark) -> bool {
        let (tick, is_full) = (self.tick, self.heard.len() >= SHARDS_MAX);
        let heard = Heard {
            epoch: mark.epoch,
            at: tick,
        };
        match self.heard.get_mut(&(raft_id, mark.shard)) {
            Some(known) => std::mem::replace(known, heard).epoch != mark.epoch,
            None => {
                if !is_full {
                    self.heard.insert((raft_id, mark.shard), heard);
                }
                false
            }
        }
    }

    /// A group begins to rest. Says whether all that it relies on is vouched for as far as known.
    pub fn rely(&mut self, on: &[Reliance]) -> bool {
        let is_sound = on.iter().all(|reliance| {
            let key = (reliance.raft_id, reliance.mark.shard);
            match self.heard.get(&key) {
                Some(heard) => heard.epoch == reliance.mark.epoch,
                None => self.heard.len() < SHARDS_MAX,
            }
        });
        if is_sound {
            for reliance in on {
                self.partners.insert(reliance.raft_id);
                let heard = Heard {
                    epoch: reliance.mark.epoch,
                    at: self.tick,
                };
                // That it agreed to rest is a sign of life as good as a pulse.
                self.heard
                    .entry((reliance.raft_id, reliance.mark.shard))
                    .or_insert(heard);
            }
        }
        is_sound
    }

    /// Ticks since that shard was last heard of.
    pub fn silent_ticks(&self, reliance: &Reliance) -> u64 {
        let key = (reliance.raft_id, reliance.mark.shard);
        self.heard
            .get(&key)
            .map_or(SILENCE_TICKS_MAX, |heard| self.tick - heard.at)
    }

    /// Nobody relies on that shard any more.
    pub fn forget(&mut self, shard: (u64, u32)) {
        self.heard.remove(&shard);
    }

    /// The connection to that broker is lost.
    pub fn lost(&mut self, raft_id: u64) {
        self.heard.retain(|(broker, _), _| *broker != raft_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relies_on(raft_id: u64, epoch: u64) -> Reliance {
        Reliance {
            raft_id,
            mark: Mark { shard: 1, epoch },
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_nothing_else_is() {
        let mark = relies_on(2, 77).mark;
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(Mark::decode(&mark.encode()[1..]), None);
        assert_eq!(Mark::decode(&[0; 13]), None);
    }

    #[test]
    fn who_is_silent_for_an_election_timeout_is_told_of() {
        let mut watch = Watch::new(0, 1);
        assert!(watch.rely(&[relies_on(2, 7), relies_on(3, 8)]));
        for _ in 0..SILENCE_TICKS_MAX {
            assert!(watch.tick().is_empty());
            watch.pulse(3, relies_on(3, 8).mark);
        }
        assert_eq!(watch.tick(), [(2, 1)]);
        assert_eq!(watch.silent_ticks(&relies_on(3, 8)), 1);
        watch.forget((2, 1));
        assert!(watch.tick().is_empty());
    }

    #[test]
    fn an_epoch_that_has_changed_is_not_relied_on() {
        let mut watch = Watch::new(0, 1);
        assert!(!watch.pulse(2, relies_on(2, 7).mark), "nobody relies on it");
        assert!(watch.pulse(2, relies_on(2, 8).mark));
        assert!(!watch.rely(&[relies_on(2, 7)]));
        assert!(watch.rely(&[relies_on(2, 8)]));
        watch.lost(2);
        assert!(watch.rely(&[relies_on(2, 9)]), "it is met anew");
    }

    #[test]
    fn pulses_go_to_whoever_may_rely_on_the_shard() {
        let mut watch = Watch::new(0, 1);
        watch.rely(&[relies_on(2, 7)]);
        let sent: usize = (0..3 * PULSE_TICKS)
            .map(|_| {
                watch.tick();
                watch.pulses().len()
            })
            .sum();
        assert_eq!(sent, 3);
        let before = watch.own();
        watch.disavow();
        assert_ne!(watch.own(), before);
    }
}
