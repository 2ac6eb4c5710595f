//! Asking a transaction's coordinator whether a partition belongs to it (KIP-890).
//!
//! ```text
//! request   transactional id u16 length │ bytes │ producer id i64 │ producer epoch i16 │ topic u16 length │ bytes │ partition i32 │ add u8
//! answer    Kafka's error code i16
//! ```
//!
//! Numbers are big-endian.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use streamgauge_protocol::error::{ErrorCode, code_of};
use streamgauge_storage::producer_state::VerificationGuard;

use super::coordinator::Producer;
use super::state::EPOCH_BUMP_VERSION;
use crate::broker::Broker;
use crate::cluster::ClusterRequest;
use crate::controller::decide::TRANSACTION_STATE_TOPIC;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    transactional_id: String,
    producer: Producer,
    topic: String,
    partition: i32,
    adds: bool,
}

/// Whether the transaction of that producer and epoch is open and has the partition; with `add` the
/// partition becomes part of it (transaction version 2).
///
/// Errors: what the coordinator answers, and NOT_COORDINATOR or COORDINATOR_NOT_AVAILABLE while it changes.
pub async fn verify(
    broker: &Arc<Broker>,
    transactional_id: &str,
    producer: Producer,
    topic: &str,
    partition: i32,
    add: bool,
) -> Result<(), ErrorCode> {
    let question = Question {
        transactional_id: transactional_id.to_owned(),
        producer,
        topic: topic.to_owned(),
        partition,
        adds: add,
    };
    let known = broker.controller.read(|image| {
        image
            .topic(TRANSACTION_STATE_TOPIC)
            .map(|topic| topic.topic_id)
    });
    // As if nobody had ever been asked to begin a transaction.
    let topic_id = known.ok_or(ErrorCode::InvalidProducerIdMapping)?;
    let led = broker
        .leadership(
            topic_id,
            broker.transactions.partition_for(transactional_id),
        )
        .ok_or(ErrorCode::CoordinatorNotAvailable)?;
    if led.leader == broker.id() {
        return ask_here(broker, question).await;
    }
    if led.leader < 0 {
        return Err(ErrorCode::CoordinatorNotAvailable);
    }
    let request = ClusterRequest::Verify(encode(&question));
    let patience = Duration::from_millis(broker.config.request_timeout_ms.unsigned_abs());
    let cluster = &broker.cluster;
    cluster.ask_code(led.leader, &request, patience).await
}

/// One marker is to be expected. Somebody who writes them without end does not keep a request here.
const GUARDS_MAX: usize = 8;

/// Finds the guard to append with. A coordinator is asked between two looks at the partition, which gives the guard out: the marker of
/// the producer's transaction before may be written meanwhile and make it void. Once the coordinator agrees, no other comes.
#[derive(Debug, Default)]
pub struct GuardSearch {
    asked_for: Option<VerificationGuard>,
    asked: usize,
}

/// What is next in a [`GuardSearch`].
#[derive(Debug, PartialEq, Eq)]
pub enum Search {
    /// Ask the coordinator, and look again.
    Ask,
    /// Append with this; with none, as the transaction is open in the partition.
    Found(Option<VerificationGuard>),
}

impl GuardSearch {
    /// What the partition has given out now.
    pub fn look(&mut self, given_out: Option<VerificationGuard>) -> Search {
        let is_done =
            given_out.is_none() || given_out == self.asked_for || self.asked >= GUARDS_MAX;
        if is_done {
            return Search::Found(given_out);
        }
        self.asked_for = given_out;
        self.asked += 1;
        Search::Ask
    }
}

/// Answers another broker.
pub async fn serve(broker: &Arc<Broker>, request: Bytes) -> Bytes {
    let code = match decode(request) {
        Some(question) => ask_here(broker, question).await.err(),
        None => Some(ErrorCode::InvalidRequest),
    };
    Bytes::copy_from_slice(&code_of(code).to_be_bytes())
}

