//! The shard under a simulated clock and disk: one node, crashes at any write and sync.
//!
//! A seed is a run. `SIMULATION_SEEDS=10000` runs more; `SIMULATION_SEED=17` runs one again.

mod model;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

const SEEDS: u64 = 200;
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

fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    world.start().expect("an empty disk takes a broker");
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.restart(true);
    world.settle();
    world.restarts
}

/// Every seed is a history of its own; what fails is told by its seed.
#[test]
fn whatever_fails_promises_are_kept() {
    if let Some(seed) = number_from_environment("SIMULATION_SEED") {
        run(seed);
        return;
    }
    let seeds = number_from_environment("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let mut restarts = 0;
    for seed in 0..seeds {
        named(&format!("SIMULATION_SEED={seed}"), || restarts += run(seed));
    }
    println!("{seeds} seeds, {restarts} starts");
}

/// One short history, cut by a loss of power at each operation of the disk in turn.
#[test]
fn power_may_fail_at_every_operation_of_the_disk() {
    let history = |world: &mut World| {
        for round in 0..5 {
            for topic in 0..world.topics.len() {
                world.produce(topic);
            }
            world.flush();
            for _ in 0..8 {
                world.sync_step();
                world.flush();
            }
            world.tick(if round % 4 == 3 { 1_100 } else { 100 });
        }
    };
    let mut world = World::new(7);
    world.start().expect("an empty disk takes a broker");
    let first = world.disk.operations();
    history(&mut world);
    let operations = world.disk.operations() - first;
    assert!(operations > 50, "a history of {operations} operations");
    for after in 0..operations {
        named(&format!("power fails after {after} operations"), || {
            let mut world = World::new(7);
            world.start().expect("an empty disk takes a broker");
            world.stop_power_after(after);
            history(&mut world);
            world.settle();
            world.restart(true);
            world.settle();
        });
    }
}
