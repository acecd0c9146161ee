"""A line of the doctor's list: what was looked at, how it is, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Grade(Enum):
    """How something is. Only `fail` makes the doctor's exit status bad."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Line:
    """One finding. `advice` is empty only where there is nothing to do."""

    check: str
    grade: Grade
    found: str
    advice: str = ""


def ok(check: str, found: str, advice: str = "") -> Line:
    """Return a line that nobody need act on."""
    return Line(check, Grade.OK, found, advice)


def warn(check: str, found: str, advice: str) -> Line:
    """Return a line about what works and may not for long, or not as promised."""
    return Line(check, Grade.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Line:
    """Return a line about what does not work."""
    return Line(check, Grade.FAIL, found, advice)


def count(lines: Iterable[Line], grade: Grade) -> int:
    """Return how many lines are of this grade."""
    return sum(line.grade is grade for line in lines)
