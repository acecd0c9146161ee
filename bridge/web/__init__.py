"""The status for browsers, probes and Prometheus: shows what the status board holds.

    /              a page for people (static/), kept up to date by what follows
    /status        the status object (docs/status.schema.json)
    /events        the same as server-sent events, every second
    /history       the last hour: samples and troubles
    /dead          the dead rows by reason; POST /dead/requeue makes some ready again
    /metrics       the status as Prometheus text
    /livez         200 while every part moves, else 503: the question of who would start the process again
    /healthz       200 while the process can store, else 503
    /readyz        200 while broker and disk are fine, else 503; the cloud being away is not unready

Everything but requeuing is reading and needs no token; every other method is answered 405. No payload, header or
secret is in what is shown (I8). On a loopback address only loopback names are answered, so that no web page in a
browser on this machine can read the bridge under a name of its own (DNS rebinding); who binds to another address
means to be read from there. Sizes of requests and the number of streams are bounded (I5).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

import orjson
from aiohttp import web

from bridge.errors import OperatorError
from bridge.status import Now, Status, Tree
from bridge.web.dead import BODY_BYTES_MAX, DeadDesk, DeadRows
from bridge.web.history import SAMPLE_SECONDS, History
from bridge.web.metrics import CONTENT_TYPE, exposition
from bridge.web.stream import EventStream

__all__ = ["Board", "DeadRows", "WebServer"]

CLOSE_SECONDS = 1.0  # what a probe in flight gets at shutdown
IDLE_SECONDS = 75.0  # a connection that asks nothing for so long is closed
FIELD_BYTES_MAX = 8190  # of the request line, and of each header
FIELDS_MAX = 64
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "edge-bridge",
    "X-Content-Type-Options": "nosniff",
}


class Board(Protocol):
    """What the web server needs of the status board."""

    status: Status

    def now(self) -> Now:
        """Return this moment."""

    def tree(self) -> Tree:
        """Return the status object of this moment."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this after every change of state."""


class PageFile(NamedTuple):
    """A file that comes with the package."""

    path: str
    name: str
    content_type: str


PAGE_FILES = (
    PageFile("/", "index.html", "text/html"),
    *(
        PageFile(f"/{name}.js", f"{name}.js", "text/javascript")
        for name in ("app", "chart", "dead", "link", "way", "words")
    ),
    PageFile("/style.css", "style.css", "text/css"),
    PageFile("/icon.svg", "icon.svg", "image/svg+xml"),
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """Serves one status board on one address, on the running event loop; `token` is what changing something takes."""

    def __init__(self, host: str, port: int, board: Board, dead_rows: DeadRows, token: str | None = None) -> None:
        self._host = host
        self._port = port
        self._board = board
        self._dead = DeadDesk(dead_rows, token)
        self._history = History()
        self._stream = EventStream(board.tree)
        self._runner: web.AppRunner | None = None
        self._next_sample: asyncio.TimerHandle | None = None
        board.listen(self._changed)

    async def start(self) -> int:
        """Listen and return the port (its own choice for 0); OperatorError if the address cannot be had."""
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=CLOSE_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=FIELD_BYTES_MAX,
            max_field_size=FIELD_BYTES_MAX,
            max_headers=FIELDS_MAX,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            raise OperatorError(
                f"the web page cannot listen on {self._host}:{self._port}: {_words(error)}",
                "give it another web.port, or 0 for no web page",
            ) from error
        self._plan_sample()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and end the requests in flight; nothing to do if it never started."""
        if self._next_sample is not None:
            self._next_sample.cancel()
        if self._runner is not None:
            self._stream.close()
            await self._runner.cleanup()
            self._runner = None

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[_loopback_names_only] if _is_loopback(self._host) else [], client_max_size=BODY_BYTES_MAX
        )
        application.on_response_prepare.append(_add_headers)
        for file in PAGE_FILES:
            application.router.add_get(file.path, _serve(file))
        application.router.add_get("/status", self._status)
        application.router.add_get("/events", self._stream.answer, allow_head=False)
        application.router.add_get("/history", self._tell_history)
        application.router.add_get("/dead", self._dead.show)
        application.router.add_post("/dead/requeue", self._dead.requeue)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        return application

    def _changed(self) -> None:
        self._history.look(self._board.status, self._board.now())
        self._stream.wake()

    def _plan_sample(self) -> None:
        self._next_sample = asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._sample)

    def _sample(self) -> None:
        self._plan_sample()
        self._history.sample(self._board.status, self._board.now())

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self._board.tree())

    async def _tell_history(self, _: web.Request) -> web.Response:
        return _json(self._history.tree(self._board.now()))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=exposition(self._board.tree()).encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _livez(self, _: web.Request) -> web.Response:
        return _verdict(self._board.status.hung or None)

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(None if self._board.status.can_store else self._board.status.unready_reason)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._board.status.unready_reason)


def _words(error: OSError) -> str:
    """Return the system's own words: asyncio wraps them in a sentence that says the address again."""
    if error.errno is not None and error.errno > 0:  # name resolution has numbers of its own, below 0
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _verdict(reason: str | None) -> web.Response:
    return _json({"ok": reason is None, "reason": reason}, status_code=503 if reason else 200)


def _json(content: Any, status_code: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status_code, content_type="application/json")


def _serve(file: PageFile) -> Handler:
    body = (files(__name__) / "static" / file.name).read_bytes()

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=file.content_type, charset="utf-8")

    return handler


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


@web.middleware
async def _loopback_names_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not _is_loopback(request.url.host or ""):
        raise web.HTTPForbidden(text="this bridge answers to localhost and loopback addresses only (web.host)\n")
    return await handler(request)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost")
