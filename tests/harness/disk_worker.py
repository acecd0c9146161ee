"""The real disk queue and disk thread on a failing disk, two children a case; run behind strace by promise 7's test.

    python -m tests.harness.disk_worker FOLDER CALL PHASE CASES

strace makes the COUNT-th CALL of any thread on the queue's files fail, once or from there on; it counts anew in each
child and each thread. So the thread that is to fail at its N-th call makes COUNT - N idle calls first: in the phase
`opening` the main thread, which opens the queue, in the phase `working` the disk thread. (In one life for both, a case
that fails while opening would hide the same number of the disk thread.) Then messages live without a network: put,
confirm, take, deliver, ack. The second child, which nothing fails, is the supervisor's restart: it drains the queue to
empty. One JSON line a case on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from bridge.disk_queue import DiskQueue, FolderLock, NewRow
from bridge.disk_thread import DiskThread
from bridge.errors import BridgeError, PassingError
from bridge.message import event_id, head, head_middle, tail

COUNT = 400  # more than the restart makes, and than the opening makes
IDLE_NAME = "data.db-idle"  # strace looks at it too
GROUPS = {"pwrite64": 20, "fdatasync": 60}  # a transaction writes often and syncs once: a hundred calls and more
GROUP_MESSAGES, TAKE_MESSAGES = 5, 6
TRIES_MAX = 10  # then whoever looks after the machine turns it off and on again
GAVE_UP = 75
CALLS: dict[str, Callable[[int], object]] = {
    "pwrite64": lambda descriptor: os.pwrite(descriptor, b"x", 0),
    "fdatasync": os.fdatasync,
}
MIDDLE = head_middle("edge/x", "t")
T = TypeVar("T")


def idle(folder: Path, call: str, calls: int) -> None:
    """Make so many calls that strace counts and nobody needs."""
    descriptor = os.open(folder / IDLE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(calls):
        CALLS[call](descriptor)
    os.close(descriptor)


def new_rows(names: Collection[str]) -> list[NewRow]:
    body = tail(b'"' + b"x" * 200 + b'"', is_json=True)
    return [NewRow(head(name, MIDDLE, "2026-01-01T00:00:00Z") + body, 1.0, None, name) for name in names]


def put(rows: list[NewRow], queue: DiskQueue) -> None:
    """As admission does: what is stored already is known by its id."""
    known = queue.find_events(row.event_id for row in rows if row.event_id)
    queue.put_rows([row for row in rows if row.event_id not in known])


class Life:
    """What the messages of one run go through; the journal keeps what was confirmed and what was delivered."""

    def __init__(self, disk: DiskThread, journal: int) -> None:
        self._disk, self._journal = disk, journal

    async def fill(self, groups: int) -> None:
        for group in range(groups):
            names = [f"{group}-{n}" for n in range(GROUP_MESSAGES)]
            await self._insist(partial(self._disk.run, partial(put, new_rows(names))))
            self._note("confirmed", names)
            if group % 2:
                await self.deliver(TAKE_MESSAGES)
            if group % 8 == 7:
                await self._insist(self._disk.housekeep)

    async def deliver(self, messages_max: int) -> None:
        while rows := await self._insist(partial(self._disk.take, messages_max, 1 << 20)):
            self._note("delivered", [event_id(row.data) for row in rows])
            await self._insist(partial(self._disk.ack, [row.row_id for row in rows]))

    async def _insist(self, verb: Callable[[], Awaitable[T]]) -> T:
        for _ in range(TRIES_MAX):
            try:
                return await verb()
            except PassingError:
                continue
        os._exit(GAVE_UP)

    def _note(self, what: str, names: Collection[str]) -> None:
        os.write(self._journal, "".join(f"{what} {name}\n" for name in names).encode())


async def live(folder: Path, journal: int, call: str, idle_calls: Mapping[str, int], *, fills: bool) -> None:
    lock = FolderLock(folder)
    idle(folder, call, idle_calls.get("opening", 0))
    disk = DiskThread(DiskQueue(folder), keep_seconds=3600, keep_messages=10)
    await disk.run(lambda _: idle(folder, call, idle_calls.get("working", 0)))
    life = Life(disk, journal)
    if fills:
        await life.fill(GROUPS[call])
    await life.deliver(1000)
    assert (await disk.run(lambda queue: queue.counts()))[:2] == (0, 0)
    disk.close()
    lock.release()


def child(*arguments: object, fills: bool) -> int:
    """Live in a child process; return its exit status as the real command would have it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            asyncio.run(live(*arguments, fills=fills))  # type: ignore[arg-type]  # handed on as they are
            status = 0
        except BridgeError as error:
            status = error.exit_status
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def case(folder: Path, call: str, phase: str, number: int) -> dict[str, object]:
    """Fail at the N-th call, restart, and count; a drained queue of the second child means that none is stuck."""
    queue, noted = folder / "queue", folder / "journal"
    shutil.rmtree(queue, ignore_errors=True)
    noted.write_bytes(b"")
    journal = os.open(noted, os.O_WRONLY | os.O_APPEND)
    failing, sound = {phase: COUNT - number}, dict[str, int]()
    statuses = [
        child(queue, journal, call, failing, fills=phase == "working"),
        child(queue, journal, call, sound, fills=False),
    ]
    os.close(journal)
    seen: dict[str, set[str]] = {"confirmed": set(), "delivered": set()}
    for line in noted.read_text().splitlines():
        what, name = line.split()
        seen[what].add(name)
    return {
        "number": number,
        "statuses": statuses,
        "lost": sorted(seen["confirmed"] - seen["delivered"]),
        "files": sorted(path.name for path in queue.iterdir()),
    }


if __name__ == "__main__":
    for number in range(1, int(sys.argv[4]) + 1):
        sys.stdout.write(json.dumps(case(Path(sys.argv[1]), sys.argv[2], sys.argv[3], number)) + "\n")
        sys.stdout.flush()
