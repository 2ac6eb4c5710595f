//! Apache Kafka's command line tools, each as its script would start it.

use std::time::Duration;

use streamgauge_tests::broker::{Broker, shared};
use streamgauge_tests::fetch::java;
use streamgauge_tests::process::run_with_input;

const TIME_MAX: Duration = Duration::from_secs(90);

#[test]
fn kafka_topics_and_kafka_configs_work() {
    let Some(tools) = Tools::ready() else { return };
    tools.run(
        "TopicCommand",
        "--create --topic tools-t --partitions 3 --config retention.ms=3600000",
        "",
    );
    let list = tools.run("TopicCommand", "--list", "");
    assert!(list.lines().any(|line| line == "tools-t"), "{list}");
    let described = tools.run("TopicCommand", "--describe --topic tools-t", "");
    assert!(
        described.contains("PartitionCount: 3") && described.contains("retention.ms=3600000"),
        "{described}"
    );
    let configs = tools.run_class(
        "kafka.admin.ConfigCommand",
        "--describe --all --entity-type topics --entity-name tools-t",
        "",
    );
    assert!(
        configs.contains("retention.ms=3600000") && configs.contains("DYNAMIC_TOPIC_CONFIG"),
        "{configs}"
    );
    assert!(
        configs.contains("segment.bytes=") && configs.contains("DEFAULT_CONFIG"),
        "{configs}"
    );
    let configs = tools.run_class(
        "kafka.admin.ConfigCommand",
        "--describe --all --entity-type brokers --entity-name 1",
        "",
    );
    assert!(configs.contains("num.partitions=4"), "{configs}");
    tools.run("TopicCommand", "--delete --topic tools-t", "");
    let versions = tools.run("BrokerApiVersionsCommand", "", "");
    assert!(
        versions.contains("Produce(0): 0 to 13") && !versions.contains("ERROR"),
        "{versions}"
    );
}

#[test]
fn console_producer_and_consumer_and_consumer_groups_work() {
    let Some(tools) = Tools::ready() else { return };
    tools.run(
        "TopicCommand",
        "--create --topic tools-c --partitions 1",
        "",
    );
    let input = "h:1,h:2\tk1\tone\nh:3\tk2\ttwo\nh:4\tk3\tthree\n";
    tools.run("ConsoleProducer", "--topic tools-c --reader-property parse.key=true --reader-property parse.headers=true --compression-codec zstd", input);
    let read = "--topic tools-c --from-beginning --max-messages 3 --timeout-ms 30000 --group tools-g \
                --formatter-property print.key=true --formatter-property print.headers=true --formatter-property print.offset=true";
    let read = tools.run("consumer.ConsoleConsumer", read, "");
    assert_eq!(
        read,
        "Offset:0\th:1,h:2\tk1\tone\nOffset:1\th:3\tk2\ttwo\nOffset:2\th:4\tk3\tthree\n"
    );
    let described = tools.run(
        "consumer.group.ConsumerGroupCommand",
        "--describe --group tools-g",
        "",
    );
    let row = described
        .lines()
        .find(|line| line.contains("tools-c"))
        .unwrap_or_else(|| panic!("{described}"));
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        columns[..6],
        ["tools-g", "tools-c", "0", "3", "3", "0"],
        "group, topic, partition, committed, end, lag"
    );
    let listed = tools.run("consumer.group.ConsumerGroupCommand", "--list", "");
    assert!(listed.lines().any(|line| line == "tools-g"), "{listed}");
    let offsets = tools.run("GetOffsetShell", "--topic tools-c --time latest", "");
    assert_eq!(offsets, "tools-c:0:3\n");
    let offsets = tools.run("GetOffsetShell", "--topic tools-c --time earliest", "");
    assert_eq!(offsets, "tools-c:0:0\n");
}

#[test]
fn kafka_producer_perf_test_works() {
    let Some(tools) = Tools::ready() else { return };
    let properties = format!(
        "bootstrap.servers={} acks=all compression.type=lz4",
        tools.broker.bootstrap()
    );
    let arguments = format!(
        "--topic tools-p --num-records 20000 --record-size 200 --throughput -1 --command-property {properties}"
    );
    let mut java = java().expect("ready");
    java.arg("org.apache.kafka.tools.ProducerPerformance")
        .args(arguments.split_whitespace());
    let said = run_with_input(java, b"", TIME_MAX).expect_success("kafka-producer-perf-test");
    assert!(said.contains("20000 records sent"), "{said}");
}

struct Tools<B> {
    broker: B,
}

impl<B: std::ops::Deref<Target = Broker>> Tools<B> {
    fn run(&self, class: &str, arguments: &str, input: &str) -> String {
        self.run_class(&format!("org.apache.kafka.tools.{class}"), arguments, input)
    }

    fn run_class(&self, class: &str, arguments: &str, input: &str) -> String {
        let mut java = java().expect("ready");
        java.arg(class)
            .args(["--bootstrap-server", &self.broker.bootstrap()])
            .args(arguments.split_whitespace());
        run_with_input(java, input.as_bytes(), TIME_MAX)
            .expect_success(&format!("{class} {arguments}"))
    }
}

impl Tools<streamgauge_tests::broker::SharedBroker> {
    fn ready() -> Option<Self> {
        java()?;
        Some(Tools {
            broker: shared("clients"),
        })
    }
}
