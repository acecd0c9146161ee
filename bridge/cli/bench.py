"""`edge-bridge bench`: how many messages a second this machine carries, and what each one costs.

Only reads arguments and shows results; the work is `bridge.bench`'s. The table goes to standard output, progress to
standard error, and `--json -` gives standard output to the document alone.

Exit status: 0 every message arrived, 1 some did not or the bench failed, 2 the arguments or the machine are not fit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import OperatorError

if TYPE_CHECKING:
    from rich.table import Table

    from bridge.bench.measure import Plan, Tell
    from bridge.bench.results import Mode

GENERATOR_BYTES_MAX = 1 << 30  # of publishes, built before the clock starts
COLUMNS_WITHOUT_TERMINAL = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--messages", type=_positive, default=200_000, help="of each run (default: %(default)s)")
    parser.add_argument("--payload-bytes", type=_positive, default=300, help="of each message (default: %(default)s)")
    parser.add_argument("--runs", type=_positive, default=3, help="of each mode, in turn (default: %(default)s)")
    parser.add_argument(
        "--durability", nargs="+", choices=("power", "crash"), default=["power"], help="modes (default: power)"
    )
    parser.add_argument(
        "--compression",
        nargs="+",
        choices=("none", "gzip", "zstd"),
        default=["none", "gzip", "zstd"],
        help="modes, each with each durability (default: all three)",
    )
    parser.add_argument(
        "--rivals", action="store_true", help="beside it bare paho, and the bridge one would write from documentation"
    )
    parser.add_argument(
        "--mq-bridge", metavar="PYTHON", help="beside it mq-bridge, a compiled rival, run by a Python that has it"
    )
    latency, idle = parser.add_argument_group("latency"), parser.add_argument_group("idle")
    latency.add_argument(
        "--latency-rate", type=_positive, default=1000, help="messages a second (default: %(default)s)"
    )
    latency.add_argument("--latency-seconds", type=_seconds, default=5, help="0 = leave out (default: %(default)s)")
    idle.add_argument("--idle-seconds", type=_seconds, default=3, help="0 = leave out (default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/tmp"),  # noqa: S108 - unlike /tmp it is on a disk; ours is a private folder in it
        metavar="DIR",
        help="on the disk to measure; all that is made there is removed (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all runs there too; - is standard output")


def execute(args: argparse.Namespace) -> int:
    """Measure, show, and tell by the exit status whether every message arrived."""
    from bridge.bench import machine, programs, results

    plan = _plan(args)
    environment = machine.describe(plan.folder)
    if args.mq_bridge:
        environment["mq_bridge"] = machine.mq_bridge_version(args.mq_bridge)
    at, command = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), ["edge-bridge", "bench", *_given(args)]
    try:
        with _progress(len(plan.contenders) * plan.runs) as (tell, finished):
            alone, modes = programs.run(_measure(plan, args.compression, tell, finished))
    except asyncio.CancelledError:
        return programs.TERMINATED
    document = results.document(modes, command=command, environment=environment | {"at": at}, alone=alone)
    if args.json and args.json != "-":
        _write(Path(args.json), document)
    if args.json == "-":
        print(json.dumps(document, indent=2))
    else:
        _show(plan, modes, environment, alone)
    return 1 if results.missing(modes) else 0


async def _measure(
    plan: Plan, compressions: list[str], tell: Tell, finished: Callable[[], None]
) -> tuple[dict[str, Any], tuple[Mode, ...]]:
    from bridge.bench.measure import measure, measure_alone

    tell("generator and sink alone", 0, plan.messages)
    alone = await measure_alone(plan, compressions)
    return alone, await measure(plan, tell, finished)


def _plan(args: argparse.Namespace) -> Plan:
    from bridge.bench.contenders import RIVALS, Bridge, NullSubscriber, compiled_rivals
    from bridge.bench.measure import Plan
    from bridge.bench.predictions import PAYLOAD_BYTES_MIN
    from bridge.bench.stage import mosquitto

    mosquitto()  # before anything else: without a broker there is nothing to measure
    if args.payload_bytes < PAYLOAD_BYTES_MIN:
        raise OperatorError(
            f"a payload of {args.payload_bytes} bytes is too small to be numbered",
            f"--payload-bytes {PAYLOAD_BYTES_MIN} or more",
        )
    if args.messages * args.payload_bytes > GENERATOR_BYTES_MAX:
        raise OperatorError(
            "so many messages of that size do not fit into the generator's memory",
            f"--messages times --payload-bytes may be {GENERATOR_BYTES_MAX:,} at most",
        )
    bridges = [
        Bridge(durability, compression)
        for durability in dict.fromkeys(args.durability)
        for compression in dict.fromkeys(args.compression)
    ]
    return Plan(
        contenders=(
            NullSubscriber(),
            *(RIVALS if args.rivals else ()),
            *compiled_rivals(args.mq_bridge),
            *bridges,
        ),
        messages=args.messages,
        payload_bytes=args.payload_bytes,
        runs=args.runs,
        latency_rate=args.latency_rate,
        latency_seconds=args.latency_seconds,
        idle_seconds=args.idle_seconds,
        folder=args.folder.absolute(),
        counts_syncs=True,
    )


def _given(args: argparse.Namespace) -> Iterator[str]:
    """Spell the command out in full, so that its results say how to repeat them; the paths are nobody's business."""
    for name in ("messages", "payload_bytes", "runs", "durability", "compression", "latency_rate", "latency_seconds"):
        value = getattr(args, name)
        yield f"--{name.replace('_', '-')}"
        yield from map(str, value if isinstance(value, list) else [value])
    yield from ("--idle-seconds", str(args.idle_seconds))
    yield from ["--rivals"] if args.rivals else []
    yield from ["--mq-bridge", "PYTHON"] if args.mq_bridge else []


