//! Transactions of librdkafka and the Java clients, and what Kafka's tools see of them.

use std::process::Command;
use std::time::Duration;

use streamgauge_tests::broker::Broker;
use streamgauge_tests::fetch::{clients_dir, java, python};
use streamgauge_tests::process::run;

const TIME_MAX: Duration = Duration::from_secs(300);

/// Those that stay open are looked for often, and a single broker is enough.
const SETTINGS: [&str; 3] = [
    "transaction.abort.timed.out.transaction.cleanup.interval.ms=200",
    "transaction.state.log.replication.factor=1",
    "transaction.state.log.min.isr=1",
];

#[test]
fn librdkafka_transactions_work() {
    let Some(python) = python() else { return };
    let broker = Broker::start_with("transactions-python", &SETTINGS);
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(clients_dir().join("python/transactions.py"))
        .arg(broker.bootstrap());
    println!(
        "{}",
        run(command, TIME_MAX).expect_success("transactions.py")
    );
}

#[test]
fn java_transactions_and_kafka_transactions_work() {
    let Some(mut program) = java() else { return };
    let broker = Broker::start_with("transactions-java", &SETTINGS);
    program
        .arg(clients_dir().join("java/Transactions.java"))
        .arg(broker.bootstrap());
    println!(
        "{}",
        run(program, TIME_MAX).expect_success("Transactions.java")
    );
    let listed = tool(&broker, "list");
    assert!(
        listed.contains("java-loop") && listed.contains("CompleteCommit"),
        "{listed}"
    );
    let described = tool(&broker, "describe --transactional-id java-late");
    assert!(described.contains("CompleteAbort"), "{described}");
    let hanging = tool(&broker, "find-hanging --broker-id 1");
    assert_eq!(hanging.lines().count(), 1, "{hanging}");
}

fn tool(broker: &Broker, arguments: &str) -> String {
    let mut java = java().expect("asked before");
    java.arg("org.apache.kafka.tools.TransactionsCommand")
        .args(["--bootstrap-server", &broker.bootstrap()])
        .args(arguments.split_whitespace());
    run(java, TIME_MAX).expect_success(&format!("kafka-transactions {arguments}"))
}
