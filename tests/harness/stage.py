"""The stage of the tests that break broker, disk and process: everything real but the cloud, and a ledger.

Messages go by their `frame` in the ledger, not by an id: every second one brings an id of its own, the others get
theirs from the bridge, and none may ever be seen under two ids.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from shutil import copy
from types import TracebackType
from typing import Any, Self

import orjson

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess, StatusReader
from tests.harness.cloud import Cloud, answer
from tests.harness.ledger import Audit, audit
from tests.harness.mosquitto import Mosquitto
from tests.harness.proxy import TcpProxy
from tests.harness.publisher import LedgerPublisher

TOPIC = "edge/predictions/press-4"
SABOTAGE = "tests.harness.sabotage"
DRAIN_SECONDS = 30
INTAKE_CLIENT_ID = b"\x00\x11edge-bridge-stage"  # as CONNECT has it; the status link's is longer


def prediction(number: int) -> tuple[str, bytes]:
    """Return a ledger name and its payload, with a producer's id in every second one."""
    own_id = {} if number % 2 else {"prediction_id": f"prediction-{number}"}
    return f"frame-{number}", orjson.dumps({"frame": f"frame-{number}", "label": "crack", "score": 0.97, **own_id})


def identified(number: int) -> tuple[str, bytes]:
    """`prediction` where the publisher itself may repeat a message: then only an id of its own tells."""
    name = f"frame-{number}"
    return name, orjson.dumps({"frame": name, "prediction_id": f"prediction-{number}"})


