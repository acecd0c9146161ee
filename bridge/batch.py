"""A batch: rows on their way to the cloud in one POST; its body, its idempotency key, its halves.

Rows are packed in the order in which the disk queue gave them, their stored bytes are joined and nothing is encoded
again. The key is a digest of these bytes, so that the same rows go out under the same key at every retry and after a
restart, and other bytes never do: a producer that uses an id again much later must not meet its old key, for a cloud
answers that with 422. A row id is never part of it, because a damaged file may hand out the same row id twice.

Pure. Never looks inside a payload, never compresses (uploader), never decides what to do with an answer (verdict).
Holds the batch's part of I5 (bounded in rows and bytes) and I6 (order is kept).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from bridge.message import Row, event_id, payload_json

Format = Literal["cloudevents", "json", "ndjson"]

_EVENT_BYTES_MIN = 100  # no stored event is shorter: its fixed members alone take more
_KEY_HEX_DIGITS = 32  # 128 bits: no two batches meet


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch: rows, and bytes of its body before compression."""

    messages: int
    body_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of stored rows to take at once so that they, with what joins them, fit into one body."""
        return max(1, self.body_bytes - min(self.messages, self.body_bytes // _EVENT_BYTES_MIN) - 1)

    def shrunk(self, refused_body_bytes: int) -> Limits:
        """Return limits that keep a body of this size from being built again."""
        return Limits(self.messages, max(1, min(self.body_bytes, refused_body_bytes // 2)))


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one POST, in order of arrival; `attempts` POSTs carried them before, larger batches included."""

    rows: tuple[Row, ...]
    attempts: int = 0

    @property
    def row_ids(self) -> tuple[int, ...]:
        """The rows' places in the disk queue."""
        return tuple([row.row_id for row in self.rows])

    @property
    def event_ids(self) -> tuple[str, ...]:
        """The events' ids, in order: by these an answer names rows."""
        return tuple(event_id(row.data) for row in self.rows)

    @property
    def key(self) -> str:
        """The idempotency key: a digest of the stored events, one a line (an event has no line break in it)."""
        return hashlib.sha256(b"\n".join([row.data for row in self.rows])).hexdigest()[:_KEY_HEX_DIGITS]

    @property
    def body_bytes(self) -> int:
        """Size of the body in the formats that carry whole events, where it is largest."""
        return sum([len(row.data) for row in self.rows]) + len(self.rows) + 1


def pack(rows: Sequence[Row], limits: Limits) -> Batch:
    """Make a batch of the longest run of rows, from the first, that the limits allow; one row always goes."""
    whole = Batch(tuple(rows[: max(1, limits.messages)]))
    if whole.body_bytes <= limits.body_bytes:  # nearly always
        return whole
    size_bytes = 1
    for count, row in enumerate(whole.rows):
        size_bytes += len(row.data) + 1
        if count >= 1 and size_bytes > limits.body_bytes:
            return Batch(whole.rows[:count])
    return whole


def split(batch: Batch, at: int) -> tuple[Batch, Batch]:
    """Divide a batch before its row number `at`; both parts remember the attempts."""
    return Batch(batch.rows[:at], batch.attempts), Batch(batch.rows[at:], batch.attempts)


def halve(batch: Batch) -> tuple[Batch, Batch]:
    """Divide a batch of two rows or more; the left half is the smaller one, which bounds the search for a bad row."""
    return split(batch, len(batch.rows) // 2)


def body(batch: Batch, body_format: Format) -> bytes:
    """Return the body of the POST, uncompressed."""
    match body_format:
        case "cloudevents":
            return _array([row.data for row in batch.rows])
        case "json":
            return _array([payload_json(row.data) for row in batch.rows])
        case "ndjson":
            return b"\n".join([*[row.data for row in batch.rows], b""])
        case never:
            assert_never(never)


def _array(elements: list[bytes]) -> bytes:
    """Return a JSON array. One join and no other copy: to copy half a megabyte once more takes ten times as long."""
    if elements:
        elements[0] = b"[" + elements[0]
        elements[-1] += b"]"
    return b",".join(elements) or b"[]"


def content_type(body_format: Format) -> str:
    """Return the media type of the body."""
    return _CONTENT_TYPES[body_format]


_CONTENT_TYPES: dict[Format, str] = {
    "cloudevents": "application/cloudevents-batch+json",
    "json": "application/json",
    "ndjson": "application/x-ndjson",
}
