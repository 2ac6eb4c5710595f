//! Has replicas replaced whose files are damaged here.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Broker;
use crate::controller::command::Command;

/// Between two looks. The controller knows of what is under way already.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Runs until the broker stops.
pub async fn report(broker: Arc<Broker>) {
    loop {
        for topic in broker.topics.all() {
            for partition in topic.damaged() {
                let command = Command::ReplicaDamaged {
                    topic_id: topic.topic_id,
                    partition,
                    broker: broker.id(),
                };
                if let Err(refusal) = broker.command(command).await {
                    tracing::debug!(%refusal, "a damaged replica could not be told of yet");
                }
            }
        }
        tokio::select! {
            biased;
            () = broker.stopping() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}
