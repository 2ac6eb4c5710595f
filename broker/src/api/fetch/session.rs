//! Fetch sessions (KIP-227): a client sends what changed, the broker remembers the rest.
//!
//! A pure cache: which partitions a session has and at which epoch it is. The bound is on the
//! number of sessions; when it is reached, the one unused for longest goes if it has been unused
//! for a while, and otherwise the client gets no session and sends full requests.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use indexmap::IndexMap;
use streamgauge_protocol::error::ErrorCode;
use uuid::Uuid;

/// The id of "no session".
pub const NO_SESSION: i32 = 0;
/// The epoch of a full request that wants a new session.
pub const INITIAL_EPOCH: i32 = 0;
/// The epoch of a full request that wants none, and closes one it names.
pub const FINAL_EPOCH: i32 = -1;

/// A session younger than this since its last use is not evicted (`FetchSession.EVICTION_MS`).
const EVICTION_MS: i64 = 120_000;

/// How a request names a topic: by name up to version 12, by id from 13 on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TopicKey {
    Name(String),
    Id(Uuid),
}

/// A partition as a request names it.
pub type PartitionKey = (TopicKey, i32);

/// What a client wants of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub current_leader_epoch: i32,
    pub fetch_offset: i64,
    pub partition_max_bytes: i32,
}

/// What the client knows of a partition from the last answer, to send it only news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub high_watermark: i64,
    pub log_start_offset: i64,
}

#[derive(Debug, Clone)]
struct Member {
    wanted: Wanted,
    told: Option<Told>,
}

#[derive(Debug)]
struct Session {
    epoch: i32,
    last_used_ms: i64,
    /// In the order of answers; those that had records move to the end, so that all get a turn.
    members: IndexMap<PartitionKey, Member>,
    uses_ids: bool,
}

/// A request's session fields and partitions.
pub struct SessionRequest {
    pub session_id: i32,
    pub epoch: i32,
    pub partitions: Vec<(PartitionKey, Wanted)>,
    pub forgotten: Vec<PartitionKey>,
    pub uses_ids: bool,
}

/// What to fetch for a request, and in which session.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// [`NO_SESSION`] if there is none.
    pub session_id: i32,
    pub partitions: Vec<(PartitionKey, Wanted)>,
    /// Answer only with partitions that have news.
    pub incremental: bool,
}

/// All sessions of a broker.
pub struct FetchSessions {
    cache: Mutex<Cache>,
    sessions_max: usize,
}

#[derive(Default)]
struct Cache {
    sessions: HashMap<i32, Session>,
    last_id: i32,
}

impl FetchSessions {
    pub fn new(sessions_max: usize) -> Self {
        Self {
            cache: Mutex::default(),
            sessions_max,
        }
    }

    /// Finds out what a request wants (`FetchManager.newContext`).
    pub fn plan(&self, request: SessionRequest, now_ms: i64) -> Result<Plan, ErrorCode> {
        let mut cache = self.lock();
        match request.epoch {
            FINAL_EPOCH | INITIAL_EPOCH => {
                cache.sessions.remove(&request.session_id);
                let session_id = match request.epoch {
                    INITIAL_EPOCH => cache.create(&request, self.sessions_max, now_ms),
                    _ => NO_SESSION,
                };
                Ok(Plan {
                    session_id,
                    partitions: request.partitions,
                    incremental: false,
                })
            }
            epoch => {
                let Some(session) = cache.sessions.get_mut(&request.session_id) else {
                    return Err(ErrorCode::FetchSessionIdNotFound);
                };
                if session.uses_ids != request.uses_ids {
                    return Err(ErrorCode::FetchSessionTopicIdError);
                }
                if session.epoch != epoch {
                    return Err(ErrorCode::InvalidFetchSessionEpoch);
                }
                session.update(request.partitions, &request.forgotten, now_ms);
                Ok(Plan {
                    session_id: request.session_id,
                    partitions: session.wanted(),
                    incremental: true,
                })
            }
        }
    }

    /// Notes what an answer tells. Returns for each partition whether it is news to the client;
    /// records and errors always are.
    pub fn told(&self, session_id: i32, answers: &[(PartitionKey, Told, bool)]) -> Vec<bool> {
        let mut cache = self.lock();
        let Some(session) = cache.sessions.get_mut(&session_id) else {
            return vec![true; answers.len()];
        };
        answers
            .iter()
            .map(|(key, told, is_news)| session.tell(key, *told, *is_news))
            .collect()
    }

    pub fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn create(&mut self, request: &SessionRequest, sessions_max: usize, now_ms: i64) -> i32 {
        if request.partitions.is_empty() {
            return NO_SESSION;
        }
        if self.sessions.len() >= sessions_max && !self.evict(now_ms) {
            return NO_SESSION;
        }
        let mut id = self.last_id;
        loop {
            id = id.checked_add(1).unwrap_or(1);
            if !self.sessions.contains_key(&id) {
                break;
            }
        }
        self.last_id = id;
        let members = request.partitions.iter().map(|(key, wanted)| {
            let member = Member {
                wanted: *wanted,
                told: None,
            };
            (key.clone(), member)
        });
        let session = Session {
            epoch: 1,
            last_used_ms: now_ms,
            members: members.collect(),
            uses_ids: request.uses_ids,
        };
        self.sessions.insert(id, session);
        id
    }

