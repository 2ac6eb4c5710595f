//! EndTxn, versions 0 to 5 (KIP-98, KIP-890). It is answered when the outcome is decided for good; the markers follow.

use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::kafka::{EndTxnRequest, EndTxnResponse, ProducerId};
use crate::transaction::coordinator::Producer;
use crate::transaction::state::{EPOCH_BUMP_VERSION, NO_PRODUCER_EPOCH, NO_PRODUCER_ID};

/// First version whose clients raise their epoch with each transaction (`TransactionVersion.transactionVersionForEndTxn`).
const BUMP_VERSION: i16 = 5;
/// First version whose clients know PRODUCER_FENCED.
const FENCED_VERSION: i16 = 2;

pub async fn handle(context: Context, request: EndTxnRequest) -> EndTxnResponse {
    let producer = Producer {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let client_version = match context.version >= BUMP_VERSION {
        true => EPOCH_BUMP_VERSION,
        false => 0,
    };
    let ended = context.broker.transactions.end(
        &request.transactional_id,
        producer,
        request.committed,
        client_version,
    );
    let (code, next) = match ended.await {
        Ok(next) => (0, next),
        Err(ErrorCode::ProducerFenced) if context.version < FENCED_VERSION => {
            (ErrorCode::InvalidProducerEpoch.code(), None)
        }
        Err(code) => (code.code(), None),
    };
    let next = next.unwrap_or(Producer {
        id: NO_PRODUCER_ID,
        epoch: NO_PRODUCER_EPOCH,
    });
    EndTxnResponse::default()
        .with_error_code(code)
        .with_producer_id(ProducerId(next.id))
        .with_producer_epoch(next.epoch)
}
