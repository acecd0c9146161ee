"""What the generator publishes: predictions of equal size, numbered, and stamped with the time they were due.

The number makes it certain which ones arrived. Its first digit is the phase, so messages of an earlier phase that
come late are never mistaken for others. Probabilities are random digits, so that they compress like real ones.

Pure: randomness is seeded, the caller brings the time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from enum import IntEnum

from bridge.bench.mqtt import TOPIC
from bridge.message import head, head_middle, tail, uuid7

_NUMBER_DIGITS, _STAMP_DIGITS = 10, 19
_NUMBERS_A_PHASE = 1_000_000_000
_STAMP_BASE = 1_000_000_000_000_000_000  # JSON numbers have no leading zeros; the machine runs for less than a year
_LAYOUT = b'{"n":%d,"sent_ns":%d,"label":"crack","probabilities":[%b]}'
STAMP_AT = len(b'{"n":') + _NUMBER_DIGITS + len(b',"sent_ns":')
_DIGITS_AT_LEAST = len("0.1234")
PAYLOAD_BYTES_MIN = len(_LAYOUT % (_NUMBERS_A_PHASE, _STAMP_BASE, b"")) + _DIGITS_AT_LEAST
_VARIETIES = 4096  # more than a batch holds, so that no compression sees the same digits twice


class Phase(IntEnum):
    """What a message is for; the first digit of its number."""

    PROBE = 1
    LATENCY = 2
    THROUGHPUT = 3
    RECEIPTS = 4
    BACKLOG = 5


def payloads(phase: Phase, count: int, payload_bytes: int) -> Iterator[bytes]:
    """Yield the payloads of a phase, in order, each of exactly this size."""
    source = random.Random(payload_bytes)  # noqa: S311 - the same digits in every run is what is wanted
    room = payload_bytes - PAYLOAD_BYTES_MIN + _DIGITS_AT_LEAST
    varieties = [_probabilities(source, room) for _ in range(min(count, _VARIETIES))]
    for index in range(count):
        yield _LAYOUT % (phase * _NUMBERS_A_PHASE + index, _STAMP_BASE, varieties[index % _VARIETIES])


def events(phase: Phase, count: int, payload_bytes: int) -> Iterator[bytes]:
    """Yield the same predictions as the bridge stores and posts them."""
    middle = head_middle("edge/bench", TOPIC.decode())
    for index, payload in enumerate(payloads(phase, count, payload_bytes)):
        yield head(uuid7(index, index), middle, "2026-01-01T00:00:00.000000Z") + tail(payload, is_json=True)


def _probabilities(source: random.Random, size_bytes: int) -> bytes:
    """Return `0.1234,0.5678,…` of exactly this size; the last one has as many digits as it takes."""
    count, digits = divmod(size_bytes + 1, _DIGITS_AT_LEAST + 1)
    numbers = [f"0.{source.randrange(10**4):04d}" for _ in range(count)]
    return (",".join(numbers) + "7" * digits).encode()


def stamp(ns: int) -> bytes:
    """Return the time as it stands in a payload, from `STAMP_AT` on."""
    return b"%d" % (_STAMP_BASE + ns)


def stamped_ns(digits: bytes) -> int:
    """Return the time that a stamp says."""
    return int(digits) - _STAMP_BASE


def pattern(phase: Phase) -> re.Pattern[bytes]:
    """Return what finds each prediction of a phase in any text: its number, and for LATENCY its stamp too."""
    number = b'"n":(%d\\d{%d})' % (phase, _NUMBER_DIGITS - 1)
    return re.compile(number + (b',"sent_ns":(\\d{%d})' % _STAMP_DIGITS if phase is Phase.LATENCY else b""))
