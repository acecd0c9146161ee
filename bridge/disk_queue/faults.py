"""What SQLite says when something is wrong, and which of our errors that is: no foreign exception passes the door."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.disk_queue.file import FILE_NAME
from bridge.errors import (
    BridgeError,
    DiskFailedError,
    DiskFullError,
    FaultError,
    QueueDamagedError,
    QueueUnusableError,
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
def mapped(folder: Path) -> Iterator[None]:
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
