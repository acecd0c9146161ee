"""The measuring: modes in turn, each run on a stage of its own: idle, latency at a modest rate, then full speed.

Modes take turns instead of runs, so that what else the machine does meanwhile falls on all of them alike. A run ends
when every message has arrived, or when none has for a while; then the rest is missing, and the bench says so.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.bench.contenders import Contender
from bridge.bench.predictions import Phase
from bridge.bench.programs import Program, Talker
from bridge.bench.results import Latency, Mode, Run, latency
from bridge.bench.stage import Stage, private_folder, running_broker, set_stage
from bridge.bench.usage import Usage

_POLL_SECONDS = 0.05
_STALL_SECONDS = 30.0  # nothing new for so long: the rest does not come
_NS = 1_000_000_000
SYNCS = "fsync,fdatasync"
# As a grandchild, so that the process measured stays the one started; stops it at those calls alone.
STRACE = ("strace", "-D", "-f", "-qq", "--seccomp-bpf")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how much of it. 0 seconds: that part is left out."""

    contenders: tuple[Contender, ...]
    messages: int
    payload_bytes: int
    runs: int
    latency_rate: int
    latency_seconds: float
    idle_seconds: float
    folder: Path
    counts_syncs: bool = False


Tell = Callable[[str, int, int], None]
"""Called with what is being done, how many messages of it have arrived, and how many there are."""


async def measure(plan: Plan, tell: Tell, finished: Callable[[], None]) -> tuple[Mode, ...]:
    """Measure every mode; `finished` is called after each run."""
    runs: dict[str, list[Run]] = {contender.title: [] for contender in plan.contenders}
    for number in range(plan.runs):
        for contender in plan.contenders:
            prefix = f"{contender.title}, run {number + 1} of {plan.runs}"
            runs[contender.title].append(await _run(plan, contender, lambda *found, at=prefix: tell(at, *found)))
            finished()
    syncs = {}
    if plan.counts_syncs:
        for contender in plan.contenders:
            prefix = f"{contender.title}, counting its fsyncs"
            told = functools.partial(tell, prefix)
            syncs[contender.title] = await _syncs_per_message(plan, contender, told)
    return tuple(Mode(one.title, one.settings, tuple(runs[one.title]), syncs.get(one.title)) for one in plan.contenders)


async def _syncs_per_message(plan: Plan, contender: Contender, tell: Callable[[int, int], None]) -> float | None:
    """Run at full speed under strace, which slows nothing but the fsyncs; for how long is not looked at."""
    if not contender.delivers or shutil.which("strace") is None:
        return None
    plan = replace(plan, messages=min(plan.messages, contender.messages_max))
    tell(0, plan.messages)
    with private_folder(plan.folder) as folder:
        log = folder / "syncs"
        async with set_stage(plan.folder, contender, plan.payload_bytes, wrapper=counting_syncs(log)) as stage:
            before = syncs_in(log)
            run = await _full_speed(stage, plan, tell, (None, None, None, 0.0))
            return round((syncs_in(log) - before) / plan.messages, 6) if not run.missing else None


def counting_syncs(log: Path) -> tuple[str, ...]:
    """Return the program to put before one whose fsyncs are to be counted."""
    return (*STRACE, "-e", f"trace={SYNCS}", "-o", str(log))


def delaying_syncs(milliseconds: float) -> tuple[str, ...]:
    """Return the program to put before one whose fsyncs are to take so much longer, as on an SD card."""
    inject = f"inject={SYNCS}:delay_exit={int(milliseconds * 1000)}"
    return (*STRACE, "-e", f"trace={SYNCS}", "-e", inject, "-o", os.devnull)


def syncs_in(log: Path) -> int:
    """Return how many fsyncs are in strace's log: one that is resumed began in another line."""
    return sum("sync(" in line for line in log.read_text(encoding="utf-8").splitlines())


async def _run(plan: Plan, contender: Contender, tell: Callable[[int, int], None]) -> Run:
    plan = replace(plan, messages=min(plan.messages, contender.messages_max))
    load_average = round(os.getloadavg()[0], 2)
    tell(0, plan.messages)
    async with set_stage(plan.folder, contender, plan.payload_bytes) as stage:
        idle = found = stored = None
        if contender.delivers:
            idle = await _idle(stage, plan.idle_seconds)
            found = await _latency(stage, plan)
            stored = await _stored(stage, plan) if contender.bridges else None
        return await _full_speed(stage, plan, tell, (idle, found, stored, load_average))


async def _idle(stage: Stage, seconds: float) -> tuple[float | None, int | None] | None:
    """Let it be for so long: CPU in per cent of a core, and RSS."""
    if not seconds:
        return None
    await asyncio.sleep(1.0)  # what the probes have stirred up settles
    before = stage.contender.usage()
    await asyncio.sleep(seconds)
    after = stage.contender.usage()
    cpu_seconds = cpu_seconds_between(before, after)
    return None if cpu_seconds is None else round(100 * cpu_seconds / seconds, 2), after.rss_bytes


async def _latency(stage: Stage, plan: Plan) -> Latency | None:
    count = int(plan.latency_rate * plan.latency_seconds)
    if not count:
        return None
    await stage.counter.ask("expect", phase=Phase.LATENCY)
    async with stage.generator(Phase.LATENCY, count, plan.payload_bytes, plan.latency_rate) as generator:
        await _publish(stage, generator, count, lambda _arrived, _count: None)
    return latency((await stage.counter.ask("latencies"))["latencies_ns"])


