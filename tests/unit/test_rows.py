"""The values of the disk queue: what a checksum proves, spans of row ids."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.disk_queue.rows import Noted, SavedRow, merged, runs
from bridge.message import head, head_middle, tail

OURS = head("m", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


def saved(data: bytes | None, crc: int | None) -> SavedRow:
    return SavedRow(1, data, 1.0, 0, crc, None, None, None, None)


@pytest.mark.parametrize(
    ("data", "crc", "is_altered", "is_sound"),
    [
        (b"{}", zlib.crc32(b"{}"), False, True),
        (b"{]", zlib.crc32(b"{}"), True, False),
        (b"[]", zlib.crc32(b"{}"), True, False),  # still JSON
        (b"\x80", zlib.crc32(b"\x80"), False, True),  # what it says is nobody's business here
        (b"{}", None, False, True),  # stored by the stock library
        (b"\x80\x04N.", None, False, False),
        (None, None, False, False),
        (None, zlib.crc32(b"{}"), True, False),
    ],
)
def test_a_saved_row_is_proven_by_its_checksum_or_at_least_json(
    data: bytes | None, crc: int | None, is_altered: bool, is_sound: bool
) -> None:
    assert (saved(data, crc).is_altered, saved(data, crc).is_sound) == (is_altered, is_sound)


@pytest.mark.parametrize(
    "changes",
    [{"packet_id": 7}, {"event_id": "a"}, {"expires_at": 2e9}, {"data": OURS}],
    ids=["packet-id", "event-id", "expiry", "layout"],
)
def test_a_row_that_came_through_the_bridge_and_has_no_checksum_is_altered(changes: dict[str, Any]) -> None:
    """Two flips in one row, one of them in the checksum's place, must not make it as good as the stock library's."""
    row = saved(b"{}", None)._replace(**changes)
    assert (row.is_altered, row.is_sound) == (True, False)
    proven = row._replace(crc=zlib.crc32(row.data or b""))
    assert (proven.is_altered, proven.is_sound) == (False, True)


def test_a_noted_span_has_its_first_row_its_last_and_all_between() -> None:
    assert [Noted(3, 7, 1.0).rows, Noted(3, 3, 1.0).rows, Noted(4, 3, 1.0).rows] == [5, 1, 0]


def test_runs_are_spans_without_gaps() -> None:
    assert list(runs([7, 3, 1, 2, 9, 10])) == [(1, 3), (7, 7), (9, 10)]
    assert list(runs([])) == []


@given(st.sets(st.integers(1, 40)))
def test_runs_cover_exactly_the_ids_and_never_touch(row_ids: set[int]) -> None:
    spans = list(runs(list(row_ids)))
    assert [number for first, last in spans for number in range(first, last + 1)] == sorted(row_ids)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(spans))


def test_merged_spans_are_one_where_they_overlap_and_stay_apart_where_they_only_touch() -> None:
    assert merged([(8, 9), (1, 3), (3, 5), (6, 7)]) == ((1, 5), (6, 7), (8, 9))
    assert merged([(1, 9), (2, 3)]) == ((1, 9),)
    assert merged([]) == ()
