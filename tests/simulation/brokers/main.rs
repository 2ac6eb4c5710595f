//! Whole brokers under simulated time, network and disks: shards, Raft and logs with the controller, the group coordinators and the
//! aggregations on top, as the process runs them but for sockets and threads.
//!
//! A seed is a run. `SIMULATION_SEEDS=1000` runs more (`SIMULATION_FIRST` says from where); `SIMULATION_SEED=17` runs one again.

mod client;
mod groups;
mod host;
mod network;
mod node;
#[path = "../random.rs"]
mod random;
mod topics;
mod transfers;
mod windows;
mod world;

use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Tally, World, watch_panics};

const SEEDS: u64 = 60;

/// How long things go wrong in a run, in simulated milliseconds.
const TROUBLE_MS: u64 = 40_000;

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One seed in four is a broker alone. Returns what happened, and a digest of all that was sent.
fn run(seed: u64, trouble_ms: u64) -> (Tally, u64) {
    static PANICS_WATCHED: Once = Once::new();
    PANICS_WATCHED.call_once(watch_panics);
    let nodes = match seed % 8 {
        0 | 4 => 1,
        7 => 5,
        _ => 3,
    };
    // What a thread has drawn from the system for its hash maps it keeps: a run has its own.
    let thread = std::thread::Builder::new().name(format!("seed {seed}"));
    let running = thread.spawn(move || {
        host::begin(seed);
        let mut world = World::new(seed, nodes);
        world.begin();
        world.trouble(trouble_ms);
        world.settle();
        let tally = world.finish();
        (tally, world.digest())
    });
    match running.expect("a thread").join() {
        Ok(ended) => ended,
        Err(panic) => {
            eprintln!("the simulation failed: SIMULATION_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Every seed is a history of its own; what fails is told by its seed.
#[test]
fn whatever_fails_promises_are_kept() {
    if let Some(seed) = number_from_environment("SIMULATION_SEED") {
        // One run is looked into: what the brokers log is shown.
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_env_filter(
                tracing_subscriber::EnvFilter::builder()
                    .with_default_directive(tracing_subscriber::filter::LevelFilter::INFO.into())
                    .from_env_lossy(),
            )
            .init();
        println!("{:?}", run(seed, TROUBLE_MS));
        return;
    }
    let first = number_from_environment("SIMULATION_FIRST").unwrap_or(0);
    let seeds = number_from_environment("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let (tally, _) = run(seed, TROUBLE_MS);
                    sum.lock().expect("no run has failed").add(&tally);
                }
            });
        }
    });
    println!(
        "{seeds} seeds: {:?}",
        sum.into_inner().expect("no run has failed")
    );
}

/// Or a seed that fails could not be looked into.
#[test]
fn a_seed_is_one_run() {
    for seed in [3, 4] {
        let once = run(seed, 8_000);
        let again = run(seed, 8_000);
        assert_eq!(once, again, "seed {seed}");
        assert_ne!(
            once.1,
            run(seed + 8, 8_000).1,
            "another seed is another run"
        );
    }
}
