"""A stage: a private folder, a real Mosquitto as shipped, the sink, and one contender, ready for its messages.

A run has a stage of its own, so that no run finds what another one left. The contender is ready when a probe has come
through it, whatever it is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.bench.contenders import Contender, Surroundings
from bridge.bench.predictions import Phase
from bridge.bench.programs import Program, Talker
from bridge.demo.stage import mosquitto_conf
from bridge.errors import FaultError, OperatorError

_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # where daemons are, and a user's PATH may not lead
_POLL_SECONDS = 0.02
_READY_SECONDS = 30.0
_PROBES_A_SECOND = 20
# Whoever is slower than the broker leaves its messages there: it must drop none, so these are not as shipped.
_OTHER_VALUES = {"max_queued_messages": 100_000_000, "max_queued_bytes": 1 << 40}


@dataclass(frozen=True, slots=True)
class Stage:
    """What a run works with; `counter` is whom to ask what arrived."""

    folder: Path
    broker_port: int
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
async def set_stage(parent: Path, contender: Contender, payload_bytes: int) -> AsyncIterator[Stage]:
    """Start everything, and see a probe come through the contender."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private_folder(parent))
        broker, broker_port = await stack.enter_async_context(running_broker(folder))
        sink = await stack.enter_async_context(Talker("sink", folder))
        around = Surroundings(folder, broker_port, sink.greeting["port"], free_port(), payload_bytes)
        program = await stack.enter_async_context(contender.program(around))
        counter = sink if contender.delivers else program
        if not isinstance(counter, Talker):
            raise TypeError(f"{contender.title} neither delivers nor counts")
        stage = Stage(folder, broker_port, broker, sink, program, counter)
        await _probe(stage, payload_bytes)
        yield stage


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
