"""Writes and reads through faults with librdkafka and prints a history; tests/src/history.rs says what the lines mean.

    workload.py BOOTSTRAP TOPIC PARTITIONS PRODUCERS CONSUMERS

The end of standard input ends the writing. Then all that was written is acknowledged or given up, the group reads on to
the end, and everything is read once more.
"""

import os
import sys
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

PAUSE_SECONDS = 0.01
IN_FLIGHT_MAX = 400
FLUSH_SECONDS_MAX = 90
READ_SECONDS_MAX = 60
COMMIT_EVERY = 50
GROUP = "history"

bootstrap, topic = sys.argv[1], sys.argv[2]
partitions, producers, consumers = (int(word) for word in sys.argv[3:6])
printing = threading.Lock()
writing_ends = threading.Event()
reading_ends = threading.Event()
failures = []


def say(*words):
    with printing:
        print(*words, flush=True)


def write(name):
    def delivered(error, message):
        number = message.value().decode().rsplit(":", 1)[1]
        if error:
            say("fail", name, message.partition(), number, error)
        else:
            # Acknowledged by the acknowledgement of a later batch: it was not told where.
            offset = message.offset()
            say("ack", name, message.partition(), number, -1 if offset is None else offset)

    def complain(error):
        # What librdkafka mends by itself (a broker that is away) is no error of the client.
        say("note", "producer", name, error)
        if error.fatal():
            # It will send nothing more: a sequence that the brokers cannot continue, for one.
            say("note", "failure", "producer", name, error)
            os._exit(1)

    producer = Producer({
        "bootstrap.servers": bootstrap,
        "client.id": f"producer-{name}",
        "enable.idempotence": True,
        "message.timeout.ms": 80_000,
        "linger.ms": 2,
        "error_cb": complain,
        # Why it begins a new epoch, in which duplicates are not known, is told there only.
        "log_level": 7,
        "debug": "eos",
    })
    number = 0
    while not writing_ends.is_set():
        if len(producer) < IN_FLIGHT_MAX:
            for partition in range(partitions):
                # Said first: its acknowledgement may come at once.
                say("send", name, partition, number)
                producer.produce(topic, f"{name}:{partition}:{number}".encode(), partition=partition, on_delivery=delivered)
            number += 1
        producer.poll(PAUSE_SECONDS)
    left = producer.flush(FLUSH_SECONDS_MAX)
    if left:
        failures.append(f"{left} values neither acknowledged nor given up")


def reader(group):
    return Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "log_level": 2,
    })


def read(name):
    consumer = reader(GROUP)

    def assigned(consumer, given):
        deadline = time.monotonic() + READ_SECONDS_MAX
        while True:
            try:
                begins = consumer.committed(given, timeout=5)
                break
            except KafkaException as error:
                say("note", "consumer", name, error)
                if time.monotonic() > deadline:
                    raise
        for begin in begins:
            begin.offset = max(begin.offset, 0)
            say("assign", name, begin.partition, begin.offset)
        consumer.assign(begins)

    unsaid = {}

    def commit():
        if not unsaid:
            return
        try:
            for done in consumer.commit(
                offsets=[TopicPartition(topic, partition, offset) for partition, offset in unsaid.items()],
                asynchronous=False,
            ):
                if done.error:
                    say("note", "commit of", name, done.partition, done.error)
                else:
                    say("commit", name, done.partition, done.offset)
        except KafkaException as error:
            say("note", "commit of", name, error)
        unsaid.clear()

    # What is another's afterwards must not be committed any more: brokers take any member's word for any partition.
    consumer.subscribe(
        [topic],
        on_assign=assigned,
        on_revoke=lambda consumer, taken: commit(),
        on_lost=lambda consumer, taken: unsaid.clear(),
    )
    read = 0
    while not reading_ends.is_set():
        message = consumer.poll(0.2)
        if message is None:
            commit()
        elif message.error():
            say("note", "consumer", name, message.error())
        else:
            say("read", name, message.partition(), message.offset(), message.value().decode())
            unsaid[message.partition()] = message.offset() + 1
            read += 1
            if read % COMMIT_EVERY == 0:
                commit()
    consumer.close()


def read_all():
    """From the first offsets to the ends; hands back the ends."""
    consumer = reader("final")
    ends = {}
    for partition in range(partitions):
        _, ends[partition] = retried(lambda: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5))
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    positions = dict.fromkeys(ends, 0)
    deadline = time.monotonic() + READ_SECONDS_MAX
    while positions != ends and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and not message.error():
            say("final", message.partition(), message.offset(), message.value().decode())
            positions[message.partition()] = message.offset() + 1
    consumer.close()
    return ends


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
        failures.append(f"{work.__name__} {name}: {error!r}")


def start(work, names):
    threads = [threading.Thread(target=guarded, args=(work, name)) for name in names]
    for thread in threads:
        thread.start()
    return threads


writers = start(write, range(1, producers + 1))
readers = start(read, range(1, consumers + 1))
sys.stdin.read()
writing_ends.set()
for thread in writers:
    thread.join()
ends = read_all()
deadline = time.monotonic() + READ_SECONDS_MAX
while committed() != ends and time.monotonic() < deadline:
    time.sleep(0.1)
for partition, offset in committed().items():
    say("committed", partition, offset)
reading_ends.set()
for thread in readers:
    thread.join()
for failure in failures:
    say("note", "failure", failure)
say("done")
sys.exit(1 if failures else 0)
