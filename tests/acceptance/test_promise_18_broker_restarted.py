"""Promise 18: the broker may be restarted or killed: nothing is lost that it had saved, the bridge is back in 30 s.

Under the shipped mosquitto.conf. What no setting of Mosquitto closes, and what is not promised: a message that it
confirmed to its publisher since its last save, two seconds ago at most, and that the bridge has not taken yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness import wait_until
from tests.harness.publisher import LedgerPublisher
from tests.harness.stage import Stage, identified, wait_confirmed

RECONNECT_SECONDS_MAX = 30


def wait_saved(stage: Stage) -> None:
    """Wait until the broker has saved by the clock. It confirms nothing while it saves, so one save has all of it."""
    saved_at = stage.broker.saved_at_ns()
    wait_until(lambda: stage.broker.saved_at_ns() != saved_at, what="autosave")


@contextmanager
def under_load(stage: Stage) -> Iterator[LedgerPublisher]:
    with stage.publisher(payload=identified, messages_per_second=2000) as publisher:
        wait_confirmed(publisher, 1000)
        yield publisher


def test_a_broker_restarted_under_load_loses_nothing(stage: Stage) -> None:
    stage.launch()
    with under_load(stage) as publisher:
        for _ in range(2):
            stage.broker.restart()
            stage.wait_arrivals(1000, RECONNECT_SECONDS_MAX)
    stage.drain()
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_a_broker_killed_under_load_loses_nothing_that_it_had_saved(stage: Stage) -> None:
    stage.launch()
    wait_saved(stage)  # the session itself, too
    with under_load(stage) as publisher:
        saved = frozenset(publisher.confirmed)
        wait_saved(stage)
        stage.broker.kill()
        stage.broker.start()
        stage.wait_arrivals(1000, RECONNECT_SECONDS_MAX)
    stage.drain()
    counted = stage.audit(publisher)
    assert not counted.lost & saved
    assert not counted.unexpected
    assert counted.duplicate_count == 0


def test_what_the_bridge_has_taken_survives_any_death_of_the_broker(stage: Stage) -> None:
    stage.launch()
    wait_saved(stage)
    publisher = stage.publish(5000, payload=identified)
    wait_until(lambda: stage.cloud.unique == 5000)
    stage.broker.kill()
    stage.broker.start()
    stage.drain(RECONNECT_SECONDS_MAX)
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_a_killed_broker_keeps_what_it_had_saved_for_a_bridge_that_was_away(stage: Stage) -> None:
    bridge = stage.launch()
    bridge.terminate()
    assert bridge.wait() == 0
    publisher = stage.publish(5000, payload=identified)
    wait_saved(stage)
    stage.broker.kill()
    stage.broker.start()
    stage.launch()
    stage.drain(RECONNECT_SECONDS_MAX)
    stage.audit(publisher).assert_kept(duplicates_max=0)
