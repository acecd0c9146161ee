"""The loss teller: lets the cloud know what it will never get, and why, as events of type `edge.loss.v1`.

Beside the way of a message: what the loss ledger gained since last time becomes one event a reason, a row of the disk
queue like any other. Told later than it happened and never in the transaction of the loss, so that losses cannot
breed losses:

*   While an earlier telling still waits, further losses only add up; there is at most one row a reason.
*   It is put only where there is room for it within the bounds, and while the cloud takes rows (or nothing waits);
    it displaces no message. The bounds in turn never drop it.
*   If the cloud refuses it for good it is dead like any row, but no loss; the next try is an hour later.

Never decides what is given up. Under `format = "json"` it says nothing: bare payloads have no type to tell them by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

import orjson

from bridge.disk_queue import DiskQueue, NewRow, Untold
from bridge.errors import PassingError
from bridge.message import head, head_middle, tail

if TYPE_CHECKING:
    from bridge.config import QueueSettings, UploadSettings

LOSS_TYPE = "edge.loss.v1"
INTERVAL_SECONDS = 3.0
REFUSED_PAUSE_SECONDS = 3600.0

T = TypeVar("T")


class Disk(Protocol):
    """What the teller needs of the disk thread."""

    def run(self, verb: Callable[[DiskQueue], T]) -> asyncio.Future[T]:
        """Run a verb in the next transaction."""

    def wake(self) -> None:
        """Tell takers that there are new rows."""


class LossTeller:
    """`tell` is a verb for the disk thread; `run` does it every few seconds."""

    def __init__(
        self,
        disk: Disk,
        bounds: QueueSettings,
        *,
        upload: Callable[[], UploadSettings],
        cloud_is_online: Callable[[], bool],
        source_name: str,
        wall: Callable[[], float],
        fresh_id: Callable[[], str],
    ) -> None:
        self._disk, self._bounds, self._upload = disk, bounds, upload
        self._cloud_is_online, self._source_name = cloud_is_online, source_name
        self._wall, self._fresh_id = wall, fresh_id

    async def run(self) -> None:
        """Tell what there is to tell, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            upload, online = self._upload(), self._cloud_is_online()
            if not upload.report_losses or upload.format == "json":
                continue
            with suppress(PassingError):  # a state that intake tells of; the ledger keeps what is untold
                if await self._disk.run(lambda queue: self.tell(queue, cloud_is_online=online)):  # noqa: B023
                    self._disk.wake()

    def tell(self, queue: DiskQueue, *, cloud_is_online: bool) -> int:
        """Put what is untold into the queue, if it is time and there is room; return how many rows."""
        if queue.has_ready and not cloud_is_online:
            return 0
        now = self._wall()
        if queue.told_rows_wait(refused_after=now - REFUSED_PAUSE_SECONDS):
            return 0
        untold = queue.ledger.untold()
        rows = [NewRow(self._event(loss, now), now) for loss in untold]
        if not rows or not self._has_room(queue, rows):
            return 0
        queue.put_rows(rows)
        newest = queue.newest_id()
        queue.note_told(range(newest - len(rows) + 1, newest + 1))
        return len(rows)

    def _has_room(self, queue: DiskQueue, rows: list[NewRow]) -> bool:
        bounds, counts = self._bounds, queue.counts()
        messages = counts.ready + counts.taken + len(rows)
        size_bytes = counts.size_bytes + sum(len(row.data) for row in rows)
        return (
            (not bounds.max_messages or messages <= bounds.max_messages)
            and (not bounds.max_bytes or size_bytes <= bounds.max_bytes)
            and (not bounds.min_free_disk_bytes or queue.disk_free_bytes() >= bounds.min_free_disk_bytes)
        )

    def _event(self, loss: Untold, now: float) -> bytes:
        data = {
            "reason": loss.reason,
            "messages": loss.messages,
            "first_at": _rfc3339(loss.first_at),
            "last_at": _rfc3339(loss.last_at),
            "topics": loss.topics,
            "ids": loss.event_ids,
            "ids_complete": len(loss.event_ids) == loss.messages,
            "ledger": loss.loss_ids,
        }
        middle = head_middle(self._source_name, loss.reason, LOSS_TYPE)
        return head(self._fresh_id(), middle, _rfc3339(now) or "") + tail(orjson.dumps(data), is_json=True)


def _rfc3339(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
