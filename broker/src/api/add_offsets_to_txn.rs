//! AddOffsetsToTxn, versions 0 to 4 (KIP-98): the offsets partition of a group becomes part of a transaction. Clients that raise their
//! epochs do not ask for it; TxnOffsetCommit does it for them.

use streamgauge_protocol::error::{ErrorCode, code_of};

use super::Context;
use super::kafka::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};
use crate::controller::decide::GROUP_METADATA_TOPIC;
use crate::transaction::coordinator::Producer;

/// First version whose clients know PRODUCER_FENCED.
const FENCED_VERSION: i16 = 2;

pub async fn handle(context: Context, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let broker = &context.broker;
    let partition = broker.groups.partition_for(&request.group_id);
    let producer = Producer {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let partitions = vec![(GROUP_METADATA_TOPIC.to_owned(), partition)];
    // Markers can only be written where there is a topic.
    let added = match broker.coordinate_groups().await {
        Ok(()) => {
            let id = &request.transactional_id;
            let added = broker
                .transactions
                .add_partitions(id, producer, partitions, 0);
            added.await
        }
        Err(refusal) => {
            tracing::warn!(%refusal, "the offsets topic could not be created");
            Err(ErrorCode::CoordinatorNotAvailable)
        }
    };
    let error = match added.err() {
        Some(ErrorCode::ProducerFenced) if context.version < FENCED_VERSION => {
            Some(ErrorCode::InvalidProducerEpoch)
        }
        error => error,
    };
    AddOffsetsToTxnResponse::default().with_error_code(code_of(error))
}
