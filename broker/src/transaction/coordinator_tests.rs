use super::*;

const ID: &str = "t";
const TIMEOUT_MS: i32 = 60_000;

struct World {
    machine: TransactionMachine,
    log: Vec<TransactionRecord>,
    effects: Vec<Effect>,
    now_ms: i64,
    next_producer_id: i64,
}

fn config() -> TransactionConfig {
    TransactionConfig {
        writings: Arc::default(),
        abort_interval_ms: 10_000,
        expiration_ms: 1_000_000,
        expiration_interval_ms: 100_000,
    }
}

fn producer(id: i64, epoch: i16) -> Producer {
    Producer { id, epoch }
}

fn orders(partition: i32) -> TopicPartition {
    ("orders".to_owned(), partition)
}

impl World {
    fn new() -> Self {
        Self {
            machine: TransactionMachine::new(config(), 0),
            log: Vec::new(),
            effects: Vec::new(),
            now_ms: 0,
            next_producer_id: 1_000,
        }
    }

    fn take(&mut self, decision: Decision) -> Option<Reply> {
        self.log.extend(decision.records);
        self.effects.extend(decision.effects);
        decision.replies.into_iter().next().map(|(_, reply)| reply)
    }

    /// As the service does it: with a new producer id where one is asked for.
    fn ask(&mut self, request: Request) -> Reply {
        let decision = self.machine.handle(request.clone(), 1, self.now_ms);
        let reply = self.take(decision).unwrap();
        if !matches!(reply, Reply::NeedsProducerId) {
            return reply;
        }
        let mut request = request;
        let fresh = self.next_producer_id;
        self.next_producer_id += 1;
        if let Request::Init {
            new_producer_id, ..
        }
        | Request::End {
            new_producer_id, ..
        } = &mut request
        {
            *new_producer_id = Some(fresh);
        }
        let decision = self.machine.handle(request, 1, self.now_ms);
        self.take(decision).unwrap()
    }

    fn init(&mut self, known: Option<Producer>) -> Result<Producer, ResponseError> {
        let request = Request::Init {
            transactional_id: ID.into(),
            timeout_ms: TIMEOUT_MS,
            known,
            new_producer_id: None,
        };
        match self.ask(request) {
            Reply::Producer(result) => result.map(Option::unwrap),
            other => panic!("{other:?}"),
        }
    }

