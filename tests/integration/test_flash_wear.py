"""What wears flash out: a byte is written to the WAL once, and back to the file as seldom as the reserve allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, wear, written_bytes
from bridge.disk_queue import reserve as reserve_module
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.loss import LossReason
from bridge.message import head, head_middle, tail

MEBIBYTE = 1 << 20
RESERVE = MEBIBYTE  # the smallest there is
PAGE_BYTES, FRAME_BYTES, ROWS_A_PAGE = 4096, 4096 + 24, 3
HEAD = head("m", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z")
EVENT = HEAD + tail(b'"%b"' % (b"x" * 1000), is_json=True)
GROUP = SPAN_ROWS_MIN  # as many as are noted as a span
KEPT = 4 * GROUP


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskQueue]:
    monkeypatch.setattr(reserve_module, "_BYTES_MAX", RESERVE)
    opened = DiskQueue(tmp_path, durability="crash")
    yield opened
    opened.close()


def put(queue: DiskQueue, rows: int = GROUP, received_at: float = 1.8e9) -> None:
    with queue.transaction():
        queue.make_way(rows, KEPT)
        queue.put_rows([NewRow(EVENT, received_at)] * rows)
    queue.bound_wal()


def deliver(queue: DiskQueue, rows: int = GROUP) -> list[int]:
    with queue.transaction():
        row_ids = [row.row_id for row in queue.take(rows, 1 << 30)]
        queue.ack_rows(row_ids)
    queue.bound_wal()
    return row_ids


def marked(queue: DiskQueue) -> int:
    found = queue._conn.execute("SELECT COUNT(*) FROM ack_queue_default WHERE status = 5").fetchone()
    return int(found[0])


def file_bytes(queue: DiskQueue) -> int:
    return (queue.folder / FILE_NAME).stat().st_size


def test_new_rows_take_the_pages_of_those_that_need_not_be_kept_any_more(queue: DiskQueue) -> None:
    queue.expect_rows(True)  # so that the WAL gathers what is written
    for _ in range(8):
        put(queue)
        deliver(queue)
    used, free = queue._pragma("page_count"), queue._pragma("freelist_count")
    queue._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # the WAL begins anew
    for _ in range(4):
        put(queue)
        deliver(queue)
    assert queue.counts()[:4] == (0, 0, KEPT + GROUP, 0), "kept, and the last group, for which nothing went yet"
    assert (queue._pragma("page_count"), queue._pragma("freelist_count")) == (used, free)
    pages = (queue.folder / f"{FILE_NAME}-wal").stat().st_size // FRAME_BYTES
    # The rest is indexes and counts. Deleted in transactions of its own, the old would double what the rows take.
    assert pages < 1.5 * 4 * GROUP / ROWS_A_PAGE


def test_an_eighth_more_goes_than_comes_while_a_burst_is_left_and_never_what_is_to_be_kept(queue: DiskQueue) -> None:
    for _ in range(13):
        with queue.transaction():
            queue.put_rows([NewRow(EVENT, 1.8e9)] * GROUP)
        deliver(queue)
    left = queue.counts().delivered
    assert left == KEPT + 2304
    for incoming, gone in [(256, 288), (800, 900), (800, 800), (16, 256), (16, 0), (800, 0)]:
        with queue.transaction():
            queue.make_way(incoming, KEPT)
        left -= gone
        assert (queue.counts().delivered, queue.row_range()) == (left, (13 * GROUP - left + 1, 13 * GROUP))


def test_rows_that_are_marked_one_by_one_go_before_newer_ones_that_are_noted(queue: DiskQueue) -> None:
    put(queue, 280)
    for _ in range(14):
        deliver(queue, 20)
    put(queue, KEPT)
    deliver(queue, KEPT)
    for keep_messages, gone in [(KEPT, 256), (0, 512)]:
        with queue.transaction():
            queue.make_way(17, keep_messages)
        assert (queue.counts().delivered, queue.row_range()[0]) == (KEPT + 280 - gone, gone + 1)


def test_a_message_that_comes_alone_is_stored_and_delivered_with_few_pages(queue: DiskQueue) -> None:
    """Its row, its place in the index, two counters; then row, two indexes, counter; and now and then room is made."""
    queue.expect_rows(True)
    for rows in (KEPT, 224):
        put(queue, rows)
        deliver(queue, rows)
    queue._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # the WAL begins anew
    for _ in range(64):
        put(queue, 1)
        deliver(queue, 1)
    assert queue.counts().delivered == KEPT + 224 + 64 - 256
    pages = (queue.folder / f"{FILE_NAME}-wal").stat().st_size // FRAME_BYTES
    assert pages < 10.5 * 64


def test_of_large_rows_no_more_than_a_mebibyte_stays_for_that(queue: DiskQueue) -> None:
    large = HEAD + tail(b'"%b"' % (b"x" * (64 << 10)), is_json=True)
    with queue.transaction():
        queue.put_rows([NewRow(large, 1.8e9)] * 40)
    deliver(queue, 40)
    for _ in range(4):
        with queue.transaction():
            queue.make_way(1, 0)
    assert queue.counts().delivered < MEBIBYTE / len(large)


def test_what_makes_the_file_grow_is_written_back_before_it_is_more_than_the_reserve_covers(queue: DiskQueue) -> None:
    most = 0
    for _ in range(20):
        put(queue)  # a third of a mebibyte
        most = max(most, queue._pragma("page_count") * PAGE_BYTES - file_bytes(queue))
    assert file_bytes(queue) > 5 * RESERVE
    assert 0 < most <= RESERVE // 2


def test_pages_that_are_written_over_are_written_back_only_once_four_reserves_are_gathered(queue: DiskQueue) -> None:
    queue.expect_rows(True)
    for _ in range(8):
        put(queue)
        deliver(queue)
    queue._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    wal = queue.folder / f"{FILE_NAME}-wal"
    before = file_bytes(queue), (queue.folder / FILE_NAME).stat().st_mtime_ns
    gathered = 0
    while (file_bytes(queue), (queue.folder / FILE_NAME).stat().st_mtime_ns) == before:
        gathered = wal.stat().st_size
        put(queue)
        deliver(queue)
    assert 3 * RESERVE < gathered <= wal.stat().st_size <= 4 * RESERVE + MEBIBYTE


def test_while_a_backlog_only_drains_the_wal_is_written_back_in_short_steps(queue: DiskQueue) -> None:
    for _ in range(60):
        put(queue)
    queue._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for _ in range(60):  # from the start on
        deliver(queue)
        with queue.transaction():
            queue.tidy(2.0**62, 0)
    assert queue.counts()[:3] == (0, 0, 0)
    longest = (queue.folder / f"{FILE_NAME}-wal").stat().st_size
    assert longest < RESERVE, "half a reserve, and what the transaction that passed it wrote"
    assert 60 * GROUP // ROWS_A_PAGE * PAGE_BYTES > 5 * RESERVE, "all that was given up"


def test_on_a_full_disk_only_so_much_wal_is_gathered_as_the_reserve_made_room_for(queue: DiskQueue) -> None:
    def gathers() -> int:
        return queue._pragma("wal_autocheckpoint") * PAGE_BYTES

    queue.keep_reserve()
    assert gathers() == RESERVE // 2
    queue.expect_rows(True)
    assert gathers() == 4 * RESERVE
    queue.relieve()
    assert gathers() == RESERVE // 2
    queue.keep_reserve()
    assert (queue._reserve.spent, gathers()) == (False, 4 * RESERVE)
    queue.expect_rows(False)
    assert gathers() == RESERVE // 2
    queue.relieve()
    queue.expect_rows(True)
    assert gathers() == RESERVE // 2


def test_the_age_of_the_oldest_waiting_row_is_told_without_marking_what_is_delivered(queue: DiskQueue) -> None:
    assert queue.oldest_received_at() is None
    for number in range(3):
        put(queue, received_at=1.8e9 + number)
    first, second, third = deliver(queue), deliver(queue), deliver(queue)
    assert queue.oldest_received_at() is None
    with queue.transaction():
        queue.put_rows([NewRow(EVENT, 1.8e9 + 3)])
    assert queue.oldest_received_at() == 1.8e9 + 3
    with queue.transaction():
        queue.reject([])
        queue.renote([span for span in queue._state.noted if span.first != second[0]])
    assert queue.oldest_received_at() == 1.8e9 + 1, "a row between two spans that are delivered"
    assert (marked(queue), len(first), len(third)) == (0, GROUP, GROUP)


def test_looking_for_what_the_cloud_was_told_marks_nothing_and_neither_does_looking_for_what_is_too_old(
    queue: DiskQueue,
) -> None:
    put(queue)
    with queue.transaction():
        queue.note_told([3, 5])
    assert queue.told_rows_wait(refused_after=0.0)
    deliver(queue)
    assert not queue.told_rows_wait(refused_after=0.0)
    with queue.transaction():
        assert queue.drop_oldest(10, 0, LossReason.MAX_AGE, received_before=1.9e9) == (0, 0)
    assert (marked(queue), queue.counts().delivered) == (0, GROUP)


def test_what_the_process_gave_to_its_disks_is_known_where_the_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = tmp_path / "io"
    monkeypatch.setattr(wear, "_IO", io)
    assert written_bytes() is None
    io.write_text("rchar: 1\nwchar: 2\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n", encoding="ascii")
    assert written_bytes() == 4096
    io.write_text("", encoding="ascii")
    assert written_bytes() is None
