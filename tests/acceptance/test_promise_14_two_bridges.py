"""Promise 14: a second bridge on the same queue says whose it is and ends with 2 before it touches MQTT."""

from __future__ import annotations

from pathlib import Path

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess, StatusReader
from tests.harness.proxy import TcpProxy
from tests.harness.stage import Stage


def test_the_second_bridge_names_the_first_and_leaves_it_undisturbed(stage: Stage, tmp_path: Path) -> None:
    first = stage.launch()
    with stage.publisher(messages_per_second=500) as publisher, TcpProxy(stage.broker.port) as proxy:
        second = BridgeProcess(tmp_path / "second", stage.settings | {"mqtt.port": proxy.port})
        for _ in range(2):
            with second:
                assert second.wait() == 2
        assert proxy.connections == 0
    told = second.stderr.splitlines()
    assert [f"process {first.pid}" in line for line in told] == [True, True] * 2, told
    assert first.running
    stage.drain()
    with StatusReader(stage.settings) as status:
        assert wait_until(lambda: status.whole)["broker"]["reconnects"] == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_the_queue_of_a_bridge_that_was_killed_is_free_at_once(stage: Stage) -> None:
    stage.launch().kill()
    stage.launch()
