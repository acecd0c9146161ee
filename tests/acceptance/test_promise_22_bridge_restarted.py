"""Promise 22: a bridge restarted in mid-stream finds the broker's backlog again, with MQTT 5 and 3.1.1."""

from __future__ import annotations

import pytest

from tests.harness.stage import Stage, wait_confirmed

AWAY_MESSAGES = 2000
RESTARTS = 2


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_bridge_restarted_in_mid_stream_finds_the_backlog_again(stage: Stage, protocol: str) -> None:
    bridge = stage.launch(settings={"mqtt.protocol": protocol})
    with stage.publisher(messages_per_second=4000) as publisher:
        for _ in range(RESTARTS):
            stage.wait_arrivals(1)
            bridge.terminate()
            assert bridge.wait() == 0
            wait_confirmed(publisher, AWAY_MESSAGES)
            bridge.start()
        bridge.wait_ready()
    stage.drain()
    stage.audit(publisher).assert_kept(duplicates_max=0)
