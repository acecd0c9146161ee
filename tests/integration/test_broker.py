"""The broker's end against a real Mosquitto: every transport, both protocols, both ways of reading."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.broker import Broker, lane_fits, watch_topic
from bridge.config import MqttSettings
from bridge.errors import FaultError, OperatorError
from bridge.events import BrokerConnected, BrokerLost, Event, SubscriptionGranted, SubscriptionRefused
from bridge.message import Publish
from bridge.status import Will
from bridge.wire import TooLarge, publish, string
from tests.harness import REPOSITORY, eventually, free_port
from tests.harness.mosquitto import Mosquitto
from tests.harness.proxy import TcpProxy
from tests.harness.publisher import publish_many

TOPIC = "edge/predictions/press"
LANES = [pytest.param(True, id="fast lane"), pytest.param(False, id="paho's own reading")]


class Desk:
    """Records what a broker connection delivers and says."""

    def __init__(self) -> None:
        self.messages: list[Publish | TooLarge] = []
        self.epochs: list[int] = []
        self.events: list[Event] = []

    def sink(self, messages: Sequence[Publish | TooLarge], epoch: int) -> None:
        self.messages += messages
        self.epochs += [epoch] * len(messages)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages if isinstance(message, Publish)]

    def saw(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def settings(port: object, **more: object) -> MqttSettings:
    return MqttSettings.model_validate({"port": port} | more)


@asynccontextmanager
async def running(mqtt: MqttSettings, desk: Desk, **more: Any) -> AsyncIterator[Broker]:
    options: dict[str, Any] = {"filters": ["edge/predictions/#"], "client_id": "bridge-1"} | more
    broker = Broker(mqtt, sink=options.pop("sink", desk.sink), emit=desk.events.append, random=lambda: 0.1, **options)
    task = asyncio.create_task(broker.run())
    try:
        yield broker
    finally:
        await broker.farewell()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_installed_paho_has_what_the_fast_lane_needs() -> None:
    assert lane_fits()


@pytest.mark.parametrize("fast", LANES)
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("transport", ["tcp", "unix", "websockets", "tls", "mutual tls"])
async def test_messages_arrive_and_are_confirmed_on_every_transport(
    tmp_path: Path, mosquitto_installed: None, transport: str, protocol: str, fast: bool
) -> None:
    with Mosquitto(
        tmp_path / "m",
        unix_socket=transport == "unix",
        websockets=transport == "websockets",
        tls=transport == "tls",
        mutual_tls=transport == "mutual tls",
    ) as mosquitto:
        certificates = mosquitto.certificates
        ways: dict[str, Callable[[], dict[str, object]]] = {
            "tcp": dict,
            "unix": lambda: {"transport": "unix", "host": str(mosquitto.socket_path)},
            "websockets": lambda: {"transport": "websockets", "port": mosquitto.websockets_port},
            "tls": lambda: {
                "port": mosquitto.tls_port,
                "tls": {"enabled": True, "ca": certificates and certificates.ca},
            },
            "mutual tls": lambda: {
                "port": mosquitto.tls_port,
                "tls": {
                    "enabled": True,
                    "ca": certificates and certificates.ca,
                    "cert": certificates and certificates.client,
                },
            },
        }
        mqtt = settings(**{"port": mosquitto.port, "protocol": protocol} | ways[transport]())
        desk = Desk()
        # Mosquitto hands out WebSocket frames of 4 KiB, one an acknowledgement of TCP: large ones take their time.
        large = bytes(20_000 if transport == "websockets" else 300_000)
        payloads = [b"%d" % n for n in range(20)] + [large, b"last"]
        async with running(mqtt, desk, fast=fast) as broker:
            await eventually(broker.subscribed.is_set)
            await publish_many(mosquitto.port, TOPIC, payloads)
            await eventually(lambda: len(desk.messages) == len(payloads))
            assert [m.payload for m in desk.messages if isinstance(m, Publish)] == payloads
            assert broker.confirm([m.packet_id for m in desk.messages], broker.epoch)
            # A second round needs the window that only the confirmations of the first one free.
            await publish_many(mosquitto.port, TOPIC, payloads)
            await eventually(lambda: len(desk.messages) == 2 * len(payloads))
        assert [e.topic_filter for e in desk.saw(SubscriptionGranted)] == ["edge/predictions/#"]


@pytest.mark.parametrize(("protocol", "is_sent"), [("5", True), ("3.1.1", False)])
async def test_whole_packets_are_those_of_mqtt_5(mosquitto: Mosquitto, protocol: str, is_sent: bool) -> None:
    desk = Desk()
    packet = publish(string(f"{TOPIC}/whole".encode()), b"1")
    async with running(settings(mosquitto.port, protocol=protocol), desk) as broker:
        await eventually(broker.subscribed.is_set)
        assert broker.send(packet) is is_sent
        await publish_many(mosquitto.port, TOPIC, [b"2"])
        await eventually(lambda: b"2" in desk.payloads)
    assert desk.payloads == [b"1", b"2"][not is_sent :]


@pytest.mark.parametrize("fast", LANES)
async def test_what_was_not_confirmed_comes_again_after_a_reconnect_and_only_that(
    mosquitto: Mosquitto, fast: bool
) -> None:
    desk = Desk()
    async with running(settings(mosquitto.port), desk, fast=fast) as broker:
        await eventually(broker.subscribed.is_set)
        await publish_many(mosquitto.port, TOPIC, [b"%d" % n for n in range(10)])
        await eventually(lambda: len(desk.messages) == 10)
        broker.confirm([m.packet_id for m in desk.messages[:4]], broker.epoch)
        await broker.farewell()  # it has read the confirmations: a connection that is just closed may lose them
    async with running(settings(mosquitto.port), desk, fast=fast):
        await eventually(lambda: len(desk.messages) == 16)
    again = desk.messages[10:]
    assert [(m.payload, m.dup) for m in again if isinstance(m, Publish)] == [(b"%d" % n, True) for n in range(4, 10)]
    assert [m.packet_id for m in again] == [m.packet_id for m in desk.messages[4:10]]


async def test_a_confirmation_never_crosses_a_reconnect(mosquitto: Mosquitto) -> None:
    desk = Desk()
    with TcpProxy(mosquitto.port) as proxy:
        async with running(settings(proxy.port), desk) as broker:
            await eventually(broker.subscribed.is_set)
            await publish_many(mosquitto.port, TOPIC, [b"x"])
            await eventually(lambda: desk.messages)
            old_epoch, packet_id = desk.epochs[0], desk.messages[0].packet_id
            proxy.cut()
            await eventually(lambda: broker.epoch != old_epoch)
            assert not broker.confirm([packet_id], old_epoch)
            await eventually(broker.subscribed.is_set)
            assert not broker.confirm([packet_id], old_epoch)
            await eventually(lambda: len(desk.messages) == 2)
            assert desk.epochs[1] == broker.epoch
        assert all(bytes(first[:1]) == b"\x10" for first in proxy.first_bytes), "each connection begins with CONNECT"


async def test_refused_credentials_are_said_in_words(tmp_path: Path, mosquitto_installed: None) -> None:
    with Mosquitto(tmp_path / "m", users={"bridge": "right"}) as mosquitto:
        desk = Desk()
        async with running(settings(mosquitto.port, username="bridge", password="wrong"), desk):
            await eventually(lambda: desk.saw(BrokerLost))
        assert "refused the connection: Not authorized" in desk.saw(BrokerLost)[0].error
        assert not desk.saw(BrokerConnected)


async def test_a_refused_filter_is_named_and_the_others_work(tmp_path: Path, mosquitto_installed: None) -> None:
    with Mosquitto(tmp_path / "m", refused_filters=("secret/#",)) as mosquitto:
        desk = Desk()
        async with running(settings(mosquitto.port), desk, filters=["secret/#", "edge/predictions/#"]) as broker:
            await eventually(broker.subscribed.is_set)
            await publish_many(mosquitto.port, TOPIC, [b"x"])
            await eventually(lambda: desk.messages)
        assert [e.topic_filter for e in desk.saw(SubscriptionRefused)] == ["secret/#"]
        assert [e.topic_filter for e in desk.saw(SubscriptionGranted)] == ["edge/predictions/#"]


async def test_an_unreachable_broker_is_said_in_words_and_tried_again() -> None:
    desk = Desk()
    async with running(settings(free_port()), desk):
        await eventually(lambda: len(desk.saw(BrokerLost)) > 1)
    assert "Connection refused" in desk.saw(BrokerLost)[0].error


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.broker._CONNECT_SECONDS", 0.3)
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _r, w: held.append(w), "127.0.0.1", 0)
    desk = Desk()
    async with running(settings(server.sockets[0].getsockname()[1]), desk):
        await eventually(lambda: desk.saw(BrokerLost))
    assert "does not answer like an MQTT broker" in desk.saw(BrokerLost)[0].error
    for writer in held:
        writer.close()
    server.close()


@pytest.mark.parametrize("fast", LANES)
async def test_an_exception_in_the_sink_ends_run_loudly(mosquitto: Mosquitto, fast: bool) -> None:
    def sink(_messages: Sequence[Publish | TooLarge], _epoch: int) -> None:
        raise ZeroDivisionError("a defect")

    desk = Desk()
    broker = Broker(
        settings(mosquitto.port),
        client_id="bridge-1",
        sink=sink,
        emit=desk.events.append,
        random=lambda: 0.1,
        filters=["edge/predictions/#"],
        fast=fast,
    )
    task = asyncio.create_task(broker.run())
    await eventually(broker.subscribed.is_set)
    await publish_many(mosquitto.port, TOPIC, [b"x"])
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(task, 1.0)
    assert not broker.connected


@pytest.mark.parametrize("fast", LANES)
async def test_a_publish_above_the_limit_is_reported_without_its_payload(mosquitto: Mosquitto, fast: bool) -> None:
    desk = Desk()
    async with running(settings(mosquitto.port), desk, fast=fast, payload_bytes_max=1000) as broker:
        await eventually(broker.subscribed.is_set)
        await publish_many(mosquitto.port, TOPIC, [bytes(900_000), b"next"])
        await eventually(lambda: len(desk.messages) == 2)
    assert isinstance(desk.messages[0], TooLarge)
    assert desk.messages[0].topic == TOPIC
    assert desk.messages[0].packet_id > 0


async def test_while_reading_is_paused_nothing_arrives_and_then_everything(mosquitto: Mosquitto) -> None:
    desk = Desk()
    async with running(settings(mosquitto.port), desk) as broker:
        await eventually(broker.subscribed.is_set)
        broker.pause_reading()
        await publish_many(mosquitto.port, TOPIC, [b"%d" % n for n in range(100)])
        assert desk.messages == []
        broker.resume_reading()
        await eventually(lambda: len(desk.messages) == 100)


async def test_filters_of_an_earlier_configuration_are_unsubscribed(mosquitto: Mosquitto) -> None:
    desk = Desk()
    async with running(settings(mosquitto.port), desk, filters=["old/#"]) as broker:
        await eventually(broker.subscribed.is_set)
    async with running(settings(mosquitto.port), desk, filters=["new/#"], former_filters=["old/#"]) as broker:
        await eventually(broker.subscribed.is_set)
        await publish_many(mosquitto.port, "old/1", [b"old"])
        await publish_many(mosquitto.port, "new/1", [b"new"])
        await eventually(lambda: desk.messages)
        assert [m.topic for m in desk.messages] == ["new/1"]


async def test_the_will_is_published_when_the_connection_dies_and_not_after_a_farewell(mosquitto: Mosquitto) -> None:
    will = Will("edge/buffer/status/state", b"offline")
    watch = watch_topic(settings(mosquitto.port), will.topic)
    with TcpProxy(mosquitto.port) as proxy:
        async with running(settings(proxy.port), Desk(), will=will) as broker:
            await eventually(broker.subscribed.is_set)
            assert broker.publish(will.topic, b"online", retain=True)
            assert await anext(watch) == b"online"
            epoch = broker.epoch
            proxy.cut()
            assert await anext(watch) == b"offline"
            await eventually(lambda: broker.epoch != epoch and broker.subscribed.is_set())
            broker.publish(will.topic, b"goodbye", retain=True)
            assert await anext(watch) == b"goodbye"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.3)


def test_a_host_can_be_looked_up_without_a_free_descriptor() -> None:
    looking = (
        "import bridge.broker, resource, socket; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3));"
        "print(socket.getaddrinfo('127.0.0.1', 1883)[0][4])"
    )
    done = subprocess.run([sys.executable, "-c", looking], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.stdout == "('127.0.0.1', 1883)\n", done.stderr


async def test_watching_a_topic_without_a_broker_says_so() -> None:
    with pytest.raises(FaultError, match=r"cannot connect to 127\.0\.0\.1"):
        await anext(watch_topic(settings(free_port()), "a/b"))


async def test_watching_a_topic_that_is_refused_says_so(tmp_path: Path, mosquitto_installed: None) -> None:
    refused = pytest.raises(OperatorError, match="refused the subscription to edge/buffer/status")
    with Mosquitto(tmp_path / "m", refused_filters=("edge/buffer/status",)) as mosquitto:
        with refused:
            await anext(watch_topic(settings(mosquitto.port), "edge/buffer/status"))
        gone = re.compile(r"Client edge-bridge-watch-\w+ disconnected")
        await eventually(lambda: gone.search(mosquitto.log), what="it leaves no connection behind")


async def test_publishing_without_a_connection_is_refused_and_not_kept() -> None:
    desk = Desk()
    broker = Broker(settings(free_port()), client_id="x", sink=desk.sink, emit=desk.events.append, random=lambda: 0.1)
    assert not broker.publish("a", b"b", retain=False)
