"""Where the CPU of a message goes: one run of the bench with the bridge's parts wrapped in clocks of their threads.

    python benchmarks/parts.py [--compression gzip]

Parts contain others (the disk's group contains put and take). The clocks cost some tenths of a microsecond a message.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge import cli
from bridge.admission import Store
from bridge.bench.contenders import Bridge, Surroundings
from bridge.bench.measure import Plan, measure
from bridge.bench.programs import Program
from bridge.broker import Broker
from bridge.disk_queue import DiskQueue
from bridge.disk_thread import DiskThread
from bridge.intake import Intake
from bridge.wire import Splitter

MESSAGES = 200_000
PARTS = {
    "reading, splitting, encoding": (Broker, "_on_readable"),
    "… splitting": (Splitter, "feed"),
    "… checking and encoding": (Intake, "receive"),
    "disk thread: a group": (DiskThread, "_commit"),
    "… identities, events, bounds, put": (Store, "__call__"),
    "… … put": (DiskQueue, "put_rows"),
    "… take": (DiskQueue, "take"),
    "… ack": (DiskQueue, "ack_rows"),
    "… delete": (DiskQueue, "tidy"),
}


@dataclass(frozen=True, slots=True)
class Clocked(Bridge):
    """The bridge, started by this file."""

    out: Path = Path("parts.json")

    def program(self, around: Surroundings) -> Program:
        Bridge.program(self, around)  # writes its configuration
        toml = around.folder / "bridge.toml"
        command = [sys.executable, __file__, "--clocked", str(self.out), "run", "--config", str(toml)]
        return Program("bridge", command, around.folder)


def clocked(out: Path, words: list[str]) -> int:
    """Be the bridge, and write down every half second what each part has cost."""
    cpu: Counter[str] = Counter()
    for label, (owner, name) in PARTS.items():
        setattr(owner, name, _clock(cpu, label, getattr(owner, name)))

    def write() -> None:
        while True:
            time.sleep(0.5)
            out.write_text(json.dumps(dict(cpu) | {"all": time.process_time_ns()}), encoding="utf-8")

    threading.Thread(target=write, daemon=True).start()
    return cli.main(words)


def _clock(cpu: Counter[str], label: str, act: Any) -> Any:
    @functools.wraps(act)
    def timed(*args: Any, **more: Any) -> Any:
        begun_ns = time.thread_time_ns()
        try:
            return act(*args, **more)
        finally:
            cpu[label] += time.thread_time_ns() - begun_ns

    return timed


def main() -> int:
    """Run once and print a table."""
    if sys.argv[1:2] == ["--clocked"]:
        return clocked(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compression", choices=("none", "gzip", "zstd"), default="none")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure")  # noqa: S108
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contender = Clocked("power", args.compression, out=Path(folder) / "parts.json")
        plan = Plan((contender,), MESSAGES, 300, 1, 1, 0, 0, args.folder)
        ((mode),) = asyncio.run(measure(plan, lambda *_: None, lambda: None))
        cpu_ns = json.loads(contender.out.read_bytes())
    run = mode.runs[0]
    print(
        f"{run.messages_per_second:,} messages/s, {run.cpu_us_per_message} µs of CPU each (start and end not counted)"
    )
    for label in PARTS:
        print(f"  {cpu_ns.get(label, 0) / MESSAGES / 1000:6.2f} µs  {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
