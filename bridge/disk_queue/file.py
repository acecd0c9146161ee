"""The file before it is a queue: made private, foreign ones refused, its pragmas set and asserted, its tables."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from bridge.disk_queue.mark import read_mark
from bridge.errors import QueueDamagedError, QueueUnusableError

FILE_NAME = "data.db"
WAL_NAME = FILE_NAME + "-wal"
APPLICATION_ID = 0x45444742  # "EDGB" in the header of the file: tells it from another program's database
INCREMENTAL = 2  # auto_vacuum
FORMAT_VERSION = (
    3  # PRAGMA user_version; 0 is the stock library's, 2 had no edge_delivered, 1 neither expiry nor receipts
)
_VERSION_MAX = 1000  # no edge-bridge will ever write a higher one: a damaged header
DAMAGE_HINT = "it is set aside; `edge-bridge queue repair`, or the bridge at its next start, salvages its rows"
_TRACE_BYTES = 1 << 16  # how far into a file without our header a trace of our tables is looked for

Durability = Literal["power", "crash"]

SCHEMA = """
CREATE INDEX IF NOT EXISTS edge_ready ON ack_queue_default (_id) WHERE status < 2;
CREATE INDEX IF NOT EXISTS edge_settled ON ack_queue_default (status, _id) WHERE status >= 5;
CREATE INDEX IF NOT EXISTS edge_stray ON ack_queue_default (_id)
    WHERE crc IS NULL OR (status >= 2 AND settled_at IS NULL);
CREATE INDEX IF NOT EXISTS edge_event ON ack_queue_default (event_id) WHERE event_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS edge_state (one INTEGER PRIMARY KEY CHECK (one = 1), waiting INTEGER NOT NULL,
    delivered INTEGER NOT NULL, dead INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS edge_batch (first_id INTEGER PRIMARY KEY, last_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS edge_delivered (first_id INTEGER PRIMARY KEY, last_id INTEGER NOT NULL,
    settled_at FLOAT NOT NULL);
CREATE TABLE IF NOT EXISTS edge_dead (row_id INTEGER PRIMARY KEY, reason TEXT NOT NULL, status_code INTEGER,
    attempts INTEGER NOT NULL, at FLOAT NOT NULL, excerpt TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS edge_loss (loss_id INTEGER PRIMARY KEY AUTOINCREMENT, at FLOAT NOT NULL,
    reason TEXT NOT NULL, messages INTEGER NOT NULL, topic TEXT, event_ids TEXT NOT NULL, detail TEXT NOT NULL,
    first_at FLOAT, last_at FLOAT);
CREATE TABLE IF NOT EXISTS edge_loss_total (reason TEXT PRIMARY KEY, messages INTEGER NOT NULL,
    told INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS edge_receipt (row_id INTEGER, response_topic TEXT NOT NULL, correlation BLOB NOT NULL,
    event_id TEXT NOT NULL, PRIMARY KEY (row_id, response_topic, correlation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS edge_note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
ADDED_COLUMNS = {
    "crc": "INTEGER",
    "packet_id": "INTEGER",
    "event_id": "TEXT",
    "settled_at": "FLOAT",
    "expires_at": "FLOAT",
}
LEDGER_COLUMNS = {"first_at", "last_at"}  # came later than the table
STOCK_COLUMNS = {"_id", "data", "timestamp", "status"}


def make_private(file: Path) -> None:
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
        sync_folder(file.parent)


def readable(raw: bytes) -> str:
    """Decode any text: in a damaged row there may be some that is none, and where a number belongs."""
    return raw.decode("utf-8", "backslashreplace")


def sync_folder(folder: Path) -> None:
    """Make certain that a power cut does not take away what was made in the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_ours(file: Path) -> bool:
    """Tell whether a file that SQLite may not be able to read was a queue of ours."""
    return is_sealed(file) or b"ack_queue_default" in first_bytes(file)


def is_sealed(file: Path) -> bool:
    """Tell whether this bridge wrote a file: its mark stands beside it, or our name in its header."""
    return read_mark(file) is not None or first_bytes(file)[68:72] == APPLICATION_ID.to_bytes(4)


def first_bytes(file: Path) -> bytes:
    """Return the beginning of a file; empty if it cannot be read."""
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(_TRACE_BYTES)
    return b""


def refuse_foreign(connection: sqlite3.Connection, file: Path) -> None:
    """Leave another program's database alone, and a newer bridge's."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
    is_table = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'ack_queue_default'"
    ).fetchone()
    columns = {row[1] for row in connection.execute("PRAGMA table_info(ack_queue_default)")}
    is_foreign = bool(tables) and not (is_table and columns >= STOCK_COLUMNS)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (is_foreign or not 0 <= version <= _VERSION_MAX) and is_sealed(file):
        raise QueueDamagedError(f"{file} is damaged: its schema is not ours", DAMAGE_HINT)
    if is_foreign:
        raise QueueUnusableError(
            f"{file} is a database of another program (its tables: {', '.join(sorted(tables)[:5])})",
            "nothing was changed; move it away, or set queue.path to another folder",
        )
    if version > FORMAT_VERSION:
        raise QueueUnusableError(
            f"{file} was written by a newer edge-bridge (format {version}, this one knows {FORMAT_VERSION})",
            "nothing was changed; install that version again, or drain the queue with it first",
        )


def wal_pages(connection: sqlite3.Connection, wal_bytes: int) -> int:
    """Return how many pages are in so much WAL."""
    return wal_bytes // int(connection.execute("PRAGMA page_size").fetchone()[0])


def set_pragmas(connection: sqlite3.Connection, durability: Durability, wal_bytes: int) -> None:
    """Set and assert what the promises stand on; SQLite ignores what it cannot do without a word.

    auto_vacuum counts only before the first table (and each time it is set a page is written, which a full disk
    refuses); locking_mode before WAL, so that no -shm file and no second connection can be; synchronous FULL (2)
    syncs the WAL at every commit, NORMAL (1) only at checkpoints. `wal_bytes` of WAL are gathered before they are
    written back.
    """
    pages = wal_pages(connection, wal_bytes)
    is_new = connection.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL
    wanted: list[tuple[str, Any, Any]] = [
        *([("auto_vacuum", "INCREMENTAL", None)] if is_new else []),
        ("journal_mode", "WAL", "wal"),
        ("synchronous", "FULL" if durability == "power" else "NORMAL", 2 if durability == "power" else 1),
        ("locking_mode", "EXCLUSIVE", "exclusive"),
        ("wal_autocheckpoint", pages, pages),
        ("journal_size_limit", 2 * wal_bytes, 2 * wal_bytes),
        ("cache_size", -8192, -8192),  # KiB
        ("temp_store", "MEMORY", 2),
        ("secure_delete", "OFF", 0),  # some systems' SQLite overwrites what is deleted: that wears the flash out
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
