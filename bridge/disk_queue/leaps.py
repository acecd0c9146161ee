"""How far the clock was put forward while rows waited: their age and their expiry are counted without that.

When a row came, and until when it is of use, is written by the time of day, for it must hold over restarts. But a clock
that is put forward by an hour has not made anything an hour older, and nothing may be given up because of it. So each
leap is remembered with the rows that were there before it. One that is taken back is forgotten again; a clock that is
put back makes rows live longer, and so does a restart count by the time of day alone.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence

from bridge.message import CLOCK_SET_SINCE

LEAP_SECONDS_MIN = 2.0  # less is how NTP moves a clock
_LEAPS_MAX = 100


class Leaps:
    """`look` before rows are stored and judged, `stored` after; `seconds` is what an age must be counted without."""

    def __init__(self) -> None:
        self._wall, self._steady = time.time(), _steady_seconds()
        self._leaps: list[tuple[int, float]] = []  # (the newest row before it, seconds), in order
        self._may_come = False  # rows that were received before the last of them

    def look(self, newest: int) -> None:
        """See whether the clock was put forward or back; rows up to `newest` were there before."""
        wall, steady = time.time(), _steady_seconds()
        step, was_set = (wall - self._wall) - (steady - self._steady), self._wall >= CLOCK_SET_SINCE
        self._wall, self._steady = wall, steady
        if step > LEAP_SECONDS_MIN and was_set:
            self._leaps = [*self._leaps, (newest, step)][-_LEAPS_MAX:]
            self._may_come = True
        elif step < -LEAP_SECONDS_MIN:
            self._take_back(-step)
            self._may_come = False

    def stored(self, newest: int, received_at: Sequence[float]) -> None:
        """Hear of rows just stored, the last of them `newest`: the first may have come before the last leap."""
        if self._may_come:
            _, step = self._leaps[-1]
            early = bisect_right(received_at, self._wall - step / 2)  # nearer to the time before it than to now
            if early:
                self._leaps[-1] = (newest - len(received_at) + early, step)
            self._may_come = early == len(received_at)  # they come in order

    def seconds(self, row_id: int) -> float:
        """Return how far the clock was put forward since this row came."""
        return sum(step for newest, step in self._leaps if row_id <= newest)

    def _take_back(self, seconds: float) -> None:
        while self._leaps and seconds > 0:
            newest, step = self._leaps.pop()
            if step > seconds + LEAP_SECONDS_MIN:
                self._leaps.append((newest, step - seconds))
            seconds -= step


def _steady_seconds() -> float:
    """Seconds that no clock setting moves; suspend counts, where the system can say so."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
