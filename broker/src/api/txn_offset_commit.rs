//! TxnOffsetCommit, versions 0 to 5 (KIP-98, KIP-447, KIP-890): offsets within a transaction, which hold when it commits.

use std::collections::{HashMap, HashSet};

use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::producer_state::{
    AppendOrigin, ProducerBatch, Verification, VerificationGuard,
};

use super::Context;
use super::kafka::txn_offset_commit_request::TxnOffsetCommitRequestTopic;
use super::kafka::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use super::kafka::{TopicName, TxnOffsetCommitRequest, TxnOffsetCommitResponse};
use crate::controller::decide::GROUP_METADATA_TOPIC;
use crate::transaction::coordinator::Producer;
use crate::transaction::verify::{GuardSearch, Search, verify};

/// First version whose clients leave it to this request to make the offsets partition part of the transaction.
const ADDS_PARTITION_VERSION: i16 = 5;
/// First version whose clients know TRANSACTION_ABORTABLE.
const ABORTABLE_VERSION: i16 = 4;
/// Clients before this version may crash when they are told that a coordinator loads (KAFKA-7296).
const LOADING_VERSION: i16 = 2;
/// Coordinators' batches have no sequence.
const NO_SEQUENCE: i32 = -1;

pub async fn handle(
    context: Context,
    mut request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let (known, unknown) = split(&context, std::mem::take(&mut request.topics));
    let mut answered: Vec<_> = unknown
        .iter()
        .map(|topic| failed(topic, ErrorCode::UnknownTopicOrPartition))
        .collect();
    if !known.is_empty() {
        request.topics = known;
        let topics = match commit(&context, request.clone()).await {
            Ok(response) => response.topics,
            Err(code) => {
                let code = told(code, context.version);
                let topics = request.topics.iter();
                topics.map(|topic| failed(topic, code)).collect()
            }
        };
        answered.extend(topics);
    }
    TxnOffsetCommitResponse::default().with_topics(merged(answered))
}

/// The partitions that exist, and those that do not.
fn split(
    context: &Context,
    topics: Vec<TxnOffsetCommitRequestTopic>,
) -> (
    Vec<TxnOffsetCommitRequestTopic>,
    Vec<TxnOffsetCommitRequestTopic>,
) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for topic in topics {
        let count = context
            .broker
            .controller
            .read(|image| image.topic(&topic.name).map(|topic| topic.partitions.len()));
        let exists = |index: i32| {
            usize::try_from(index).is_ok_and(|index| count.is_some_and(|count| index < count))
        };
        let name = topic.name;
        let (there, not_there): (Vec<_>, Vec<_>) = topic
            .partitions
            .into_iter()
            .partition(|partition| exists(partition.partition_index));
        for (partitions, to) in [(there, &mut known), (not_there, &mut unknown)] {
            if !partitions.is_empty() {
                let topic = TxnOffsetCommitRequestTopic::default().with_name(name.clone());
                to.push(topic.with_partitions(partitions));
            }
        }
    }
    (known, unknown)
}

async fn commit(
    context: &Context,
    request: TxnOffsetCommitRequest,
) -> Result<TxnOffsetCommitResponse, ErrorCode> {
    if request.group_id.is_empty() {
        return Err(ErrorCode::InvalidGroupId);
    }
    let guard = verified(context, &request).await?;
    let names: HashSet<String> = request
        .topics
        .iter()
        .map(|topic| topic.name.to_string())
        .collect();
    let topic_ids: HashMap<_, _> = context.broker.controller.read(|image| {
        let ids = names.into_iter();
        let ids = ids.filter_map(|name| image.topic(&name).map(|topic| (name, topic.topic_id)));
        ids.collect()
    });
    let groups = &context.broker.groups;
    groups
        .commit_in_transaction(request, topic_ids, guard)
        .await
}

/// Asks the transaction's coordinator whether the group's offsets partition is part of it, before its first batch there.
async fn verified(
    context: &Context,
    request: &TxnOffsetCommitRequest,
) -> Result<Option<VerificationGuard>, ErrorCode> {
    let broker = &context.broker;
    let index = broker.groups.partition_for(&request.group_id);
    let partition = broker
        .topics
        .by_name(GROUP_METADATA_TOPIC)
        .and_then(|topic| topic.partition(index))
        .filter(|partition| partition.view().is_serving())
        .ok_or(ErrorCode::NotCoordinator)?;
    let adds = context.version >= ADDS_PARTITION_VERSION;
    let producer = Producer {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let wanted = Verification {
        producer_id: producer.id,
        producer_epoch: producer.epoch,
        base_sequence: NO_SEQUENCE,
        supports_epoch_bump: adds,
    };
    let id = &request.transactional_id;
    let mut search = GuardSearch::default();
    let guard = loop {
        match search.look(partition.begin_verification(wanted).await) {
            Search::Ask => verify(broker, id, producer, GROUP_METADATA_TOPIC, index, adds).await?,
            Search::Found(guard) => break guard,
        }
    };
    let batch = ProducerBatch::unsequenced(producer.id, producer.epoch);
    let judged = partition.judge(batch, AppendOrigin::Coordinator, guard);
    judged.await.map_err(|error| error.code())?;
    Ok(guard)
}

/// In terms that the client's version retries rightly (`CoordinatorOperationExceptionHelper`).
fn told(code: ErrorCode, version: i16) -> ErrorCode {
    let code = match code {
        ErrorCode::NetworkException => ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::TransactionAbortable if version < ABORTABLE_VERSION => {
            ErrorCode::InvalidTxnState
        }
        code => code,
    };
    match code {
        ErrorCode::CoordinatorLoadInProgress if version < LOADING_VERSION => {
            ErrorCode::CoordinatorNotAvailable
        }
        code => code,
    }
}

fn failed(topic: &TxnOffsetCommitRequestTopic, code: ErrorCode) -> TxnOffsetCommitResponseTopic {
    let partitions = topic.partitions.iter().map(|partition| {
        TxnOffsetCommitResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_error_code(code.code())
    });
    TxnOffsetCommitResponseTopic::default()
        .with_name(topic.name.clone())
        .with_partitions(partitions.collect())
}

/// Clients expect each topic once.
fn merged(topics: Vec<TxnOffsetCommitResponseTopic>) -> Vec<TxnOffsetCommitResponseTopic> {
    let mut places: HashMap<TopicName, usize> = HashMap::new();
    let mut merged: Vec<TxnOffsetCommitResponseTopic> = Vec::new();
    for topic in topics {
        let place = *places.entry(topic.name.clone()).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(first) => first.partitions.extend(topic.partitions),
            None => merged.push(topic),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_clients_are_told_in_their_terms() {
        use ErrorCode::{
            CoordinatorLoadInProgress, CoordinatorNotAvailable, InvalidTxnState, NetworkException,
            NotCoordinator, NotLeaderOrFollower, TransactionAbortable,
        };
        assert_eq!(told(NetworkException, 5), CoordinatorLoadInProgress);
        assert_eq!(told(NetworkException, 1), CoordinatorNotAvailable);
        assert_eq!(told(TransactionAbortable, 3), InvalidTxnState);
        assert_eq!(told(TransactionAbortable, 4), TransactionAbortable);
        assert_eq!(told(NotCoordinator, 0), NotCoordinator);
        assert_eq!(told(NotLeaderOrFollower, 5), NotCoordinator);
    }
}
