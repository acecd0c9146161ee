"""Intake: what arrives → memory batch → one transaction → confirm, in order.

The broker hands over what it read; each message is checked and encoded once; the memory batch is stored as a group
in one transaction of the disk thread; only then, and only on the connection they came on, are they confirmed (I1).
The memory batch never holds the only copy of a confirmed message. Nothing here waits for the disk on the event
loop (I7), and what is refused or dropped is in the loss ledger before it is confirmed (I9).

If the queue is at a bound with `overflow = "block"`, or the disk is full, the group simply stays unconfirmed and is
tried again: the broker keeps the rest, the window (receive maximum) and `_HELD_BYTES_MAX` bound the memory (I5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from bridge.disk_queue import DiskQueue, Loss, NewRow
from bridge.errors import DiskFullError
from bridge.events import (
    ConflictSeen,
    DiskRecovered,
    DiskTroubled,
    Dropped,
    Emit,
    Received,
    Refused,
    Stored,
)
from bridge.message import Publish, head, head_middle, parse_json, producer_id, split, tail, uuid7
from bridge.wire import TooLarge

if TYPE_CHECKING:
    from bridge.config import IntakeSettings, QueueSettings

_HELD_BYTES_MAX = 16 << 20  # unconfirmed payload bytes in memory; above, the socket is not read
_RETRY_SECONDS = 0.5  # between tries to store a group that the disk or a bound refused
_TOPICS_MAX = 4096  # topics whose encoded form is remembered
_SESSION_NOTE = "session_began_after_row"

T = TypeVar("T")


class Disk(Protocol):
    """What intake needs of the disk thread."""

    def run(self, verb: Callable[[DiskQueue], T]) -> asyncio.Future[T]:
        """Run a verb in the next transaction."""

    def wake(self) -> None:
        """Tell takers that there are new rows."""


class Source(Protocol):
    """What intake needs of the broker."""

    def confirm(self, packet_ids: list[int], epoch: int) -> bool:
        """Confirm in order on that very connection, or not at all."""

    def pause_reading(self) -> None:
        """Hold the broker back."""

    def resume_reading(self) -> None:
        """Read on."""


class Arrival(NamedTuple):
    """A message in the memory batch, encoded but for its id."""

    topic: str
    event_id: str | None  # the producer's
    middle: bytes
    tail: bytes
    received_at: float
    time: str
    packet_id: int
    dup: bool
    session: int


class Group(NamedTuple):
    """What is stored and confirmed together, in order of arrival, from one connection."""

    epoch: int
    items: list[Arrival | TooLarge]
    held_bytes: int


class Outcome(NamedTuple):
    """What became of a group."""

    stored: int = 0
    duplicates: int = 0
    conflicts: tuple[tuple[str, str], ...] = ()  # (topic, the producer's id)
    refused: tuple[TooLarge, ...] = ()
    dropped: int = 0
    reason: str = ""
    blocked: bool = False


class Intake:
    """The way of a message from the broker's bytes to the confirmation. `receive` is the broker's sink."""

    def __init__(  # noqa: PLR0913 - all named but the two sections
        self,
        intake: IntakeSettings,
        bounds: QueueSettings,
        *,
        source_name: str,
        window: int,
        disk: Disk,
        emit: Emit,
        wall: Callable[[], float],
        random_bits: Callable[[int], int],
    ) -> None:
        self._settings, self._disk, self._emit, self._wall = intake, disk, emit, wall
        self._source_name = source_name
        self._id_fields = tuple(intake.id_fields)
        self._store = Store(bounds, window=window, fresh_id=self._fresh_id)
        self._ids = random_bits(74)
        self._middles: dict[str, bytes] = {}
        self._pending: list[Arrival | TooLarge] = []
        self._pending_epoch = 0
        self._pending_bytes = 0
        self._closed_groups: list[Group] = []
        self._held_bytes = 0
        self._arrived, self._full, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._troubled = self._holds_back = False
        self._warned_topics: set[str] = set()
        self.source: Source | None = None  # set by the service: broker and intake know each other

    # --- the broker's side -------------------------------------------------------------------------------------

    def session(self, present: bool) -> None:  # noqa: FBT001 - MQTT's own flag
        """Note at each CONNACK whether the broker still knows our session; a new one gives packet ids anew."""
        if not present:
            self._store.session += 1
            self._disk.run(lambda queue: queue.write_note(_SESSION_NOTE, str(queue.newest_id())))

    def receive(self, messages: Sequence[Publish | TooLarge], epoch: int) -> None:
        """Check and encode what arrived and put it in the memory batch. Never blocks."""
        if epoch != self._pending_epoch:
            self._close_group()
            self._pending_epoch = epoch
        now = self._wall()
        time = datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        for message in messages:
            self._pending.append(self._admit(message, now, time))
        self._idle.clear()
        self._arrived.set()
        if len(self._pending) >= self._settings.batch_messages:
            self._full.set()
        self._emit(Received(len(messages)))
        if self._held_bytes > _HELD_BYTES_MAX and self.source:
            self._holds_back = True
            self.source.pause_reading()

    def _admit(self, message: Publish | TooLarge, now: float, time: str) -> Arrival | TooLarge:
        if isinstance(message, TooLarge):
            return message
        payload = message.payload
        if len(payload) > self._settings.max_payload_bytes:
            return TooLarge(message.topic, message.packet_id, len(payload))
        is_json, value = parse_json(payload)
        what = tail(payload, is_json=is_json, content_type=message.content_type)
        self._pending_bytes += len(what)
        self._held_bytes += len(what)
        return Arrival(
            message.topic,
            message.user_id or (producer_id(value, self._id_fields) if is_json else None),
            self._middles.get(message.topic) or self._middle(message.topic),
            what,
            now,
            time,
            message.packet_id,
            message.dup,
            self._store.session,
        )

    def _middle(self, topic: str) -> bytes:
        if len(self._middles) >= _TOPICS_MAX:
            self._middles.clear()
        middle = self._middles[topic] = head_middle(self._source_name, topic)
        return middle

    def _close_group(self) -> None:
        if self._pending:
            self._closed_groups.append(Group(self._pending_epoch, self._pending, self._pending_bytes))
            self._pending, self._pending_bytes = [], 0

    def _fresh_id(self) -> str:
        # One random start a process and then counted on: unique, and cheaper than 74 new random bits a message.
        self._ids = (self._ids + 1) & ((1 << 74) - 1)
        return uuid7(int(self._wall() * 1000), self._ids)

    # --- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Group, store, confirm, for ever."""
        while True:
            group = await self._next_group()
            outcome = await self._stored(group)
            self._confirm(group)
            self._report(outcome)

    async def drained(self) -> None:
        """Return when everything received so far has been stored and confirmed."""
        await self._idle.wait()

    async def _next_group(self) -> Group:
        while not self._pending and not self._closed_groups:
            self._idle.set()
            self._arrived.clear()
            await self._arrived.wait()
        if not self._closed_groups:
            if len(self._pending) < self._settings.batch_messages:
                self._full.clear()
                await _wait_at_most(self._full, self._settings.linger_ms / 1000)
            self._close_group()
        return self._closed_groups.pop(0)

    async def _stored(self, group: Group) -> Outcome:
        """Store a group however long it takes; the group stays unconfirmed until then."""
        while True:
            try:
                outcome = await self._disk.run(lambda queue: self._store(queue, group))
            except DiskFullError as error:
                outcome = Outcome(blocked=True, reason=error.message)
            if not outcome.blocked:
                if self._troubled:
                    self._troubled = False
                    self._emit(DiskRecovered())
                return outcome
            self._troubled = True
            self._emit(DiskTroubled("full", outcome.reason))
            await asyncio.sleep(_RETRY_SECONDS)

    def _confirm(self, group: Group) -> None:
        packet_ids = [item.packet_id for item in group.items if item.packet_id]
        if packet_ids and self.source:
            self.source.confirm(packet_ids, group.epoch)
        self._held_bytes -= group.held_bytes
        if self._holds_back and self._held_bytes < _HELD_BYTES_MAX // 2 and self.source:
            self._holds_back = False  # only what intake itself paused: at the end the service pauses for good
            self.source.resume_reading()

    def _report(self, outcome: Outcome) -> None:
        if outcome.stored:
            self._disk.wake()
        self._emit(Stored(outcome.stored, outcome.duplicates, len(outcome.conflicts)))
        for topic, event_id in outcome.conflicts:
            if topic not in self._warned_topics and len(self._warned_topics) < _TOPICS_MAX:
                self._warned_topics.add(topic)
                self._emit(ConflictSeen(topic, event_id))
        for refused in outcome.refused:
            self._emit(Refused(1, refused.topic, f"payload of {refused.payload_bytes} bytes is too large"))
        if outcome.dropped:
            self._emit(Dropped(outcome.dropped, outcome.reason))


