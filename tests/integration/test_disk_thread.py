"""The disk thread: one transaction for all that came meanwhile, and nothing answered before its commit (I1, I7)."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.disk_thread import DiskThread
from bridge.errors import DiskFailedError, DiskFullError
from bridge.message import head, head_middle, tail
from tests.harness import eventually

EVENT = head("a", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


class CountingQueue(DiskQueue):
    """Counts what it writes and can be held or made to fail at the next one."""

    writes = 0
    hold: threading.Event | None = None
    fail_next: Exception | None = None

    def _write_state(self, state: object) -> None:
        hold = self.hold
        self.writes += 1
        if hold:
            hold.wait()
        if self.fail_next:
            error, self.fail_next = self.fail_next, None
            raise error
        super()._write_state(state)  # type: ignore[arg-type] # only handed on


@pytest.fixture
def queue(tmp_path: Path) -> CountingQueue:
    return CountingQueue(tmp_path, durability="crash")


@pytest.fixture
async def disk(queue: CountingQueue) -> AsyncIterator[DiskThread]:
    thread = DiskThread(queue, keep_seconds=3600, keep_messages=10)
    yield thread
    if queue.hold:
        queue.hold.set()
    await asyncio.to_thread(thread.close)


def put(disk: DiskThread, rows: int = 1) -> asyncio.Future[None]:
    return disk.run(lambda queue: queue.put_rows([NewRow(EVENT, 1.0)] * rows))


async def test_what_comes_while_a_group_is_written_is_one_transaction(disk: DiskThread, queue: CountingQueue) -> None:
    await put(disk)
    before, hold = queue.writes, threading.Event()
    queue.hold = hold
    first = put(disk)
    await eventually(lambda: queue.writes > before)
    assert disk.stalled_seconds() > 0
    others = [put(disk) for _ in range(20)]
    assert not any(future.done() for future in [first, *others])
    queue.hold = None
    hold.set()
    await asyncio.gather(first, *others)
    assert queue.writes - before == 2
    assert queue.counts().ready == 22


async def test_rows_that_could_not_be_taken_are_waiting_still(
    disk: DiskThread, queue: CountingQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DiskFullError("no room for the ledger")

    await put(disk)
    disk.wake()
    monkeypatch.setattr(queue, "take", refuse)
    with pytest.raises(DiskFullError):
        await disk.take(1, 1000)
    async with asyncio.timeout(5):
        await disk.ready()
    monkeypatch.undo()
    assert len(await disk.take(1, 1000)) == 1


async def test_taking_and_looking_write_nothing(disk: DiskThread, queue: CountingQueue) -> None:
    await put(disk, 5)
    before = queue.writes
    assert len(await disk.take(3, 1 << 20)) == 3
    await disk.run(lambda queue: queue.counts())
    assert queue.writes == before


async def test_nothing_is_answered_with_success_after_a_failed_sync(disk: DiskThread, queue: CountingQueue) -> None:
    queue.fail_next = DiskFailedError("the disk failed")
    with pytest.raises(DiskFailedError):
        await put(disk)
    with pytest.raises(DiskFailedError):
        await put(disk)
    with pytest.raises(DiskFailedError):
        await disk.run(lambda queue: queue.counts())
    assert queue.counts().ready == 0


async def test_on_a_full_disk_acks_of_the_same_group_still_pass(disk: DiskThread, queue: CountingQueue) -> None:
    await put(disk, 3)
    rows = await disk.take(3, 1 << 20)
    pages = await disk.run(lambda queue: queue._pragma("page_count"))
    await disk.run(lambda queue: queue._conn.execute(f"PRAGMA max_page_count = {pages + 1}").fetchall())
    before, queue.hold = queue.writes, threading.Event()
    blocker = put(disk)
    await eventually(lambda: queue.writes > before)
    failing, acking = put(disk, 5000), asyncio.ensure_future(disk.ack([row.row_id for row in rows]))
    await asyncio.sleep(0)  # lets the ack be handed over
    hold, queue.hold = queue.hold, None
    hold.set()
    await blocker
    with pytest.raises(DiskFullError):
        await failing
    await acking
    assert queue.counts()[:4] == (1, 0, 0, 0), "on a full disk no delivered row is kept"


async def test_where_the_log_has_no_room_for_more_delivered_rows_are_deleted_in_small_steps(
    disk: DiskThread, queue: CountingQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand rows of a page each are four mebibytes of log, and a small disk's reserve gave it half a one."""
    await put(disk, 500)
    await disk.ack([row.row_id for row in await disk.take(500, 1 << 20)])
    tidy = queue.tidy

    def cramped(keep_seconds: float, keep_messages: int, rows_max: int = 2000) -> bool:
        if rows_max > 100:
            raise DiskFullError("no room for so many")
        return tidy(keep_seconds, keep_messages, rows_max)

    monkeypatch.setattr(queue, "tidy", cramped)
    await disk.housekeep()
    assert queue.counts()[:4] == (0, 0, 10, 0), "those that are kept"


