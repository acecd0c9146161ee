"""The rates of a curve of arrivals, and what is left of it for a picture."""

from __future__ import annotations

import pytest

from bridge.bench.trials import rate, thinned

SECOND = 1_000_000_000
STEADY = [(SECOND + at * SECOND // 10, 100 * (at + 1)) for at in range(20)]  # 1,000 a second


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 0.1), (0.9, 1), (0.25, 0.5)])
def test_what_arrives_steadily_has_the_same_rate_all_the_time(start: float, end: float) -> None:
    assert rate(STEADY, start, end) == 1000


def test_a_drain_that_gets_slower_shows_it() -> None:
    slowing = [*STEADY, (STEADY[-1][0] + 10 * SECOND, 4000)]
    assert rate(slowing, 0, 0.1) == 1000
    assert rate(slowing, 0, 1) < 350


@pytest.mark.parametrize("curve", [[], STEADY[:1]])
def test_what_came_at_once_has_no_rate(curve: list[tuple[int, int]]) -> None:
    assert rate(curve, 0, 1) == 0.0


def test_a_thinned_curve_keeps_both_ends_and_a_short_one_every_point() -> None:
    assert thinned(STEADY, 20) == STEADY
    few = thinned(STEADY, 5)
    assert (len(few), few[0], few[-1]) == (5, STEADY[0], STEADY[-1])
