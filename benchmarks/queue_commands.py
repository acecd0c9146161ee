"""`edge-bridge queue` on a large queue: time and memory of each command, live and offline.

    python benchmarks/queue_commands.py [--rows 1000000] [--folder DIR]

Makes a queue of that many rows of some 500 bytes, then runs the real command as a process of its own: first with none
holding the file, then through the control socket of the disk thread, as in a running bridge. Shown are the seconds of
the whole process (its start included), the first line's, those of the CPU (all that counts where other work goes on
beside it; live those of the bridge's end too, and of the look at the output), and its peak RSS. Outputs of both ways
must be equal, but that of `compact`, of which nothing is left to do.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bridge.cli import GC_ALLOCATIONS
from bridge.config import Settings
from bridge.control import Control
from bridge.disk_queue import DiskQueue, FolderLock, NewRow
from bridge.disk_thread import DiskThread
from bridge.message import DeadRow, head, head_middle, tail, uuid7

GROUP, DEAD = 10_000, 1000
COMMANDS = (
    "stats",
    "list --limit 500",
    "list --json --state dead",
    "export",
    "export --format csv",
    *(["export --format parquet"] if find_spec("pyarrow") else []),
    "verify",
    "compact",
)
OFFLINE_ONLY = {"verify"}


class Measured(NamedTuple):
    """What one run of a command took, and a digest of what it said."""

    seconds: float
    first_seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


def fill(folder: Path, rows: int) -> None:
    """Make the queue: a thousandth dead, two thirds delivered, the rest waiting."""
    queue = DiskQueue(folder, durability="crash")
    middle = head_middle("edge/bench", "edge/predictions/press-4")
    what = tail(b'{"label":"crack","score":0.97,"box":[%b]}' % b",".join([b"0.125"] * 40), is_json=True)
    for first in range(0, rows, GROUP):
        at = 1_790_000_000.0 + first
        ids = (uuid7(int(at * 1000), number) for number in range(first, min(first + GROUP, rows)))
        with queue.transaction():
            queue.put_rows([NewRow(head(own_id, middle, "2026-09-21T00:00:00.000000Z") + what, at) for own_id in ids])
            taken = [row.row_id for row in queue.take(2 * GROUP // 3, 1 << 30)]
            queue.reject([DeadRow(row_id, "refused", 422, 1) for row_id in taken[: GROUP // DEAD]])
            queue.ack_rows(taken[GROUP // DEAD :])
    with queue.transaction():
        queue.mark_noted()  # as a bridge that stops does
    queue.close()


def measure(folder: Path, command: str, stdin: Path | None = None) -> Measured:
    """Run the command, and drop what it says after a look at it."""
    environment = os.environ | {"BRIDGE_QUEUE__PATH": str(folder), "BRIDGE_QUEUE__MAX_BYTES": "0"}
    started_at = time.monotonic()
    with open(stdin or os.devnull, "rb") as source:  # noqa: PTH123 - a device too
        process = subprocess.Popen(
            [sys.executable, "-m", "bridge", "queue", *command.split()],
            env=environment,
            stdin=source,
            stdout=subprocess.PIPE,
        )
    digest, first_at = hashlib.blake2b(), 0.0
    output = process.stdout.fileno() if process.stdout else -1
    while some := os.read(output, 1 << 20):
        first_at = first_at or time.monotonic()
        digest.update(some)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started_at
    if status:
        raise SystemExit(f"{command} failed: {status}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Measured(seconds, first_at - started_at, cpu_seconds, usage.ru_maxrss / 1024, digest.hexdigest())


async def measure_live(folder: Path, commands: list[str]) -> dict[str, Measured]:
    """Run the commands through a control socket, as a bridge has one."""
    gc.set_threshold(GC_ALLOCATIONS, 10, 10)  # as every command has it
    settings = Settings.model_validate({"upload": {"url": "http://127.0.0.1:1/"}, "queue": {"path": folder}})
    lock = FolderLock(folder)
    disk = DiskThread(DiskQueue(folder, durability="crash"), keep_seconds=1e9, keep_messages=10**9)
    control = Control(settings.queue, disk)
    await control.start()
    try:
        return {command: await _measure_both(folder, command) for command in commands}
    finally:
        await control.stop()
        await asyncio.to_thread(disk.close)
        lock.release()


async def _measure_both(folder: Path, command: str) -> Measured:
    """Measure a command, and count the CPU of the bridge's end, which is this process, with its own."""
    before_seconds = time.process_time()
    measured = await asyncio.to_thread(measure, folder, command)
    return measured._replace(cpu_seconds=measured.cpu_seconds + time.process_time() - before_seconds)


def show(way: str, command: str, rows: int, measured: Measured) -> None:
    """Print a line of the table."""
    whole = command.startswith(("export", "import", "verify"))
    rate = f"{rows / measured.seconds:,.0f}" if whole else "–"
    times = f"{measured.seconds:.2f} | {measured.first_seconds:.2f} | {measured.cpu_seconds:.2f}"
    print(f"| {way} | `{command}` | {times} | {rate} | {measured.peak_mib:.0f} |", flush=True)


def main() -> int:
    """Make the queue, measure, compare."""
    parser = argparse.ArgumentParser(description="Measure `edge-bridge queue` on a large queue.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where the queue is made, and removed")  # noqa: S108
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "queue"
        folder.mkdir(mode=0o700)
        fill(folder, options.rows)
        titles = ("way", "command", "s", "first output s", "CPU s", "rows/s", "peak RSS MiB")
        print(f"| {' | '.join(titles)} |\n|---|---{'|--:' * 5}|", flush=True)
        offline = {}
        for command in COMMANDS:
            offline[command] = measure(folder, command)
            show("offline", command, options.rows, offline[command])
        live = asyncio.run(measure_live(folder, [command for command in COMMANDS if command not in OFFLINE_ONLY]))
        for command, measured in live.items():
            show("live", command, options.rows, measured)
        exported = Path(name) / "events.ndjson"
        measure(folder, f"export --output {exported}")
        for what, target in (("", "other"), (" (all there)", "other"), (" (all there, ids without index)", "queue")):
            show("offline", f"import{what}", options.rows, measure(Path(name) / target, "import -", exported))
        told = [command for command in live if command != "compact"]
        different = [command for command in told if live[command].output != offline[command].output]
        print(f"different live and offline: {', '.join(different) or 'nothing'}")
        return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
