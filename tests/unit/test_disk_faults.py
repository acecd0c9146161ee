"""Every result code of the installed SQLite has a policy, and every policy is the error that it promises."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.disk_queue import faults
from bridge.disk_queue.faults import POLICIES, Policy, mapped, os_error, policy_of
from bridge.errors import (
    BridgeError,
    DiskFailedError,
    DiskFullError,
    FaultError,
    PassingError,
    QueueDamagedError,
    QueueUnusableError,
    ShortageError,
)

NO_ERRORS = {"SQLITE_OK", "SQLITE_ROW", "SQLITE_DONE"}
# The sqlite3 module has the codes of authorizer callbacks and limits under the same prefix.
ACTIONS = {
    "ALTER",
    "ANALYZE",
    "ATTACH",
    "CREATE",
    "DBCONFIG",
    "DELETE",
    "DENY",
    "DETACH",
    "DROP",
    "FUNCTION",
    "IGNORE",
    "INSERT",
} | {
    *("LIMIT", "PRAGMA", "READ", "RECURSIVE", "REINDEX", "SAVEPOINT", "SELECT", "TRANSACTION", "UPDATE", "OK"),
}
CODES = sorted(name for name in dir(sqlite3) if name.startswith("SQLITE_") and name.split("_")[1] not in ACTIONS)
ERRORS: dict[Policy, type[BridgeError]] = {
    Policy.FULL: DiskFullError,
    Policy.SHORT: ShortageError,
    Policy.ENDS: DiskFailedError,
    Policy.DAMAGED: QueueDamagedError,
    Policy.OPERATOR: QueueUnusableError,
    Policy.DEFECT: FaultError,
}
FOLDER = Path("/nonexistent/queue")


def sqlite_error(code: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite says")
    error.sqlite_errorname = code
    return error


def ours(error: Exception) -> BridgeError:
    with pytest.raises(BridgeError) as raised, mapped(FOLDER):
        raise error
    return raised.value


@pytest.mark.parametrize("code", sorted(set(CODES) - NO_ERRORS))
def test_every_code_that_sqlite_knows_has_a_line_in_the_table(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "is_ours", lambda _file: policy_of(code) is Policy.DAMAGED)
    assert code in POLICIES or "_".join(code.split("_")[:2]) in POLICIES
    assert type(ours(sqlite_error(code))) is ERRORS[policy_of(code)]


def test_the_walk_found_the_codes() -> None:
    assert {"SQLITE_FULL", "SQLITE_IOERR", "SQLITE_IOERR_FSYNC", "SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB"} <= set(CODES)
    assert set(POLICIES) <= set(CODES)


@pytest.mark.parametrize(
    ("code", "policy"),
    [
        ("SQLITE_IOERR_FSYNC", Policy.ENDS),
        ("SQLITE_IOERR_DIR_FSYNC", Policy.ENDS),
        ("SQLITE_IOERR_TRUNCATE", Policy.ENDS),
        ("SQLITE_IOERR_CORRUPTFS", Policy.ENDS),
        ("SQLITE_IOERR_NOMEM", Policy.SHORT),
        ("SQLITE_CORRUPT_INDEX", Policy.DAMAGED),
        ("SQLITE_READONLY_DBMOVED", Policy.OPERATOR),
        ("SQLITE_A_CODE_OF_THE_FUTURE", Policy.DEFECT),
    ],
)
def test_an_extended_code_follows_its_own_line_or_its_primary_one(code: str, policy: Policy) -> None:
    assert policy_of(code) is policy


@pytest.mark.parametrize(
    ("code", "has_room", "has_descriptors", "is_ours", "error"),
    [
        ("SQLITE_IOERR_WRITE", True, True, True, DiskFailedError),
        ("SQLITE_IOERR_WRITE", False, True, True, DiskFullError),  # a quota
        ("SQLITE_IOERR_FSYNC", False, True, True, DiskFailedError),  # never passing: the pages may be forgotten
        ("SQLITE_CANTOPEN", True, True, True, QueueUnusableError),
        ("SQLITE_CANTOPEN", True, False, True, ShortageError),
        ("SQLITE_CORRUPT", False, False, True, QueueDamagedError),
        ("SQLITE_NOTADB", True, True, True, QueueDamagedError),  # its header is gone, and the mark says whose it was
        ("SQLITE_CORRUPT", True, True, False, QueueUnusableError),
        ("SQLITE_NOTADB", True, True, False, QueueUnusableError),
    ],
)
def test_what_the_code_does_not_tell_is_asked_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    has_room: bool,
    has_descriptors: bool,
    is_ours: bool,
    error: type[BridgeError],
) -> None:
    monkeypatch.setattr(faults, "is_ours", lambda _file: is_ours)
    monkeypatch.setattr(faults, "_has_room", lambda _folder: has_room)
    monkeypatch.setattr(faults, "_has_descriptors", lambda: has_descriptors)
    assert type(ours(sqlite_error(code))) is error


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EMFILE, ShortageError),
        (errno.ENFILE, ShortageError),
        (errno.ENOMEM, ShortageError),
        (errno.EIO, DiskFailedError),
        (errno.EACCES, QueueUnusableError),
        (errno.EROFS, QueueUnusableError),
    ],
)
def test_an_error_of_the_system_is_told_by_its_number(number: int, error: type[BridgeError]) -> None:
    assert type(os_error(OSError(number, "as the system says"), "the folder", "a hint")) is error


def test_no_memory_is_passing_and_exit_status_1() -> None:
    error = ours(MemoryError())
    assert isinstance(error, ShortageError)
    assert isinstance(error, PassingError)
    assert error.exit_status == 1


def test_whether_there_is_room_and_descriptors_is_tried_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert faults._has_room(tmp_path)
    assert faults._has_descriptors()
    assert list(tmp_path.iterdir()) == []
    for number, is_none_left in ((errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)):
        monkeypatch.setattr(Path, "write_bytes", refusing(number))
        assert faults._has_room(tmp_path) is (not is_none_left)
    for number, is_none_left in ((errno.EMFILE, True), (errno.ENFILE, True), (errno.EACCES, False)):
        monkeypatch.setattr("builtins.open", refusing(number))
        assert faults._has_descriptors() is (not is_none_left)


def refusing(number: int) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise OSError(number, "as the system says")

    return refuse
