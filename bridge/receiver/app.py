"""The receiver's HTTP face: the one place here that knows aiohttp.

    POST any path   events in, see `entries` for the formats and `answers` for what is said
    GET  /stats     {"received":n,"unique":n,"duplicates":n,"requests":n}
    GET  /events    ?after=SEQ&limit=N: {"events":[...],"next":SEQ}, in order of arrival, as they came
    GET  /healthz   200 while it serves, without the token
    PUT, GET, DELETE /faults   only where faults are allowed

Nothing is answered with success that is not on disk. A request whose sender hangs up is still finished: the sender
comes back with the same Idempotency-Key and gets the answer that it missed. Bodies, pages and the number of bodies
worked on at once are bounded (I5); payloads and tokens are never logged (I8).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import signal
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from bridge.errors import FaultError, OperatorError
from bridge.receiver import answers, faults
from bridge.receiver.answers import Answer
from bridge.receiver.body import ENCODINGS, Refusal, decode
from bridge.receiver.entries import MEDIA_TYPES, BadEvent, Entry, Event, read
from bridge.receiver.faults import Cut, FaultInjector, Faults
from bridge.receiver.store import Deposit, Store, StoreThread

BODY_BYTES_MAX = 16 << 20  # on the wire and again when decompressed
BODIES_AT_ONCE_MAX = 8
INLINE_BYTES_MAX = 32 << 10  # larger or compressed bodies are read in a thread, so that no other request waits for them
KEY_LENGTH_MAX = 255
PAGE_EVENTS_DEFAULT, PAGE_EVENTS_MAX = 1_000, 10_000
SEQ_MAX = 2**63 - 1
SHUTDOWN_SECONDS = 2.0
_RESERVED = frozenset({"/stats", "/healthz", "/faults"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """What the operator chose. Port 0 is any free one; without a token everybody may send and read."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8088
    token: str | None = None
    allow_faults: bool = False