class Store:
    """The verb that intake runs in the disk thread: one group, one transaction."""

    def __init__(self, bounds: QueueSettings, *, window: int, fresh_id: Callable[[], str]) -> None:
        self._bounds, self._window, self._fresh_id = bounds, window, fresh_id
        self.session = 0  # raised by the event loop when the broker has lost ours
        self._redelivery_epoch = -1
        self._by_packet_id: dict[int, int] = {}

    def __call__(self, queue: DiskQueue, group: Group) -> Outcome:
        """Store what is new of a group, within the bounds, and write down what is refused or dropped."""
        refused = tuple(item for item in group.items if isinstance(item, TooLarge))
        arrivals = [item for item in group.items if isinstance(item, Arrival)]
        rows, duplicates, conflicts = self._new_rows(queue, group.epoch, arrivals)
        dropped, reason, blocked = self._make_room(queue, len(rows))
        if blocked:
            return Outcome(blocked=True, reason=reason)
        for item in refused:
            queue.record_loss(Loss("too large", 1, item.topic, detail=f"{item.payload_bytes} bytes"))
        if dropped and self._bounds.overflow == "drop-newest":
            newest = rows[len(rows) - dropped :]
            del rows[len(rows) - dropped :]
            queue.record_loss(Loss(reason, dropped, None, tuple(row.event_id or "" for row in newest)))
        if rows:
            queue.put_rows(rows)
        return Outcome(len(rows), duplicates, tuple(conflicts), refused, dropped, reason)

    def _new_rows(
        self, queue: DiskQueue, epoch: int, arrivals: list[Arrival]
    ) -> tuple[list[NewRow], int, list[tuple[str, str]]]:
        known = {
            event_id: split(data)[1]
            for event_id, data in queue.find_events(a.event_id for a in arrivals if a.event_id).items()
        }
        rows: list[NewRow] = []
        conflicts: list[tuple[str, str]] = []
        duplicates = 0
        for arrival in arrivals:
            own_id = arrival.event_id
            if arrival.dup and self._was_stored(queue, epoch, arrival):
                duplicates += 1
                continue
            if own_id is not None and own_id in known:
                if known[own_id] == arrival.tail:
                    duplicates += 1
                    continue
                conflicts.append((arrival.topic, own_id))
                own_id = None
            elif own_id is not None:
                known[own_id] = arrival.tail
            data = head(own_id or self._fresh_id(), arrival.middle, arrival.time) + arrival.tail
            # A packet id of a session that the broker has forgotten since says nothing about later messages.
            packet_id = arrival.packet_id if arrival.packet_id and arrival.session == self.session else None
            rows.append(NewRow(data, arrival.received_at, packet_id, own_id))
        return rows, duplicates, conflicts

    def _was_stored(self, queue: DiskQueue, epoch: int, arrival: Arrival) -> bool:
        """Tell whether a redelivery is of a row we have, whose confirmation was lost.

        The broker sends an unconfirmed publish again under its old packet id, so the candidate is the newest row
        that came with this packet id in this session, among the last `window` rows (more cannot be unconfirmed);
        it must have the same topic and payload.
        """
        if epoch != self._redelivery_epoch:
            self._redelivery_epoch = epoch
            self._by_packet_id = queue.arrivals(self._window, int(queue.note(_SESSION_NOTE) or 0))
        row_id = self._by_packet_id.get(arrival.packet_id)
        stored = queue.stored_event(row_id) if row_id is not None else None
        if stored is None:
            return False
        head_bytes, stored_tail = split(stored)
        return stored_tail == arrival.tail and arrival.middle in head_bytes

    def _make_room(self, queue: DiskQueue, incoming: int) -> tuple[int, str, bool]:
        """Keep the bounds: (messages to drop or dropped, why, whether to wait instead)."""
        bounds = self._bounds
        if bounds.min_free_disk_bytes and (free := queue.disk_free_bytes()) < bounds.min_free_disk_bytes:
            # Never a reason to drop: others may have filled the disk, and dropping would not free it.
            return 0, f"only {free >> 20} MiB free on the disk, {bounds.min_free_disk_bytes >> 20} MiB are kept", True
        counts = queue.counts()
        over, reason = 0, ""
        if bounds.max_bytes and counts.size_bytes >= bounds.max_bytes:
            if queue.excess(0):
                queue.tidy(0, 0)  # delivered rows are the first to go
            else:
                over, reason = incoming, "queue.max_bytes reached"
        if bounds.max_messages and (excess := counts.ready + counts.taken + incoming - bounds.max_messages) > over:
            over, reason = excess, "queue.max_messages reached"
        if not over:
            return 0, "", False
        if bounds.overflow == "block":
            return 0, reason, True
        if bounds.overflow == "drop-newest":
            return min(over, incoming), reason, False
        return queue.drop_oldest(over, reason), reason, False


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
