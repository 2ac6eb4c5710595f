use super::*;

fn batch(epoch: i16, base_sequence: i32, records: i64, base_offset: i64) -> ProducerBatch {
    ProducerBatch {
        producer_id: 7,
        producer_epoch: epoch,
        base_sequence,
        base_offset,
        last_offset: base_offset + records - 1,
        max_timestamp: 1_000 + base_offset,
        kind: ProducerBatchKind::Data {
            is_transactional: false,
        },
    }
}

fn transactional(mut batch: ProducerBatch) -> ProducerBatch {
    batch.kind = ProducerBatchKind::Data {
        is_transactional: true,
    };
    batch
}

fn marker(epoch: i16, offset: i64, result: TransactionResult, coordinator: i32) -> ProducerBatch {
    ProducerBatch {
        kind: ProducerBatchKind::EndTransaction(TransactionMarker {
            result,
            coordinator_epoch: coordinator,
        }),
        ..batch(epoch, NO_SEQUENCE, 1, offset)
    }
}

fn check(state: &ProducerState, batch: &ProducerBatch) -> Verdict {
    state.check(batch, AppendOrigin::Client)
}

fn committed(batches: &[ProducerBatch]) -> ProducerState {
    let mut state = ProducerState::new();
    for batch in batches {
        state.apply_committed(batch, 0);
    }
    state
}

#[test]
fn an_unknown_producer_may_start_at_any_sequence() {
    assert_eq!(
        check(&ProducerState::new(), &batch(3, 41, 2, 0)),
        Verdict::Append
    );
}

#[test]
fn a_gap_in_sequences_is_out_of_order() {
    let state = committed(&[batch(0, 0, 3, 0)]);
    assert_eq!(check(&state, &batch(0, 3, 1, 3)), Verdict::Append);
    assert_eq!(
        check(&state, &batch(0, 4, 1, 3)),
        Verdict::Error(ProducerStateError::OutOfOrderSequence {
            producer_id: 7,
            base_sequence: 4,
            last_sequence: 2
        })
    );
}

#[test]
fn sequences_wrap_to_zero_within_and_between_batches() {
    let mut state = committed(&[batch(0, i32::MAX - 1, 3, 0)]);
    assert_eq!(state.committed(7).unwrap().last_sequence(), 0);
    assert_eq!(check(&state, &batch(0, 1, 1, 3)), Verdict::Append);
    assert!(matches!(
        check(&state, &batch(0, i32::MAX - 1, 3, 3)),
        Verdict::Duplicate(AppendedBatch {
            base_offset: 0,
            last_offset: 2,
            ..
        })
    ));

    state = committed(&[batch(0, i32::MAX, 1, 0)]);
    assert_eq!(check(&state, &batch(0, 0, 1, 1)), Verdict::Append);
}

#[test]
fn a_new_epoch_starts_at_sequence_zero_and_an_old_one_is_refused() {
    let state = committed(&[batch(4, 9, 1, 0)]);
    assert_eq!(check(&state, &batch(5, 0, 1, 1)), Verdict::Append);
    assert!(matches!(
        check(&state, &batch(5, 10, 1, 1)),
        Verdict::Error(ProducerStateError::NewEpochNotAtZero { .. })
    ));
    assert!(matches!(
        check(&state, &batch(3, 10, 1, 1)),
        Verdict::Error(ProducerStateError::InvalidProducerEpoch {
            current_epoch: 4,
            ..
        })
    ));
}

#[test]
fn duplicates_are_known_within_the_last_five_batches() {
    let batches: Vec<_> = (0..6)
        .map(|i| batch(0, i * 2, 2, i64::from(i) * 2))
        .collect();
    let state = committed(&batches);
    for original in &batches[1..] {
        assert_eq!(
            check(&state, original),
            Verdict::Duplicate(AppendedBatch {
                base_offset: original.base_offset,
                last_offset: original.last_offset,
                timestamp: original.max_timestamp,
            })
        );
    }
    assert!(matches!(
        check(&state, &batches[0]),
        Verdict::Error(ProducerStateError::OutOfOrderSequence { .. })
    ));
}

#[test]
fn a_retry_with_another_sequence_range_is_not_a_duplicate() {
    let state = committed(&[batch(0, 0, 4, 0)]);
    assert!(matches!(
        check(&state, &batch(0, 0, 3, 4)),
        Verdict::Error(ProducerStateError::OutOfOrderSequence { .. })
    ));
}

