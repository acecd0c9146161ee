"""The status for browsers, probes and Prometheus: shows what the status board holds, changes nothing.

    /         a page for people, kept up to date by /app.js
    /status   the status object (docs/status.schema.json)
    /metrics  the same as Prometheus text
    /healthz  200 while the process can store, else 503
    /readyz   200 while broker and disk are fine, else 503; the cloud being away is not unready

Reading only: every other method is answered 405, so no token is needed yet. No payload, header or secret is in the
status, so none can be seen here (I8). On a loopback address only loopback names are answered, so that no web page
in a browser on this machine can read the bridge under a name of its own (DNS rebinding); who binds to another
address means to be read from there.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import NamedTuple, Protocol

import orjson
from aiohttp import web

from bridge.errors import OperatorError
from bridge.status import Status, Tree
from bridge.web.metrics import CONTENT_TYPE, exposition

CLOSE_SECONDS = 1.0  # what a probe in flight gets at shutdown
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "edge-bridge",
    "X-Content-Type-Options": "nosniff",
}


class Board(Protocol):
    """What the web server needs of the status board."""

    status: Status

    def tree(self) -> Tree:
        """Return the status object of this moment."""


class PageFile(NamedTuple):
    """A file that comes with the package."""

    path: str
    name: str
    content_type: str


PAGE_FILES = (
    PageFile("/", "index.html", "text/html"),
    PageFile("/app.js", "app.js", "text/javascript"),
    PageFile("/style.css", "style.css", "text/css"),
    PageFile("/icon.svg", "icon.svg", "image/svg+xml"),
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebServer:
    """Serves one status board on one address, on the running event loop."""

    def __init__(self, host: str, port: int, board: Board) -> None:
        self._host = host
        self._port = port
        self._board = board
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen and return the port (its own choice for 0); OperatorError if the address cannot be had."""
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=CLOSE_SECONDS)
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
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and end the requests in flight; nothing to do if it never started."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_loopback_names_only] if _is_loopback(self._host) else [])
        application.on_response_prepare.append(_add_headers)
        for file in PAGE_FILES:
            application.router.add_get(file.path, _serve(file))
        application.router.add_get("/status", self._status)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        return application

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self._board.tree())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=exposition(self._board.tree()).encode(), headers={"Content-Type": CONTENT_TYPE})

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


def _json(content: Tree, status_code: int = 200) -> web.Response:
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
