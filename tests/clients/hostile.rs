//! Frames that no client would send, at every API and version, while a real client goes on working.
//!
//! The broker must stay up, must answer or close (never hang on a whole frame), must not take memory for lengths that are
//! only claimed, and the other client must notice nothing.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use streamgauge_tests::broker::{Broker, Peer};
use streamgauge_tests::fetch::kcat;
use streamgauge_tests::process::{poll, run, run_with_input};
use streamgauge_tests::wire::{Wire, frame};

/// API keys of Apache Kafka 4.x lie in 0..=92; a few beyond are tried too.
const API_KEYS: std::ops::RangeInclusive<i16> = 0..=95;
const VERSION_MAX: i16 = 18;
/// What the attack may add to the broker's memory, however much the frames claim.
const MEMORY_GROWTH_MAX: u64 = 300 << 20;
const SEED: u64 = 0x5EED_CA5E;
const TIME_MAX: Duration = Duration::from_secs(60);

const API_VERSIONS: i16 = 18;
const UNSUPPORTED_VERSION: i16 = 35;

#[test]
fn hostile_frames_leave_the_broker_and_its_clients_unharmed() {
    let mut broker = Broker::start("hostile");
    let before = broker.resident_bytes();
    let over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let neighbour = scope.spawn(|| neighbour(&broker, &over));
        let attack = scope.spawn(|| attack(&broker));
        let outcome = attack.join();
        over.store(true, Ordering::Relaxed);
        let rounds = neighbour.join().expect("the neighbour noticed");
        outcome.expect("the attack ended as it should");
        rounds
    });
    broker.assert_alive();
    assert!(rounds > 0 || kcat().is_none(), "the neighbour had no turn");
    let growth = broker.resident_bytes_max().saturating_sub(before);
    // A JVM takes its heap when it likes; the bound is ours.
    assert!(
        Peer::chosen() == Peer::Kafka || growth < MEMORY_GROWTH_MAX,
        "memory grew by {growth} bytes"
    );
}

#[test]
fn api_versions_of_an_unknown_version_gets_the_whole_list_in_version_0() {
    let broker = Broker::start("versions");
    let known = {
        let mut wire = Wire::connect(broker.address());
        wire.request(API_VERSIONS, 0, b"");
        wire.answer().expect("an answer to version 0")
    };
    for version in [5, 99, i16::MAX, -1] {
        let mut wire = Wire::connect(broker.address());
        wire.request(API_VERSIONS, version, b"\x00");
        let answer = wire
            .answer()
            .unwrap_or_else(|| panic!("closed on version {version}"));
        assert_eq!(answer[..4], 7_i32.to_be_bytes(), "correlation id");
        assert_eq!(
            answer[4..6],
            UNSUPPORTED_VERSION.to_be_bytes(),
            "error of version {version}"
        );
        let count = i32::from_be_bytes(answer[6..10].try_into().expect("four bytes"));
        if broker_is_ours() {
            assert_eq!(
                answer[6..],
                known[6..],
                "version {version}: the same keys as version 0 gets"
            );
        }
        assert_eq!(answer.len(), 10 + 6 * count as usize, "a version 0 body");
        // The connection is still good for the request that follows.
        wire.request(API_VERSIONS, 0, b"");
        assert!(wire.answer().is_some(), "closed after version {version}");
    }
}

#[test]
fn any_other_unsupported_version_closes_the_connection() {
    let mut broker = Broker::start("unsupported");
    for (key, version) in [(3, 99), (0, 2), (1, 3), (1, 99), (500, 0), (-1, 0)] {
        let mut wire = Wire::connect(broker.address());
        wire.request(key, version, b"\x00\x00\x00\x00");
        assert_eq!(wire.answer(), None, "key {key} version {version}");
    }
    broker.assert_alive();
}

fn broker_is_ours() -> bool {
    Peer::chosen() == Peer::Streamgauge
}

