"""Errors, split by who must act; each knows its exit status and carries a hint.

Expected outcomes are values (an HTTP 503 is a `Later`, an empty queue is an empty tuple), so what is raised
here is always the end of something. Errors are caught once, in `bridge.cli`, and printed as one line and a hint.
Foreign exceptions (sqlite3, paho, aiohttp, pydantic) never pass their door: the module that owns the library
maps them to one of these.
"""

from __future__ import annotations

import errno


class BridgeError(Exception):
    """Base of all errors of this project: one line for people, and what to do about it."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class OperatorError(BridgeError):
    """The operator must change something; a restart alone will not help. Exit status 2."""

    exit_status = 2


class ConfigError(OperatorError):
    """The configuration is wrong. `problems` holds one line a problem, all of them at once."""

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class QueueUnusableError(OperatorError):
    """The queue's folder or file cannot be used as it is: unwritable, in use, another program's."""


class QueueInUseError(QueueUnusableError):
    """Another bridge holds the lock of this queue folder; `pid` is that bridge's process id."""

    def __init__(self, folder: str, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"the queue in {folder} is in use by {who}",
            f"stop {who if pid else 'the other bridge'} first; two bridges want a queue.path of its own for each",
        )
        self.pid = pid


class FaultError(BridgeError):
    """The machine failed us; a supervisor may restart the process. Exit status 1."""


class PassingError(FaultError):
    """Nothing of the transaction happened, and the same may work later: try again. `state` is what the disk is then."""

    state = "failing"


class DiskFullError(PassingError):
    """The file system or the database has no room."""

    state = "full"


class ShortageError(PassingError):
    """The process got no memory or no file descriptor. The queue itself is sound."""

    state = "starved"

    def __init__(self, what: object, said: str = "no memory or no file descriptor") -> None:
        super().__init__(
            f"{said} for {what}", "the queue is sound; raise the limits of the process, or find what uses them up"
        )


def shortage(error: BaseException, what: object) -> ShortageError | None:
    """Return what to tell if an error only means that the process got no memory or no file descriptor."""
    if isinstance(error, BaseExceptionGroup):  # of a task group, such as the uploader's lanes
        found = [shortage(one, what) for one in error.exceptions]
        return found[0] if all(found) else None
    if isinstance(error, MemoryError):
        return ShortageError(what, "no memory")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        return ShortageError(what, str(error.strerror))
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":  # CPython has no error of its own
        return ShortageError(what, "no memory or no thread")
    return None


class DiskFailedError(FaultError):
    """Reading or syncing the file failed. Nothing of the transaction may be confirmed; reopen before any other use."""


class QueueDamagedError(FaultError):
    """The file is not (any more) a sound database."""


class TaskDiedError(FaultError):
    """A named task of the service ended by an exception it should not have had."""
