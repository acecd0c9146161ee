"""`/events`: the status object as server-sent events, every second and at once when the state changes.

Each reader is a loop of its own without any queue: what a slow one misses is never kept, and one that does not take
an event in time, with a small send buffer full, is cut off. So memory is bounded by the number of readers, which is
bounded too (I5); who comes too late is told to ask `/status` instead, and the page does.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import orjson
from aiohttp import web

from bridge.status import Tree

INTERVAL_SECONDS = 1.0
DEBOUNCE_SECONDS = 0.25  # between two events of one reader, however often the state changes
WRITE_SECONDS = 5.0  # a reader that takes longer for one event is dropped
READERS_MAX = 16
SEND_BUFFER_BYTES = 16_384
RETRY_MS = 2000  # when a browser tries again after it lost us


class EventStream:
    """All readers of `/events`. `wake` sends them the status at once, `close` says goodbye to them."""

    def __init__(self, tree: Callable[[], Tree]) -> None:
        self._tree = tree
        self._readers: set[asyncio.Event] = set()
        self._closing = False

    def wake(self) -> None:
        """Let every reader have the status of this moment."""
        for woken in self._readers:
            woken.set()

    def close(self) -> None:
        """End every stream after one last event."""
        self._closing = True
        self.wake()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serve one reader until it leaves, is too slow, or `close`."""
        if len(self._readers) >= READERS_MAX:
            text = f"{READERS_MAX} readers already: ask /status instead\n"
            raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "15"})
        woken = asyncio.Event()
        self._readers.add(woken)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await self._send_all(request, response, woken)
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._readers.discard(woken)
        return response

    async def _send_all(self, request: web.Request, response: web.StreamResponse, woken: asyncio.Event) -> None:
        _shrink_buffers(request)
        await response.prepare(request)
        await _send(response, b"retry: %d\n\n" % RETRY_MS)
        while True:
            last = self._closing
            woken.clear()
            await _send(response, b"data: " + orjson.dumps(self._tree()) + b"\n\n")
            if last:
                return
            await asyncio.sleep(DEBOUNCE_SECONDS)
            await _wait(woken, INTERVAL_SECONDS - DEBOUNCE_SECONDS)


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)


async def _wait(woken: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return


def _shrink_buffers(request: web.Request) -> None:
    """Keep little for a reader that does not read, so that it is noticed soon."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
