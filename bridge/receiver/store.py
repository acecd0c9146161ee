"""What the receiver holds, on disk: each event once, known by `source` and `id` as CloudEvents 1.0 says.

One SQLite file, one connection, one thread. A request is one deposit: its events, its counters and, if it came with
an Idempotency-Key, its answer are written in one transaction, and synced, before the answer leaves. Requests that
wait at the same moment share a transaction, so many small ones cost one fsync together.

    events    seq, source, id, event: the bytes as they came, in order of arrival
    answers   the last 10,000 keyed requests: key, digest of the body, answer
    counters  received, duplicates, requests: since the file was made

The event loop never waits for the disk (I7); nothing is answered that is not committed; answers kept are bounded (I5).
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bridge.errors import DiskFailedError, DiskFullError, FaultError, OperatorError
from bridge.receiver.answers import Answer, refuse
from bridge.receiver.body import Refusal
from bridge.receiver.entries import Event

FILE_NAME = "receiver.db"
ANSWERS_KEPT = 10_000
GROUP_REQUESTS_MAX = 64
PAGE_BYTES_MAX = 16 << 20
_CACHE_KIB = 64 << 10  # ids that come in no order touch pages all over their index: keep it in memory, and
_CHECKPOINT_PAGES = 8192  # copy the log back seldom. Ids in order of time (UUIDv7) cost a quarter and need neither.
_APPLICATION_ID = 0x65627278  # "ebrx", as in the schema

_SCHEMA = """
BEGIN;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, source TEXT NOT NULL, id TEXT NOT NULL, event BLOB NOT NULL, UNIQUE (source, id)
);
CREATE TABLE answers (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE TABLE counters (received INTEGER NOT NULL, duplicates INTEGER NOT NULL, requests INTEGER NOT NULL);
INSERT INTO counters VALUES (0, 0, 0);
PRAGMA application_id = 1700950648; -- 0x65627278, "ebrx"
COMMIT;
"""

T = TypeVar("T")


class Deposit(NamedTuple):
    """One request to be stored: good events, and how to answer once it is known which of them are new."""

    events: Sequence[Event]
    key: str | None
    digest: bytes
    answer: Callable[[Sequence[bool]], Answer]


class Stats(NamedTuple):
    """What was counted since the file was made; received = unique + duplicates."""

    received: int
    unique: int
    duplicates: int
    requests: int


class Page(NamedTuple):
    """Events in order of arrival, and the number to ask for the next page with."""

    events: list[bytes]
    next: int


class Store:
    """The file. Blocking; used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        path = folder / FILE_NAME
        try:
            _make_private(folder, path)
        except OSError as error:
            raise OperatorError(
                f"the receiver can not write in {folder}: {error.strerror}",
                "give --data a folder that this user may write in",
            ) from error
        try:
            self._connection = _open(path)
        except sqlite3.Error as error:
            raise OperatorError(
                f"{path} can not be used: {error}",
                "stop the other receiver if one is running, or give --data another folder",
            ) from error

    def together(self, works: Sequence[Callable[[Store], Any]]) -> list[Any]:
        """Do all of it in one transaction: when this returns, all is on disk; if it raises, nothing is."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [work(self) for work in works]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _mapped(error) from error
        finally:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    self._connection.execute("ROLLBACK")
        return results

    def deposit(self, deposit: Deposit) -> Answer:
        """Keep what is new of a request and answer it; a request seen before gets its answer of then."""
        earlier = self._answered(deposit.key) if deposit.key is not None else None
        if earlier is None:
            return self._keep(deposit)
        digest, answer = earlier
        if digest != deposit.digest:
            self._count(received=0, duplicates=0)
            return refuse(Refusal(422, "this Idempotency-Key was used with another body before"))
        self._count(received=len(deposit.events), duplicates=len(deposit.events))
        return answer

    def _keep(self, deposit: Deposit) -> Answer:
        fresh = self._insert(deposit.events)
        self._count(received=len(fresh), duplicates=len(fresh) - sum(fresh))
        answer = deposit.answer(fresh)
        if deposit.key is not None:
            self._remember(deposit.key, deposit.digest, answer)
        return answer

    def _insert(self, events: Sequence[Event]) -> Sequence[bool]:
        before = self._value("SELECT coalesce(max(seq), 0) FROM events")
        added = self._connection.executemany(
            "INSERT INTO events (source, id, event) VALUES (?, ?, ?) ON CONFLICT (source, id) DO NOTHING", events
        ).rowcount
        if not events or added == len(events):
            return [True] * len(events)
        return self._find_fresh(events, before)

    def _find_fresh(self, events: Sequence[Event], before: int) -> Sequence[bool]:
        """Tell for each event of a batch with duplicates if it is new: numbered after `before`, and seen only now."""
        seen: set[int] = set()
        fresh = []
        for event in events:
            seq = self._value("SELECT seq FROM events WHERE source = ? AND id = ?", event[:2])
            fresh.append(seq > before and seq not in seen)
            seen.add(seq)
        return fresh

    def _answered(self, key: str) -> tuple[bytes, Answer] | None:
        row = self._connection.execute("SELECT digest, status, body FROM answers WHERE key = ?", (key,)).fetchone()
        return (row[0], Answer(row[1], row[2])) if row else None

    def _remember(self, key: str, digest: bytes, answer: Answer) -> None:
        number = self._connection.execute(
            "INSERT INTO answers (key, digest, status, body) VALUES (?, ?, ?, ?)",
            (key, digest, answer.status_code, answer.body),
        ).lastrowid
        self._connection.execute("DELETE FROM answers WHERE number <= ?", ((number or 0) - ANSWERS_KEPT,))

    def _count(self, *, received: int, duplicates: int) -> None:
        self._connection.execute(
            "UPDATE counters SET received = received + ?, duplicates = duplicates + ?, requests = requests + 1",
            (received, duplicates),
        )

    def stats(self) -> Stats:
        """Return the counters."""
        received, duplicates, requests = self._connection.execute("SELECT * FROM counters").fetchone()
        return Stats(received, received - duplicates, duplicates, requests)

    def page(self, after: int, limit: int) -> Page:
        """Return events numbered above `after`: at most `limit` of them, and no more than fit in a bounded answer."""
        events: list[bytes] = []
        size, last = 0, after
        with closing(
            self._connection.execute("SELECT seq, event FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        ) as rows:
            for seq, event in rows:
                size += len(event)
                if events and size > PAGE_BYTES_MAX:
                    break
                events.append(event)
                last = seq
        return Page(events, last)

    def _value(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return int(self._connection.execute(sql, parameters).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _make_private(folder: Path, path: Path) -> None:
    """Make folder and file before SQLite does, so that neither is ever open to others; -wal takes the file's mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
    try:
        _prepare(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Take the file for ourselves, and assert what a commit means: SQLite ignores settings without a word."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if (mode, synchronous) != ("wal", 2):
        raise sqlite3.OperationalError(f"journal_mode is {mode}, synchronous is {synchronous}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        connection.executescript(_SCHEMA)
    elif owner != _APPLICATION_ID:
        raise sqlite3.DatabaseError("it is another program's database")


def _mapped(error: sqlite3.Error) -> FaultError:
    """Full is passing; after anything else it is unknown what the kernel still holds of the file: reopen it first."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return DiskFullError("the receiver's disk is full")
    return DiskFailedError(f"the receiver's store failed: {error}")


class _Job(NamedTuple):
    work: Callable[[Store], Any]
    outcome: asyncio.Future[Any]


class StoreThread:
    """The store as the event loop sees it: `await run(work)` returns after the work's transaction is on disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = (
            self._loop.create_future()
        )  # raises when the file can not be trusted any more
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="receiver-store", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Store], T]) -> T:
        """Do it in the store's thread, in one transaction with whatever else is waiting. Raises FaultError."""
        outcome: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, outcome))
        return await outcome

    async def close(self) -> None:
        """Finish what was asked for, then close the file."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        with closing(self._store):
            while group := self._next_group():
                try:
                    results = self._store.together([job.work for job in group])
                except Exception as error:  # noqa: BLE001 - top of the thread: whoever waits must hear of it
                    self._loop.call_soon_threadsafe(self._fail, group, error)
                else:
                    self._loop.call_soon_threadsafe(self._finish, group, results)

    def _next_group(self) -> list[_Job]:
        """Wait for a job and take what else is there; an empty group means to stop."""
        group: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            if len(group) == GROUP_REQUESTS_MAX or self._jobs.empty():
                return group
            job = self._jobs.get()
        if group:
            self._jobs.put(None)
        return group

    def _finish(self, group: list[_Job], results: list[Any]) -> None:
        for job, result in zip(group, results, strict=True):
            if not job.outcome.done():
                job.outcome.set_result(result)

    def _fail(self, group: list[_Job], error: Exception) -> None:
        for job in group:
            if not job.outcome.done():
                job.outcome.set_exception(error)
        if not isinstance(error, DiskFullError) and not self.failed.done():
            self.failed.set_exception(error)
