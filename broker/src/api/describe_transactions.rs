//! DescribeTransactions, version 0 (KIP-664): what is known of transactional ids that are coordinated here.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::Context;
use super::kafka::describe_transactions_response::{TopicData, TransactionState};
use super::kafka::{
    DescribeTransactionsRequest, DescribeTransactionsResponse, ProducerId, TopicName,
    TransactionalId,
};
use crate::group::coordinator::text;

pub async fn handle(
    context: Context,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let described = request
        .transactional_ids
        .into_iter()
        .map(|id| describe(&context, id));
    DescribeTransactionsResponse::default().with_transaction_states(join_all(described).await)
}

async fn describe(context: &Context, id: TransactionalId) -> TransactionState {
    let found = context.broker.transactions.describe(&id).await;
    let state = TransactionState::default().with_transactional_id(id);
    let transaction = match found {
        Ok(transaction) => transaction,
        Err(code) => return state.with_error_code(code.code()),
    };
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in transaction.partitions {
        topics.entry(topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        TopicData::default()
            .with_topic(TopicName(text(&topic)))
            .with_partitions(partitions)
    });
    state
        .with_producer_id(ProducerId(transaction.producer_id))
        .with_producer_epoch(transaction.producer_epoch)
        .with_transaction_state(text(transaction.state.name()))
        .with_transaction_timeout_ms(transaction.timeout_ms)
        .with_transaction_start_time_ms(transaction.start_timestamp_ms)
        .with_topics(topics.collect())
}
