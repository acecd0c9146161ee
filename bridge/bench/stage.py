"""A stage: a private folder, a real Mosquitto as shipped, the sink, and one contender, ready for its messages.

A run has a stage of its own, so that no run finds what another one left. The contender is ready when a probe has come
through it, whatever it is.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.bench.contenders import WEB_PORTS, Contender, Surroundings
from bridge.bench.predictions import Phase
from bridge.bench.programs import Program, Talker
from bridge.demo.stage import mosquitto_conf
from bridge.errors import FaultError, OperatorError

_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # where daemons are, and a user's PATH may not lead
_POLL_SECONDS = 0.02
_READY_POLL_SECONDS = 0.005
_READY_SECONDS = 30.0
_PROBES_A_SECOND = 20
# Whoever is slower than the broker leaves its messages there: it must drop none, so these are not as shipped.
_OTHER_VALUES = {"max_queued_messages": 100_000_000, "max_queued_bytes": 1 << 40}


@dataclass(frozen=True, slots=True)
class Stage:
    """What a run works with; `counter` is whom to ask what arrived, `web_ports` are those of the contender's pages."""

    folder: Path
    broker_port: int
    web_ports: tuple[int, ...]
    broker: Program
    sink: Talker
    contender: Program
    counter: Talker

    def generator(self, phase: Phase, count: int, payload_bytes: int, rate: float = 0) -> Talker:
        """Return a generator, not started."""
        return Talker(
            "generator",
            self.folder,
            port=self.broker_port,
            phase=int(phase),
            count=count,
            payload_bytes=payload_bytes,
            rate=rate,
        )

    def asker(self, count: int, payload_bytes: int, rate: float) -> Talker:
        """Return a generator that asks for receipts, not started."""
        return Talker("asker", self.folder, port=self.broker_port, count=count, payload_bytes=payload_bytes, rate=rate)

    async def ready(self) -> int:
        """Wait until every bridge says that it is ready; return when that was."""
        async with _patience(f"{self.contender.name} does not say that it is ready"):
            for port in self.web_ports:
                while not (await page(port, "/readyz")).startswith(b"HTTP/1.1 200 "):
                    self.contender.check()
                    await asyncio.sleep(_READY_POLL_SECONDS)
        return time.monotonic_ns()

    async def metric(self, name: str) -> float:
        """Return what a metric of the bridge shows now; 0 before it shows any."""
        found = re.search(rf"^{name} (\S+)$".encode(), await page(self.web_ports[0], "/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def check(self) -> None:
        """Raise FaultError if a part of the stage is gone."""
        for program in (self.broker, self.sink, self.contender):
            program.check()


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for the bench alone, and remove it with all that is in it."""
    try:
        made = tempfile.TemporaryDirectory(prefix="edge-bridge-bench-", dir=parent)
    except OSError as error:
        raise OperatorError(
            f"{parent} cannot be used: {error.strerror}", "give a folder on a disk: --folder DIR"
        ) from error
    with made as name:
        yield Path(name)


@asynccontextmanager
async def set_stage(
    parent: Path, contender: Contender, payload_bytes: int, *, wrapper: Sequence[str] = ()
) -> AsyncIterator[Stage]:
    """Start everything, and see a probe come through the contender."""
    async with started_stage(parent, contender, payload_bytes, wrapper) as stage:
        await _probe(stage, payload_bytes)
        await stage.ready()
        yield stage


@asynccontextmanager
async def started_stage(
    parent: Path,
    contender: Contender,
    payload_bytes: int,
    wrapper: Sequence[str] = (),
    prepare: Callable[[Talker], Awaitable[None]] | None = None,
) -> AsyncIterator[Stage]:
    """Start everything, the contender last, and `prepare` the sink before it."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private_folder(parent))
        broker, broker_port = await stack.enter_async_context(running_broker(folder))
        sink = await stack.enter_async_context(Talker("sink", folder, answer_after_ms=contender.answer_after_ms))
        web_ports = tuple(free_port() for _ in range(WEB_PORTS))
        around = Surroundings(folder, broker_port, sink.greeting["port"], web_ports, payload_bytes)
        program = contender.program(around)
        program.wrap(*wrapper)
        if prepare:
            await prepare(sink)
        await stack.enter_async_context(program)
        counter = sink if contender.delivers else program
        if not isinstance(counter, Talker):
            raise TypeError(f"{contender.title} neither delivers nor counts")
        yield Stage(folder, broker_port, web_ports[: contender.bridges], broker, sink, program, counter)


async def page(port: int, path: str) -> bytes:
    """Return what a web page answers, head and body; empty if nobody does."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            return await reader.read()
    except OSError:
        return b""


@asynccontextmanager
async def running_broker(folder: Path) -> AsyncIterator[tuple[Program, int]]:
    """Start a Mosquitto on a free port and wait until it answers."""
    port, conf = free_port(), folder / "mosquitto.conf"
    (folder / "broker").mkdir()
    conf.write_text(broker_conf(port, folder / "broker"), encoding="utf-8")
    async with Program("mosquitto", [mosquitto(), "-c", str(conf)], folder) as broker:
        async with _patience("Mosquitto does not answer"):
            while not _answers(port):
                broker.check()
                await asyncio.sleep(_POLL_SECONDS)
        yield broker, port


def broker_conf(port: int, folder: Path) -> str:
    """Return the broker's configuration: as shipped, but with room for every message of a run."""
    lines = (line.split(" ", 1) for line in mosquitto_conf(port, folder).splitlines())
    return "".join(f"{key} {_OTHER_VALUES.get(key, value)}\n" for key, value in lines)


async def _probe(stage: Stage, payload_bytes: int) -> None:
    """Publish probes until one of them has come through."""
    await stage.counter.ask("expect", phase=Phase.PROBE)
    probes = int(_PROBES_A_SECOND * _READY_SECONDS)
    async with (
        _patience(f"no message comes through {stage.contender.name}"),
        stage.generator(Phase.PROBE, probes, payload_bytes, _PROBES_A_SECOND) as generator,
    ):
        publishing = asyncio.ensure_future(generator.ask("publish"))
        try:
            while not (await stage.counter.ask("report"))["unique"]:
                stage.check()
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            publishing.cancel()


@asynccontextmanager
async def _patience(complaint: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_READY_SECONDS):
            yield
    except TimeoutError:
        raise FaultError(f"{complaint} within {_READY_SECONDS:g} s", "is this machine very busy?") from None


def mosquitto() -> str:
    """Find the broker's program."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SBIN))
    if found is None:
        raise OperatorError(
            "mosquitto is not installed, and the bench needs a broker of its own",
            "in the repository: make setup; or on Debian and Ubuntu: sudo apt-get install mosquitto",
        )
    return found


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with closing(socket.socket()) as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0
