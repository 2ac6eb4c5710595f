//! InitProducerId, versions 0 to 5 (KIP-98, KIP-360, KIP-890).
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
use crate::transaction::coordinator::Producer;
use crate::transaction::state::{NO_PRODUCER_EPOCH, NO_PRODUCER_ID};

/// Ids taken from the controller at once (`ProducerIdsBlock.PRODUCER_ID_BLOCK_SIZE`).
const BLOCK_SIZE: i64 = 1000;
/// First version whose clients know PRODUCER_FENCED.
const FENCED_VERSION: i16 = 4;

pub async fn handle(context: Context, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let (id, epoch) = match produce(&context, &request).await {
        Ok(producer) => (producer.id, producer.epoch),
        Err(code) => {
            let code = match code {
                ErrorCode::ProducerFenced if context.version < FENCED_VERSION => {
                    ErrorCode::InvalidProducerEpoch
                }
                code => code,
            };
            return InitProducerIdResponse::default()
                .with_error_code(code.code())
                .with_producer_id(ProducerId(NO_PRODUCER_ID))
                .with_producer_epoch(NO_PRODUCER_EPOCH);
        }
    };
    InitProducerIdResponse::default()
        .with_producer_id(ProducerId(id))
        .with_producer_epoch(epoch)
}

async fn produce(
    context: &Context,
    request: &InitProducerIdRequest,
) -> Result<Producer, ErrorCode> {
    let broker = &context.broker;
    let known = match (request.producer_id.0, request.producer_epoch) {
        (NO_PRODUCER_ID, NO_PRODUCER_EPOCH) => None,
        (NO_PRODUCER_ID, _) | (_, NO_PRODUCER_EPOCH) => return Err(ErrorCode::InvalidRequest),
        (id, epoch) => Some(Producer { id, epoch }),
    };
    if let Some(id) = &request.transactional_id {
        let timeout_ms = request.transaction_timeout_ms;
        return broker.transactions.init(id, timeout_ms, known).await;
    }
    match broker.producer_ids.next(broker).await {
        Ok(id) => Ok(Producer { id, epoch: 0 }),
        Err(refusal) => {
            tracing::warn!(%refusal, "no producer ids");
            Err(ErrorCode::CoordinatorLoadInProgress)
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
