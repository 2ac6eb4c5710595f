//! Produce requests of transactional producers (KIP-98, KIP-890).
//!
//! Before the first batch of a transaction enters a partition, the transaction's coordinator is asked whether it is open and has
//! the partition; from version 12 on it adds the partition if it has not (transaction version 2). Requests of one connection keep
//! their order meanwhile, as in Kafka, which reads none before the last is answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use streamgauge_protocol::batch::BatchHeader;
use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::producer_state::{Verification, VerificationGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::Context;
use super::super::kafka::produce_request::ProduceRequest;
use super::{Failure, find_topic};
use crate::transaction::coordinator::Producer;
use crate::transaction::verify::{GuardSearch, Search, verify};

/// First version whose clients raise their epoch with each transaction and leave the adding of partitions to the leaders.
const ADDS_PARTITIONS_VERSION: i16 = 12;
/// First version whose clients know TRANSACTION_ABORTABLE.
const ABORTABLE_VERSION: i16 = 11;

/// The order of a connection's transactional requests.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<Option<oneshot::Receiver<()>>>>);

/// A request's place among those of its connection.
pub struct Turn {
    before: Option<oneshot::Receiver<()>>,
    /// Dropped when the next may go on.
    _own: oneshot::Sender<()>,
}

impl Turns {
    /// Takes the next place.
    pub fn take(&self) -> Turn {
        let (own, next) = oneshot::channel();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Turn {
            before: last.replace(next),
            _own: own,
        }
    }
}

impl Turn {
    /// Waits until all before have been sent to their partitions, or given up.
    pub async fn comes(&mut self) {
        if let Some(before) = &mut self.before {
            // Nothing is ever sent: the other end goes away.
            let _ = before.await;
        }
        self.before = None;
    }
}

/// By the places of topic and partition in the request: what the append is to bring along, or why it is refused.
pub type Verified = HashMap<(usize, usize), Result<Option<VerificationGuard>, Failure>>;

/// Whether a request without a transactional id holds batches of transactions.
pub fn lacks_transactional_id(request: &ProduceRequest) -> bool {
    request.transactional_id.is_none()
        && headers(request).any(|(_, header)| header.is_transactional())
}

/// Asks for every partition of a transactional request.
pub async fn verified(context: &Context, request: &ProduceRequest) -> Result<Verified, Failure> {
    let Some(transactional_id) = &request.transactional_id else {
        return Ok(Verified::new());
    };
    let batches: Vec<_> = headers(request)
        .filter(|(_, header)| header.is_transactional())
        .collect();
    let producer = |header: &BatchHeader| (header.producer_id, header.producer_epoch);
    if batches
        .windows(2)
        .any(|pair| matches!(pair, [(_, a), (_, b)] if producer(a) != producer(b)))
    {
        return Err(Failure::saying(
            ErrorCode::InvalidProducerIdMapping,
            "Transactional records contained more than one producer ID",
        ));
    }
    let asking = batches.into_iter().map(|(place, header)| async move {
        (
            place,
            verify_partition(context, request, transactional_id, place, &header).await,
        )
    });
    Ok(join_all(asking).await.into_iter().collect())
}

/// The header of each partition's batch, with its place in the request.
fn headers(request: &ProduceRequest) -> impl Iterator<Item = ((usize, usize), BatchHeader)> + '_ {
    let topics = request.topic_data.iter().enumerate();
    topics.flat_map(|(topic, data)| {
        let partitions = data.partition_data.iter().enumerate();
        partitions.filter_map(move |(at, partition)| {
            let header = BatchHeader::parse(partition.records.as_ref()?).ok()?;
            Some(((topic, at), header))
        })
    })
}

