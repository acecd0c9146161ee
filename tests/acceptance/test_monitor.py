"""bridge.monitor on a real bridge: what is waiting, until nothing is."""

from __future__ import annotations

import json

import pytest

from bridge.monitor import Monitor, as_json
from bridge.status import Tree
from tests.harness.stage import Stage


def waiting(status_tree: Tree) -> int:
    queue = json.loads(as_json([status_tree]))["queue"]
    return int(queue["ready"] + queue["taken"])  # one may be on its way, as a probe


async def test_it_waits_until_the_queue_is_drained_and_keeps_a_history(stage: Stage) -> None:
    stage.cloud.unreachable()
    stage.launch(settings={"upload.retry_max_seconds": 1})
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
