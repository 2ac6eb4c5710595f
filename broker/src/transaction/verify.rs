//! Asking a transaction's coordinator whether a partition belongs to it (KIP-890).

use std::sync::Arc;

use streamgauge_protocol::error::ErrorCode;

use crate::broker::Broker;

/// Whether the transaction of that producer and epoch is open and has the partition; with `add` the
/// partition becomes part of it (transaction version 2).
///
/// Errors: what the coordinator answers, INVALID_TXN_STATE above all. There is none in this cluster yet, so
/// that no transaction is open.
pub async fn verify(
    _broker: &Arc<Broker>,
    _transactional_id: &str,
    _producer_id: i64,
    _producer_epoch: i16,
    _topic: &str,
    _partition: i32,
    _add: bool,
) -> Result<(), ErrorCode> {
    Err(ErrorCode::InvalidTxnState)
}
