//! A bound on the memory that requests in flight may take, over all connections.
//!
//! A connection takes its frame's size before it reads the frame and gives it back when the
//! request is answered. While the budget is used up connections stop reading, TCP makes their
//! clients wait, and nothing is refused.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The budget is counted in pieces of this size, as a semaphore's count is 32 bits for one request.
const PIECE_BYTES: usize = 1024;

/// Shared by all connections.
#[derive(Clone)]
pub struct MemoryBudget {
    pieces: Arc<Semaphore>,
    pieces_max: usize,
}

/// Memory taken; dropped when the request has been answered.
pub type MemoryPermit = OwnedSemaphorePermit;

impl MemoryBudget {
    pub fn new(bytes_max: usize) -> Self {
        let pieces_max = (bytes_max / PIECE_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            pieces: Arc::new(Semaphore::new(pieces_max)),
            pieces_max,
        }
    }

    /// Waits for `bytes`. A single request larger than the whole budget gets all of it, so that it
    /// is served alone rather than never.
    pub async fn take(&self, bytes: usize) -> Option<MemoryPermit> {
        let pieces = bytes.div_ceil(PIECE_BYTES).clamp(1, self.pieces_max);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        Arc::clone(&self.pieces)
            .acquire_many_owned(pieces)
            .await
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_larger_than_the_budget_is_served_alone() {
        let budget = MemoryBudget::new(4096);
        let all = budget.take(1 << 30).await.unwrap();
        assert_eq!(budget.pieces.available_permits(), 0);
        drop(all);
        assert_eq!(budget.pieces.available_permits(), 4);
    }
}
