"""Promise 21: what is published while the bridge is down is delivered afterwards, 200,000 messages too."""

from __future__ import annotations

from tests.harness.stage import Stage

MESSAGES = 200_000


def test_two_hundred_thousand_messages_published_while_the_bridge_is_down_all_arrive(stage: Stage) -> None:
    bridge = stage.launch()  # once, so that the broker knows for whom to keep them
    bridge.terminate()
    assert bridge.wait() == 0
    publisher = stage.publish(MESSAGES, window=1000)
    stage.launch()
    stage.drain(timeout_seconds=60)
    stage.audit(publisher).assert_kept(duplicates_max=0)
    assert len(publisher.confirmed) == MESSAGES
