"""What the Python client programs share: named checks that all run, and the records that each client must carry whole.

A program calls `run(checks, bootstrap)`; it prints one line a check and ends with 1 if any failed.
"""

import sys
import time
import traceback

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
WAIT_SECONDS_MAX = 30

# (key, value, headers): nulls, empties, bytes that are no text, header keys that repeat, enough length to compress.
RECORDS = [
    (b"key", b"value", []),
    (None, b"no key", []),
    (b"tombstone", None, []),
    (None, None, []),
    (b"", b"", [("", b"")]),
    (b"\x00\xff", bytes(range(256)), [("bytes", b"\x00\xff")]),
    (b"headers", b"repeat", [("a", b"1"), ("b", None), ("a", b"2"), ("a", b"1")]),
] + [(b"k%d" % i, b"v%d " % i * 40, [("n", b"%d" % i)]) for i in range(493)]


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: got {shorten(got)}, wanted {shorten(wanted)}")


def shorten(value):
    text = repr(value)
    return text if len(text) < 600 else text[:600] + "…"


def wait_for(question, what):
    """Asks until the answer is true; clients must be polled inside `question`."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        answer = question()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not after {WAIT_SECONDS_MAX} s: {what}")


def run(checks, bootstrap):
    failed = 0
    for name, check in checks:
        start = time.monotonic()
        try:
            check(bootstrap)
            print(f"ok   {name} ({time.monotonic() - start:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    sys.exit(1 if failed else 0)
