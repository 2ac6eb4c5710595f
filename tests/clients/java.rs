//! Apache Kafka's Java producer, consumer and admin clients; the checks are in `java/Client.java`.

use std::time::Duration;

use streamgauge_tests::broker::shared;
use streamgauge_tests::fetch::{clients_dir, java};
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
