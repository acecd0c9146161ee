"""The status board and its announcer: what is known of the bridge, and its way onto the status topics.

`StatusBoard` is where every `emit` of the service ends; it holds the current `Status`, and the web server reads it
too. `Announcer` publishes it, retained: the object on `status.topic`, at once on a change of state (but at most
four times a second) and every `interval_seconds`; of the leaves below it only those that changed, and all of them
after a reconnect and every five minutes.

It never queues: while the broker is away nothing is kept for later (I5), and the next connection gets everything
as it is then. It owns no connection; `publish` comes from `bridge.broker`. All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import orjson

from bridge.events import Event
from bridge.status import Now, State, Status, Tree, topics, tree

DEBOUNCE_SECONDS = 0.25
REFRESH_SECONDS = 300.0  # mends what somebody else cleared or overwrote

Clock = Callable[[], Now]
Listener = Callable[[], None]


def system_now() -> Now:
    """Return this moment on the machine's clocks."""
    return Now(time.monotonic(), time.time())


class Publisher(Protocol):
    """Publish one message; False when there is no connection, and then nothing is kept for later."""

    def __call__(self, topic: str, payload: bytes, *, retain: bool) -> bool: ...


class StatusBoard:
    """The current `Status`. `emit` is the service's sink of events; listeners hear of changes of state only."""

    def __init__(self, status: Status, clock: Clock = system_now) -> None:
        self.status = status
        self._clock = clock
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call this after every change of state; it must not block or raise."""
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Take one event in."""
        before, self.status = self.status.headline, self.status.apply(event, self._clock())
        if self.status.headline != before:
            for listener in self._listeners:
                listener()

    def now(self) -> Now:
        """Return this moment on the board's clocks."""
        return self._clock()

    def tick(self) -> None:
        """Advance the moving averages."""
        self.status = self.status.tick(self._clock())

    def tree(self) -> Tree:
        """Return the status object of this moment."""
        return tree(self.status, self._clock())


class Announcer:
    """Keeps the status topics true. `run` is its task, `reconnected` and `goodbye` are called by the service."""

    def __init__(self, publish: Publisher, board: StatusBoard, prefix: str, interval_seconds: float) -> None:
        self._publish = publish
        self._board = board
        self._prefix = prefix
        self._interval_seconds = interval_seconds
        self._published: dict[str, str] = {}  # what the broker holds, as far as we know
        self._woken = asyncio.Event()
        self._said_goodbye = False
        board.listen(self._woken.set)

    async def run(self) -> None:
        """Announce at every interval and after every change of state, until cancelled or `goodbye`."""
        now = asyncio.get_running_loop().time
        tick_due = refresh_due = now()
        while not self._said_goodbye:
            if now() >= refresh_due:
                self._published.clear()
                refresh_due = now() + REFRESH_SECONDS
            if now() >= tick_due:
                self._board.tick()
                # says it again although it did not change: a will of a connection lost long ago may have come late
                self._published.pop(f"{self._prefix}/state", None)
                tick_due = now() + self._interval_seconds
            self._announce(self._board.tree())
            await asyncio.sleep(DEBOUNCE_SECONDS)
            await self._wait(tick_due - now())

    def reconnected(self) -> None:
        """Publish everything again, soon: the broker may have lost it or published our will."""
        self._published.clear()
        self._woken.set()

    def goodbye(self, reason: str = "stopped") -> bool:
        """Publish the last status, `offline`, and nothing after it; False if the broker could not be told."""
        self._said_goodbye = True
        self._woken.set()
        return self._announce(self._board.tree() | {"state": State.OFFLINE.value, "reason": reason})

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            return
        finally:
            self._woken.clear()

    def _announce(self, status_tree: Tree) -> bool:
        """Publish the object and the leaves that the broker does not hold; False, and all forgotten, if it is away."""
        told = self._publish(self._prefix, orjson.dumps(status_tree), retain=True)
        for topic, text in topics(status_tree, self._prefix).items():
            told = told and self._tell(topic, text)
        if not told:
            self._published.clear()
        return told

    def _tell(self, topic: str, text: str) -> bool:
        if self._published.get(topic) == text:
            return True
        self._published[topic] = text
        return self._publish(topic, text.encode(), retain=True)
