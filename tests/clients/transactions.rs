//! Transactions of librdkafka and the Java clients, and what Kafka's tools see of them.

use crate::dump_log::{dump, logs_of};
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
    let mut broker = Broker::start_with("transactions-java", &SETTINGS);
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
    let features = features(&broker);
    assert!(
        features.contains("Feature: transaction.version")
            && features.contains("FinalizedVersionLevel: 2"),
        "{features}"
    );
    // What the coordinators have written is Kafka's.
    broker.stop();
    let decoded = dump(
        "--transaction-log-decoder",
        &logs_of(&broker.data_dir(), "__transaction_state-"),
    );
    for wanted in [
        "\"transactionalId\":\"java-loop\"",
        "\"transactionStatus\":2",
        "\"topic\":\"__consumer_offsets\"",
        "\"clientTransactionVersion\":2",
    ] {
        let decoded = decoded.replace("transactional_id", "transactionalId");
        assert!(decoded.contains(wanted), "{wanted} is not in {decoded}");
    }
}

fn features(broker: &Broker) -> String {
    let mut java = java().expect("asked before");
    java.arg("org.apache.kafka.tools.FeatureCommand").args([
        "--bootstrap-server",
        &broker.bootstrap(),
        "describe",
    ]);
    run(java, TIME_MAX).expect_success("kafka-features describe")
}

fn tool(broker: &Broker, arguments: &str) -> String {
    let mut java = java().expect("asked before");
    java.arg("org.apache.kafka.tools.TransactionsCommand")
        .args(["--bootstrap-server", &broker.bootstrap()])
        .args(arguments.split_whitespace());
    run(java, TIME_MAX).expect_success(&format!("kafka-transactions {arguments}"))
}
