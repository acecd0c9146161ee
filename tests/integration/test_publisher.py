"""`broker.Publisher` against a real Mosquitto: a message is confirmed when the broker has it, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from bridge.broker import Publisher, watch_topic
from bridge.config import MqttSettings
from bridge.errors import FaultError
from tests.harness import eventually
from tests.harness.mosquitto import Mosquitto

TOPIC = "edge/predictions/press-1"


@asynccontextmanager
async def publishing(port: int, protocol: str = "5") -> AsyncIterator[Publisher]:
    settings = MqttSettings.model_validate({"port": port, "protocol": protocol})
    publisher = Publisher(settings, client_id="cameras", emit=lambda _event: None, random=lambda: 0.1)
    running = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        await publisher.farewell()
        await running


async def collect(port: int, seen: set[bytes]) -> None:
    async with aclosing(watch_topic(MqttSettings(port=port), TOPIC)) as publications:
        async for payload in publications:
            seen.add(payload)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_each_confirmed_message_is_at_the_broker(mosquitto: Mosquitto, protocol: str) -> None:
    wanted = {str(number).encode() for number in range(500)}
    seen: set[bytes] = set()
    collecting = asyncio.create_task(collect(mosquitto.port, seen))
    async with publishing(mosquitto.port, protocol) as publisher, asyncio.timeout(10):
        while not seen:  # until the subscription stands
            await publisher.publish_confirmed(TOPIC, b"is anybody there?")
        await asyncio.gather(*(publisher.publish_confirmed(TOPIC, payload) for payload in wanted))
        await eventually(lambda: seen >= wanted, what="all 500 arrive")
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)


async def test_nothing_is_confirmed_without_a_broker_and_all_of_it_when_it_comes(mosquitto: Mosquitto) -> None:
    async with publishing(mosquitto.port) as publisher:
        await publisher.publish_confirmed(TOPIC, b"before")
        mosquitto.stop()
        await eventually(lambda: not publisher.connected)
        waiting = [asyncio.create_task(publisher.publish_confirmed(TOPIC, b"%d" % number)) for number in range(100)]
        await asyncio.wait(waiting, timeout=0.2)
        assert not any(task.done() for task in waiting)
        mosquitto.start()
        async with asyncio.timeout(30):
            await asyncio.gather(*waiting)


async def test_a_message_that_the_acl_forbids_is_an_error_and_no_confirmation(
    tmp_path: Path, mosquitto_installed: None
) -> None:
    with Mosquitto(tmp_path / "mosquitto", acl="topic read #\n") as broker:
        async with publishing(broker.port) as publisher:
            with pytest.raises(FaultError, match="refused a message: Not authorized"):
                await publisher.publish_confirmed(TOPIC, b"forbidden")
