"""The seed case, as a shop would run it: orders in through librdkafka, per-minute results out of a derived topic.

100,000 orders over ten minutes of event time from three shops; 20 % out of order within the bound of 5 s; 1 % late by whole
windows. Brokers (argv[1] says where they are) may be killed on the way: it says `produced N` as it goes, and with argv[3] it
produces the orders in so many parts, each but the first once it has read another line. Every window's count, sum, min, max
and mean must equal what is computed here from the same orders in exact decimals; each late order must be in `orders-late`;
nothing may come twice.

Which orders are late must not depend on how fast the broker reads which partition. So an order is sent late only after the
result of its window was seen: from then on it is late whatever happens.
"""

import json
import random
import sys
import threading
import time
from collections import defaultdict
from decimal import Decimal

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

SEED = 20260101
ORDERS = 100_000
MINUTES = 10
SHOPS = ["amber", "birch", "cedar"]
PARTITIONS = 4
BOUND_MS = 5_000
MINUTE_MS = 60_000
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
PROGRESS = 2_000
WAIT_SECONDS_MAX = 120

bootstrap = sys.argv[1]
parts = int(sys.argv[3]) if len(sys.argv) > 3 else 1
parts_allowed = 1
random.seed(SEED)


def allow_parts():
    global parts_allowed
    for _ in sys.stdin:
        parts_allowed += 1


if parts > 1:
    threading.Thread(target=allow_parts, daemon=True).start()


class Window:
    """What one shop's minute must come to."""

    def __init__(self):
        self.amounts = []

    def expected(self):
        total = sum(self.amounts)
        return len(self.amounts), total, min(self.amounts), max(self.amounts), total / len(self.amounts)


expected = defaultdict(Window)
late_ids = set()
next_id = 0


def order(time_ms, late=False):
    """Makes an order and books it where it must turn up; unpaid ones must turn up nowhere."""
    global next_id
    next_id += 1
    shop = random.choice(SHOPS)
    cents = random.randrange(1, 100_000)
    status = "paid" if random.random() < 0.9 else "open"
    if status == "paid" and late:
        late_ids.add(next_id)
    elif status == "paid":
        expected[shop, time_ms // MINUTE_MS * MINUTE_MS].amounts.append(Decimal(cents) / 100)
    amount = f"{cents // 100}.{cents % 100:02d}"
    return next_id, (
        f'{{"id":{next_id},"shop":"{shop}","amount":{amount},"status":"{status}",'
        f'"order_time":{time_ms},"customer":{{"country":"NL"}}}}'
    )


def minute_of_orders(minute):
    """On-time orders of a minute, 20 % out of order, with the late ones strewn among them."""
    late = ORDERS // 100 // (MINUTES - 3) if minute >= 3 else 0
    if minute == MINUTES - 1:
        late = ORDERS // 100 - late * (MINUTES - 4)
    count = (ORDERS - ORDERS // 100) // MINUTES
    made = []
    for index in range(count):
        now = START_MS + minute * MINUTE_MS + index * MINUTE_MS // count
        behind = random.randrange(1, BOUND_MS - 100) if random.random() < 0.2 else 0
        made.append(order(max(now - behind, START_MS)))
    for _ in range(late):
        # Its window was over and seen before this minute began.
        made.insert(random.randrange(len(made)), order(START_MS + random.randrange((minute - 1) * MINUTE_MS), late=True))
    return made


def fail(text):
    print("FAIL", text, flush=True)
    sys.exit(1)


def consumer(topic, partitions):
    reader = Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": "seed-case",
        "enable.auto.commit": False,
        "reconnect.backoff.max.ms": 200,
    })
    reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    return reader


def read_until(reader, messages, enough, what):
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not enough():
        for message in reader.consume(1000, 0.1):
            if not message.error():
                messages.append(message)
        if time.monotonic() > deadline:
            fail(f"not after {WAIT_SECONDS_MAX} s: {what}")


def window_of(message):
    """(shop, window start), from the key and the timestamp, which is the window's last millisecond."""
    last_ms = message.timestamp()[1]
    return json.loads(message.key())["shop"], last_ms + 1 - MINUTE_MS


failures = []
delivered = 0


