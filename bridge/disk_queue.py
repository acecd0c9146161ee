"""The disk queue: persist-queue's `SQLiteAckQueue`, made to take many rows in one transaction and to survive.

This is the one place that knows persist-queue and sqlite3. It is synchronous and belongs to one thread (the disk
thread). It never encodes, uploads, confirms or waits, and it never unpickles.

The format, whole
-----------------
`data.db` in the queue's folder, SQLite in WAL mode. persist-queue's table holds one row a message:

    ack_queue_default   _id        INTEGER PRIMARY KEY AUTOINCREMENT   order of arrival
                        data       BLOB     the message, a CloudEvent in JSON, byte for byte what is uploaded
                        timestamp  FLOAT    when it was received, seconds since 1970
                        status     INTEGER  0, 1 ready · 2 taken (only by the stock library) · 5 delivered · 9 dead
      added by us:      crc        INTEGER  CRC-32 of data; NULL = written by the stock library
                        packet_id  INTEGER  MQTT packet id it came with; tells a redelivery from a new message
                        event_id   TEXT     the producer's own id, if it has one; finds duplicates
                        settled_at FLOAT    when it became delivered or dead

    edge_state          one row: how many are waiting, delivered, dead. Written in the transaction that changes
                        them, so they are right after any crash and nothing is counted at start.
    edge_batch          (first_id, last_id) of the batches in flight, so that after a restart the same rows leave
                        together again, under the same idempotency key. Written with the next change that is
                        written anyway: until then nothing else was written, and taking again gives the same rows.
    edge_dead           why a row is dead: reason, HTTP status, attempts, time, excerpt of the answer
    edge_loss           the loss ledger: what was refused, dropped or died, in the transaction that gave it up
    edge_note           what a later start must know (key, value)

    ready index         the rows with status < 2: taking costs the same behind a million delivered rows
    settled index       the delivered and dead rows: what housekeeping deletes, and counts at start
    stray index         the rows the stock library touched (no crc, or settled without a time); normally empty, so
                        one look tells at start whether somebody else used the file, and only then it is counted

"Taken" lives in memory: a taken row has status 0 on disk, so after any crash it is ready again by itself.

Holds I3 (a row is in exactly one of ready, taken, delivered, dead), I4 (after a restart every taken row is ready),
I9 (the ledger is written before, that is with, the loss) and the disk's half of I1: when `transaction()` is left
without an exception, the rows are on the medium (durability `power`: synchronous=FULL; `crash`: NORMAL).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from persistqueue import SQLiteAckQueue

from bridge.errors import (
    BridgeError,
    DiskFailedError,
    DiskFullError,
    FaultError,
    QueueDamagedError,
    QueueInUseError,
    QueueUnusableError,
)
from bridge.message import DeadRow, Row, event_id

FILE_NAME = "data.db"
LOCK_NAME = "bridge.lock"
APPLICATION_ID = 0x45444742  # "EDGB" in the header of the file: tells it from another program's database
FORMAT_VERSION = 1  # PRAGMA user_version; 0 is the stock library's

_READY, _DELIVERED, _DEAD = 0, 5, 9  # persist-queue's status codes
_INSERT_ROWS_STEPS = (512, 64, 8, 1)  # one prepared statement for each; 512 x 6 values stay far below SQLite's 32,766
_TIDY_ROWS = 2000  # rows deleted in one step of housekeeping
_CLOCK_SET_SINCE = 1_704_067_200  # 2024-01-01: what claims to be older came before the clock was set
_TIME_MAX = 253_402_300_800  # the year 10000: no clock says more
_LOSSES_MAX = 10_000  # entries of the ledger ...
_LOSS_IDS_MAX = 100  # ... and ids in one of them; the number of messages is always exact
_VACUUM_PAGES = 256  # pages given back to the file system in one step

_SCHEMA = """
CREATE INDEX IF NOT EXISTS edge_ready ON ack_queue_default (_id) WHERE status < 2;
CREATE INDEX IF NOT EXISTS edge_settled ON ack_queue_default (status, _id) WHERE status >= 5;
CREATE INDEX IF NOT EXISTS edge_stray ON ack_queue_default (_id)
    WHERE crc IS NULL OR (status >= 2 AND settled_at IS NULL);
