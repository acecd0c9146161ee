"""The stage of the tests that look from the cloud's side: a real broker, the real bridge, a scripted cloud, a ledger.

Everything under `[upload]` stands in a configuration file, so that a test can change it while the bridge runs; the
rest is given by the environment. Retries are quick, so that a test waits for what happens and not for a backoff.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.harness import free_port, wait_until
from tests.harness.bridge import READY_SECONDS, BridgeProcess
from tests.harness.cloud import Cloud, Responder
from tests.harness.ledger import Audit, audit
from tests.harness.mosquitto import Mosquitto, program
from tests.harness.publisher import publish_many

TOPIC = "edge/predictions/stage"
STATUS_SECONDS = 5
# Tests count what the cloud gets, so those about losses ask for the events about them.
QUICK: Mapping[str, object] = {
    "retry_min_seconds": 0.02,
    "retry_max_seconds": 0.1,
    "timeout_seconds": 5.0,
    "report_losses": False,
}


class CloudStage:
    """`with` starts the bridge and waits until it is connected; `tried` has the id of every message published here.

    `upload` are keys of that section, `settings` dotted keys of all others; `publisher` is the user name and password
    of who publishes here.
    """

    def __init__(  # noqa: PLR0913  a test names what it needs, the rest has sane values
        self,
        folder: Path,
        broker: Mosquitto,
        cloud: Cloud,
        *,
        upload: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None,
        wrapper: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        publisher: tuple[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cloud = cloud
        self.tried: list[str] = []
        self.queue_path = folder / "queue"
        self._broker = broker
        self._publisher = publisher
        self._upload = {"url": cloud.url, **QUICK, **(upload or {})}
        self._file = folder / "bridge.toml"
        self._web = f"http://127.0.0.1:{(web_port := free_port())}"
        self._write()
        self.settings = {
            "device_id": "stage",
            "mqtt.port": broker.port,
            "queue.path": str(self.queue_path),
            "queue.durability": "crash",  # no test from this side pulls the plug, and a busy disk must not slow them
            "queue.min_free_disk_bytes": 0,
            "web.port": web_port,
            "status.interval_seconds": 0.5,
            "log.format": "json",
            **(settings or {}),
        }
        command = ("run", "--config", str(self._file))
        self.bridge = BridgeProcess(folder, self.settings, command=command, wrapper=wrapper, variables=variables)

    # ---- the bridge ----

    def start(self) -> Self:
        """Start it and wait until the broker sends it messages; how the cloud is does not matter."""
        self.bridge.start()
        wait_until(self._is_connected, READY_SECONDS, "connected to the broker")
        return self

    def stop(self) -> None:
        """Stop it in order; it must say 0."""
        self.bridge.terminate()
        assert self.bridge.wait() == 0, self.bridge.stderr

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bridge.running:
            self.bridge.kill()

    def reconfigure(self, **upload: object) -> None:
        """Change keys of `[upload]` (None takes one out), send SIGHUP and wait until the bridge has read them."""
        changed = self._upload | upload
        self._upload = {key: value for key, value in changed.items() if value is not None}
        self._write()
        self.hang_up()

    def hang_up(self) -> None:
        """SIGHUP, and wait until the bridge says that it has read its configuration again."""
        before = len(self.log("configuration reloaded"))
        self.bridge.hup()
        wait_until(lambda: len(self.log("configuration reloaded")) > before, what="configuration reloaded")

    def log(self, words: str) -> list[dict[str, Any]]:
        """The lines of the log with these words in their message, from all starts."""
        lines = (json.loads(line) for line in self.bridge.stderr.splitlines() if words in line and line[:1] == "{")
        return [line for line in lines if words in line["message"]]

    def fetch(self, path: str) -> bytes:
        """GET from the bridge's web server."""
        with urllib.request.urlopen(self._web + path, timeout=STATUS_SECONDS) as answer:  # noqa: S310 - our own child
            return bytes(answer.read())

    @property
    def status(self) -> dict[str, Any]:
        """The status of this moment."""
        return dict(json.loads(self.fetch("/status")))

    @property
    def messages(self) -> dict[str, int]:
        """The counters since the bridge started."""
        return dict(self.status["messages"])

    @property
    def cloud_state(self) -> str:
        return str(self.status["cloud"]["state"])

    # ---- messages ----

    def publish(self, payloads: Iterable[bytes], topic: str = TOPIC) -> None:
        """Publish at QoS 1; all are confirmed by the broker when this returns."""
        username, password = self._publisher or (None, None)
        asyncio.run(publish_many(self._broker.port, topic, payloads, username=username, password=password))

    def publish_ids(self, ids: Sequence[str], filler: str = "") -> None:
        """Publish one message an id, and note it as tried; `filler` makes each of them larger."""
        self.tried += ids
        self.publish(payload(event_id, filler) for event_id in ids)

    def publish_numbered(self, count: int) -> list[str]:
        """Publish so many messages with ids of their own; return these."""
        ids = [f"message-{number:06}" for number in range(len(self.tried), len(self.tried) + count)]
        self.publish_ids(ids)
        return ids

    def wait_stored(self, messages: int) -> None:
        """Wait until so many are in the queue, counted from the bridge's start."""
        wait_until(lambda: self.messages["stored"] >= messages, what=f"{messages} stored")

    def wait_settled(self, messages: int, timeout_seconds: float = 10) -> None:
        """Wait until so many are delivered or dead, counted from the bridge's start."""

        def settled() -> bool:
            counters = self.messages
            return counters["delivered"] + counters["dead"] >= messages

        wait_until(settled, timeout_seconds, f"{messages} settled")

    def wait_delivered(self, timeout_seconds: float = 10) -> None:
        """Wait until the cloud has as many different events as were tried."""
        wait_until(lambda: self.cloud.unique >= len(self.tried), timeout_seconds, "all delivered")

    def audit(self) -> Audit:
        """Count what was tried, all of it confirmed by the broker, against what the cloud has."""
        return audit(self.tried, self.tried, self.cloud.arrivals)

    # ---- the queue of a stopped bridge ----

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Open data.db with nothing but sqlite3; what is changed is committed."""
        assert not self.bridge.running
        with closing(sqlite3.connect(self.queue_path / "data.db")) as connection, connection:
            yield connection

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of one SELECT."""
        with self.database() as connection:
            return connection.execute(sql).fetchall()

    def ids_with_status(self, *codes: int) -> list[str]:
        """The event ids of the rows with one of these status codes, in order of arrival."""
        marks = ",".join(map(str, codes))
        rows = self.select(f"SELECT data FROM ack_queue_default WHERE status IN ({marks}) ORDER BY _id")  # noqa: S608
        return [json.loads(data)["id"] for (data,) in rows]

    def _is_connected(self) -> bool:
        assert self.bridge.running, f"the bridge ended with {self.bridge.exit_status}:\n{self.bridge.stderr}"
        try:
            return bool(self.status["broker"]["connected"])
        except OSError:  # it does not listen yet
            return False

    def _write(self) -> None:
        lines = ["[upload]", *(f"{key} = {_toml(value)}" for key, value in self._upload.items()), ""]
        self._file.write_text("\n".join(lines))


def payload(event_id: str, filler: str = "") -> bytes:
    """Return a small prediction that brings its own id."""
    return json.dumps({"event_id": event_id, "label": "crack", "filler": filler}).encode()


def _toml(value: object) -> str:
    """Write a value as TOML, which for all but tables is written as JSON."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(inner)}" for name, inner in value.items()) + "}"
    return json.dumps(value)


@contextmanager
def shared_stage(folder: Path, upload: Mapping[str, object]) -> Iterator[CloudStage]:
    """Start a broker, a cloud and one bridge for a whole module, whose tests change what is under `[upload]`."""
    if program("mosquitto") is None:
        missing = "mosquitto is not installed: make setup"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with Mosquitto(folder / "mosquitto") as broker, on_stage(folder, broker, upload=upload) as stage:
        yield stage


@contextmanager
def on_stage(
    folder: Path,
    broker: Mosquitto,
    responder: Responder | None = None,
    *,
    upload: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[CloudStage]:
    """Start a cloud that meets every request with this (None: stores and accepts it), and a bridge before it."""
    with Cloud() as cloud:
        cloud.always(responder)
        with CloudStage(folder / "stage", broker, cloud, upload=upload, settings=settings) as stage:
            yield stage