/// Produces and consumes with kcat until told to stop; each round must bring back what it sent.
fn neighbour(broker: &Broker, over: &AtomicBool) -> usize {
    let Some(kcat) = kcat() else { return 0 };
    for round in 0..10_000 {
        if over.load(Ordering::Relaxed) {
            return round;
        }
        let mut produce = Command::new(kcat);
        produce.args([
            "-P",
            "-b",
            &broker.bootstrap(),
            "-t",
            "neighbour",
            "-p",
            "0",
            "-X",
            "enable.idempotence=true",
        ]);
        run_with_input(produce, format!("round {round}").as_bytes(), TIME_MAX)
            .expect_success("the neighbour's produce");
        let mut consume = Command::new(kcat);
        consume.args([
            "-C",
            "-b",
            &broker.bootstrap(),
            "-t",
            "neighbour",
            "-p",
            "0",
            "-e",
            "-q",
            "-o",
            &round.to_string(),
        ]);
        let read = run(consume, TIME_MAX).expect_success("the neighbour's consume");
        assert_eq!(read, format!("round {round}\n"));
    }
    panic!("the attack never ended");
}

fn attack(broker: &Broker) {
    let mut random = Random(SEED);
    // Connections that never say a whole word stay open while all the rest happens.
    let mut half_open: Vec<Wire> = (0..50).map(|_| Wire::connect(broker.address())).collect();
    for (index, wire) in half_open.iter_mut().enumerate() {
        wire.send(&frame(API_VERSIONS, 0, 1, b"")[..index % 12]);
    }
    for key in API_KEYS {
        for version in 0..=VERSION_MAX {
            let mut wire = Wire::connect(broker.address());
            let body = hostile_body(&mut random);
            wire.send(&frame(key, version, 1, &body));
            wire.finish();
            // Either is right: an error for a body that cannot be read, or a closed connection.
            drop(wire.answer());
        }
    }
    for claimed in [
        0,
        1,
        3,
        7,
        1 << 20,
        100 << 20,
        (100 << 20) + 1,
        i32::MAX,
        -1,
        i32::MIN,
    ] {
        for _ in 0..3 {
            let mut wire = Wire::connect(broker.address());
            wire.send(&claimed.to_be_bytes());
            wire.send(&random.bytes(64));
            wire.finish();
            drop(wire.answer());
        }
    }
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for plain in [
        &tls_hello[..],
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\0\0\0\0",
        b"SSH-2.0-x\r\n",
    ] {
        let mut wire = Wire::connect(broker.address());
        wire.send(plain);
        wire.send(&random.bytes(600));
        wire.finish();
        drop(wire.answer());
    }
    // Whole frames promised and not sent: the broker must not set memory aside for them. (Apache Kafka does, and runs out.)
    let promises_count = if broker_is_ours() { 50 } else { 0 };
    let mut promises: Vec<Wire> = (0..promises_count)
        .map(|_| Wire::connect(broker.address()))
        .collect();
    for wire in &mut promises {
        wire.send(&(90_i32 << 20).to_be_bytes());
        wire.send(&frame(0, 9, 1, b"")[4..]);
    }
    drop(promises);
    drop(half_open);
    let answered = poll(TIME_MAX, || {
        let mut wire = Wire::connect(broker.address());
        wire.request(API_VERSIONS, 0, b"");
        wire.answer()
    });
    assert!(answered.is_some(), "no answer after the attack");
}

/// Bodies that go wrong in different ways: noise, nothing, a huge count in each of the protocol's ways to write one.
fn hostile_body(random: &mut Random) -> Vec<u8> {
    let noise_bytes = random.below(200);
    let noise = random.bytes(noise_bytes);
    let claimed: &[u8] = match random.below(8) {
        0 => b"",
        1 => b"\x7f\xff\xff\xff",
        2 => b"\x00\xff\xff\xff\xff\x07",
        3 => b"\x00\x00\x00\x00\x00\x7f\xff\xff\xff",
        4 => b"\xff\xff\xff\xff\x7f\xff\xff\xff",
        5 => b"\x00\x00\xff\xff\x00\x00\x75\x30\x7f\xff\xff\xff",
        6 => b"\x02\x02a\xff\xff\xff\xff\x0f",
        _ => b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    };
    [claimed, &noise].concat()
}

/// SplitMix64: small, seeded, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
