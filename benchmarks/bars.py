"""Every bar of this bridge on this machine: one command, one verdict.

    python benchmarks/bars.py [--runs 5] [--only drain slow-disk …] [--mq-bridge PYTHON] [--json results.json]

Each group is measured `--runs` times; what is compared is measured in turn, and a ratio is taken within each turn, so
that whatever else the machine does falls on both. Shown is the median, and for what must hold at any time the worst.
The exit status is 1 if a bar is missed or a message did not arrive; what was not measured is no bar missed.

`--mq-bridge` names a Python that can import mq_bridge (`pip install mq-bridge`, in an environment of its own: it is no
dependency of this project). Counting and delaying fsyncs takes strace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge.bench import machine, programs, trials
from bridge.bench.contenders import (
    RIVALS,
    BarePaho,
    Bridge,
    Contender,
    Hindered,
    Naive,
    NullSubscriber,
    SideBySide,
    StockSubscriber,
    compiled_rivals,
)
from bridge.bench.measure import Plan, delaying_syncs, measure
from bridge.bench.results import ABSENT, Mode, missing
from bridge.bench.results import document as modes_document
from bridge.bench.stage import private_folder
from bridge.errors import BridgeError

RUNS = 5
PAYLOAD_BYTES = 300
MESSAGES = 200_000
ROWS = 1_000_000
LARGE_ROWS = 10_000_000
DEPTH_MESSAGES = 100_000
LATENCY_RATE, LATENCY_SECONDS, IDLE_SECONDS = 1000, 3.0, 10.0
SYNC_MS, NEAR_MS, FAR_MS, FAR_POSTS = 10, 20, 300, 8

POWER = Bridge("power", "none")
GZIP = Bridge("power", "gzip")
NULL = NullSubscriber()
PAHO = BarePaho()
NAIVE = Naive(1)
NEAR = Hindered(POWER, f"the cloud answers after {NEAR_MS} ms", answer_after_ms=NEAR_MS)
FAR = Hindered(
    replace(POWER, others=(("upload.concurrency", FAR_POSTS),)), f"{FAR_MS} ms round trips", answer_after_ms=FAR_MS
)
SLOW = Hindered(POWER, f"{SYNC_MS} ms an fsync", wrapper=delaying_syncs(SYNC_MS))
PAIR = SideBySide("power", "none")
MQ_DIRECT, MQ_FILE = "mq-bridge, direct", "mq-bridge, file queue"
STOCK = "ceiling: mosquitto_sub"


# ---- what is measured ----


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. Other sizes than these say nothing about the bars; they are for a look."""

    runs: int
    messages: int
    rows: int
    depths: tuple[int, ...]
    depth_messages: int
    latency_seconds: float
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured; a group that was left out has nothing."""

    modes: dict[str, tuple[Mode, ...]] = field(default_factory=dict)  # by group
    starts: tuple[trials.Start, ...] = ()
    help_ms: tuple[float, ...] = ()
    drains: tuple[trials.Drain, ...] = ()
    depths: tuple[trials.Depth, ...] = ()

    def figures(self, title: str, figure: str) -> list[float | None]:
        """Return a figure of each run of a mode, such as `messages_per_second` or `latency.p99_ms`."""
        found = [mode for modes in self.modes.values() for mode in modes if mode.title == title]
        return [_figure(run, figure) for run in found[0].runs] if found else []

    def ratios(self, title: str, others: Sequence[str], figure: str = "messages_per_second") -> list[float | None]:
        """Return for each turn how a mode's figure is to the largest of the others'."""
        columns = [one for other in others if (one := self.figures(other, figure))]
        most = [max((value for value in turn if value), default=None) for turn in zip(*columns, strict=True)]
        own = self.figures(title, figure)
        return [mine / other if mine is not None and other else None for mine, other in zip(own, most, strict=False)]

    def syncs(self, title: str) -> list[float | None]:
        """Return the fsyncs a message of a mode."""
        return [mode.syncs_per_message for modes in self.modes.values() for mode in modes if mode.title == title]

    def rss_peaks_mib(self) -> list[float | None]:
        """Return the peak of every process of this bridge that was measured alone."""
        runs = [
            run.rss_peak_bytes
            for modes in self.modes.values()
            for mode in modes
            for run in mode.runs
            if mode.title.startswith("bridge:")
        ]
        runs += [one.rss_peak_bytes for one in self.drains] + [one.rss_peak_bytes for one in self.depths]
        return [None if peak is None else peak / 2**20 for peak in runs]

    def missing(self) -> int:
        """Return how many messages did not arrive."""
        return sum(map(missing, self.modes.values())) + sum(drain.missing for drain in self.drains)


def _figure(run: Any, figure: str) -> float | None:
    for name in figure.split("."):
        run = getattr(run, name, None)
    return None if run is None else float(run)


# ---- the bars ----


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of the table: what must hold of which figures."""

    measure: str
    sign: str  # ≥ ≤ <
    limit: float
    figures: Callable[[Found], Sequence[float | None]]
    unit: str = ""
    is_worst: bool = False  # it must hold for each of them, not for their median

    @property
    def text(self) -> str:
        return f"{self.sign} {_number(self.limit)}{self.unit}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was found; `value` is None where nothing was, and then nothing is missed."""

    measure: str
    bar: str
    value: float | None
    lowest: float | None
    highest: float | None
    is_met: bool | None
    unit: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Return the row of the table."""
        if self.value is None or self.lowest is None or self.highest is None:
            return self.measure, self.bar, ABSENT, "not measured"
        spread = f" ({_number(self.lowest)}–{_number(self.highest)})" if self.lowest != self.highest else ""
        return self.measure, self.bar, f"{_number(self.value)}{self.unit}{spread}", "ok" if self.is_met else "MISSED"


def judge(bar: Bar, found: Found) -> Verdict:
    """Hold what was found against the bar."""
    values = [value for value in bar.figures(found) if value is not None]
    if not values:
        return Verdict(bar.measure, bar.text, None, None, None, None, bar.unit)
    worst = min if bar.sign == "≥" else max
    value = worst(values) if bar.is_worst else statistics.median(values)
    is_met = {"≥": value >= bar.limit, "≤": value <= bar.limit, "<": value < bar.limit}[bar.sign]
    return Verdict(bar.measure, bar.text, value, min(values), max(values), is_met, bar.unit)


def _number(value: float) -> str:
    """Three figures are enough, and none of a whole number is taken away."""
    if abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _ratio(bridge: Contender, *others: str, figure: str = "messages_per_second") -> Callable[[Found], Any]:
    return lambda found: found.ratios(bridge.title, others, figure)


def _of(mode: Contender, figure: str) -> Callable[[Found], Any]:
    return lambda found: found.figures(mode.title, figure)


CPU = "cpu_us_per_message"
BARS = (
    Bar("CPU a message, against bare paho", "≤", 0.4, _ratio(POWER, PAHO.title, figure=CPU)),
    Bar("messages/s, against the ceiling", "≥", 0.9, _ratio(POWER, NULL.title, STOCK)),
    Bar("messages/s, against bare paho", "≥", 1.25, _ratio(POWER, PAHO.title)),
    Bar("messages/s with gzip, against bare paho", "≥", 1.1, _ratio(GZIP, PAHO.title)),
    Bar("messages/s, against the naive bridge, one at a time", "≥", 25, _ratio(POWER, NAIVE.title)),
    Bar("messages/s, against mq-bridge, direct", "≥", 1.1, _ratio(POWER, MQ_DIRECT)),
    Bar("CPU a message, against mq-bridge, direct", "≤", 0.6, _ratio(POWER, MQ_DIRECT, figure=CPU)),
    Bar("messages/s, against mq-bridge, file queue", "≥", 1.25, _ratio(POWER, MQ_FILE)),
    Bar("CPU a message, against mq-bridge, file queue", "≤", 0.5, _ratio(POWER, MQ_FILE, figure=CPU)),
    Bar(f"messages/s, the cloud answers after {NEAR_MS} ms, against without", "≥", 0.9, _ratio(NEAR, POWER.title)),
    Bar("drain of stored rows", "≥", 80_000, lambda found: [one.rows_per_second for one in found.drains], " rows/s"),
    Bar(
        "drain: rate of the last tenth, against the first",
        "≥",
        0.9,
        lambda found: [
            one.last_tenth_rows_per_second / one.first_tenth_rows_per_second
            for one in found.drains
            if one.first_tenth_rows_per_second
        ],
    ),
    Bar(
        "start with rows waiting → first POST", "<", 1000, lambda found: [d.first_post_ms for d in found.drains], " ms"
    ),
    Bar("RSS at any time", "≤", 128, Found.rss_peaks_mib, " MiB", is_worst=True),
    Bar(
        "RSS idle",
        "≤",
        64,
        lambda found: [one.idle_rss_bytes and one.idle_rss_bytes / 2**20 for one in found.starts],
        " MiB",
        is_worst=True,
    ),
    Bar(f"publish → delivered at {LATENCY_RATE:,}/s, p99", "<", 60, _of(POWER, "latency.p99_ms"), " ms"),
    Bar(f"{SYNC_MS} ms an fsync: end to end", "≥", 10_000, _of(SLOW, "messages_per_second"), " messages/s"),
    Bar(f"{SYNC_MS} ms an fsync: publish → stored, p99", "<", 200, _of(SLOW, "stored.p99_ms"), " ms"),
    Bar(
        f"{FAR_MS} ms round trips, concurrency {FAR_POSTS}", "≥", 20_000, _of(FAR, "messages_per_second"), " messages/s"
    ),
    Bar("fsyncs a message at full speed", "≤", 0.005, lambda found: found.syncs(POWER.title)),
    Bar("bytes written a payload byte", "≤", 3, _of(POWER, "written_bytes_per_payload_byte")),
    Bar("idle CPU", "<", 0.5, lambda found: [one.idle_cpu_percent for one in found.starts], " % of a core"),
    Bar("edge-bridge --help", "<", 150, lambda found: found.help_ms, " ms"),
    Bar("run → ready", "<", 1000, lambda found: [one.ready_ms for one in found.starts], " ms"),
)


# ---- the measuring ----


@dataclass(frozen=True, slots=True)
class Bench:
    """One go: where, how much, and with which rivals."""

    folder: Path
    sizes: Sizes
    mq_bridge: str | None
    tell: Callable[[str], None]

    def speed(self, found: Found) -> Found:
        """Everybody in turn."""
        stock = [StockSubscriber(self.sizes.messages)] if shutil.which("mosquitto_sub") else []
        return self._modes(found, "speed", NULL, *stock, *RIVALS, *compiled_rivals(self.mq_bridge), POWER, GZIP, NEAR)

    def slow_disk(self, found: Found) -> Found:
        if shutil.which("strace") is None:
            self.tell("slow-disk: left out, for strace is not installed")
            return found
        return self._modes(found, "slow-disk", SLOW)

    def round_trips(self, found: Found) -> Found:
        return self._modes(found, "round-trips", FAR)

    def side_by_side(self, found: Found) -> Found:
        """Two bridges, and one beside them in turn."""
        return self._modes(found, "side-by-side", replace(POWER, name="bridge-0"), PAIR)

    def _modes(self, found: Found, group: str, *contenders: Contender) -> Found:
        plan = Plan(
            contenders,
            self.sizes.messages,
            PAYLOAD_BYTES,
            self.sizes.runs,
            LATENCY_RATE,
            self.sizes.latency_seconds if group in {"speed", "slow-disk"} else 0,
            0,
            self.folder,
            counts_syncs=group == "speed",
        )
        modes = programs.run(measure(plan, self._told(group), lambda: None))
        return replace(found, modes={**found.modes, group: modes})

    def _told(self, group: str) -> Callable[[str, int, int], None]:
        return lambda what, arrived, _: None if arrived else self.tell(f"{group}: {what}")

    def start(self, found: Found) -> Found:
        """`--help`, and a bridge with nothing to do."""
        runs = range(self.sizes.runs)
        help_ms = tuple(self._say("start: --help", _help_ms) for _ in runs)
        idle_seconds = self.sizes.idle_seconds
        starts = tuple(
            self._say("start", lambda: programs.run(trials.start(self.folder, POWER, PAYLOAD_BYTES, idle_seconds)))
            for _ in runs
        )
        return replace(found, help_ms=help_ms, starts=starts)

    def drain(self, found: Found) -> Found:
        rows = self.sizes.rows
        with private_folder(self.folder) as folder:
            bridge = self._filled(folder, rows)
            drains = tuple(
                self._say("drain", lambda: programs.run(trials.drain(self.folder, bridge, PAYLOAD_BYTES, rows)))
                for _ in range(self.sizes.runs)
            )
        return replace(found, drains=drains)

    def depth(self, found: Found) -> Found:
        """Ask what a message costs on top of how many; of the largest queue but once."""
        depths: list[trials.Depth] = []
        for rows in self.sizes.depths:
            with private_folder(self.folder) as folder:
                bridge = self._filled(folder, rows) if rows else POWER
                for _ in range(1 if rows >= LARGE_ROWS else self.sizes.runs):
                    self.tell(f"depth: {rows:,} rows")
                    trial = trials.depth(self.folder, bridge, PAYLOAD_BYTES, rows, self.sizes.depth_messages)
                    depths.append(programs.run(trial))
        return replace(found, depths=tuple(depths))

    def _filled(self, folder: Path, rows: int) -> Bridge:
        queue = folder / "queue"
        queue.mkdir(mode=0o700)
        self.tell(f"filling a queue with {rows:,} rows")
        trials.fill(queue, rows, PAYLOAD_BYTES)
        return replace(POWER, backlog=queue)

    def _say(self, what: str, act: Callable[[], Any]) -> Any:
        self.tell(what)
        return act()


def _help_ms() -> float:
    script = Path(sys.executable).with_name("edge-bridge")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "bridge"]
    begun = time.perf_counter()
    subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True)
    return round(1000 * (time.perf_counter() - begun), 1)


GROUPS = ("start", "drain", "speed", "slow-disk", "round-trips", "side-by-side", "depth")


def measured(bench: Bench, groups: Sequence[str]) -> Found:
    """Measure the groups, one after the other."""
    found = Found()
    for group in groups:
        act: Callable[[Found], Found] = getattr(bench, group.replace("-", "_"))
        found = act(found)
    return found


# ---- what is shown ----


def document(
    found: Found, verdicts: Sequence[Verdict], environment: dict[str, Any], command: list[str]
) -> dict[str, Any]:
    """Return everything as JSON can say it."""
    return {
        "schema": 1,
        "command": command,
        "environment": environment,
        "missing": found.missing(),
        "bars": [asdict(verdict) for verdict in verdicts],
        "groups": {
            group: modes_document(modes, command=command, environment={}, alone={})["modes"]
            for group, modes in found.modes.items()
        },
        "starts": [asdict(one) for one in found.starts],
        "help_ms": list(found.help_ms),
        "drains": [asdict(one) for one in found.drains],
        "depths": [asdict(one) for one in found.depths],
    }


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the bars as a table of Markdown, aligned for people."""
    rows = [("measure", "bar", "measured (least–most)", ""), *(verdict.cells for verdict in verdicts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def others(found: Found) -> list[str]:
    """Return in words what has no bar."""
    told = []
    if side := found.modes.get("side-by-side"):
        one, two = (statistics.median([run.messages_per_second for run in mode.runs]) for mode in side)
        told.append(f"two bridges side by side: {two:,.0f} messages/s, one: {one:,.0f}")
    for rows in dict.fromkeys(depth.rows for depth in found.depths):
        there = [depth for depth in found.depths if depth.rows == rows]
        store, deliver = (
            statistics.median([value for depth in there if (value := getattr(depth, name)) is not None] or [0])
            for name in ("store_us_per_message", "deliver_us_per_message")
        )
        told.append(f"on {rows:,} waiting rows a message costs {store:.1f} µs to store, {deliver:.1f} µs to deliver")
    return told


def main(words: list[str] | None = None) -> int:
    """Measure, show, judge. A signal to end leaves nothing behind."""
    for number in programs.ENDING:
        signal.signal(number, lambda *_: sys.exit(programs.TERMINATED))
    try:
        return _run(_arguments(words))
    except asyncio.CancelledError:
        return programs.TERMINATED
    except BridgeError as error:
        print(f"{error}\nhint: {error.hint}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    sizes = Sizes(
        runs=args.runs,
        messages=args.messages,
        rows=args.rows,
        depths=(0, args.rows, *([LARGE_ROWS] if args.large else [])),
        depth_messages=min(DEPTH_MESSAGES, args.messages),
        latency_seconds=args.latency_seconds,
        idle_seconds=args.idle_seconds,
    )
    tell = partial(print, file=sys.stderr, flush=True)
    environment = machine.describe(args.folder) | {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if args.mq_bridge:
        environment["mq_bridge"] = machine.mq_bridge_version(args.mq_bridge)
    begun = time.monotonic()
    found = measured(Bench(args.folder, sizes, args.mq_bridge, tell), args.only or GROUPS)
    verdicts = [judge(bar, found) for bar in BARS]
    if args.json:
        command = ["python", "benchmarks/bars.py", *_given(args)]
        text = json.dumps(document(found, verdicts, environment, command), indent=1)
        args.json.write_text(f"{text}\n", encoding="utf-8")
    print(table(verdicts))
    print(*others(found), sep="\n")
    print(f"{found.missing():,} messages did not arrive; {(time.monotonic() - begun) / 60:.0f} minutes")
    return int(found.missing() > 0 or any(verdict.is_met is False for verdict in verdicts))


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="of each line (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="groups of lines (default: all)")
    parser.add_argument("--mq-bridge", metavar="PYTHON", help="a Python that has mq-bridge")
    parser.add_argument(
        "--large", action="store_true", help=f"cost a message on {LARGE_ROWS:,} rows, too: 7 GB of disk"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs there")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure")  # noqa: S108
    look = parser.add_argument_group("for a quick look", "other sizes than these say nothing about the bars")
    look.add_argument("--messages", type=int, default=MESSAGES)
    look.add_argument("--rows", type=int, default=ROWS)
    look.add_argument("--latency-seconds", type=float, default=LATENCY_SECONDS)
    look.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    return parser.parse_args(words)


def _given(args: argparse.Namespace) -> list[str]:
    """Spell the command out, without the paths."""
    words = ["--runs", str(args.runs), *(["--only", *args.only] if args.only else [])]
    words += ["--mq-bridge", "PYTHON"] if args.mq_bridge else []
    words += ["--large"] if args.large else []
    for name in ("messages", "rows", "latency_seconds", "idle_seconds"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return words


if __name__ == "__main__":
    sys.exit(main())
