"""Who is measured: what takes messages from the broker. A new rival is one more class here.

A contender is a program on the stage. It either delivers to the sink, which then counts, or counts by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bridge.bench.mqtt import TOPIC_FILTER
from bridge.bench.null_subscriber import RECEIVE_MAXIMUM, SESSION_EXPIRY_SECONDS
from bridge.bench.programs import Program, Several, Talker
from bridge.bench.usage import Usage

WEB_PORTS = 2  # as many bridges are on a stage at most


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a contender finds on the stage."""

    folder: Path
    broker_port: int
    sink_port: int
    web_ports: tuple[int, ...]
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

    @property
    def bridges(self) -> int:
        """How many of this bridge it consists of: each gives receipts, and has a page that tells when it is ready."""

    @property
    def answer_after_ms(self) -> float:
        """How long the cloud takes for each answer."""

    def program(self, around: Surroundings) -> Program:
        """Return its program, not started."""


@dataclass(frozen=True, slots=True)
class NullSubscriber:
    """Confirms and does nothing else: the ceiling."""

    title = "ceiling: null subscriber"
    delivers = False
    messages_max = sys.maxsize
    bridges = 0
    answer_after_ms = 0.0

    @property
    def settings(self) -> dict[str, str]:
        return {}

    def program(self, around: Surroundings) -> Talker:
        return Talker("null_subscriber", around.folder, port=around.broker_port, payload_bytes=around.payload_bytes)


@dataclass(frozen=True, slots=True)
class StockSubscriber:
    """mosquitto_sub, which must be told how many messages a run has: the other candidate for the ceiling."""

    messages_max: int
    title = "ceiling: mosquitto_sub"
    delivers = False
    bridges = 0
    answer_after_ms = 0.0

    @property
    def settings(self) -> dict[str, str]:
        return {}

    def program(self, around: Surroundings) -> Talker:
        program = shutil.which("mosquitto_sub") or "mosquitto_sub"
        return Watched(
            "stock_subscriber", around.folder, program=program, port=around.broker_port, count=self.messages_max
        )


class Watched(Talker):
    """A talker that only watches a program: what it uses itself says nothing."""

    def usage(self) -> Usage:
        return Usage()


@dataclass(frozen=True, slots=True)
class BarePaho:
    """paho as documented, with a callback that does nothing."""

    title = "bare paho, empty callback"
    delivers = False
    messages_max = sys.maxsize
    bridges = 0
    answer_after_ms = 0.0

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
    bridges = 0
    answer_after_ms = 0.0

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


# mq-bridge, a compiled core with Python around it; runs in whatever Python has it, and imports nothing of ours.
_MQ_BRIDGE = """
import json, sys, mq_bridge
routes = json.load(open(sys.argv[1], encoding="utf-8"))
running = [mq_bridge.Route.from_config({"routes": routes}, name) for name in routes]
for route in running:
    route.start()
for route in running:
    route.join()
"""
# Its best settings, as tried by hand (1.2.0): batches of 500 cost more CPU, of 2,000 to 10,000 no less; a channel that
# holds the broker's window, for a larger one (60,000) made no difference. `consume` is cheaper than `group_subscribe`,
# which remembers its place over a restart; polling the file every 1 ms instead of 10 takes 0.5 s off its latency.
_MQ_BATCH = 1000
_MQ_QUEUE = 20_000
_MQ_POLL_MS = 1


@dataclass(frozen=True, slots=True)
class MqBridge:
    """mq-bridge from PyPI: from MQTT to HTTP, directly or through a file that it syncs before it confirms."""

    python: str
    through_file: bool
    delivers = True
    messages_max = sys.maxsize
    bridges = 0
    answer_after_ms = 0.0

    @property
    def title(self) -> str:
        return "mq-bridge, file queue" if self.through_file else "mq-bridge, direct"

    @property
    def settings(self) -> dict[str, str]:
        return {"batch": str(_MQ_BATCH), "queue_capacity": str(_MQ_QUEUE)}

    def program(self, around: Surroundings) -> Program:
        routes = around.folder / "routes.json"
        routes.write_text(json.dumps(self._routes(around)), encoding="utf-8")
        return Program("mq-bridge", [self.python, "-c", _MQ_BRIDGE, str(routes)], around.folder)

    def _routes(self, around: Surroundings) -> dict[str, Any]:
        mqtt_input = {
            "mqtt": {
                "url": f"tcp://127.0.0.1:{around.broker_port}",
                "topic": TOPIC_FILTER.decode(),
                "client_id": "bench-mq-bridge",
                "protocol": "v5",
                "qos": 1,
                "clean_session": False,
                "session_expiry_interval": SESSION_EXPIRY_SECONDS,
                "queue_capacity": _MQ_QUEUE,
                "max_inflight": RECEIVE_MAXIMUM,
            }
        }
        upsert = {"path": "/", "format": "json_array", "max_documents": _MQ_BATCH}
        http_output = {"http_bulk": {"url": f"http://127.0.0.1:{around.sink_port}", "upsert": upsert}}
        if not self.through_file:
            return {"direct": {"input": mqtt_input, "output": http_output, "batch_size": _MQ_BATCH}}
        path = around.folder / "queue.ndjson"
        path.touch()
        lines = {"path": str(path), "format": "raw"}
        return {
            "store": {
                "input": mqtt_input,
                "output": {"file": {**lines, "fsync": "batch"}},
                "batch_size": _MQ_BATCH,
            },
            "forward": {
                "input": {"file": {**lines, "mode": "consume"}},
                "output": http_output,
                "batch_size": _MQ_BATCH,
                "empty_batch_delay_ms": _MQ_POLL_MS,
            },
        }


