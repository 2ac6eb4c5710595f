//! A checkpoint on its way into the internal partition, and when the next is due.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};

use super::error::JobError;
use super::internal::{CheckpointMeta, chunk_batch};
use super::log::{JobLog, LogError};

/// Chunks (of 256 KiB) on their way at once.
const IN_FLIGHT_MAX: usize = 8;

/// When checkpoints are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// So many bytes of the internal log since the last, or as many as the last took if that is more: writing them costs at
    /// most as much as what they spare.
    pub applied_bytes: usize,
    /// This long after the last if anything was applied since.
    pub interval_ms: i64,
}

impl Default for CheckpointPolicy {
    /// 16 MiB, a minute.
    fn default() -> CheckpointPolicy {
        CheckpointPolicy {
            applied_bytes: 16 << 20,
            interval_ms: 60_000,
        }
    }
}

/// Makes one checkpoint after another.
pub struct Checkpoints {
    policy: CheckpointPolicy,
    log: Arc<dyn JobLog>,
    applied_bytes: usize,
    last_bytes: usize,
    last_at_ms: i64,
    chunks: VecDeque<(u32, Bytes)>,
    in_flight: FuturesOrdered<BoxFuture<'static, Result<i64, LogError>>>,
    /// The id of the one that is being written.
    id: u64,
    /// The offset up to which the state goes that is being written.
    state_offset: Option<i64>,
    cutting: Option<BoxFuture<'static, Result<(), LogError>>>,
}

impl Checkpoints {
    pub fn new(policy: CheckpointPolicy, log: Arc<dyn JobLog>, now_ms: i64) -> Checkpoints {
        Checkpoints {
            policy,
            log,
            applied_bytes: 0,
            last_bytes: 0,
            last_at_ms: now_ms,
            chunks: VecDeque::new(),
            in_flight: FuturesOrdered::new(),
            id: 0,
            state_offset: None,
            cutting: None,
        }
    }

    pub fn note_applied(&mut self, bytes: usize) {
        self.applied_bytes += bytes;
    }

    pub fn is_writing(&self) -> bool {
        self.state_offset.is_some()
    }

    pub fn is_due(&self, now_ms: i64) -> bool {
        !self.is_writing()
            && self.applied_bytes > 0
            && (self.applied_bytes >= self.policy.applied_bytes.max(self.last_bytes)
                || now_ms >= self.due_at_ms())
    }

    /// Anything was applied since the last.
    pub fn is_wanted(&self) -> bool {
        self.applied_bytes > 0
    }

    /// When the interval since the last is over.
    pub fn due_at_ms(&self) -> i64 {
        self.last_at_ms.saturating_add(self.policy.interval_ms)
    }

    /// Begins to write a state that has everything below `state_offset`.
    pub fn begin(
        &mut self,
        meta: &CheckpointMeta,
        snapshot: Vec<Bytes>,
        state_offset: i64,
        now_ms: i64,
    ) -> Result<(), JobError> {
        assert!(!self.is_writing(), "a checkpoint within another");
        self.last_bytes = snapshot.iter().map(Bytes::len).sum();
        self.last_at_ms = now_ms;
        self.applied_bytes = 0;
        self.id = meta.id;
        self.state_offset = Some(state_offset);
        self.in_flight
            .push_back(self.log.append(meta.to_batch(now_ms)?));
        self.chunks = (0..).zip(snapshot).collect();
        self.send_chunks(now_ms)
    }

    /// Waits for the next answer, and after the last moves the start of the log up; to be polled only while writing. It may
    /// be dropped at any await.
    pub async fn advance(&mut self, now_ms: i64) -> Result<(), JobError> {
        let failed = |error| JobError::retry("a checkpoint cannot be appended", error);
        if let Some(answer) = self.in_flight.next().await {
            answer.map_err(failed)?;
        }
        self.send_chunks(now_ms)?;
        let Some(state_offset) = self.state_offset else {
            return Ok(());
        };
        if self.in_flight.is_empty() {
            let log = &self.log;
            let cutting = self
                .cutting
                .get_or_insert_with(|| log.delete_records(state_offset));
            cutting
                .await
                .map_err(|error| JobError::retry("the internal log cannot be cut", error))?;
            self.cutting = None;
            self.state_offset = None;
        }
        Ok(())
    }

    fn send_chunks(&mut self, now_ms: i64) -> Result<(), JobError> {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let Some((number, chunk)) = self.chunks.pop_front() else {
                break;
            };
            let batch = chunk_batch(self.id, number, &chunk, now_ms)?;
            self.in_flight.push_back(self.log.append(batch));
        }
        Ok(())
    }
}
