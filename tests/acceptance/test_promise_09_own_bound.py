"""Promise 9: at the queue's own bound exactly the configured policy; what it gives up is counted and in the ledger.

The bound holds to the row in the file that a SIGKILL leaves. Attacks I5 and I9.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import figures, wait_until
from tests.harness.cloud import answer
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

BOUND = 50
AWAY = answer(503)
IN_FIVES = {"batch_messages": 5, "linger_ms": 400}  # what is published at once is there before the first is taken
WAITING = "SELECT COUNT(*) FROM ack_queue_default WHERE status < 2"
LOST_IDS = "SELECT value FROM edge_loss, json_each(event_ids) ORDER BY loss_id, key"


def waiting(stage: CloudStage) -> int:
    queue = stage.status["queue"]
    return int(queue["ready"] + queue["taken"])


def wait_waiting(stage: CloudStage, rows: int) -> None:
    wait_until(lambda: waiting(stage) == rows, what=f"{rows} waiting")


def lost_ids(stage: CloudStage) -> list[str]:
    return [name for (name,) in stage.select(LOST_IDS)]


def expected_survivors(policy: str, tried: list[str], flying: int) -> set[str]:
    """The oldest that were posted already cannot be dropped; all others follow the policy."""
    if policy == "drop-newest":
        return set(tried[:BOUND])
    return {*tried[:flying], *tried[flying - BOUND :]}


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_what_is_dropped_is_counted_listed_and_exactly_what_the_cloud_lacks(
    tmp_path: Path, mosquitto: Mosquitto, policy: str
) -> None:
    settings = {"queue.max_messages": BOUND, "queue.overflow": policy}
    with on_stage(tmp_path, mosquitto, AWAY, upload=IN_FIVES, settings=settings) as stage:
        stage.publish_numbered(15)
        wait_until(lambda: stage.status["queue"]["taken"] == 10, what="a batch under way and one ahead")
        for _ in range(15):
            stage.publish_numbered(13)
        wait_until(lambda: stage.messages["received"] == 210, what="received")
        wait_until(lambda: stage.messages["dropped"] == 210 - BOUND, what="counted")
        stage.bridge.kill()
        assert stage.select(WAITING) == [(BOUND,)], "to the row, right after a SIGKILL"
        assert stage.select("SELECT reason, messages FROM edge_loss_total") == [("max_messages", 210 - BOUND)]
        stage.cloud.always()
        stage.start()
        wait_waiting(stage, 0)
        assert stage.messages["dropped"] == 0, "counters start at 0 with the process"
        stage.stop()
        assert stage.cloud.stored.keys() == expected_survivors(policy, stage.tried, flying=10)
        lost = set(stage.tried) - stage.cloud.stored.keys()
        figures.count(dropped=len(lost), of_these_in_the_ledger=len(lost.intersection(lost_ids(stage))))
        assert sorted(lost_ids(stage)) == sorted(lost)


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_killed_under_load_at_its_bound_nothing_is_gone_without_a_line_in_the_ledger(
    tmp_path: Path, mosquitto: Mosquitto, policy: str
) -> None:
    """What was dropped and not yet confirmed comes again: then the ledger may name it although it arrived."""
    settings = {"queue.max_messages": BOUND, "queue.overflow": policy}
    with on_stage(tmp_path, mosquitto, AWAY, settings=settings) as stage:
        for _ in range(2):
            dropped = stage.messages["dropped"]
            stage.publish_numbered(500)
            wait_until(lambda before=dropped: stage.messages["dropped"] > before, what="dropping")  # type: ignore[misc]
            stage.bridge.kill()
            ((rows,),) = stage.select(WAITING)
            assert rows <= BOUND
            stage.start()
        stage.cloud.always()
        wait_waiting(stage, 0)
        stage.publish_ids(["last"])
        wait_until(lambda: "last" in stage.cloud.stored, what="drained")
        stage.stop()
        lost = set(lost_ids(stage))
        assert set(stage.tried) <= lost | stage.cloud.stored.keys()
        assert stage.select("SELECT SUM(messages) >= ? FROM edge_loss_total".replace("?", str(len(lost)))) == [(1,)]


def test_block_loses_nothing_and_misses_no_keep_alive(tmp_path: Path, mosquitto: Mosquitto) -> None:
    settings = {"queue.max_messages": BOUND, "queue.overflow": "block", "mqtt.keepalive_seconds": 2}
    with on_stage(tmp_path, mosquitto, AWAY, settings=settings) as stage:
        stage.publish_numbered(300)
        wait_until(lambda: "queue.max_messages" in (stage.status["reason"] or ""), what="blocked")
        uptime_seconds = stage.status["uptime_seconds"]
        wait_until(lambda: stage.status["uptime_seconds"] > uptime_seconds + 6, what="three times the keep-alive")
        status = stage.status
        assert (status["broker"]["connected"], status["broker"]["reconnects"]) == (True, 0)
        held = waiting(stage)
        assert 0 < held <= BOUND
        stage.bridge.kill()
        assert stage.select(WAITING) == [(held,)]
        stage.start()
        stage.cloud.always()
        stage.wait_delivered(30)
        stage.stop()
        assert not stage.audit().lost
        assert stage.select("SELECT * FROM edge_loss_total") == []


def test_the_bound_in_bytes_holds_and_is_accounted_for(tmp_path: Path, mosquitto: Mosquitto) -> None:
    bound_bytes = 1_000_000
    settings = {"queue.max_bytes": bound_bytes}
    with on_stage(tmp_path, mosquitto, AWAY, settings=settings) as stage:
        for number in range(15):
            stage.publish_ids([f"{number}-{n}" for n in range(100)], filler="x" * 1000)
        wait_until(lambda: stage.messages["received"] == 1500, what="received")
        wait_until(lambda: stage.messages["dropped"] + waiting(stage) == 1500, what="stored or dropped")
        assert stage.status["queue"]["bytes"] <= bound_bytes * 1.3, "pages are not filled to the last byte"
        dropped = stage.messages["dropped"]
        assert 400 < dropped < 1100
        stage.cloud.always()
        wait_waiting(stage, 0)
        stage.stop()
        assert sorted(lost_ids(stage)) == sorted(set(stage.tried) - stage.cloud.stored.keys())
        assert len(lost_ids(stage)) == dropped
