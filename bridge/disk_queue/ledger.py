"""The loss ledger: what is gone, which messages, when and why, written in the transaction that gives them up (I9).

Entries are exact lists of ids: at most `_ENTRY_IDS_MAX` ids and `_ENTRY_BYTES_MAX` bytes each, so that a ledger of
`entries_max` entries takes a known part of the disk (I5). A large loss becomes several entries; small ones of the
same kind and topic that follow each other within a minute become one. When the oldest entries are trimmed their ids
are forgotten, but never their number: `edge_loss_total` counts every message for every reason, for ever.

`recent` is what the transaction under way (or the last one) recorded; after its commit the counters of the status are
raised by exactly that. Never opens, commits or decides.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import orjson

from bridge.disk_queue.rows import TIME_MAX
from bridge.loss import Loss, LossReason

_ENTRIES_MAX = 10_000  # a million ids
_ENTRIES_MIN = 16
_ENTRY_IDS_MAX = 100
_ENTRY_BYTES_MAX = 4096  # of ids as JSON: a hundred UUIDs
_SHARE_OF_QUEUE = 16  # with a bound in bytes the ledger takes at most this part of it
_JOIN_SECONDS = 60.0  # losses that follow each other so closely share an entry ...
_JOIN_ENTRIES = 64  # ... if it is among the last so many

_UNTOLD_ENTRIES_MAX = 500  # entries looked at for one telling ...
_UNTOLD_TOPICS_MAX = 100  # ... and what it may hold
_UNTOLD_IDS_BYTES_MAX = 64 << 10
_TOLD_TO = "losses_told_to"  # note: the last entry of the ledger that the cloud was told

_SANE = "typeof(reason) = 'text' AND typeof(messages) = 'integer'"
_ENTRY_COLUMNS = "loss_id, at, reason, messages, topic, event_ids, detail, first_at, last_at"


class Entry(NamedTuple):
    """One entry of the ledger. `at`: when it was last written; the rest as in `Loss`."""

    loss_id: int
    at: float
    reason: str
    messages: int
    topic: str | None
    event_ids: tuple[str, ...]
    detail: str
    first_at: float | None
    last_at: float | None


class Untold(NamedTuple):
    """What was lost for one reason and is not told yet. `messages` is exact, the rest what the ledger still shows.

    `topics`: messages by topic; `loss_ids`: first and last entry. Both and the ids come from a bounded look.
    """

    reason: str
    messages: int
    topics: dict[str, int]
    event_ids: list[str]
    first_at: float | None
    last_at: float | None
    loss_ids: tuple[int, int] | None


def entries_max(queue_bytes_max: int) -> int:
    """Return how many entries a queue of this bound may keep; 0 = no bound."""
    if not queue_bytes_max:
        return _ENTRIES_MAX
    return max(_ENTRIES_MIN, min(_ENTRIES_MAX, queue_bytes_max // _SHARE_OF_QUEUE // _ENTRY_BYTES_MAX))


class Ledger:
    """The ledger's tables on the queue's own connection."""

    def __init__(self, connection: sqlite3.Connection, entries_max: int) -> None:
        self._connection = connection
        self._entries_max = entries_max
        self.recent: list[Loss] = []

    def record(self, loss: Loss) -> None:
        """Write a loss down, inside the transaction that gives the messages up."""
        if not loss.messages:
            return
        self.recent.append(loss)
        self._connection.execute(
            "INSERT INTO edge_loss_total (reason, messages) VALUES (?, ?)"
            " ON CONFLICT (reason) DO UPDATE SET messages = messages + excluded.messages",
            (loss.reason, loss.messages),
        )
        now = time.time()
        for messages, event_ids in _pieces(loss):
            self._write(loss, messages, event_ids, now)
        self._connection.execute(
            "DELETE FROM edge_loss WHERE loss_id <= (SELECT MAX(loss_id) FROM edge_loss) - ?", (self._entries_max,)
        )

    def inherit(self, entries: Sequence[Sequence[Any]], totals: Sequence[tuple[str, int, int]]) -> None:
        """Take over the ledger of a damaged file, entries under their old ids; nothing of it counts as new."""
        marks = ", ".join("?" * len(_ENTRY_COLUMNS.split(", ")))
        self._connection.executemany(f"INSERT OR IGNORE INTO edge_loss ({_ENTRY_COLUMNS}) VALUES ({marks})", entries)
        self._connection.executemany(
            "INSERT INTO edge_loss_total (reason, messages, told) VALUES (?, ?, ?) ON CONFLICT (reason) DO UPDATE"
            " SET messages = messages + excluded.messages, told = told + excluded.told",
            totals,
        )

    def entries(self, after_id: int = 0, count_max: int = _ENTRIES_MAX) -> list[Entry]:
        """Return entries above this id, oldest first."""
        rows = self._connection.execute(
            f"SELECT {_ENTRY_COLUMNS} FROM edge_loss WHERE loss_id > ? ORDER BY loss_id LIMIT ?", (after_id, count_max)
        )
        return [_entry(row) for row in rows]

    def totals(self) -> dict[str, int]:
        """Return how many messages were ever lost for each reason; exact also after entries were trimmed."""
        return dict(
            self._connection.execute(f"SELECT reason, messages FROM edge_loss_total WHERE {_SANE} ORDER BY reason")
        )

    def untold(self) -> list[Untold]:
        """Return what the cloud was not told yet, one a reason; nothing of what was counted before."""
        totals = self._connection.execute(
            f"SELECT reason, messages - told FROM edge_loss_total WHERE messages > told AND reason <> ? AND {_SANE}"
            " ORDER BY reason",
            (LossReason.DEAD_REMOVED,),
        ).fetchall()
        if not totals:
            return []
        entries = self.entries(self._told_to(), _UNTOLD_ENTRIES_MAX)
        return [_untold(reason, messages, [e for e in entries if e.reason == reason]) for reason, messages in totals]

    def mark_told(self) -> None:
        """Hold everything for told; entries are closed by that, later losses make new ones."""
        self._connection.execute("UPDATE edge_loss_total SET told = messages")
        self._connection.execute(
            "INSERT OR REPLACE INTO edge_note VALUES (?, (SELECT IFNULL(MAX(loss_id), 0) FROM edge_loss))", (_TOLD_TO,)
        )

    def _told_to(self) -> int:
        row = self._connection.execute("SELECT value FROM edge_note WHERE key = ?", (_TOLD_TO,)).fetchone()
        with suppress(ValueError, TypeError):
            return int(row[0]) if row else 0
        return 0

    def _write(self, loss: Loss, messages: int, event_ids: list[str], now: float) -> None:
        first_at, last_at = (now if at is None else at for at in (loss.first_at, loss.last_at))
        last = self._last_of(loss, now) if len(event_ids) < _ENTRY_IDS_MAX else None
        if last and _fits(joined := [*last.event_ids, *event_ids]):
            self._connection.execute(
                "UPDATE edge_loss SET at = ?, messages = messages + ?, event_ids = ?,"
                " first_at = MIN(IFNULL(first_at, ?), ?), last_at = MAX(IFNULL(last_at, ?), ?) WHERE loss_id = ?",
                (now, messages, orjson.dumps(joined).decode(), *[first_at] * 2, *[last_at] * 2, last[0]),
            )
            return
        self._connection.execute(
            "INSERT INTO edge_loss (at, reason, messages, topic, event_ids, detail, first_at, last_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(now, loss.reason, messages, loss.topic),
                *(orjson.dumps(event_ids).decode(), loss.detail, first_at, last_at),
            ),
        )

    def _last_of(self, loss: Loss, now: float) -> Entry | None:
        row = self._connection.execute(
            f"SELECT {_ENTRY_COLUMNS} FROM edge_loss WHERE loss_id > MAX(?, (SELECT MAX(loss_id) FROM edge_loss) - ?)"
            " AND reason = ? AND topic IS ? AND detail = ? AND ABS(at - ?) < ? ORDER BY loss_id DESC LIMIT 1",
            (self._told_to(), _JOIN_ENTRIES, loss.reason, loss.topic, loss.detail, now, _JOIN_SECONDS),
        ).fetchone()
        return _entry(row) if row else None


def _entry(row: Sequence[Any]) -> Entry:
    """Return an entry. The table has no checksums: what is no such value, nobody wrote, and counts as unknown."""
    loss_id, at, reason, messages, topic, event_ids, detail, first_at, last_at = row
    return Entry(
        loss_id,
        _time(at) or 0.0,
        str(reason),
        max(0, messages) if isinstance(messages, int) else 0,
        topic if isinstance(topic, str) else None,
        _texts(event_ids),
        str(detail),
        _time(first_at),
        _time(last_at),
    )


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < TIME_MAX else None


def _texts(event_ids: Any) -> tuple[str, ...]:
    with suppress(ValueError, TypeError):
        return tuple(one for one in orjson.loads(event_ids) if isinstance(one, str))
    return ()


def _untold(reason: str, messages: int, entries: list[Entry]) -> Untold:
    topics: Counter[str] = Counter()
    event_ids: list[str] = []
    size_bytes = 0
    for entry in entries:
        if entry.topic is not None and (entry.topic in topics or len(topics) < _UNTOLD_TOPICS_MAX):
            topics[entry.topic] += entry.messages
        for event_id in entry.event_ids:
            size_bytes += len(orjson.dumps(event_id)) + 1
            if size_bytes <= _UNTOLD_IDS_BYTES_MAX:
                event_ids.append(event_id)
    firsts = [entry.first_at for entry in entries if entry.first_at is not None]
    lasts = [entry.last_at for entry in entries if entry.last_at is not None]
    loss_ids = (entries[0].loss_id, entries[-1].loss_id) if entries else None
    return Untold(
        reason, messages, dict(topics), event_ids, min(firsts, default=None), max(lasts, default=None), loss_ids
    )


def _fits(event_ids: list[str]) -> bool:
    return len(event_ids) <= _ENTRY_IDS_MAX and len(orjson.dumps(event_ids)) <= _ENTRY_BYTES_MAX


def _pieces(loss: Loss) -> Iterator[tuple[int, list[str]]]:
    """Divide a loss into (messages, ids) that fit an entry each; messages without a known id go with the last."""
    left, piece, size_bytes = loss.messages, list[str](), 2
    for event_id in loss.event_ids:
        id_bytes = len(orjson.dumps(event_id)) + 1
        if piece and (len(piece) == _ENTRY_IDS_MAX or size_bytes + id_bytes > _ENTRY_BYTES_MAX):
            yield len(piece), piece
            left, piece, size_bytes = left - len(piece), [], 2
        piece.append(event_id)
        size_bytes += id_bytes
    yield left, piece
