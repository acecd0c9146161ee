"""The newest rows in memory: without a gap, served from when the cursor comes to them, and bounded (I5)."""

from __future__ import annotations

import pytest

from bridge.disk_queue import recent as recent_module
from bridge.disk_queue.recent import Recent
from bridge.message import Row


def holding(*data: bytes, cursor: int = 0) -> Recent:
    """What was stored behind the cursor, in one group."""
    recent = Recent()
    recent.add(data, cursor + len(data), cursor)
    return recent


def test_what_was_stored_is_taken_in_order_with_its_ids() -> None:
    recent = holding(b"a", b"b", cursor=6)
    recent.add([b"c"], 9, 6)
    assert recent.take(6, 10, 100) == (Row(7, b"a"), Row(8, b"b"), Row(9, b"c"))
    assert recent.take(9, 10, 100) == ()


@pytest.mark.parametrize(
    ("messages_max", "bytes_max", "count"), [(2, 100, 2), (10, 6, 3), (10, 5, 2), (10, 2, 1), (10, 1, 1), (10, 8, 4)]
)
def test_a_batch_is_bounded_in_messages_and_but_for_the_first_in_bytes(
    messages_max: int, bytes_max: int, count: int
) -> None:
    recent = holding(b"aa", b"bb", b"cc", b"dd")
    assert [row.row_id for row in recent.take(0, messages_max, bytes_max)] == list(range(1, count + 1))
    assert [row.row_id for row in recent.take(count, 10, 100)] == list(range(count + 1, 5))


def test_only_the_rows_right_behind_the_cursor_are_served() -> None:
    assert holding(b"a", cursor=6).take(5, 10, 100) == ()
    assert holding(b"a", cursor=6).take(7, 10, 100) == ()


def test_rows_behind_others_that_are_only_in_the_file_are_served_once_the_cursor_is_there() -> None:
    recent = Recent()
    recent.add([b"c", b"d"], 4, 0)
    recent.add([b"e"], 5, 0)
    assert recent.take(1, 10, 100) == ()
    assert recent.take(2, 2, 100) == (Row(3, b"c"), Row(4, b"d"))
    recent.add([b"f", b"g"], 7, 4)
    assert recent.take(5, 10, 100) == (Row(6, b"f"), Row(7, b"g")), "the file gave 5"


@pytest.mark.parametrize(("cursor", "is_held"), [(0, True), (6, True), (7, False)])
def test_where_far_more_waits_in_the_file_nothing_is_held(
    monkeypatch: pytest.MonkeyPatch, cursor: int, is_held: bool
) -> None:
    monkeypatch.setattr(recent_module, "_FAR_BYTES", 12)
    recent = Recent()
    recent.add([b"aa", b"bb"], 2, 0)
    recent.add([b"cc", b"dd"], 4 + cursor, 2)
    assert recent.take(2 + cursor, 10, 100) == ((Row(3 + cursor, b"cc"), Row(4 + cursor, b"dd")) if is_held else ())


@pytest.mark.parametrize("newest", [3, 5])
def test_at_a_gap_everything_is_given_up(newest: int) -> None:
    """Ids are skipped after a damage."""
    recent = holding(b"a", b"b", b"c")
    recent.add([b"x"], newest, 0)
    assert recent.take(0, 10, 100) == ()


@pytest.mark.parametrize(("bytes_max", "first"), [(4, 1), (3, 2), (2, 2), (1, 3), (0, 4)])
def test_the_oldest_are_given_up_for_want_of_room(monkeypatch: pytest.MonkeyPatch, bytes_max: int, first: int) -> None:
    monkeypatch.setattr(recent_module, "_BYTES_MAX", bytes_max)
    recent = holding(b"aa", b"b")
    recent.add([b"c"], 3, 0)
    assert recent.take(first - 2, 10, 100) == ()
    assert [row.row_id for row in recent.take(first - 1, 10, 100)] == list(range(first, 4))


@pytest.mark.parametrize("taken", [True, False])
def test_room_of_what_was_taken_or_given_up_is_free_again(monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    monkeypatch.setattr(recent_module, "_BYTES_MAX", 4)
    recent = holding(b"aa", b"bb")
    for number in range(4, 40, 2):
        if taken:
            assert len(recent.take(number - 4, 10, 100)) == 2
        else:
            recent.clear()
            assert recent.take(number - 4, 10, 100) == ()
        recent.add([b"aa", b"bb"], number, number - 2)
    assert [row.row_id for row in recent.take(36, 10, 100)] == [37, 38]