async def _stored(stage: Stage, plan: Plan) -> Latency | None:
    count = int(plan.latency_rate * plan.latency_seconds)
    if not count:
        return None
    async with stage.asker(count, plan.payload_bytes, plan.latency_rate) as asker:
        found = await asker.ask("publish")
        return latency(found["latencies_ns"])


async def _full_speed(
    stage: Stage,
    plan: Plan,
    tell: Callable[[int, int], None],
    earlier: tuple[tuple[float | None, int | None] | None, Latency | None, Latency | None, float],
) -> Run:
    idle, found, stored, load_average = earlier
    await stage.counter.ask("expect", phase=Phase.THROUGHPUT)
    async with stage.generator(Phase.THROUGHPUT, plan.messages, plan.payload_bytes) as generator:
        cast = {"broker": stage.broker, "contender": stage.contender, "sink": stage.sink, "generator": generator}
        before = {name: program.usage() for name, program in cast.items()}
        begun_ns, report = await _publish(stage, generator, plan.messages, tell)
        after = {name: program.usage() for name, program in cast.items()}
    arrived = report["unique"]
    seconds = (report["last_ns"] - begun_ns) / _NS if arrived else 0.0
    cpu_seconds = cpu_seconds_between(before["contender"], after["contender"])
    written = _difference(before["contender"].written_bytes, after["contender"].written_bytes)
    return Run(
        messages=plan.messages,
        missing=plan.messages - arrived,
        duplicates=report["duplicates"],
        elapsed_seconds=round(seconds, 3),
        messages_per_second=round(arrived / seconds) if seconds else 0,
        cpu_us_per_message=round(1e6 * cpu_seconds / arrived, 2) if cpu_seconds is not None and arrived else None,
        rss_peak_bytes=after["contender"].rss_peak_bytes,
        written_bytes_per_payload_byte=_per_payload_byte(written, plan) if stage.counter is stage.sink else None,
        latency=found,
        stored=stored,
        idle_cpu_percent=idle[0] if idle else None,
        idle_rss_bytes=idle[1] if idle else None,
        cores_busy={name: _share(cpu_seconds_between(before[name], after[name]), seconds) for name in cast},
        load_average=load_average,
    )


async def _publish(
    stage: Stage, generator: Talker, count: int, tell: Callable[[int, int], None]
) -> tuple[int, dict[str, Any]]:
    """Publish, wait until all has arrived or no more does; returns when it began, and the counter's report."""
    loop = asyncio.get_running_loop()
    publishing = asyncio.ensure_future(generator.ask("publish"))
    try:
        arrived, changed_at = 0, loop.time()
        while arrived < count and loop.time() - changed_at < _STALL_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            stage.check()
            generator.check()
            report = await stage.counter.ask("report")
            if report["unique"] > arrived:
                arrived, changed_at = report["unique"], loop.time()
                tell(arrived, count)
        sent = await asyncio.wait_for(publishing, _STALL_SECONDS)
    finally:
        publishing.cancel()
    return sent["begun_ns"], await stage.counter.ask("report")


async def measure_alone(plan: Plan, compressions: Sequence[str]) -> dict[str, Any]:
    """Measure generator and sink without the rest: neither may be what the modes are limited by.

    The generator against a broker that nobody is subscribed at; the sink under the poster, for each compression.
    """
    with private_folder(plan.folder) as folder:
        return {
            "generator": await _generator_alone(folder, plan),
            "sink": {one: await _sink_alone(folder, plan, one) for one in compressions},
        }


async def _generator_alone(folder: Path, plan: Plan) -> dict[str, Any]:
    options = {"phase": int(Phase.THROUGHPUT), "count": plan.messages, "payload_bytes": plan.payload_bytes}
    async with (
        running_broker(folder) as (broker, port),
        Talker("generator", folder, port=port, **options) as generator,
    ):
        before = generator.usage(), broker.usage()
        sent = await generator.ask("publish")
        seconds = (sent["ended_ns"] - sent["begun_ns"]) / _NS
        return _alone(plan, seconds, {"generator": (generator, before[0]), "broker": (broker, before[1])})


async def _sink_alone(folder: Path, plan: Plan, compression: str) -> dict[str, Any]:
    async with Talker("sink", folder) as sink:
        await sink.ask("expect", phase=Phase.THROUGHPUT)
        options = {"count": plan.messages, "payload_bytes": plan.payload_bytes, "compression": compression}
        async with Talker("poster", folder, port=sink.greeting["port"], **options) as poster:
            before = poster.usage(), sink.usage()
            sent = await poster.ask("post")
            report = await sink.ask("report")
            seconds = (report["last_ns"] - sent["begun_ns"]) / _NS
            return _alone(plan, seconds, {"poster": (poster, before[0]), "sink": (sink, before[1])})


def _alone(plan: Plan, seconds: float, cast: dict[str, tuple[Program, Usage]]) -> dict[str, Any]:
    busy = {
        name: _share(cpu_seconds_between(before, program.usage()), seconds) for name, (program, before) in cast.items()
    }
    return {"messages_per_second": round(plan.messages / seconds), "cores_busy": busy}


def cpu_seconds_between(before: Usage, after: Usage) -> float | None:
    """Return what was used in between, if both tell."""
    if before.cpu_seconds is None or after.cpu_seconds is None:
        return None
    return after.cpu_seconds - before.cpu_seconds


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _per_payload_byte(written_bytes: int | None, plan: Plan) -> float | None:
    return None if written_bytes is None else round(written_bytes / (plan.messages * plan.payload_bytes), 2)


def _share(cpu_seconds: float | None, seconds: float) -> float | None:
    return None if cpu_seconds is None or not seconds else round(cpu_seconds / seconds, 2)
