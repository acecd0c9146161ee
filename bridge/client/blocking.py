"""The blocking twin: the same client behind a thread with an event loop, for camera loops and notebooks.

Adds nothing but the crossing: each call runs on the loop and waits here for what it returns or raises. May be used
from many threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from bridge.client.outbox import Receipt
    from bridge.client.session import PredictionClient, Until

T = TypeVar("T")


class BlockingPredictionClient:
    """`PredictionClient` for code without an event loop; made by `PredictionClient.blocking(…)`."""

    def __init__(self, make: Callable[[], PredictionClient]) -> None:
        self._client = make()  # wrong options are told here, not in another thread
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="prediction client", daemon=True)

    def publish(
        self,
        payload: Any,
        *,
        until: Until = "sent",
        topic: str | None = None,
        message_id: str | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Publish one message and return when it has come as far as `until` says."""
        return self._run(
            self._client.publish(payload, until=until, topic=topic, message_id=message_id, timeout=timeout)
        )

    def publish_many(
        self, payloads: Iterable[Any], *, until: Until = "sent", topic: str | None = None, timeout: float | None = None
    ) -> list[Receipt]:
        """Publish messages in this order, a window of them under way."""
        return self._run(self._client.publish_many(payloads, until=until, topic=topic, timeout=timeout))

    def flush(self, timeout: float | None = None) -> None:
        """Return when every message accepted so far has come as far as was asked."""
        self._run(self._client.flush(timeout))

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        return self._client.connected

    @property
    def held_messages(self) -> int:
        """How many accepted messages have not come as far as was asked."""
        return self._client.held_messages

    def close(self) -> None:
        """Accept nothing more, wait for what is held, and disconnect; see `PredictionClient.close`."""
        try:
            if self._thread.is_alive():
                self._run(self._client.close())
        finally:
            self._end_thread()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._client.__aexit__(kind, error, trace))
        finally:
            self._end_thread()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            from bridge.client.errors import ClosedError

            raise ClosedError("this client is not open", "use it inside `with PredictionClient.blocking(…)`")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_thread(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
