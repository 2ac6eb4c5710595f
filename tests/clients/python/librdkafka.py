"""librdkafka (through confluent-kafka) against the broker at argv[1]."""

import sys
import time

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from checks import CODECS, RECORDS, WAIT_SECONDS_MAX, equal, run, wait_for


def create(bootstrap, topic, partitions=1, config=None):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1, config=config or {})])[topic].result(WAIT_SECONDS_MAX)


def produce(bootstrap, topic, records, partition=0, timestamp=None, **settings):
    """Produces and hands back the offsets in order."""
    offsets, errors = [], []

    def delivered(error, message):
        (errors.append(error) if error else offsets.append(message.offset()))

    settings = {key.replace("_", "."): value for key, value in settings.items()}
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, **settings})
    for index, (key, value, headers) in enumerate(records):
        extra = {} if timestamp is None else {"timestamp": timestamp(index)}
        producer.produce(topic, value, key, partition, headers=headers, on_delivery=delivered, **extra)
    equal(producer.flush(WAIT_SECONDS_MAX), 0, "messages left unsent")
    if errors:
        raise KafkaException(errors[0])
    return offsets


def consume(consumer, count):
    """Polls until `count` records came."""
    messages = []

    def enough():
        message = consumer.poll(0.1)
        if message is not None:
            if message.error():
                raise KafkaException(message.error())
            messages.append(message)
        return len(messages) >= count

    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not enough():
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(messages)} of {count} records after {WAIT_SECONDS_MAX} s")
    return messages


def reader(bootstrap, group="none", **settings):
    settings = {key.replace("_", "."): value for key, value in settings.items()}
    return Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        **settings,
    })


def read_all(bootstrap, topic, count, **settings):
    consumer = reader(bootstrap, **settings)
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    messages = consume(consumer, count)
    equal(consumer.poll(0.2), None, "a record too many")
    consumer.close()
    return messages


def records_travel_whole(codec, idempotent):
    def check(bootstrap):
        topic = f"rd-{codec}-{idempotent}"
        create(bootstrap, topic)
        offsets = produce(bootstrap, topic, RECORDS, compression_type=codec, enable_idempotence=idempotent)
        equal(offsets, list(range(len(RECORDS))), "offsets")
        messages = read_all(bootstrap, topic, len(RECORDS))
        equal([(m.key(), m.value(), m.headers() or []) for m in messages], RECORDS, "records")
        equal([m.offset() for m in messages], offsets, "offsets read")

    return check


def acks_zero_and_one(bootstrap):
    for acks in (0, 1):
        topic = f"rd-acks-{acks}"
        create(bootstrap, topic)
        produce(bootstrap, topic, RECORDS[:50], acks=acks)
        equal(len(read_all(bootstrap, topic, 50)), 50, "records")


def a_topic_is_created_by_use(bootstrap):
    produce(bootstrap, "rd-auto", RECORDS[:1])
    metadata = AdminClient({"bootstrap.servers": bootstrap}).list_topics("rd-auto", WAIT_SECONDS_MAX)
    equal(len(metadata.topics["rd-auto"].partitions), 4, "partitions of an automatic topic")


def a_bad_topic_name_is_refused(bootstrap):
    try:
        create(bootstrap, "rd/bad name")
        raise AssertionError("created")
    except KafkaException as error:
        equal(error.args[0].code(), KafkaError.TOPIC_EXCEPTION, "error")


def a_large_record_passes_and_a_larger_one_is_refused(bootstrap):
    create(bootstrap, "rd-large", config={"max.message.bytes": "600000"})
    limit = {"message.max.bytes": 2_000_000}
    produce(bootstrap, "rd-large", [(None, b"x" * 500_000, [])], **limit)
    try:
        produce(bootstrap, "rd-large", [(None, b"x" * 700_000, [])], **limit)
        raise AssertionError("accepted")
    except KafkaException as error:
        equal(error.args[0].code(), KafkaError.MSG_SIZE_TOO_LARGE, "error")
    equal(len(read_all(bootstrap, "rd-large", 1, fetch_message_max_bytes=1000)), 1, "records under a small fetch limit")


def a_group_resumes_where_it_committed(bootstrap):
    create(bootstrap, "rd-group")
    produce(bootstrap, "rd-group", RECORDS[:100])
    first = reader(bootstrap, "rd-group-g")
    first.subscribe(["rd-group"])
    messages = consume(first, 60)[:60]
    first.commit(offsets=[TopicPartition("rd-group", 0, messages[-1].offset() + 1, metadata="note")], asynchronous=False)
    first.close()
    second = reader(bootstrap, "rd-group-g")
    second.subscribe(["rd-group"])
    equal([m.offset() for m in consume(second, 40)], list(range(60, 100)), "offsets after resuming")
    committed = second.committed([TopicPartition("rd-group", 0)], WAIT_SECONDS_MAX)[0]
    equal((committed.offset, committed.metadata), (60, "note"), "committed")
    second.close()


def two_members_share_and_hand_over(strategy):
    def check(bootstrap):
        topic = f"rd-members-{strategy}"
        create(bootstrap, topic, partitions=4)
        settings = {"partition_assignment_strategy": strategy, "session_timeout_ms": 10_000, "heartbeat_interval_ms": 200}
        one, two = (reader(bootstrap, f"{topic}-g", **settings) for _ in range(2))
        for consumer in (one, two):
            consumer.subscribe([topic])

        def assigned(*consumers):
            for consumer in consumers:
                consumer.poll(0.05)
            return [sorted(p.partition for p in consumer.assignment()) for consumer in consumers]

        wait_for(lambda: sorted(map(len, assigned(one, two))) == [2, 2], "two partitions each")
        parts = assigned(one, two)
        equal(sorted(parts[0] + parts[1]), [0, 1, 2, 3], "partitions of both")
        one.close()
        wait_for(lambda: assigned(two) == [[0, 1, 2, 3]], "all partitions with the one that stayed")
        two.close()

    return check


