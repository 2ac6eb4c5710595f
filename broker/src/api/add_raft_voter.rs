//! AddRaftVoter, versions 0 and 1 (KIP-853, KIP-1186), and RemoveRaftVoter, version 0: who votes on the metadata.
//!
//! A broker has to be registered, and so follows the metadata log already, before it can vote. Answered when
//! the log's group has the new voters; if that takes longer than allowed, the old ones are asked for again. Who does not want
//! to wait for that (`AckWhenCommitted` false, version 1) is answered once the change is logged, and the change goes on.

use std::time::Duration;

use streamgauge_protocol::error::ErrorCode;
use streamgauge_protocol::messages::protocol::StrBytes;
use streamgauge_protocol::newer::{Newer, VoterAddition};
use tokio::time::Instant;
use uuid::Uuid;

use super::Context;
use super::kafka::{AddRaftVoterResponse, RemoveRaftVoterRequest, RemoveRaftVoterResponse};
use crate::broker::Broker;
use crate::controller::decide::Refusal;
use crate::controller::image::Image;
use crate::controller::record::MetadataRecord;
use crate::shard::event::ReplicaPosition;

/// RemoveRaftVoter has no timeout of its own.
const REMOVE_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A broker that was heard of so long ago, in milliseconds, is not made a voter for whom nobody waits
/// (Kafka's `LeaderState.isReplicaCaughtUp`).
const HEARD_MS_MAX: i64 = 60 * 60 * 1_000;

pub async fn add(context: Context, addition: VoterAddition) -> Newer<AddRaftVoterResponse> {
    Newer(match try_add(&context.broker, addition).await {
        Ok(()) => AddRaftVoterResponse::default(),
        Err(refusal) => AddRaftVoterResponse::default()
            .with_error_code(refusal.code.code())
            .with_error_message(Some(StrBytes::from_string(refusal.message))),
    })
}

async fn try_add(broker: &Broker, addition: VoterAddition) -> Result<(), Refusal> {
    let VoterAddition {
        request,
        ack_when_committed,
    } = addition;
    let patience = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let cluster_id = request.cluster_id.map(|id| id.to_string());
    let (id, directory_id) = (request.voter_id, request.voter_directory_id);
    let decide = move |image: &Image, voters: &[i32]| {
        check_cluster(image, cluster_id.as_deref())?;
        add_voter(image, voters, id, directory_id)
    };
    if ack_when_committed {
        return change(broker, decide, patience).await;
    }
    // Nobody would take back the wish for a voter that never comes.
    let positions = broker.controller.log().replicas().await;
    let is_there = has_caught_up(&positions.unwrap_or_default(), id);
    let decide_now = move |image: &Image, voters: &[i32]| {
        let voters = decide(image, voters)?;
        match is_there {
            true => Ok(voters),
            false => Err(Refusal::new(
                ErrorCode::RequestTimedOut,
                format!("broker {id} does not keep up with the metadata log"),
            )),
        }
    };
    log_voters(broker, decide_now).await.map(|_| ())
}

/// Whether that broker has once held all of the log and was heard of within [`HEARD_MS_MAX`].
fn has_caught_up(positions: &[ReplicaPosition], broker: i32) -> bool {
    positions.iter().any(|position| {
        position.broker == broker
            && position.caught_up_ms_ago.is_some()
            && position.heard_ms_ago.is_some_and(|ago| ago < HEARD_MS_MAX)
    })
}

pub async fn remove(context: Context, request: RemoveRaftVoterRequest) -> RemoveRaftVoterResponse {
    let cluster_id = request.cluster_id.map(|id| id.to_string());
    let (id, directory_id) = (request.voter_id, request.voter_directory_id);
    let decide = move |image: &Image, voters: &[i32]| {
        check_cluster(image, cluster_id.as_deref())?;
        remove_voter(image, voters, id, directory_id)
    };
    match change(&context.broker, decide, REMOVE_PATIENCE).await {
        Ok(()) => RemoveRaftVoterResponse::default(),
        Err(refusal) => RemoveRaftVoterResponse::default()
            .with_error_code(refusal.code.code())
            .with_error_message(Some(StrBytes::from_string(refusal.message))),
    }
}

fn check_cluster(image: &Image, asked: Option<&str>) -> Result<(), Refusal> {
    match asked {
        Some(asked) if asked != image.cluster_id() => Err(Refusal::new(
            ErrorCode::InconsistentClusterId,
            format!("this is cluster {}", image.cluster_id()),
        )),
        _ => Ok(()),
    }
}

fn add_voter(
    image: &Image,
    voters: &[i32],
    id: i32,
    directory_id: Uuid,
) -> Result<Vec<i32>, Refusal> {
    if voters.contains(&id) {
        let message = format!("broker {id} is a voter already");
        return Err(Refusal::new(ErrorCode::DuplicateVoter, message));
    }
    let known = image.broker(id).map(|known| known.directory_id);
    if known != Some(directory_id) {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("broker {id} is not registered with that directory; start it first"),
        ));
    }
    Ok([voters, &[id]].concat())
}

