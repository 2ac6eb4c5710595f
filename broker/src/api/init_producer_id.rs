//! InitProducerId, versions 0 to 5 (KIP-98, KIP-360), for idempotent producers.
//!
//! Without a transactional id every call gives a new producer id at epoch 0, as in Kafka; the ids
//! come from blocks that the controller logs.

use std::sync::{Arc, Mutex, PoisonError};

use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::kafka::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};
use crate::broker::Broker;
use crate::controller::command::Command;
use crate::controller::decide::Refusal;

/// Ids taken from the controller at once (`ProducerIdsBlock.PRODUCER_ID_BLOCK_SIZE`).
const BLOCK_SIZE: i64 = 1000;

pub async fn handle(context: Context, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let failed = |code: ErrorCode| {
        InitProducerIdResponse::default()
            .with_error_code(code.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    if let Some(id) = &request.transactional_id {
        // Said plainly: a retriable code would be retried until the client gives up.
        tracing::debug!(transactional_id = %id.0, "refused a transactional producer");
        return failed(ErrorCode::InvalidRequest);
    }
    match context.broker.producer_ids.next(&context.broker).await {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(0),
        Err(refusal) => {
            tracing::warn!(%refusal, "no producer ids");
            failed(ErrorCode::CoordinatorLoadInProgress)
        }
    }
}

/// Gives out producer ids from blocks.
#[derive(Default)]
pub struct ProducerIds {
    /// The next id and the end of its block.
    block: Mutex<(i64, i64)>,
}

impl ProducerIds {
    pub async fn next(&self, broker: &Arc<Broker>) -> Result<i64, Refusal> {
        if let Some(id) = self.take() {
            return Ok(id);
        }
        let command = Command::AllocateProducerIds { count: BLOCK_SIZE };
        let Some(first) = broker.command(command).await? else {
            return Err(Refusal::new(
                ErrorCode::UnknownServerError,
                "the controller gave no producer ids",
            ));
        };
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        // A block that somebody else has fetched meanwhile is left where it is; a few ids go
        // unused.
        *block = (first + 1, first + BLOCK_SIZE);
        Ok(first)
    }

    fn take(&self) -> Option<i64> {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, end) = *block;
        if next >= end {
            return None;
        }
        block.0 += 1;
        Some(next)
    }
}
