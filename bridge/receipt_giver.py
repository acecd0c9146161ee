"""The receipt giver: answers those who asked how far their message came, all of one commit in one write.

Beside the way of a message, at QoS 0: who misses a receipt asks again. One that finds no connection, or one that is
backed up, waits here, in memory: after a start the cloud may take a row before the broker has let the bridge in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from bridge.disk_queue import Receipt
from bridge.events import Emit, ReceiptsGiven
from bridge.message import Request
from bridge.status import timestamp
from bridge.wire import publish, request_properties, string

OWED_MAX = 1000  # some 250 KB, with the longest topics and marks 5 MB; who asks again is answered, so no more is kept


class ReceiptGiver:
    """`give` hears what a commit answers, `offer` is called now and then; `send` tells whether it could."""

    def __init__(self, emit: Emit, wall: Callable[[], float]) -> None:
        self.send: Callable[[bytes], bool] = lambda _: False
        self._emit, self._wall = emit, wall
        self._owed: list[bytes] = []

    def give(self, receipts: Sequence[Receipt]) -> None:
        """Publish these and what is still owed; what cannot be sent is kept, but for the oldest of too many."""
        at = timestamp(self._wall())
        self._owed += [_packet(receipt, at) for receipt in receipts]
        self.offer()

    def offer(self) -> None:
        """Publish what is owed. Not for a callback of the broker's client: a write that fails calls back, too."""
        if not self._owed:
            return
        if self.send(b"".join(self._owed)):
            self._emit(ReceiptsGiven(len(self._owed), 0))
            self._owed.clear()
        elif (too_many := len(self._owed) - OWED_MAX) > 0:
            self._emit(ReceiptsGiven(0, too_many))
            del self._owed[:too_many]


def _packet(receipt: Receipt, at: str) -> bytes:
    (response_topic, correlation, _), event_id, state, reason = receipt
    payload = orjson.dumps({"id": event_id, "state": state, "at": at, "reason": reason})
    return publish(string(response_topic.encode()), payload, request_properties(Request("", correlation)))