@contextmanager
def _progress(runs: int) -> Iterator[tuple[Tell, Callable[[], None]]]:
    """Show what is being done: a bar on a terminal, else a line a run."""
    if not sys.stderr.isatty():
        yield _tell_in_lines, lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        whole = progress.add_task("runs", total=runs)
        current = progress.add_task("", total=None)

        def tell(what: str, arrived: int, count: int) -> None:
            progress.update(current, description=what, completed=arrived, total=count)

        yield tell, lambda: progress.advance(whole)


def _tell_in_lines(what: str, arrived: int, _count: int) -> None:
    if arrived == 0:
        print(what, file=sys.stderr, flush=True)


def _show(plan: Plan, modes: tuple[Mode, ...], environment: dict[str, Any], alone: dict[str, Any]) -> None:
    from rich.console import Console

    from bridge.bench import machine, results

    console = Console(width=None if sys.stdout.isatty() else COLUMNS_WITHOUT_TERMINAL, highlight=False)
    console.print(f"{plan.messages:,} messages of {plan.payload_bytes} bytes, QoS 1; {_medians(plan.runs)}")
    console.print(table(results.rows(modes, plan.contenders[0].title)))
    sinks = ", ".join(f"{one} {found['messages_per_second']:,}/s" for one, found in alone["sink"].items())
    console.print(f"Alone: generator {alone['generator']['messages_per_second']:,}/s; sink {sinks}.")
    console.print(
        f"Python {environment['python']}, SQLite {environment['sqlite']}, Mosquitto {environment['mosquitto']}, "
        f"{environment['cores']} cores, {environment['processor'] or environment['system']}, "
        f"queue on {environment['file_system'] or 'an unknown file system'}.",
        markup=False,
    )
    if machine.is_in_memory(environment):
        console.print("The folder is in memory, where an fsync costs nothing: give one on a disk with --folder.")
    if lost := results.missing(modes):
        console.print(f"{lost:,} messages did not arrive.", style="bold red")


def table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return the table of the modes. Titles break to the width of their cells, and cells where the terminal ends."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from bridge.bench.results import TITLES

    made = Table(box=SIMPLE_HEAD)
    for at, (title, *cells) in enumerate(zip(TITLES, *rows, strict=True)):
        width = max(map(len, [*cells, *title.split()]))
        made.add_column(textwrap.fill(title, width), justify="right" if at else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _medians(runs: int) -> str:
    return "one run" if runs == 1 else f"medians of {runs} runs"


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror}", "give another --json FILE") from error


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _seconds(text: str) -> float:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)
