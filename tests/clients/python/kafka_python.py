"""kafka-python against the broker at argv[1]."""

import sys
import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import MessageSizeTooLargeError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata

from checks import CODECS, RECORDS, WAIT_SECONDS_MAX, equal, run, wait_for


def create(bootstrap, topic, partitions=1, config=None):
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config or {})])
    admin.close()


def produce(bootstrap, topic, records, timestamp=None, **settings):
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, **settings)
    sent = [
        producer.send(topic, value, key, headers, 0, timestamp(index) if timestamp else None)
        for index, (key, value, headers) in enumerate(records)
    ]
    producer.flush(WAIT_SECONDS_MAX)
    offsets = [future.get(WAIT_SECONDS_MAX).offset for future in sent]
    producer.close()
    return offsets


def reader(bootstrap, group=None, **settings):
    return KafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, **settings
    )


def subscribe(consumer, topic):
    # kafka-python 3.0.12 sometimes drops the assignment of a second rebalance that follows at once on the first; that one comes
    # when it joins before it knows the topic's partitions, so it learns them before.
    consumer.partitions_for_topic(topic)
    consumer.subscribe([topic])


def consume(consumer, count):
    messages = []
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while len(messages) < count:
        for batch in consumer.poll(100).values():
            messages += batch
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(messages)} of {count} records after {WAIT_SECONDS_MAX} s")
    return messages


def records_travel_whole(codec):
    def check(bootstrap):
        topic = f"kp-{codec}"
        create(bootstrap, topic)
        # The client cannot write a header without a value.
        records = [(k, v, [(name, value or b"") for name, value in headers]) for k, v, headers in RECORDS]
        # The client refuses a message with neither key nor value.
        records = [record for record in records if record[:2] != (None, None)]
        offsets = produce(bootstrap, topic, records, compression_type=None if codec == "none" else codec)
        equal(offsets, list(range(len(records))), "offsets")
        consumer = reader(bootstrap)
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek_to_beginning()
        messages = consume(consumer, len(records))
        consumer.close()
        equal([(m.key, m.value, list(m.headers)) for m in messages], records, "records")

    return check


def idempotence(bootstrap):
    create(bootstrap, "kp-idempotent")
    offsets = produce(bootstrap, "kp-idempotent", RECORDS[:1] * 300, enable_idempotence=True, batch_size=500)
    equal(offsets, list(range(300)), "offsets")


def a_group_resumes_where_it_committed(bootstrap):
    create(bootstrap, "kp-group")
    produce(bootstrap, "kp-group", RECORDS[:1] * 100)
    partition = TopicPartition("kp-group", 0)
    first = reader(bootstrap, "kp-group-g")
    subscribe(first, "kp-group")
    consume(first, 60)
    first.commit({partition: OffsetAndMetadata(60, "note", -1)})
    first.close()
    second = reader(bootstrap, "kp-group-g")
    subscribe(second, "kp-group")
    equal([m.offset for m in consume(second, 40)], list(range(60, 100)), "offsets after resuming")
    equal(second.committed(partition), 60, "committed")
    second.close()


def two_members_share_and_hand_over(bootstrap):
    create(bootstrap, "kp-members", 4)
    settings = {"session_timeout_ms": 10_000, "heartbeat_interval_ms": 200}
    one, two = (reader(bootstrap, "kp-members-g", **settings) for _ in range(2))
    for consumer in (one, two):
        subscribe(consumer, "kp-members")

    def assigned(*consumers):
        for consumer in consumers:
            consumer.poll(50)
        return [sorted(p.partition for p in consumer.assignment()) for consumer in consumers]

    wait_for(lambda: sorted(map(len, assigned(one, two))) == [2, 2], "two partitions each")
    one.close()
    wait_for(lambda: assigned(two) == [[0, 1, 2, 3]], "all partitions with the one that stayed")
    two.close()


def offsets_are_found_by_time(bootstrap):
    create(bootstrap, "kp-times")
    base = 1_700_000_000_000
    produce(bootstrap, "kp-times", RECORDS[:1] * 100, timestamp=lambda index: base + index * 1000)
    consumer = reader(bootstrap)
    partition = TopicPartition("kp-times", 0)
    equal(consumer.offsets_for_times({partition: base + 41_001})[partition].offset, 42, "offset")
    equal(consumer.offsets_for_times({partition: base + 100_000})[partition], None, "offset of a time after the end")
    equal(consumer.beginning_offsets([partition]), {partition: 0}, "beginning")
    equal(consumer.end_offsets([partition]), {partition: 100}, "end")
    consumer.close()


def a_too_large_record_is_refused(bootstrap):
    create(bootstrap, "kp-large", config={"max.message.bytes": "1000"})
    try:
        produce(bootstrap, "kp-large", [(None, b"x" * 2000, [])])
        raise AssertionError("accepted")
    except MessageSizeTooLargeError:
        pass


def topics_are_administered(bootstrap):
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    create(bootstrap, "kp-admin", 3, {"retention.ms": "3600000"})
    try:
        create(bootstrap, "kp-admin")
        raise AssertionError("created twice")
    except TopicAlreadyExistsError:
        pass
    described = admin.describe_topics(["kp-admin"])
    equal(len(described[0]["partitions"]), 3, "partitions")
    described = str(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "kp-admin")]))
    equal("retention.ms" in described and "3600000" in described, True, f"retention.ms in {described}")
    admin.delete_topics(["kp-admin"])
    wait_for(lambda: "kp-admin" not in admin.list_topics(), "the topic to go")
    admin.close()


CHECKS = [(f"records_travel_whole_{codec}", records_travel_whole(codec)) for codec in CODECS]
CHECKS += [
    ("idempotence", idempotence),
    ("a_group_resumes_where_it_committed", a_group_resumes_where_it_committed),
    ("two_members_share_and_hand_over", two_members_share_and_hand_over),
    ("offsets_are_found_by_time", offsets_are_found_by_time),
    ("a_too_large_record_is_refused", a_too_large_record_is_refused),
    ("topics_are_administered", topics_are_administered),
]

if __name__ == "__main__":
    run(CHECKS, sys.argv[1])
