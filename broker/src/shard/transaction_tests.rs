//! Transactions in a partition with three replicas.

use streamgauge_protocol::batch::{BatchBuilder, TransactionMarker, TransactionResult};
use streamgauge_storage::producer_state::{
    AppendOrigin, ProducerBatch, ProducerBatchKind, Verification, VerificationGuard,
};
use tokio::sync::oneshot;

use super::event::{AppendError, Appended, Event};
use super::replica_tests::Trio;

const PRODUCER: i64 = 7;

type Outcome = Result<Appended, AppendError>;

impl Trio {
    fn verify(&mut self, node: usize, producer_epoch: i16) -> Option<VerificationGuard> {
        let (reply, mut answer) = oneshot::channel();
        let now_ms = self.now_ms;
        let node = &mut self.nodes[node];
        let event = Event::BeginVerification {
            partition: node.id,
            wanted: Verification {
                producer_id: PRODUCER,
                producer_epoch,
                base_sequence: 0,
                supports_epoch_bump: true,
            },
            reply,
        };
        node.shard.handle(event, now_ms);
        answer.try_recv().unwrap()
    }

    fn data(
        &mut self,
        node: usize,
        (producer_epoch, sequence): (i16, i32),
        guard: Option<VerificationGuard>,
    ) -> Outcome {
        let mut batch = BatchBuilder::new()
            .producer(PRODUCER, producer_epoch, sequence)
            .transactional();
        batch.push(self.now_ms, None, Some(b"value"), &[]);
        self.append_to(node, batch.build().unwrap(), |append| append.guard = guard)
            .try_recv()
            .unwrap()
    }

    fn marker(
        &mut self,
        node: usize,
        producer_epoch: i16,
        coordinator_epoch: i32,
        result: TransactionResult,
    ) -> Outcome {
        let marker = TransactionMarker {
            result,
            coordinator_epoch,
        };
        let batch = marker
            .to_batch(PRODUCER, producer_epoch, self.now_ms)
            .unwrap();
        let origin = AppendOrigin::Marker {
            transaction_version: 2,
        };
        let judged = ProducerBatch {
            kind: ProducerBatchKind::EndTransaction(marker),
            ..ProducerBatch::unsequenced(PRODUCER, producer_epoch)
        };
        let judged = self.judge(node, judged, origin, None);
        let outcome = self
            .append_to(node, batch, |append| append.origin = origin)
            .try_recv()
            .unwrap();
        assert_eq!(judged.err().as_ref(), outcome.as_ref().err());
        outcome
    }

    fn judge(
        &mut self,
        node: usize,
        batch: ProducerBatch,
        origin: AppendOrigin,
        guard: Option<VerificationGuard>,
    ) -> Result<(), AppendError> {
        let (reply, mut answer) = oneshot::channel();
        let now_ms = self.now_ms;
        let node = &mut self.nodes[node];
        let event = Event::Judge {
            partition: node.id,
            batch,
            origin,
            guard,
            reply,
        };
        node.shard.handle(event, now_ms);
        answer.try_recv().unwrap()
    }

    /// High watermark and last stable offset by replica, and the markers of what was aborted.
    fn seen(&mut self) -> Vec<(i64, i64, Vec<i64>)> {
        // Followers hear what is committed with the next heartbeat.
        self.run(1_000);
        let seen = self.nodes.iter().map(|node| {
            let aborted = node.view.reader().aborted_transactions(0, i64::MAX);
            (
                node.view.high_watermark(),
                node.view.last_stable_offset(),
                aborted
                    .unwrap()
                    .iter()
                    .map(|aborted| aborted.last_offset)
                    .collect(),
            )
        });
        seen.collect()
    }
}

