"""Whatever is lost is counted once and told: the status, the ledger and what the cloud lacks are the same (I9)."""

from __future__ import annotations

from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.harness import wait_until
from tests.harness.cloud import answer, reject_ids
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
        wait_until(lambda: stage.status["queue"]["ready"] + stage.status["queue"]["taken"] == 0, what="drained")
        wait_until(lambda: stage.messages["dead"] == 3, what="dead")
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
