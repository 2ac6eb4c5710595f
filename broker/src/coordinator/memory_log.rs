//! A log in memory for tests, whose appends and reads can be held back or made to fail.

use super::log::{CommittedBatches, CoordinatorLog};
use super::machine::EndMarker;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use streamgauge_protocol::batch::TransactionMarker;
use streamgauge_storage::producer_state::VerificationGuard;
use tokio::sync::Semaphore;

/// Appends and reads succeed at once unless their semaphore has no permits; an error in `failure` refuses the next append.
pub struct MemoryLog {
    batches: Mutex<Vec<Bytes>>,
    pub failure: Mutex<Option<ResponseError>>,
    pub appends: Arc<Semaphore>,
    pub reads: Arc<Semaphore>,
}

impl MemoryLog {
    pub fn open() -> Arc<Self> {
        Arc::new(Self {
            batches: Mutex::default(),
            failure: Mutex::default(),
            appends: Arc::new(Semaphore::new(1)),
            reads: Arc::new(Semaphore::new(1)),
        })
    }

    /// What has been appended.
    pub fn batches(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses the next append.
    pub fn fail_next(&self, error: ResponseError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl CoordinatorLog for MemoryLog {
    fn append(&self, batch: Bytes) -> BoxFuture<'static, Result<i64, ResponseError>> {
        let failure = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(error) = failure {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut batches = self.batches();
        batches.push(batch);
        let last_offset = batches.len() as i64 - 1;
        let gate = self.appends.clone();
        Box::pin(async move {
            let _permit = gate.acquire().await;
            Ok(last_offset)
        })
    }

    fn append_transactional(
        &self,
        batch: Bytes,
        _guard: Option<VerificationGuard>,
    ) -> BoxFuture<'static, Result<i64, ResponseError>> {
        self.append(batch)
    }

    fn append_marker(
        &self,
        marker: EndMarker,
        now_ms: i64,
    ) -> BoxFuture<'static, Result<i64, ResponseError>> {
        let content = TransactionMarker {
            result: marker.result,
            coordinator_epoch: marker.coordinator_epoch,
        };
        let batch = content.to_batch(marker.producer_id, marker.producer_epoch, now_ms);
        self.append(batch.unwrap())
    }

    fn read_from(
        &self,
        offset: i64,
    ) -> BoxFuture<'static, Result<CommittedBatches, ResponseError>> {
        let batches = self.batches();
        let end = batches.len() as i64;
        let rest: Vec<Bytes> = batches.iter().skip(offset as usize).cloned().collect();
        let gate = self.reads.clone();
        Box::pin(async move {
            let _permit = gate.acquire().await;
            Ok(CommittedBatches {
                batches: rest.concat().into(),
                next_offset: end,
                high_watermark: end,
            })
        })
    }
}
