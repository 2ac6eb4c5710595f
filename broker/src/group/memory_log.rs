//! A log in memory for tests, whose appends can be held back or made to fail.

use super::log::{CommittedBatches, CoordinatorLog};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Appends commit at once unless `gate` has no permits; an error in `failure` refuses the next append.
pub struct MemoryLog {
    batches: Arc<Mutex<Vec<Bytes>>>,
    pub failure: Mutex<Option<ResponseError>>,
    pub gate: Arc<Semaphore>,
}

impl MemoryLog {
    pub fn open() -> Arc<Self> {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2));
        Arc::new(Self {
            batches: Arc::default(),
            failure: Mutex::default(),
            gate,
        })
    }
}

impl CoordinatorLog for MemoryLog {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, ResponseError>> {
        if let Some(error) = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        batches.push(batch);
        let last_offset = batches.len() as i64 - 1;
        let gate = self.gate.clone();
        Box::pin(async move {
            let _permit = gate.acquire().await;
            Ok(last_offset)
        })
    }

    fn read_from(
        &self,
        offset: i64,
    ) -> BoxFuture<'static, Result<CommittedBatches, ResponseError>> {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut joined = BytesMut::new();
        for batch in batches.iter().skip(offset as usize) {
            joined.extend_from_slice(batch);
        }
        let end = batches.len() as i64;
        let read = CommittedBatches {
            batches: joined.freeze(),
            next_offset: end,
            high_watermark: end,
        };
        Box::pin(std::future::ready(Ok(read)))
    }
}