#[test]
fn an_open_transaction_holds_the_last_stable_offset_on_all_replicas() {
    let mut trio = Trio::start(2);
    let guard = trio.verify(0, 0);
    assert!(guard.is_some());
    assert_eq!(trio.data(0, (0, 0), guard).unwrap().base_offset, 0);
    assert_eq!(trio.verify(0, 0), None, "the transaction is open here");
    assert_eq!(trio.data(0, (0, 1), None).unwrap().base_offset, 1);
    assert_eq!(trio.seen(), vec![(2, 0, vec![]); 3]);

    let abort = TransactionResult::Abort;
    assert_eq!(trio.marker(0, 1, 4, abort).unwrap().base_offset, 2);
    assert_eq!(trio.seen(), vec![(3, 3, vec![2]); 3]);
    assert!(
        trio.marker(0, 1, 4, abort).is_ok(),
        "its answer may have been lost"
    );

    let guard = trio.verify(0, 1);
    assert_eq!(trio.data(0, (1, 0), guard).unwrap().base_offset, 4);
    let commit = TransactionResult::Commit;
    assert!(matches!(
        trio.marker(0, 1, 4, abort),
        Err(AppendError::InvalidProducerEpoch(_))
    ));
    assert!(matches!(
        trio.marker(0, 2, 3, commit),
        Err(AppendError::TransactionCoordinatorFenced(_))
    ));
    assert_eq!(trio.seen(), vec![(5, 4, vec![2]); 3]);
    assert!(trio.marker(0, 2, 4, commit).is_ok());
    assert_eq!(trio.seen(), vec![(6, 6, vec![2]); 3]);
}

#[test]
fn nothing_is_appended_for_a_transaction_that_its_coordinator_has_not_been_asked_about() {
    let mut trio = Trio::start(1);
    let is_refused = |outcome| matches!(outcome, Err(AppendError::InvalidTxnState(_)));
    assert!(is_refused(trio.data(0, (0, 0), None)));
    let guard = trio.verify(0, 0);
    assert!(trio.marker(0, 1, 4, TransactionResult::Abort).is_ok());
    assert!(
        is_refused(trio.data(0, (1, 0), guard)),
        "the marker that was to end it has been written"
    );
    assert!(matches!(
        trio.data(0, (0, 0), guard),
        Err(AppendError::InvalidProducerEpoch(_))
    ));
    let guard = trio.verify(0, 1);
    assert!(trio.data(0, (1, 0), guard).is_ok());
}

/// What a group coordinator is to write for a producer is refused before it counts on it.
#[test]
fn what_an_append_would_be_refused_for_is_known_before() {
    let mut trio = Trio::start(1);
    let judge = |trio: &mut Trio, epoch, guard| {
        let batch = ProducerBatch::unsequenced(PRODUCER, epoch);
        trio.judge(0, batch, AppendOrigin::Coordinator, guard)
    };
    assert!(matches!(
        judge(&mut trio, 0, None),
        Err(AppendError::InvalidTxnState(_))
    ));
    let guard = trio.verify(0, 0);
    assert_eq!(judge(&mut trio, 0, guard), Ok(()));
    assert!(trio.marker(0, 1, 4, TransactionResult::Abort).is_ok());
    assert!(matches!(
        judge(&mut trio, 0, guard),
        Err(AppendError::InvalidProducerEpoch(_))
    ));
    let batch = ProducerBatch::unsequenced(PRODUCER, 1);
    assert_eq!(
        trio.judge(1, batch, AppendOrigin::Coordinator, None),
        Err(AppendError::NotLeader)
    );
}

#[test]
fn a_new_leader_knows_which_transactions_are_open() {
    let mut trio = Trio::start(1);
    let guard = trio.verify(0, 0);
    assert!(trio.data(0, (0, 0), guard).is_ok());
    let left_behind = trio.verify(0, 1);
    assert!(left_behind.is_some());
    trio.run(1_000);
    trio.nodes[0].is_cut_off = true;
    trio.run(10_000);
    let leader = (1..3).find(|node| trio.nodes[*node].view.is_serving());
    let leader = leader.expect("one of the others leads");
    assert_eq!(trio.verify(leader, 0), None);
    assert!(trio.data(leader, (0, 1), None).is_ok());
    assert!(trio.marker(leader, 1, 9, TransactionResult::Abort).is_ok());
    trio.nodes[0].is_cut_off = false;
    trio.run(10_000);
    assert_eq!(trio.seen(), vec![(3, 3, vec![2]); 3]);
    assert_eq!(trio.verify(0, 2), None, "it leads no more");
}
