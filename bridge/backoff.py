"""Backoff and breaker: when the destination may be asked next, and by how much of the queue.

A failure opens the breaker for everybody; when its time is up, one lane probes while the others wait; a probe that
gets an answer closes it. The first few probes repeat the failed batch as it is, so that an answer which got lost finds
the same rows under the same key; a longer outage is probed with one row. A destination that refuses us (401, a
redirect) is paused: one row a minute, or at once when somebody changed something.

Pure: times are monotonic seconds and random numbers that the caller brings; states are values. Holds the request
rate's part of I5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

PROBE_SECONDS = 60.0  # while paused (docs/UPLOAD.md)
OUTAGE_FAILURES = 5  # so many failures in a row are an outage: from here on a probe is one row
_EXPONENT_MAX = 60  # far beyond any bound, and still a float


@dataclass(frozen=True, slots=True)
class Closed:
    """Everybody posts."""


@dataclass(frozen=True, slots=True)
class Open:
    """Nobody posts until `until`; `failures` in a row so far."""

    until: float
    failures: int


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One lane is probing, the others wait for what comes of it."""

    failures: int


@dataclass(frozen=True, slots=True)
class Paused:
    """We are refused; the next probe is at `until`."""

    until: float


Breaker = Closed | Open | HalfOpen | Paused


@dataclass(frozen=True, slots=True)
class Go:
    """Post a batch of the usual size."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Post, alone: the failed batch again or, if `small`, one row."""

    small: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: for so many seconds, or (None) until the breaker changes."""

    seconds: float | None


Leave = Go | Probe | Wait


def delay_seconds(failures: int, random: float, minimum_seconds: float, maximum_seconds: float) -> float:
    """Return the full-jitter delay after so many failures (the one just seen not counted); random is in [0, 1)."""
    bound = minimum_seconds * 2.0 ** min(failures, _EXPONENT_MAX)
    return random * min(max(minimum_seconds, maximum_seconds), bound)


def ask(breaker: Breaker, now: float) -> tuple[Breaker, Leave]:
    """Ask for leave to post; whoever gets a `Probe` holds the breaker half open until he reports."""
    match breaker:
        case Closed():
            return breaker, Go()
        case Open(until, failures):
            if now < until:
                return breaker, Wait(until - now)
            return HalfOpen(failures), Probe(small=failures >= OUTAGE_FAILURES)
        case HalfOpen():
            return breaker, Wait(None)
        case Paused(until):
            if now < until:
                return breaker, Wait(until - now)
            return HalfOpen(0), Probe(small=True)
        case never:
            assert_never(never)


def failures_so_far(breaker: Breaker) -> int:
    """Return the failures in a row that the breaker knows of."""
    return breaker.failures if isinstance(breaker, (Open, HalfOpen)) else 0


def failed(breaker: Breaker, until: float) -> Breaker:
    """Report a passing failure; nobody is to post before `until`."""
    match breaker:
        case Closed() | HalfOpen():
            return Open(until, failures_so_far(breaker) + 1)
        case Open(before, failures):
            # Another lane's post, under way when this opened: one outage, not two failures; the later floor holds.
            return Open(max(before, until), failures)
        case Paused():
            return breaker
        case never:
            assert_never(never)


def passed(breaker: Breaker) -> Breaker:
    """Report that the destination works. A post begun before others failed proves nothing: their delay stands."""
    match breaker:
        case Closed() | HalfOpen():
            return Closed()
        case Open() | Paused():
            return breaker
        case never:
            assert_never(never)


def refused(_breaker: Breaker, now: float) -> Breaker:
    """Report that the destination refuses us."""
    return Paused(now + PROBE_SECONDS)


def hurried(breaker: Breaker, now: float) -> Breaker:
    """Somebody changed something: let the next probe go at once."""
    match breaker:
        case Open(_, failures):
            return Open(now, failures)
        case Paused():
            return Paused(now)
        case Closed() | HalfOpen():
            return breaker
        case never:
            assert_never(never)
