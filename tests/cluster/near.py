"""Reads with librdkafka from the replica in its rack (KIP-392).

    near.py BOOTSTRAP TOPIC RACK BROKER

Ends well once records that were written after the consumer had turned to that broker have come from it.
"""

import json
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

SECONDS_MAX = 60
RECORDS = 200

bootstrap, topic, rack, broker = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
reads_from = None


def hear(statistics):
    global reads_from
    known = json.loads(statistics)["topics"].get(topic, {}).get("partitions", {}).get("0")
    if known:
        reads_from = known["broker"]


consumer = Consumer({
    "bootstrap.servers": bootstrap,
    "group.id": "near",
    "client.rack": rack,
    "enable.auto.commit": False,
    "statistics.interval.ms": 100,
    "stats_cb": hear,
})
producer = Producer({"bootstrap.servers": bootstrap})
deadline = time.monotonic() + SECONDS_MAX


def write_and_read(count, wanted):
    """Writes records and reads as many; says whether all that the statistics told was the wanted broker."""
    stayed = True
    for number in range(count):
        producer.produce(topic, f"{number}".encode(), partition=0)
    producer.flush(SECONDS_MAX)
    while count > 0:
        assert time.monotonic() < deadline, f"{count} records are missing, it reads from {reads_from}"
        message = consumer.poll(0.1)
        stayed = stayed and reads_from == wanted
        if message is not None:
            assert not message.error(), message.error()
            count -= 1
    return stayed


consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=SECONDS_MAX)
for _ in range(high - low):
    while consumer.poll(0.1) is None:
        assert time.monotonic() < deadline, "records are missing"
while reads_from != broker:
    assert time.monotonic() < deadline, f"it reads from {reads_from}"
    write_and_read(1, broker)
assert write_and_read(RECORDS, broker), f"it left for {reads_from}"
print(f"librdkafka in {rack} read from broker {reads_from}")
consumer.close()
