"""Whatever is lost is counted once and told: the status, the ledger and what the cloud lacks are the same (I9)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.harness import wait_until
from tests.harness.cloud import Cloud, Exchange, accept, answer, reject_ids
from tests.harness.cloud_stage import TOPIC, on_stage, payload
from tests.harness.mosquitto import Mosquitto

BOUND = 60


def publish_expiring(broker: Mosquitto, event_id: str, expiry_seconds: int) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = expiry_seconds
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish(TOPIC, payload(event_id), 1, properties=properties).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def test_the_counters_are_the_ledger_and_the_ledger_is_what_the_cloud_lacks(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    settings = {"queue.max_messages": BOUND, "intake.max_payload_bytes": 10_000}
    upload = {"batch_messages": 10}
    with on_stage(tmp_path, mosquitto, answer(503), upload=upload, settings=settings) as stage:
        stage.publish_numbered(40)
        publish_expiring(mosquitto, "too-late", 1)
        stage.publish_ids(["too-large"], filler="x" * 20_000)
        for _ in range(6):
            stage.publish_numbered(20)
        stage.wait_stored(60)
        wait_until(lambda: stage.messages["received"] == 162, what="received")
        wait_until(lambda: stage.messages["dropped"] == 161 - BOUND, what="dropped")
        waiting = stage.tried[-20:]
        stage.cloud.always(reject_ids(waiting[:3]))
        stage.wait_settled(BOUND, 20)
        counted = stage.messages
        stage.stop()
        totals = dict(stage.select("SELECT reason, messages FROM edge_loss_total"))
        assert totals == {"max_messages": counted["dropped"], "too_large": 1, "dead": 3}
        assert counted["refused"] == 1
        listed = stage.select("SELECT value FROM edge_loss, json_each(event_ids) WHERE reason <> 'too_large'")
        lacking = {*stage.tried, "too-late"} - stage.cloud.stored.keys() - {"too-large"}
        assert sorted(name for (name,) in listed) == sorted(lacking)


def test_a_message_that_expired_while_the_cloud_was_away_is_not_delivered(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with on_stage(tmp_path, mosquitto, answer(503), upload={"batch_messages": 2}) as stage:
        stage.publish_numbered(6)  # fills what is posted, looked ahead and set aside
        stage.wait_stored(6)
        publish_expiring(mosquitto, "short", 1)
        publish_expiring(mosquitto, "long", 3600)
        stage.wait_stored(8)
        uptime_seconds = stage.status["uptime_seconds"]
        wait_until(lambda: stage.status["uptime_seconds"] >= uptime_seconds + 2, what="the short one's time passed")
        stage.cloud.always()
        wait_until(lambda: "long" in stage.cloud.stored, what="delivered")
        assert stage.messages["dropped"] == 1
        assert stage.cloud.stored.keys() == {*stage.tried, "long"}
        stage.stop()
        assert stage.select("SELECT reason, event_ids FROM edge_loss") == [("expired", '["short"]')]


def reports(cloud: Cloud) -> list[dict[str, Any]]:
    events = [orjson.loads(data) for data in cloud.bodies.values()]
    return [event for event in events if event["type"] == "edge.loss.v1"]


def test_the_cloud_is_told_what_it_will_never_get_and_why(tmp_path: Path, mosquitto: Mosquitto) -> None:
    settings = {"queue.max_messages": 20, "intake.max_payload_bytes": 10_000}
    upload = {"batch_messages": 5, "report_losses": True}
    with on_stage(tmp_path, mosquitto, answer(503), upload=upload, settings=settings) as stage:
        for _ in range(5):
            stage.publish_numbered(20)
        stage.publish_ids(["too-large"], filler="x" * 20_000)
        wait_until(lambda: stage.messages["refused"] == 1, what="refused")
        dropped = stage.messages["dropped"]
        assert dropped == 80
        stage.cloud.always()
        wait_until(lambda: len(reports(stage.cloud)) == 2, what="told")
        told = {event["subject"]: event["data"] for event in reports(stage.cloud)}
        lacking = set(stage.tried) - stage.cloud.stored.keys() - {"too-large"}
        assert set(told["max_messages"].pop("ids")) == lacking
        first, last = (datetime.fromisoformat(told["max_messages"].pop(name)) for name in ("first_at", "last_at"))
        assert first <= last <= datetime.now(UTC)
        assert told["max_messages"] == {
            "reason": "max_messages",
            "messages": 80,
            "topics": {TOPIC: 80},
            "ids_complete": True,
            "ledger": told["max_messages"]["ledger"],
        }
        assert (told["too_large"]["messages"], told["too_large"]["topics"]) == (1, {TOPIC: 1})
        assert stage.messages["received"] == 101, "what the bridge itself says is not received"


def test_a_refused_report_is_dead_and_breeds_no_other(tmp_path: Path, mosquitto: Mosquitto) -> None:
    async def refuse_reports(exchange: Exchange) -> None:
        is_strange = b"edge.loss.v1" in exchange.request.body or "bad" in exchange.request.ids
        await (answer(422) if is_strange else accept())(exchange)

    with on_stage(tmp_path, mosquitto, refuse_reports, upload={"report_losses": True}) as stage:
        stage.publish_ids(["bad"])
        wait_until(lambda: stage.status["queue"]["dead"] == 2, what="both refused")
        requests = len(stage.cloud.requests)
        uptime_seconds = stage.status["uptime_seconds"]
        wait_until(lambda: stage.status["uptime_seconds"] > uptime_seconds + 4, what="more than an interval")
        assert len(stage.cloud.requests) == requests
        assert stage.messages["dead"] == 1
        stage.stop()
        assert stage.select("SELECT reason, messages FROM edge_loss_total") == [("dead", 1)]
        assert stage.select("SELECT reason FROM edge_dead") == [("refused",), ("refused",)]
