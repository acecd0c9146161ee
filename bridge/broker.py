"""The broker's end: the one place that knows paho-mqtt.

paho keeps connection, session, TLS, keep-alive, subscribe and publish; it is driven by the event loop's readers, so
there is no network thread that could die in silence. PUBLISH packets do not go through paho: a thin socket wrapper
(`_Lane`) reads large pieces, `wire.Splitter` takes the publishes out, and paho is given every other packet as it
came. If this paho is not built the way the lane needs, reading falls back to paho's own, slower.

It never stores and never decides what is confirmed; it sees to it that a confirmation is written only on the
connection that the message came on (`epoch`), in the order given (I1), and that the loop never waits for the
network (I7): connecting, which blocks for DNS, TCP and TLS, happens in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - looking a host up needs it; once no descriptor is free it cannot be loaded
import select
import socket
import ssl
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from bridge.backoff import delay_seconds
from bridge.errors import FaultError, OperatorError
from bridge.events import BrokerConnected, BrokerLost, Emit, SubscriptionGranted, SubscriptionRefused
from bridge.liveness import IDLE
from bridge.message import Publish, Request
from bridge.status import Will
from bridge.wire import Item, MalformedError, Splitter, TooLarge, puback, pubacks

if TYPE_CHECKING:
    from bridge.config import MqttSettings, TlsSettings
    from bridge.environment import BrokerAddress, Tls

_READ_BYTES = 256 * 1024
_TURN_BYTES = 256 * 1024  # read in a row, then the loop's other tasks have their turn
# Under load reading waits that long for more: larger pieces cost each message less, and intake lingers anyway.
_GATHER_BYTES, _GATHER_SECONDS = 4096, 0.002
_RETRY_MIN_SECONDS, _RETRY_MAX_SECONDS = 0.5, 20.0  # promise 18: back within 30 s
_CONNECT_SECONDS = 5.0  # for DNS, TCP and TLS, and again for the broker's CONNACK
_RESOLVE_SECONDS = 60.0  # what a connect may take without being a hang: a resolver alone needs 30 s for one name
_FAREWELL_SECONDS = 1.0  # for the broker to close the connection after our DISCONNECT
_PACKET_IDS, _PACKET_BYTES_MAX = 65_535, 268_435_460  # what MQTT itself allows
_UNSENT_PACKETS_MAX = 1000  # status publishes above this wait for the next round instead of piling up

Sink = Callable[[Sequence[Publish | TooLarge], int], None]


class _Lane:
    """What paho takes for its socket: hands it whole packets that are not for us, and sends for it."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self._for_paho = bytearray()
        self.ended = False
        self.stays_open = False  # whoever sets it closes by `drain`

    def read(self) -> bytes | None:
        """Return what there is, b"" at the end, None if nothing has come."""
        try:
            return bytes(self.sock.recv(_READ_BYTES))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            return b""

    def read_all(self) -> tuple[bytes, bool]:
        """Return all that there is, as one piece (TLS gives 16 KiB at a time), and whether it was the last."""
        pieces: list[bytes] = []
        size_bytes = 0
        while size_bytes < _TURN_BYTES and (piece := self.read()) is not None:
            if not piece:
                return b"".join(pieces), True
            pieces.append(piece)
            size_bytes += len(piece)
        return b"".join(pieces), False

    def give(self, packet: bytes) -> None:
        self._for_paho += packet

    def recv(self, size: int) -> bytes:
        if not self._for_paho:
            if self.ended:
                return b""
            raise BlockingIOError
        piece = bytes(self._for_paho[:size])
        del self._for_paho[:size]
        return piece

    def send(self, packet: bytes) -> int:
        return int(self.sock.send(packet))

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the socket's signature
        self.sock.setblocking(flag)

    def close(self) -> None:
        if not self.stays_open:
            self.sock.close()

    def drain(self) -> None:
        """Read to the end what nobody wants any more, then close. Blocks for up to a second.

        A socket closed with bytes unread resets the connection: the broker would never see our last confirmations
        and our farewell, and publish the will.
        """
        deadline = time.monotonic() + _FAREWELL_SECONDS
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline and (piece := self.read()) != b"":
                if piece is None:
                    select.select([self.sock], [], [], 0.05)
        self.sock.close()


