"""Writes and reads in transactions, through faults, with librdkafka, and prints a history; tests/src/transactions.rs says what the lines
mean.

    transactions.py BOOTSTRAP TOPIC PARTITIONS PRODUCERS CONSUMERS

Producers write a value to every partition in each transaction, and abort every fourth. Members of a group copy what is committed to
the topic TOPIC-out, with their offsets in the same transactions. The end of standard input ends the writing; then the group copies
the rest, and both topics are read.
"""

import os
import sys
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

PAUSE_SECONDS = 0.01
CALL_SECONDS = 10
CALLS_SECONDS_MAX = 90
READ_SECONDS_MAX = 60
COPY_VALUES_MAX = 200
ABORT_EVERY = 4
GROUP = "copies"
# When all brokers are down librdkafka 2.16 forgets them and begins with its bootstrap addresses again, but asks the coordinator of a
# group that it remembers as one of the forgotten: send_offsets_to_transaction then waits for ever, whatever its timeout.
STAYING = {"metadata.recovery.strategy": "none"}

bootstrap, topic = sys.argv[1], sys.argv[2]
partitions, producers, consumers = (int(word) for word in sys.argv[3:6])
copies = topic + "-out"
printing = threading.Lock()
writing_ends = threading.Event()
reading_ends = threading.Event()
failures = []


def say(*words):
    with printing:
        print(*words, flush=True)


def insist(call):
    """Calls until it succeeds or cannot any more."""
    deadline = time.monotonic() + CALLS_SECONDS_MAX
    while True:
        try:
            return call()
        except KafkaException as failed:
            if not failed.args[0].retriable() or time.monotonic() > deadline:
                raise


def begun(transactional_id):
    producer = Producer({
        "bootstrap.servers": bootstrap,
        "client.id": transactional_id,
        "transactional.id": transactional_id,
        **STAYING,
        "linger.ms": 2,
        "log_level": 7,
        "debug": "eos",
    })
    insist(lambda: producer.init_transactions(CALL_SECONDS))
    return producer


def end(producer, commits):
    """Whether it was committed; `None` and what happened if that is not known, and the producer cannot go on."""
    try:
        if commits:
            insist(lambda: producer.commit_transaction(CALL_SECONDS))
        else:
            insist(lambda: producer.abort_transaction(CALL_SECONDS))
        return commits, None
    except KafkaException as failed:
        if not failed.args[0].txn_requires_abort():
            return None, failed
    try:
        insist(lambda: producer.abort_transaction(CALL_SECONDS))
        return False, None
    except KafkaException as failed:
        return None, failed


def write(name):
    producer, number = None, 0
    while not writing_ends.is_set():
        producer = producer or begun(f"writer-{name}")
        producer.begin_transaction()
        for partition in range(partitions):
            say("send", name, partition, number)
            producer.produce(topic, f"{name}:{partition}:{number}".encode(), partition=partition)
        committed, failed = end(producer, number % ABORT_EVERY != ABORT_EVERY - 1)
        for partition in range(partitions):
            if committed:
                say("ack", name, partition, number, -1)
            elif committed is False:
                say("abort", name, partition, number)
            else:
                say("fail", name, partition, number, failed)
        if failed:
            say("note", "writer", name, failed)
            producer = None
        number += 1
        time.sleep(PAUSE_SECONDS)


def reader(group, **settings):
    return Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        **STAYING,
        "log_level": 2,
        **settings,
    })


def copy(name):
    consumer, producer = reader(GROUP), begun(f"copier-{name}")
    consumer.subscribe([topic])
    while not reading_ends.is_set():
        messages = [message for message in consumer.consume(COPY_VALUES_MAX, 0.2) if not message.error()]
        if not messages:
            continue
        failed, committed = None, False
        try:
            producer.begin_transaction()
            offsets = {}
            for message in messages:
                say("read", name, message.partition(), message.offset(), message.value().decode())
                producer.produce(copies, message.value(), partition=message.partition())
                offsets[message.partition()] = message.offset() + 1
            offsets = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
            group = consumer.consumer_group_metadata()
            insist(lambda: producer.send_offsets_to_transaction(offsets, group, CALL_SECONDS))
            committed, failed = end(producer, True)
        except KafkaException as error:
            say("note", "copier", name, error)
            if error.args[0].txn_requires_abort():
                _, failed = end(producer, False)
            else:
                failed = error
        if failed:
            say("note", "copier", name, failed)
            producer = begun(f"copier-{name}")
        if not committed:
            # What was read has not been copied: a new member begins where the group is.
            consumer.close()
            consumer = reader(GROUP)
            consumer.subscribe([topic])
    consumer.close()


def read_all(name, kind):
    """What is committed; hands back the offset after the last value of each partition."""
    consumer = reader("final", **{"enable.partition.eof": True})
    ends = {}
    for partition in range(partitions):
        _, ends[partition] = retried(lambda: consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=5))
    consumer.assign([TopicPartition(name, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    after, left = dict.fromkeys(ends, 0), set(ends)
    deadline = time.monotonic() + READ_SECONDS_MAX
    while left and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is None:
            continue
        if not message.error():
            say(kind, message.partition(), message.offset(), message.value().decode())
            after[message.partition()] = message.offset() + 1
        elif message.error().code() == KafkaError._PARTITION_EOF and message.offset() >= ends[message.partition()]:
            left.discard(message.partition())
    if left:
        failures.append(f"{name}: transactions are open in {sorted(left)} of {ends}")
    consumer.close()
    return after


def retried(ask):
    deadline = time.monotonic() + READ_SECONDS_MAX
    while True:
        try:
            return ask()
        except KafkaException:
            if time.monotonic() > deadline:
                raise


def committed():
    consumer = reader(GROUP)
    found = retried(lambda: consumer.committed([TopicPartition(topic, partition) for partition in range(partitions)], timeout=5))
    consumer.close()
    return {one.partition: max(one.offset, 0) for one in found}


def guarded(work, name):
    try:
        work(name)
    except BaseException as error:
        say("note", "failure", work.__name__, name, repr(error))
        os._exit(1)


def start(work, names):
    threads = [threading.Thread(target=guarded, args=(work, name)) for name in names]
    for thread in threads:
        thread.start()
    return threads


writers = start(write, range(1, producers + 1))
readers = start(copy, range(1, consumers + 1))
sys.stdin.read()
writing_ends.set()
for thread in writers:
    thread.join()
after = read_all(topic, "final")
deadline = time.monotonic() + READ_SECONDS_MAX
while any(committed()[partition] < offset for partition, offset in after.items()) and time.monotonic() < deadline:
    time.sleep(0.1)
for partition, offset in committed().items():
    say("committed", partition, offset)
reading_ends.set()
for thread in readers:
    thread.join()
read_all(copies, "copy")
for failure in failures:
    say("note", "failure", failure)
say("done")
sys.exit(1 if failures else 0)