#[test]
fn a_duplicate_of_an_in_flight_batch_waits_for_its_commit() {
    let mut state = committed(&[batch(0, 0, 1, 0)]);
    let second = batch(0, 1, 2, 1);
    let third = batch(0, 3, 1, 3);
    state.append_in_flight(second);
    state.append_in_flight(third);
    assert!(matches!(
        check(&state, &second),
        Verdict::DuplicateInFlight(AppendedBatch { last_offset: 2, .. })
    ));
    assert_eq!(check(&state, &batch(0, 4, 1, 4)), Verdict::Append);

    state.commit_through(3, 0);
    assert!(matches!(check(&state, &second), Verdict::Duplicate(_)));
    assert!(matches!(
        check(&state, &third),
        Verdict::DuplicateInFlight(_)
    ));
    assert_eq!(state.committed(7).unwrap().last_sequence(), 2);
    assert_eq!(state.tip(7).unwrap().last_sequence(), 3);
}

#[test]
fn what_is_in_the_log_stays_in_flight_when_later_appends_are_lost() {
    let mut state = committed(&[batch(0, 0, 1, 0)]);
    state.append_in_flight(batch(0, 1, 1, 1));
    state.append_in_flight(batch(0, 2, 1, 2));
    state.drop_in_flight_from(2);
    assert!(matches!(
        check(&state, &batch(0, 1, 1, 5)),
        Verdict::DuplicateInFlight(_)
    ));
    assert_eq!(check(&state, &batch(0, 2, 1, 2)), Verdict::Append);
}

#[test]
fn a_dropped_overlay_leaves_the_committed_state() {
    let mut state = committed(&[batch(0, 0, 1, 0)]);
    state.append_in_flight(batch(0, 1, 1, 1));
    state.drop_in_flight();
    assert_eq!(check(&state, &batch(0, 1, 1, 1)), Verdict::Append);
    assert!(matches!(
        check(&state, &batch(0, 2, 1, 1)),
        Verdict::Error(_)
    ));
}

#[test]
fn a_coordinator_is_held_to_epochs_and_not_to_sequences() {
    let state = committed(&[batch(2, 5, 1, 0)]);
    let without_sequence = |epoch| transactional(batch(epoch, NO_SEQUENCE, 1, 1));
    assert_eq!(
        state.check(&without_sequence(2), AppendOrigin::Coordinator),
        Verdict::Append
    );
    assert!(matches!(
        state.check(&without_sequence(1), AppendOrigin::Coordinator),
        Verdict::Error(ProducerStateError::InvalidProducerEpoch { .. })
    ));
}

#[test]
fn an_open_transaction_holds_the_first_unstable_offset_until_its_marker_commits() {
    let mut state = ProducerState::new();
    state.append_in_flight(transactional(batch(0, 0, 2, 10)));
    assert_eq!(state.first_unstable_offset(), None);
    state.commit_through(12, 0);
    assert_eq!(state.first_unstable_offset(), Some(10));
    assert!(matches!(
        check(&state, &batch(0, 2, 1, 12)),
        Verdict::Error(ProducerStateError::InvalidTransactionState {
            first_offset: 10,
            ..
        })
    ));

    let abort = marker(0, 12, TransactionResult::Abort, 1);
    assert_eq!(
        state.check(&abort, AppendOrigin::Coordinator),
        Verdict::Append
    );
    state.append_in_flight(abort);
    assert_eq!(state.first_unstable_offset(), Some(10));
    assert_eq!(
        state.commit_through(13, 0),
        [CompletedTransaction {
            producer_id: 7,
            first_offset: 10,
            last_offset: 12,
            result: TransactionResult::Abort,
            last_stable_offset: 13,
        }]
    );
    assert_eq!(state.first_unstable_offset(), None);
    assert!(matches!(
        state.check(
            &marker(0, 13, TransactionResult::Commit, 0),
            AppendOrigin::Coordinator
        ),
        Verdict::Error(ProducerStateError::TransactionCoordinatorFenced { .. })
    ));
}

#[test]
fn a_marker_that_raises_the_epoch_makes_the_next_sequence_zero() {
    let state = committed(&[
        transactional(batch(0, 0, 1, 0)),
        marker(1, 1, TransactionResult::Commit, 0),
    ]);
    assert_eq!(
        check(&state, &transactional(batch(1, 0, 1, 2))),
        Verdict::Append
    );
    assert!(matches!(
        check(&state, &transactional(batch(1, 1, 1, 2))),
        Verdict::Error(ProducerStateError::OutOfOrderSequence { .. })
    ));
}

#[test]
fn a_transaction_whose_start_is_deleted_holds_the_last_stable_offset_at_the_log_start() {
    let mut state = committed(&[transactional(batch(0, 0, 2, 10))]);
    state.advance_log_start(11);
    assert_eq!(state.last_stable_offset(0, 12), Some(10));
    assert_eq!(state.last_stable_offset(11, 12), Some(11));
    state.apply_committed(&marker(0, 12, TransactionResult::Abort, 1), 0);
    assert_eq!(state.last_stable_offset(11, 13), Some(13));
}

