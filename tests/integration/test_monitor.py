"""bridge.monitor on a real bridge: what is waiting, until nothing is, and the same as text."""

from __future__ import annotations

import csv
import io
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bridge.errors import FaultError
from bridge.monitor import Monitor, as_csv, as_frame, as_json
from bridge.status import Tree
from tests.harness.stage import Stage

HISTORY: list[Tree] = [
    {"state": "online", "at": "2026-01-01T00:00:00.000Z", "queue": {"ready": 2, "full_in_seconds": None}},
    {"state": "offline", "at": "2026-01-01T00:00:05.000Z"},
]


def waiting(status_tree: Tree) -> int:
    queue = json.loads(as_json([status_tree]))["queue"]
    return int(queue["ready"] + queue["taken"])  # one may be on its way, as a probe


async def test_it_waits_until_the_queue_is_drained_and_keeps_a_history(stage: Stage) -> None:
    stage.cloud.unreachable()
    stage.launch()
    async with Monitor(port=stage.broker.port) as monitor:
        stage.publish(100)
        await monitor.until(lambda status_tree: waiting(status_tree) == 100, timeout=20)
        with pytest.raises(TimeoutError, match="the last status: degraded"):
            await monitor.drained(timeout=1.2)
        stage.cloud.reachable()
        await monitor.drained(timeout=30)
        assert stage.cloud.unique == 100
        assert monitor.latest == monitor.history[-1]
        assert {waiting(status_tree) for status_tree in monitor.history} >= {0, 100}


async def test_a_bridge_that_is_dead_is_not_drained(stage: Stage) -> None:
    bridge = stage.launch()
    async with Monitor(port=stage.broker.port) as monitor:
        await monitor.drained(timeout=20)
        bridge.kill()
        await monitor.until(lambda status_tree: status_tree["state"] == "offline", timeout=20)
        with pytest.raises(TimeoutError, match="offline"):
            await monitor.drained(timeout=0.5)


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
