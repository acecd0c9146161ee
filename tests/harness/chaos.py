"""Faults at random and by a seed: the driver of the soak. The same seed breaks the same things in the same order.

A fault is a function that breaks something and yields the sentence that stands in the story; when it is resumed it
mends what it broke. Cloud faults and faults of the machine go on side by side. Not among them: a SIGKILL of the
broker, for what it had not saved is openly not promised.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess
from tests.harness.cloud import (
    Responder,
    accept,
    after,
    answer,
    black_hole,
    cut_after_store,
    cut_before_store,
    drip,
    endless,
    gzip_bomb,
    html,
    raw,
    redirect,
    results,
)
from tests.harness.proxy import TcpProxy
from tests.harness.stage import Stage


def third(event_id: str) -> bool:
    """Choose a third of all ids, in every process the same (`hash` of a text is salted)."""
    return zlib.crc32(event_id.encode()) % 3 == 0


CLOUD_FAULTS: dict[str, Responder] = {
    "says 500": answer(500),
    "says 503 and when to come again": answer(503, {"Retry-After": "1"}),
    "says 429": answer(429),
    "says 401": answer(401),
    "says 404": answer(404),
    "redirects": redirect("http://127.0.0.1:9/"),
    "is a captive portal": html(),
    "is slow": after(0.5, accept()),
    "never answers": black_hole(),
    "cuts before it stored": cut_before_store(),
    "cuts after it stored": cut_after_store(),
    "drips": drip(50),
    "has no end": endless(),
    "sends a bomb": gzip_bomb(64 << 20),
    "does not speak HTTP": raw(b"220 smtp.example ESMTP\r\n"),
    "refuses some rows for now": results(lambda event_id: 503 if third(event_id) else 201),
    "names only some rows": results(lambda event_id: None if third(event_id) else 201),
}
PAUSE_SECONDS_MAX = 1.5  # between faults ...
FAULT_SECONDS_MAX = 2.5  # ... and how long one lasts
NO_LIMIT = resource.RLIM_INFINITY

Fault = Callable[["Chaos"], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the bridge takes up at one moment; `at` in seconds since its process started."""

    pid: int
    at: float
    rss_kib: int
    descriptors: int
    database_bytes: int
    wal_bytes: int


