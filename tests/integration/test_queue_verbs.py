"""The verbs of the disk queue one by one, at their edges; `test_queue_model` has them in any order."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, Selection, leaps
from bridge.disk_queue import queue as queue_module
from bridge.disk_queue.mark import Mark, read_mark
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.disk_queue.rows import SavedRow
from bridge.errors import QueueDamagedError
from bridge.loss import Loss, LossReason
from bridge.message import CLOCK_SET_SINCE, DeadRow, Request, head, head_middle, tail

SET = float(CLOCK_SET_SINCE)


def event(name: str, payload: bytes = b"1", topic: str = "t") -> bytes:
    return head(name, head_middle("edge/x", topic), "2026-01-01T00:00:00Z") + tail(payload, is_json=True)


SIZE = len(event("m1"))  # of each of the first nine


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


def new(number: int, at: float = 2e9) -> NewRow:
    return NewRow(event(f"m{number}"), at, 100 + number, f"m{number}")


def put(queue: DiskQueue, *rows: NewRow) -> None:
    with queue.transaction():
        queue.put_rows(rows)


def put_many(queue: DiskQueue, count: int) -> None:
    put(queue, *(new(number) for number in range(1, count + 1)))


def take(queue: DiskQueue, messages_max: int = 100_000, bytes_max: int = 1 << 30) -> list[int]:
    with queue.transaction():
        return [row.row_id for row in queue.take(messages_max, bytes_max)]


def ack(queue: DiskQueue, row_ids: list[int]) -> None:
    with queue.transaction():
        queue.ack_rows(row_ids)


def kill(queue: DiskQueue, count: int = 1) -> None:
    with queue.transaction():
        queue.reject([DeadRow(row.row_id, "refused") for row in queue.take(count, 1 << 30)])


def forget(queue: DiskQueue) -> None:
    """Have the next `take` look into the file."""
    queue._recent.clear()


def one(queue: DiskQueue, sql: str) -> object:
    return queue._conn.execute(sql).fetchone()[0]


# ---- put ----


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65, 512, 513, 1169])
def test_any_number_of_rows_is_stored_in_order_with_all_that_came_with_them(queue: DiskQueue, count: int) -> None:
    rows = [NewRow(event(f"m{n}"), 2e9 + n, n, f"m{n}", 3e9 + n) for n in range(1, count + 1)]
    put(queue, *rows)
    stored = queue._conn.execute(
        "SELECT _id, data, timestamp, status, crc, packet_id, event_id, settled_at, expires_at FROM ack_queue_default"
    ).fetchall()
    assert stored == [
        (n, row.data, row.received_at, 0, zlib.crc32(row.data), row.packet_id, row.event_id, None, row.expires_at)
        for n, row in enumerate(rows, start=1)
    ]
    with queue.transaction():
        queue.put_rows([])
    assert queue.counts().ready == count
    assert read_mark(queue.folder / FILE_NAME) == Mark(count, count)


@pytest.mark.parametrize(("at", "note"), [(SET - 1, "3"), (SET, None)])
def test_from_where_on_the_clock_was_unset_is_noted_at_the_first_row(
    queue: DiskQueue, at: float, note: str | None
) -> None:
    put(queue, new(1), new(2))
    put(queue, new(3, at), new(4, at))
    put(queue, new(5, at))
    assert queue.note("clock_unset_from_row") == note


def test_a_step_of_putting_times_right_ends_with_the_row_that_exceeds_its_bytes(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "_REDATE_BYTES", 2 * SIZE)
    put(queue, *(new(number, SET - 1) for number in range(1, 6)))
    with queue.transaction():
        assert queue.put_times_right()
    assert queue.note("clock_unset_from_row") == "4"


# ---- take ----


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize(
    ("messages_max", "bytes_max", "taken"),
    [
        (3, 1 << 30, [1, 2, 3]),
        (100, 3 * SIZE, [1, 2, 3]),
        (100, 3 * SIZE - 1, [1, 2]),
        (100, 1, [1]),
        (1, 1 << 30, [1]),
        (100, 1 << 30, [1, 2, 3, 4, 5]),
    ],
)
def test_a_batch_is_bounded_in_messages_and_but_for_the_first_in_bytes(
    queue: DiskQueue, messages_max: int, bytes_max: int, taken: list[int], from_file: bool
) -> None:
    put_many(queue, 5)
    if from_file:
        forget(queue)
    assert take(queue, messages_max, bytes_max) == taken
    assert take(queue) == [n for n in range(1, 6) if n not in taken]
    assert (take(queue), queue.has_ready) == ([], False)


def test_a_batch_that_became_too_large_for_its_bounds_leaves_in_parts(queue: DiskQueue) -> None:
    put_many(queue, 5)
    first = take(queue, 4)
    with queue.transaction():
        queue.release(first)
    assert [take(queue, 3), take(queue), take(queue)] == [[1, 2, 3], [4], [5]]


def test_a_part_of_such_a_batch_that_is_released_leaves_alone(queue: DiskQueue) -> None:
    """It was posted as it left, and has its own key."""
    put_many(queue, 5)
    first = take(queue)
    with queue.transaction():
        queue.release(first)
    part = take(queue, 3)
    with queue.transaction():
        queue.release(part)
    assert [take(queue), take(queue)] == [[1, 2, 3], [4, 5]]


def test_released_rows_leave_first_each_in_its_old_company(queue: DiskQueue) -> None:
    put_many(queue, 8)
    batches = [take(queue, 2) for _ in range(3)]
    with queue.transaction():
        queue.release(batches[1] + batches[0])
    assert [take(queue) for _ in range(4)] == [[1, 2], [3, 4], [7, 8], []]


def test_released_rows_are_no_whole_batch_and_leave_in_their_old_company_all_the_same(queue: DiskQueue) -> None:
    put_many(queue, 10)
    odd = take(queue, 7)
    with queue.transaction():
        queue.release(odd)
        assert [row.row_id for row in queue.take(100, 1 << 20, batch=5, partly=False)] == odd
        assert queue.take(100, 1 << 20, batch=5, partly=False) == ()
        assert [row.row_id for row in queue.take(100, 1 << 20, batch=5, partly=True)] == [8, 9, 10]


def test_of_a_batch_that_is_settled_in_part_the_rest_may_come_back_alone(queue: DiskQueue) -> None:
    put_many(queue, 5)
    taken = take(queue)
    ack(queue, [1, 5])
    with queue.transaction():
        queue.reject([DeadRow(3, "refused")])
        queue.release([2])
    assert queue.counts()[:4] == (1, 1, 2, 1)
    assert take(queue) == [2]
    with queue.transaction():
        queue.release([2, 4])
    assert [take(queue), take(queue)] == [[2], [4]]
    assert taken == [1, 2, 3, 4, 5]


def test_released_rows_leave_without_those_between_them_that_are_in_flight_or_noted(queue: DiskQueue) -> None:
    put_many(queue, SPAN_ROWS_MIN + 2)
    taken = take(queue)
    with queue.transaction():
        queue.release([taken[0], taken[-1]])
    assert take(queue) == [taken[0], taken[-1]]
    with queue.transaction():
        queue.ack_rows(taken[1:-1])
        queue.release([taken[0], taken[-1]])
    assert take(queue) == [taken[0], taken[-1]]


def test_nothing_is_taken_while_older_rows_are_on_their_way_back(queue: DiskQueue) -> None:
    put_many(queue, 1)
    queue.withhold(True)
    assert (take(queue), queue.has_ready) == ([], False)
    queue.withhold(False)
    assert (queue.has_ready, take(queue)) == (True, [1])


@pytest.mark.parametrize(
    ("row", "is_held"),
    [
        (NewRow(b"b", SET), True),
        (NewRow(b"b", SET - 1), False),
        (NewRow(b"b", SET, expires_at=SET + 60), False),
    ],
)
def test_what_may_become_another_one_while_it_waits_is_not_served_from_memory(
    queue: DiskQueue, row: NewRow, is_held: bool
) -> None:
    """It expires, or gets its right time."""
    put(queue, NewRow(b"a", SET))
    put(queue, row, NewRow(b"c", SET))
    assert len(queue._recent.take(0, 10, 100)) == 3 * is_held


@pytest.mark.parametrize(
    ("expires_at", "taken"),
    [(1e9 - 1, []), (1.8e9, []), (1.8e9 + 1, [1]), (SET + 1, []), (SET, [1]), (SET - 1, [1])],
)
def test_a_row_expires_at_its_second_unless_it_was_counted_from_an_unset_clock(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, expires_at: float, taken: list[int]
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    put(queue, NewRow(event("m1"), 1.8e9, None, None, expires_at))
    expected = [1] if expires_at <= SET else taken
    assert take(queue) == expected
    assert queue.ledger.totals() == ({} if expected else {"expired": 1})
    assert queue.counts()[:2] == (0, len(expected))


def test_a_row_that_cannot_be_read_dies_and_those_around_it_leave_together(queue: DiskQueue) -> None:
    put_many(queue, 5)
    forget(queue)
    queue._conn.execute("UPDATE ack_queue_default SET data = x'00' WHERE _id IN (1, 3)")
    queue._conn.execute("UPDATE ack_queue_default SET data = NULL WHERE _id = 5")
    assert take(queue) == [2, 4]
    assert queue.dead_rows() == [DeadRow(1, "crc"), DeadRow(3, "crc"), DeadRow(5, "undecodable")]
    assert queue.counts()[:4] == (0, 2, 0, 3)
    assert take(queue) == []


def test_what_is_adopted_is_written_and_what_is_ours_already_is_not(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, adopt=lambda data, at: data if data[:1] == b"{" else event(f"at-{at:g}"))
    strange = orjson.dumps({"id": "x"})
    put(queue, NewRow(b"raw", 7.0), NewRow(strange, 2e9), NewRow(strange, 2e9), NewRow(b"raw too", 2e9))
    queue._conn.execute("UPDATE ack_queue_default SET crc = NULL WHERE _id = 3")
    queue._conn.execute("UPDATE ack_queue_default SET crc = NULL, timestamp = 'x' WHERE _id = 1")
    forget(queue)
    with queue.transaction():
        assert [row.data for row in queue.take(10, 1 << 20)] == [event("at-0"), strange, strange, event("at-2e+09")]
    rows = queue._conn.execute("SELECT data, crc FROM ack_queue_default ORDER BY _id").fetchall()
    assert rows == [(data, zlib.crc32(data)) for data in (event("at-0"), strange, strange, event("at-2e+09"))]
    assert queue._conn.execute("SELECT * FROM edge_batch").fetchall() == [(1, 4)], "it was a change"
    queue.close()


def test_a_time_that_is_none_keeps_no_row_from_leaving(queue: DiskQueue) -> None:
    put_many(queue, 1)
    forget(queue)
    queue._conn.execute("UPDATE ack_queue_default SET timestamp = 'x'")
    assert take(queue) == [1]


# ---- settle ----


@pytest.mark.parametrize(("count", "is_noted"), [(SPAN_ROWS_MIN - 1, False), (SPAN_ROWS_MIN, True)])
def test_many_rows_without_a_gap_are_noted_and_fewer_are_marked(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, count: int, is_noted: bool
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    put_many(queue, count)
    ack(queue, take(queue))
    assert queue.counts()[:4] == (0, 0, count, 0)
    spans = queue._conn.execute("SELECT * FROM edge_delivered").fetchall()
    assert spans == ([(1, count, 1.8e9)] if is_noted else [])
    marked = one(queue, "SELECT COUNT(*) FROM ack_queue_default WHERE status = 5 AND settled_at = 1.8e9")
    assert marked == (0 if is_noted else count)
    assert all(queue.is_delivered(row_id) for row_id in range(1, count + 1))
    assert not queue.is_delivered(count + 1)


def test_few_and_many_in_one_answer_are_marked_and_noted(queue: DiskQueue) -> None:
    put_many(queue, SPAN_ROWS_MIN + 5)
    taken = take(queue)
    ack(queue, [row_id for row_id in taken if row_id != 4])
    assert queue._conn.execute("SELECT first_id, last_id FROM edge_delivered").fetchall() == [(5, SPAN_ROWS_MIN + 5)]
    assert queue.counts()[:4] == (0, 1, SPAN_ROWS_MIN + 4, 0)
    assert queue._state.flying[0].ids == {4}


@pytest.mark.parametrize("marked_too", [True, False])
def test_noting_rows_that_nobody_took_is_noticed(queue: DiskQueue, marked_too: bool) -> None:
    put_many(queue, SPAN_ROWS_MIN + 5)
    taken = take(queue, 3 if marked_too else 1)
    others = list(range(5, SPAN_ROWS_MIN + 5))
    with pytest.raises(QueueDamagedError, match="rows were to be settled but"):
        ack(queue, [*taken, *others] if marked_too else others)
    assert queue.counts()[:4] == (SPAN_ROWS_MIN + 5 - len(taken), len(taken), 0, 0)


def test_on_a_full_disk_what_is_acked_is_deleted_with_why_it_once_died(queue: DiskQueue) -> None:
    put_many(queue, 2)
    kill(queue)
    with queue.transaction():
        queue.requeue([1])
    queue._reserve.spent = True
    ack(queue, take(queue, 1))
    assert queue.counts()[:4] == (1, 0, 0, 0)
    assert one(queue, "SELECT COUNT(*) FROM edge_dead") == 0
    assert one(queue, "SELECT COUNT(*) FROM ack_queue_default") == 1


def test_a_row_that_dies_again_adds_its_attempts_and_keeps_the_last_reason(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    put_many(queue, 1)
    for reason, status_code, attempts in (("refused", 422, 2), ("too old", None, 3)):
        with queue.transaction():
            taken = queue.take(1, 1 << 20)
            queue.reject([DeadRow(taken[0].row_id, reason, status_code, attempts, reason.upper())])
            queue.requeue([1])
    assert queue._conn.execute("SELECT * FROM edge_dead").fetchall() == [(1, "too old", None, 5, 1.8e9, "TOO OLD")]
    assert [(entry.reason, entry.detail) for entry in queue.losses()] == [
        ("dead", "refused (HTTP 422)"),
        ("dead", "too old"),
    ]


def test_the_dead_beyond_their_bound_go_and_none_else(queue: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_DEAD_MAX", 2)
    put_many(queue, 4)
    kill(queue, 2)
    assert queue.counts().dead == 2
    kill(queue, 1)
    assert [row.row_id for row in queue.dead_rows()] == [2, 3]
    with queue.transaction():
        assert queue.remove_oldest_dead(-1) == 0
        assert queue.remove_oldest_dead(1) == 1
    assert [row.row_id for row in queue.dead_rows()] == [3]


def test_whoever_asked_hears_how_a_row_ended(queue: DiskQueue) -> None:
    put_many(queue, 3)
    with queue.transaction():
        for row_id in (1, 2, 3):
            queue.receipts.owe(row_id, Request("answers", b"%d" % row_id), f"m{row_id}")
    told = []
    with queue.transaction():
        queue.ack_rows([row.row_id for row in queue.take(1, 1 << 20)])
    told += queue.receipts.recent
    with queue.transaction():
        queue.reject([DeadRow(row.row_id, "refused", 422) for row in queue.take(1, 1 << 20)])
    told += queue.receipts.recent
    with queue.transaction():
        queue.discard([3])
    told += queue.receipts.recent
    assert [(receipt.request.correlation, receipt.event_id, receipt.state, receipt.reason) for receipt in told] == [
        (b"1", "m1", "delivered", None),
        (b"2", "m2", "dead", "refused (HTTP 422)"),
        (b"3", "m3", "dropped", LossReason.DISCARDED.words),
    ]


# ---- giving up ----


@pytest.mark.parametrize(
    ("messages_min", "bytes_min", "dropped"),
    [(2, 0, [1, 2]), (0, 2 * SIZE, [1, 2]), (0, 2 * SIZE + 1, [1, 2, 3]), (3, SIZE, [1, 2, 3]), (0, 0, [])],
)
def test_so_many_of_the_oldest_and_so_many_bytes_are_given_up(
    queue: DiskQueue, messages_min: int, bytes_min: int, dropped: list[int]
) -> None:
    put_many(queue, 6)
    with queue.transaction():
        assert queue.drop_oldest(messages_min, bytes_min, LossReason.MAX_BYTES) == (len(dropped), len(dropped) * SIZE)
    assert queue.ledger.totals() == ({"max_bytes": len(dropped)} if dropped else {})
    assert [name for entry in queue.losses() for name in entry.event_ids] == [f"m{n}" for n in dropped]
    assert take(queue) == [n for n in range(1, 7) if n not in dropped]


def test_what_is_in_flight_is_not_given_up(queue: DiskQueue) -> None:
    put_many(queue, 4)
    take(queue, 2)
    with queue.transaction():
        assert queue.drop_oldest(10, 0, LossReason.MAX_MESSAGES) == (2, 2 * SIZE)
    assert queue.counts()[:4] == (0, 2, 0, 0)


def test_rows_without_bytes_are_given_up_too(queue: DiskQueue) -> None:
    put_many(queue, 2)
    queue._conn.execute("UPDATE ack_queue_default SET data = NULL WHERE _id = 1")
    with queue.transaction():
        assert queue.drop_oldest(0, 1, LossReason.MAX_BYTES) == (2, SIZE)


def test_of_what_is_too_old_only_what_was_dated_goes_and_never_what_came_later(queue: DiskQueue) -> None:
    times = [2e9, 1000.0, SET, SET + 1, 2e9 + 5, 2e9 + 10]
    put(queue, *(NewRow(event(f"m{n}"), at) for n, at in enumerate(times, start=1)))
    with queue.transaction():
        assert queue.drop_oldest(2, 0, LossReason.MAX_AGE, 2e9 + 5)[0] == 2
        assert queue.drop_oldest(100, 0, LossReason.MAX_AGE, 2e9 + 5)[0] == 0
    assert take(queue) == [2, 3, 5, 6]


def test_a_clock_put_forward_while_rows_are_on_their_way_to_the_disk_makes_them_no_older(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    received_at, steady = time.time(), leaps._steady_seconds()
    monkeypatch.setattr("time.time", lambda: received_at + 3600)
    with queue.transaction():  # the leap is seen before the rows that were received before it are there
        assert queue.drop_oldest(10, 0, LossReason.MAX_AGE, received_before=time.time() - 1800) == (0, 0)
    put(queue, new(1, received_at), new(2, received_at + 3600))
    with queue.transaction():
        assert queue.drop_oldest(10, 0, LossReason.MAX_AGE, received_before=time.time() - 1800) == (0, 0)
    monkeypatch.setattr(leaps, "_steady_seconds", lambda: steady + 1801)
    monkeypatch.setattr("time.time", lambda: received_at + 3600 + 1801)
    with queue.transaction():
        assert queue.drop_oldest(10, 0, LossReason.MAX_AGE, received_before=time.time() - 1800)[0] == 2


def test_what_is_given_up_is_no_longer_taken_from_memory(queue: DiskQueue) -> None:
    put_many(queue, 3)
    with queue.transaction():
        queue.discard([1])
    assert take(queue) == [2, 3]
    assert queue.ledger.totals() == {"discarded": 1}


def test_a_loss_is_told_by_topic_with_the_times_that_are_times(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)  # said of those that have none
    put(
        queue,
        NewRow(event("a", topic="t"), 5.0),
        NewRow(event("b", topic="u"), -1.0),
        NewRow(b"\x80", 253_402_300_800.0),
        NewRow(event("d", topic="t"), 253_402_300_799.0),
        NewRow(event("e", topic="t"), 0.0),
    )
    queue._conn.execute("UPDATE ack_queue_default SET data = NULL WHERE _id = 2")
    with queue.transaction():
        queue.discard([1, 2, 3, 4, 5])
    told = [(e.topic, e.messages, e.event_ids, e.first_at, e.last_at) for e in queue.losses()]
    assert sorted(told, key=str) == sorted(
        [("t", 3, ("a", "d", "e"), 0.0, 253_402_300_799.0), (None, 2, (), 1.8e9, 1.8e9)], key=str
    )


def test_rows_that_are_noted_as_delivered_are_delivered_whatever_their_status_says(queue: DiskQueue) -> None:
    put_many(queue, SPAN_ROWS_MIN + 2)
    ack(queue, take(queue, SPAN_ROWS_MIN))
    with queue.transaction():
        queue.note_told([7])
    assert one(queue, "SELECT COUNT(*) FROM ack_queue_default WHERE status = 5") == 0
    assert queue.told_rows_wait(0.0) is False


def test_neither_are_they_given_up_nor_shown_as_waiting(queue: DiskQueue) -> None:
    put_many(queue, 2 * SPAN_ROWS_MIN + 2)
    ready, waiting = Selection(states=("ready",)), [2 * SPAN_ROWS_MIN + 1, 2 * SPAN_ROWS_MIN + 2]
    ack(queue, take(queue, SPAN_ROWS_MIN))
    with queue.transaction():
        assert queue.select_bare(ready, 0)[0][0] == event(f"m{SPAN_ROWS_MIN + 1}")
    ack(queue, take(queue, SPAN_ROWS_MIN))
    with queue.transaction():
        assert [row.row_id for row in queue.select(ready, 0)[0]] == waiting
    put_many(queue, SPAN_ROWS_MIN)
    ack(queue, take(queue, 2))
    ack(queue, take(queue, SPAN_ROWS_MIN))
    put_many(queue, 2)
    with queue.transaction():
        assert queue.drop_oldest(1, 0, LossReason.MAX_MESSAGES)[0] == 1
    assert [entry.event_ids for entry in queue.losses()] == [("m1",)]
    assert queue.counts()[:4] == (1, 0, 3 * SPAN_ROWS_MIN + 2, 0)


def test_as_columns_they_are_shown_as_delivered_too(queue: DiskQueue) -> None:
    put_many(queue, SPAN_ROWS_MIN + 2)
    ack(queue, take(queue, SPAN_ROWS_MIN))
    with queue.transaction():
        assert set(queue.select_columns(Selection(), 0)[0].states[:SPAN_ROWS_MIN]) == {"delivered"}


# ---- housekeeping ----


def test_delivered_rows_that_are_too_old_or_too_many_go_oldest_first(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_many(queue, 6)
    for number, now in enumerate((1.8e9, 1.8e9 + 10, 1.8e9 + 20, 1.8e9 + 30), start=1):
        monkeypatch.setattr("time.time", lambda now=now: now)
        ack(queue, take(queue, 1))
        assert queue.counts().delivered == number

    def kept(keep_seconds: float, keep_messages: int) -> list[int]:
        with queue.transaction():
            assert queue.tidy(keep_seconds, keep_messages) is False
        return [row.row_id for row in queue.select(Selection(states=("delivered",)), 0)[0]]

    assert (queue.excess(4), queue.excess(3), queue.excess(5)) == (0, 1, 0)
    assert kept(31, 4) == [1, 2, 3, 4]
    assert kept(30, 4) == [2, 3, 4], "at its second"
    assert kept(100, 2) == [3, 4]
    assert kept(5, 100) == [4]
    assert queue.counts()[:4] == (2, 0, 1, 0)


def test_tidying_says_whether_more_may_follow(queue: DiskQueue) -> None:
    put_many(queue, 7)
    ack(queue, take(queue, 7))
    told = []
    for _ in range(4):
        with queue.transaction():
            told.append((queue.tidy(3600, 0, 3), queue.counts().delivered))
    assert told == [(True, 4), (True, 1), (False, 0), (False, 0)]


@pytest.mark.parametrize(
    ("rows", "keep_messages", "left"), [(3, 4, 7), (3, 8, 8), (3, 10, 10), (100, 4, 4), (100, 0, 0)]
)
def test_as_many_delivered_rows_make_way_as_come_but_none_that_is_to_be_kept(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, rows: int, keep_messages: int, left: int
) -> None:
    monkeypatch.setattr(queue_module, "_WAY_ROWS", 1)
    put_many(queue, 12)
    ack(queue, take(queue, 10))
    with queue.transaction():
        queue.make_way(rows, keep_messages)
    assert queue.counts()[:4] == (2, 0, left, 0)
    assert queue.row_range() == (11 - left, 12)


def test_noted_and_marked_rows_make_way_in_order(queue: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_WAY_ROWS", 1)
    put_many(queue, SPAN_ROWS_MIN + 10)
    ack(queue, take(queue, 4))
    ack(queue, take(queue, SPAN_ROWS_MIN))
    ack(queue, take(queue, 6))
    for rows, gone in ((6, 6), (SPAN_ROWS_MIN - 4, SPAN_ROWS_MIN + 2)):
        with queue.transaction():
            queue.make_way(rows, 0)
        assert queue.row_range() == (gone + 1, SPAN_ROWS_MIN + 10)
    assert queue.counts()[:4] == (0, 0, 8, 0)


def test_noted_spans_are_tidied_by_age_and_number_and_in_order(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_many(queue, 2 * SPAN_ROWS_MIN + 2)
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    ack(queue, take(queue, 2))
    for now in (1.8e9, 1.8e9 + 10):
        monkeypatch.setattr("time.time", lambda now=now: now)
        ack(queue, take(queue, SPAN_ROWS_MIN))

    def tidied(keep_seconds: float, keep_messages: int) -> tuple[bool, tuple[int, int], int]:
        with queue.transaction():
            more = queue.tidy(keep_seconds, keep_messages)
        return more, queue.row_range(), queue.counts().delivered

    last = 2 * SPAN_ROWS_MIN + 2
    assert tidied(11, 10_000) == (False, (1, last), last)
    assert tidied(10, 10_000) == (True, (3, last), last - 2), "the marked ones; noted ones may follow"
    assert tidied(10, 10_000) == (True, (SPAN_ROWS_MIN + 3, last), SPAN_ROWS_MIN)
    assert tidied(10, 10_000) == (False, (SPAN_ROWS_MIN + 3, last), SPAN_ROWS_MIN)
    assert tidied(10, SPAN_ROWS_MIN - 1) == (True, (SPAN_ROWS_MIN + 4, last), SPAN_ROWS_MIN - 1)
    assert queue._conn.execute("SELECT first_id, last_id FROM edge_delivered").fetchall() == [(SPAN_ROWS_MIN + 4, last)]


def test_marked_rows_behind_a_noted_span_wait_until_it_is_gone(queue: DiskQueue) -> None:
    put_many(queue, SPAN_ROWS_MIN + 2)
    ack(queue, take(queue, SPAN_ROWS_MIN))
    ack(queue, take(queue))
    with queue.transaction():
        assert queue.tidy(3600, 1) is True
    assert queue.row_range() == (SPAN_ROWS_MIN + 1, SPAN_ROWS_MIN + 2)
    with queue.transaction():
        assert queue.tidy(3600, 1) is False
    assert queue.row_range() == (SPAN_ROWS_MIN + 2, SPAN_ROWS_MIN + 2)


@pytest.mark.parametrize(
    ("free", "count", "gives"), [(256, 300, False), (257, 1028, False), (257, 1027, True), (10_000, 20_000, True)]
)
def test_the_file_shrinks_once_more_than_a_step_and_a_quarter_of_it_is_free(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, free: int, count: int, gives: bool
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(queue, "_pragma", {"freelist_count": free, "page_count": count}.__getitem__)
    monkeypatch.setattr(queue, "give_back_pages", asked.append)
    queue.shrink()
    assert asked == [256] * gives


def test_free_pages_are_given_back_as_many_as_are_asked_for_and_there_are(queue: DiskQueue) -> None:
    put(queue, *(NewRow(event(f"m{n}", b'"%b"' % (b"x" * 2000)), 2e9) for n in range(50)))
    with queue.transaction():
        queue.discard(list(range(1, 51)))
    free, page_bytes = queue.free_pages()
    assert (free > 20, page_bytes) == (True, 4096)
    with queue.transaction():
        assert queue.give_back_pages(7) == 7
        assert queue.free_pages()[0] == free - 7
        assert queue.give_back_pages(1000) == free - 7
        assert queue.give_back_pages(1000) == 0
    assert queue.gives_back


def test_told_rows_wait_while_they_wait_or_were_refused_since(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    assert queue.told_rows_wait(0.0) is False
    put_many(queue, 2)
    with queue.transaction():
        queue.record_loss(Loss(LossReason.TOO_LARGE, 2, "t"))
        queue.note_told([2])
    assert one(queue, "SELECT told FROM edge_loss_total") == 2
    assert queue.told_rows_wait(0.0) is True
    ack(queue, take(queue, 1))
    assert queue.told_rows_wait(0.0) is True
    with queue.transaction():
        queue.reject([DeadRow(row.row_id, "refused") for row in queue.take(1, 1 << 20)])
    assert (queue.told_rows_wait(1.8e9 - 1), queue.told_rows_wait(1.8e9)) == (True, False)
    assert queue.ledger.totals() == {"too_large": 2}, "a telling that is refused is no loss"


# ---- after a damage ----


def saved(number: int, status: int = 0) -> SavedRow:
    data = event(f"m{number}")
    settled_at = None if status == 0 else 1.8e9
    return SavedRow(number, data, 2e9, status, zlib.crc32(data), None, f"m{number}", settled_at, None)


def put_back(queue: DiskQueue, row: SavedRow, death: tuple[object, ...] | None = None) -> int | None:
    with queue.transaction():
        return queue.put_back(row, death)


def test_a_salvaged_row_has_its_old_id_and_state_and_is_counted(queue: DiskQueue) -> None:
    assert [put_back(queue, saved(n, status)) for n, status in ((5, 0), (7, 5), (6, 9))] == [5, 7, 6]
    assert queue.counts()[:4] == (1, 0, 1, 1)
    assert queue._state.newest == 7
    assert put_back(queue, saved(5)) is None, "it is there already"
    assert queue.counts()[:4] == (1, 0, 1, 1)


def test_two_rows_under_one_id_are_both_kept(queue: DiskQueue) -> None:
    put_many(queue, 3)
    assert put_back(queue, saved(9)._replace(row_id=2)) == 4
    assert put_back(queue, saved(8)._replace(row_id=None)) == 5
    assert take(queue) + take(queue) == [1, 2, 3, 4, 5]


def test_a_waiting_row_whose_message_came_again_is_that_one_unless_it_is_another(queue: DiskQueue) -> None:
    again = head("m1", head_middle("edge/x", "t"), "2030-01-01T00:00:00Z") + tail(b"1", is_json=True)
    put(queue, NewRow(again, 2e9, None, "m1"), NewRow(event("m2", b"2"), 2e9, None, "m2"), new(3))
    assert put_back(queue, saved(1)._replace(row_id=11)) == 1
    assert put_back(queue, saved(2)._replace(row_id=12)) == 12, "another payload"
    assert put_back(queue, saved(3, 5)._replace(row_id=13)) == 13, "it was delivered before"
    assert put_back(queue, saved(4)._replace(row_id=14, event_id=None)) == 14
    assert queue.counts()[:4] == (5, 0, 1, 0)


def test_why_a_salvaged_row_died_is_written_unless_something_is_written(queue: DiskQueue) -> None:
    assert put_back(queue, saved(5, 9), ("crc", None, 2, 7.0, "x")) == 5
    assert queue.dead_rows() == [DeadRow(5, "crc", None, 2, "x")]
    assert put_back(queue, saved(6, 9), None) == 6
    assert queue.dead_rows() == [DeadRow(5, "crc", None, 2, "x")]


def test_rows_that_became_ready_behind_what_was_taken_are_next(queue: DiskQueue) -> None:
    put_many(queue, 6)
    take(queue, 5)
    ack(queue, [1, 2, 3, 4, 5])
    with queue.transaction():
        queue._conn.execute("UPDATE ack_queue_default SET status = 0 WHERE _id IN (2, 4)")
        queue._become(waiting=3, delivered=3)
        queue.bring_forward([2, 4, 6])
    assert queue._state.returned == ((2, 4),)
    assert [take(queue), take(queue)] == [[2, 4], [6]]


def test_batches_between_rows_that_are_brought_forward_keep_their_company(queue: DiskQueue) -> None:
    """They may have been posted, and leave again under their old key."""
    put_many(queue, 9)
    kill(queue, 2)
    batches = [take(queue, 2), take(queue, 2)]
    kill(queue, 2)
    with queue.transaction():
        queue.release([*batches[0], *batches[1]])
        queue.requeue([1, 2, 7, 8])
    assert [take(queue) for _ in range(5)] == [[1, 2], [3, 4], [5, 6], [7, 8], [9]]


@pytest.mark.parametrize(("holds", "cursor"), [(True, 9), (False, 0)])
def test_batches_of_a_damaged_file_leave_as_they_were(queue: DiskQueue, holds: bool, cursor: int) -> None:
    queue.withhold(holds)
    with queue.transaction():
        queue.inherit([], [], [("a", "1"), ("a", "2")], [(4, 6), (7, 9)])
    assert (queue._state.returned, queue._state.cursor) == (((4, 6), (7, 9)), cursor)
    assert queue.note("a") == "1"
    assert queue._conn.execute("SELECT * FROM edge_batch").fetchall() == [(4, 6), (7, 9)]


def test_without_batches_to_take_over_the_next_row_is_the_first(queue: DiskQueue) -> None:
    queue.withhold(True)
    with queue.transaction():
        queue.inherit([], [], [], [])
    assert (queue._state.returned, queue._state.cursor) == ((), 0)


# ---- questions ----


def test_events_are_found_by_their_ids_however_many_are_asked_for(queue: DiskQueue) -> None:
    put_many(queue, 1201)
    names = [f"m{n}" for n in range(1, 1202)]
    assert queue.find_events([*names, "none"]) == {name: event(name) for name in names}
    assert queue.find_events(["m7", "m7"], view=lambda data: data[:4]) == {"m7": event("m7")[:4]}
    assert queue.find_events([]) == {}


def test_a_row_is_found_by_its_id_the_newest_of_several_and_never_a_dead_one(queue: DiskQueue) -> None:
    put(queue, new(1), new(2), new(1), new(3))
    assert (queue.find_row("m1"), queue.find_row("m2"), queue.find_row("none")) == (3, 2, None)
    kill(queue, 2)
    assert (queue.find_row("m1"), queue.find_row("m2")) == (3, None)


def test_a_row_is_delivered_only_once_it_is(queue: DiskQueue) -> None:
    put_many(queue, 3)
    ack(queue, take(queue, 1))
    kill(queue)
    assert [queue.is_delivered(n) for n in (1, 2, 3, 4)] == [True, False, False, False]


def test_the_newest_arrival_under_a_packet_id_counts_and_old_ones_do_not(queue: DiskQueue) -> None:
    put(queue, *(NewRow(event("x"), 2e9, packet_id) for packet_id in (7, 8, None, 7, 9)))
    assert queue.arrivals(100, 0) == {8: 2, 7: 4, 9: 5}
    assert queue.arrivals(100, 2) == {7: 4, 9: 5}
    assert queue.arrivals(2, 0) == {7: 4, 9: 5}
    assert queue.arrivals(1, 0) == {9: 5}


def test_what_is_stored_is_told_and_what_is_gone_is_none(queue: DiskQueue) -> None:
    assert (queue.row_range(), queue.oldest_received_at()) == ((0, 0), None)
    put(queue, new(1, 2e9 + 7), new(2, 2e9 + 5), new(3, 2e9 + 6))
    assert (queue.row_range(), queue.oldest_received_at()) == ((1, 3), 2e9 + 7)
    assert (queue.stored_event(2), queue.stored_event(4)) == (event("m2"), None)
    ack(queue, take(queue, 1))
    assert queue.oldest_received_at() == 2e9 + 5
    with queue.transaction():
        queue.remove_delivered([1])
    assert queue.row_range() == (2, 3)
    assert queue.counts()[:4] == (2, 0, 0, 0)


def test_the_size_is_that_of_the_pages_in_use(queue: DiskQueue) -> None:
    put(queue, *(NewRow(event(f"m{n}", b'"%b"' % (b"x" * 2000)), 2e9) for n in range(50)))
    full = queue.counts().size_bytes
    with queue.transaction():
        queue.discard(list(range(1, 51)))
    free, page_bytes = queue.free_pages()
    assert queue.counts().size_bytes == queue._pragma("page_count") * page_bytes - free * page_bytes < full


def test_losses_are_remembered_beside_the_rows(queue: DiskQueue) -> None:
    with queue.transaction():
        queue.record_loss(Loss(LossReason.TOO_LARGE, 2, "t"))
    assert [(entry.reason, entry.messages) for entry in queue.losses()] == [("too_large", 2)]
