"""Trials of one bridge that are no race: starting, idling, emptying a full queue, and working on top of one.

Each run has a stage of its own, as in `measure.py`. A queue with rows that wait is made once (`fill`) and copied for
each run; the copy is on the disk before the bridge starts, and warm in the system's cache.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.bench.contenders import Bridge
from bridge.bench.measure import cpu_seconds_between
from bridge.bench.predictions import Phase, events
from bridge.bench.programs import Talker
from bridge.bench.stage import Stage, started_stage
from bridge.disk_queue import DiskQueue, NewRow
from bridge.errors import FaultError

_GROUP_ROWS = 10_000
_POLL_SECONDS = 0.02
_STALL_SECONDS = 30.0
_SETTLE_SECONDS = 2.0
_CURVE_POINTS = 200
_NS = 1_000_000_000
_TENTH = 0.1
_STORED = "edge_bridge_messages_stored_total"
# A backlog may be larger than the bound as shipped; a cloud that is back is noticed soon.
_OTHERS = (("queue.max_bytes", 0), ("upload.retry_min_seconds", 1.0), ("upload.retry_max_seconds", 1.0))


@dataclass(frozen=True, slots=True)
class Start:
    """A start with nothing to do."""

    ready_ms: float  # execution → /readyz says so
    idle_cpu_percent: float | None
    idle_rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class Drain:
    """A start with rows that wait, and all of them delivered."""

    rows: int
    missing: int
    duplicates: int
    ready_ms: float
    first_post_ms: float  # execution → the first post is at the sink, whole
    rows_per_second: float  # from the first post to the last
    first_tenth_rows_per_second: float
    last_tenth_rows_per_second: float
    cpu_us_per_row: float | None  # the start included
    rss_peak_bytes: int | None
    curve: tuple[tuple[float, int], ...]  # seconds since execution, rows that had arrived


@dataclass(frozen=True, slots=True)
class Depth:
    """What a message costs while so many rows wait: stored while the cloud is away, and delivered once it is back."""

    rows: int
    messages: int
    store_us_per_message: float | None
    deliver_us_per_message: float | None
    rss_peak_bytes: int | None


def fill(folder: Path, rows: int, payload_bytes: int) -> None:
    """Make a queue with so many rows that wait, numbered as what the generator publishes."""
    queue = DiskQueue(folder, durability="crash")
    stored = events(Phase.BACKLOG, rows, payload_bytes)
    while group := list(itertools.islice(stored, _GROUP_ROWS)):
        now = time.time()
        with queue.transaction():
            queue.put_rows([NewRow(event, now) for event in group])
    queue.close()


async def start(folder: Path, bridge: Bridge, payload_bytes: int, idle_seconds: float) -> Start:
    """Start it, and let it be for so long."""
    async with started_stage(folder, bridge, payload_bytes) as stage:
        ready_ns = await stage.ready()
        await asyncio.sleep(_SETTLE_SECONDS)
        before = stage.contender.usage()
        await asyncio.sleep(idle_seconds)
        after = stage.contender.usage()
        cpu_seconds = cpu_seconds_between(before, after)
        idle_cpu_percent = None if cpu_seconds is None else round(100 * cpu_seconds / idle_seconds, 2)
        return Start(_ms(stage, ready_ns), idle_cpu_percent, after.rss_bytes)


async def drain(folder: Path, bridge: Bridge, payload_bytes: int, rows: int) -> Drain:
    """Start it with its backlog of so many rows, and wait until all have arrived."""

    async def count(sink: Talker) -> None:
        await sink.ask("expect", phase=Phase.BACKLOG)

    bridge = replace(bridge, others=(*bridge.others, *_OTHERS))
    async with started_stage(folder, bridge, payload_bytes, prepare=count) as stage:
        ready_ns = await stage.ready()
        report = await _arrived(stage, rows)
        usage = stage.contender.usage()
        curve = [(at_ns - stage.contender.started_ns, arrived) for at_ns, arrived in await _curve(stage)]
    return Drain(
        rows=rows,
        missing=rows - report["unique"],
        duplicates=report["duplicates"],
        ready_ms=_ms(stage, ready_ns),
        first_post_ms=round(curve[0][0] / 1e6, 1) if curve else 0.0,
        rows_per_second=round(rate(curve, 0, 1)),
        first_tenth_rows_per_second=round(rate(curve, 0, _TENTH)),
        last_tenth_rows_per_second=round(rate(curve, 1 - _TENTH, 1)),
        cpu_us_per_row=None if usage.cpu_seconds is None else round(1e6 * usage.cpu_seconds / rows, 2),
        rss_peak_bytes=usage.rss_peak_bytes,
        curve=tuple((round(at_ns / _NS, 3), arrived) for at_ns, arrived in thinned(curve, _CURVE_POINTS)),
    )


async def depth(folder: Path, bridge: Bridge, payload_bytes: int, rows: int, messages: int) -> Depth:
    """Store so many messages on top of the backlog while the cloud is away, then let as many rows be delivered."""

    async def be_away(sink: Talker) -> None:
        await sink.ask("refuse")
        await sink.ask("expect", phase=Phase.BACKLOG if rows else Phase.THROUGHPUT)

    bridge = replace(bridge, others=(*bridge.others, *_OTHERS))
    async with started_stage(folder, bridge, payload_bytes, prepare=be_away) as stage:
        await stage.ready()
        await asyncio.sleep(_SETTLE_SECONDS)
        before = stage.contender.usage()
        async with stage.generator(Phase.THROUGHPUT, messages, payload_bytes) as generator:
            await generator.ask("publish")
        await _stored(stage, messages)
        stored = stage.contender.usage()
        await stage.sink.ask("accept")
        report = await _arrived(stage, min(rows, messages) or messages)
        delivered = stage.contender.usage()
    return Depth(
        rows=rows,
        messages=messages,
        store_us_per_message=_us(cpu_seconds_between(before, stored), messages),
        deliver_us_per_message=_us(cpu_seconds_between(stored, delivered), report["unique"]),
        rss_peak_bytes=delivered.rss_peak_bytes,
    )


async def _stored(stage: Stage, messages: int) -> None:
    for _ in _until_stalled():
        if await stage.metric(_STORED) >= messages:
            return
        stage.check()
        await asyncio.sleep(_POLL_SECONDS)
    raise FaultError(f"{messages:,} messages were not stored", "is the disk full?")


async def _arrived(stage: Stage, rows: int) -> dict[str, Any]:
    """Wait until so many have arrived, or no more do."""
    arrived, report = -1, {"unique": 0, "duplicates": 0}
    while report["unique"] > arrived:  # as long as there is progress
        arrived = report["unique"]
        for _ in _until_stalled():
            stage.check()
            await asyncio.sleep(_POLL_SECONDS)
            report = await stage.sink.ask("report")
            if report["unique"] >= rows:
                return report
            if report["unique"] > arrived:
                break
    return report


def _until_stalled() -> Iterator[None]:
    end = time.monotonic() + _STALL_SECONDS
    while time.monotonic() < end:
        yield


async def _curve(stage: Stage) -> list[tuple[int, int]]:
    return [(at_ns, arrived) for at_ns, arrived in (await stage.sink.ask("curve"))["curve"]]


def rate(curve: Sequence[tuple[int, int]], start_share: float, end_share: float) -> float:
    """Return how many a second arrived between these shares of all that did; 0 if that was at one moment.

    What came with a point was under way since the point before it, so the first point only starts the clock.
    """
    total = curve[-1][1] if curve else 0
    inside = [point for point in curve if start_share * total <= point[1] <= end_share * total]
    if not inside or inside[-1][0] == inside[0][0]:
        return 0.0
    return (inside[-1][1] - inside[0][1]) * _NS / (inside[-1][0] - inside[0][0])


def thinned(curve: Sequence[tuple[int, int]], points_max: int) -> list[tuple[int, int]]:
    """Return about so many points of it, the first and the last among them."""
    if len(curve) <= points_max:
        return list(curve)
    step = (len(curve) - 1) / (points_max - 1)
    return [curve[round(number * step)] for number in range(points_max)]


def _ms(stage: Stage, at_ns: int) -> float:
    return round((at_ns - stage.contender.started_ns) / 1e6, 1)


def _us(cpu_seconds: float | None, count: int) -> float | None:
    return None if cpu_seconds is None or not count else round(1e6 * cpu_seconds / count, 2)