def offsets_are_found_by_time(bootstrap):
    create(bootstrap, "rd-times")
    base = 1_700_000_000_000
    produce(bootstrap, "rd-times", RECORDS[:100], timestamp=lambda index: base + index * 1000)
    consumer = reader(bootstrap)

    def find(timestamp):
        return consumer.offsets_for_times([TopicPartition("rd-times", 0, timestamp)], WAIT_SECONDS_MAX)[0].offset

    equal([find(base - 5), find(base + 41_001), find(base + 42_000)], [0, 42, 42], "offsets")
    equal(find(base + 99_001), -1, "offset of a time after the end")
    equal(consumer.get_watermark_offsets(TopicPartition("rd-times", 0), WAIT_SECONDS_MAX), (0, 100), "watermarks")
    consumer.close()
    admin = AdminClient({"bootstrap.servers": bootstrap})
    partition = TopicPartition("rd-times", 0)
    for spec, wanted in ((OffsetSpec.earliest(), 0), (OffsetSpec.latest(), 100), (OffsetSpec.max_timestamp(), 99)):
        found = admin.list_offsets({partition: spec})[partition].result(WAIT_SECONDS_MAX)
        equal(found.offset, wanted, f"offset for {spec}")


def topics_are_administered(bootstrap):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create(bootstrap, "rd-admin", 3, {"retention.ms": "3600000", "cleanup.policy": "compact"})
    try:
        create(bootstrap, "rd-admin")
        raise AssertionError("created twice")
    except KafkaException as error:
        equal(error.args[0].code(), KafkaError.TOPIC_ALREADY_EXISTS, "error")
    topic = admin.list_topics(timeout=WAIT_SECONDS_MAX).topics["rd-admin"]
    equal(sorted(topic.partitions), [0, 1, 2], "partitions")
    resource = ConfigResource(ConfigResource.Type.TOPIC, "rd-admin")
    configs = admin.describe_configs([resource])[resource].result(WAIT_SECONDS_MAX)
    equal(configs["retention.ms"].value, "3600000", "retention.ms")
    equal(configs["cleanup.policy"].value, "compact", "cleanup.policy")
    equal(configs["segment.bytes"].is_default, True, "segment.bytes is a default")
    equal([name for name, entry in configs.items() if entry.value is None], [], "configs without a value")
    broker = ConfigResource(ConfigResource.Type.BROKER, str(next(iter(admin.list_topics(timeout=WAIT_SECONDS_MAX).brokers))))
    configs = admin.describe_configs([broker])[broker].result(WAIT_SECONDS_MAX)
    equal(configs["num.partitions"].value, "4", "num.partitions")
    cluster = admin.describe_cluster().result(WAIT_SECONDS_MAX)
    equal(len(cluster.nodes), 1, "nodes")
    admin.delete_topics(["rd-admin"])["rd-admin"].result(WAIT_SECONDS_MAX)
    wait_for(lambda: "rd-admin" not in admin.list_topics(timeout=WAIT_SECONDS_MAX).topics, "the topic to go")


def groups_are_administered(bootstrap):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create(bootstrap, "rd-groups")
    produce(bootstrap, "rd-groups", RECORDS[:10])
    consumer = reader(bootstrap, "rd-groups-g")
    consumer.subscribe(["rd-groups"])
    consume(consumer, 10)
    consumer.commit(asynchronous=False)
    listed = admin.list_consumer_groups().result(WAIT_SECONDS_MAX)
    equal(any(group.group_id == "rd-groups-g" for group in listed.valid), True, "the group is listed")
    described = admin.describe_consumer_groups(["rd-groups-g"])["rd-groups-g"].result(WAIT_SECONDS_MAX)
    equal(described.state.name, "STABLE", "state")
    equal([p.topic for p in described.members[0].assignment.topic_partitions], ["rd-groups"], "assignment")
    asked = [ConsumerGroupTopicPartitions("rd-groups-g")]
    offsets = admin.list_consumer_group_offsets(asked)["rd-groups-g"].result(WAIT_SECONDS_MAX)
    equal([(p.topic, p.offset) for p in offsets.topic_partitions], [("rd-groups", 10)], "offsets")
    consumer.close()


CHECKS = [(f"records_travel_whole_{codec}", records_travel_whole(codec, True)) for codec in CODECS]
CHECKS += [
    ("records_travel_whole_without_idempotence", records_travel_whole("lz4", False)),
    ("acks_zero_and_one", acks_zero_and_one),
    ("a_topic_is_created_by_use", a_topic_is_created_by_use),
    ("a_bad_topic_name_is_refused", a_bad_topic_name_is_refused),
    ("a_large_record_passes_and_a_larger_one_is_refused", a_large_record_passes_and_a_larger_one_is_refused),
    ("a_group_resumes_where_it_committed", a_group_resumes_where_it_committed),
    ("two_members_share_range", two_members_share_and_hand_over("range")),
    ("two_members_share_cooperative", two_members_share_and_hand_over("cooperative-sticky")),
    ("offsets_are_found_by_time", offsets_are_found_by_time),
    ("topics_are_administered", topics_are_administered),
    ("groups_are_administered", groups_are_administered),
]

if __name__ == "__main__":
    run(CHECKS, sys.argv[1])
