"""The last hour, so that a page opened now shows how it came to be this way: samples and troubles, both bounded (I5).

A sample every few seconds holds what the page draws; a trouble is one sentence of `Status.troubles`, with how often
it came and when it was last seen. Times go out as ages on the monotonic clock, so neither a jump of the device's
clock nor a browser with another one bends the picture.

Pure: the caller brings status and `Now`. Nothing is written down: after a restart the hour begins anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridge.status import CloudState, Now, Status, timestamp

SAMPLE_SECONDS = 5.0
SPAN_SECONDS = 3600.0
SAMPLES_MAX = int(SPAN_SECONDS / SAMPLE_SECONDS)
TROUBLES_MAX = 20


class Sample(NamedTuple):
    """What the page draws of one moment. `at`: monotonic seconds."""

    at: float
    waiting: int
    broker_connected: bool
    cloud_state: CloudState


@dataclass(frozen=True, slots=True)
class Trouble:
    """How often one trouble came, and when it was first and last seen."""

    first: Now
    last: Now
    times: int = 1


class History:
    """Samples and troubles of one process, the newest of each."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._troubles: dict[str, Trouble] = {}  # the one seen last stands last
        self._present: frozenset[str] = frozenset()

    def sample(self, status: Status, now: Now) -> None:
        """Take the sample of this moment."""
        waiting = status.queue.ready + status.queue.taken
        self._samples.append(Sample(now.monotonic, waiting, status.broker.connected, status.cloud.state))
        self.look(status, now)

    def look(self, status: Status, now: Now) -> None:
        """Note which troubles there are at this moment."""
        before, self._present = self._present, frozenset(status.troubles)
        for text in status.troubles:
            known = self._troubles.pop(text, None)
            times = 1 if known is None else known.times + (text not in before)
            self._troubles[text] = Trouble(now if known is None else known.first, now, times)
        while len(self._troubles) > TROUBLES_MAX:
            del self._troubles[next(iter(self._troubles))]

    def tree(self, now: Now) -> dict[str, Any]:
        """Return what `/history` answers: samples oldest first, troubles newest first, ages in seconds before now.

        A sample is [age, rows that wait, whether the broker was connected, the state of the cloud].
        """
        return {
            "span_seconds": SPAN_SECONDS,
            "samples": [
                [_age_seconds(sample.at, now), sample.waiting, sample.broker_connected, sample.cloud_state]
                for sample in self._samples
                if now.monotonic - sample.at <= SPAN_SECONDS
            ],
            "troubles": [
                {"text": text, "times": trouble.times, "present": text in self._present, **_moments(trouble, now)}
                for text, trouble in reversed(self._troubles.items())
            ],
        }


def _moments(trouble: Trouble, now: Now) -> dict[str, Any]:
    return {
        "first_at": timestamp(trouble.first.wall),
        "last_at": timestamp(trouble.last.wall),
        "last_age_seconds": _age_seconds(trouble.last.monotonic, now),
    }


def _age_seconds(at: float, now: Now) -> float:
    return round(now.monotonic - at, 1)
