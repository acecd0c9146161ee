"""Who counts what arrived: every number once, however often it came, and when the last new one did.

Used by the sink and by the null subscriber alike, so that they mean the same. Pure: the caller brings the time.
"""

from __future__ import annotations

from typing import Any

from bridge.bench.predictions import Phase, pattern, stamped_ns


class Tally:
    """Counts the predictions of one phase; those of others are not seen."""

    def __init__(self) -> None:
        self.expect(Phase.PROBE)

    def expect(self, phase: Phase) -> None:
        """Begin anew, with another phase."""
        self._pattern = pattern(phase)
        self._is_stamped = phase is Phase.LATENCY
        self._seen: set[Any] = set()
        self._found = 0
        self._curve: list[tuple[int, int]] = []
        self._latencies_ns: list[int] = []

    def count(self, text: bytes, at_ns: int) -> None:
        """Count the predictions in this text, which arrived whole at this time."""
        found = self._pattern.findall(text)
        if self._is_stamped:
            fresh = set(found) - self._seen
            self._latencies_ns += [at_ns - stamped_ns(stamp) for _, stamp in fresh]
        before = len(self._seen)
        self._seen.update(found)
        self._found += len(found)
        if len(self._seen) > before:
            self._curve.append((at_ns, len(self._seen)))

    def report(self) -> dict[str, Any]:
        """Return the counts so far."""
        unique = len(self._seen)
        last_ns = self._curve[-1][0] if self._curve else 0
        return {"unique": unique, "duplicates": self._found - unique, "last_ns": last_ns}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Answer a command: `expect` a phase, `report`, `curve`, or `latencies` (LATENCY alone has any)."""
        match command["do"]:
            case "expect":
                self.expect(Phase(command["phase"]))
                return {}
            case "report":
                return self.report()
            case "curve":  # when how many had arrived: a point for each time that some did
                return {"curve": self._curve}
            case "latencies":
                return {"latencies_ns": self._latencies_ns}
            case other:
                raise ValueError(f"unknown command {other!r}")
