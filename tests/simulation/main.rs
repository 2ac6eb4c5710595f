//! The shards of one, three or five brokers under simulated clocks, disks and network: crashes at any
//! write and sync, messages lost, doubled and overtaken, links cut.
//!
//! A seed is a run. `SIMULATION_SEEDS=10000` runs more (`SIMULATION_FIRST` says from where);
//! `SIMULATION_SEED=17` runs one again.

mod model;
mod moves;
mod random;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

const SEEDS: u64 = 300;
const STEPS: u64 = 300;

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs and names what it was if it fails.
fn named(name: &str, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        eprintln!("the simulation failed: {name}");
        std::panic::resume_unwind(panic);
    }
}

/// What happened in a run, so that it is seen that something did.
#[derive(Debug, Default)]
struct Tally {
    starts: u64,
    acknowledged: u64,
    leader_epochs: i64,
    moves: u64,
    /// Replicas that rested, tick by tick.
    rested: u64,
}

/// One seed in four is a broker alone.
fn run(seed: u64) -> Tally {
    let nodes = match seed % 8 {
        0 | 4 => 1,
        7 => 5,
        _ => 3,
    };
    let mut world = World::new(seed, nodes);
    world.start().expect("an empty disk takes a broker");
    if nodes > 1 {
        // Histories begin with leaders.
        world.settle();
    }
    for _ in 0..if nodes == 1 { STEPS } else { 4 * STEPS } {
        world.step();
    }
    world.settle();
    for node in 0..nodes {
        world.restart(node, true);
    }
    world.settle();
    Tally {
        starts: world.restarts,
        rested: world.rested,
        moves: world.topics.iter().map(|topic| topic.moves.ended()).sum(),
        acknowledged: world
            .topics
            .iter()
            .map(|topic| topic.acknowledged_count)
            .sum(),
        leader_epochs: world
            .topics
            .iter()
            .map(|topic| i64::from(topic.leader_epoch()) + 1)
            .sum(),
    }
}

/// Every seed is a history of its own; what fails is told by its seed.
#[test]
fn whatever_fails_promises_are_kept() {
    if let Some(seed) = number_from_environment("SIMULATION_SEED") {
        // One run is looked into: what the brokers log is shown.
        tracing_subscriber::fmt().with_ansi(false).init();
        println!("{:?}", run(seed));
        return;
    }
    let first = number_from_environment("SIMULATION_FIRST").unwrap_or(0);
    let seeds = number_from_environment("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let mut sum = Tally::default();
    for seed in first..first + seeds {
        named(&format!("SIMULATION_SEED={seed}"), || {
            let tally = run(seed);
            sum.starts += tally.starts;
            sum.acknowledged += tally.acknowledged;
            sum.leader_epochs += tally.leader_epochs;
            sum.moves += tally.moves;
            sum.rested += tally.rested;
        });
    }
    println!("{seeds} seeds: {sum:?}");
}

/// One short history, cut by a loss of power at each operation of the disk in turn.
#[test]
fn power_may_fail_at_every_operation_of_the_disk() {
    let history = |world: &mut World| {
        for round in 0..5 {
            for topic in 0..world.topics.len() {
                world.produce(topic);
            }
            world.flush(0);
            for _ in 0..8 {
                world.sync_step(0);
                world.flush(0);
            }
            world.tick(0, if round % 4 == 3 { 1_100 } else { 100 });
        }
    };
    let mut world = World::new(7, 1);
    world.start().expect("an empty disk takes a broker");
    let first = world.nodes[0].disk.operations();
    history(&mut world);
    let operations = world.nodes[0].disk.operations() - first;
    assert!(operations > 50, "a history of {operations} operations");
    for after in 0..operations {
        named(&format!("power fails after {after} operations"), || {
            let mut world = World::new(7, 1);
            world.start().expect("an empty disk takes a broker");
            world.stop_power_after(0, after);
            history(&mut world);
            world.settle();
            world.restart(0, true);
            world.settle();
        });
    }
}