async def test_an_empty_take_waits_until_something_is_put(disk: DiskThread) -> None:
    assert await disk.take(10, 1000) == ()
    waiting = asyncio.ensure_future(disk.ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    await put(disk)
    disk.wake()
    await asyncio.wait_for(waiting, 1)
    assert len(await disk.take(10, 1000)) == 1


@pytest.mark.parametrize(
    ("ready", "partly", "taken"),
    [(9, True, 9), (9, False, 0), (10, False, 10), (25, True, 20), (25, False, 20), (47, True, 40), (0, True, 0)],
)
async def test_rows_are_taken_in_whole_batches_where_there_is_one(
    disk: DiskThread, ready: int, partly: bool, taken: int
) -> None:
    if ready:
        await put(disk, ready)
    assert len(await disk.take(40, 1 << 20, batch=10, partly=partly)) == taken


async def test_rows_that_are_left_for_a_whole_batch_go_on_waiting(disk: DiskThread) -> None:
    assert await disk.take(10, 1000) == ()
    assert disk.waiting_seconds() == 0
    await put(disk, 3)
    disk.wake()
    await asyncio.sleep(0.02)
    before = disk.waiting_seconds()
    assert before >= 0.02
    assert await disk.take(10, 1 << 20, batch=10, partly=False) == ()
    await asyncio.wait_for(disk.ready(), 1)
    assert disk.waiting_seconds() > before
    assert len(await disk.take(2, 1 << 20)) == 2
    assert disk.waiting_seconds() < before, "what comes next may be new"


async def deliver(disk: DiskThread, rows: int) -> None:
    await put(disk, rows)
    await disk.ack([row.row_id for row in await disk.take(rows, 1 << 30)])


async def test_a_file_is_made_smaller_only_once_its_backlog_is_gone(disk: DiskThread, queue: CountingQueue) -> None:
    await put(disk, 30_000)
    rows = await disk.take(20_000, 1 << 30)
    await disk.ack([row.row_id for row in rows])
    for _ in range(3):
        await disk.housekeep()
    free_pages, _ = queue.free_pages()
    await disk.housekeep()
    assert queue.free_pages()[0] == free_pages > 256
    await disk.take(1, 1 << 20)
    await disk.housekeep()
    assert queue.free_pages()[0] < free_pages


async def test_delivered_rows_are_cleaned_up_by_number(disk: DiskThread, queue: CountingQueue) -> None:
    await deliver(disk, 6000)
    assert queue.counts().delivered == 10, "a backlog drains evenly from its first row on"
    await disk.housekeep()
    await deliver(disk, 6000)
    assert queue.counts().delivered == 10 + 4096, "rows come: at once only what is far too much"
    await disk.housekeep()
    assert queue.counts().delivered == 10 + 4096, "rows came since the last second"
    await disk.housekeep()
    assert queue.counts().delivered == 10


async def test_closing_finishes_what_was_asked(tmp_path: Path) -> None:
    disk = DiskThread(DiskQueue(tmp_path, durability="crash"), keep_seconds=1, keep_messages=1)
    asked = [put(disk) for _ in range(100)]
    await asyncio.to_thread(disk.close)
    await asyncio.gather(*asked)
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    assert connection.execute("SELECT COUNT(*) FROM ack_queue_default").fetchone() == (100,)
    connection.close()
    assert not (tmp_path / (FILE_NAME + "-wal")).exists()


@pytest.mark.parametrize("failed", [False, True])
async def test_closing_marks_what_is_only_noted_as_delivered_unless_the_disk_failed(
    tmp_path: Path, *, failed: bool
) -> None:
    disk = DiskThread(DiskQueue(tmp_path, durability="crash"), keep_seconds=3600, keep_messages=10_000)
    await put(disk, SPAN_ROWS_MIN)
    rows = await disk.take(SPAN_ROWS_MIN, 1 << 20)
    await disk.ack([row.row_id for row in rows])
    if failed:
        disk._failed = DiskFailedError("the card")
    await asyncio.to_thread(disk.close)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:  # as the stock library sees it
        statuses = connection.execute("SELECT DISTINCT status FROM ack_queue_default").fetchall()
        noted = connection.execute("SELECT COUNT(*) FROM edge_delivered").fetchone()
    assert (statuses, noted) == (([(0,)], (1,)) if failed else ([(5,)], (0,)))
