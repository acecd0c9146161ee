"""The spool: a disk queue of the client's own, the project's `DiskQueue`, loaded only by who asks for one.

Between `publish` and the outbox. Every message is committed here before it is accepted, leaves in that order, and is
done with when the bridge's receipt says that it has it on disk, not before; what the death of this process finds here
goes out at the next start. The rows are CloudEvents as in the bridge's queue, so `edge-bridge queue` reads a spool.
What is refused for good stays as a dead row, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bridge.client.outbox import Outgoing, Stage
from bridge.client.room import Room
from bridge.disk_queue import DiskQueue, FolderLock, NewRow
from bridge.disk_thread import DiskThread
from bridge.message import DeadRow, Row, event_id, event_subject, head, head_middle, payload_json, tail
from bridge.wire import string, user_properties

_TAKE_BYTES = 4 << 20
_HOUSEKEEPING_SECONDS = 1.0

log = logging.getLogger("bridge.client")


class Spool:
    """Open it on the event loop that uses it. `waiting`: messages that the bridge is not known to have."""

    def __init__(self, folder: Path, source_name: str, bytes_max: int) -> None:
        self._source_name = source_name
        self._lock = FolderLock(folder)
        try:
            queue = DiskQueue(folder, max_bytes=bytes_max)
        except BaseException:
            self._lock.release()
            raise
        counts = queue.counts()
        self.waiting = counts.ready
        self.room = Room(sys.maxsize, bytes_max)
        self.room.size_bytes, self.room.messages = counts.size_bytes, counts.ready
        self._disk = DiskThread(queue, keep_seconds=0, keep_messages=0)
        self._accepted: dict[int, Outgoing] = {}
        self._sizes_bytes: dict[int, int] = {}

    def put(self, outgoing: Outgoing, topic: str) -> asyncio.Future[int]:
        """Commit a message; the result is its row's id."""
        time = datetime.now(UTC)
        at = time.isoformat(timespec="microseconds").replace("+00:00", "Z")
        data = head(outgoing.message_id, head_middle(self._source_name, topic), at)
        row = NewRow(data + tail(outgoing.payload, is_json=True), time.timestamp(), None, outgoing.message_id)

        def store(queue: DiskQueue) -> int:
            queue.put_rows([row])
            return queue.newest_id()

        return self._disk.run(store)

    def accepted(self, outgoing: Outgoing, row_id: int) -> None:
        """Note that a message is committed, and whose it is."""
        outgoing.row_id = row_id
        self._accepted[row_id] = outgoing
        self._sizes_bytes[row_id] = len(outgoing.payload)
        self.waiting += 1
        self._disk.wake()

    async def take(self, messages_max: int) -> list[Outgoing]:
        """Wait for messages and return the oldest that have not gone out."""
        while True:
            rows = await self._disk.take(messages_max, _TAKE_BYTES)
            if rows:
                return [
                    self._accepted.pop(row.row_id) if row.row_id in self._accepted else _outgoing(row) for row in rows
                ]
            await self._disk.ready()

    def settle(self, row_ids: Sequence[int]) -> asyncio.Future[None]:
        """Note that the bridge has these."""
        for row_id in row_ids:
            self._leave(row_id)
        return self._disk.run(lambda queue: queue.ack_rows(row_ids))

    def bury(self, row_id: int, reason: str) -> asyncio.Future[None]:
        """Nobody will ever take this one; keep it as dead."""
        self._leave(row_id)
        return self._disk.run(lambda queue: queue.reject([DeadRow(row_id, reason)]))

    def not_taken(self) -> list[Outgoing]:
        """Return what was accepted and has not gone out."""
        return list(self._accepted.values())

    async def housekeep(self) -> None:
        """Delete what is done with, for ever."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            await self._disk.housekeep()

    async def close(self) -> None:
        """Finish what was asked and close the file."""
        await asyncio.to_thread(self._disk.close)
        self._lock.release()

    def _leave(self, row_id: int) -> None:
        self.waiting -= 1
        if self.waiting:
            self.room.give(self._sizes_bytes.pop(row_id, 0))
        else:  # what was counted for the file itself is given back too
            self._sizes_bytes.clear()
            self.room.reset()


def _outgoing(row: Row) -> Outgoing:
    """Make a message anew that an earlier process accepted."""
    own_id = event_id(row.data)
    topic = string((event_subject(row.data) or "").encode())
    properties = user_properties({"id": own_id})
    return Outgoing(own_id, topic, payload_json(row.data), properties, Stage.ACCEPTED, Stage.STORED, row_id=row.row_id)
