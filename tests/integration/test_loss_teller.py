"""The loss teller on a real queue: one row a reason, only with room, never dropped, never a loss of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import orjson
import pytest

from bridge import loss_teller
from bridge.config import Settings
from bridge.disk_queue import DiskQueue, NewRow
from bridge.disk_thread import DiskThread
from bridge.loss import Loss, LossReason
from bridge.loss_teller import REFUSED_PAUSE_SECONDS, LossTeller
from bridge.message import DeadRow, head, head_middle, tail, uuid7
from tests.harness import eventually

EVENT = head("m", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


@pytest.fixture
def disk_queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


class Teller:
    """A teller whose clock and cloud the test moves."""

    def __init__(self, queue: DiskQueue, **bounds: object) -> None:
        settings = Settings.model_validate({"upload": {"url": "http://127.0.0.1:1/"}, "queue": bounds})
        self.queue = queue
        self.now = 1_800_000_000.0
        numbers = count(1)
        self._teller = LossTeller(
            None,  # type: ignore[arg-type] # `tell` is called as the disk thread would
            settings.queue,
            upload=lambda: settings.upload,
            cloud_is_online=lambda: True,
            source_name="edge/x",
            wall=lambda: self.now,
            fresh_id=lambda: uuid7(0, next(numbers)),
        )

    def tell(self, *, online: bool = True) -> int:
        with self.queue.transaction():
            return self._teller.tell(self.queue, cloud_is_online=online)

    def lose(self, messages: int, reason: LossReason = LossReason.MAX_BYTES) -> None:
        with self.queue.transaction():
            self.queue.record_loss(Loss(reason, messages, "t", tuple(f"m{n}" for n in range(messages))))

    def put(self, rows: int = 1) -> None:
        with self.queue.transaction():
            self.queue.put_rows([NewRow(EVENT, self.now)] * rows)

    def settle(self, *, dead: bool = False) -> list[tuple[str, int]]:
        """Let the cloud have everything; returns (reason, messages) of the loss events among it."""
        with self.queue.transaction():
            rows = self.queue.take(1000, 1 << 20)
            if dead:
                self.queue.reject([DeadRow(row.row_id, "refused", 422) for row in rows])
            else:
                self.queue.ack_rows([row.row_id for row in rows])
        events = [orjson.loads(row.data) for row in rows]
        return [(e["subject"], e["data"]["messages"]) for e in events if e["type"] == "edge.loss.v1"]


def test_losses_that_come_while_a_telling_waits_only_add_up(disk_queue: DiskQueue) -> None:
    teller = Teller(disk_queue)
    teller.lose(5)
    assert [teller.tell(), teller.tell()] == [1, 0]
    for _ in range(3):
        teller.lose(7)
        assert teller.tell() == 0
    teller.lose(1, LossReason.DEAD)
    assert teller.settle() == [("max_bytes", 5)]
    assert teller.tell() == 2
    assert teller.settle() == [("dead", 1), ("max_bytes", 21)]
    assert teller.tell() == 0


def test_it_displaces_nothing_at_a_bound(disk_queue: DiskQueue) -> None:
    teller = Teller(disk_queue, max_messages=3, min_free_disk_bytes=0)
    teller.put(3)
    teller.lose(2)
    assert teller.tell() == 0
    with disk_queue.transaction():
        disk_queue.ack_rows([row.row_id for row in disk_queue.take(1, 1 << 20)])
    assert teller.tell() == 1
    assert disk_queue.counts().ready == 3


def test_it_waits_for_the_cloud_unless_nothing_else_does(disk_queue: DiskQueue) -> None:
    teller = Teller(disk_queue)
    teller.lose(2)
    teller.put()
    assert teller.tell(online=False) == 0
    teller.settle()
    assert teller.tell(online=False) == 1


def test_bounds_spare_it_and_drop_what_is_behind_it(disk_queue: DiskQueue) -> None:
    teller = Teller(disk_queue)
    teller.lose(2)
    teller.tell()
    teller.put(4)
    with disk_queue.transaction():
        assert disk_queue.drop_oldest(10, 0, LossReason.MAX_MESSAGES)[0] == 4
    assert teller.settle() == [("max_bytes", 2)]


def test_refused_it_is_dead_and_no_loss_and_tried_again_after_a_pause(disk_queue: DiskQueue) -> None:
    teller = Teller(disk_queue)
    teller.lose(2)
    teller.tell()
    teller.settle(dead=True)
    assert disk_queue.counts().dead == 1
    assert disk_queue.ledger.totals() == {"max_bytes": 2}
    teller.lose(3)
    ((settled_at,),) = disk_queue._conn.execute("SELECT settled_at FROM ack_queue_default WHERE status = 9")
    teller.now = settled_at + REFUSED_PAUSE_SECONDS - 1
    assert teller.tell() == 0
    teller.now += 2
    assert teller.tell() == 1
    assert teller.settle() == [("max_bytes", 3)]


def test_it_is_exact_and_of_bounded_size_after_a_great_loss(disk_queue: DiskQueue) -> None:
    teller = Teller(disk_queue)
    for _ in range(30):
        teller.lose(5000)
    teller.tell()
    with disk_queue.transaction():
        (row,) = disk_queue.take(1, 1)
    data = orjson.loads(row.data)["data"]
    assert data["messages"] == 150_000
    assert len(row.data) < 70_000
    assert not data["ids_complete"]


def test_what_was_told_is_remembered_over_a_restart(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    teller = Teller(queue)
    teller.lose(2)
    teller.tell()
    queue.close()
    queue = DiskQueue(tmp_path, durability="crash")
    again = Teller(queue)
    again.lose(1)
    assert again.tell() == 0
    assert again.settle() == [("max_bytes", 2)]
    assert again.tell() == 1
    assert again.settle() == [("max_bytes", 1)]
    queue.close()


def test_each_telling_names_what_was_lost_since_the_one_before(disk_queue: DiskQueue) -> None:
    """Losses of one kind share an entry of the ledger; one that was told is closed."""
    teller = Teller(disk_queue)
    named = []
    for messages in (2, 3):
        teller.lose(messages)
        teller.tell()
        with disk_queue.transaction():
            (row,) = disk_queue.take(1, 1)
            disk_queue.ack_rows([row.row_id])
        named.append(orjson.loads(row.data)["data"]["ids"])
    assert named == [["m0", "m1"], ["m0", "m1", "m2"]]


async def test_it_looks_again_and_again_and_tells_only_who_wants_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_teller, "INTERVAL_SECONDS", 0.01)
    urls = {"url": "http://127.0.0.1:1/"}
    silent = Settings.model_validate({"upload": {**urls, "report_losses": False}})
    bare = Settings.model_validate({"upload": {**urls, "format": "json"}})
    told = Settings.model_validate({"upload": urls})
    current = [silent, silent, bare, bare]  # and then `told`, for ever
    disk = DiskThread(DiskQueue(tmp_path, durability="crash"), keep_seconds=1, keep_messages=1)
    await disk.run(lambda queue: queue.record_loss(Loss(LossReason.TOO_LARGE, 1, "t")))
    teller = LossTeller(
        disk,
        told.queue,
        upload=lambda: (current.pop() if current else told).upload,
        cloud_is_online=lambda: True,
        source_name="edge/x",
        wall=lambda: 1_800_000_000.0,
        fresh_id=lambda: uuid7(0, 1),
    )
    telling = asyncio.create_task(teller.run())
    await eventually(lambda: disk.run(lambda queue: queue.counts().ready == 1))
    assert not current, "those who want none got none"
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    await asyncio.to_thread(disk.close)
