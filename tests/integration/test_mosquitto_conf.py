"""The shipped mosquitto.conf and ACL do what their comments say (promises 18 and 21, the broker's share)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from tests.harness import eventually, free_port, wait_until
from tests.harness.mosquitto import Mosquitto
from tests.harness.publisher import LedgerPublisher, Wire, publish_many

TOPIC = "edge/predictions"
SAVE_SECONDS = 2  # the window that mosquitto.conf states
USERS = {"bridge": "b", "producer": "p", "press-4": "4"}


class Session:
    """A persistent MQTT 3.1.1 session on the predictions, as a bridge would have one."""

    def __init__(self, port: int, *, username: str | None = None, topics: tuple[str, ...] = (f"{TOPIC}/#",)) -> None:
        self.payloads: list[bytes] = []
        self._port, self._username, self._topics = port, username, topics

    def connect(self) -> None:
        granted = threading.Event()
        self._paho = paho.Client(CallbackAPIVersion.VERSION2, f"session-{self._username}", clean_session=False)
        if self._username:
            self._paho.username_pw_set(self._username, USERS[self._username])
        self._paho.on_message = lambda _client, _userdata, message: self.payloads.append(bytes(message.payload))
        self._paho.on_subscribe = lambda *_: granted.set()
        self._paho.connect("127.0.0.1", self._port)
        self._paho.loop_start()
        self._paho.subscribe([(topic, 1) for topic in self._topics])
        assert granted.wait(5)

    def leave(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()


@pytest.fixture
def session(mosquitto: Mosquitto) -> Iterator[Session]:
    session = Session(mosquitto.port)
    session.connect()
    session.leave()
    yield session
    session.leave()


@pytest.fixture
def guarded(tmp_path: Path, mosquitto_installed: None) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "mosquitto", users=USERS) as broker:
        yield broker


def numbered(count: int) -> list[bytes]:
    return [b'{"number":%d,"padding":"%b"}' % (number, b"x" * 270) for number in range(count)]


async def test_a_backlog_far_beyond_the_default_thousand_is_kept_in_order(
    mosquitto: Mosquitto, session: Session
) -> None:
    sent = numbered(20_000)
    await publish_many(mosquitto.port, TOPIC, sent)
    session.connect()
    await eventually(lambda: len(session.payloads) >= len(sent), 60)
    assert session.payloads == sent


async def test_a_backlog_survives_sigkill_once_the_stated_window_has_passed(
    mosquitto: Mosquitto, session: Session
) -> None:
    sent = numbered(500)
    await publish_many(mosquitto.port, TOPIC, sent)
    published_at_ns = time.time_ns()
    saved = "saved by the clock, without another message to push it"
    await eventually(lambda: mosquitto.saved_at_ns() > published_at_ns, SAVE_SECONDS + 1.5, saved)
    mosquitto.kill()
    mosquitto.start()
    session.connect()
    await eventually(lambda: len(session.payloads) >= len(sent))
    assert session.payloads == sent


async def test_a_proper_stop_loses_nothing_not_even_within_the_window(mosquitto: Mosquitto, session: Session) -> None:
    sent = numbered(500)
    await publish_many(mosquitto.port, TOPIC, sent)
    mosquitto.restart()
    session.connect()
    await eventually(lambda: len(session.payloads) >= len(sent))
    assert session.payloads == sent


async def test_a_save_can_be_asked_for(mosquitto: Mosquitto, session: Session) -> None:
    sent = numbered(50)
    await publish_many(mosquitto.port, TOPIC, sent)
    mosquitto.save()
    mosquitto.kill()
    mosquitto.start()
    session.connect()
    await eventually(lambda: len(session.payloads) >= len(sent))
    assert session.payloads == sent


async def test_a_packet_beyond_the_bound_is_not_confirmed(mosquitto: Mosquitto) -> None:
    with pytest.raises((EOFError, ConnectionError)):
        await publish_many(mosquitto.port, TOPIC, [b"x" * 4_194_304])
    assert await publish_many(mosquitto.port, TOPIC, [b"x" * 1_048_577]) == 1


async def test_nobody_gets_in_without_a_name(guarded: Mosquitto) -> None:
    with pytest.raises(ConnectionRefusedError):
        await Wire.open(guarded.port, "stranger")
    with pytest.raises(ConnectionRefusedError):
        await Wire.open(guarded.port, "stranger", username="bridge", password="wrong")


def publish_and_read_reason(port: int, username: str, topic: str) -> str:
    """Publish one message over MQTT 5 and return the reason in its PUBACK."""
    reasons: list[ReasonCode] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.username_pw_set(username, USERS[username])
    client.on_publish = lambda _client, _userdata, _mid, reason, _properties: reasons.append(reason)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.publish(topic, b"{}", 1)
    wait_until(lambda: reasons)
    client.disconnect()
    client.loop_stop()
    return str(reasons[0])


@pytest.mark.parametrize(
    ("username", "topic", "allowed"),
    [
        ("producer", "edge/predictions", True),
        ("producer", "edge/predictions/producer/line-2", True),
        ("producer", "edge/predictions/press-4", False),
        ("producer", "edge/buffer/status", False),
        ("producer", "edge/buffer/receipts/producer/a", False),
        ("press-4", "edge/predictions/press-4", True),
        ("press-4", "edge/predictions/press-4/camera", True),
        ("press-4", "edge/predictions", False),
        ("bridge", "edge/buffer/status", True),
        ("bridge", "edge/buffer/status/queue/ready", True),
        ("bridge", "edge/buffer/receipts/press-4/a", True),
        ("bridge", "edge/predictions", False),
        ("bridge", "other", False),
    ],
)
def test_each_name_writes_its_own_topics_only(guarded: Mosquitto, username: str, topic: str, *, allowed: bool) -> None:
    expected = {"Success", "No matching subscribers"} if allowed else {"Not authorized"}
    assert publish_and_read_reason(guarded.port, username, topic) in expected


async def test_the_bridge_reads_all_data(guarded: Mosquitto) -> None:
    session = Session(guarded.port, username="bridge")
    session.connect()
    await publish_many(guarded.port, TOPIC, [b"plain"], username="producer", password="p")
    await publish_many(guarded.port, f"{TOPIC}/press-4/camera", [b"own"], username="press-4", password="4")
    await eventually(lambda: session.payloads == [b"plain", b"own"])
    session.leave()


async def test_a_producer_reads_its_own_receipts_and_nobody_elses_data(guarded: Mosquitto) -> None:
    forbidden = (f"{TOPIC}/#", "edge/buffer/receipts/producer/#", "edge/buffer/status/#")
    session = Session(guarded.port, username="press-4", topics=(*forbidden, "edge/buffer/receipts/press-4/#"))
    session.connect()
    publish_as_bridge = partial(publish_many, guarded.port, username="bridge", password="b")
    await publish_many(guarded.port, TOPIC, [b"data"], username="producer", password="p")
    await publish_as_bridge("edge/buffer/receipts/producer/a", [b"another's receipt"])
    await publish_as_bridge("edge/buffer/status/state", [b"online"])
    await publish_as_bridge("edge/buffer/receipts/press-4/a", [b"own receipt"])
    await eventually(lambda: b"own receipt" in session.payloads)
    session.leave()
    assert session.payloads == [b"own receipt"]


async def test_the_producer_reads_the_status(guarded: Mosquitto) -> None:
    session = Session(guarded.port, username="producer", topics=("edge/buffer/status/#",))
    session.connect()
    for topic in ("edge/buffer/status", "edge/buffer/status/state"):
        await publish_many(guarded.port, topic, [topic.encode()], username="bridge", password="b")
    await eventually(lambda: session.payloads == [b"edge/buffer/status", b"edge/buffer/status/state"])
    session.leave()


def test_the_ledger_publisher_survives_a_broker_restart_and_confirms_everything(mosquitto: Mosquitto) -> None:
    def payload(number: int) -> tuple[str, bytes]:
        return f"id-{number}", json.dumps({"event_id": f"id-{number}"}).encode()

    with LedgerPublisher(mosquitto.port, TOPIC, payload, count=3_000, messages_per_second=3_000) as publisher:
        wait_until(lambda: len(publisher.confirmed) > 300)
        mosquitto.restart()
        publisher.finish()
    assert publisher.reconnects == 1
    assert publisher.confirmed == publisher.tried == {f"id-{number}" for number in range(3_000)}


def test_every_other_listener_of_the_harness_listens(tmp_path: Path, mosquitto_installed: None) -> None:
    with Mosquitto(tmp_path, port=free_port(), unix_socket=True, websockets=True, mutual_tls=True) as broker:
        assert broker.certificates is not None
        for transport, port in (("unix", 0), ("websockets", broker.websockets_port), ("tcp", broker.tls_port)):
            client = paho.Client(CallbackAPIVersion.VERSION2, transport=transport)  # type: ignore[arg-type]
            if transport == "tcp":
                own = str(broker.certificates.client)
                client.tls_set(str(broker.certificates.ca), certfile=own, keyfile=own)
            client.connect(str(broker.socket_path) if transport == "unix" else "127.0.0.1", port or 1883)
            client.loop_start()
            wait_until(client.is_connected, what=transport)
            client.disconnect()
            client.loop_stop()