    fn add(&mut self, producer: Producer, partition: i32) -> Result<(), ResponseError> {
        let request = Request::AddPartitions {
            transactional_id: ID.into(),
            producer,
            partitions: vec![orders(partition)],
            client_version: 2,
        };
        match self.ask(request) {
            Reply::Added(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn verify(&mut self, producer: Producer, partition: i32) -> Result<(), ResponseError> {
        let request = Request::Verify {
            transactional_id: ID.into(),
            producer,
            partitions: vec![orders(partition)],
        };
        match self.ask(request) {
            Reply::Verified(Ok(verified)) => verified[0].1.map_or(Ok(()), Err),
            Reply::Verified(Err(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn end(
        &mut self,
        producer: Producer,
        committed: bool,
        client_version: i16,
    ) -> Result<Option<Producer>, ResponseError> {
        let request = Request::End {
            transactional_id: ID.into(),
            producer,
            committed,
            client_version,
            new_producer_id: None,
        };
        match self.ask(request) {
            Reply::Producer(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Carries out what is to be done, and returns the markers.
    fn write_markers(&mut self) -> Vec<(Producer, bool, Vec<TopicPartition>)> {
        let mut written = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::WriteMarkers {
                    transactional_id,
                    producer,
                    committed,
                    partitions,
                    writing,
                    ..
                } => {
                    written.push((producer, committed, partitions));
                    self.ask(Request::MarkersWritten {
                        transactional_id,
                        writing,
                    });
                }
                Effect::TimeOut { transactional_id } => {
                    self.ask(Request::TimeOut {
                        transactional_id,
                        new_producer_id: 5_000,
                    });
                }
            }
        }
        written
    }

    fn current(&self) -> &Transaction {
        &self.machine.transactions[ID]
    }

    /// As after a failover: what the log says, and nothing else.
    fn reload(&mut self) {
        self.reload_with(config());
    }

    fn reload_with(&mut self, config: TransactionConfig) {
        let mut machine = TransactionMachine::new(config, self.now_ms);
        for record in &self.log {
            machine.replay(Entry::Record(record.clone()), self.now_ms);
        }
        self.machine = machine;
        self.effects.clear();
        let decision = self.machine.loaded(self.now_ms);
        self.take(decision);
    }

    fn set_epoch(&mut self, epoch: i16) {
        self.machine
            .transactions
            .get_mut(ID)
            .unwrap()
            .producer_epoch = epoch;
    }
}

#[test]
fn a_transaction_goes_through_its_states_and_the_epoch_is_raised_at_its_end() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    assert_eq!(first, producer(1_000, 0));
    world.add(first, 1).unwrap();
    world.add(first, 0).unwrap();
    assert_eq!(world.verify(first, 1), Ok(()));
    assert_eq!(
        world.verify(first, 2),
        Err(ResponseError::TransactionAbortable)
    );
    assert_eq!(world.end(first, true, 2), Ok(Some(producer(1_000, 1))));
    assert_eq!(world.current().state, State::PrepareCommit);
    // Until the markers are written nobody goes on.
    let concurrent = Some(ResponseError::ConcurrentTransactions);
    assert_eq!(world.add(producer(1_000, 1), 0).err(), concurrent);
    assert_eq!(world.init(None).err(), concurrent);
    assert_eq!(world.end(first, true, 2).err(), concurrent);
    assert_eq!(world.verify(producer(1_000, 1), 0).err(), concurrent);
    let expected = (producer(1_000, 1), true, vec![orders(0), orders(1)]);
    assert_eq!(world.write_markers(), [expected]);
    assert_eq!(world.current().state, State::CompleteCommit);
    assert!(world.current().partitions.is_empty());
    // The answer was lost, and the producer asks again.
    assert_eq!(world.end(first, true, 2), Ok(Some(producer(1_000, 1))));
    assert_eq!(
        world.end(first, false, 2),
        Err(ResponseError::InvalidTxnState)
    );
}

#[test]
fn producers_of_older_protocols_keep_their_epoch() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    assert_eq!(
        world.end(first, true, 0),
        Err(ResponseError::InvalidTxnState),
        "nothing has been begun"
    );
    world.add(first, 0).unwrap();
    assert_eq!(world.end(first, false, 0), Ok(None));
    assert_eq!(
        world.end(first, false, 0),
        Err(ResponseError::ConcurrentTransactions)
    );
    assert_eq!(world.write_markers(), [(first, false, vec![orders(0)])]);
    assert_eq!(world.end(first, false, 0), Ok(None), "asked again");
    assert_eq!(
        world.end(first, true, 0),
        Err(ResponseError::InvalidTxnState)
    );
    world.add(first, 0).unwrap();
    assert_eq!(world.end(first, true, 0), Ok(None));
}

/// The table in Kafka's `TransactionCoordinator`.
#[test]
fn transactions_that_have_not_begun_end_as_in_kafka() {
    let fenced = || Err(ResponseError::ProducerFenced);
    let invalid = || Err(ResponseError::InvalidTxnState);
    for (state, committed, retried, current) in [
        (State::Empty, false, fenced(), Ok(Some(producer(1_000, 6)))),
        (State::Empty, true, fenced(), invalid()),
        (
            State::CompleteAbort,
            false,
            Ok(Some(producer(1_000, 5))),
            Ok(Some(producer(1_000, 6))),
        ),
        (State::CompleteAbort, true, invalid(), invalid()),
        (
            State::CompleteCommit,
            false,
            invalid(),
            Ok(Some(producer(1_000, 6))),
        ),
        (
            State::CompleteCommit,
            true,
            Ok(Some(producer(1_000, 5))),
            invalid(),
        ),
    ] {
        let mut world = World::new();
        world.init(None).unwrap();
        let transaction = world.machine.transactions.get_mut(ID).unwrap();
        transaction.state = state;
        transaction.producer_epoch = 5;
        let what = format!("{state:?}, committed: {committed}");
        let answer = world.end(producer(1_000, 4), committed, 2);
        assert_eq!(answer, retried, "{what}, repeated");
        let answer = world.end(producer(1_000, 5), committed, 2);
        assert_eq!(answer, current, "{what}");
        if answer.is_ok() {
            assert_eq!(world.write_markers(), [(producer(1_000, 6), false, vec![])]);
            assert_eq!(world.current().state, State::CompleteAbort);
        }
    }
}

#[test]
fn another_producer_fences_the_one_before() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.add(first, 0).unwrap();
    assert_eq!(world.init(None), Err(ResponseError::ConcurrentTransactions));
    assert_eq!(
        world.write_markers(),
        [(producer(1_000, 1), false, vec![orders(0)])]
    );
    let second = world.init(None).unwrap();
    assert_eq!(second, producer(1_000, 2));
    let fenced = Err(ResponseError::ProducerFenced);
    assert_eq!(world.add(first, 0), fenced);
    assert_eq!(world.verify(first, 0), fenced);
    assert_eq!(world.end(first, true, 0).map(|_| ()), fenced);
    assert_eq!(world.end(first, true, 2).map(|_| ()), fenced);
    assert_eq!(
        world.init(Some(first)).map(|_| ()),
        fenced,
        "an epoch that is no longer its own"
    );
    assert_eq!(
        world.add(producer(7, 0), 0),
        Err(ResponseError::InvalidProducerIdMapping)
    );
}

#[test]
fn a_producer_goes_on_after_an_error_and_may_ask_twice() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    let next = world.init(Some(first)).unwrap();
    assert_eq!(next, producer(1_000, 1));
    assert_eq!(world.init(Some(first)), Ok(next), "the answer was lost");
    assert_eq!(world.init(None), Ok(producer(1_000, 2)));
    assert_eq!(
        world.init(Some(next)),
        Err(ResponseError::ProducerFenced),
        "another has begun"
    );
}

#[test]
fn exhausted_epochs_are_followed_by_another_producer_id() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.set_epoch(i16::MAX - 1);
    let last = producer(first.id, i16::MAX - 1);
    world.add(last, 0).unwrap();
    let next = producer(1_001, 0);
    assert_eq!(world.end(last, true, 2), Ok(Some(next)));
    let marker = producer(first.id, i16::MAX);
    assert_eq!(world.write_markers(), [(marker, true, vec![orders(0)])]);
    assert_eq!(world.end(last, true, 2), Ok(Some(next)), "asked again");
    world.add(next, 0).unwrap();
    assert_eq!(world.end(next, true, 2), Ok(Some(producer(1_001, 1))));
    world.write_markers();

    world.set_epoch(i16::MAX - 1);
    let last = producer(1_001, i16::MAX - 1);
    let rotated = world.init(Some(last)).unwrap();
    assert_eq!(rotated, producer(1_002, 0));
}

#[test]
fn what_was_decided_is_carried_out_after_a_failover() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.add(first, 0).unwrap();
    world.end(first, true, 2).unwrap();
    world.reload();
    assert_eq!(world.current().state, State::PrepareCommit);
    let marker = (producer(1_000, 1), true, vec![orders(0)]);
    assert_eq!(world.write_markers(), [marker]);
    world.reload();
    assert_eq!(world.current().state, State::CompleteCommit);
    assert!(world.effects.is_empty());
}

/// A producer that keeps its epoch is the same in its next transaction.
#[test]
fn what_is_said_late_of_markers_ends_no_other_transaction() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.add(first, 0).unwrap();
    world.end(first, true, 0).unwrap();
    let writing_of = |effect: &Effect| match effect {
        Effect::WriteMarkers { writing, .. } => *writing,
        other => panic!("{other:?}"),
    };
    let before = writing_of(&world.effects[0]);
    let say = |world: &mut World, writing| {
        world.ask(Request::MarkersWritten {
            transactional_id: ID.into(),
            writing,
        });
        world.current().state
    };
    // Its log is read again, and the markers are written once more: the first writing no longer counts.
    let config = world.machine.config.clone();
    world.reload_with(config);
    let after = writing_of(&world.effects[0]);
    assert_eq!(say(&mut world, before), State::PrepareCommit);
    assert_eq!(say(&mut world, after), State::CompleteCommit);
    // The next has been decided, and its markers are on their way.
    world.add(first, 0).unwrap();
    world.end(first, true, 0).unwrap();
    for late in [before, after] {
        assert_eq!(say(&mut world, late), State::PrepareCommit);
    }
}

#[test]
fn transactions_that_stay_open_are_aborted() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.add(first, 0).unwrap();
    world.now_ms = i64::from(TIMEOUT_MS);
    let decision = world.machine.tick(world.now_ms);
    world.take(decision);
    assert_eq!(world.current().state, State::Ongoing);
    world.now_ms += 20_000;
    let decision = world.machine.tick(world.now_ms);
    world.take(decision);
    assert_eq!(
        world.write_markers(),
        [(producer(1_000, 1), false, vec![orders(0)])]
    );
    assert_eq!(world.current().state, State::CompleteAbort);
    assert_eq!(
        world.end(first, true, 2),
        Err(ResponseError::InvalidTxnState),
        "it is told that it was aborted"
    );

    // Without an epoch left.
    world.set_epoch(i16::MAX - 1);
    world.add(producer(1_000, i16::MAX - 1), 0).unwrap();
    world.now_ms += 100_000;
    let decision = world.machine.tick(world.now_ms);
    world.take(decision);
    world.write_markers();
    let marker = (producer(1_000, i16::MAX), false, vec![orders(0)]);
    assert_eq!(world.write_markers(), [marker]);
    assert_eq!(producer_of(world.current()), producer(5_000, 0));
}

#[test]
fn ids_that_are_not_used_are_forgotten() {
    let mut world = World::new();
    let first = world.init(None).unwrap();
    world.add(first, 0).unwrap();
    world.now_ms = 2_000_000;
    world.machine.next_abort_check_ms = i64::MAX;
    let decision = world.machine.tick(world.now_ms);
    world.take(decision);
    assert!(world.machine.transactions.contains_key(ID), "it is open");
    world.end(first, true, 2).unwrap();
    world.write_markers();
    world.now_ms += 1_200_000;
    let decision = world.machine.tick(world.now_ms);
    world.take(decision);
    assert!(world.machine.transactions.is_empty());
    world.reload();
    assert!(world.machine.transactions.is_empty());
}