    fn evict(&mut self, now_ms: i64) -> bool {
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(_, session)| session.last_used_ms)
            .filter(|(_, session)| now_ms - session.last_used_ms > EVICTION_MS)
            .map(|(id, _)| *id);
        oldest.is_some_and(|id| self.sessions.remove(&id).is_some())
    }
}

impl Session {
    fn update(
        &mut self,
        partitions: Vec<(PartitionKey, Wanted)>,
        forgotten: &[PartitionKey],
        now_ms: i64,
    ) {
        for (key, wanted) in partitions {
            match self.members.get_mut(&key) {
                Some(member) => member.wanted = wanted,
                None => {
                    self.members.insert(key, Member { wanted, told: None });
                }
            }
        }
        for key in forgotten {
            self.members.shift_remove(key);
        }
        // Epochs wrap past the two that mean something else.
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        self.last_used_ms = now_ms;
    }

    fn wanted(&self) -> Vec<(PartitionKey, Wanted)> {
        self.members
            .iter()
            .map(|(key, member)| (key.clone(), member.wanted))
            .collect()
    }

    fn tell(&mut self, key: &PartitionKey, told: Told, is_news: bool) -> bool {
        let Some(member) = self.members.get_mut(key) else {
            return true;
        };
        let changed = member.told != Some(told);
        member.told = Some(told);
        if is_news && let Some(member) = self.members.shift_remove(key) {
            self.members.insert(key.clone(), member);
        }
        is_news || changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: i32) -> PartitionKey {
        (TopicKey::Name("a".into()), index)
    }

    fn wanted(fetch_offset: i64) -> Wanted {
        Wanted {
            current_leader_epoch: -1,
            fetch_offset,
            partition_max_bytes: 1000,
        }
    }

    fn request(session_id: i32, epoch: i32, partitions: &[(i32, i64)]) -> SessionRequest {
        SessionRequest {
            session_id,
            epoch,
            partitions: partitions
                .iter()
                .map(|(index, offset)| (key(*index), wanted(*offset)))
                .collect(),
            forgotten: Vec::new(),
            uses_ids: false,
        }
    }

    #[test]
    fn a_session_remembers_what_is_not_sent_again() {
        let sessions = FetchSessions::new(10);
        let full = sessions.plan(request(0, 0, &[(0, 5), (1, 7)]), 0).unwrap();
        assert!(full.session_id > 0 && !full.incremental);
        let next = sessions
            .plan(request(full.session_id, 1, &[(0, 6)]), 0)
            .unwrap();
        assert!(next.incremental);
        assert_eq!(next.partitions, [(key(0), wanted(6)), (key(1), wanted(7))]);
        let forget = SessionRequest {
            forgotten: vec![key(0)],
            ..request(full.session_id, 2, &[])
        };
        let last = sessions.plan(forget, 0).unwrap();
        assert_eq!(last.partitions, [(key(1), wanted(7))]);
    }

    #[test]
    fn wrong_ids_and_epochs_are_refused() {
        let sessions = FetchSessions::new(10);
        assert_eq!(
            sessions.plan(request(9, 1, &[]), 0),
            Err(ErrorCode::FetchSessionIdNotFound)
        );
        let full = sessions.plan(request(0, 0, &[(0, 5)]), 0).unwrap();
        assert_eq!(
            sessions.plan(request(full.session_id, 2, &[]), 0),
            Err(ErrorCode::InvalidFetchSessionEpoch)
        );
        sessions
            .plan(request(full.session_id, FINAL_EPOCH, &[]), 0)
            .unwrap();
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn a_full_cache_gives_no_session_until_one_is_old() {
        let sessions = FetchSessions::new(1);
        sessions.plan(request(0, 0, &[(0, 5)]), 0).unwrap();
        let second = sessions.plan(request(0, 0, &[(0, 5)]), 1000).unwrap();
        assert_eq!(second.session_id, NO_SESSION);
        let third = sessions
            .plan(request(0, 0, &[(0, 5)]), EVICTION_MS + 1)
            .unwrap();
        assert!(third.session_id > 0);
        assert_eq!(sessions.count(), 1);
    }

    #[test]
    fn only_news_is_told_again() {
        let sessions = FetchSessions::new(1);
        let full = sessions.plan(request(0, 0, &[(0, 5)]), 0).unwrap();
        let tell = |high_watermark, is_news| {
            let told = Told {
                high_watermark,
                log_start_offset: 0,
            };
            sessions.told(full.session_id, &[(key(0), told, is_news)])
        };
        assert_eq!(tell(5, false), [true]);
        assert_eq!(tell(5, false), [false]);
        assert_eq!(tell(6, false), [true]);
        assert_eq!(tell(6, true), [true]);
    }
}
