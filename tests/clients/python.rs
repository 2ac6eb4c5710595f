//! The Python clients: librdkafka through confluent-kafka, and kafka-python.

use std::process::Command;
use std::time::Duration;

use streamgauge_tests::broker::shared;
use streamgauge_tests::fetch::{clients_dir, python};
use streamgauge_tests::process::run;

const TIME_MAX: Duration = Duration::from_secs(300);

#[test]
fn librdkafka_works() {
    run_checks("librdkafka.py");
}

#[test]
fn kafka_python_works() {
    run_checks("kafka_python.py");
}

fn run_checks(program: &str) {
    let Some(python) = python() else { return };
    let broker = shared("clients");
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(clients_dir().join("python").join(program))
        .arg(broker.bootstrap());
    println!("{}", run(command, TIME_MAX).expect_success(program));
}