class _LaneClient(paho.Client):
    """paho's client with the lane put between it and its socket (TCP, Unix, TLS and WebSocket alike)."""

    def _create_socket(self) -> Any:
        return _Lane(super()._create_socket())

    def _create_socket_connection(self) -> Any:
        sock = super()._create_socket_connection()
        # We write in pieces as large as there is anything to write; waiting for more (Nagle) would hold each second
        # one back until the other side's delayed ACK, some 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def lane_fits() -> bool:
    """Tell whether the installed paho has the private parts that the lane stands on."""
    names = ("_create_socket", "_create_socket_connection", "_packet_queue")
    return all(callable(getattr(paho.Client, name, None)) for name in names)


class Broker:
    """One MQTT connection that is kept up: `run()` until `farewell()`. All calls on the event loop's thread.

    `sink` gets what arrives, with the epoch of its connection. `filters` are subscribed at every connect, each
    answered for by its own event; `former_filters` are unsubscribed (a persistent session remembers them).
    """

    def __init__(  # noqa: PLR0913 - named, and most have a default
        self,
        settings: MqttSettings | BrokerAddress,
        *,
        client_id: str,
        sink: Sink,
        emit: Emit,
        random: Callable[[], float],
        filters: Sequence[str] = (),
        former_filters: Sequence[str] = (),
        will: Will | None = None,
        persistent: bool = True,
        payload_bytes_max: int = 1 << 20,
        on_session: Callable[[bool], None] = lambda _: None,
        fast: bool = True,
    ) -> None:
        self.settings, self._sink, self._emit, self._random = settings, sink, emit, random
        self._filters, self._former_filters = tuple(filters), tuple(former_filters)
        self._payload_bytes_max = payload_bytes_max
        self._on_session = on_session
        self._mqtt5 = settings.protocol == "5"
        self._persistent = persistent
        self._fast = fast and lane_fits()
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self.epoch = 0
        self.connected = False
        self._answered, self.subscribed = asyncio.Event(), asyncio.Event()
        self._connects = 0
        self._reading_paused = False
        self._said_farewell = False
        self._fd = -1
        self._arrived: list[Publish | TooLarge] = []
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._refusal = ""
        self.due = IDLE  # when `run` moves again, on the monotonic clock
        self._client = self._make_client(client_id, will)

    # --- what the flows ask ------------------------------------------------------------------------------------

    def confirm(self, packet_ids: list[int], epoch: int) -> bool:
        """Send PUBACKs, in this order, if the connection they came on still stands; else tell so.

        A confirmation that crossed a reconnect could confirm a different message under the same packet id.
        """
        if epoch != self.epoch or not self.connected:
            return False
        if self._fast:
            self._client._packet_queue(paho.PUBACK, pubacks(packet_ids), 0, 0)  # noqa: SLF001 - see lane_fits()
        else:
            for packet_id in packet_ids:
                self._client.ack(packet_id, 1)
        self._client.loop_write()
        return True

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Publish at QoS 0, now or never: False if there is no connection or it is backed up."""
        if not self._has_room:
            return False
        self._client.publish(topic, payload, qos=0, retain=retain)
        self._client.loop_write()
        return True

    def send(self, packets: bytes) -> bool:
        """Write whole packets of MQTT 5 in one piece; False if there is no connection, or it is backed up."""
        if not self._fast or not self._mqtt5 or not self._has_room:
            return False
        self._client._packet_queue(paho.PUBACK, packets, 0, 0)  # noqa: SLF001 - see lane_fits()
        self._client.loop_write()
        return True

    @property
    def _has_room(self) -> bool:
        return self.connected and len(self._client._out_packet) <= _UNSENT_PACKETS_MAX  # noqa: SLF001

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel's buffers, so that the broker is held back by TCP itself."""
        if not self._reading_paused:
            self._reading_paused = True
            self._watch_reading(False)

    def resume_reading(self) -> None:
        """Read on."""
        if self._reading_paused:
            self._reading_paused = False
            self._watch_reading(True)

    # --- the life of the connection ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, hold, and connect again with full jitter, until `farewell`. Raises what the sink raised."""
        attempt = 0
        while True:
            error = await self.connect()
            if not error:
                attempt = 0
                error = await self.hold()
            if self._said_farewell:
                return
            retry_seconds = delay_seconds(attempt, self._random(), _RETRY_MIN_SECONDS, _RETRY_MAX_SECONDS)
            attempt += 1
            self._emit(BrokerLost(error, retry_seconds))
            self.due = time.monotonic() + retry_seconds
            await asyncio.sleep(retry_seconds)

    async def connect(self) -> str:
        """Make one connection, up to the CONNACK; returns "" or why it could not be made."""
        self.epoch += 1
        self.due = time.monotonic() + _RESOLVE_SECONDS
        self._refusal = ""
        self._lost = self._loop.create_future()
        try:
            await asyncio.to_thread(self._client.reconnect)
        except (OSError, ValueError) as error:  # ValueError: a certificate for another host
            return f"cannot connect to {self._where()}: {_words(error)}"
        self.due = time.monotonic() + _CONNECT_SECONDS
        self._fd = self._client.socket().fileno()  # type: ignore[union-attr] # just connected
        self._splitter = Splitter(mqtt5=self._mqtt5, payload_bytes_max=self._payload_bytes_max)
        self._loop.add_reader(self._fd, self._guarded, self._on_readable)
        self._loop.add_writer(self._fd, self._guarded, self._on_writable)
        self._reading_paused = False
        ready: asyncio.Future[Any] = asyncio.ensure_future(self._answered.wait())
        try:
            await asyncio.wait(
                [ready, cast("asyncio.Future[Any]", self._lost)],
                timeout=_CONNECT_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ready.cancel()
        if self._lost.done():
            return self._lost.result()
        if not self.connected:
            self._drop("no answer to CONNECT")
            return f"{self._where()} does not answer like an MQTT broker"
        return ""

    async def hold(self) -> str:
        """Keep the connection until it is lost; returns why."""
        while not self._lost.done():
            self.due = time.monotonic() + 1.0
            await asyncio.wait([self._lost], timeout=1.0)
            if self._reading_paused:
                # No answer to a ping can be seen now, so its absence means nothing; the broker must see pings still.
                self._client._ping_t = 0.0  # noqa: SLF001
            if not self._lost.done():
                self._guarded(self._client.loop_misc)
        return self._lost.result()

    async def farewell(self) -> None:
        """Disconnect in order, so that the broker does not publish the will; waits until it has heard us."""
        self._said_farewell = True
        lane: Any = self._client.socket()
        if self.connected:
            if isinstance(lane, _Lane):
                lane.stays_open = True
            self._client.disconnect()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await asyncio.shield(self._lost)
        self._drop("stopped")
        if isinstance(lane, _Lane) and lane.stays_open:
            await asyncio.to_thread(lane.drain)

    # --- paho's side -------------------------------------------------------------------------------------------

    def _make_client(self, client_id: str, will: Will | None) -> paho.Client:
        settings = self.settings
        kind = _LaneClient if self._fast else paho.Client
        client = kind(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._mqtt5 else not self._persistent,
            protocol=paho.MQTTv5 if self._mqtt5 else paho.MQTTv311,
            transport=str(settings.transport),  # type: ignore[arg-type] # one of tcp, unix, websockets
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_SECONDS
        client.max_inflight_messages_set(20)
        if settings.username:
            password = settings.password
            client.username_pw_set(settings.username, password.get_secret_value() if password else None)
        if settings.tls.enabled:
            client.tls_set_context(_tls_context(settings.tls))
        if will:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        client.on_socket_register_write = self._on_want_write
        client.on_socket_unregister_write = self._on_no_more_to_write
        client.on_socket_close = self._on_socket_close
        client.connect_async(
            settings.host,
            settings.port,
            keepalive=int(settings.keepalive_seconds),
            clean_start=not self._persistent if self._mqtt5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=self._connect_properties() if self._mqtt5 else None,
        )
        return client

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = self.settings.receive_maximum
        if self._persistent:
            properties.SessionExpiryInterval = int(self.settings.session_expiry_seconds)
        return properties

    def _on_connect(self, _client: Any, _user: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = f"{self._where()} refused the connection: {reason}"
            return
        self.connected = True
        self._answered.set()
        self._session_present = bool(flags.session_present)
        self._on_session(self._session_present)
        if self._former_filters:
            self._client.unsubscribe(list(self._former_filters))
        if self._filters:
            self._client.subscribe([self._subscription(topic_filter) for topic_filter in self._filters])
        else:
            self._ready()

    def _subscription(self, topic_filter: str) -> Any:
        if not self._mqtt5:
            return topic_filter, int(self.settings.qos)
        # Retained messages only with a new subscription, not again after each reconnect.
        retain = (
            SubscribeOptions.RETAIN_SEND_IF_NEW_SUB if self._persistent else SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
        )
        return topic_filter, SubscribeOptions(qos=int(self.settings.qos), retainHandling=retain)

    def _on_subscribe(self, _client: Any, _user: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        for topic_filter, reason in zip(self._filters, reasons, strict=False):
            if reason.is_failure:
                self._emit(SubscriptionRefused(topic_filter, str(reason)))
            else:
                self._emit(SubscriptionGranted(topic_filter, int(reason.value), int(self.settings.qos)))
        self._ready()

    def _ready(self) -> None:
        self._emit(BrokerConnected(session_present=self._session_present, reconnects=self._connects))
        self._connects += 1
        self.subscribed.set()

    def _on_disconnect(self, _client: Any, _user: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            why = f"{self._where()} ended the connection: {reason}"
        elif reason == "Keep alive timeout":
            why = f"{self._where()} has not answered for {int(self.settings.keepalive_seconds)} s"
        else:  # paho has no better words for it than "Unspecified error"
            why = f"the connection to {self._where()} broke"
        self._lose(self._refusal or why)

    def _on_message(self, _client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        """Take what paho read itself (the slow lane)."""
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = message._topic.decode("utf-8", "backslashreplace")  # noqa: SLF001 - the public name raises
        packet_id = message.mid if message.qos else 0
        payload = bytes(message.payload)
        if len(payload) > self._payload_bytes_max:
            self._arrived.append(TooLarge(topic, packet_id, len(payload)))
            return
        properties = message.properties
        user = dict(reversed(getattr(properties, "UserProperty", []) or []))
        content_type = getattr(properties, "ContentType", None)
        expiry_seconds = getattr(properties, "MessageExpiryInterval", None)
        response_topic, mark = getattr(properties, "ResponseTopic", ""), getattr(properties, "CorrelationData", None)
        request = Request(response_topic, mark or b"", user.get("receipt") == "delivered")
        known = (user.get("id") or None, content_type, expiry_seconds, request if response_topic or mark else None)
        self._arrived.append(Publish(topic, payload, packet_id, bool(message.dup), *known))

    # --- the event loop's side ---------------------------------------------------------------------------------

    def _guarded(self, act: Callable[[], Any]) -> None:
        """Let an exception in a callback end `run()` loudly instead of leaving a connection nobody reads."""
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - the top of the callback; run() raises it
            if not self._lost.done():
                self._lost.set_exception(error)
            self._drop("stopped by an error")

    def _on_readable(self) -> None:
        lane: Any = self._client.socket()
        if not self._fast:
            self._read_slowly(lane)
            return
        if not isinstance(lane, _Lane) or self._reading_paused:
            return
        piece, ended = lane.read_all()
        if piece:
            self._take_apart(lane, piece)
        if not self._is_current(lane):
            return
        if ended:
            lane.ended = True
            self._take_apart(lane, b"")
        elif len(piece) >= _GATHER_BYTES:
            self._watch_reading(False)
            self._loop.call_later(_GATHER_SECONDS, self._guarded, partial(self._read_on, lane))

    def _read_on(self, lane: object) -> None:
        """Watch again, and look at once: a TLS or WebSocket layer may hold more than the kernel knows of."""
        if self._is_current(lane) and not self._reading_paused:
            self._watch_reading(True)

    def _is_current(self, lane: object) -> bool:
        return lane is self._client.socket()

    def _read_slowly(self, sock: Any) -> None:
        epoch = self.epoch
        self._client.loop_read()
        while sock is self._client.socket() and getattr(sock, "pending", int)() > 0:
            self._client.loop_read()
        self._hand_over(epoch)

    def _take_apart(self, lane: _Lane, piece: bytes) -> None:
        epoch = self.epoch
        try:
            items: list[Item] = self._splitter.feed(piece) if piece else [b""]
        except MalformedError as error:
            self._refusal = f"{self._where()} sent what is not MQTT: {error}"
            items, lane.ended = [b""], True
        for item in items:
            if isinstance(item, bytes):
                self._pass_on(lane, item)
            else:
                self._arrived.append(item)
        self._hand_over(epoch)

    def _pass_on(self, lane: _Lane, packet: bytes) -> None:
        lane.give(packet)
        self._client.loop_read()

    def _hand_over(self, epoch: int) -> None:
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._sink(arrived, epoch)

    def _on_writable(self) -> None:
        self._client.loop_write()

    def _on_want_write(self, _client: Any, _user: Any, _sock: Any) -> None:
        if threading.get_ident() == self._thread_id and self._fd >= 0:
            self._loop.add_writer(self._fd, self._guarded, self._on_writable)

    def _on_no_more_to_write(self, _client: Any, _user: Any, _sock: Any) -> None:
        if threading.get_ident() == self._thread_id and self._fd >= 0:
            self._loop.remove_writer(self._fd)

    def _on_socket_close(self, _client: Any, _user: Any, _sock: Any) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1

    def _watch_reading(self, on: bool) -> None:  # noqa: FBT001 - private, one word
        if self._fd < 0:
            return
        if on:
            self._loop.add_reader(self._fd, self._guarded, self._on_readable)
            self._loop.call_soon(self._guarded, self._on_readable)
        else:
            self._loop.remove_reader(self._fd)

    def _drop(self, why: str) -> None:
        self._client._sock_close()  # noqa: SLF001 - paho has no public way to drop a connection without a farewell
        self._lose(why)

    def _lose(self, why: str) -> None:
        self.connected = False
        self._answered.clear()
        self.subscribed.clear()
        self.epoch += 1
        if not self._lost.done():
            self._lost.set_result(why)

    def _where(self) -> str:
        settings = self.settings
        return settings.host if settings.transport == "unix" else f"{settings.host}:{settings.port}"


async def watch_topic(settings: MqttSettings | BrokerAddress, topic: str) -> AsyncGenerator[bytes, None]:
    """Yield every payload of a topic, the retained one first, over a connection of its own.

    Raises OperatorError if the broker refuses us, FaultError if it cannot be reached or goes away.
    """
    arrived: asyncio.Queue[bytes] = asyncio.Queue(1000)
    refused: list[str] = []

    def sink(messages: Sequence[Publish | TooLarge], _epoch: int) -> None:
        for message in messages:
            if isinstance(message, Publish) and not arrived.full():
                arrived.put_nowait(message.payload)

    def emit(event: Any) -> None:
        if isinstance(event, SubscriptionRefused):
            refused.append(f"the broker refused the subscription to {event.topic_filter}: {event.reason}")

    client_id = f"edge-bridge-watch-{uuid.uuid4().hex[:8]}"
    broker = Broker(
        settings, client_id=client_id, sink=sink, emit=emit, random=lambda: 0.0, filters=[topic], persistent=False
    )
    error = await broker.connect()
    if not error:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                await broker.subscribed.wait()
    if error or refused:
        await broker.farewell()
        hint = "check mqtt.host, mqtt.port, mqtt.username and mqtt.password"
        raise OperatorError(refused[0], hint) if refused else FaultError(error, hint)
    holding = asyncio.ensure_future(broker.hold())
    try:
        while True:
            getting = asyncio.ensure_future(arrived.get())
            await asyncio.wait({getting, holding}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                raise FaultError(holding.result(), "is the broker still running?")
            yield getting.result()
    finally:
        holding.cancel()
        await broker.farewell()


def _tls_context(tls: TlsSettings | Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.cert:
            context.load_cert_chain(str(tls.cert), str(tls.key) if tls.key else None)
    except (OSError, ssl.SSLError) as error:
        raise OperatorError(f"mqtt.tls cannot be used: {_words(error)}", "check mqtt.tls.ca, .cert and .key") from error
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not accepted: {error.verify_message}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Publisher(Broker):
    """A connection for a producer: publishes at QoS 1, across reconnects, each message until it is confirmed."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        emit: Emit,
        random: Callable[[], float],
        sink: Sink = lambda _messages, _epoch: None,
        filters: Sequence[str] = (),
    ) -> None:
        super().__init__(
            settings, client_id=client_id, sink=sink, emit=emit, random=random, filters=filters, persistent=False
        )
        self._client.on_publish = self._on_puback
        self._room = asyncio.Semaphore(self._client.max_inflight_messages)
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}

    async def publish_confirmed(self, topic: str, payload: bytes) -> None:
        """Return when the broker has confirmed it; sent again after a reconnect. FaultError if the broker refuses."""
        async with self._room:
            sent = self._client.publish(topic, payload, qos=1)
            confirmed = self._unconfirmed[sent.mid] = self._loop.create_future()
            self._client.loop_write()
            await confirmed

    def _on_puback(self, _client: Any, _user: Any, packet_id: int, reason: ReasonCode, _properties: Any) -> None:
        confirmed = self._unconfirmed.pop(packet_id, None)
        if confirmed is None or confirmed.done():
            return
        if reason.is_failure:
            confirmed.set_exception(
                FaultError(f"{self._where()} refused a message: {reason}", "check the broker's ACL")
            )
        else:
            confirmed.set_result(None)


class Producer(Broker):
    """A connection for many QoS 1 publishes: written in one piece, their confirmations handed over as a list.

    It remembers no message: `confirmed` hears (packet id, reason code), and what was unconfirmed when a connection
    was lost is its owner's to send again. `window` and `packet_bytes_max` are what the broker allows.
    """

    def __init__(
        self,
        settings: MqttSettings | BrokerAddress,
        *,
        client_id: str,
        sink: Sink,
        emit: Emit,
        random: Callable[[], float],
        filters: Sequence[str],
        confirmed: Callable[[list[tuple[int, int]]], None],
    ) -> None:
        super().__init__(
            settings, client_id=client_id, sink=sink, emit=emit, random=random, filters=filters, persistent=False
        )
        if not self._fast:
            raise OperatorError("this version of paho-mqtt is not known", "install paho-mqtt>=2.1,<3")
        self.window, self.packet_bytes_max = _PACKET_IDS, _PACKET_BYTES_MAX
        self._confirmed = confirmed
        self._confirmations: list[tuple[int, int]] = []

    def _on_connect(self, client: Any, user: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self.window = getattr(properties, "ReceiveMaximum", _PACKET_IDS)
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", _PACKET_BYTES_MAX)
        super()._on_connect(client, user, flags, reason, properties)

    def _pass_on(self, lane: _Lane, packet: bytes) -> None:
        if packet[:1] == b"\x40":
            self._confirmations.append(puback(packet))
        else:
            super()._pass_on(lane, packet)

    def _hand_over(self, epoch: int) -> None:
        if self._confirmations:
            confirmations, self._confirmations = self._confirmations, []
            self._confirmed(confirmations)
        super()._hand_over(epoch)
