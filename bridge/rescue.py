"""The rescue: rows of damaged files on their way back into the queue, in the background, while the bridge works.

Reading goes on in a thread of its own, storing in small steps between what the disk thread does anyway. Until the old
rows are back (at most `HOLD_SECONDS`, and not while the disk has no room for them) nothing newer leaves, so that rows
of one topic keep their order (I6); messages are taken in and confirmed all the time. What is cut off by a stop goes on
at the next start where it was. Of the damaged files that are salvaged to the end it keeps the newest few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from bridge.disk_queue import DiskQueue, Salvager, delete_surplus, write_report
from bridge.errors import PassingError
from bridge.events import Emit, Salvaged, Salvaging

HOLD_SECONDS = 60.0
_RETRY_SECONDS = 5.0  # between tries while the disk has no room

T = TypeVar("T")


class Disk(Protocol):
    """What the rescue needs of the disk thread."""

    def run(self, verb: Callable[[DiskQueue], T]) -> asyncio.Future[T]: ...
    def wake(self) -> None: ...


class Rescue:
    """Brings back what the salvagers read, oldest file first; `run` ends when nothing is left to do."""

    def __init__(
        self, disk: Disk, folder: Path, salvagers: Sequence[Salvager], emit: Emit, *, min_free_disk_bytes: int
    ) -> None:
        self._disk, self._folder, self._salvagers, self._emit = disk, folder, salvagers, emit
        self._min_free_disk_bytes = min_free_disk_bytes
        self._holds = bool(salvagers)

    async def run(self) -> None:
        """Salvage each file to the end."""
        async with asyncio.TaskGroup() as tasks:
            limit = tasks.create_task(self._release_in_time())
            for salvager in self._salvagers:
                await self._salvage(salvager)
            limit.cancel()
        await self._release()

    async def _release_in_time(self) -> None:
        await asyncio.sleep(HOLD_SECONDS)
        await self._release()

    async def _salvage(self, salvager: Salvager) -> None:
        tally = await self._patiently(salvager.begin)
        while portion := await asyncio.to_thread(salvager.read, tally):
            before = tally
            tally = await self._patiently(lambda queue: salvager.store(queue, before, portion))  # noqa: B023 - awaited
            self._disk.wake()
            self._emit(Salvaging(tally.waiting - before.waiting, salvager.file.name))
        report = await self._patiently(lambda queue: salvager.finish(queue, tally))
        await asyncio.to_thread(write_report, salvager.file, report)
        missing = None if report.lost is None else report.lost - report.altered
        deleted = await asyncio.to_thread(delete_surplus, self._folder)
        gone = tuple((old.file, old.lost) for old in deleted)
        self._emit(Salvaged(salvager.file.name, report.waiting, missing, gone))

    async def _patiently(self, verb: Callable[[DiskQueue], T]) -> T:
        """Run a verb as soon as the disk has room for it beside what is kept free."""
        while True:
            try:
                return await self._disk.run(lambda queue: self._within_bounds(queue, verb))
            except PassingError:
                await self._release()
                await asyncio.sleep(_RETRY_SECONDS)

    def _within_bounds(self, queue: DiskQueue, verb: Callable[[DiskQueue], T]) -> T:
        if queue.disk_free_bytes() < self._min_free_disk_bytes:
            raise PassingError("no room for salvaged rows", "free some space; salvaging goes on by itself")
        return verb(queue)

    async def _release(self) -> None:
        if self._holds:
            self._holds = False
            await self._disk.run(lambda queue: queue.withhold(False))
            self._disk.wake()
