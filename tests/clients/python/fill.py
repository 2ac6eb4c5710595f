"""Fills `dumped` with each codec in turn, all idempotent, and commits a group's offset: run argv[2] of a series."""

import sys

from confluent_kafka import Consumer, TopicPartition

from checks import CODECS, WAIT_SECONDS_MAX, equal
from librdkafka import create, produce

RECORDS_A_CODEC = 300

bootstrap, number = sys.argv[1], int(sys.argv[2])
if number == 0:
    create(bootstrap, "dumped", config={"index.interval.bytes": "512"})
base = number * RECORDS_A_CODEC * len(CODECS)
for codec in CODECS:
    records = [(b"key", b"value %d" % (base + index), []) for index in range(RECORDS_A_CODEC)]
    offsets = produce(bootstrap, "dumped", records, compression_type=codec, enable_idempotence=True, batch_num_messages=50)
    equal(offsets, list(range(base, base + RECORDS_A_CODEC)), "offsets")
    base += RECORDS_A_CODEC
consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "dumped-g", "enable.auto.commit": False})
consumer.commit(offsets=[TopicPartition("dumped", 0, base)], asynchronous=False)
equal(consumer.committed([TopicPartition("dumped", 0)], WAIT_SECONDS_MAX)[0].offset, base, "committed")
consumer.close()