async fn ask_here(broker: &Broker, question: Question) -> Result<(), ErrorCode> {
    let coordinator = &broker.transactions;
    let partitions = vec![(question.topic, question.partition)];
    let (id, producer) = (&question.transactional_id, question.producer);
    if question.adds {
        return coordinator
            .add_partitions(id, producer, partitions, EPOCH_BUMP_VERSION)
            .await;
    }
    let verified = coordinator.verify(id, producer, partitions).await?;
    match verified.into_iter().next() {
        Some((_, None)) => Ok(()),
        Some((_, Some(error))) => Err(error),
        None => Err(ErrorCode::UnknownServerError),
    }
}

fn encode(question: &Question) -> Bytes {
    let mut bytes = BytesMut::new();
    put_text(&mut bytes, &question.transactional_id);
    bytes.put_i64(question.producer.id);
    bytes.put_i16(question.producer.epoch);
    put_text(&mut bytes, &question.topic);
    bytes.put_i32(question.partition);
    bytes.put_u8(u8::from(question.adds));
    bytes.freeze()
}

/// Both come from fields of Kafka's requests that are no longer than this.
fn put_text(bytes: &mut BytesMut, text: &str) {
    bytes.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    bytes.put_slice(text.as_bytes());
}

fn decode(mut bytes: Bytes) -> Option<Question> {
    let question = Question {
        transactional_id: take_text(&mut bytes)?,
        producer: Producer {
            id: bytes.try_get_i64().ok()?,
            epoch: bytes.try_get_i16().ok()?,
        },
        topic: take_text(&mut bytes)?,
        partition: bytes.try_get_i32().ok()?,
        adds: bytes.try_get_u8().ok()? != 0,
    };
    bytes.is_empty().then_some(question)
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    let length = usize::from(bytes.try_get_u16().ok()?);
    if length > bytes.len() {
        return None;
    }
    String::from_utf8(bytes.split_to(length).to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use streamgauge_storage::producer_state::{ProducerBatch, Verification, Verifications};

    use super::*;

    /// The marker of the transaction before, whose coordinator has said that it commits, comes late.
    #[test]
    fn a_guard_that_a_marker_has_made_void_is_not_taken() {
        let mut verifications = Verifications::default();
        let wanted = Verification {
            producer_id: 9,
            producer_epoch: 2,
            base_sequence: 0,
            supports_epoch_bump: true,
        };
        let mut search = GuardSearch::default();
        let first = verifications.begin(&wanted, None, 0);
        assert_eq!(search.look(first), Search::Ask);
        verifications.end(9);
        let second = verifications.begin(&wanted, None, 0);
        assert_eq!(search.look(second), Search::Ask, "it is another");
        let again = verifications.begin(&wanted, None, 0);
        assert_eq!(search.look(again), Search::Found(second));
        let batch = ProducerBatch::unsequenced(9, 2);
        assert!(!verifications.allows(&batch, None, first));
        assert!(verifications.allows(&batch, None, second));
        assert_eq!(GuardSearch::default().look(None), Search::Found(None));
    }

    #[test]
    fn markers_without_end_keep_no_request() {
        let mut verifications = Verifications::default();
        let wanted = Verification {
            producer_id: 9,
            producer_epoch: 2,
            base_sequence: 0,
            supports_epoch_bump: true,
        };
        let mut search = GuardSearch::default();
        let asked = (0..100).take_while(|_| {
            let given_out = verifications.begin(&wanted, None, 0);
            verifications.end(9);
            search.look(given_out) == Search::Ask
        });
        assert_eq!(asked.count(), GUARDS_MAX);
    }

    #[test]
    fn questions_read_back_as_they_were_written_and_no_others_do() {
        let question = Question {
            transactional_id: "t".into(),
            producer: Producer { id: 9, epoch: 2 },
            topic: "orders".into(),
            partition: 4,
            adds: true,
        };
        let bytes = encode(&question);
        assert_eq!(decode(bytes.clone()), Some(question));
        for length in 0..bytes.len() {
            assert_eq!(decode(bytes.slice(..length)), None, "{length} bytes");
        }
        assert_eq!(decode([&bytes[..], &[0]].concat().into()), None);
    }
}
