//! The seed case through real clients, in peace and with the broker killed on the way; see `seed_case.py`.

use std::time::Duration;

use streamgauge_tests::broker::{Broker, only_streamgauge};
use streamgauge_tests::seed_case::{ORDERS, SeedCase};

const TIME_MAX: Duration = Duration::from_secs(280);

#[test]
fn the_seed_case_comes_out_exact() {
    seed_case("seed-case", 0);
}

#[test]
fn the_seed_case_comes_out_exact_through_five_kills() {
    seed_case("seed-case-kills", 5);
}

fn seed_case(name: &str, kills: usize) {
    if only_streamgauge("derived topics") {
        return;
    }
    let mut broker = Broker::start(name);
    let Some(mut case) = SeedCase::start(&broker.bootstrap(), None, 1, TIME_MAX) else {
        return;
    };
    let mut killed = 0;
    while killed < kills && case.wait_until_produced(ORDERS * (killed + 1) / (kills + 1)) {
        broker.kill_and_restart();
        killed += 1;
    }
    case.finish();
    assert_eq!(killed, kills, "kills");
    broker.assert_alive();
}
