"""What a test measured beside passing, in words for people; `make promises` writes it into docs/GUARANTEES.md.

`count` adds up, over all tests of a promise too; `most` and `least` keep the worst. Names are keywords, units last:
`most(open_ms=3)` is told as "open ms ≤ 3". tests/conftest.py hands them to pytest's report.
"""

from __future__ import annotations

from collections.abc import Callable

_found: dict[tuple[str, str], float] = {}
_JOIN: dict[str, Callable[[float, float], float]] = {"count": lambda a, b: a + b, "most": max, "least": min}


def count(**numbers: int) -> None:
    """So many there were."""
    _note("count", numbers)


def most(**values: float) -> None:
    """It was never more than that."""
    _note("most", values)


def least(**values: float) -> None:
    """It was never less than that."""
    _note("least", values)


def joined(kind: str, before: float | None, value: float) -> float:
    """What two figures of one kind and name are together."""
    return value if before is None else _JOIN[kind](before, value)


def taken() -> list[tuple[str, str]]:
    """Return what was noted since last time, as (kind and name, value), and forget it."""
    figures = [
        (f"{kind} {name}", f"{value:.6g}" if value % 1 else f"{value:.0f}") for (kind, name), value in _found.items()
    ]
    _found.clear()
    return figures


def _note(kind: str, values: dict[str, float] | dict[str, int]) -> None:
    for name, value in values.items():
        key = kind, name.replace("_", " ")
        _found[key] = joined(kind, _found.get(key), value)
