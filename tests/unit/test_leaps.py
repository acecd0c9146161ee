"""A clock that is put forward makes nothing older: what a row's age and expiry are counted without."""

from __future__ import annotations

import pytest

from bridge.disk_queue import leaps
from bridge.disk_queue.leaps import Leaps
from bridge.message import CLOCK_SET_SINCE

NOW, YEARS = 1.8e9, 3650 * 86400.0


class Time:
    """The time of day and the seconds since the boot, each to be moved alone."""

    def __init__(self, wall: float = NOW) -> None:
        self.wall, self.steady = wall, 100.0

    def pass_(self, seconds: float) -> None:
        self.wall, self.steady = self.wall + seconds, self.steady + seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    moment = Time()
    monkeypatch.setattr("time.time", lambda: moment.wall)
    monkeypatch.setattr(leaps, "_steady_seconds", lambda: moment.steady)
    return moment


def test_time_that_passes_is_no_leap(now: Time) -> None:
    seen = Leaps()
    now.pass_(86400)
    seen.look(5)
    now.wall += 1.9
    seen.look(5)
    assert seen.seconds(1) == 0


@pytest.mark.parametrize(("step", "counted"), [(2.0, 0), (2.5, 2.5)])
def test_more_than_two_seconds_are_a_leap(now: Time, step: float, counted: float) -> None:
    seen = Leaps()
    now.wall += step
    seen.look(5)
    assert seen.seconds(5) == counted


def test_a_leap_counts_for_the_rows_that_were_there_before_it(now: Time) -> None:
    seen = Leaps()
    now.wall += YEARS
    seen.look(5)
    now.pass_(10)
    now.wall += 3600
    seen.look(8)
    assert [seen.seconds(row_id) for row_id in (5, 6, 8, 9)] == [YEARS + 3600, 3600, 3600, 0]


def test_what_was_received_before_a_leap_and_stored_after_it_is_older_than_it(now: Time) -> None:
    seen = Leaps()
    before = now.wall
    seen.look(5)
    now.pass_(0.5)
    now.wall += YEARS
    seen.look(5)
    seen.stored(8, (before, before + 0.5, now.wall))
    assert [seen.seconds(row_id) for row_id in (5, 7, 8)] == [YEARS, YEARS, 0]
    seen.stored(9, (before,))  # such as an import of what is old
    assert [seen.seconds(row_id) for row_id in (7, 8, 9)] == [YEARS, 0, 0]
    now.wall += 3600
    seen.look(9)
    now.wall -= 3600
    seen.look(9)
    seen.stored(10, (before,))
    assert [seen.seconds(row_id) for row_id in (7, 10)] == [YEARS, 0]


@pytest.mark.parametrize(
    ("back", "left"),
    [
        (YEARS, 3600),
        (YEARS + 3600, 0),
        (YEARS * 2, 0),
        (YEARS - 60, 3660),
        (YEARS + 0.5, 3599.5),
        (YEARS + 3597, 3),
        (YEARS + 3598, 0),  # what is left would be none
        (2, YEARS + 3600),  # as NTP moves a clock
    ],
)
def test_a_leap_that_is_taken_back_is_forgotten(now: Time, back: float, left: float) -> None:
    seen = Leaps()
    for step in (3600, YEARS):
        now.wall += step
        seen.look(5)
    now.wall -= back
    seen.look(5)
    assert seen.seconds(5) == left


def test_a_clock_that_is_put_back_makes_nothing_older_either(now: Time) -> None:
    seen = Leaps()
    now.wall -= YEARS
    seen.look(5)
    assert seen.seconds(5) == 0


@pytest.mark.parametrize(("before", "counted"), [(600.0, False), (CLOCK_SET_SINCE - 1, False), (CLOCK_SET_SINCE, True)])
def test_the_day_when_the_clock_is_set_for_the_first_time_is_no_leap(now: Time, before: float, counted: bool) -> None:
    """What came before is dated then, and is as old as that says."""
    now.wall = before
    seen = Leaps()
    now.wall = NOW
    seen.look(5)
    assert seen.seconds(5) == (NOW - before) * counted


def test_a_suspended_machine_leaps_only_where_the_system_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr("time.clock_gettime", {7: 86_400.0}.__getitem__)
    monkeypatch.setattr("time.monotonic", lambda: 60.0)
    assert leaps._steady_seconds() == 86_400
    monkeypatch.delattr("time.CLOCK_BOOTTIME")
    assert leaps._steady_seconds() == 60


def test_of_many_leaps_the_last_are_remembered(now: Time) -> None:
    seen = Leaps()
    for _ in range(1000):
        now.wall += 10
        seen.look(5)
    assert seen.seconds(5) == 1000
