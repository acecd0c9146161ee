"""Promise 23: what publishers send at QoS 0 while the bridge is away is kept with the shipped broker options only.

While the bridge is there a QoS 0 message is as good as any once the broker has it; that the broker has it, nobody
confirms to its publisher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import figures, wait_until
from tests.harness.cloud import Cloud
from tests.harness.cloud_stage import TOPIC, CloudStage, payload
from tests.harness.mosquitto import Mosquitto
from tests.harness.publisher import publish_many

AWAY = [f"away-{number}" for number in range(200)]
OPTIONS = ("queue_qos0_messages", "upgrade_outgoing_qos")


@contextmanager
def on_stage(folder: Path, options: Mapping[str, str], protocol: str = "5") -> Iterator[tuple[Mosquitto, CloudStage]]:
    with (
        Mosquitto(folder / "mosquitto", options=dict(options)) as broker,
        Cloud() as cloud,
        CloudStage(folder / "stage", broker, cloud, settings={"mqtt.protocol": protocol}) as stage,
    ):
        yield broker, stage


def arrived_of(broker: Mosquitto, stage: CloudStage, ids: list[str]) -> list[str]:
    """Publish these at QoS 0 while the bridge is away; return those that came, once a later message has come too."""
    stage.stop()
    asyncio.run(publish_many(broker.port, TOPIC, map(payload, ids), qos=0))
    stage.start()
    (after,) = stage.publish_numbered(1)  # at QoS 1; rows leave in order of arrival
    wait_until(lambda: after in stage.cloud.stored, what="the later message")
    assert stage.cloud.arrivals[-1] == after
    return [event_id for event_id in stage.cloud.arrivals if event_id != after]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_with_the_shipped_options_all_are_kept(tmp_path: Path, mosquitto_installed: None, protocol: str) -> None:
    with on_stage(tmp_path, {}, protocol) as (broker, stage):
        arrived = arrived_of(broker, stage, AWAY)
        figures.count(published=len(AWAY), kept=len(arrived))
        assert arrived == AWAY


def test_without_them_all_are_lost_and_nobody_is_told(tmp_path: Path, mosquitto_installed: None) -> None:
    with on_stage(tmp_path, dict.fromkeys(OPTIONS, "false")) as (broker, stage):
        assert arrived_of(broker, stage, AWAY) == []
        assert sum(stage.messages[fate] for fate in ("dropped", "refused", "dead")) == 0
        assert stage.status["state"] == "online"


def test_while_the_bridge_is_there_none_is_lost_without_them(tmp_path: Path, mosquitto_installed: None) -> None:
    with on_stage(tmp_path, dict.fromkeys(OPTIONS, "false")) as (broker, stage):
        asyncio.run(publish_many(broker.port, TOPIC, map(payload, AWAY), qos=0))
        (after,) = stage.publish_numbered(1)
        wait_until(lambda: after in stage.cloud.stored, what="the later message")
        assert stage.cloud.arrivals == [*AWAY, *stage.tried]
