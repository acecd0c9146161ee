"""Who is measured: what takes messages from the broker. A new rival is one more class here.

A contender is a program on the stage. It either delivers to the sink, which then counts, or counts by itself.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bridge.bench.programs import Program, Talker

_BRIDGE = """\
device_id = "bench"

[mqtt]
host = "127.0.0.1"
port = {broker_port}

[queue]
path = {queue_folder}
durability = "{durability}"
overflow = "block"  # a bench must not lose what it counts

[upload]
url = "http://127.0.0.1:{sink_port}/"
compression = "{compression}"

[web]
port = {web_port}
"""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a contender finds on the stage."""

    folder: Path
    broker_port: int
    sink_port: int
    free_port: int
    payload_bytes: int


class Contender(Protocol):
    """What the bench needs to know of whom it measures."""

    @property
    def title(self) -> str:
        """Its name in tables, unique in a bench."""

    @property
    def settings(self) -> dict[str, str]:
        """What tells it from others of its kind, for the results."""

    @property
    def delivers(self) -> bool:
        """Whether it posts to the sink; if not, its program counts by itself."""

    @property
    def messages_max(self) -> int:
        """How many messages a run of it may have, so that it ends before everybody has gone home."""

    def program(self, around: Surroundings) -> Program:
        """Return its program, not started."""


@dataclass(frozen=True, slots=True)
class NullSubscriber:
    """Confirms and does nothing else: the ceiling."""

    title = "ceiling: null subscriber"
    delivers = False
    messages_max = sys.maxsize

    @property
    def settings(self) -> dict[str, str]:
        return {}

    def program(self, around: Surroundings) -> Talker:
        return Talker("null_subscriber", around.folder, port=around.broker_port, payload_bytes=around.payload_bytes)


@dataclass(frozen=True, slots=True)
class BarePaho:
    """paho as documented, with a callback that does nothing."""

    title = "bare paho, empty callback"
    delivers = False
    messages_max = sys.maxsize

    @property
    def settings(self) -> dict[str, str]:
        return {}

    def program(self, around: Surroundings) -> Talker:
        return Talker("bare_paho", around.folder, port=around.broker_port)


@dataclass(frozen=True, slots=True)
class Naive:
    """What a user would write from the libraries' documentation."""

    batch: int
    delivers = True

    @property
    def title(self) -> str:
        return f"naive bridge, {self.batch} a post"

    @property
    def settings(self) -> dict[str, str]:
        return {"batch": str(self.batch)}

    @property
    def messages_max(self) -> int:
        return 3000

    def program(self, around: Surroundings) -> Program:
        options = {"port": around.broker_port, "sink-port": around.sink_port, "batch": self.batch}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "bridge.bench.naive", *words, "--folder", str(around.folder / "queue")]
        return Program("naive", command, around.folder)


RIVALS: tuple[Contender, ...] = (BarePaho(), Naive(1), Naive(100))


@dataclass(frozen=True, slots=True)
class Bridge:
    """This bridge, the real command with its defaults: status, web page, retention and all."""

    durability: str
    compression: str
    delivers = True
    messages_max = sys.maxsize

    @property
    def title(self) -> str:
        return f"bridge: {self.durability}, {self.compression}"

    @property
    def settings(self) -> dict[str, str]:
        return {"durability": self.durability, "compression": self.compression}

    def program(self, around: Surroundings) -> Program:
        toml = around.folder / "bridge.toml"
        toml.write_text(
            _BRIDGE.format(
                broker_port=around.broker_port,
                sink_port=around.sink_port,
                web_port=around.free_port,
                queue_folder=json.dumps(str(around.folder / "queue"), ensure_ascii=False),  # a TOML string, too
                durability=self.durability,
                compression=self.compression,
            ),
            encoding="utf-8",
        )
        return Program("bridge", [sys.executable, "-m", "bridge", "run", "--config", str(toml)], around.folder)