def on_delivery(error, _message):
    global delivered
    if error:
        failures.append(error)
        return
    delivered += 1
    if delivered % PROGRESS == 0:
        print("produced", delivered, flush=True)


producer = Producer({
    "bootstrap.servers": bootstrap,
    "enable.idempotence": True,
    "linger.ms": 5,
    "compression.type": "lz4",
    "message.timeout.ms": 150_000,
    "reconnect.backoff.max.ms": 200,
    "retry.backoff.max.ms": 200,
})


produced = 0


def produce(value, partition):
    global produced
    while len(producer) >= 5_000 or (parts_allowed < parts and produced >= ORDERS * parts_allowed // parts):
        producer.poll(0.01)
    produced += 1
    producer.produce("orders", value, partition=partition, on_delivery=on_delivery)
    producer.poll(0)


def flush():
    if producer.flush(150) or failures:
        fail(f"producing: {failures[:3]}")


started = time.monotonic()
results = consumer("orders-per-minute", PARTITIONS)
seen = []
for minute in range(MINUTES):
    if minute >= 3:
        # The late orders of this minute reach back to the start of the minute before last.
        closed = {(shop, START_MS + m * MINUTE_MS) for shop in SHOPS for m in range(minute - 1)}
        read_until(results, seen, lambda: closed <= {window_of(m) for m in seen}, f"results before minute {minute}")
    for number, value in minute_of_orders(minute):
        produce(value, number % PARTITIONS)
    flush()
# Closing records: they pass the watermark on in every partition, and the filter lets none of them into a window.
for partition in range(PARTITIONS):
    closing = START_MS + (MINUTES + 5) * MINUTE_MS
    produce(f'{{"id":0,"shop":"amber","amount":0,"status":"closing","order_time":{closing}}}', partition)
flush()
read_until(results, seen, lambda: set(expected) <= {window_of(m) for m in seen}, "all results")
results.close()
print(f"all results after {time.monotonic() - started:.1f} s", flush=True)

# All over again from the start, with some patience for what must not come: a second result, a result too many.
results = consumer("orders-per-minute", PARTITIONS)
messages = []
read_until(results, messages, lambda: len(messages) >= len(expected), "the results, read again")
messages += [message for message in results.consume(1000, 1.0) if not message.error()]
windows = [window_of(message) for message in messages]
if len(set(windows)) != len(windows):
    fail(f"twice: {sorted(window for window in set(windows) if windows.count(window) > 1)}")
if set(windows) != set(expected):
    fail(f"too many: {sorted(set(windows) - set(expected))}")
for message in messages:
    got = json.loads(message.value(), parse_float=Decimal, parse_int=Decimal)
    count, total, least, most, mean = expected[window_of(message)].expected()
    for name, wanted in [("orders", count), ("revenue", total), ("smallest", least), ("largest", most)]:
        if Decimal(got[name]) != wanted:
            fail(f"{window_of(message)}: {name} is {got[name]}, not {wanted}: {message.value()}")
    if abs(Decimal(got["mean_amount"]) - mean) > Decimal("1e-12"):
        fail(f"{window_of(message)}: mean_amount is {got['mean_amount']}, not {mean}")
    if "window_start" not in got or "window_end" not in got:
        fail(f"no bounds in {message.value()}")

reader = consumer("orders-late", int(sys.argv[2]))
messages = []
read_until(reader, messages, lambda: len(messages) >= len(late_ids), f"{len(late_ids)} late orders")
messages += [message for message in reader.consume(1000, 1.0) if not message.error()]
ids = [json.loads(message.value())["id"] for message in messages]
if sorted(ids) != sorted(late_ids):
    fail(f"late orders: {len(ids)} came, {len(late_ids)} were sent; missing {sorted(late_ids - set(ids))[:5]}, "
         f"too many {sorted(set(ids) - late_ids)[:5]}, twice {len(ids) - len(set(ids))}")
for message in messages:
    if not any("late" in (name + str(value)).lower() for name, value in message.headers() or []):
        fail(f"a late order without a reason: {message.headers()}")
print(f"{len(expected)} windows and {len(late_ids)} late orders as they should be", flush=True)
