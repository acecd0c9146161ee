"""Backoff and breaker: bounded delays, one probe at a time, an end to every wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import backoff
from bridge.backoff import Breaker, Closed, Go, HalfOpen, Open, Paused, Probe, Wait

fractions = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
seconds = st.floats(0.001, 10_000)


@given(st.integers(0, 10**9), fractions, seconds, seconds)
def test_the_delay_has_full_jitter_below_a_bound_that_doubles(
    failures: int, random: float, minimum: float, maximum: float
) -> None:
    delay = backoff.delay_seconds(failures, random, minimum, maximum)
    assert 0 <= delay <= max(minimum, maximum)
    assert delay <= random * minimum * 2.0 ** min(failures, 1000)


def test_the_bound_doubles_with_each_failure_up_to_the_maximum() -> None:
    bounds = [backoff.delay_seconds(failures, 1.0, 0.5, 60) for failures in range(9)]
    assert bounds == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_an_open_breaker_lets_exactly_one_probe_through_when_its_time_is_up() -> None:
    breaker = backoff.failed(Closed(), until=10)
    breaker, leave = backoff.ask(breaker, 4)
    assert leave == Wait(6)
    breaker, leave = backoff.ask(breaker, 10)
    assert leave == Probe(small=False)
    breaker, leave = backoff.ask(breaker, 11)
    assert leave == Wait(None)
    assert backoff.ask(backoff.passed(breaker), 11) == (Closed(), Go())


def test_a_long_outage_is_probed_with_a_small_batch() -> None:
    breaker: Breaker = Closed()
    smalls = []
    for _ in range(backoff.OUTAGE_FAILURES):
        breaker, leave = backoff.ask(backoff.failed(breaker, until=0), 1)
        assert isinstance(leave, Probe)
        smalls.append(leave.small)
    assert smalls == [False] * (backoff.OUTAGE_FAILURES - 1) + [True]


def test_posts_that_fail_together_count_as_one_failure_and_keep_the_longest_floor() -> None:
    breaker = backoff.failed(Closed(), until=50)
    assert backoff.failed(breaker, until=20) == Open(50, 1)
    assert backoff.failed(breaker, until=70) == Open(70, 1)


def test_a_pause_is_probed_once_a_minute_with_one_row() -> None:
    breaker = backoff.refused(Closed(), now=100)
    assert backoff.ask(breaker, 130)[1] == Wait(30)
    breaker, leave = backoff.ask(breaker, 160)
    assert leave == Probe(small=True)
    assert backoff.refused(breaker, now=161) == Paused(221)


def test_a_failure_right_after_a_pause_is_the_first_one() -> None:
    probing, _ = backoff.ask(Paused(60), 60)
    assert backoff.failed(probing, until=70) == Open(70, 1)


@pytest.mark.parametrize("breaker", [Open(900, 3), Paused(900)])
def test_a_hurried_breaker_probes_at_once(breaker: Breaker) -> None:
    assert isinstance(backoff.ask(backoff.hurried(breaker, 5), 5)[1], Probe)


@pytest.mark.parametrize("breaker", [Closed(), HalfOpen(3)])
def test_hurry_changes_nothing_where_somebody_is_posting_already(breaker: Breaker) -> None:
    assert backoff.hurried(breaker, 5) == breaker


@pytest.mark.parametrize("breaker", [Open(50, 2), Paused(60)])
def test_a_late_success_of_another_lane_does_not_shorten_a_wait(breaker: Breaker) -> None:
    assert backoff.passed(breaker) == breaker


def test_a_late_failure_of_another_lane_does_not_end_a_pause() -> None:
    assert backoff.failed(Paused(60), until=1) == Paused(60)


steps = st.lists(st.tuples(st.sampled_from(["failed", "passed", "refused", "hurried", "ask"]), st.floats(0, 90)))


@given(steps)
def test_whatever_happens_there_is_always_a_way_to_the_next_post(taken: list[tuple[str, float]]) -> None:
    breaker: Breaker = Closed()
    now = 0.0
    for step, passed_seconds in taken:
        now += passed_seconds
        match step:
            case "failed":
                breaker = backoff.failed(breaker, now + passed_seconds)
            case "passed":
                breaker = backoff.passed(breaker)
            case "refused":
                breaker = backoff.refused(breaker, now)
            case "hurried":
                breaker = backoff.hurried(breaker, now)
            case _:
                breaker, _ = backoff.ask(breaker, now)
    if isinstance(breaker, HalfOpen):  # whoever probes reports in the end
        breaker = backoff.failed(breaker, now)
    assert not isinstance(backoff.ask(breaker, now + 91)[1], Wait)
