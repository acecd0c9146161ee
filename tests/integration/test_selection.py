"""What the operator selects comes in bounded pages, by an index where there is one; and the dead are bounded (I5)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.disk_queue import DiskQueue, NewRow, Request, Selection, answer, requeue_dead
from bridge.disk_queue.selection import PAGE_ROWS
from bridge.errors import OperatorError
from bridge.message import DeadRow, head, head_middle, tail


def event(name: str, payload: bytes = b"1") -> bytes:
    return head(name, head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(payload, is_json=True)


@pytest.fixture
def disk_queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


def put(queue: DiskQueue, count: int, payload: bytes = b"1") -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event(f"m{n}", payload), 1.0, None, f"m{n}") for n in range(count)])


def kill(queue: DiskQueue, count: int, attempts: int = 1) -> None:
    with queue.transaction():
        rows = queue.take(count, 1 << 30)
        queue.reject([DeadRow(row.row_id, "refused", 422, attempts) for row in rows])


def test_a_page_looks_at_so_many_rows_whatever_is_selected(disk_queue: DiskQueue) -> None:
    put(disk_queue, PAGE_ROWS + 10)
    for selection, found in ((Selection(), PAGE_ROWS), (Selection(topic="no/such"), 0)):
        rows, after = disk_queue.select(selection, 0)
        assert (len(rows), after) == (found, PAGE_ROWS)
    rows, after = disk_queue.select(Selection(), PAGE_ROWS)
    assert (len(rows), after) == (10, None)


def test_a_page_of_large_rows_has_few_of_them(disk_queue: DiskQueue) -> None:
    put(disk_queue, 10, b'"%b"' % (b"x" * 400_000))
    rows, after = disk_queue.select(Selection(), 0)
    assert (len(rows), after) == (3, 3)


def test_one_row_among_many_is_found_by_its_producers_id_without_a_walk(disk_queue: DiskQueue) -> None:
    put(disk_queue, 5000)
    rows, after = disk_queue.select(Selection(ids=("m4999", "m17")), 0)
    assert ([row.event_id for row in rows], after) == (["m17", "m4999"], None)


def test_the_oldest_dead_rows_go_at_their_bound_and_the_ledger_knows(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.disk_queue.queue._DEAD_MAX", 10)
    put(disk_queue, 25)
    for _ in range(5):
        kill(disk_queue, 5)
    assert disk_queue.counts()[:4] == (0, 0, 0, 10)
    assert [row.row_id for row in disk_queue.dead_rows()] == list(range(16, 26))
    assert disk_queue.ledger.totals() == {"dead": 25, "dead_removed": 15}


def test_a_requeued_row_leaves_in_its_old_place_and_keeps_its_attempts(disk_queue: DiskQueue) -> None:
    put(disk_queue, 6)
    kill(disk_queue, 3, attempts=4)
    with disk_queue.transaction():
        disk_queue.requeue([1, 3])
    kill(disk_queue, 2, attempts=2)
    assert [(row.row_id, row.attempts) for row in disk_queue.dead_rows()] == [(1, 6), (2, 4), (3, 6)]
    with disk_queue.transaction():
        assert [row.row_id for row in disk_queue.take(10, 1 << 20)] == [4, 5, 6]


def test_of_the_rows_that_are_named_only_the_dead_are_requeued(disk_queue: DiskQueue) -> None:
    """The page names rows that it saw a while ago: some are alive again, some gone, some were never there."""
    put(disk_queue, 6)
    kill(disk_queue, 4)
    assert [row.row_id for row in disk_queue.dead_rows(2)] == [3, 4]
    with disk_queue.transaction():
        assert requeue_dead(disk_queue, {1, 3, 5, 99}) == 2
        assert requeue_dead(disk_queue, {1, 3}) == 0
    assert disk_queue.counts()[:4] == (4, 0, 0, 2)
    assert [row.row_id for row in disk_queue.dead_rows()] == [2, 4]


def test_why_a_row_died_is_forgotten_with_the_row(disk_queue: DiskQueue) -> None:
    put(disk_queue, 2)
    kill(disk_queue, 2)
    with disk_queue.transaction():
        disk_queue.requeue([1])
        disk_queue.ack_rows([row.row_id for row in disk_queue.take(1, 1)])
        disk_queue.tidy(0, 0)
        disk_queue.remove_dead([2])
    assert disk_queue.dead_rows() == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b'{"command":"list","selection":{"rows":[1]},"after":0}',
        b'{"command":"list","selection":{"received_before":"x"},"after":0}',
        b'{"command":"list","selection":{"states":["gone"]},"after":0}',
        b'{"command":"list","selection":{"topic":"#/a"},"after":0}',
        b'{"command":"list","selection":{},"after":"x"}',
    ],
)
def test_a_request_that_makes_no_sense_never_reaches_the_disk(line: bytes) -> None:
    with pytest.raises(OperatorError):
        Request.parse(line)


def test_rows_in_flight_are_neither_discarded_nor_purged(disk_queue: DiskQueue) -> None:
    put(disk_queue, 4)
    with disk_queue.transaction():
        disk_queue.take(2, 1 << 20)
        page = answer(disk_queue, Request.of("discard", Selection(states=("ready",))))
    assert page.items == [{"rows": 2}]
    assert disk_queue.counts()[:4] == (0, 2, 0, 0)
