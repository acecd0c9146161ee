"""A cloud that does exactly what a test says, and remembers everything: the other witness beside the publisher.

HTTP/1.1 by hand over asyncio streams, in a thread of its own, so that it can misbehave where a web server would not:
cut, drip, never end, never answer. Each request meets the next responder of the script, or the standing one when the
script is used up; by default every event is stored and answered with 200.

    with Cloud() as cloud:
        cloud.script(answer(503, {"Retry-After": "1"}), cut_after_store())
        ...
        wait_until(lambda: cloud.unique == 100)
        audit(tried, confirmed, cloud.arrivals).assert_kept(duplicates_max=10)
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple, Self

from bridge.receiver.body import Refusal, decode
from bridge.receiver.entries import Event, read
from tests.harness import LoopThread, close_server, free_port

HEAD_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 64 << 20
REBIND_SECONDS = 5


class Arrival(NamedTuple):
    """One event stored: when (monotonic), and its bytes."""

    at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came. Header names are in lower case; `raw` is the body on the wire, `body` decompressed."""

    at: float
    method: str
    target: str
    headers: Mapping[str, str]
    raw: bytes
    body: bytes
    events: tuple[tuple[str, bytes], ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(event_id for event_id, _ in self.events)

    @property
    def key(self) -> str | None:
        return self.headers.get("idempotency-key")

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request in hand: what a responder can do with it."""

    cloud: Cloud
    request: Request
    writer: asyncio.StreamWriter = field(repr=False)

    def store(self, ids: Collection[str] | None = None) -> int:
        """Put the request's events (or only these) into the ledger; return how many."""
        chosen = [(event_id, data) for event_id, data in self.request.events if ids is None or event_id in ids]
        for event_id, data in chosen:
            arrival = Arrival(time.monotonic(), data)
            if event_id in self.cloud.stored:
                self.cloud.stored[event_id].append(arrival)
            else:
                self.cloud.stored[event_id] = [arrival]  # in one step: the test's thread may look at any moment
            self.cloud.arrivals.append(event_id)
        return len(chosen)

    async def send(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send one whole answer."""
        framing = {"Content-Length": str(len(body))} | ({"Connection": "close"} if self.request.closes else {})
        await self.send_raw(_head(status, {**framing, **(headers or {})}) + body)

    async def send_raw(self, piece: bytes) -> None:
        self.writer.write(piece)
        await self.writer.drain()

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


Responder = Callable[[Exchange], Awaitable[None]]


class Cloud:
    """Listens on a free loopback port from `start` on; `stored` and `requests` are the ledger."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.port = free_port()  # of ours alone, also while it is unreachable
        self.requests: list[Request] = []
        self.stored: defaultdict[str, list[Arrival]] = defaultdict(list)
        self.arrivals: list[str] = []
        self.connections = 0
        self._host = host
        self._tls = tls
        self._script: deque[Responder] = deque()
        self._standing: Responder = accept()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread: LoopThread | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}/"

    @property
    def unique(self) -> int:
        return len(self.stored)

    @property
    def duplicates(self) -> int:
        return len(self.arrivals) - len(set(self.arrivals))

    @property
    def altered(self) -> set[str]:
        """Ids that came with more than one content."""
        return {event_id for event_id, all_of_it in self._items() if len({one.data for one in all_of_it}) > 1}

    @property
    def bodies(self) -> dict[str, bytes]:
        """The bytes of each event, as first stored."""
        return {event_id: all_of_it[0].data for event_id, all_of_it in self._items()}

    def _items(self) -> list[tuple[str, list[Arrival]]]:
        while True:
            try:
                return list(self.stored.items())
            except RuntimeError:  # the cloud's thread stored something in the middle of it
                continue

    def script(self, *responders: Responder) -> None:
        """Meet the next requests with these, one each, in order."""
        self._script.extend(responders)

    def always(self, responder: Responder | None = None) -> None:
        """Meet every request with this from now on, and forget the script; without argument: accept again."""
        self._script.clear()
        self._standing = responder or accept()

    def unreachable(self) -> None:
        """Stop listening and reset every connection: new ones are refused."""
        self._running.run(self._close())

    def reachable(self) -> None:
        """Listen again, on the same port."""
        self._running.run(self._listen())

    def start(self) -> Self:
        self._thread = LoopThread("cloud")
        self._thread.run(self._listen())
        return self

    def close(self) -> None:
        self._running.run(self._close())
        self._running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _running(self) -> LoopThread:
        assert self._thread is not None, "not started"
        return self._thread

    async def _listen(self) -> None:
        """Take the port; it may be in use for a moment by a connection that ends."""
        deadline = time.monotonic() + REBIND_SECONDS
        while self._server is None:
            try:
                self._server = await asyncio.start_server(
                    self._serve, self._host, self.port, ssl=self._tls, limit=HEAD_BYTES_MAX
                )
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def _close(self) -> None:
        if self._server is not None:
            await close_server(self._server)
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone, or the test is over
        finally:
            await _closed(writer)
            self._writers.discard(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            request = await _read_request(reader, writer)
            self.requests.append(request)
            responder = self._script.popleft() if self._script else self._standing
            await responder(Exchange(self, request, writer))
            if request.closes:
                return


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    raw = await _read_body(reader, headers)
    at = time.monotonic()
    body = decode(raw, headers.get("content-encoding", ""), BODY_BYTES_MAX)
    text = b"" if isinstance(body, Refusal) else body
    return Request(at, method, target, headers, raw, text, _events(headers, text))


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = bytearray()
    while size := int((await reader.readline()).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass  # trailers
    return bytes(body)


def _events(headers: Mapping[str, str], body: bytes) -> tuple[tuple[str, bytes], ...]:
    """Name the events of a body; a bare payload without an id goes by its place under the request's key."""
    media_type = headers.get("content-type", "").partition(";")[0].strip()
    entries = read(media_type, body, headers.get("idempotency-key", "")) if body else []
    return (
        () if isinstance(entries, Refusal) else tuple((one.id, one.data) for one in entries if isinstance(one, Event))
    )


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Whatever"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _json(document: object) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def accept(*, echo: bool = True) -> Responder:
    """Store everything and say 200; `echo` the Idempotency-Key."""

    async def respond(exchange: Exchange) -> None:
        headers, body = _json({"stored": exchange.store()})
        key = exchange.request.key
        await exchange.send(200, headers | ({"Idempotency-Key": key} if echo and key else {}), body)

    return respond


def answer(
    status: int, headers: Mapping[str, str] | None = None, body: bytes = b"", *, store: bool = False
) -> Responder:
    """Say exactly this; store nothing unless asked to."""

    async def respond(exchange: Exchange) -> None:
        if store:
            exchange.store()
        await exchange.send(status, headers, body)

    return respond


def after(delay_seconds: float, then: Responder) -> Responder:
    """Wait, then respond."""

    async def respond(exchange: Exchange) -> None:
        await asyncio.sleep(delay_seconds)
        await then(exchange)

    return respond


def html(status: int = 200) -> Responder:
    """Say what a captive portal says."""
    return answer(status, {"Content-Type": "text/html; charset=utf-8"}, b"<!doctype html><title>Sign in</title>")


def redirect(to: str, status: int = 302) -> Responder:
    """Send the sender elsewhere."""
    return answer(status, {"Location": to})


def results(
    statuses: Callable[[str], int | None] | Mapping[str, int | None], *, default: int = 201, status: int = 207
) -> Responder:
    """Answer row by row; what gets 2xx is stored. None: the row is not named at all."""

    def decide(event_id: str) -> int | None:
        return statuses.get(event_id, default) if isinstance(statuses, Mapping) else statuses(event_id)

    async def respond(exchange: Exchange) -> None:
        verdicts = {event_id: decide(event_id) for event_id in exchange.request.ids}
        exchange.store({event_id for event_id, code in verdicts.items() if code is not None and 200 <= code < 300})
        named = [{"id": event_id, "status": code} for event_id, code in verdicts.items() if code is not None]
        await exchange.send(status, *_json({"results": named}))

    return respond


def reject_ids(ids: Collection[str], status: int = 422) -> Responder:
    """Refuse every body that holds one of these as a whole, store all others."""
    refuse, take = answer(status, *_json({"error": "something in there is bad"})), accept()

    async def respond(exchange: Exchange) -> None:
        await (take if set(ids).isdisjoint(exchange.request.ids) else refuse)(exchange)

    return respond


def cut_before_store() -> Responder:
    """Reset the connection after reading the request; nothing is stored."""

    async def respond(exchange: Exchange) -> None:
        exchange.cut()

    return respond


def cut_after_store() -> Responder:
    """Store everything and reset the connection without a word."""

    async def respond(exchange: Exchange) -> None:
        exchange.store()
        exchange.cut()

    return respond


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection; TLS says goodbye first and waits for the other side's, which may be gone for good."""
    writer.close()
    try:
        await writer.wait_closed()
    except (OSError, asyncio.CancelledError):
        writer.transport.abort()


def black_hole() -> Responder:
    """Never answer; the connection stays open until somebody ends it."""

    async def respond(exchange: Exchange) -> None:
        await exchange.writer.wait_closed()

    return respond


def drip(bytes_per_second: float, body: bytes = b'{"stored":1}' * 1000, status: int = 200) -> Responder:
    """Answer byte by byte, from the body's first byte on."""

    async def respond(exchange: Exchange) -> None:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        await exchange.send_raw(_head(status, headers))
        for number in range(len(body)):
            await exchange.send_raw(body[number : number + 1])
            await asyncio.sleep(1 / bytes_per_second)

    return respond


def endless(status: int = 200) -> Responder:
    """Answer with a body that has no end, as fast as it is read."""

    async def respond(exchange: Exchange) -> None:
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        await exchange.send_raw(_head(status, headers))
        while True:
            await exchange.send_raw(b"%x\r\n%b\r\n" % (4096, b" " * 4096))

    return respond


def gzip_bomb(decoded_bytes: int = 256 << 20, status: int = 200) -> Responder:
    """Answer with a little gzip that stands for very much."""
    packer = zlib.compressobj(9, wbits=31)
    piece = b" " * (1 << 20)
    body = b"".join(packer.compress(piece) for _ in range(decoded_bytes >> 20)) + packer.flush()
    return answer(status, {"Content-Type": "application/json", "Content-Encoding": "gzip"}, body)


def raw(piece: bytes) -> Responder:
    """Send exactly these bytes and reset the connection: half a head, half a body, no HTTP at all."""

    async def respond(exchange: Exchange) -> None:
        await exchange.send_raw(piece)
        exchange.writer.close()

    return respond
