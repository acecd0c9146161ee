"""The real disk queue and disk thread under a failing disk, a child a case; run by test_promise_07 behind strace.

    python -m tests.harness.disk_worker FOLDER CALL LAST FIRST STEP

strace makes the LAST-th call of a thread on the queue's files fail, once or from there on. It counts anew in each
child and each thread, so a child that is to fail at its N-th call first makes LAST - N calls on a file of no account:
in its main thread, which opens the queue, or in the disk thread. Then a message's life without a network: put,
confirm, take, deliver, ack. A second child, which nothing fails, is the supervisor's restart: it must drain the queue
to empty. One JSON line a case on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from bridge.disk_queue import DiskQueue, FolderLock, NewRow
from bridge.disk_thread import DiskThread
from bridge.errors import BridgeError, PassingError
from bridge.message import event_id, head, head_middle, tail

GROUPS, GROUP_MESSAGES = 40, 5
TRIES_MAX = 20  # then whoever looks after the machine turns it off and on again
EXIT_GAVE_UP = 75
MIDDLE = head_middle("edge/x", "t")
CALLS: dict[str, Callable[[int], object]] = {
    "pwrite64": lambda descriptor: os.pwrite(descriptor, b"x", 0),
    "fdatasync": os.fdatasync,
    "fsync": os.fsync,
    "ftruncate": lambda descriptor: os.ftruncate(descriptor, 1),
}


def event(name: str) -> bytes:
    return head(name, MIDDLE, "2026-01-01T00:00:00Z") + tail(b'"' + b"x" * 200 + b'"', is_json=True)


def burn(folder: Path, call: str, calls: int) -> None:
    """Make so many calls that strace counts, on a file of no account."""
    descriptor = os.open(folder / "data.db-burnt", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(calls):
        CALLS[call](descriptor)
    os.close(descriptor)


class Life:
    """Put groups and confirm them, take and ack what is there; what was confirmed and delivered is kept in a file."""

    def __init__(self, disk: DiskThread, journal: int) -> None:
        self._disk, self._journal = disk, journal

    async def run(self, groups: int) -> None:
        for group in range(groups):
            names = [f"{group}-{n}" for n in range(GROUP_MESSAGES)]
            rows = [NewRow(event(name), 1.0, None, name) for name in names]
            await self._insist(lambda rows=rows: self._disk.run(lambda queue: self._put(queue, rows)))  # type: ignore[misc]
            self._note("confirmed", names)
            if group % 2:
                await self.drain(messages_max=7)
            if group % 8 == 7:
                await self._insist(self._disk.housekeep)

    async def drain(self, messages_max: int) -> None:
        while rows := await self._insist(lambda: self._disk.take(messages_max, 1 << 20)):
            self._note("delivered", [event_id(row.data) for row in rows])
            await self._insist(lambda rows=rows: self._disk.ack([row.row_id for row in rows]))  # type: ignore[misc]

    @staticmethod
    def _put(queue: DiskQueue, rows: list[NewRow]) -> None:
        """As admission does: what is stored already is known by its id."""
        known = queue.find_events(row.event_id for row in rows if row.event_id)
        queue.put_rows([row for row in rows if row.event_id not in known])

    async def _insist(self, verb: Callable[[], object]) -> object:
        for _ in range(TRIES_MAX):
            try:
                return await verb()  # type: ignore[misc]
            except PassingError:
                await asyncio.sleep(0)
        sys.stdout.flush()
        os._exit(EXIT_GAVE_UP)

    def _note(self, what: str, names: list[str]) -> None:
        os.write(self._journal, "".join(f"{what} {name}\n" for name in names).encode())
