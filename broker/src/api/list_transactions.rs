//! ListTransactions, versions 0 to 2 (KIP-664, KIP-994, KIP-1152): the transactional ids that are coordinated here.

use regex::Regex;
use streamgauge_protocol::error::ErrorCode;

use super::Context;
use super::kafka::list_transactions_response::TransactionState;
use super::kafka::{
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
};
use crate::clock;
use crate::group::coordinator::text;
use crate::transaction::coordinator::Listed;
use crate::transaction::state::State;

/// States that Kafka knows and that are never seen: a filter by them finds nothing, and is no mistake.
const UNSEEN_STATES: [&str; 2] = ["Dead", "PrepareEpochFence"];

pub async fn handle(
    context: Context,
    request: ListTransactionsRequest,
) -> ListTransactionsResponse {
    let response = ListTransactionsResponse::default();
    let pattern = match pattern(&request) {
        Ok(pattern) => pattern,
        Err(error) => {
            tracing::debug!(%error, "transactions were asked for by an unreadable pattern");
            return response.with_error_code(ErrorCode::InvalidRegularExpression.code());
        }
    };
    let all = match context.broker.transactions.list().await {
        Ok(all) => all,
        Err(code) => return response.with_error_code(code.code()),
    };
    let is_known = |name: &str| {
        State::ALL.iter().any(|state| state.name() == name) || UNSEEN_STATES.contains(&name)
    };
    let unknown = request.state_filters.iter();
    let unknown = unknown.filter(|name| !is_known(name)).cloned().collect();
    let now_ms = clock::now_ms();
    let listed = all
        .into_iter()
        .filter(|transaction| {
            let id = &transaction.transactional_id;
            is_wanted(transaction, &request, now_ms)
                && pattern.as_ref().is_none_or(|pattern| pattern.is_match(id))
        })
        .map(|transaction| {
            TransactionState::default()
                .with_transactional_id(TransactionalId(text(&transaction.transactional_id)))
                .with_producer_id(ProducerId(transaction.producer_id))
                .with_transaction_state(text(transaction.state.name()))
        });
    response
        .with_unknown_state_filters(unknown)
        .with_transaction_states(listed.collect())
}

/// As in Kafka it is to match all of an id, and an empty one all ids.
fn pattern(request: &ListTransactionsRequest) -> Result<Option<Regex>, regex::Error> {
    let pattern = request.transactional_id_pattern.as_ref();
    let pattern = pattern.filter(|pattern| !pattern.is_empty());
    let whole = pattern.map(|pattern| Regex::new(&format!("^(?:{})$", pattern.as_str())));
    whole.transpose()
}

fn is_wanted(transaction: &Listed, request: &ListTransactionsRequest, now_ms: i64) -> bool {
    let (producers, states) = (&request.producer_id_filters, &request.state_filters);
    let is_producer = |id: &ProducerId| id.0 == transaction.producer_id;
    let open_ms = now_ms.saturating_sub(transaction.start_timestamp_ms);
    (producers.is_empty() || producers.iter().any(is_producer))
        && (states.is_empty()
            || states
                .iter()
                .any(|name| name.as_str() == transaction.state.name()))
        && (request.duration_filter < 0 || open_ms > request.duration_filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_choose_as_in_kafka() {
        let transaction = Listed {
            transactional_id: "t".into(),
            producer_id: 7,
            state: State::Ongoing,
            start_timestamp_ms: 100,
        };
        let all = ListTransactionsRequest::default().with_duration_filter(-1);
        let wanted = |request: ListTransactionsRequest| is_wanted(&transaction, &request, 200);
        assert!(wanted(all.clone()));
        let by_producers = |ids: &[i64]| {
            all.clone()
                .with_producer_id_filters(ids.iter().map(|id| ProducerId(*id)).collect())
        };
        assert!(wanted(by_producers(&[6, 7])) && !wanted(by_producers(&[6])));
        let by_states = |name| all.clone().with_state_filters(vec![text(name)]);
        assert!(wanted(by_states("Ongoing")) && !wanted(by_states("Empty")));
        let by_duration = |ms| all.clone().with_duration_filter(ms);
        assert!(wanted(by_duration(99)) && !wanted(by_duration(100)));
    }

    #[test]
    fn patterns_match_whole_ids() {
        let of = |text_of: &str| {
            let pattern = Some(text(text_of));
            pattern_of(ListTransactionsRequest::default().with_transactional_id_pattern(pattern))
        };
        fn pattern_of(request: ListTransactionsRequest) -> Result<Option<Regex>, regex::Error> {
            pattern(&request)
        }
        let orders = of("orders-.*|pay").unwrap().unwrap();
        assert!(orders.is_match("orders-1") && orders.is_match("pay"));
        assert!(!orders.is_match("my-orders-1") && !orders.is_match("pays"));
        assert!(of("").unwrap().is_none());
        assert!(of("(").is_err());
    }
}
