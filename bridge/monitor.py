"""The bridge's status, for code: read it, keep a history of it, wait for a condition, export it.

    async with Monitor() as monitor:
        await monitor.drained(timeout=60)
        print(monitor.latest["queue"]["ready"])
        Path("run.csv").write_text(as_csv(monitor.history))

It asks the broker, not the bridge, as `edge-bridge status` does, with the same code; so it works from wherever the
broker is reached and sees the will of a bridge that died. It changes nothing. Its history is bounded (I5).
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from bridge.environment import Tls, broker_address
from bridge.errors import BridgeError, FaultError
from bridge.log import printable
from bridge.status import Leaf, State, Tree

STATUS_TOPIC = "edge/buffer/status"
ANSWER_SECONDS = 3.0  # a broker sends what is retained right after the SUBACK
RETRY_SECONDS = 2.0
_HISTORY_MAX = 10_000  # publications: half a day at one every five seconds

Source = Callable[[], AsyncGenerator[bytes, None]]


async def first(source: Source, limit_seconds: float = ANSWER_SECONDS) -> bytes | None:
    """Return what is retained; None if nothing comes in time."""
    async with aclosing(source()) as publications:
        try:
            async with asyncio.timeout(limit_seconds):
                return await anext(publications, None)
        except TimeoutError:
            return None


def parse(payload: bytes, where: str) -> Tree:
    """Return the status object; FaultError if somebody else's message is retained there."""
    try:
        status_tree = orjson.loads(payload)
    except orjson.JSONDecodeError:
        status_tree = None
    if not isinstance(status_tree, dict) or not isinstance(status_tree.get("state"), str):
        raise FaultError(
            f"what is retained on {where} is not a bridge's status", "does another program use this topic?"
        )
    return status_tree


def flatten(branch: Tree, prefix: str = "") -> list[tuple[str, Leaf]]:
    """Return every leaf with its path, as in `queue/ready`; texts lose whatever could steer a terminal."""
    leaves: list[tuple[str, Leaf]] = []
    for name, value in branch.items():
        if isinstance(value, dict):
            leaves += flatten(value, f"{prefix}{name}/")
        else:
            leaves.append((f"{prefix}{name}", printable(value) if isinstance(value, str) else value))
    return leaves


class Monitor:
    """Follows the status of one bridge; `async with` begins and ends it. Broker options as in `PredictionClient`.

    `latest` is the newest status object, None before the first; `history` the last ones, oldest first.
    """

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        username: str | None = None,
        password: str | None = None,
        tls: Tls | str | Path | bool | None = None,
        topic: str = STATUS_TOPIC,
    ) -> None:
        self._address = broker_address(host, port, username, password, tls)
        self._topic = topic
        self._history: deque[Tree] = deque(maxlen=_HISTORY_MAX)
        self._changed = asyncio.Condition()
        self._error = "no status has come yet"
        self._following: asyncio.Task[None] | None = None

    @property
    def latest(self) -> Tree | None:
        """The newest status object."""
        return self._history[-1] if self._history else None

    @property
    def history(self) -> list[Tree]:
        """Every status object that came, up to a bound, oldest first."""
        return list(self._history)

    async def until(self, condition: Callable[[Tree], bool], timeout: float | None = None) -> Tree:  # noqa: ASYNC109 - it tells what is known
        """Return the first status from now on that meets the condition; TimeoutError says what the last one was."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait()
                while not condition(self._history[-1]):
                    await self._changed.wait()
                return self._history[-1]
        except TimeoutError:
            state = self.latest["state"] if self.latest else self._error
            raise TimeoutError(f"not within {timeout:g} s; the last status: {state}") from None

    async def drained(self, timeout: float | None = None) -> Tree:  # noqa: ASYNC109 - as until
        """Return when a bridge that is there says that nothing waits for the cloud.

        What is still at the broker, or on its way to it, is not in its numbers.
        """
        return await self.until(_is_drained, timeout)

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow(), name="monitor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def _follow(self) -> None:
        from bridge.broker import watch_topic

        where = f"{self._topic} at {self._address}"
        while True:
            try:
                async with aclosing(watch_topic(self._address, self._topic)) as publications:
                    is_new = False  # what is retained may be older than the question
                    async for payload in publications:
                        if payload:  # an empty one only says that somebody cleared the topic
                            await self._note(parse(payload, where), is_new=is_new)
                        is_new = True
            except BridgeError as error:
                self._error = error.message
            await asyncio.sleep(RETRY_SECONDS)

    async def _note(self, status_tree: Tree, *, is_new: bool) -> None:
        async with self._changed:
            self._history.append(status_tree)
            if is_new:
                self._changed.notify_all()


def _is_drained(status_tree: Tree) -> bool:
    queue = status_tree.get("queue")
    is_there = isinstance(queue, dict) and status_tree["state"] != State.OFFLINE
    return is_there and isinstance(queue, dict) and queue.get("ready") == 0 and queue.get("taken") == 0


def as_json(history: Iterable[Tree]) -> str:
    """Return status objects as JSON, one a line."""
    return "".join(f"{orjson.dumps(status_tree).decode()}\n" for status_tree in history)


def as_csv(history: Iterable[Tree]) -> str:
    """Return status objects as CSV: a line each, a column for each leaf (`queue/ready`), null as nothing."""
    rows = [dict(flatten(status_tree)) for status_tree in history]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_frame(history: Iterable[Tree]) -> Any:
    """Return status objects as a pandas frame, `at` as its index. Raises FaultError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise FaultError("there is no pandas here", "pip install pandas, or use as_csv") from error
    frame = pd.DataFrame([dict(flatten(status_tree)) for status_tree in history])
    return frame if frame.empty else frame.assign(at=pd.to_datetime(frame["at"])).set_index("at")