@dataclass
class Chaos:
    """One run. `story` tells what was done when, for a failing test to print."""

    stage: Stage
    bridge: BridgeProcess
    proxy: TcpProxy
    seed: int
    story: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._began = time.monotonic()
        self._pid, self._pid_began = 0, 0.0

    def run(self, seconds: float, faults: Sequence[Fault]) -> None:
        """Break and mend for so long; everything is mended when this returns, and the bridge runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.ExitStack() as stack:
                for fault in (self.random.choice(faults), cloud_fault):
                    broken = fault(self)
                    self._tell(next(broken))
                    stack.callback(next, broken, None)
                self._pass_time(FAULT_SECONDS_MAX)
            self.revive()
            self._pass_time(PAUSE_SECONDS_MAX)

    def revive(self) -> None:
        """What a supervisor does: start the bridge again if it has ended, which it may only do by saying why."""
        if not self.bridge.running:
            # SIGHUP ends a process that has not come to listen to it yet.
            assert self.bridge.exit_status in (0, 1, -signal.SIGKILL, -signal.SIGHUP), self.bridge.stderr[-2000:]
            self._tell(f"(started again after {self.bridge.exit_status})")
            self.bridge.start()

    def _pass_time(self, seconds_max: float) -> None:
        end = time.monotonic() + self.random.uniform(0, seconds_max)
        while time.monotonic() < end:
            self._look()
            time.sleep(0.1)  # not a wait: the length of a fault is part of it

    def _tell(self, what: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:6.1f} s  {what}")

    def _look(self) -> None:
        with contextlib.suppress(OSError, StopIteration):  # it may end under our eyes
            pid, now = self.bridge.pid, time.monotonic()
            if pid != self._pid:
                self._pid, self._pid_began = pid, now
            status = Path(f"/proc/{pid}/status").read_text()
            rss_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
            sizes = {file.name: file.stat().st_size for file in self.stage.queue_path.glob("data.db*")}
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            self.samples.append(
                Sample(
                    pid,
                    now - self._pid_began,
                    rss_kib,
                    descriptors,
                    sizes.get("data.db", 0),
                    sizes.get("data.db-wal", 0),
                )
            )

    def growth_kib(self, after_seconds: float) -> float:
        """Return how much the last process grew, by a line through its memory from that age on."""
        late = [sample for sample in self.samples if sample.pid == self._pid and sample.at > after_seconds]
        assert len(late) > 20, "too few samples to draw a line"
        slope, _ = linear_regression([sample.at for sample in late], [float(sample.rss_kib) for sample in late])
        return slope * (late[-1].at - late[0].at)


# ---- the faults ----


def cloud_fault(chaos: Chaos) -> Iterator[str]:
    """Half of the time the cloud is well."""
    name = chaos.random.choice([*CLOUD_FAULTS, *["works"] * len(CLOUD_FAULTS)])
    chaos.stage.cloud.always(CLOUD_FAULTS.get(name))
    yield f"the cloud {name}"
    chaos.stage.cloud.always()
    if chaos.bridge.running:
        chaos.bridge.hup()  # a paused upload is tried again at once


def nothing(_chaos: Chaos) -> Iterator[str]:
    yield "and nothing else"


def cloud_unreachable(chaos: Chaos) -> Iterator[str]:
    chaos.stage.cloud.unreachable()
    yield "and cannot be reached"
    chaos.stage.cloud.reachable()


def freeze(chaos: Chaos) -> Iterator[str]:
    pid = chaos.bridge.pid
    with contextlib.suppress(ProcessLookupError):  # another fault may be ending it
        os.kill(pid, signal.SIGSTOP)
    yield "the bridge is frozen"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def connection_cut(chaos: Chaos) -> Iterator[str]:
    chaos.proxy.cut()
    yield "the connection to the broker is cut"


def connection_refused(chaos: Chaos) -> Iterator[str]:
    chaos.proxy.refuse = True
    chaos.proxy.cut()
    yield "the broker refuses connections"
    chaos.proxy.refuse = False


def connection_silent(chaos: Chaos) -> Iterator[str]:
    chaos.proxy.black_hole = True
    yield "the connection to the broker is silent"
    chaos.proxy.black_hole = False


def connection_slow(chaos: Chaos) -> Iterator[str]:
    chaos.proxy.delay_to_source_seconds = chaos.proxy.delay_to_target_seconds = 0.05
    yield "the connection to the broker is slow"
    chaos.proxy.delay_to_source_seconds = chaos.proxy.delay_to_target_seconds = 0.0


def broker_restart(chaos: Chaos) -> Iterator[str]:
    chaos.stage.broker.stop()
    yield "the broker is away"
    chaos.stage.broker.start()


def no_descriptors(chaos: Chaos) -> Iterator[str]:
    _, hard = resource.prlimit(chaos.bridge.pid, resource.RLIMIT_NOFILE)
    with _limit(chaos.bridge.pid, resource.RLIMIT_NOFILE, (8, hard)):
        chaos.proxy.cut()
        yield "no descriptors are left, and the connections are cut"


def kill(chaos: Chaos) -> Iterator[str]:
    chaos.bridge.kill()
    yield "the bridge is killed"
    chaos.stage.check_database()
    chaos.bridge.start()


def terminate(chaos: Chaos) -> Iterator[str]:
    with contextlib.suppress(ProcessLookupError):
        chaos.bridge.terminate()
    yield "the bridge is told to stop"
    wait_until(lambda: not chaos.bridge.running, 30, "stopped")
    chaos.bridge.start()


def write_errors(chaos: Chaos) -> Iterator[str]:
    """Every write that makes a file longer fails with EFBIG, which SQLite takes for an I/O error."""
    with _limit(chaos.bridge.pid, resource.RLIMIT_FSIZE, (4096, NO_LIMIT)):
        yield "writing fails"


@contextlib.contextmanager
def _limit(pid: int, which: int, limits: tuple[int, int]) -> Iterator[None]:
    before = resource.prlimit(pid, which, limits)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, which, before)


GENTLE: tuple[Fault, ...] = (
    nothing,
    cloud_unreachable,
    freeze,
    connection_cut,
    connection_refused,
    connection_silent,
    connection_slow,
    broker_restart,
    no_descriptors,
)
"""Those that the process survives."""
ALL: tuple[Fault, ...] = (*GENTLE, kill, kill, terminate, write_errors)
