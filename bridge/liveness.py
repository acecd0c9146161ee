"""Liveness: whether every part of the bridge still moves, told from when each one said it would.

Beside the way of a message. A part never reports "I am well": before it waits it says until when that may take
(`due`; never, while nothing is asked of it), and it is late when that moment and a grace have passed. So waiting for
a cloud or a broker that is away is no fault: the part that waits says how long, and comes back to say it again. What
is found is a hang of our own: a wait that did not end, a thread that does not answer, a disk that does not return.

Pure: no clock; the caller brings the time. A hang of the event loop itself shows in nobody asking.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

IDLE = float("inf")  # nothing is asked of the part, so it need not move
GRACE_SECONDS = 120.0  # how late a part may be where no service manager says it: longer than any stall of a sound disk


class Pulse(NamedTuple):
    """A part, and the moment (seconds that never jump) by which it meant to move again."""

    part: str
    due: float


def hang(pulses: Iterable[Pulse], now: float, grace_seconds: float) -> str:
    """Return which part is later than the grace allows, the latest one, in words; "" if none is."""
    part, due = min(pulses, key=lambda pulse: pulse.due)
    return f"the {part} has not moved for more than {grace_seconds:g} s" if now - due > grace_seconds else ""
