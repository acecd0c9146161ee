"""The rescue in the background: what waits for it, what it waits for, and that it goes on after a stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from bridge import rescue
from bridge.disk_queue import DiskQueue, NewRow, open_queue
from bridge.disk_queue.aside import pending, set_aside
from bridge.disk_thread import DiskThread
from bridge.events import Event, Salvaged
from bridge.message import head, head_middle, tail
from bridge.rescue import Rescue
from tests.harness import POLL_SECONDS

T = TypeVar("T")

OLD = 1200


def event(name: str) -> bytes:
    return head(name, head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a queue that was set aside."""
    queue = DiskQueue(tmp_path)
    with queue.transaction():
        queue.put_rows([NewRow(event(f"old-{n}"), 1.0) for n in range(OLD)])
    queue.close()
    set_aside(tmp_path)
    return tmp_path


@asynccontextmanager
async def rescued(folder: Path, events: list[Event]) -> AsyncIterator[tuple[DiskThread, asyncio.Task[None]]]:
    queue, _, salvagers = open_queue(folder)
    disk = DiskThread(queue, keep_seconds=3600, keep_messages=10_000)
    task = asyncio.create_task(Rescue(disk, folder, salvagers, events.append, min_free_disk_bytes=1000).run())
    try:
        yield disk, task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(disk.close)
        for salvager in salvagers:
            salvager.close()


async def put(disk: DiskThread, name: str) -> None:
    await disk.run(lambda queue: queue.put_rows([NewRow(event(name), 2.0)]))


async def taken(disk: DiskThread) -> list[bytes]:
    return [row.data for row in await disk.take(10_000, 1 << 30)]


async def waiting(disk: DiskThread) -> int:
    return await disk.run(lambda queue: queue.counts().ready)


async def soon(ask: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(20):
        while not (answer := await ask()):  # noqa: ASYNC110 - a poll for what no event tells
            await asyncio.sleep(POLL_SECONDS)
    return answer


async def test_old_rows_leave_before_what_came_meanwhile(folder: Path) -> None:
    """I6."""
    events: list[Event] = []
    async with rescued(folder, events) as (disk, task):
        await put(disk, "new")
        async with asyncio.timeout(20):
            await task
            await disk.ready()
        rows = await taken(disk)
    assert rows == [event(f"old-{n}") for n in range(OLD)] + [event("new")]
    assert isinstance(events[-1], Salvaged)
    assert (events[-1].messages, events[-1].missing) == (OLD, 0)
    assert pending(folder) == []


async def test_without_room_new_rows_leave_and_the_old_ones_come_when_there_is_some(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [0]
    monkeypatch.setattr(rescue, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(DiskQueue, "disk_free_bytes", lambda _: free[0])
    async with rescued(folder, []) as (disk, task):
        await put(disk, "new")
        assert await soon(lambda: taken(disk)) == [event("new")]
        assert not task.done()
        assert await taken(disk) == []
        free[0] = 1 << 30
        back: list[bytes] = []
        async with asyncio.timeout(20):
            while len(back) < OLD:
                await disk.ready()
                back += await taken(disk)
    assert back == [event(f"old-{n}") for n in range(OLD)]


async def test_new_rows_do_not_wait_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(rescue, "HOLD_SECONDS", 0.01)
    monkeypatch.setattr(asyncio, "to_thread", read_for_ever)
    async with rescued(folder, []) as (disk, _):
        await put(disk, "new")
        assert await soon(lambda: taken(disk)) == [event("new")]
        monkeypatch.undo()


async def test_what_a_stop_cut_off_goes_on_at_the_next_start(folder: Path) -> None:
    async with rescued(folder, []) as (disk, _):
        await soon(lambda: waiting(disk))
    events: list[Event] = []
    async with rescued(folder, events) as (disk, task):
        async with asyncio.timeout(20):
            await task
        assert await waiting(disk) == OLD
    assert pending(folder) == []
