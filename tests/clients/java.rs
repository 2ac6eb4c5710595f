//! Apache Kafka's Java producer, consumer and admin clients; the checks are in `java/Client.java`, and in
//! `java/Earlier.java` for the versions that are still about.

use std::time::Duration;

use streamgauge_tests::broker::shared;
use streamgauge_tests::fetch::{clients_dir, java, java_of};
use streamgauge_tests::process::run;

const TIME_MAX: Duration = Duration::from_secs(300);

#[test]
fn the_java_clients_work() {
    let Some(mut java) = java() else { return };
    let broker = shared("clients");
    java.arg(clients_dir().join("java/Client.java"))
        .arg(broker.bootstrap());
    println!("{}", run(java, TIME_MAX).expect_success("Client.java"));
}

/// The earliest that Apache Kafka 4 serves (KIP-896), and the last of 2 and of those that know features from 1 up only.
const EARLIER: [&str; 3] = ["2.1.1", "2.8.2", "3.7.2"];

#[test]
fn earlier_java_clients_work() {
    let broker = shared("clients");
    for version in EARLIER {
        let Some(mut java) = java_of(version) else {
            return;
        };
        java.arg(clients_dir().join("java/Earlier.java"))
            .arg(broker.bootstrap());
        println!("{}", run(java, TIME_MAX).expect_success(version));
    }
}
