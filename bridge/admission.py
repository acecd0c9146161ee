"""Admission: what becomes of a group of messages in the transaction that stores it.

Between the memory batch and the disk queue, in the disk thread: duplicates and redeliveries are told from new
messages, room is made within the bounds, what is refused or dropped is written in the loss ledger, the rest is put.
Never confirms, never waits; a group that does not fit under `overflow = "block"` is handed back untouched.

Holds I5 (the queue's bounds) and its part of I9 (the ledger is written in the same transaction).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from bridge.disk_queue import DiskQueue, NewRow, ReceiptState, to_store
from bridge.loss import Gone, Loss, LossReason, by_topic
from bridge.message import Request, Row, event_id, event_subject, split, with_id
from bridge.wire import TooLarge

if TYPE_CHECKING:
    from bridge.config import QueueSettings

_ROW_OVERHEAD_BYTES = 64  # what SQLite adds to a row and its index entries, about
_DEAD_STEP = 100  # dead rows removed at once to make room
_SESSION_NOTE = "session_began_after_row"


class Arrival(NamedTuple):
    """A message in the memory batch, encoded."""

    topic: str
    event_id: str | None  # the producer's
    made_id: bytes  # ours: its id if the producer's is none, or is another message's
    data: bytes
    received_at: float
    packet_id: int
    dup: bool
    session: int
    expires_at: float | None = None
    request: Request | None = None


new_arrival = partial(tuple.__new__, Arrival)  # as `new_publish`


class Plain(NamedTuple):
    """Messages that came in a row with nothing of their own but payload and packet id, encoded: nearly all, by columns.

    No producer's id, no redelivery, no expiry, no request, and all of them to be confirmed.
    """

    events: list[bytes]
    packet_ids: tuple[int, ...]
    received_at: float
    session: int


class Echo(NamedTuple):
    """What the bridge itself published and got back: confirmed in its turn, never stored."""

    packet_id: int


Item = Arrival | Plain | TooLarge | Echo


class Group(NamedTuple):
    """What is stored and confirmed together, in order of arrival, from one connection."""

    epoch: int
    items: list[Item]
    held_bytes: int

    @property
    def packet_ids(self) -> list[int]:
        """What is to be confirmed, in order."""
        ids: list[int] = []
        for item in self.items:
            if isinstance(item, Plain):
                ids += item.packet_ids
            elif item.packet_id:
                ids.append(item.packet_id)
        return ids


class Outcome(NamedTuple):
    """What became of a group. `blocked`: nothing of it was stored, try again later: `full` disk, `blocked` queue."""

    stored: int = 0
    duplicates: int = 0
    conflicts: tuple[tuple[str, str], ...] = ()  # (topic, the producer's id)
    blocked: str = ""
    reason: str = ""


class _Asked(NamedTuple):
    """A message whose producer wants a receipt: `row` if it is new, else the row it repeats, where that is known."""

    request: Request
    event_id: str
    row: NewRow | None
    row_id: int | None


class Store:
    """The verb that intake runs in the disk thread: one group, one transaction.

    `session` is raised by intake whenever the broker has forgotten ours; packet ids of an earlier one mean nothing.
    `stored()` is to be called after the commit.
    """

    def __init__(self, bounds: QueueSettings, *, window: int) -> None:
        self._room, self._window = Room(bounds), window
        self._keep_messages = bounds.keep_delivered_messages
        self.session = self._noted_session = 0
        self._redelivery_epoch = -1
        self._by_packet_id: dict[int, int] = {}

    def __call__(self, queue: DiskQueue, group: Group) -> Outcome:
        """Store what is new of a group, within the bounds, and write down what is refused or dropped."""
        if self._noted_session != self.session:
            queue.write_note(_SESSION_NOTE, str(queue.newest_id()))
        arrivals = [item for item in group.items if isinstance(item, (Arrival, Plain))]
        asked: list[_Asked] = []
        rows, duplicates, conflicts = self._new_rows(queue, group.epoch, arrivals, asked)
        if rows:
            blocked, reason = self._room.make(queue, rows)
            if blocked:
                return Outcome(blocked=blocked, reason=reason)
        for item in (item for item in group.items if isinstance(item, TooLarge)):
            queue.record_loss(Loss(LossReason.TOO_LARGE, 1, item.topic, detail=f"{item.payload_bytes} bytes"))
            if item.request:
                queue.receipts.give(item.request, None, ReceiptState.DROPPED, LossReason.TOO_LARGE.words)
        if rows:
            queue.make_way(len(rows), self._keep_messages)
            queue.put_rows(rows)
        if asked:
            self._answer(queue, asked, rows)
        return Outcome(len(rows), duplicates, tuple(conflicts))

    def stored(self) -> None:
        """Remember that the last group is committed."""
        self._noted_session = self.session

    # --- receipts ----------------------------------------------------------------------------------------------

    def _answer(self, queue: DiskQueue, asked: list[_Asked], rows: list[NewRow]) -> None:
        """Tell those who asked what became of their messages, and remember who wants to hear the end too."""
        first_id = queue.newest_id() - len(rows) + 1
        row_ids = {id(row): row_id for row_id, row in enumerate(rows, first_id)}
        for request, own_id, row, known_id in asked:
            row_id = row_ids.get(id(row)) if row else (known_id or queue.find_row(own_id))
            if row_id is None:
                queue.receipts.give(request, own_id, ReceiptState.DROPPED, "the queue is at its bound")
                continue
            queue.receipts.give(request, own_id, ReceiptState.STORED if row else ReceiptState.DUPLICATE)
            if request.until_delivered and not row and queue.is_delivered(row_id):
                queue.receipts.give(request, own_id, ReceiptState.DELIVERED)
            elif request.until_delivered:
                queue.receipts.owe(row_id, request, own_id)

    # --- duplicates --------------------------------------------------------------------------------------------

    def _new_rows(
        self, queue: DiskQueue, epoch: int, arrivals: list[Arrival | Plain], asked: list[_Asked]
    ) -> tuple[list[NewRow], int, list[tuple[str, str]]]:
        own_ids = (each.event_id for each in arrivals if isinstance(each, Arrival) and each.event_id)
        known = queue.find_events(own_ids, fingerprint_of)
        rows: list[NewRow] = []
        conflicts: list[tuple[str, str]] = []
        duplicates = 0
        for arrival in arrivals:
            if isinstance(arrival, Plain):
                rows += self._plain_rows(arrival)
                continue
            topic, own_id, made_id, data, received_at, packet_id, dup, session, expires_at, request = arrival
            if dup and (stored := self._stored_before(queue, epoch, arrival)):
                duplicates += 1
                if request:
                    asked.append(_Asked(request, event_id(stored.data), None, stored.row_id))
                continue
            if own_id is not None:
                fingerprint = fingerprint_of(data)
                if own_id in known:
                    if known[own_id] == fingerprint:
                        duplicates += 1
                        if request:
                            asked.append(_Asked(request, own_id, None, None))
                        continue
                    conflicts.append((topic, own_id))
                    own_id, data = None, with_id(data, made_id.decode())
                else:
                    known[own_id] = fingerprint
            known_packet_id = packet_id if packet_id and session == self.session else None
            rows.append(to_store((data, received_at, known_packet_id, own_id, expires_at)))
            if request:
                asked.append(_Asked(request, own_id or made_id.decode(), rows[-1], None))
        return rows, duplicates, conflicts

    def _plain_rows(self, plain: Plain) -> Iterable[NewRow]:
        events, packet_ids, received_at, session = plain
        known_ids = packet_ids if session == self.session else repeat(None)
        return map(to_store, zip(events, repeat(received_at), known_ids, repeat(None), repeat(None), strict=False))

    def _stored_before(self, queue: DiskQueue, epoch: int, arrival: Arrival) -> Row | None:
        """Return the row that a redelivery is of, if we have it and only its confirmation was lost.

        The broker sends an unconfirmed publish again under its old packet id, so the candidate is the newest row
        that came with this packet id in this session, among the last `window` rows; it must have the same topic and
        payload.
        """
        if epoch != self._redelivery_epoch:
            self._redelivery_epoch = epoch
            self._by_packet_id = queue.arrivals(self._window, queue.noted(_SESSION_NOTE, int, 0))
        row_id = self._by_packet_id.get(arrival.packet_id)
        stored = queue.stored_event(row_id) if row_id is not None else None
        if row_id is None or stored is None or fingerprint_of(stored) != fingerprint_of(arrival.data):
            return None
        return Row(row_id, stored)


class Room:
    """The queue's bounds: makes room for new rows within them (I5), or says what there is to wait for."""

    def __init__(self, bounds: QueueSettings) -> None:
        self._bounds = bounds

    def make(self, queue: DiskQueue, rows: list[NewRow], *, whole: bool = True) -> tuple[str, str]:
        """Keep the bounds; `rows` may become fewer. Returns what there is to wait for, if anything, and why.

        `whole`: they come together or not at all.
        """
        bounds = self._bounds
        incoming_bytes = sum([len(row.data) for row in rows]) + len(rows) * _ROW_OVERHEAD_BYTES
        if reason := queue.full_reason(bounds.min_free_disk_bytes, incoming_bytes):
            return "full", reason  # never a reason to drop: that would not free what others have filled
        over_messages, over_bytes, bound = self._excess(queue, len(rows), incoming_bytes)
        if bound is None:
            return "", ""
        counts = queue.counts()
        if bounds.overflow == "block":
            # A group that is larger than the bound itself would wait for ever: it may in when nothing else waits.
            waits = counts.ready + counts.taken or (len(rows) > 1 and not whole)
            return "blocked" if waits else "", bound.words
        if bounds.overflow == "drop-newest":
            _drop(queue, rows, over_messages, over_bytes, bound, newest=True)
            return "", ""
        dropped, freed_bytes = queue.drop_oldest(over_messages, over_bytes, bound)
        # What is in flight cannot be dropped; the next oldest are then those that just came.
        over_messages, over_bytes = over_messages - dropped, over_bytes - freed_bytes
        # Where nothing else waits one is let in: an empty file takes some bytes too, and the bound may be below that.
        if over_messages > 0 or over_bytes > 0:
            _drop(queue, rows, over_messages, over_bytes, bound, newest=False, keep=0 if counts.taken else 1)
        return "", ""

    def _excess(self, queue: DiskQueue, incoming: int, incoming_bytes: int) -> tuple[int, int, LossReason | None]:
        """Return by how many messages and bytes the bounds would be passed, and which bound."""
        bounds, counts = self._bounds, queue.counts()
        over_messages = over_bytes = 0
        if bounds.max_bytes:
            over_bytes = counts.size_bytes + incoming_bytes - bounds.max_bytes
            while over_bytes > 0 and queue.excess(0):  # delivered rows are the first to go
                queue.tidy(0, 0)
                over_bytes = queue.counts().size_bytes + incoming_bytes - bounds.max_bytes
            while over_bytes > 0 and queue.remove_oldest_dead(_DEAD_STEP):  # and then the dead, before any that waits
                over_bytes = queue.counts().size_bytes + incoming_bytes - bounds.max_bytes
        if bounds.max_messages:
            over_messages = counts.ready + counts.taken + incoming - bounds.max_messages
        if over_messages > 0:
            return over_messages, max(0, over_bytes), LossReason.MAX_MESSAGES
        return 0, max(0, over_bytes), LossReason.MAX_BYTES if over_bytes > 0 else None


def _drop(
    queue: DiskQueue,
    rows: list[NewRow],
    over_messages: int,
    over_bytes: int,
    reason: LossReason,
    *,
    newest: bool,
    keep: int = 0,
) -> None:
    """Take rows off one end of those that came, until the bounds are kept or so few are left."""
    victims: list[NewRow] = []
    while len(rows) > keep and (len(victims) < over_messages or over_bytes > 0):
        victims.append(rows.pop(-1 if newest else 0))
        over_bytes -= len(victims[-1].data) + _ROW_OVERHEAD_BYTES
    in_order = victims[::-1] if newest else victims
    gone = (Gone(event_id(row.data), event_subject(row.data), row.received_at) for row in in_order)
    for loss in by_topic(reason, gone):
        queue.record_loss(loss)


def fingerprint_of(stored: bytes) -> bytes:
    """Return the fingerprint of a stored event: topic, source and payload, without id and time.

    Of an event in another layout than ours (it was imported): all of it.
    """
    head_bytes, tail = split(stored)
    if tail:
        start, end = head_bytes.find(b'","source":'), head_bytes.rfind(b'"time":"')
        stored = head_bytes[start : end + 8] + tail
    return hashlib.blake2b(stored, digest_size=16).digest()
