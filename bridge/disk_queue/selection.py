"""Which rows the operator means, read page by page: a queue of a million rows never stands in memory, nor in the way.

A page looks at `PAGE_ROWS` rows or `_PAGE_BYTES`, whichever comes first, by key and not by offset; so each is read in
a few milliseconds between two groups of intake (I5, I7). Only reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from bridge.disk_queue.rows import DEAD, DELIVERED, TIME_MAX
from bridge.message import event_id_and_subject, event_ids_and_subjects
from bridge.topics import overlap

PAGE_ROWS = 500
_PAGE_BYTES = 1 << 20
_LINES_ROWS = 4096  # in a page of bare bytes, of which nothing is decoded
_COLUMNS_ROWS = 2048  # in a page of columns, of which only what stands before the payload is

STATES = ("ready", "taken", "delivered", "dead")
_COLUMNS = (
    "_id, CAST(data AS BLOB), status, CAST(timestamp AS REAL), settled_at,"
    " edge_dead.reason, status_code, attempts, at, excerpt"
)


class Selection(NamedTuple):
    """Every part that is given must match; () and None match everything. `topic` is a filter with wildcards."""

    states: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    received_before: float | None = None
    topic: str | None = None
    reason: str | None = None


class Death(NamedTuple):
    """Why a row is dead: its last answer, and the attempts of all its lives."""

    reason: str
    status_code: int | None
    attempts: int
    at: float
    excerpt: str


class Listed(NamedTuple):
    """A row as it is shown. What cannot be read of it is None; `died`: why it is, or was once, dead."""

    row_id: int
    event_id: str | None
    state: str
    topic: str | None
    received_at: float | None
    settled_at: float | None
    data: bytes
    died: Death | None


class Columns(NamedTuple):
    """Rows as the columns of a table: `Listed` side by side, without what became of them."""

    row_ids: list[int]
    event_ids: list[str | None]
    states: list[str]
    topics: list[str | None]
    received_at: list[float | None]
    data: list[bytes]


_NONE = Columns([], [], [], [], [], [])


def page(
    connection: sqlite3.Connection, selection: Selection, after_id: int, taken: Collection[int]
) -> tuple[list[Listed], int | None]:
    """Return the selected rows among the next ones after this row, and after which to go on; None: that was all."""
    found: list[Listed] = []
    size_bytes = 0
    for looked, row in enumerate(_rows(connection, selection, after_id), start=1):
        listed = _listed(row, taken)
        if _matches(listed, selection):
            found.append(listed)
        size_bytes += len(listed.data)
        if looked >= PAGE_ROWS or size_bytes >= _PAGE_BYTES:
            return found, listed.row_id
    return found, None


def bare_page(
    connection: sqlite3.Connection, selection: Selection, after_id: int, taken: Collection[int]
) -> tuple[list[bytes], int | None]:
    """Return the stored bytes of the selected rows among the next ones; they are decoded only where it must be."""
    if _is_narrow(selection):
        rows, following = page(connection, selection, after_id, taken)
        return [row.data for row in rows], following
    found, following = _bare_rows(connection, selection, after_id, taken, _LINES_ROWS)
    return [data or b"" for _, data, _, _ in found], following


def columns_page(
    connection: sqlite3.Connection, selection: Selection, after_id: int, taken: Collection[int]
) -> tuple[Columns, int | None]:
    """Return the selected rows among the next ones as columns."""
    if _is_narrow(selection):
        rows, following = page(connection, selection, after_id, taken)
        listed = [(*row[:5], row.data) for row in rows]
        return Columns(*(list(column) for column in zip(*listed, strict=True))) if listed else _NONE, following
    found, following = _bare_rows(connection, selection, after_id, taken, _COLUMNS_ROWS)
    if not found:
        return _NONE, following
    row_ids, data, statuses, times = map(list, zip(*found, strict=True))
    data = [stored or b"" for stored in data]
    event_ids, topics = event_ids_and_subjects(data) or zip(*map(_identity, data), strict=True)
    states = [_state(status, row_id, taken) for row_id, status in zip(row_ids, statuses, strict=True)]
    time_of = {value: _time(value) for value in set(times)}
    return Columns(row_ids, [*event_ids], states, [*topics], [time_of[value] for value in times], data), following


def _is_narrow(selection: Selection) -> bool:
    """Tell whether rows must be decoded, or looked up, to know if they are meant."""
    return bool(selection.ids) or selection.topic is not None or selection.reason is not None


def _bare_rows(
    connection: sqlite3.Connection, selection: Selection, after_id: int, taken: Collection[int], rows_max: int
) -> tuple[list[tuple[int, bytes | None, int, Any]], int | None]:
    """Return id, bytes, status and time of the selected rows among the next ones, and how to go on."""
    head, condition = _place(selection)
    sql = f"SELECT _id, CAST(data AS BLOB), status, CAST(timestamp AS REAL) FROM ack_queue_default {head}"
    looked: list[tuple[int, bytes | None, int, Any]] = []
    size_bytes = 0
    for row in connection.execute(f"{sql} WHERE {condition} ORDER BY _id LIMIT ?", (after_id, rows_max)):
        looked.append(row)
        size_bytes += len(row[1] or b"")
        if size_bytes >= _PAGE_BYTES:
            break
    following = looked[-1][0] if len(looked) == rows_max or size_bytes >= _PAGE_BYTES else None
    wanted = frozenset(selection.states or STATES)
    if wanted == frozenset(STATES) and selection.received_before is None:
        return looked, following
    return [
        row
        for row in looked
        if _state(row[2], row[0], taken) in wanted and _is_older(_time(row[3]), selection.received_before)
    ], following


def ids_without_index(connection: sqlite3.Connection, after_id: int) -> tuple[list[str], int | None]:
    """Return the ids that the bridge made (producers' own are in an index) of the next rows, and how to go on."""
    looked = connection.execute(
        "SELECT _id, CASE WHEN event_id IS NULL THEN CAST(data AS BLOB) END FROM ack_queue_default"
        " WHERE _id > ? ORDER BY _id LIMIT ?",
        (after_id, PAGE_ROWS),
    ).fetchall()
    ids = [own_id for _, data in looked if data and (own_id := _identity(data)[0])]
    return ids, looked[-1][0] if len(looked) == PAGE_ROWS else None


def _rows(connection: sqlite3.Connection, selection: Selection, after_id: int) -> Iterator[tuple[Any, ...]]:
    known = _by_own_id(connection, selection.ids)
    head, condition = _place(selection) if known is None else ("", f"_id > ? AND _id IN ({','.join(map(str, known))})")
    sql = f"SELECT {_COLUMNS} FROM ack_queue_default {head} LEFT JOIN edge_dead ON row_id = _id WHERE {condition}"
    return connection.execute(f"{sql} ORDER BY _id", (after_id,))


def _place(selection: Selection) -> tuple[str, str]:
    """Return by which index the rows of these states are found, and its condition."""
    states = set(selection.states or STATES)
    if states <= {"ready", "taken"}:
        return "INDEXED BY edge_ready", "status < 2 AND _id > ?"
    if len(states) == 1:
        status = DEAD if "dead" in states else DELIVERED
        return "INDEXED BY edge_settled", f"status >= 5 AND status = {status} AND _id > ?"
    return "", "_id > ?"


def _by_own_id(connection: sqlite3.Connection, event_ids: tuple[str, ...]) -> list[int] | None:
    """Return the rows with these producers' ids by their index, or None if one of them needs a look at every row."""
    row_ids: list[int] = []
    for own_id in event_ids:
        rows = connection.execute(
            "SELECT _id FROM ack_queue_default INDEXED BY edge_event WHERE event_id = ? AND event_id IS NOT NULL",
            (own_id,),
        ).fetchall()
        if not rows:
            return None
        row_ids += [row_id for (row_id,) in rows]
    return row_ids if event_ids else None


def _listed(row: tuple[Any, ...], taken: Collection[int]) -> Listed:
    row_id, data, status, received_at, settled_at, *died = row
    data = data or b""
    own_id, topic = _identity(data)
    return Listed(
        row_id, own_id, _state(status, row_id, taken), topic, _time(received_at), _time(settled_at), data, _died(died)
    )


def _identity(data: bytes) -> tuple[str | None, str | None]:
    try:
        return event_id_and_subject(data)
    except (ValueError, TypeError, KeyError, AttributeError):  # it cannot be decoded, or is no event yet
        return None, None


def _state(status: int, row_id: int, taken: Collection[int]) -> str:
    if status == DEAD:
        return "dead"
    if status == DELIVERED:
        return "delivered"
    return "taken" if row_id in taken else "ready"


def _time(value: Any) -> float | None:
    return value if isinstance(value, float) and 0 <= value < TIME_MAX else None


def _died(columns: list[Any]) -> Death | None:
    if columns[0] is None:
        return None
    reason, status_code, attempts, at, excerpt = columns  # a small table, without checksums
    is_number = isinstance(status_code, int)
    return Death(str(reason), status_code if is_number else None, _number(attempts), _time(at) or 0.0, str(excerpt))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _matches(row: Listed, selection: Selection) -> bool:
    return (
        (not selection.states or row.state in selection.states)
        and (not selection.ids or row.event_id in selection.ids)
        and _is_older(row.received_at, selection.received_before)
        and (selection.topic is None or (row.topic is not None and overlap(selection.topic, row.topic)))
        and (selection.reason is None or (row.died is not None and row.died.reason == selection.reason))
    )


def _is_older(received_at: float | None, received_before: float | None) -> bool:
    return received_before is None or (received_at or 0.0) < received_before
