"""What the runs say together: medians and spreads, the table for people, and the document for machines.

Pure. A figure that a run does not have (the null subscriber delivers nothing; a system without /proc tells little) is
None, and stays absent: it is never shown as 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

SCHEMA = 1  # of the JSON document; raised when a member changes its meaning
ABSENT = "–"
PERCENTILES = ("p50_ms", "p99_ms", "p999_ms")
TITLES = (
    "mode",
    "messages/s (min–max)",
    "of ceiling",
    "CPU µs / message",
    "RSS peak MiB",
    "written B / payload B",
    "fsyncs / message",
    "stored ms p50 / p99 / p99.9",
    "delivered ms p50 / p99 / p99.9",
    "idle CPU % / MiB",
)


@dataclass(frozen=True, slots=True)
class Latency:
    """From the time a message was due to its arrival at the sink, or to its receipt, at a modest rate."""

    samples: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one mode. CPU, RSS and bytes are the contender's process alone."""

    messages: int
    missing: int
    duplicates: int
    elapsed_seconds: float  # first publish → last message at the counter
    messages_per_second: float
    cpu_us_per_message: float | None
    rss_peak_bytes: int | None
    written_bytes_per_payload_byte: float | None
    latency: Latency | None
    stored: Latency | None  # to the receipt that says so
    idle_cpu_percent: float | None
    idle_rss_bytes: int | None
    cores_busy: dict[str, float | None]  # of every process meanwhile: who was the bottleneck
    load_average: float  # of the machine before, over a minute: was it ours alone?


@dataclass(frozen=True, slots=True)
class Mode:
    """A contender and its runs, in order."""

    title: str
    settings: dict[str, str]
    runs: tuple[Run, ...]
    syncs_per_message: float | None = None  # of a run of its own that is not timed


class Spread(NamedTuple):
    """A median and how far the runs were apart."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return median, least and most of the values there are; None if there are none."""
    present = [value for value in values if value is not None]
    return Spread(statistics.median(present), min(present), max(present)) if present else None


def latency(samples_ns: Sequence[int]) -> Latency | None:
    """Return the percentiles of what was measured; None if nothing was."""
    if not samples_ns:
        return None
    ordered = sorted(samples_ns)
    p50, p99, p999 = (round(percentile(ordered, share) / 1e6, 2) for share in (0.5, 0.99, 0.999))
    return Latency(len(ordered), p50, p99, p999, round(ordered[-1] / 1e6, 2))


def percentile(ordered: Sequence[int], share: float) -> int:
    """Return the nearest-rank percentile: a value that did occur."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def missing(modes: Sequence[Mode]) -> int:
    """Return how many messages did not arrive, of all runs."""
    return sum(run.missing for mode in modes for run in mode.runs)


def rows(modes: Sequence[Mode], ceiling: str) -> list[tuple[str, ...]]:
    """Return the table's rows, a mode each, cells as `TITLES`; `ceiling` is the title of the mode to compare with."""
    rates = {mode.title: spread([run.messages_per_second for run in mode.runs]) for mode in modes}
    top = rates.get(ceiling)
    return [_row(mode, rates[mode.title], top) for mode in modes]


def _row(mode: Mode, rate: Spread | None, top: Spread | None) -> tuple[str, ...]:
    runs = mode.runs
    idle_cpu = spread([run.idle_cpu_percent for run in runs])
    idle_mib = spread([_mib(run.idle_rss_bytes) for run in runs])
    return (
        mode.title,
        f"{rate.median:,.0f} ({rate.low:,.0f}–{rate.high:,.0f})" if rate else ABSENT,
        f"{rate.median / top.median:.2f}" if rate and top and top.median else ABSENT,
        _cell(spread([run.cpu_us_per_message for run in runs]), 1),
        _cell(spread([_mib(run.rss_peak_bytes) for run in runs]), 0),
        _cell(spread([run.written_bytes_per_payload_byte for run in runs]), 2),
        ABSENT if mode.syncs_per_message is None else f"{mode.syncs_per_message:.4f}",
        _percentiles([run.stored for run in runs if run.stored]),
        _percentiles([run.latency for run in runs if run.latency]),
        f"{_cell(idle_cpu, 2)} / {_cell(idle_mib, 0)}" if idle_cpu else ABSENT,
    )


def _percentiles(latencies: Sequence[Latency]) -> str:
    if not latencies:
        return ABSENT
    return " / ".join(_cell(spread([getattr(one, name) for one in latencies]), 1) for name in PERCENTILES)


def _cell(found: Spread | None, digits: int) -> str:
    return f"{found.median:,.{digits}f}" if found else ABSENT


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 2**20


def document(
    modes: Sequence[Mode], *, command: Sequence[str], environment: dict[str, Any], alone: dict[str, Any]
) -> dict[str, Any]:
    """Return everything measured, every run of it, as JSON can say it."""
    return {
        "schema": SCHEMA,
        "command": list(command),
        "environment": environment,
        "alone": alone,
        "missing": missing(modes),
        "modes": [asdict(mode) | {"median": _medians(mode.runs)} for mode in modes],
    }


def _medians(runs: Sequence[Run]) -> dict[str, float | None]:
    names = (
        "messages_per_second",
        "cpu_us_per_message",
        "rss_peak_bytes",
        "written_bytes_per_payload_byte",
        "idle_cpu_percent",
        "idle_rss_bytes",
    )
    found = {name: spread([getattr(run, name) for run in runs]) for name in names}
    for name in PERCENTILES:
        found[f"latency_{name}"] = spread([getattr(run.latency, name) for run in runs if run.latency])
        found[f"stored_{name}"] = spread([getattr(run.stored, name) for run in runs if run.stored])
    return {name: one and one.median for name, one in found.items()}