class Receiver:
    """Routes requests to the store."""

    def __init__(self, store: StoreThread, requests_before: int, options: ReceiverOptions) -> None:
        self._store = store
        self._requests = requests_before
        self._authorization = f"Bearer {options.token}".encode() if options.token is not None else None
        self._allow_faults = options.allow_faults
        self._faults = FaultInjector()
        self._keys_in_progress: set[str] = set()
        self._room = asyncio.Semaphore(BODIES_AT_ONCE_MAX)

    def application(self) -> web.Application:
        """Return the aiohttp application; run it with `auto_decompress=False`."""
        application = web.Application(middlewares=[self._gate], client_max_size=BODY_BYTES_MAX)
        application.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/stats", self._stats),
                web.get("/events", self._events),
                web.get("/faults", self._show_faults),
                web.put("/faults", self._put_faults),
                web.delete("/faults", self._delete_faults),
                web.post("/{path:.*}", self._post),
            ]
        )
        return application

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count, check the token, and say in JSON whatever goes wrong."""
        self._requests += request.method == "POST"
        if not self._may(request):
            return _say(Refusal(401, "a valid bearer token is needed"), {"WWW-Authenticate": "Bearer"})
        try:
            return await handler(request)
        except FaultError as error:
            return _say(Refusal(503, error.message), {"Retry-After": "1"})
        except web.HTTPException as error:
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _say(Refusal(error.status, error.reason), allow)

    def _may(self, request: web.Request) -> bool:
        if self._authorization is None or request.path == "/healthz":
            return True
        given = request.headers.get("Authorization", "").encode(errors="replace")
        return hmac.compare_digest(given, self._authorization)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.path in _RESERVED:
            return _say(Refusal(405, "events are not posted here; use / or /events"), {"Allow": "GET"})
        fault = self._faults.draw() or Faults()
        raw = await request.read()
        key = _key(request.headers.get("Idempotency-Key"))
        if isinstance(key, Refusal):
            return _say(key)
        if key is None:
            return await self._take(request, raw, None, fault)
        if key in self._keys_in_progress:
            return _say(Refusal(409, "a request with this Idempotency-Key is in progress"), {"Retry-After": "1"})
        self._keys_in_progress.add(key)
        try:
            return await self._take(request, raw, key, fault)
        finally:
            self._keys_in_progress.discard(key)

    async def _take(self, request: web.Request, raw: bytes, key: str | None, fault: Faults) -> web.StreamResponse:
        """Store a body, or do wrong with it what the fault says."""
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.cut is Cut.BEFORE:
            return _cut(request)
        if fault.status is not None:
            return _say(Refusal(fault.status, "a fault was asked for"), _retry_after(fault))
        async with self._room:
            answer = await self._keep(request, raw, key, fault)
        if fault.cut is Cut.AFTER:
            return _cut(request)
        if isinstance(answer, Refusal):
            return _say(answer, _hint(answer))
        echo = {"Idempotency-Key": key} if key is not None and answer.status_code < HTTPStatus.MULTIPLE_CHOICES else {}
        return _respond(answer, echo)

    async def _keep(self, request: web.Request, raw: bytes, key: str | None, fault: Faults) -> Answer | Refusal:
        encoding = request.headers.get("Content-Encoding", "")
        work = partial(_read_body, raw, request.content_type, encoding, key or uuid.uuid4().hex)
        taken = work() if len(raw) <= INLINE_BYTES_MAX and not encoding else await asyncio.to_thread(work)
        if isinstance(taken, Refusal):
            return taken
        entries, digest = taken
        if fault.reject_ids:
            entries = [_rejected(entry, fault) for entry in entries]
        refusal = answers.unnamed(entries)
        if refusal is not None:
            return refusal
        events = [entry for entry in entries if isinstance(entry, Event)]
        deposit = Deposit(events, key, digest, partial(answers.compose, entries))
        return await self._store.run(lambda store: store.deposit(deposit))

    async def _health(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": True})

    async def _stats(self, _request: web.Request) -> web.StreamResponse:
        stats = await self._store.run(Store.stats)
        return web.json_response(stats._replace(requests=self._requests)._asdict())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        after = _whole_number(request, "after", 0, SEQ_MAX)
        limit = _whole_number(request, "limit", PAGE_EVENTS_DEFAULT, PAGE_EVENTS_MAX)
        page = await self._store.run(lambda store: store.page(after, limit))
        return _respond(Answer(200, b'{"events":[%b],"next":%d}' % (b",".join(page.events), page.next)))

    async def _show_faults(self, _request: web.Request) -> web.StreamResponse:
        if not self._allow_faults:
            return _say(Refusal(403, "faults are not allowed here; start the receiver with --allow-faults"))
        return _respond(Answer(200, self._faults.to_json().encode()))

    async def _put_faults(self, request: web.Request) -> web.StreamResponse:
        wanted = faults.parse(await request.read()) if self._allow_faults else Faults()
        return await self._set_faults(request, wanted)

    async def _delete_faults(self, request: web.Request) -> web.StreamResponse:
        return await self._set_faults(request, Faults())

    async def _set_faults(self, request: web.Request, wanted: Faults | str) -> web.StreamResponse:
        if isinstance(wanted, str):
            return _say(Refusal(400, wanted))
        if self._allow_faults:
            self._faults.replace(wanted)
        return await self._show_faults(request)


def _read_body(raw: bytes, media_type: str, encoding: str, nonce: str) -> tuple[Sequence[Entry], bytes] | Refusal:
    """Return the entries of a body, and the digest that tells it from any other."""
    body = decode(raw, encoding, BODY_BYTES_MAX)
    if isinstance(body, Refusal):
        return body
    entries = read(media_type, body, nonce)
    return entries if isinstance(entries, Refusal) else (entries, hashlib.sha256(body).digest())


def _rejected(entry: Entry, fault: Faults) -> Entry:
    if isinstance(entry, Event) and entry.id in fault.reject_ids:
        return BadEvent(entry.id, "rejected on purpose", fault.reject_status)
    return entry


def _key(header: str | None) -> str | Refusal | None:
    """Return the header as it is, quotes and all: it is compared, never read."""
    if header is None or (header.isascii() and header.isprintable() and 0 < len(header) <= KEY_LENGTH_MAX):
        return header
    return Refusal(400, f"Idempotency-Key is not 1 to {KEY_LENGTH_MAX} printable ASCII characters")


def _whole_number(request: web.Request, name: str, default: int, most: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= len(str(SEQ_MAX))):
        raise web.HTTPBadRequest(reason=f"{name} is not a whole number")
    return min(int(given), most)


def _retry_after(fault: Faults) -> dict[str, str]:
    match fault.retry_after:
        case None:
            return {}
        case str(date):
            return {"Retry-After": date}
        case seconds:
            return {"Retry-After": str(math.ceil(seconds))}


def _hint(refusal: Refusal) -> dict[str, str]:
    """Say with a 415 what would be understood (RFC 9110, 12.5.3 and 15.5.16)."""
    if refusal.status_code != HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        return {}
    return {"Accept-Encoding": ", ".join(ENCODINGS), "Accept-Post": ", ".join(MEDIA_TYPES)}


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # nobody is there to get it


def _say(refusal: Refusal, headers: dict[str, str] | None = None) -> web.StreamResponse:
    return _respond(answers.refuse(refusal), headers)


def _respond(answer: Answer, headers: dict[str, str] | None = None) -> web.StreamResponse:
    return web.Response(
        status=answer.status_code, body=answer.body, content_type="application/json", headers=headers or {}
    )


async def serve(options: ReceiverOptions, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set; `ready` gets the URL. Raises OperatorError, and FaultError if the disk fails."""
    opened = Store(options.folder)
    requests_before = opened.stats().requests
    store = StoreThread(opened)
    application = Receiver(store, requests_before, options).application()
    runner = web.AppRunner(application, access_log=None, auto_decompress=False, shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        await _listen(runner, options)
        host = f"[{options.host}]" if ":" in options.host else options.host
        ready(f"http://{host}:{runner.addresses[0][1]}")
        await _until_stopped(stop, store.failed)
    finally:
        await runner.cleanup()
        await store.close()


async def _listen(runner: web.AppRunner, options: ReceiverOptions) -> None:
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        raise OperatorError(
            f"the receiver can not listen on {options.host} port {options.port}: {error.strerror or error}",
            "give --port another one (0 picks a free one), or stop what holds it",
        ) from error


async def _until_stopped(stop: asyncio.Event, failed: asyncio.Future[None]) -> None:
    stopped = asyncio.create_task(stop.wait(), name="receiver-stop")
    try:
        await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        stopped.cancel()


async def run(options: ReceiverOptions, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(options, ready, stop)
