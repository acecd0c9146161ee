"""Whether a part is late: only by its own word, and only beyond the grace."""

from __future__ import annotations

import pytest

from bridge.liveness import IDLE, Pulse, hang

NOW = 1000.0
GRACE_SECONDS = 120.0


@pytest.mark.parametrize(
    ("due", "hangs"),
    [
        pytest.param(IDLE, False, id="nothing is asked of it"),
        pytest.param(NOW + 3600, False, id="it waits as long as the cloud's Retry-After says"),
        pytest.param(NOW, False, id="it should move now"),
        pytest.param(NOW - GRACE_SECONDS, False, id="late, within the grace"),
        pytest.param(NOW - GRACE_SECONDS - 0.1, True, id="late beyond the grace"),
    ],
)
def test_a_part_hangs_when_it_is_later_than_the_grace_allows(due: float, hangs: bool) -> None:
    pulses = [Pulse("disk thread", NOW - 1), Pulse("uploader", due)]
    assert hang(pulses, NOW, GRACE_SECONDS) == ("the uploader has not moved for more than 120 s" if hangs else "")


def test_of_several_that_hang_the_latest_is_named() -> None:
    """A disk that does not return holds up the others, and was the first to be late."""
    pulses = [Pulse("uploader", NOW - 130), Pulse("disk thread", NOW - 140), Pulse("connection", NOW - 135)]
    assert "disk thread" in hang(pulses, NOW, GRACE_SECONDS)
