"""A batch: packed within limits, joined without a change, known by one key, halved in order."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.batch import Batch, Format, Limits, body, content_type, halve, pack
from bridge.message import Row, head, head_middle, tail

MIDDLE = head_middle("edge/press-4", "edge/predictions/press-4")


def row(number: int, *, event_id: str | None = None, payload: bytes = b'{"score": 0.97}', is_json: bool = True) -> Row:
    event = head(event_id or f"id-{number}", MIDDLE, "2026-01-01T00:00:00Z") + tail(payload, is_json=is_json)
    return Row(number, event)


rows_of_any_size = st.lists(st.integers(0, 3000), min_size=1, max_size=60).map(
    lambda sizes: [row(number, payload=b'"%b"' % (b"x" * size)) for number, size in enumerate(sizes)]
)
limits_of_any_size = st.builds(Limits, st.integers(1, 70), st.integers(1, 40_000))


@given(rows_of_any_size, limits_of_any_size)
def test_pack_takes_the_longest_run_of_rows_that_the_limits_allow(rows: list[Row], limits: Limits) -> None:
    batch = pack(rows, limits)
    count = len(batch.rows)
    assert list(batch.rows) == rows[:count]
    assert count == 1 or (count <= limits.messages and len(body(batch, "cloudevents")) <= limits.body_bytes)
    if count < len(rows):
        one_more = Batch(tuple(rows[: count + 1]))
        assert count == limits.messages or len(body(one_more, "cloudevents")) > limits.body_bytes


@given(rows_of_any_size, limits_of_any_size)
def test_rows_taken_within_row_bytes_fit_into_one_body(rows: list[Row], limits: Limits) -> None:
    taken: list[Row] = []
    for one in rows[: limits.messages]:
        if taken and sum(len(each.data) for each in [*taken, one]) > limits.row_bytes:
            break
        taken.append(one)
    assert len(pack(taken, limits).rows) == len(taken)


def test_a_body_of_just_the_limit_is_packed_whole_and_with_a_byte_less_the_last_row_stays() -> None:
    rows = [row(number) for number in range(3)]
    exact = len(body(Batch(tuple(rows)), "cloudevents"))
    assert pack(rows, Limits(3, exact)).row_ids == (0, 1, 2)
    assert pack(rows, Limits(3, exact - 1)).row_ids == (0, 1)
    exact = len(body(Batch(tuple(rows[:2])), "cloudevents"))
    assert pack(rows, Limits(3, exact)).row_ids == (0, 1)
    assert pack(rows, Limits(3, exact - 1)).row_ids == (0,)


@pytest.mark.parametrize(
    ("limits", "row_bytes"),
    [
        (Limits(10, 10_000), 10_000 - 10 - 1),  # ten rows, what joins them, and a bracket more
        (Limits(10_000, 10_000), 10_000 - 100 - 1),  # no more than a hundred of the shortest find room
        (Limits(1, 1), 1),
    ],
)
def test_row_bytes_leaves_just_the_room_for_what_joins_the_rows(limits: Limits, row_bytes: int) -> None:
    assert limits.row_bytes == row_bytes


def test_a_single_row_goes_even_if_it_is_larger_than_the_limit() -> None:
    assert pack([row(1), row(2)], Limits(1000, 10)).row_ids == (1,)


def test_the_bodies_hold_the_stored_bytes_unchanged() -> None:
    first, second = row(1, payload=b'{"score": 1.50}'), row(2, payload=b"\xff", is_json=False)
    batch = Batch((first, second))
    assert body(batch, "cloudevents") == b"[" + first.data + b"," + second.data + b"]"
    assert body(batch, "ndjson") == first.data + b"\n" + second.data + b"\n"
    assert body(batch, "json") == b'[{"score": 1.50},{"data_base64":"/w=="}]'


@pytest.mark.parametrize(
    ("body_format", "expected"),
    [
        ("cloudevents", "application/cloudevents-batch+json"),
        ("json", "application/json"),
        ("ndjson", "application/x-ndjson"),
    ],
)
def test_each_format_has_its_media_type(body_format: Format, expected: str) -> None:
    assert content_type(body_format) == expected


@given(rows_of_any_size)
def test_body_bytes_bounds_the_body_of_every_format(rows: list[Row]) -> None:
    batch = Batch(tuple(rows))
    assert batch.body_bytes == len(body(batch, "cloudevents"))
    assert batch.body_bytes >= len(body(batch, "ndjson"))
    assert batch.body_bytes >= len(body(batch, "json"))
    assert [json.loads(line)["id"] for line in body(batch, "ndjson").splitlines()] == list(batch.event_ids)


def test_the_key_depends_on_the_stored_events_and_their_order_and_on_nothing_else() -> None:
    batch = Batch((row(1, event_id="a"), row(2, event_id="b")))
    stored_again = Batch((row(77, event_id="a"), row(78, event_id="b")), attempts=3)
    assert batch.key == stored_again.key
    assert batch.key != Batch(batch.rows[::-1]).key
    assert batch.key != Batch(batch.rows[:1]).key


def test_the_key_is_the_same_in_every_version_of_the_bridge() -> None:
    """A batch in doubt is posted again after an update, and must meet its old key."""
    first, second = row(1), row(2)
    digest = hashlib.sha256(first.data + b"\n" + second.data).hexdigest()
    assert Batch((first, second)).key == digest[: 128 // 4]


def test_an_id_that_is_used_again_for_another_payload_does_not_meet_its_old_key() -> None:
    assert Batch((row(1, event_id="a", payload=b"1"),)).key != Batch((row(1, event_id="a", payload=b"2"),)).key


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_different_ids_never_share_a_key(left: list[str], right: list[str]) -> None:
    keys = [Batch(tuple(row(0, event_id=one) for one in ids)).key for ids in (left, right)]
    assert (keys[0] == keys[1]) == (left == right)


@given(st.integers(2, 50), st.integers(0, 5))
def test_halves_keep_order_and_attempts_and_the_left_is_not_the_larger(count: int, attempts: int) -> None:
    batch = Batch(tuple(row(number) for number in range(count)), attempts)
    left, right = halve(batch)
    assert left.rows + right.rows == batch.rows
    assert left.attempts == right.attempts == attempts
    assert len(left.rows) == count // 2


def test_a_refused_size_halves_the_limit_and_never_raises_it() -> None:
    assert Limits(10, 1000).shrunk(800) == Limits(10, 400)
    assert Limits(10, 300).shrunk(800) == Limits(10, 300)
    assert Limits(10, 1).shrunk(1) == Limits(10, 1)
