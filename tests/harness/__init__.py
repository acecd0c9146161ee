"""What the integration and acceptance tests stand on: real programs, and things that break them on purpose.

Everything here waits for a condition with a deadline, never for time to pass, and runs on loopback and free ports.
What must go on while a test thread blocks (a publisher, a proxy) lives in a `LoopThread` of its own, so it can be
used from plain and from async tests alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, overload

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[2]
POLL_SECONDS = 0.01

# Below the ports that the kernel gives to connections, so that none of those takes what was free a moment ago. Each
# process has a block of its own and goes round in it; the first port of a block is bound for as long as the process
# lives, which keeps everybody else out: a broker that is away for a second finds its port free when it comes back, also
# if somebody else runs these tests on this machine. (A publisher would not notice that it talks to another's broker.)
_PORTS_FIRST, _PORTS_END, _PORTS_EACH = 16_000, 32_000, 500
_claims: list[socket.socket] = []


@functools.cache
def _own_ports() -> Iterator[int]:
    for first in range(_PORTS_FIRST, _PORTS_END, _PORTS_EACH):
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", first))
        except OSError:
            claim.close()
        else:
            _claims.append(claim)
            return itertools.cycle(range(first + 1, first + _PORTS_EACH))
    raise AssertionError("no block of ports is free")


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on, and nobody else will be given soon."""
    for _ in range(_PORTS_EACH):
        port = next(_own_ports())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def wait_until(condition: Callable[[], T], timeout_seconds: float = 10, what: str = "") -> T:
    """Return the condition's first true value; AssertionError when the deadline passes before there is one."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what or condition}"
        time.sleep(POLL_SECONDS)
    return value


@overload
async def eventually(condition: Callable[[], Awaitable[T]], timeout_seconds: float = ..., what: str = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], timeout_seconds: float = ..., what: str = ...) -> T: ...
async def eventually(condition: Callable[[], Any], timeout_seconds: float = 10, what: str = "") -> Any:
    """`wait_until` for async tests; the condition may be a plain or an async function."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = condition()
        value = await answer if isinstance(answer, Awaitable) else answer
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what or condition}"
        await asyncio.sleep(POLL_SECONDS)


async def close_server(server: asyncio.Server) -> None:
    """Close it, and leave nothing behind that it accepted: what comes to a closed one is dropped and stays open."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(3):  # steps of the loop from a connection's acceptance to whoever serves it, and closes it
        await asyncio.sleep(0)
    server.close()


class LoopThread:
    """An event loop in a thread of its own; whatever is still running on it is cancelled by `close`."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float = 30) -> T:
        """Run a coroutine over there and wait here for what it returns or raises."""
        return self.spawn(work).result(timeout_seconds)

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine over there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        if self._thread.is_alive():
            self.run(self._cancel_all())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        for _ in range(3):  # a server that is ended accepts until then
            await asyncio.sleep(0)  # what was accepted just now gets its transport, and with it somebody who closes it
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)