fn remove_voter(
    image: &Image,
    voters: &[i32],
    id: i32,
    directory_id: Uuid,
) -> Result<Vec<i32>, Refusal> {
    if !voters.contains(&id) || image.directory_of(id) != Some(directory_id) {
        let message = format!("broker {id} with that directory is not a voter");
        return Err(Refusal::new(ErrorCode::VoterNotFound, message));
    }
    let left: Vec<i32> = voters
        .iter()
        .copied()
        .filter(|voter| *voter != id)
        .collect();
    if left.is_empty() {
        let message = "the last voter cannot be removed".to_owned();
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    Ok(left)
}

/// Logs who is to vote; answers who was before.
async fn log_voters(
    broker: &Broker,
    decide: impl FnOnce(&Image, &[i32]) -> Result<Vec<i32>, Refusal> + Send + 'static,
) -> Result<Vec<i32>, Refusal> {
    let founders = broker.config.voters();
    let decided = broker.controller.write(move |image| {
        let before = image.voters().cloned().unwrap_or(founders);
        match decide(image, &before) {
            Ok(voters) => (vec![MetadataRecord::Voters { voters }], Ok(before)),
            Err(refusal) => (Vec::new(), Err(refusal)),
        }
    });
    decided.await?
}

/// Logs who is to vote, and waits until they do.
async fn change(
    broker: &Broker,
    decide: impl FnOnce(&Image, &[i32]) -> Result<Vec<i32>, Refusal> + Send + 'static,
    patience: Duration,
) -> Result<(), Refusal> {
    let deadline = Instant::now() + patience;
    let before = log_voters(broker, decide).await?;
    let epoch = broker.controller.read(Image::quorum_epoch);
    let log = broker.controller.log();
    while log.view().settled() < epoch {
        if Instant::now() >= deadline {
            let back = move |_: &Image| (vec![MetadataRecord::Voters { voters: before }], ());
            // If nobody can decide that either, whoever comes to lead goes on with the change.
            drop(broker.controller.write(back).await);
            return Err(Refusal::new(
                ErrorCode::RequestTimedOut,
                "the voters do not keep up with the metadata log; they stay as they were",
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::image::BrokerInfo;

    fn image() -> Image {
        let mut image = Image::default();
        for node_id in [1, 4] {
            image.apply(MetadataRecord::Broker(BrokerInfo {
                node_id,
                directory_id: Uuid::from_u128(node_id as u128),
                host: "h".into(),
                port: 9092,
                rack: None,
                peer: None,
            }));
        }
        image
    }

    #[test]
    fn only_a_registered_broker_with_its_own_directory_comes_to_vote() {
        let image = image();
        let add = |id, directory| {
            add_voter(&image, &[1], id, Uuid::from_u128(directory)).map_err(|refusal| refusal.code)
        };
        assert_eq!(add(4, 4), Ok(vec![1, 4]));
        assert_eq!(add(4, 9), Err(ErrorCode::InvalidRequest));
        assert_eq!(add(5, 5), Err(ErrorCode::InvalidRequest));
        assert_eq!(add(1, 1), Err(ErrorCode::DuplicateVoter));
    }

    #[test]
    fn a_voter_that_nobody_waits_for_has_caught_up_before() {
        let at = |broker, heard_ms_ago, caught_up_ms_ago| ReplicaPosition {
            broker,
            is_voter: false,
            log_end_offset: 7,
            heard_ms_ago,
            caught_up_ms_ago,
        };
        let positions = [
            at(2, Some(100), Some(5_000)),
            at(3, Some(100), None),
            at(4, Some(HEARD_MS_MAX), Some(HEARD_MS_MAX)),
            at(5, None, None),
        ];
        let caught_up = |broker| has_caught_up(&positions, broker);
        assert_eq!(
            [2, 3, 4, 5, 6].map(caught_up),
            [true, false, false, false, false]
        );
    }

    #[test]
    fn one_voter_stays() {
        let image = image();
        let remove = |voters: &[i32], id, directory| {
            remove_voter(&image, voters, id, Uuid::from_u128(directory))
                .map_err(|refusal| refusal.code)
        };
        assert_eq!(remove(&[1, 4], 1, 1), Ok(vec![4]));
        assert_eq!(remove(&[1], 1, 1), Err(ErrorCode::InvalidRequest));
        assert_eq!(remove(&[1], 4, 4), Err(ErrorCode::VoterNotFound));
        assert_eq!(remove(&[1, 4], 4, 7), Err(ErrorCode::VoterNotFound));
    }
}
