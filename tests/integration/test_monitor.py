"""bridge.monitor at a broker: the status as it is published, what it waits for, and the same as text."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bridge import monitor as monitor_module
from bridge.broker import watch_topic
from bridge.cli.status import show_once
from bridge.config import MqttSettings
from bridge.errors import FaultError
from bridge.monitor import STATUS_TOPIC, Monitor, as_csv, as_frame, as_json, first
from bridge.status import Tree
from tests.harness import eventually
from tests.harness.mosquitto import Mosquitto, program

HISTORY: list[Tree] = [
    {"state": "online", "at": "2026-01-01T00:00:00.000Z", "queue": {"ready": 2, "full_in_seconds": None}},
    {"state": "offline", "at": "2026-01-01T00:00:05.000Z"},
]


def retain(mosquitto: Mosquitto, payload: str) -> None:
    """Publish it as a bridge does its status."""
    sender = [program("mosquitto_pub") or "", "-p", str(mosquitto.port), "-t", STATUS_TOPIC, "-r", "-q", "1"]
    subprocess.run([*sender, *(["-m", payload] if payload else ["-n"])], check=True, timeout=20)


def status(state: str, ready: int) -> str:
    return json.dumps({"state": state, "queue": {"ready": ready, "taken": 0}})


def ready(status_tree: Tree) -> int:
    return int(json.loads(as_json([status_tree]))["queue"]["ready"])


async def test_it_waits_for_what_is_published_from_now_on(mosquitto: Mosquitto) -> None:
    """What is retained may be older than the question, so it is known and answers nothing."""
    retain(mosquitto, status("online", 0))
    async with Monitor(port=mosquitto.port) as monitor:
        await eventually(lambda: monitor.latest is not None)
        with pytest.raises(TimeoutError, match="the last status: online"):
            await monitor.drained(timeout=0.2)
        for state, number in (("offline", 0), ("online", 3)):
            retain(mosquitto, status(state, number))
            with pytest.raises(TimeoutError):
                await monitor.drained(timeout=0.2)
        retain(mosquitto, "")  # somebody cleared the topic
        retain(mosquitto, status("online", 0))
        await eventually(lambda: len(monitor.history) == 4)
        assert [tree["state"] for tree in monitor.history] == ["online", "offline", "online", "online"]
        assert monitor.latest == monitor.history[-1]


async def test_who_waits_gets_the_first_status_that_meets_the_condition(mosquitto: Mosquitto) -> None:
    retain(mosquitto, status("online", 9))
    async with Monitor(port=mosquitto.port) as monitor:
        await eventually(lambda: monitor.latest is not None)
        waiting = asyncio.create_task(monitor.until(lambda tree: ready(tree) < 3, timeout=20))
        await asyncio.sleep(0)  # it waits from here on
        for number in (5, 2, 1):
            retain(mosquitto, status("online", number))
        assert ready(await waiting) == 2


async def test_what_is_no_status_is_told_and_it_looks_again(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "RETRY_SECONDS", 0.05)
    async with Monitor(port=mosquitto.port) as monitor:
        for strange in ("[1]", "no JSON", '{"state": 1}'):
            retain(mosquitto, strange)
            with pytest.raises(TimeoutError, match="is not a bridge's status"):
                await monitor.until(lambda _: True, timeout=0.5)
        retain(mosquitto, status("online", 0))
        await eventually(lambda: monitor.latest is not None)


async def test_the_first_one_comes_at_once_or_there_is_none(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "ANSWER_SECONDS", 0.3)
    address = MqttSettings(port=mosquitto.port)
    assert await first(lambda: watch_topic(address, STATUS_TOPIC)) is None
    retain(mosquitto, status("online", 1))
    payload = await first(lambda: watch_topic(address, STATUS_TOPIC))
    assert payload == status("online", 1).encode()


async def test_without_a_broker_it_says_why(free_port: int) -> None:
    async with Monitor(port=free_port) as monitor:
        with pytest.raises(TimeoutError, match="cannot connect"):
            await monitor.drained(timeout=1)


def test_a_history_becomes_json_lines_and_csv() -> None:
    assert [json.loads(line) for line in as_json(HISTORY).splitlines()] == HISTORY
    rows = list(csv.DictReader(io.StringIO(as_csv(HISTORY))))
    assert [(row["state"], row["queue/ready"], row["queue/full_in_seconds"]) for row in rows] == [
        ("online", "2", ""),
        ("offline", "", ""),
    ]
    assert as_json([]) == ""


def test_a_frame_needs_pandas_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FaultError, match="no pandas"):
        as_frame(HISTORY)


def test_a_frame_has_a_column_for_each_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for pandas: what it is given is what counts."""
    given: list[dict[str, Any]] = []

    def make_frame(rows: list[dict[str, Any]]) -> SimpleNamespace:
        given.extend(rows)
        return SimpleNamespace(empty=True)

    module = ModuleType("pandas")
    module.DataFrame = make_frame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", module)
    as_frame(HISTORY)
    assert given[0] == {
        "state": "online",
        "at": "2026-01-01T00:00:00.000Z",
        "queue/ready": 2,
        "queue/full_in_seconds": None,
    }


def test_a_frame_with_rows_is_indexed_by_when_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Frame(list[Any]):
        empty = False

        def assign(self, **columns: Any) -> Frame:
            calls.append(("assign", columns))
            return self

        def set_index(self, name: str) -> Frame:
            calls.append(("set_index", name))
            return self

        def __getitem__(self, name: Any) -> Any:
            return [row[name] for row in self]

    module = ModuleType("pandas")
    module.DataFrame = Frame  # type: ignore[attr-defined]
    module.to_datetime = lambda column: [f"time {at}" for at in column]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", module)
    as_frame(HISTORY)
    at = [f"time {tree['at']}" for tree in HISTORY]
    assert calls == [("assign", {"at": at}), ("set_index", "at")]


async def test_where_no_status_is_retained_the_command_says_what_to_look_at() -> None:
    async def cleared() -> AsyncGenerator[bytes, None]:
        yield b""

    with pytest.raises(FaultError, match="no status is retained on edge/x"):
        await show_once(cleared, "edge/x", as_json=True)
