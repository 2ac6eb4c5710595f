//! UnregisterBroker, version 0 (KIP-631): forgets a broker that is gone.
//!
//! Kafka lets any broker be unregistered. Here it must have stopped, or it would serve on unseen,
//! and must hold no replicas: they would be counted in majorities and never come back. It may
//! return with the data directory that it had, and with no other: it votes on the metadata.

use streamgauge_protocol::messages::protocol::StrBytes;

use super::Context;
use super::kafka::{UnregisterBrokerRequest, UnregisterBrokerResponse};
use crate::controller::decide::unregister_broker;

pub async fn handle(
    context: Context,
    request: UnregisterBrokerRequest,
) -> UnregisterBrokerResponse {
    let broker = &context.broker;
    let node_id = request.broker_id.0;
    let is_alive = broker.cluster.is_alive(node_id);
    let decided = broker
        .controller
        .write(
            move |image| match unregister_broker(image, node_id, is_alive) {
                Ok(record) => (vec![record], Ok(())),
                Err(refusal) => (Vec::new(), Err(refusal)),
            },
        )
        .await;
    match decided.unwrap_or_else(Err) {
        Ok(()) => UnregisterBrokerResponse::default(),
        Err(refusal) => UnregisterBrokerResponse::default()
            .with_error_code(refusal.code.code())
            .with_error_message(Some(StrBytes::from_string(refusal.message))),
    }
}