class Stage:
    """A cloud before a running broker; `launch` bridges and `publisher`s as you like. `with` ends what still runs."""

    def __init__(self, folder: Path, broker: Mosquitto, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.broker, self.cloud = folder, broker, Cloud()
        self.queue_path = folder / "queue"
        self._more = {key.replace("__", "."): value for key, value in settings.items()}
        self._bridges: list[BridgeProcess] = []
        self._sentinels = 0

    @property
    def settings(self) -> dict[str, object]:
        return {
            "device_id": "stage",
            "mqtt.port": self.broker.port,
            "queue.path": str(self.queue_path),
            "queue.min_free_disk_bytes": 0,
            "upload.url": self.cloud.url,
            "upload.report_losses": False,  # tests count what the cloud gets; those about losses set it
            "status.interval_seconds": 0.5,
            "web.port": 0,
            "log.format": "json",
            **self._more,
        }

    def bridge(
        self,
        sabotage: str = "",
        *,
        wrapper: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> BridgeProcess:
        """Return a bridge, not started; with `sabotage` one that is broken (see tests/harness/sabotage.py)."""
        command = (sabotage, "run") if sabotage else ("run",)
        module = SABOTAGE if sabotage else "bridge"
        merged = {**self.settings, **(settings or {})}
        bridge = BridgeProcess(
            self.folder, merged, command=command, wrapper=wrapper, variables=variables, module=module
        )
        self._bridges.append(bridge)
        return bridge

    def launch(
        self, sabotage: str = "", *, wrapper: Sequence[str] = (), settings: Mapping[str, object] | None = None
    ) -> BridgeProcess:
        """`bridge`, started and online."""
        return self.bridge(sabotage, wrapper=wrapper, settings=settings).start().wait_ready()

    def publisher(self, **options: Any) -> LedgerPublisher:
        """Return a publisher of `prediction`s, straight to the broker."""
        return LedgerPublisher(self.broker.port, TOPIC, options.pop("payload", prediction), **options)

    def publish(self, count: int, **options: Any) -> LedgerPublisher:
        """Publish so many; all are confirmed by the broker when this returns."""
        with self.publisher(count=count, **options) as publisher:
            publisher.finish()
        return publisher

    def leave_backlog(
        self, count: int, payload: Callable[[int], tuple[str, bytes]] = prediction, *, killed: bool = False
    ) -> LedgerPublisher:
        """Publish so many to a bridge that the cloud refuses, and end it: all are confirmed and in its file."""
        self.cloud.always(answer(401))
        bridge = self.bridge().start()
        wait_until(lambda: self.log("subscribed to"), what="subscribed")
        publisher = self.publish(count, payload=payload)
        with StatusReader(self.settings) as status:  # counts what the broker has its PUBACKs for: it sends none again
            wait_until(lambda: status.leaves.get("messages/stored") == str(count), what="stored and confirmed")
        if killed:
            bridge.kill()
        else:
            bridge.terminate()
            assert bridge.wait() == 0
        self.cloud.always()
        return publisher

    def frames(self) -> set[str]:
        """What the cloud has, by frame."""
        return {orjson.loads(arrivals[0].data)["data"]["frame"] for arrivals in list(self.cloud.stored.values())}

    def losses(self) -> dict[str, int]:
        """The loss ledger of a bridge that has ended: reason → messages."""
        with closing(sqlite3.connect(self.queue_path / "data.db")) as connection:
            return dict(connection.execute("SELECT reason, SUM(messages) FROM edge_loss GROUP BY reason"))

    def drain(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        """Return when the cloud has all that was published before: one more message, and rows leave in order (I6)."""
        self._sentinels += 1
        name = f"sentinel-{self._sentinels}"
        self.publish(1, payload=lambda _: (name, orjson.dumps({"frame": name, "prediction_id": name})))
        wait_until(lambda: name in self.cloud.stored, timeout_seconds, "drained")

    def wait_arrivals(self, more: int, timeout_seconds: float = DRAIN_SECONDS) -> None:
        """Wait until the cloud has so many more than now."""
        wanted = self.cloud.unique + more
        wait_until(lambda: self.cloud.unique >= wanted, timeout_seconds, f"{more} more at the cloud")

    def audit(self, publisher: LedgerPublisher) -> Audit:
        """Count by frame; nothing may ever have been seen with two contents or under two ids."""
        altered = {own_id: [one.data for one in self.cloud.stored[own_id]] for own_id in list(self.cloud.altered)[:3]}
        assert not altered, altered
        ids: defaultdict[str, set[str]] = defaultdict(set)
        stored: list[str] = []
        for event_id, arrivals in list(self.cloud.stored.items()):
            name = orjson.loads(arrivals[0].data)["data"]["frame"]
            if not name.startswith("sentinel-"):
                ids[name].add(event_id)
                stored += [name] * len(arrivals)
        renamed = {name: seen for name, seen in ids.items() if len(seen) > 1}
        assert not renamed, f"{len(renamed)} came under two ids: {list(renamed.items())[:3]}"
        return audit(publisher.tried, publisher.confirmed, stored)

    def log(self, words: str = "", **fields: object) -> list[dict[str, Any]]:
        """The lines of the log with these words in their message and these fields, from all starts."""
        text = (self.folder / "bridge.err").read_text(errors="replace")
        lines = [json.loads(line) for line in text.splitlines() if line[:1] == "{"]
        return [line for line in lines if words in line["message"] and fields.items() <= line.items()]

    def check_database(self) -> None:
        """`PRAGMA integrity_check` on a copy of the queue that a dead bridge left, with its WAL."""
        with tempfile.TemporaryDirectory(dir=self.folder) as aside:
            for file in self.queue_path.glob("data.db*"):
                copy(file, aside)
            if (copied := Path(aside) / "data.db").exists():
                with closing(sqlite3.connect(copied)) as connection:
                    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def __enter__(self) -> Self:
        self.cloud.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bridge in self._bridges:
            bridge.__exit__(kind, error, trace)
        self.cloud.close()


def intake_connections(proxy: TcpProxy) -> list[bytes]:
    """What the bridge sent first on each intake connection through the proxy, in order."""
    return [bytes(first) for first in list(proxy.first_bytes) if INTAKE_CLIENT_ID in first]


def wait_confirmed(publisher: LedgerPublisher, more: int) -> None:
    """Wait until the broker has confirmed so many more than now."""
    wanted = len(publisher.confirmed) + more
    wait_until(lambda: len(publisher.confirmed) >= wanted, what=f"{more} more confirmed")


def readiness(port: int) -> tuple[int, str]:
    """Ask a bridge's /readyz: (HTTP status, text); 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


class Gate:
    """The test's side of `sabotage gate=…`: no put is stored until it is let through."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"
        os.mkfifo(self.path)
        self._passes = os.open(self.path, os.O_RDWR)

    @property
    def sabotage(self) -> str:
        return f"gate={self.path}"

    def let_through(self, puts: int = 1) -> None:
        os.write(self._passes, b"." * puts)
