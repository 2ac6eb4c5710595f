//! AddPartitionsToTxn, versions 0 to 5 (KIP-98, KIP-890): partitions become part of a transaction, or it is asked whether they are.
//!
//! Clients name one transaction; from version 4 on other brokers name several. Brokers of this cluster have a way of their own
//! (`transaction::verify`).

use std::collections::HashMap;

use futures_util::future::join_all;
use streamgauge_protocol::error::{ErrorCode, code_of};

use super::Context;
use super::kafka::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use super::kafka::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
};
use super::kafka::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, TopicName};
use crate::transaction::coordinator::Producer;
use crate::transaction::state::{EPOCH_BUMP_VERSION, TopicPartition};

/// First version that names several transactions.
const BATCH_VERSION: i16 = 4;
/// First version whose clients raise their epoch with each transaction (`TransactionVersion.transactionVersionForAddPartitionsToTxn`).
const BUMP_VERSION: i16 = 5;
/// First version whose clients know PRODUCER_FENCED.
const FENCED_VERSION: i16 = 2;

pub async fn handle(
    context: Context,
    mut request: AddPartitionsToTxnRequest,
) -> AddPartitionsToTxnResponse {
    if context.version < BATCH_VERSION {
        request.transactions = vec![
            AddPartitionsToTxnTransaction::default()
                .with_transactional_id(request.v3_and_below_transactional_id)
                .with_producer_id(request.v3_and_below_producer_id)
                .with_producer_epoch(request.v3_and_below_producer_epoch)
                .with_topics(request.v3_and_below_topics),
        ];
    }
    let results = request
        .transactions
        .into_iter()
        .map(|transaction| one(&context, transaction));
    let results = join_all(results).await;
    if context.version >= BATCH_VERSION {
        return AddPartitionsToTxnResponse::default().with_results_by_transaction(results);
    }
    let topics = results.into_iter().flat_map(|result| result.topic_results);
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
}

async fn one(
    context: &Context,
    transaction: AddPartitionsToTxnTransaction,
) -> AddPartitionsToTxnResult {
    let AddPartitionsToTxnTransaction {
        transactional_id,
        topics,
        ..
    } = &transaction;
    let unknown = |topic: &AddPartitionsToTxnTopic, index: i32| {
        let exists = context.broker.controller.read(|image| {
            let index = usize::try_from(index).ok()?;
            image.topic(&topic.name)?.partitions.get(index).map(|_| ())
        });
        exists.is_none()
    };
    let some_unknown = topics
        .iter()
        .any(|topic| topic.partitions.iter().any(|index| unknown(topic, *index)));
    let results = if some_unknown {
        results_of(topics, |topic, index| match unknown(topic, index) {
            true => Some(ErrorCode::UnknownTopicOrPartition),
            // All or nothing.
            false => Some(ErrorCode::OperationNotAttempted),
        })
    } else {
        let errors = ask(context, &transaction).await;
        results_of(topics, |topic, index| {
            let error = match &errors {
                Ok(errors) => errors.get(&(topic.name.to_string(), index)).copied(),
                Err(error) => Some(*error),
            };
            match error {
                Some(ErrorCode::ProducerFenced) if context.version < FENCED_VERSION => {
                    Some(ErrorCode::InvalidProducerEpoch)
                }
                error => error,
            }
        })
    };
    AddPartitionsToTxnResult::default()
        .with_transactional_id(transactional_id.clone())
        .with_topic_results(results)
}

/// What is wrong with some of the partitions, or with the transaction.
async fn ask(
    context: &Context,
    transaction: &AddPartitionsToTxnTransaction,
) -> Result<HashMap<TopicPartition, ErrorCode>, ErrorCode> {
    let producer = Producer {
        id: transaction.producer_id.0,
        epoch: transaction.producer_epoch,
    };
    let partitions: Vec<TopicPartition> = transaction
        .topics
        .iter()
        .flat_map(|topic| {
            let indexes = topic.partitions.iter();
            indexes.map(|index| (topic.name.to_string(), *index))
        })
        .collect();
    let coordinator = &context.broker.transactions;
    let id = &transaction.transactional_id;
    if transaction.verify_only {
        let verified = coordinator.verify(id, producer, partitions).await?;
        let wrong = verified.into_iter();
        return Ok(wrong.filter_map(|(at, error)| Some((at, error?))).collect());
    }
    let client_version = match context.version >= BUMP_VERSION {
        true => EPOCH_BUMP_VERSION,
        false => 0,
    };
    coordinator
        .add_partitions(id, producer, partitions, client_version)
        .await?;
    Ok(HashMap::new())
}

fn results_of(
    topics: &[AddPartitionsToTxnTopic],
    error: impl Fn(&AddPartitionsToTxnTopic, i32) -> Option<ErrorCode>,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let results = topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|index| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*index)
                .with_partition_error_code(code_of(error(topic, *index)))
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(TopicName(topic.name.0.clone()))
            .with_results_by_partition(partitions.collect())
    });
    results.collect()
}
