"""What SQLite and the system say when something is wrong, and what the bridge does about it: one table.

`POLICIES` names a policy for each result code; an extended code without a line of its own follows its primary one.
Each policy is one of our errors, so no foreign exception passes the door. docs/DISK.md tells operators the same.

Where the code alone does not tell: SQLite calls a write that fails with ENOSPC "full", and every other failed write
an I/O error, a quota (EDQUOT) too; and a file that cannot be opened for want of descriptors looks like one that may
not be opened. Both are asked again of the system itself. A failed *sync* is never taken for a full disk, whatever
its errno: the kernel may have forgotten the pages, so the process ends and reads the file anew.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import assert_never

from bridge.disk_queue.file import DAMAGE_HINT, FILE_NAME, is_ours
from bridge.disk_queue.reserve import NO_ROOM, RESERVE_NAME
from bridge.errors import (
    BridgeError,
    DiskFailedError,
    DiskFullError,
    FaultError,
    QueueDamagedError,
    QueueUnusableError,
    ShortageError,
    shortage,
)


class Policy(Enum):
    """What becomes of the transaction, and of the process."""

    FULL = "undone and tried again; intake does not confirm, uploads and deletes live on the reserve"
    SHORT = "no memory or no descriptors: undone and tried again; at start it ends the process, exit 1"
    ENDS = "undone; nothing is confirmed any more, the process ends for its supervisor, exit 1"
    DAMAGED = "the file is not sound: set aside, what can be read is salvaged"
    OPERATOR = "the process ends, exit 2: rights, another program, or another program's file"
    DEFECT = "the process ends for its supervisor, exit 1: SQLite says that we use it wrongly"


POLICIES = {
    "SQLITE_FULL": Policy.FULL,
    "SQLITE_NOMEM": Policy.SHORT,
    "SQLITE_IOERR": Policy.ENDS,
    "SQLITE_IOERR_NOMEM": Policy.SHORT,
    "SQLITE_IOERR_DATA": Policy.DAMAGED,  # a page fails its checksum
    "SQLITE_IOERR_SHORT_READ": Policy.DAMAGED,  # the file is shorter than its header says
    "SQLITE_CORRUPT": Policy.DAMAGED,  # these two only if the file was a queue of ours; else the operator must act
    "SQLITE_NOTADB": Policy.OPERATOR,
    "SQLITE_CANTOPEN": Policy.OPERATOR,
    "SQLITE_CANTOPEN_DIRTYWAL": Policy.DAMAGED,
    "SQLITE_READONLY": Policy.OPERATOR,
    "SQLITE_PERM": Policy.OPERATOR,
    "SQLITE_AUTH": Policy.OPERATOR,
    "SQLITE_BUSY": Policy.OPERATOR,  # the file is ours alone from the opening on: somebody else was first
    "SQLITE_LOCKED": Policy.OPERATOR,
    "SQLITE_PROTOCOL": Policy.OPERATOR,  # locks that do not work: a network file system
    "SQLITE_NOLFS": Policy.OPERATOR,  # the file system ends at 2 GiB
    "SQLITE_TOOBIG": Policy.DEFECT,
    "SQLITE_CONSTRAINT": Policy.DEFECT,
    "SQLITE_MISMATCH": Policy.DEFECT,
    "SQLITE_MISUSE": Policy.DEFECT,
    "SQLITE_RANGE": Policy.DEFECT,
    "SQLITE_FORMAT": Policy.DEFECT,
    "SQLITE_SCHEMA": Policy.DEFECT,
    "SQLITE_NOTFOUND": Policy.DEFECT,
    "SQLITE_EMPTY": Policy.DEFECT,
    "SQLITE_ERROR": Policy.DEFECT,
    "SQLITE_INTERNAL": Policy.DEFECT,
    "SQLITE_ABORT": Policy.DEFECT,
    "SQLITE_INTERRUPT": Policy.DEFECT,  # nobody interrupts
    "SQLITE_NOTICE": Policy.DEFECT,
    "SQLITE_WARNING": Policy.DEFECT,
}
_WORDS = {
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_READONLY": "is read-only",
    "SQLITE_PERM": "may not be used by this user",
    "SQLITE_AUTH": "may not be used by this user",
    "SQLITE_BUSY": "is in use by another program",
    "SQLITE_LOCKED": "is in use by another program",
    "SQLITE_NOTADB": "is not a SQLite database",
    "SQLITE_CORRUPT": "is a damaged database of another program",
    "SQLITE_PROTOCOL": "cannot be locked: is it on a network file system?",
    "SQLITE_NOLFS": "is too large for its file system",
}
_DAMAGE = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}  # of a file that was a queue of ours
_FAILED = {errno.EIO, errno.ENXIO, errno.ENODEV}
_PROBE_NAME = RESERVE_NAME + "-probe"
_PROBE_BYTES = 4096
_DESCRIPTORS = 4  # the file, its WAL, the folder to sync, and one to look at /dev/urandom


@contextmanager
def mapped(folder: Path) -> Iterator[None]:
    """Let no foreign exception pass this door."""
    file = folder / FILE_NAME
    try:
        yield
    except sqlite3.Error as error:
        raise _sqlite_error(error, file) from error
    except MemoryError as error:  # so SQLITE_NOMEM comes through Python, and its own want of memory is no better
        raise ShortageError(file, "no memory") from error
    except OSError as error:
        hint = "make it a regular file that this user may write to, or set queue.path to another folder"
        raise os_error(error, str(file), hint) from error


def os_error(error: OSError, what: str, hint: str) -> BridgeError:
    """Return our error for the system's; the hint is for what the operator must change."""
    if error.errno in NO_ROOM:
        return _our_error(Policy.FULL, what, str(error.strerror))
    if short := shortage(error, what):
        return short
    if error.errno in _FAILED:
        return _our_error(Policy.ENDS, what, str(error.strerror))
    return QueueUnusableError(f"{what} cannot be used: {error.strerror}", hint)