#[test]
fn a_state_that_knows_more_than_is_committed_here_does_not_tell_the_last_stable_offset() {
    let state = committed(&[transactional(batch(0, 0, 2, 10))]);
    assert_eq!(state.last_stable_offset(0, 11), None);
}

#[test]
fn transactions_that_ended_before_a_leaders_snapshot_are_found_without_their_beginning() {
    let mut state = ProducerState::new();
    assert_eq!(state.note_past(&transactional(batch(0, 0, 2, 10))), None);
    let first = state.note_past(&marker(0, 12, TransactionResult::Commit, 1));
    assert_eq!(first.map(|ended| ended.first_offset), Some(0));
    let second = state.note_past(&marker(0, 20, TransactionResult::Abort, 1));
    let ended = second.map(|ended| (ended.first_offset, ended.last_offset, ended.result));
    assert_eq!(ended, Some((13, 20, TransactionResult::Abort)));
}

#[test]
fn expiry_spares_what_is_in_flight_or_in_a_transaction() {
    let mut state = ProducerState::new();
    let of = |producer_id, batch: ProducerBatch| ProducerBatch {
        producer_id,
        ..batch
    };
    state.apply_committed(&of(1, batch(0, 0, 1, 0)), 100);
    state.apply_committed(&of(2, batch(0, 0, 1, 1)), 100);
    state.apply_committed(&of(3, transactional(batch(0, 0, 1, 2))), 100);
    state.apply_committed(&of(4, batch(0, 0, 1, 3)), 101);
    state.append_in_flight(of(2, batch(0, 1, 1, 4)));
    assert_eq!(state.expire(200, 100), 1);
    assert!(state.committed(1).is_none());
    assert_eq!(state.producer_count(), 3);
}

#[test]
fn a_snapshot_of_equal_states_has_equal_bytes_and_keeps_the_whole_window() {
    let batches: Vec<_> = (0..6).map(|i| batch(3, i, 1, i64::from(i))).collect();
    let mut state = committed(&batches);
    state.append_in_flight(batch(3, 6, 1, 6));
    let bytes = state.to_snapshot();
    let read = ProducerState::from_snapshot(&bytes, 6, 0).unwrap();
    assert_eq!(read.to_snapshot(), bytes);
    assert_eq!(read.committed(7), state.committed(7));
    assert_eq!(read.committed_end_offset(), 6);
    assert!(matches!(check(&read, &batches[1]), Verdict::Duplicate(_)));
}

#[test]
fn a_snapshot_that_kafka_wrote_is_read() {
    // One producer, as Kafka writes it: nothing follows the array.
    let ours = committed(&[batch(3, 5, 2, 40)]).to_snapshot();
    let mut bytes = ours[..6 + 4 + 46].to_vec();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[6..]) as u32;
    bytes[2..6].copy_from_slice(&crc.to_be_bytes());

    let state = ProducerState::from_snapshot(&bytes, 42, 99).unwrap();
    let entry = state.committed(7).unwrap();
    assert_eq!((entry.producer_epoch, entry.last_sequence()), (3, 6));
    assert_eq!(entry.last_seen_ms, 99);
    assert!(matches!(
        check(&state, &batch(3, 5, 2, 42)),
        Verdict::Duplicate(AppendedBatch {
            base_offset: 40,
            last_offset: 41,
            ..
        })
    ));
}

#[test]
fn damaged_snapshots_are_refused_at_every_byte_and_length() {
    let bytes = committed(&[batch(3, 5, 2, 40), batch(3, 7, 1, 42)]).to_snapshot();
    for length in 0..bytes.len() {
        assert!(ProducerState::from_snapshot(&bytes[..length], 0, 0).is_err());
    }
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        assert!(
            ProducerState::from_snapshot(&damaged, 0, 0).is_err(),
            "byte {position}"
        );
    }
}

#[test]
fn a_batch_that_comes_too_early_is_told_from_one_that_comes_again() {
    let state = committed(&[batch(1, 0, 3, 0)]);
    let is_early = |epoch, sequence| {
        let tip = state.tip(7).unwrap();
        tip.is_before_gap(&batch(epoch, sequence, 1, 3))
    };
    assert!(is_early(1, 4) && is_early(2, 1));
    for (epoch, sequence) in [(1, 3), (1, 2), (1, 0), (2, 0), (0, 9), (1, NO_SEQUENCE)] {
        assert!(!is_early(epoch, sequence), "{epoch} {sequence}");
    }
    // Sequences begin with 0 again.
    let state = committed(&[batch(1, i32::MAX - 1, 1, 0)]);
    let tip = state.tip(7).unwrap();
    assert!(tip.is_before_gap(&batch(1, 1, 1, 1)));
    assert!(!tip.is_before_gap(&batch(1, i32::MAX, 1, 1)));
    assert!(!tip.is_before_gap(&batch(1, i32::MAX - 9, 1, 1)));
}