CREATE INDEX IF NOT EXISTS edge_event ON ack_queue_default (event_id) WHERE event_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS edge_state (one INTEGER PRIMARY KEY CHECK (one = 1), waiting INTEGER NOT NULL,
    delivered INTEGER NOT NULL, dead INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS edge_batch (first_id INTEGER PRIMARY KEY, last_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS edge_dead (row_id INTEGER PRIMARY KEY, reason TEXT NOT NULL, status_code INTEGER,
    attempts INTEGER NOT NULL, at FLOAT NOT NULL, excerpt TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS edge_loss (loss_id INTEGER PRIMARY KEY AUTOINCREMENT, at FLOAT NOT NULL,
    reason TEXT NOT NULL, messages INTEGER NOT NULL, topic TEXT, event_ids TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS edge_note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_ADDED_COLUMNS = {"crc": "INTEGER", "packet_id": "INTEGER", "event_id": "TEXT", "settled_at": "FLOAT"}
_STOCK_COLUMNS = {"_id", "data", "timestamp", "status"}

Durability = Literal["power", "crash"]
Adopt = Callable[[bytes, float], bytes | None]


class EventSerializer:
    """What the stock library needs to read and write our rows: JSON, never pickle. Bytes are stored as they are."""

    @staticmethod
    def dumps(item: Any, *_: Any, **__: Any) -> bytes:
        """Return the bytes to store; raises TypeError for what JSON cannot say."""
        return item if isinstance(item, bytes) else orjson.dumps(item)

    @staticmethod
    def loads(stored: bytes | str) -> Any:
        """Return what the stored bytes say; raises ValueError if they are not JSON."""
        return orjson.loads(stored)

    @classmethod
    def dump(cls, item: Any, fp: Any, *_: Any, **__: Any) -> None:
        """Write `dumps(item)` to a binary file."""
        fp.write(cls.dumps(item))

    @classmethod
    def load(cls, fp: Any) -> Any:
        """Read one item from a binary file."""
        return cls.loads(fp.read())


serializer = EventSerializer()


class NewRow(NamedTuple):
    """What is to be stored of one message."""

    data: bytes
    received_at: float
    packet_id: int | None = None
    event_id: str | None = None


class Loss(NamedTuple):
    """One entry of the loss ledger: messages that are gone, which, and why."""

    reason: str
    messages: int
    topic: str | None
    event_ids: tuple[str, ...] = ()
    detail: str = ""


class Counts(NamedTuple):
    """How many rows are in each state, and what they take up on disk. O(1), exact after any crash."""

    ready: int
    taken: int
    delivered: int
    dead: int
    size_bytes: int


class _Span(NamedTuple):
    """Rows that left together: ids from first to last; `ids` are those not settled yet."""

    first: int
    last: int
    ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class _State:
    """All that the queue knows in memory. A rolled back transaction just takes the old value again."""

    waiting: int  # ready or taken
    delivered: int
    dead: int
    cursor: int = 0  # every waiting row up to here is in a span of `flying` or `returned`
    flying: tuple[_Span, ...] = ()
    returned: tuple[tuple[int, int], ...] = ()  # spans to take again before new rows

    @property
    def taken(self) -> int:
        return sum(len(span.ids) for span in self.flying)


class DiskQueue(SQLiteAckQueue):
    """The queue on disk; every verb runs inside `transaction()` and is durable when that is left.

    `adopt` turns what the stock library stored (bytes, time) into a stored event, or None if it cannot.
    Raises QueueUnusableError (the operator must act), QueueDamagedError, DiskFullError, DiskFailedError.
    """

    def __init__(self, folder: Path, *, durability: Durability = "power", adopt: Adopt = lambda data, _: data) -> None:
        self.folder = folder
        self._durability = durability
        self._adopt = adopt
        self._changed = False
        with _mapped(folder):
            super().__init__(str(folder), multithreading=False, auto_resume=False, serializer=serializer)
            self._prepare()

    # --- opening -----------------------------------------------------------------------------------------------

    def _new_db_connection(self, path: str, multithreading: bool, timeout: float) -> sqlite3.Connection:  # noqa: ARG002, FBT001 - the stock library's signature
        file = Path(path) / FILE_NAME
        _make_private(file)
        connection = sqlite3.connect(file, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            _refuse_foreign(connection, file)
            for ours in file.parent.glob(FILE_NAME + "*"):  # a file of ours, not before; -wal may be there already
                ours.chmod(0o600)
            _set_pragmas(connection, self._durability)
        except BaseException:
            connection.close()
            raise
        return connection

    def _count(self) -> int:
        # The stock library counts the whole table here, at every start.
        return 0

    def _prepare(self) -> None:
        known = {row[1] for row in self._conn.execute("PRAGMA table_info(ack_queue_default)")}
        if self._conn.execute("PRAGMA user_version").fetchone()[0] < FORMAT_VERSION or not known >= set(_ADDED_COLUMNS):
            self._migrate(known)
        self._state = self._load_state()

    def _migrate(self, known: set[str]) -> None:
        self._conn.execute("BEGIN IMMEDIATE")
        for column, kind in _ADDED_COLUMNS.items():
            if column not in known:
                self._conn.execute(f"ALTER TABLE ack_queue_default ADD COLUMN {column} {kind}")
        for statement in _SCHEMA.split(";"):
            self._conn.execute(statement)
        self._conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._conn.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        self._conn.execute("COMMIT")

    def _load_state(self) -> _State:
        stray = self._conn.execute(
            "SELECT 1 FROM ack_queue_default INDEXED BY edge_stray"
            " WHERE crc IS NULL OR (status >= 2 AND settled_at IS NULL) LIMIT 1"
        ).fetchone()
        row = self._conn.execute("SELECT waiting, delivered, dead FROM edge_state").fetchone()
        # Few rows are settled and kept; without this look the stock library's clean-up would go unnoticed.
        counting = "SELECT COUNT(*) FROM ack_queue_default INDEXED BY edge_settled WHERE status >= 5 AND status = {}"
        settled = tuple(self._conn.execute(counting.format(status)).fetchone()[0] for status in (_DELIVERED, _DEAD))
        if stray or row is None or row[1:] != settled:
            return self._recount()
        spans = tuple(self._conn.execute("SELECT first_id, last_id FROM edge_batch ORDER BY first_id"))
        return _State(row[0], row[1], row[2], cursor=max((last for _, last in spans), default=0), returned=spans)

    def _recount(self) -> _State:
        """Somebody else used the file: give back what was taken, date what was settled, count everything once."""
        self._conn.execute("BEGIN IMMEDIATE")
        self._conn.execute("UPDATE ack_queue_default SET status = 1 WHERE status = 2")
        self._conn.execute(
            "UPDATE ack_queue_default SET settled_at = ? WHERE status > 2 AND settled_at IS NULL", (time.time(),)
        )
        by_status = dict(
            self._conn.execute("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status").fetchall()
        )
        state = _State(by_status.get(0, 0) + by_status.get(1, 0), by_status.get(_DELIVERED, 0), by_status.get(_DEAD, 0))
        self._write_state(state)
        self._conn.execute("COMMIT")
        return state

    # --- the transaction ---------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the verbs inside as one transaction with one sync; on any error nothing of it happened."""
        before = self._state
        self._changed = False
        try:
            with _mapped(self.folder):
                self._conn.execute("BEGIN")
                yield
                if self._changed:
                    self._write_state(self._state)
                self._conn.execute("COMMIT")
        except BaseException:
            self._state = before
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise

    def _write_state(self, state: _State) -> None:
        self._conn.execute(
            "INSERT OR REPLACE INTO edge_state VALUES (1, ?, ?, ?)", (state.waiting, state.delivered, state.dead)
        )
        self._conn.execute("DELETE FROM edge_batch")
        spans = _merged([*((span.first, span.last) for span in state.flying), *state.returned])
        if spans:
            self._conn.executemany("INSERT INTO edge_batch VALUES (?, ?)", spans)

    # --- the verbs ---------------------------------------------------------------------------------------------

    def put_rows(self, rows: Sequence[NewRow]) -> None:
        """Store new rows, ready, in the given order."""
        start = 0
        for step in _INSERT_ROWS_STEPS:
            # Many rows in one statement: sqlite3 gives up the interpreter lock once a statement, not once a row.
            while len(rows) - start >= step:
                values: list[Any] = []
                for data, received_at, packet_id, own_id in rows[start : start + step]:
                    values += (data, received_at, _READY, zlib.crc32(data), packet_id, own_id)
                self._conn.execute(_insert_sql(step), values)
                start += step
        self._become(waiting=self._state.waiting + len(rows))

    def take(self, messages_max: int, bytes_max: int) -> tuple[Row, ...]:
        """Take the oldest ready rows, at most so many and (but for the first) so many bytes; () if none is ready.

        Batches open at the last stop, and released rows, come first and in their old company. Rows that fail
        their checksum or cannot be decoded become dead here and are not returned.
        """
        while self._state.returned:
            (first, last), *rest = self._state.returned
            self._state = replace(self._state, returned=tuple(rest))
            if rows := self._take_span(first, last, messages_max, bytes_max):
                return rows
        rows = self._take_span(self._state.cursor + 1, 2**62, messages_max, bytes_max)
        if not rows and self._state.waiting > self._state.taken:
            # Cannot happen as long as the cursor's invariant holds; if it ever does not, no row may be stuck.
            rows = self._take_span(0, 2**62, messages_max, bytes_max)
        return rows

    def _take_span(self, first: int, last: int, messages_max: int, bytes_max: int) -> tuple[Row, ...]:
        taken: frozenset[int] = frozenset().union(*(span.ids for span in self._state.flying))
        rows: list[Row] = []
        bad: list[DeadRow] = []
        size_bytes, at, full = 0, first - 1, False
        cursor = self._conn.execute(
            "SELECT _id, CAST(data AS BLOB), crc, timestamp FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 AND _id BETWEEN ? AND ? ORDER BY _id",
            (first, last),
        )
        for row_id, data, crc, received_at in cursor:
            if row_id in taken:
                continue
            if full or len(rows) >= messages_max or (rows and size_bytes + len(data or b"") > bytes_max):
                full = True
                break
            at = row_id
            checked = self._checked(row_id, data, crc, received_at)
            if isinstance(checked, DeadRow):
                bad.append(checked)
            else:
                rows.append(checked)
                size_bytes += len(checked.data)
        cursor.close()
        if full and last <= self._state.cursor:
            self._state = replace(self._state, returned=_merged([(at + 1, last), *self._state.returned]))
        if bad:
            self.reject(bad)
        if not rows:
            return ()
        span = _Span(rows[0].row_id, rows[-1].row_id, frozenset(row.row_id for row in rows))
        self._state = replace(
            self._state, flying=(*self._state.flying, span), cursor=max(self._state.cursor, at, span.last)
        )
        return tuple(rows)

    def _checked(self, row_id: int, data: bytes | None, crc: Any, received_at: Any) -> Row | DeadRow:
        if crc is not None and data is not None:
            return Row(row_id, data) if zlib.crc32(data) == crc else DeadRow(row_id, "crc")
        is_time = isinstance(received_at, (int, float)) and 0 <= received_at < _TIME_MAX
        event = None if data is None else self._adopt(data, float(received_at) if is_time else 0.0)
        if event is None:
            return DeadRow(row_id, "undecodable")
        self._conn.execute(
            "UPDATE ack_queue_default SET data = ?, crc = ? WHERE _id = ?", (event, zlib.crc32(event), row_id)
        )
        self._changed = True
        return Row(row_id, event)

    def ack_rows(self, row_ids: Sequence[int]) -> None:
        """Taken rows become delivered: an answer of the cloud covers them."""
        self._settle(row_ids, _DELIVERED)
        self._become(waiting=self._state.waiting - len(row_ids), delivered=self._state.delivered + len(row_ids))

    def reject(self, dead: Sequence[DeadRow]) -> None:
        """Rows become dead: kept with the reason, and written in the loss ledger in this very transaction (I9)."""
        self._settle([row.row_id for row in dead], _DEAD)
        now = time.time()
        self._conn.executemany(
            "INSERT OR REPLACE INTO edge_dead VALUES (?, ?, ?, ?, ?, ?)",
            [(row.row_id, row.reason, row.status_code, row.attempts, now, row.excerpt) for row in dead],
        )
        for row in dead:
            data = self.stored_event(row.row_id)
            self.record_loss(Loss("dead", 1, None, _ids_of(data), f"row {row.row_id}: {row.reason}"))
        self._become(waiting=self._state.waiting - len(dead), dead=self._state.dead + len(dead))

    def release(self, row_ids: Sequence[int]) -> None:
        """Taken rows become ready again, in their old place and company."""
        gone = frozenset(row_ids)
        back = [(min(ids), max(ids)) for span in self._state.flying if (ids := span.ids & gone)]
        self._forget(gone)
        self._state = replace(self._state, returned=_merged([*self._state.returned, *back]))

    def _settle(self, row_ids: Sequence[int], status: int) -> None:
        now, changed = time.time(), 0
        for first, last in _runs(row_ids):
            changed += self._conn.execute(
                "UPDATE ack_queue_default SET status = ?, settled_at = ? WHERE _id BETWEEN ? AND ? AND status < 2",
                (status, now, first, last),
            ).rowcount
        if changed != len(row_ids):
            raise QueueDamagedError(
                f"{len(row_ids)} rows were to be settled but {changed} were waiting in {self.folder / FILE_NAME}",
                "has another program written to the file? Stop it and start the bridge again",
            )
        self._forget(frozenset(row_ids))

    def _forget(self, row_ids: frozenset[int]) -> None:
        left = (span.ids - row_ids for span in self._state.flying)
        self._state = replace(self._state, flying=tuple(_Span(min(ids), max(ids), ids) for ids in left if ids))

    def record_loss(self, loss: Loss) -> None:
        """Write the loss ledger; call it in the transaction in which the messages are given up."""
        self._conn.execute(
            "INSERT INTO edge_loss (at, reason, messages, topic, event_ids, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (
                time.time(),
                loss.reason,
                loss.messages,
                loss.topic,
                orjson.dumps(loss.event_ids[:_LOSS_IDS_MAX]),
                loss.detail,
            ),
        )
        self._conn.execute(
            "DELETE FROM edge_loss WHERE loss_id <= (SELECT MAX(loss_id) FROM edge_loss) - ?", (_LOSSES_MAX,)
        )
        self._changed = True

    def drop_oldest(
        self, messages_min: int, bytes_min: int, reason: str, received_before: float | None = None
    ) -> tuple[int, int]:
        """Give up the oldest ready rows, at least so many and so many bytes, written in the loss ledger (I9).

        With `received_before` at most `messages_min` of those that came before then. Returns messages and bytes.
        """
        taken: frozenset[int] = frozenset().union(*(span.ids for span in self._state.flying))
        row_ids: list[int] = []
        event_ids: list[str] = []
        freed_bytes = 0
        rows = self._conn.execute(
            "SELECT _id, CAST(data AS BLOB), CAST(timestamp AS REAL) FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 ORDER BY _id"
        )
        for row_id, data, received_at in rows:
            if len(row_ids) >= messages_min and freed_bytes >= bytes_min:
                break
            if received_before is not None and received_at >= received_before:
                break
            if row_id not in taken and (received_before is None or received_at > _CLOCK_SET_SINCE):
                row_ids.append(row_id)
                event_ids += _ids_of(data)
                freed_bytes += len(data or b"")
        rows.close()
        for first, last in _runs(row_ids):
            self._conn.execute("DELETE FROM ack_queue_default WHERE _id BETWEEN ? AND ?", (first, last))
        if row_ids:
            self.record_loss(Loss(reason, len(row_ids), None, tuple(event_ids), f"rows {row_ids[0]} to {row_ids[-1]}"))
            self._become(waiting=self._state.waiting - len(row_ids))
        return len(row_ids), freed_bytes

    def excess(self, keep_messages: int) -> int:
        """Return how many delivered rows there are above the number to be kept."""
        return max(0, self._state.delivered - keep_messages)

    def tidy(self, keep_seconds: float, keep_messages: int) -> bool:
        """Delete delivered rows that are too old or too many, oldest first: a small step; tells if more may follow."""
        oldest = self._conn.execute(
            "SELECT _id, settled_at FROM ack_queue_default INDEXED BY edge_settled"
            " WHERE status >= 5 AND status = 5 ORDER BY _id LIMIT ?",  # the index wants its own words
            (_TIDY_ROWS,),
        ).fetchall()
        # Rows are settled nearly in order, so the first that is young enough is followed by younger ones.
        settled_before = time.time() - keep_seconds
        too_old = next((i for i, row in enumerate(oldest) if row[1] > settled_before), len(oldest))
        count = max(self.excess(keep_messages), too_old)
        doomed = [row[0] for row in oldest[:count]]
        for first, last in _runs(doomed):
            self._conn.execute("DELETE FROM ack_queue_default WHERE _id BETWEEN ? AND ? AND status = 5", (first, last))
        if doomed:
            self._become(delivered=self._state.delivered - len(doomed))
        return len(doomed) == _TIDY_ROWS

    def shrink(self) -> None:
        """Give some free pages back to the file system, if more than a quarter of the file is free."""
        free = self._pragma("freelist_count")
        if free > _VACUUM_PAGES and free * 4 > self._pragma("page_count"):
            for _ in range(_VACUUM_PAGES):  # one at a time: sqlite3 stops the pragma after its first step
                self._conn.execute("PRAGMA incremental_vacuum(1)")
            self._changed = True

    # --- questions ---------------------------------------------------------------------------------------------

    def find_events(self, event_ids: Iterable[str], view: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
        """Return what `view` makes of the stored events that carry one of these producer's ids.

        Waiting ones, and those delivered and still kept. One event at a time is in memory.
        """
        wanted = list(dict.fromkeys(event_ids))
        found: dict[str, bytes] = {}
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = self._conn.execute(
                "SELECT event_id, CAST(data AS BLOB) FROM ack_queue_default INDEXED BY edge_event"
                f" WHERE event_id IN ({marks}) AND event_id IS NOT NULL AND status <> 9",
                some,
            )
            found.update((own_id, view(data)) for own_id, data in rows)
        return found

    def arrivals(self, rows_max: int, after_id: int) -> dict[int, int]:
        """Return packet id → row id of the last rows stored (the newest wins), at most so many, after that row."""
        newest = self.newest_id()
        return dict(
            self._conn.execute(
                "SELECT packet_id, _id FROM ack_queue_default WHERE _id > ? AND packet_id IS NOT NULL ORDER BY _id",
                (max(after_id, newest - rows_max),),
            )
        )

    def stored_event(self, row_id: int) -> bytes | None:
        """Return the stored event of a row, or None if the row is gone."""
        row = self._conn.execute("SELECT CAST(data AS BLOB) FROM ack_queue_default WHERE _id = ?", (row_id,)).fetchone()
        return row[0] if row else None

    def newest_id(self) -> int:
        """Return the highest row id ever given out."""
        row = self._conn.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", ("ack_queue_default",)).fetchone()
        return row[0] if row else 0

    def note(self, key: str) -> str | None:
        """Return what an earlier run wrote down under this key."""
        row = self._conn.execute("SELECT value FROM edge_note WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def write_note(self, key: str, value: str) -> None:
        """Write something down for a later run."""
        self._conn.execute("INSERT OR REPLACE INTO edge_note VALUES (?, ?)", (key, value))
        self._changed = True

    def losses(self) -> list[Loss]:
        """Return the loss ledger, oldest first."""
        rows = self._conn.execute("SELECT reason, messages, topic, event_ids, detail FROM edge_loss ORDER BY loss_id")
        return [Loss(reason, n, topic, tuple(orjson.loads(ids)), detail) for reason, n, topic, ids, detail in rows]

    def dead_rows(self) -> list[DeadRow]:
        """Return why each dead row is dead, oldest first."""
        rows = self._conn.execute(
            "SELECT row_id, reason, status_code, attempts, excerpt FROM edge_dead ORDER BY row_id"
        )
        return [DeadRow(*row) for row in rows]

    def counts(self) -> Counts:
        """Return the counts; O(1)."""
        state = self._state
        taken = state.taken
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return Counts(state.waiting - taken, taken, state.delivered, state.dead, pages * self._pragma("page_size"))

    def oldest_received_at(self) -> float | None:
        """Return when the oldest waiting row was received; O(log n) by the ready index."""
        row = self._conn.execute(
            "SELECT CAST(timestamp AS REAL) FROM ack_queue_default INDEXED BY edge_ready"
            " WHERE status < 2 ORDER BY _id LIMIT 1"
        ).fetchone()
        return row[0] if row else None

    def disk_free_bytes(self) -> int:
        """Return the space that the file system has left for us."""
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize

    # --- small change ------------------------------------------------------------------------------------------

    def _become(self, **changes: int) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type] # only the counters are named here
        self._changed = True

    def _pragma(self, name: str) -> int:
        return int(self._conn.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        """Close the file; SQLite writes the WAL back and removes it."""
        connection: sqlite3.Connection | None = getattr(self, "_conn", None)  # None if opening failed
        if connection is not None:
            connection.close()


class FolderLock:
    """The lock of a queue's folder: held by one process, released by the kernel when that dies.

    Take it before MQTT: two clients with one client id throw each other out for ever. Raises QueueInUseError with
    the holder's pid, QueueUnusableError if the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if all(path.name.startswith((FILE_NAME, LOCK_NAME)) for path in folder.iterdir()):
                with suppress(PermissionError):  # a volume that belongs to somebody else, and we may write to it
                    folder.chmod(0o700)  # ours alone; a folder with other things in it keeps its mode
            self._fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(self._fd, 0o600)  # also one that was there before
        except OSError as error:
            raise QueueUnusableError(
                f"the queue folder {folder} cannot be used: {error.strerror}",
                "make it a folder that this user may write to, or set queue.path to another one",
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 20, 0).strip()
            os.close(self._fd)
            raise QueueInUseError(str(folder), int(pid) if pid.isdigit() else None) from error
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # a full disk: the lock holds without saying whose it is
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._fd)


def _ids_of(data: bytes | None) -> tuple[str, ...]:
    try:
        return (event_id(data),) if data else ()
    except (ValueError, TypeError, KeyError):  # what cannot be decoded has no id to tell
        return ()


def _insert_sql(rows: int) -> str:
    marks = ",".join(["(?,?,?,?,?,?)"] * rows)
    return f"INSERT INTO ack_queue_default (data, timestamp, status, crc, packet_id, event_id) VALUES {marks}"


def _runs(row_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the ids as spans without gaps: 1, 2, 3, 7 → (1, 3), (7, 7)."""
    ordered = sorted(row_ids)
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            yield ordered[start], ordered[i - 1]
            start = i


def _merged(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the spans in order, those that overlap as one; neighbours stay apart, for they left apart."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _make_private(file: Path) -> None:
    """Create the file for this user alone; SQLite gives -wal the same mode, and syncs the folder for -wal only."""
    is_new = not file.exists()
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise QueueUnusableError(
                f"{file} is not a regular file", "move it away, or set queue.path to another folder"
            )
    finally:
        os.close(descriptor)
    if is_new:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(folder)
        os.close(folder)


def _refuse_foreign(connection: sqlite3.Connection, file: Path) -> None:
    """Leave another program's database alone, and a newer bridge's."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
    is_table = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'ack_queue_default'"
    ).fetchone()
    columns = {row[1] for row in connection.execute("PRAGMA table_info(ack_queue_default)")}
    if tables and not (is_table and columns >= _STOCK_COLUMNS):
        raise QueueUnusableError(
            f"{file} is a database of another program (its tables: {', '.join(sorted(tables)[:5])})",
            "nothing was changed; move it away, or set queue.path to another folder",
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT_VERSION:
        raise QueueUnusableError(
            f"{file} was written by a newer edge-bridge (format {version}, this one knows {FORMAT_VERSION})",
            "nothing was changed; install that version again, or drain the queue with it first",
        )


def _set_pragmas(connection: sqlite3.Connection, durability: Durability) -> None:
    """Set and assert what the promises stand on; SQLite ignores what it cannot do without a word.

    auto_vacuum counts only before the first table; locking_mode before WAL, so that no -shm file and no second
    connection can be; synchronous FULL (2) syncs the WAL at every commit, NORMAL (1) only at checkpoints.
    """
    wanted: list[tuple[str, Any, Any]] = [
        ("auto_vacuum", "INCREMENTAL", None),
        ("journal_mode", "WAL", "wal"),
        ("synchronous", "FULL" if durability == "power" else "NORMAL", 2 if durability == "power" else 1),
        ("locking_mode", "EXCLUSIVE", "exclusive"),
        ("wal_autocheckpoint", 4000, 4000),  # pages: 16 MiB of WAL before it is written back
        ("journal_size_limit", 32 << 20, 32 << 20),
        ("cache_size", -8192, -8192),  # KiB
        ("temp_store", "MEMORY", 2),
        ("trusted_schema", "OFF", 0),
        ("cell_size_check", "ON", 1),
    ]
    for name, value, answer in wanted:
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        got = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if answer is not None and got != answer:
            raise QueueUnusableError(
                f"SQLite cannot set {name} to {value} here (it says {got})",
                "the queue needs a local file system with POSIX locks; set queue.path to one",
            )


_FULL = {"SQLITE_FULL"}
_UNUSABLE = {
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_READONLY": "is read-only",
    "SQLITE_PERM": "may not be used by this user",
    "SQLITE_AUTH": "may not be used by this user",
    "SQLITE_BUSY": "is in use by another program",
    "SQLITE_LOCKED": "is in use by another program",
    "SQLITE_NOTADB": "is not a SQLite database",
}


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    """Let no foreign exception pass this door."""
    try:
        yield
    except sqlite3.Error as error:
        raise _our_error(error, folder / FILE_NAME) from error
    except OSError as error:
        raise QueueUnusableError(
            f"{folder / FILE_NAME} cannot be used: {error.strerror}",
            "make it a regular file that this user may write to, or set queue.path to another folder",
        ) from error


def _our_error(error: sqlite3.Error, file: Path) -> BridgeError:
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if name in _FULL:
        return DiskFullError(f"no room for {file}", "free some space; the bridge goes on by itself")
    for code, words in _UNUSABLE.items():
        if name.startswith(code):
            return QueueUnusableError(
                f"{file} {words}", "nothing was changed; move the file away, mend its rights, or change queue.path"
            )
    if name.startswith("SQLITE_CORRUPT"):
        return QueueDamagedError(
            f"{file} is damaged: {error}", "keep the file and its -wal, and start with a new folder"
        )
    if name.startswith("SQLITE_IOERR"):
        return DiskFailedError(
            f"the disk failed under {file}: {name}", "check the medium; the last batch was not confirmed"
        )
    return FaultError(f"{file}: {name}: {error}", "please report this")