def policy_of(code: str) -> Policy:
    """Return the policy for a result code by its name, as in SQLITE_IOERR_FSYNC."""
    return POLICIES.get(code) or POLICIES.get(_primary(code), Policy.DEFECT)


def _primary(code: str) -> str:
    return "_".join(code.split("_")[:2])


def _sqlite_error(error: sqlite3.Error, file: Path) -> BridgeError:
    code = getattr(error, "sqlite_errorname", None) or type(error).__name__
    policy = policy_of(code)
    if code == "SQLITE_IOERR_WRITE" and not _has_room(file.parent):
        policy = Policy.FULL
    elif _primary(code) in _DAMAGE:
        policy = Policy.DAMAGED if is_ours(file) else Policy.OPERATOR
    elif _primary(code) == "SQLITE_CANTOPEN" and not _has_descriptors():
        policy = Policy.SHORT
    said = _WORDS.get(_primary(code), "") if policy is Policy.OPERATOR else f"{code}: {error}"
    return _our_error(policy, file, said)


def _our_error(policy: Policy, what: Path | str, said: str) -> BridgeError:
    match policy:
        case Policy.FULL:
            return DiskFullError(f"no room for {what}", "free some space; the bridge goes on by itself")
        case Policy.SHORT:
            return ShortageError(what)
        case Policy.ENDS:
            return DiskFailedError(
                f"the disk failed under {what}: {said}", "check the medium; the last batch was not confirmed"
            )
        case Policy.DAMAGED:
            return QueueDamagedError(f"{what} is damaged: {said}", DAMAGE_HINT)
        case Policy.OPERATOR:
            return QueueUnusableError(
                f"{what} {said}", "nothing was changed; move the file away, mend its rights, or change queue.path"
            )
        case Policy.DEFECT:
            return FaultError(f"{what}: {said}", "please report this")
        case _:
            assert_never(policy)


def _has_room(folder: Path) -> bool:
    """Tell whether another page may be written here: statvfs knows nothing of quotas."""
    probe = folder / _PROBE_NAME
    try:
        probe.write_bytes(os.urandom(_PROBE_BYTES))
    except OSError as error:
        return error.errno not in NO_ROOM
    finally:
        probe.unlink(missing_ok=True)
    return True


def _has_descriptors() -> bool:
    """Tell whether SQLite could have had the descriptors that it needs; by now it has given back what it got."""
    try:
        with ExitStack() as stack:
            for _ in range(_DESCRIPTORS):
                stack.enter_context(open(os.devnull, "rb", buffering=0))  # noqa: PTH123  one call, no more
    except OSError as error:
        return shortage(error, os.devnull) is None
    return True
