"""The values of the queue: rows to store, the state in memory, counts, spans of row ids. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bridge.message import parse_json, reads_as_ours

READY, DELIVERED, DEAD = 0, 5, 9  # persist-queue's status codes
TIME_MAX = 253_402_300_800  # the year 10000: no clock says more


class NewRow(NamedTuple):
    """What is to be stored of one message."""

    data: bytes
    received_at: float
    packet_id: int | None = None
    event_id: str | None = None
    expires_at: float | None = None


to_store = partial(tuple.__new__, NewRow)  # `NewRow(...)` of all its values, in half the time


class SavedRow(NamedTuple):
    """A row as it was read from a damaged file. `row_id` None: what stands there was never given out."""

    row_id: int | None
    data: bytes | None
    received_at: float
    status: int
    crc: int | None
    packet_id: int | None
    event_id: str | None
    settled_at: float | None
    expires_at: float | None

    @property
    def is_altered(self) -> bool:
        """The checksum says that these are not the bytes that were stored; or it is gone, where we wrote one."""
        if self.crc is None:
            return self._came_through_the_bridge
        return zlib.crc32(self.data or b"") != self.crc

    @property
    def _came_through_the_bridge(self) -> bool:
        ours_alone = (self.packet_id, self.event_id, self.expires_at)
        return any(value is not None for value in ours_alone) or reads_as_ours(self.data or b"")

    @property
    def is_sound(self) -> bool:
        """Proven by its checksum, or (the stock library wrote it) at least JSON."""
        return not self.is_altered and (self.crc is not None or parse_json(self.data or b"")[0])


class Counts(NamedTuple):
    """How many rows are in each state, and what they take up on disk. O(1), exact after any crash."""

    ready: int
    taken: int
    delivered: int
    dead: int
    size_bytes: int


class Span(NamedTuple):
    """Rows that left together: ids from first to last; `ids` are those not settled yet."""

    first: int
    last: int
    ids: frozenset[int]


class Noted(NamedTuple):
    """Rows that are delivered, all from first to last, but not marked so: their status is written later, if ever."""

    first: int
    last: int
    settled_at: float

    @property
    def rows(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class State:
    """All that the queue knows in memory. A rolled back transaction just takes the old value again."""

    waiting: int  # ready or taken
    delivered: int
    dead: int
    newest: int = 0  # the highest row id given out
    cursor: int = 0  # every waiting row up to here is in a span of `flying` or `returned`
    flying: tuple[Span, ...] = ()
    returned: tuple[tuple[int, int], ...] = ()  # spans to take again before new rows
    unsent: tuple[tuple[int, int], ...] = ()  # those of them that were never posted
    noted: tuple[Noted, ...] = ()  # in order

    @property
    def taken(self) -> int:
        return sum(len(span.ids) for span in self.flying)


def runs(row_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the ids as spans without gaps: 1, 2, 3, 7 → (1, 3), (7, 7)."""
    ordered = sorted(row_ids)
    first, last = (ordered[0], ordered[-1]) if ordered else (0, 0)
    if last - first == len(ordered) - 1 and ordered == [*range(first, last + 1)]:  # nearly always
        yield first, last
        return
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            yield ordered[start], ordered[i - 1]
            start = i


def merged(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the spans in order, those that overlap as one; neighbours stay apart, for they left apart."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
