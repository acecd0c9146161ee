"""Publishers that know exactly what they were promised: every message tried and every PUBACK received is kept.

MQTT 3.1.1 by hand over asyncio streams, because the tests need a witness that shares no code with the bridge, and
one that is faster than it. After a test, `lost = confirmed - stored` and `unexpected = stored - tried`.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from tests.harness import LoopThread

CONNACK, PUBLISH, PUBACK, PINGRESP = 0x20, 0x30, 0x40, 0xD0
PACKET_ID_MAX = 65_535
RECONNECT_SECONDS = 0.05
CONNECT_SECONDS = 5
PACE_SECONDS = 0.005  # a sleep is never shorter than some milliseconds, so messages go in small bursts

Payload = Callable[[int], tuple[str, bytes]]
"""Message number → the id it goes by in the ledger, and the payload."""


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def _packet(first_byte: int, body: bytes) -> bytes:
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([first_byte]) + bytes(digits) + body


def publish_packet(topic: str, payload: bytes, packet_id: int, *, qos: int = 1, dup: bool = False) -> bytes:
    """Return one PUBLISH; QoS 0 packets carry no packet id."""
    packet_id_bytes = struct.pack(">H", packet_id) if qos else b""
    return _packet(PUBLISH | qos << 1 | dup << 3, _text(topic) + packet_id_bytes + payload)


class Wire:
    """One MQTT 3.1.1 connection of a publisher."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, client_id: str, *, username: str | None = None, password: str | None = None) -> Wire:
        """Connect and read the CONNACK; ConnectionRefusedError with its code when the broker says no."""
        flags = 0x02 | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
        credentials = b"".join(_text(value) for value in (username, password) if value is not None)
        hello = _packet(0x10, _text("MQTT") + bytes([4, flags, 0, 0]) + _text(client_id) + credentials)
        async with asyncio.timeout(CONNECT_SECONDS):
            wire = cls(*await asyncio.open_connection("127.0.0.1", port))
            try:
                wire.writer.write(hello)
                kind, body = await wire.read()
            except BaseException:  # also a broker that hangs up instead of an answer
                wire.close()
                raise
        if kind != CONNACK or body[1]:
            wire.close()
            raise ConnectionRefusedError(f"CONNACK {body.hex()}")
        return wire

    async def read(self) -> tuple[int, bytes]:
        """Return the next packet's type and body."""
        kind = (await self.reader.readexactly(1))[0] & 0xF0
        length = shift = 0
        while True:
            digit = (await self.reader.readexactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                return kind, await self.reader.readexactly(length)

    def close(self) -> None:
        """End at once: a transport that waits for its buffer to empty would outlive its loop."""
        self.writer.transport.abort()

    async def disconnect(self) -> None:
        self.writer.write(_packet(0xE0, b""))
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class LedgerPublisher:
    """Publishes at QoS 1 from a thread of its own and keeps the ledger; unconfirmed messages go again after a loss.

    `window` messages wait for their PUBACK at most. It ends by itself once `count` messages, if
    given, are confirmed; `messages_per_second` slows it down, on average. `tried` and `confirmed` hold ids and may be
    read at any time.
    """

    def __init__(  # noqa: PLR0913  a test names what it needs, the rest has sane values
        self,
        port: int,
        topic: str,
        payload: Payload,
        *,
        count: int | None = None,
        window: int = 100,
        messages_per_second: float | None = None,
        client_id: str = "ledger-publisher",
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        self.tried: set[str] = set()
        self.confirmed: set[str] = set()
        self.reconnects = -1
        self._port, self._topic, self._payload = port, topic, payload
        self._window = window
        self._interval_seconds = 1 / messages_per_second if messages_per_second else 0.0
        self._identity = (client_id, username, password)
        self._count = count
        self._sent = 0
        self._open: dict[int, tuple[str, bytes]] = {}  # packet id → (id, payload), in the order of sending
        self._room = asyncio.Event()
        self._thread = LoopThread("ledger-publisher")
        self._task: Future[None] | None = None

    def start(self) -> Self:
        self._task = self._thread.spawn(self._run())
        return self

    def finish(self, timeout_seconds: float = 60) -> None:
        """Wait until all `count` messages are confirmed."""
        assert self._task is not None
        assert self._count is not None, "without a count there is no end to wait for"
        self._task.result(timeout_seconds)

    def stop(self) -> None:
        """End at once; what is not confirmed by now stays merely tried."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _all_confirmed(self) -> bool:
        return self._sent == self._count and not self._open

    async def _run(self) -> None:
        client_id, username, password = self._identity
        self._started_at = asyncio.get_running_loop().time()
        while not self._all_confirmed:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                wire = await Wire.open(self._port, client_id, username=username, password=password)
                self.reconnects += 1
                await self._converse(wire)
                continue
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _converse(self, wire: Wire) -> None:
        for packet_id, (_, payload) in self._open.items():
            wire.writer.write(publish_packet(self._topic, payload, packet_id, dup=True))
        sending = asyncio.ensure_future(self._send(wire))
        try:
            await self._read_confirmations(wire)
            await wire.disconnect()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            wire.close()

    async def _send(self, wire: Wire) -> None:
        now = asyncio.get_running_loop().time
        while self._sent != self._count:
            while len(self._open) >= self._window:
                self._room.clear()
                await self._room.wait()
            event_id, payload = self._payload(self._sent)
            packet_id = self._sent % PACKET_ID_MAX + 1
            self._sent += 1
            self.tried.add(event_id)
            self._open[packet_id] = (event_id, payload)
            wire.writer.write(publish_packet(self._topic, payload, packet_id))
            await wire.writer.drain()
            if (early_seconds := self._sent * self._interval_seconds - (now() - self._started_at)) > PACE_SECONDS:
                await asyncio.sleep(early_seconds)

    async def _read_confirmations(self, wire: Wire) -> None:
        while not self._all_confirmed:
            kind, body = await wire.read()
            if kind == PUBACK:
                event_id, _ = self._open.pop(int.from_bytes(body[:2], "big"))
                self.confirmed.add(event_id)
                self._room.set()


async def publish_many(  # noqa: PLR0913
    port: int,
    topic: str,
    payloads: Iterable[bytes],
    *,
    qos: int = 1,
    window: int = 1000,
    client_id: str = "publish-many",
    username: str | None = None,
    password: str | None = None,
) -> int:
    """Publish everything on one connection and return how many went out, all confirmed where qos is 1."""
    wire = await Wire.open(port, client_id, username=username, password=password)
    sent = confirmed = 0
    try:
        for sent, payload in enumerate(payloads, start=1):  # the last number is the result
            wire.writer.write(publish_packet(topic, payload, (sent - 1) % PACKET_ID_MAX + 1, qos=qos))
            while qos and sent - confirmed >= window:
                confirmed += (await wire.read())[0] == PUBACK
            await wire.writer.drain()
        while qos and confirmed < sent:
            confirmed += (await wire.read())[0] == PUBACK
        await _flush(wire)
    finally:
        wire.close()
    return sent


async def _flush(wire: Wire) -> None:
    """Make sure that the broker read everything before the connection ends: it answers a ping in order."""
    wire.writer.write(_packet(0xC0, b""))
    while (await wire.read())[0] != PINGRESP:
        pass
    await wire.disconnect()
