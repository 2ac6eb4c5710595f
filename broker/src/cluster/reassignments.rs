//! Tells the controller which moves of replicas are done.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::broker::Broker;
use crate::controller::command::Command;

/// Between two looks while anything moves.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A move whose group, led here, has the new members.
struct Settled {
    topic_id: Uuid,
    partition: i32,
    epoch: u64,
}

/// Runs until the broker stops.
pub async fn report(broker: Arc<Broker>) {
    let mut metadata = broker.controller.changes();
    loop {
        metadata.borrow_and_update();
        let (moving, settled) = look(&broker);
        for Settled {
            topic_id,
            partition,
            epoch,
        } in settled
        {
            let command = Command::PartitionSettled {
                topic_id,
                partition,
                epoch,
            };
            if let Err(refusal) = broker.command(command).await {
                tracing::debug!(%refusal, "the end of a move could not be told yet");
            }
        }
        tokio::select! {
            biased;
            () = broker.stopping() => return,
            changed = metadata.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_INTERVAL), if moving => {}
        }
    }
}

/// Whether any partition moves, and the moves that have come to their end here.
fn look(broker: &Broker) -> (bool, Vec<Settled>) {
    let moving: Vec<_> = broker.controller.read(|image| {
        image
            .topics()
            .flat_map(|topic| {
                let moves = topic.reassignments();
                moves.map(|(index, _)| (topic.topic_id, index, topic.target(index).0))
            })
            .collect()
    });
    let is_moving = !moving.is_empty();
    let settled = moving
        .into_iter()
        .filter_map(|(topic_id, partition, epoch)| {
            let here = broker.topics.by_id(topic_id)?.partition(partition)?;
            let is_done = here.view().is_serving() && here.view().settled() == epoch;
            is_done.then_some(Settled {
                topic_id,
                partition,
                epoch,
            })
        });
    (is_moving, settled.collect())
}
