"""The one connection to the queue's file: opening it, what it counts, its transactions, room on the disk, closing it.

The verbs that run inside a transaction are in `queue.py`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from persistqueue import SQLiteAckQueue

from bridge.disk_queue.aside import look_at, set_aside
from bridge.disk_queue.faults import mapped
from bridge.disk_queue.file import (
    ADDED_COLUMNS,
    APPLICATION_ID,
    DAMAGE_HINT,
    FILE_NAME,
    FORMAT_VERSION,
    LEDGER_COLUMNS,
    SCHEMA,
    WAL_NAME,
    Durability,
    make_private,
    readable,
    refuse_foreign,
    set_pragmas,
    wal_pages,
)
from bridge.disk_queue.leaps import Leaps
from bridge.disk_queue.ledger import Ledger, entries_max
from bridge.disk_queue.mark import Mark, MarkFile, read_mark
from bridge.disk_queue.receipts import Receipts
from bridge.disk_queue.recent import Recent
from bridge.disk_queue.reserve import Reserve
from bridge.disk_queue.rows import DEAD, DELIVERED, Noted, State, merged
from bridge.disk_queue.salvage import IDS_SKIPPED
from bridge.disk_queue.serializer import serializer
from bridge.errors import DiskFullError, PassingError, QueueDamagedError
from bridge.loss import Loss, LossReason

_ROOM_FACTOR = 3  # free space that a group needs, in its own sizes
_WAL_BYTES_MAX = 128 << 20  # far above what checkpoints that succeed leave

DELETE_ROWS = "DELETE FROM ack_queue_default WHERE _id BETWEEN ? AND ?"
MARK_NOTED = "UPDATE ack_queue_default SET status = 5, settled_at = ?3 WHERE _id BETWEEN ?1 AND ?2 AND status < 2"

T = TypeVar("T")
Adopt = Callable[[bytes, float], bytes | None]
Redate = Callable[[bytes], tuple[bytes, float] | None]


class QueueConnection(SQLiteAckQueue):
    """The queue's file, open for one process; everything happens inside `transaction()`.

    `adopt` turns what the stock library stored (bytes, time) into a stored event, or None if it cannot. `redate` puts
    right the time of a stored event that came before the clock was set: (event, time), or None as long as it cannot.
    `max_bytes` is the configured bound (0: none); it decides how long the loss ledger may become, and is kept by
    admission. Raises QueueUnusableError (the operator must act), QueueDamagedError, DiskFullError, DiskFailedError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durability: Durability = "power",
        adopt: Adopt = lambda data, _: data,
        redate: Redate = lambda _: None,
        max_bytes: int = 0,
    ) -> None:
        self.folder = folder
        self._durability = durability
        self._adopt, self._redate = adopt, redate
        self._recent, self._leaps = Recent(), Leaps()
        self._changed = self._condemned = self._holds = self._wal_is_due = False
        self._rows_come = False
        self._descriptor = -1  # of the file, while it is open
        self._batches_written: tuple[tuple[int, int], ...] | None = None  # what edge_batch holds, if it is known
        self.commits = 0  # transactions that wrote; with durability `power` each is a sync
        self.gap: tuple[int, int] | None = None  # rows that were confirmed, by the mark, and are not in the file
        try:
            with mapped(folder):
                self._wal_found = look_at(folder)
                self._reserve = Reserve(folder)
            self._open_with_room(max_bytes)
        except BaseException as error:
            self._condemned = isinstance(error, QueueDamagedError)
            self.close()
            raise

    def _open_with_room(self, max_bytes: int) -> None:
        try:
            self._open(max_bytes)
        except DiskFullError:
            self.close()
            if not self._reserve.release():
                raise
            self._open(max_bytes)  # what must be written before the first row: a new file, or another release's

    def _open(self, max_bytes: int) -> None:
        with mapped(self.folder):
            super().__init__(str(self.folder), multithreading=False, auto_resume=False, serializer=serializer)
            self.ledger = Ledger(self._conn, entries_max(max_bytes))
            self._prepare()

    # --- opening -----------------------------------------------------------------------------------------------

    def _new_db_connection(self, path: str, multithreading: bool, timeout: float) -> sqlite3.Connection:  # noqa: ARG002, FBT001 - the stock library's signature
        file = Path(path) / FILE_NAME
        make_private(file)
        # For as long as the connection lives: to close any descriptor of a file drops all locks that SQLite has on it.
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        connection = sqlite3.connect(file, timeout=1.0, isolation_level=None, check_same_thread=False)
        self._conn = connection  # now, so that it is closed if what follows fails
        refuse_foreign(connection, file)
        for ours in file.parent.glob(FILE_NAME + "*"):  # a file of ours, not before; -wal may be there already
            ours.chmod(0o600)
        set_pragmas(connection, self._durability, self._reserve.wal_bytes)
        self._gather_wal()
        return connection

    def _count(self) -> int:
        # The stock library counts the whole table here, at every start.
        return 0

    def _prepare(self) -> None:
        self._conn.text_factory = readable  # the stock library sets its own
        known = {row[1] for row in self._conn.execute("PRAGMA table_info(ack_queue_default)")}
        if self._conn.execute("PRAGMA user_version").fetchone()[0] < FORMAT_VERSION or not known >= set(ADDED_COLUMNS):
            self._migrate(known)
        self.receipts = Receipts(self._conn)
        newest = self.newest_id()
        self._state = replace(self._load_state(newest), newest=newest)
        mark = read_mark(self.folder / FILE_NAME)
        if mark and mark.newest > self._state.newest:
            self._bridge_gap(mark)
        self._mark = MarkFile(self.folder / FILE_NAME)
        self._write_mark()

    def _bridge_gap(self, mark: Mark) -> None:
        """Skip the ids of confirmed rows that are gone, although SQLite finds nothing wrong, and tell (I9)."""
        first, newest, file = self._state.newest + 1, mark.newest, self.folder / FILE_NAME
        if self._wal_found.bad_frames:
            raise QueueDamagedError(f"{file}-wal is damaged: rows {first} to {newest} are missing", DAMAGE_HINT)
        self.gap = (first, newest)
        with self.transaction():
            self.skip_ids(newest)
            words = f"rows {first} to {newest} were stored once and are gone; some may have been delivered"
            # Ids that a salvage skipped were no messages: over such a gap, as many as waited are gone at most.
            rows = newest - first + 1 if newest - first < IDS_SKIPPED else mark.waiting
            self.record_loss(Loss(LossReason.DAMAGED, rows, None, (), words))

    def _write_mark(self) -> None:
        if mark := getattr(self, "_mark", None):  # not yet, while the file is being opened
            mark.write(Mark(self._state.newest, self._state.waiting))

    def _migrate(self, known: set[str]) -> None:
        self._conn.execute("BEGIN IMMEDIATE")
        for column, kind in ADDED_COLUMNS.items():
            if column not in known:
                self._conn.execute(f"ALTER TABLE ack_queue_default ADD COLUMN {column} {kind}")
        for statement in SCHEMA.split(";"):
            self._conn.execute(statement)
        ledger_known = {row[1] for row in self._conn.execute("PRAGMA table_info(edge_loss)")}
        for column in LEDGER_COLUMNS - ledger_known:
            self._conn.execute(f"ALTER TABLE edge_loss ADD COLUMN {column} FLOAT")
        self._conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._conn.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        self._conn.execute("COMMIT")

    def _load_state(self, newest: int) -> State:
        """Read the state; these small tables have no checksum, so a value that nobody wrote counts as not there."""
        stray = self._conn.execute(
            "SELECT 1 FROM ack_queue_default INDEXED BY edge_stray"
            " WHERE crc IS NULL OR (status >= 2 AND settled_at IS NULL) LIMIT 1"
        ).fetchone()
        row = self._conn.execute("SELECT waiting, delivered, dead FROM edge_state").fetchone()
        # Few rows are settled and kept; without this look the stock library's clean-up would go unnoticed.
        counting = "SELECT COUNT(*) FROM ack_queue_default INDEXED BY edge_settled WHERE status >= 5 AND status = {}"
        settled = tuple(self._conn.execute(counting.format(status)).fetchone()[0] for status in (DELIVERED, DEAD))
        delivered_spans = self._conn.execute("SELECT * FROM edge_delivered ORDER BY first_id")
        noted = tuple(Noted(*span) for span in delivered_spans if _is_span(span[:2], newest) and _is_time(span[2]))
        delivered = settled[0] + sum(span.rows for span in noted)
        if stray or row is None or row[1:] != (delivered, settled[1]) or not _is_count(row[0]):
            return self._recount(noted)
        batches = self._conn.execute("SELECT first_id, last_id FROM edge_batch ORDER BY first_id")
        spans = tuple(span for span in batches if _is_span(span, newest))
        cursor = max((last for _, last in spans), default=0)
        return State(row[0], row[1], row[2], cursor=cursor, returned=spans, noted=noted)

    def _recount(self, noted: Sequence[Noted]) -> State:
        """Somebody else used the file: give back what was taken, date what was settled, count everything once."""
        self._conn.execute("BEGIN IMMEDIATE")
        self._conn.execute("UPDATE ack_queue_default SET status = 1 WHERE status = 2")
        self._conn.executemany(MARK_NOTED, noted)
        self._conn.execute("DELETE FROM edge_delivered")
        self._conn.execute(
            "UPDATE ack_queue_default SET settled_at = ? WHERE status > 2 AND settled_at IS NULL", (time.time(),)
        )
        by_status = dict(
            self._conn.execute("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status").fetchall()
        )
        state = State(by_status.get(0, 0) + by_status.get(1, 0), by_status.get(DELIVERED, 0), by_status.get(DEAD, 0))
        self._write_state(state)
        self._conn.execute("COMMIT")
        return state

    # --- the transaction ---------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the verbs inside as one transaction with one sync; on any error nothing of it happened."""
        before = self._state
        self._changed = False
        self.ledger.recent, self.receipts.recent = [], []
        try:
            with mapped(self.folder):
                self._conn.execute("BEGIN")
                yield
                if self._changed:
                    self._write_state(self._state)
                self._conn.execute("COMMIT")
            self.commits += self._changed
            self._write_mark()
        except BaseException:
            self._state, self._batches_written = before, None
            self._recent.clear()
            if self._conn.in_transaction:
                with mapped(self.folder):
                    self._conn.execute("ROLLBACK")
            raise

    def _write_state(self, state: State) -> None:
        self._conn.execute(
            "INSERT OR REPLACE INTO edge_state VALUES (1, ?, ?, ?)", (state.waiting, state.delivered, state.dead)
        )
        spans = merged([*((span.first, span.last) for span in state.flying), *state.returned])
        if spans != self._batches_written:  # SQLite writes a table's page even if it empties an empty one
            self._conn.execute("DELETE FROM edge_batch")
            self._conn.executemany("INSERT INTO edge_batch VALUES (?, ?)", spans)
            self._batches_written = spans

    # --- a full disk -------------------------------------------------------------------------------------------

    def relieve(self) -> None:
        """Make room on a full disk: put the reserve into database and WAL, then write that back. No verb."""
        with mapped(self.folder):
            self._reserve.release_into(self._descriptor, self._size_bytes(), self.folder / WAL_NAME)
            self._gather_wal()
        with suppress(PassingError):
            self.checkpoint()

    def bound_wal(self) -> None:
        """Write back a WAL that makes the file grow by its bound, or has outgrown its own, and hear why that failed.

        No verb: run it between transactions. SQLite tries by the WAL's length after commits, but says nothing if that
        fails.
        """
        with mapped(self.folder):
            wal_bytes = (self.folder / WAL_NAME).stat().st_size
            growth_bytes = self._size_bytes() - (self.folder / FILE_NAME).stat().st_size
        if wal_bytes > _WAL_BYTES_MAX or growth_bytes > self._reserve.growth_bytes_max or self._wal_is_due:
            self._wal_is_due = False
            self.checkpoint()

    def write_back_soon(self) -> None:
        """Have the next `bound_wal` write the WAL back, however small: only then does the file become smaller."""
        self._wal_is_due = True

    def checkpoint(self) -> None:
        """Write the WAL back. No verb: run it between transactions."""
        with mapped(self.folder):
            self._conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def keep_reserve(self) -> None:
        """Make the reserve again if it was released and there is room by now."""
        was_spent = self._reserve.spent
        self._reserve.keep(self.disk_free_bytes())
        if self._reserve.spent != was_spent:
            self._gather_wal()

    def expect_rows(self, are_expected: bool) -> None:  # noqa: FBT001 - yes or no is all there is
        """Hear whether rows come. While they do, the WAL holds the same pages again and again, so it gathers many.

        While a backlog only drains, each page that is given up is in the WAL once: nothing is saved by gathering, and
        to write 64 MiB back would make the uploader wait.
        """
        if are_expected != self._rows_come:
            self._rows_come = are_expected
            self._gather_wal()

    def _gather_wal(self) -> None:
        wal_bytes = self._reserve.wal_bytes if self._rows_come else self._reserve.growth_bytes_max
        self._conn.execute(f"PRAGMA wal_autocheckpoint = {wal_pages(self._conn, wal_bytes)}").fetchall()

    def full_reason(self, free_bytes_min: int, incoming_bytes: int = 0) -> str:
        """Return why the disk counts as full for intake, "" if it does not.

        A group needs its size twice, in the WAL and then in the database, and some more for pages and indexes.
        """
        free_bytes = self.disk_free_bytes()
        free = f"only {free_bytes / 2**20:.1f} MiB free on the disk"
        if free_bytes < free_bytes_min:
            return f"{free}, {free_bytes_min >> 20} MiB are kept"
        if self._reserve.spent:
            return f"{free}, the reserve is in use; {self._reserve.wanted_bytes >> 20} MiB are needed"
        if free_bytes < _ROOM_FACTOR * incoming_bytes:
            return f"{free}, too little for {incoming_bytes / 2**20:.1f} MiB of messages"
        return ""

    # --- what it remembers -------------------------------------------------------------------------------------

    def record_loss(self, loss: Loss) -> None:
        """Write the loss ledger; call it in the transaction in which the messages are given up."""
        self.ledger.record(loss)
        self._changed = True

    def condemn(self) -> None:
        """Know that the file is damaged: `close` sets it aside, its WAL untouched."""
        self._condemned = True

    def skip_ids(self, newest: int) -> None:
        """Never give out an id up to this one."""
        if newest > self._state.newest:
            self._conn.execute("DELETE FROM sqlite_sequence WHERE name = 'ack_queue_default'")
            self._conn.execute("INSERT INTO sqlite_sequence VALUES ('ack_queue_default', ?)", (newest,))
            self._become(newest=newest)

    def newest_id(self) -> int:
        """Return the highest row id ever given out."""
        row = self._conn.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", ("ack_queue_default",)).fetchone()
        return row[0] if row else 0

    def note(self, key: str) -> str | None:
        """Return what an earlier run wrote down under this key."""
        row = self._conn.execute("SELECT value FROM edge_note WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def noted(self, key: str, read: Callable[[str], T], otherwise: T) -> T:
        """Return a note as `read` reads it; `otherwise` if there is none, or a flip has made nonsense of it."""
        value = self.note(key)
        with suppress(ValueError, TypeError, KeyError):
            return otherwise if value is None else read(value)
        return otherwise

    def write_note(self, key: str, value: str) -> None:
        """Write something down for a later run."""
        self._conn.execute("INSERT OR REPLACE INTO edge_note VALUES (?, ?)", (key, value))
        self._changed = True

    def disk_free_bytes(self) -> int:
        """Return the space that the file system has left for us."""
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize

    def mark_noted(self, settled_before: float = 2.0**62) -> None:
        """Write the status of rows that are only noted as delivered.

        On a full disk they are deleted instead: that frees pages, while marking them makes the database grow.
        """
        noted = self._state.noted
        due = [span for span in noted if span.settled_at < settled_before]
        if due and self._reserve.spent:
            self._conn.executemany(DELETE_ROWS, [(span.first, span.last) for span in due])
            self._become(delivered=self._state.delivered - sum(span.rows for span in due))
        elif due:
            self._conn.executemany(MARK_NOTED, due)
        if due:
            self.renote([span for span in noted if span not in due])

    def renote(self, spans: Sequence[Noted]) -> None:
        """Note these rows, and no others, as delivered but not marked."""
        noted = tuple(sorted(span for span in spans if span.rows))
        was, will = set(self._state.noted), set(noted)
        self._conn.executemany("DELETE FROM edge_delivered WHERE first_id = ?", [(span.first,) for span in was - will])
        self._conn.executemany("INSERT INTO edge_delivered VALUES (?, ?, ?)", will - was)
        self._state = replace(self._state, noted=noted)
        self._changed = True

    # --- small change ------------------------------------------------------------------------------------------

    def _become(self, **changes: int) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type] # only the counters are named here
        self._changed = True

    def _size_bytes(self) -> int:
        """Return how long the database is once the WAL is written back."""
        return self._pragma("page_count") * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        return int(self._conn.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        """Close the file; SQLite writes the WAL back and removes it. A condemned file is set aside, WAL and all."""
        if self._condemned:
            self._condemned = False  # only this file: what stands under its name afterwards is another one
            with mapped(self.folder):  # before: SQLite leaves the WAL of a file that was renamed alone
                set_aside(self.folder)
        connection: sqlite3.Connection | None = getattr(self, "_conn", None)  # None if opening failed
        if connection is not None:
            connection.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if mark := getattr(self, "_mark", None):
            mark.close()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float))


def _is_span(ids: Sequence[object], newest: int) -> bool:
    first, last = ids
    return isinstance(first, int) and isinstance(last, int) and 0 < first <= last <= newest
