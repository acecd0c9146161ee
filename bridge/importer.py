"""The importer: events that another queue exported, on their way into this one.

They come as lines, a group at a time, and keep their ids and their bytes; so whoever de-duplicates by id still does. A
row whose id is in the queue already is skipped, so an import that broke off is simply run again. The bounds of the
queue hold as they do for intake: what is given up at one is in the loss ledger (I5, I9), and where nothing may be given
up a group waits. A line that cannot be taken is told by its number and keeps no other from coming in.

`Parcel.of` is pure work away from the disk thread; `Importer.store` is a verb that runs in it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from bridge.admission import Room, fingerprint_of
from bridge.disk_queue import DiskQueue, NewRow
from bridge.message import ID_CHARACTERS_MAX, in_one_line, is_event

if TYPE_CHECKING:
    from bridge.config import QueueSettings

GROUP_LINES, GROUP_BYTES = 1000, 1 << 20  # whichever is reached first ends a group
LINE_BYTES_MAX = 16 << 20  # of one event


class Imported(NamedTuple):
    """What became of a group of lines. `waits`: for want of room nothing of it was stored, bring it again later.

    `faults`: which line, counted from 0, was not taken, and why.
    """

    stored: int = 0
    skipped: int = 0
    dropped: int = 0
    waits: str = ""
    faults: Sequence[tuple[int, str]] = ()


class Parcel(NamedTuple):
    """A group of lines, read: the number of each event's line and its row, and the lines that hold no event."""

    rows: tuple[tuple[int, NewRow], ...]
    faults: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, lines: bytes) -> Parcel:
        """Read lines; empty ones are nothing."""
        now = time.time()
        rows: list[tuple[int, NewRow]] = []
        faults: list[tuple[int, str]] = []
        for number, line in enumerate(lines.split(b"\n")):
            if line.strip():
                read = _row(line.strip(), now)
                if isinstance(read, str):
                    faults.append((number, read))
                else:
                    rows.append((number, read))
        return cls(tuple(rows), tuple(faults))


class Importer:
    """Stores parcels within the bounds of the queue."""

    def __init__(self, bounds: QueueSettings) -> None:
        self._room = Room(bounds)

    def store(self, queue: DiskQueue, parcel: Parcel) -> Imported:
        """Store what is new of a parcel, ready, in its order; call it inside a transaction."""
        known = queue.find_events((_id(row) for _, row in parcel.rows), fingerprint_of, dead_too=True)
        rows: list[NewRow] = []
        faults = list(parcel.faults)
        for number, row in parcel.rows:
            fingerprint = fingerprint_of(row.data)
            if _id(row) not in known:
                rows.append(row)
            elif known[_id(row)] != fingerprint:
                faults.append((number, f"another event with the id {row.event_id!r} is in the queue"))
            known.setdefault(_id(row), fingerprint)
        new = len(rows)
        if rows:
            blocked, reason = self._room.make(queue, rows, whole=False)
            if blocked:
                return Imported(waits=reason)
            queue.put_rows(rows)
        skipped = len(parcel.rows) + len(parcel.faults) - len(faults) - new
        return Imported(len(rows), skipped, new - len(rows), "", sorted(faults))


def _id(row: NewRow) -> str:
    return row.event_id or ""


def _row(line: bytes, now: float) -> NewRow | str:
    """Return the row of an event, or what is wrong with the line."""
    try:
        event = orjson.loads(line)
        if isinstance(event, dict) and event.keys() == {"data_base64"}:  # how an export writes what is no line of text
            line = base64.b64decode(event["data_base64"], validate=True)
            event = orjson.loads(line)
    except (ValueError, TypeError):
        return "it is not JSON"
    if not is_event(event):
        return "it is no CloudEvent with an id"
    if not 0 < len(event["id"]) <= ID_CHARACTERS_MAX:
        return f"its id is empty or longer than {ID_CHARACTERS_MAX} characters"
    return NewRow(in_one_line(line, event), _received_at(event, now), None, event["id"])


def _received_at(event: dict[str, Any], now: float) -> float:
    try:
        return max(0.0, datetime.fromisoformat(event["time"]).timestamp())
    except (KeyError, TypeError, ValueError, OverflowError):
        return now
