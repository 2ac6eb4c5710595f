"""Produces argv[2] numbered records to the broker at argv[1], which is killed on the way; then reads them all back.

Says how many were acknowledged as it goes. The records are idempotent, acks=all, and retried until they are acknowledged:
each must then be in its partition exactly once, in the order sent, at the offset that the acknowledgement named.
"""

import sys

from confluent_kafka import OFFSET_BEGINNING, Producer, TopicPartition

from checks import equal
from librdkafka import consume, create, reader

PARTITIONS = 4
PART = 500

bootstrap, count = sys.argv[1], int(sys.argv[2])
create(bootstrap, "killed", PARTITIONS)
acknowledged = {}
errors = []


def delivered(error, message):
    if error:
        errors.append(error)
        return
    acknowledged[int(message.value())] = (message.partition(), message.offset())
    if len(acknowledged) % PART == 0:
        print("acknowledged", len(acknowledged), flush=True)


producer = Producer({
    "bootstrap.servers": bootstrap,
    "enable.idempotence": True,
    "message.timeout.ms": 150_000,
    "reconnect.backoff.max.ms": 200,
    "retry.backoff.max.ms": 200,
    "batch.num.messages": 100,
    "compression.type": "lz4",
})
sent = 0
while sent < count:
    # A short queue, so that acknowledgements and kills come all along the way.
    while sent < count and len(producer) < 2_000:
        producer.produce("killed", b"%d" % sent, partition=sent % PARTITIONS, on_delivery=delivered)
        sent += 1
    producer.poll(0.01)
equal(producer.flush(150), 0, "records left unsent")
equal(errors, [], "errors")
equal(len(acknowledged), count, "acknowledged")

for partition in range(PARTITIONS):
    consumer = reader(bootstrap)
    consumer.assign([TopicPartition("killed", partition, OFFSET_BEGINNING)])
    wanted = list(range(partition, count, PARTITIONS))
    messages = consume(consumer, len(wanted))
    equal(consumer.poll(0.3), None, "a record too many")
    equal([int(message.value()) for message in messages], wanted, f"records of partition {partition}")
    for message in messages:
        where = (message.partition(), message.offset())
        equal(acknowledged[int(message.value())], where, f"place of record {message.value()}")
    consumer.close()
print("all there", flush=True)
