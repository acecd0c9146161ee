"""Salvage: the rows of a damaged file, in order of their ids, in portions that fit between the work of the day.

`read` is slow and may run in any thread; `begin`, `store` and `finish` are verbs of the new queue, each for one
transaction, and remember in it how far they came, so a salvage goes on after a restart where it was. The damaged file
is only read (`pages.py`), all of it through the table's tree; where the tree is broken, or may be an older one than
its leaves, the pages that nobody leads to any more are searched for the rows that belong there.

A row is believed if its checksum is right; one without a checksum (the stock library wrote it) if it is JSON. A row
that can be read but is altered becomes dead with reason `crc`. Holds I9: what is missing in the end is in the loss
ledger, in the transaction that ends the salvage.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from bridge.disk_queue.aside import Report
from bridge.disk_queue.mark import read_mark
from bridge.disk_queue.pages import Pages, Place, Record, Value
from bridge.disk_queue.rows import DEAD, DELIVERED, READY, Noted, SavedRow
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, event_id

if TYPE_CHECKING:
    from bridge.disk_queue.queue import DiskQueue

IDS_SKIPPED = 1_000_000_000  # the mark may be behind by what came in its last minute; no id may be given out twice
ID_UNKNOWN = 1 << 48  # where ids go on if nothing says how far they had come
_ID_MAX = ID_UNKNOWN << 8  # no queue lives as long as that

_PORTION_ROWS, _PORTION_BYTES = 500, 1 << 20
_NOTE = "salvage of "
_TABLE = "ack_queue_default"
_STOCK_COLUMNS, _COLUMNS = 4, 9
_ENTRY_VALUES = 8  # of the ledger, beside the id
_STATUSES: dict[Value, int] = {0: READY, 1: READY, 2: READY, DELIVERED: DELIVERED, DEAD: DEAD}
_REASON_UNREADABLE = "salvaged; the reason was unreadable"


class Portion(NamedTuple):
    """Some rows in order; with them so many places are done, and the next one up to this row id."""

    rows: tuple[SavedRow, ...]
    places: int
    last_id: int


class Tally(NamedTuple):
    """How far a salvage came. `altered`: rows that would be waiting if their checksum were right."""

    places: int = 0
    last_id: int = 0
    salvaged: int = 0
    waiting: int = 0
    altered: int = 0
    is_finished: bool = False


class Salvager:
    """One damaged file on its way into a new queue. `read` from any thread, one at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._pages = Pages(file)
        self._lock = threading.Lock()
        self._roots = self._pages.roots()
        self._mark = read_mark(file)
        self._newest_id, self._waiting = self._noted_ends()
        self._places: list[Place] = []
        self._orphans: list[tuple[int, int, int]] | None = None
        self._deaths: dict[int, tuple[Value, ...]] | None = None
        self._spans: list[Noted] | None = None
        self._portions: Iterator[Portion] | None = None

    def close(self) -> None:
        """Close the file, after a `read` that is under way."""
        with self._lock:
            self._pages.close()

    @property
    def next_id(self) -> int:
        """Above every id that the file can have given out."""
        return ID_UNKNOWN if self._newest_id is None else self._newest_id + IDS_SKIPPED

    @property
    def places(self) -> int:
        """How many places of the file there are to read; 0 before the first `read`."""
        return len(self._places)

    def _noted_ends(self) -> tuple[int | None, int | None]:
        """Return the highest row id given out and the number of rows waiting, by whatever knows more of them."""
        sequences = [record.values for record in self._table("sqlite_sequence")]
        newest = [_count(values[1]) for values in sequences if len(values) > 1 and values[0] == _TABLE]
        counts = (_count(record.values[1]) for record in self._table("edge_state") if len(record.values) > 1)
        waiting = next((count for count in counts if count is not None), None)
        in_file = max((number for number in newest if number is not None and number < _ID_MAX), default=None)
        mark = self._mark
        if mark and (in_file is None or mark.newest > in_file or waiting is None):
            return max(in_file or 0, mark.newest), mark.waiting
        return in_file, waiting

    def _table(self, name: str) -> Iterator[Record]:
        return self._pages.table(self._roots.get(name))

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, tally: Tally) -> Portion | None:
        """Return the next rows, at the first call those behind the tally; None at the end."""
        with self._lock:
            if self._portions is None:
                self._portions = self._read(tally)
            return next(self._portions, None)

    def _read(self, tally: Tally) -> Iterator[Portion]:
        self._places = self._pages.places(self._roots.get(_TABLE, 0))
        rows: list[SavedRow] = []
        size_bytes = 0
        for number in range(tally.places, len(self._places)):
            for row in self._rows_at(self._places[number]):
                if number == tally.places and row.row_id and row.row_id <= tally.last_id:
                    continue
                rows.append(row)
                size_bytes += len(row.data or b"")
                if len(rows) >= _PORTION_ROWS or size_bytes >= _PORTION_BYTES:
                    yield Portion(tuple(rows), number, row.row_id or 0)
                    rows, size_bytes = [], 0
        yield Portion(tuple(rows), len(self._places), 0)

    def _rows_at(self, place: Place) -> Iterator[SavedRow]:
        records, unreadable = self._pages.records(place.page) if place.page else ([], 1)
        rows = [row for record in records if (row := self._row(record))]
        if not unreadable and len(rows) == len(records) and not self._pages.may_be_mixed:
            return iter(rows)
        found = {row.row_id for row in rows}
        others = (row for row in self._orphan_rows(place) if row.row_id not in found)
        return heapq.merge(rows, others, key=lambda row: row.row_id or 0)

    def _orphan_rows(self, hole: Place) -> Iterator[SavedRow]:
        """Yield the sound rows of pages that no tree leads to, if their ids belong into this hole."""
        for first, last, page in self._find_orphans():
            if first <= hole.last and last > hole.after:
                rows = (self._row(record) for record in self._pages.records(page)[0])
                yield from (row for row in rows if row and _belongs(row, hole.after, hole.last))

    def _find_orphans(self) -> list[tuple[int, int, int]]:
        if self._orphans is None:
            known = {place.page for place in self._places} | self._pages.free_pages()
            found = ((page, self._sound_ids(page)) for page in self._pages.other_leaves(known))
            self._orphans = sorted((min(ids), max(ids), page) for page, ids in found if ids)
        return self._orphans

    def _sound_ids(self, page: int) -> list[int]:
        rows = (self._row(record) for record in self._pages.records(page)[0])
        return [row.row_id for row in rows if row and row.row_id and row.is_sound]

    def _row(self, record: Record) -> SavedRow | None:
        """Return the row that a record is; None if it is none of the queue's.

        The checksum proves `data` alone: an id that was never given out is dropped (the row gets a new one), a row
        is settled only if it says since when.
        """
        if len(record.values) < _STOCK_COLUMNS:
            return None
        key, data, received_at, status, crc, packet_id, own_id, settled_at, expires_at = _padded(record.values)
        if key is not None or status not in _STATUSES:
            return None
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        its_status = _STATUSES[status] if isinstance(settled_at, (int, float)) else READY
        if its_status == READY and (noted := self._noted_delivery(record.row_id)):
            its_status, status, settled_at = DELIVERED, DELIVERED, noted.settled_at
        return SavedRow(
            record.row_id if 0 < record.row_id < self.next_id else None,
            data if isinstance(data, bytes) else None,
            float(received_at) if isinstance(received_at, (int, float)) else 0.0,
            its_status,
            _count(crc),
            _count(packet_id),
            _event_id(data) if isinstance(data, bytes) and own_id is not None else None,
            float(settled_at) if isinstance(settled_at, (int, float)) and _STATUSES[status] != READY else None,
            float(expires_at) if isinstance(expires_at, (int, float)) else None,
        )

    def _noted_delivery(self, row_id: int) -> Noted | None:
        if self._spans is None:
            spans = (_padded((record.row_id, *record.values[1:]), 3) for record in self._table("edge_delivered"))
            self._spans = [
                Noted(first, last, float(settled_at))
                for first, last, settled_at in spans
                if isinstance(first, int) and isinstance(last, int) and isinstance(settled_at, (int, float))
            ]
        return next((span for span in self._spans if span.first <= row_id <= span.last), None)

    def _death(self, row: SavedRow) -> tuple[Value, ...] | None:
        """Return why a row is dead, or was before it was requeued: reason, HTTP status, attempts, time, excerpt."""
        if self._deaths is None:
            self._deaths = {record.row_id: record.values[1:6] for record in self._table("edge_dead")}
        match tuple(map(_clean, self._deaths.get(row.row_id or 0, ()))):
            case (str(reason), int() | None as status_code, int(attempts), float() | int() as at, str(excerpt)):
                return reason, status_code, attempts, at, excerpt
        return (_REASON_UNREADABLE, None, 0, row.settled_at, "") if row.status == DEAD else None

    # --- verbs of the new queue, each for a transaction ---------------------------------------------------------

    def begin(self, queue: DiskQueue) -> Tally:
        """Return how far an earlier run came; at the first, take the ledger and the batches in flight over.

        Of two files begin the newer one first: if it was damaged in the middle of the older one's salvage, it has the
        older one's ledger already, and knows how far that had come.
        """
        if noted := queue.noted(self._note_key, _tally, None):
            return noted
        entries = [
            (record.row_id, *map(_clean, _padded(record.values[1:], _ENTRY_VALUES)))
            for record in self._table("edge_loss")
        ]
        spans = [(record.row_id, _count(record.values[1])) for record in self._table("edge_batch")]
        queue.inherit(
            entries,
            self._totals(entries),
            list(self._notes()),
            [(first, last) for first, last in spans if last and first <= last < self.next_id],
        )
        return self._noted(queue, Tally())

    def _notes(self) -> Iterator[tuple[str, str]]:
        for values in self._pages.keyed(self._roots.get("edge_note")):
            match values:
                case (str(key), str(value)):
                    yield str(_clean(key)), str(_clean(value))

    def _totals(self, entries: Sequence[tuple[Value, ...]]) -> list[tuple[str, int, int]]:
        """Return reason, messages, told; if the totals cannot be read, by the entries, and all of it as told."""
        totals: list[tuple[str, int, int]] = []
        for values in self._pages.keyed(self._roots.get("edge_loss_total")):
            match values:
                case (str(reason), int(messages), int(told)):
                    totals.append((str(_clean(reason)), messages, told))
        sums: Counter[str] = Counter()
        for entry in entries:
            match entry:
                case (_, _, str(reason), int(messages), *_):
                    sums[reason] += messages
        return totals or [(reason, messages, messages) for reason, messages in sums.items()]

    def store(self, queue: DiskQueue, tally: Tally, portion: Portion) -> Tally:
        """Store rows as they were, the altered ones as dead (I9: with the ledger). Returns the tally after it."""
        salvaged = 0
        waiting: list[int] = []
        altered: list[DeadRow] = []
        for row in portion.rows:
            row_id = queue.put_back(row, self._death(row))
            if row_id is None:
                continue  # an older copy of a row that is there already
            if row.is_altered and row.status == READY:
                altered.append(DeadRow(row_id, "crc"))
            else:
                salvaged += 1
                waiting += [row_id] if row.status == READY else []
        queue.bring_forward(waiting)
        if altered:
            queue.reject(altered)
        counted = (tally.salvaged + salvaged, tally.waiting + len(waiting), tally.altered + len(altered))
        return self._noted(queue, Tally(portion.places, portion.last_id, *counted, tally.is_finished))

    def finish(self, queue: DiskQueue, tally: Tally) -> Report:
        """Write what is missing in the loss ledger (I9), and return the report."""
        total = None if self._waiting is None else max(self._waiting, tally.waiting + tally.altered)
        lost = None if total is None else total - tally.waiting
        missing = 0 if lost is None else lost - tally.altered  # the altered ones are in the ledger already
        if not tally.is_finished:
            queue.record_loss(Loss(LossReason.DAMAGED, missing, None, (), f"unreadable in {self.file.name}"))
        self._noted(queue, tally._replace(is_finished=True))
        return Report(self.file.name, tally.salvaged, tally.waiting, tally.altered, lost, total)

    def _noted(self, queue: DiskQueue, tally: Tally) -> Tally:
        queue.write_note(self._note_key, orjson.dumps(tally._asdict()).decode())
        return tally

    @property
    def _note_key(self) -> str:
        return f"{_NOTE}{self.file.name}"


def _tally(note: str) -> Tally | None:
    return Tally(**orjson.loads(note))


def _clean(value: Value) -> Value:
    """Return text that SQLite takes: a flip may have made some that is none, and `pages` reads it all the same."""
    return (
        value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(value, str)
        else value
    )


def _padded(values: tuple[Value, ...], columns: int = _COLUMNS) -> tuple[Value, ...]:
    """Rows written before a column was added do not have it; columns that came later than ours are not ours."""
    return (*values, *[None] * columns)[:columns]


def _belongs(row: SavedRow, after: int, last: int) -> bool:
    return row.row_id is not None and after < row.row_id <= last and row.is_sound


def _count(value: Value) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _event_id(data: bytes) -> str | None:
    try:
        return event_id(data)
    except (ValueError, TypeError, KeyError):
        return None