@dataclass(frozen=True, slots=True)
class Bridge:
    """This bridge, the real command with its defaults: status, web page, retention and all; but for `others`.

    With `backlog`, a queue's folder, it starts with a copy of that: rows that wait.
    """

    durability: str
    compression: str
    others: tuple[tuple[str, object], ...] = ()
    backlog: Path | None = None
    name: str = "bridge"
    delivers = True
    messages_max = sys.maxsize
    bridges = 1
    answer_after_ms = 0.0

    @property
    def title(self) -> str:
        others = "".join(f", {name} {value}" for name, value in self.others)
        return f"bridge: {self.durability}, {self.compression}{others}"

    @property
    def settings(self) -> dict[str, str]:
        others = {name: str(value) for name, value in self.others}
        return {"durability": self.durability, "compression": self.compression, **others}

    def program(self, around: Surroundings) -> Program:
        queue = around.folder / self.name
        if self.backlog:
            shutil.copytree(self.backlog, queue)
            os.sync()  # or what was copied is written while the bridge is measured
        values = {
            "device_id": self.name,
            "mqtt.host": "127.0.0.1",
            "mqtt.port": around.broker_port,
            "queue.path": str(queue),
            "queue.durability": self.durability,
            "queue.overflow": "block",  # a bench must not lose what it counts
            "upload.url": f"http://127.0.0.1:{around.sink_port}/",
            "upload.compression": self.compression,
            "web.port": around.web_ports[0],
            **dict(self.others),
        }
        toml = around.folder / f"{self.name}.toml"
        toml.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()), encoding="utf-8")
        return Program(self.name, [sys.executable, "-m", "bridge", "run", "--config", str(toml)], around.folder)


def compiled_rivals(python: str | None) -> tuple[Contender, ...]:
    """Return mq-bridge both ways, if a Python is named that has it."""
    return tuple(MqBridge(python, through_file=one) for one in (False, True)) if python else ()


def _toml(value: object) -> str:
    """Strings, numbers and lists of them look the same in TOML."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two bridges that share the messages (`$share`): the way past one core."""

    durability: str
    compression: str
    title = "two bridges, $share"
    delivers = True
    messages_max = sys.maxsize
    bridges = 2
    answer_after_ms = 0.0

    @property
    def settings(self) -> dict[str, str]:
        return {"durability": self.durability, "compression": self.compression}

    def program(self, around: Surroundings) -> Program:
        programs = []
        for number in range(self.bridges):
            topics = (("mqtt.topics", [f"$share/bench/{TOPIC_FILTER.decode()}"]),)
            one = Bridge(self.durability, self.compression, topics, name=f"bridge-{number}")
            programs.append(one.program(replace(around, web_ports=around.web_ports[number:])))
        return Several(programs)


@dataclass(frozen=True, slots=True)
class Hindered:
    """A contender where things are worse: a cloud that takes its time, or a program before it, such as strace."""

    contender: Contender
    how: str
    answer_after_ms: float = 0.0
    wrapper: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.contender.title}; {self.how}"

    @property
    def settings(self) -> dict[str, str]:
        return {**self.contender.settings, "hindered": self.how}

    @property
    def delivers(self) -> bool:
        return self.contender.delivers

    @property
    def messages_max(self) -> int:
        return self.contender.messages_max

    @property
    def bridges(self) -> int:
        return self.contender.bridges

    def program(self, around: Surroundings) -> Program:
        program = self.contender.program(around)
        program.wrap(*self.wrapper)
        return program
