"""Transactions of librdkafka (through confluent-kafka) at the broker at argv[1]: its producers keep their epoch (transaction version 1)."""

import sys

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from checks import WAIT_SECONDS_MAX, equal, run, wait_for


def create(bootstrap, topic, partitions=1):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(WAIT_SECONDS_MAX)


def transactional(bootstrap, transactional_id, **settings):
    producer = Producer({
        "bootstrap.servers": bootstrap,
        "transactional.id": transactional_id,
        "linger.ms": 5,
        **{key.replace("_", "."): value for key, value in settings.items()},
    })
    producer.init_transactions(WAIT_SECONDS_MAX)
    return producer


def values(bootstrap, topic, isolation, partitions=1):
    """The values in a topic, as far as one who reads so may read, each partition's in order."""
    consumer = Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": "reader",
        "enable.auto.commit": False,
        "isolation.level": isolation,
        "enable.partition.eof": True,
    })
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    read, ended = [[] for _ in range(partitions)], set()

    def at_the_end():
        message = consumer.poll(0.1)
        if message is None:
            return False
        if message.error():
            equal(message.error().code(), KafkaError._PARTITION_EOF, "error")
            ended.add(message.partition())
        else:
            read[message.partition()].append(message.value().decode())
        return len(ended) == partitions

    wait_for(at_the_end, "the end of all partitions")
    consumer.close()
    return read


def committed_and_aborted(bootstrap):
    topic = "rdkafka-txn"
    create(bootstrap, topic, 2)
    producer = transactional(bootstrap, "rdkafka-a")
    for number in range(6):
        producer.begin_transaction()
        for partition in range(2):
            producer.produce(topic, f"{number}", partition=partition)
        if number % 2 == 0:
            producer.commit_transaction(WAIT_SECONDS_MAX)
        else:
            producer.flush(WAIT_SECONDS_MAX)
            producer.abort_transaction(WAIT_SECONDS_MAX)
    equal(values(bootstrap, topic, "read_committed", 2), [["0", "2", "4"]] * 2, "committed")
    equal(values(bootstrap, topic, "read_uncommitted", 2), [["0", "1", "2", "3", "4", "5"]] * 2, "all")


def open_transactions_are_not_read(bootstrap):
    topic = "rdkafka-open"
    create(bootstrap, topic)
    producer = transactional(bootstrap, "rdkafka-o")
    producer.begin_transaction()
    producer.produce(topic, "open")
    producer.flush(WAIT_SECONDS_MAX)
    other = Producer({"bootstrap.servers": bootstrap})
    other.produce(topic, "without")
    other.flush(WAIT_SECONDS_MAX)
    equal(values(bootstrap, topic, "read_committed"), [[]], "while it is open")
    equal(values(bootstrap, topic, "read_uncommitted"), [["open", "without"]], "all")
    producer.commit_transaction(WAIT_SECONDS_MAX)
    equal(values(bootstrap, topic, "read_committed"), [["open", "without"]], "afterwards")


def the_one_before_is_fenced(bootstrap):
    topic = "rdkafka-fenced"
    create(bootstrap, topic)
    first = transactional(bootstrap, "rdkafka-f")
    first.begin_transaction()
    first.produce(topic, "first")
    first.flush(WAIT_SECONDS_MAX)
    second = transactional(bootstrap, "rdkafka-f")
    second.begin_transaction()
    second.produce(topic, "second")
    second.commit_transaction(WAIT_SECONDS_MAX)
    try:
        first.commit_transaction(WAIT_SECONDS_MAX)
        raise AssertionError("the first committed")
    except KafkaException as error:
        code = error.args[0].code()
        equal(code in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH), True, f"{error}")
    equal(values(bootstrap, topic, "read_committed"), [["second"]], "committed")


def records_and_offsets_together(bootstrap):
    source, sink, group = "rdkafka-source", "rdkafka-sink", "rdkafka-loop"
    create(bootstrap, source)
    create(bootstrap, sink)
    producer = Producer({"bootstrap.servers": bootstrap})
    for number in range(30):
        producer.produce(source, f"{number}")
    producer.flush(WAIT_SECONDS_MAX)
    # Every second round is aborted, and begun again by another.
    done, number = 0, 0
    while done < 30:
        consumer = Consumer({
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        })
        consumer.subscribe([source])
        producer = transactional(bootstrap, "rdkafka-loop")
        messages = []

        def some():
            message = consumer.poll(0.1)
            if message is not None and not message.error():
                messages.append(message)
            return len(messages) == 5

        wait_for(some, "five records")
        producer.begin_transaction()
        for message in messages:
            producer.produce(sink, message.value() + b"!")
        producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), WAIT_SECONDS_MAX)
        if number % 2 == 0:
            producer.abort_transaction(WAIT_SECONDS_MAX)
        else:
            producer.commit_transaction(WAIT_SECONDS_MAX)
            done += 5
        number += 1
        consumer.close()
    equal(values(bootstrap, sink, "read_committed"), [[f"{number}!" for number in range(30)]], "results")
    admin = AdminClient({"bootstrap.servers": bootstrap})
    offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(WAIT_SECONDS_MAX)
    equal([found.offset for found in offsets.topic_partitions], [30], "committed offset")


if __name__ == "__main__":
    run([
        ("committed_and_aborted", committed_and_aborted),
        ("open_transactions_are_not_read", open_transactions_are_not_read),
        ("the_one_before_is_fenced", the_one_before_is_fenced),
        ("records_and_offsets_together", records_and_offsets_together),
    ], sys.argv[1])
