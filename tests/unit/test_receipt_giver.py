"""The receipt giver: what cannot be sent waits for the next connection, the newest of it, and is counted."""

from __future__ import annotations

import orjson

from bridge.disk_queue import Receipt, ReceiptState
from bridge.events import Event, ReceiptsGiven
from bridge.message import Publish, Request
from bridge.receipt_giver import OWED_MAX, ReceiptGiver
from bridge.wire import Splitter


class Link:
    """A connection that can be away; `given` are the ids that were sent, in order."""

    def __init__(self) -> None:
        self.up = True
        self.events: list[Event] = []
        self.given: list[str] = []
        self.giver = ReceiptGiver(self.events.append, lambda: 0.0)
        self.giver.send = self._send

    def give(self, *event_ids: str) -> None:
        self.giver.give([receipt(event_id) for event_id in event_ids])

    def _send(self, packets: bytes) -> bool:
        if self.up:
            self.given += [orjson.loads(item.payload)["id"] for item in packets_of(packets)]
        return self.up


def receipt(event_id: str) -> Receipt:
    return Receipt(Request("edge/buffer/receipts/a", b"mark"), event_id, ReceiptState.DELIVERED)


def packets_of(packets: bytes) -> list[Publish]:
    items = Splitter(mqtt5=True, payload_bytes_max=1000).feed(packets)
    return [item for item in items if isinstance(item, Publish)]


def test_receipts_that_find_no_connection_are_given_once_with_the_next() -> None:
    link = Link()
    link.up = False
    link.give("a", "b")
    link.give("c")
    assert (link.given, link.events) == ([], [])
    link.up = True
    link.giver.offer()
    link.giver.offer()
    assert link.given == ["a", "b", "c"]
    assert link.events == [ReceiptsGiven(3, 0)]


def test_what_is_owed_goes_before_what_comes() -> None:
    link = Link()
    link.up = False
    link.give("a")
    link.up = True
    link.give("b")
    assert link.given == ["a", "b"]


def test_of_too_many_that_are_owed_the_oldest_are_given_up_and_counted() -> None:
    link = Link()
    link.up = False
    ids = [f"id-{number}" for number in range(OWED_MAX + 2)]
    link.give(*ids[:-1])
    link.give(ids[-1])
    link.up = True
    link.giver.offer()
    assert link.given == ids[2:]
    assert link.events == [ReceiptsGiven(0, 1), ReceiptsGiven(0, 1), ReceiptsGiven(OWED_MAX, 0)]