async fn verify_partition(
    context: &Context,
    request: &ProduceRequest,
    transactional_id: &str,
    (topic_at, partition_at): (usize, usize),
    header: &BatchHeader,
) -> Result<Option<VerificationGuard>, Failure> {
    // What is not here is refused where it would be appended.
    let found = request.topic_data.get(topic_at).and_then(|data| {
        let index = data.partition_data.get(partition_at)?.index;
        let topic = find_topic(context, data)?;
        let partition = topic.partition(index)?;
        (!topic.is_internal()).then_some((topic, index, partition))
    });
    let Some((topic, index, partition)) = found else {
        return Ok(None);
    };
    let adds = context.version >= ADDS_PARTITIONS_VERSION;
    let wanted = Verification {
        producer_id: header.producer_id,
        producer_epoch: header.producer_epoch,
        base_sequence: header.base_sequence,
        supports_epoch_bump: adds,
    };
    let config = &context.broker.config;
    let millis = |setting: i64| Duration::from_millis(setting.unsigned_abs());
    let backoff = millis(config.add_partitions_to_txn_retry_backoff_ms);
    let patience = Instant::now() + millis(config.add_partitions_to_txn_retry_backoff_max_ms);
    let producer = Producer {
        id: header.producer_id,
        epoch: header.producer_epoch,
    };
    let broker = &context.broker;
    let mut search = GuardSearch::default();
    loop {
        if let Search::Found(guard) = search.look(partition.begin_verification(wanted).await) {
            return Ok(guard);
        }
        let verified = verify(broker, transactional_id, producer, &topic.name, index, adds);
        match verified.await {
            Ok(()) => {}
            Err(ErrorCode::ConcurrentTransactions)
                // It ends the producer's transaction before.
                if adds && Instant::now() + backoff < patience =>
            {
                tokio::time::sleep(backoff).await;
                search = GuardSearch::default();
            }
            Err(code) => return Err(not_verified(code, context.version)),
        }
    }
}

/// What a producer is told, in terms that its version retries rightly (`ReplicaManager`, `AddPartitionsToTxnManager`).
fn not_verified(code: ErrorCode, version: i16) -> Failure {
    let adds = version >= ADDS_PARTITIONS_VERSION;
    match code {
        ErrorCode::InvalidTxnState => {
            Failure::saying(code, "Partition was not added to the transaction")
        }
        ErrorCode::ProducerFenced => Failure::new(ErrorCode::InvalidProducerEpoch),
        ErrorCode::TransactionAbortable if version < ABORTABLE_VERSION => {
            Failure::new(ErrorCode::InvalidTxnState)
        }
        ErrorCode::ConcurrentTransactions if adds => Failure::new(code),
        ErrorCode::ConcurrentTransactions
        | ErrorCode::NetworkException
        | ErrorCode::CoordinatorLoadInProgress
        | ErrorCode::CoordinatorNotAvailable
        | ErrorCode::NotCoordinator => Failure::saying(
            ErrorCode::NotEnoughReplicas,
            format!(
                "Unable to verify the partition has been added to the transaction. Underlying error: {code}"
            ),
        ),
        _ => Failure::new(code),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn older_clients_are_told_to_try_again_in_their_terms() {
        let told = |code, version| not_verified(code, version).code;
        use ErrorCode::{
            ConcurrentTransactions, InvalidProducerEpoch, InvalidTxnState, NotCoordinator,
            NotEnoughReplicas, ProducerFenced, TransactionAbortable,
        };
        assert_eq!(told(ConcurrentTransactions, 11), NotEnoughReplicas);
        assert_eq!(told(ConcurrentTransactions, 12), ConcurrentTransactions);
        assert_eq!(told(NotCoordinator, 13), NotEnoughReplicas);
        assert_eq!(told(ProducerFenced, 13), InvalidProducerEpoch);
        assert_eq!(told(TransactionAbortable, 10), InvalidTxnState);
        assert_eq!(told(TransactionAbortable, 11), TransactionAbortable);
        assert_eq!(told(InvalidTxnState, 12), InvalidTxnState);
    }

    #[tokio::test]
    async fn requests_go_on_in_the_order_in_which_they_came() {
        let turns = Turns::default();
        let (mut first, mut second, mut third) = (turns.take(), turns.take(), turns.take());
        first.comes().await;
        assert!(
            second.comes().now_or_never().is_none(),
            "the first is not done"
        );
        assert!(third.comes().now_or_never().is_none());
        drop(first);
        second.comes().await;
        assert!(third.comes().now_or_never().is_none());
        drop(second);
        third.comes().await;
    }
}
