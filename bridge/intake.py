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
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from bridge.admission import Arrival, Echo, Group, Item, Outcome, Plain, Store, new_arrival
from bridge.clock import Boot
from bridge.disk_queue import DiskQueue
from bridge.errors import PassingError
from bridge.events import (
    ConflictSeen,
    DiskRecovered,
    DiskTroubled,
    Echoed,
    Emit,
    Received,
    RequestRefused,
    Stored,
    Withheld,
)
from bridge.message import (
    CLOCK_SET_SINCE,
    ID_CHARACTERS_MAX,
    Publish,
    Request,
    are_plain_json,
    event,
    head_end,
    head_middle,
    json_event,
    parse_json,
    producer_id,
    tail,
    time_text,
    unset_time_text,
    uuid7s,
)
from bridge.topics import RECEIPTS_TOPIC, name_fault, overlap
from bridge.wire import TooLarge

if TYPE_CHECKING:
    from bridge.config import IntakeSettings, QueueSettings

_HELD_BYTES_MAX = 16 << 20  # unconfirmed payload bytes in memory; above, the socket is not read
_GROUP_MESSAGES_MAX = 2000  # or `intake.batch_messages`: while a larger one is stored, the uploader runs out of rows
_PLAIN_MIN = 16  # messages in a row, from which on it pays to look at them by columns
_REDELIVERY_ROWS = 32_768  # half the packet ids: Mosquitto 2.0.11 had five windows unconfirmed after reconnects
_RETRY_SECONDS = 0.5  # between tries to store a group that the disk or a bound refused
_TOPICS_MAX = 4096  # topics whose encoded form is remembered ...
_TOPIC_CHARACTERS_MAX = 1024  # ... if they are not longer than this
_CORRELATION_BYTES_MAX = 1024  # of a request for a receipt

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


class Intake:
    """The way of a message from the broker's bytes to the confirmation. `receive` is the broker's sink."""

    def __init__(  # noqa: PLR0913 - settings, neighbours, and from outside time and chance
        self,
        intake: IntakeSettings,
        bounds: QueueSettings,
        *,
        source_name: str,
        own_trees: tuple[str, ...],
        disk: Disk,
        emit: Emit,
        wall: Callable[[], float],
        boot: Boot,
        random_bits: Callable[[int], int],
    ) -> None:
        self._settings, self._disk, self._emit, self._wall, self._boot = intake, disk, emit, wall, boot
        self._source_name, self._own_trees = source_name, own_trees
        self._payload_bytes_max = intake.max_payload_bytes
        self._id_fields = tuple(intake.id_fields)
        self._id_names = frozenset((*self._id_fields, "id"))
        group_max = max(intake.batch_messages, _GROUP_MESSAGES_MAX)
        self._group_messages_max = min(group_max, bounds.max_messages or group_max)
        self._store = Store(bounds, window=_REDELIVERY_ROWS)
        self._ids = random_bits(74)
        self._middles: dict[str, bytes] = {}
        self._ends: dict[str, bytes] = {}  # of the topics of what is being received: one time for all of it
        self._time = ""
        self._pending: list[Item] = []
        self._pending_epoch = 0
        self._pending_messages = self._pending_bytes = 0
        self._closed_groups: list[Group] = []
        self._held_bytes = 0
        self._arrived, self._full, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._troubled = self._holds_back = False
        self._warned_topics: set[str] = set()
        self.source: Source | None = None  # set by the service: broker and intake know each other

    # --- the broker's side -------------------------------------------------------------------------------------

    def session(self, present: bool) -> None:  # noqa: FBT001 - MQTT's own flag
        """Hear at each CONNACK whether the broker still knows our session; a new one gives packet ids anew."""
        if not present:
            self._store.session += 1

    def receive(self, messages: Sequence[Publish | TooLarge], epoch: int) -> None:
        """Check and encode what arrived and put it in the memory batch. Never blocks."""
        if epoch != self._pending_epoch:
            self._close_group()
            self._forget_stale()
            self._pending_epoch = epoch
        now = self._wall()
        is_set = now >= CLOCK_SET_SINCE
        self._time = time_text(now) if is_set else unset_time_text(now, self._boot.id, self._boot.seconds())
        self._ends.clear()
        held_before, made_ids = self._pending_bytes, self._made_ids(len(messages), now)
        if plain := self._admit_plain(messages, made_ids, now):
            self._pending.append(plain)
        else:
            self._pending += [self._admit(*each, now) for each in zip(messages, made_ids, strict=True)]
        self._pending_messages += len(messages)
        self._held_bytes += self._pending_bytes - held_before
        self._idle.clear()
        self._arrived.set()
        if self._pending_messages >= self._settings.batch_messages:
            self._full.set()
        self._emit(Received(len(messages), sum([len(each.payload) for each in messages if isinstance(each, Publish)])))
        if self._held_bytes > _HELD_BYTES_MAX and self.source:
            self._holds_back = True
            self.source.pause_reading()

    def _admit_plain(self, messages: Sequence[Publish | TooLarge], made_ids: list[bytes], now: float) -> Plain | None:
        """Admit all of them by columns, to the same end as one by one; None if any of them is not plain."""
        count = len(messages)
        if not _PLAIN_MIN <= count <= self._group_messages_max or TooLarge in set(map(type, messages)):
            return None
        topics, payloads, packet_ids, dups, *others = zip(*messages, strict=True)
        if 0 in packet_ids or True in dups or any(column.count(None) != count for column in others):
            return None
        ends = {topic: self._ends.get(topic) or self._end(topic) for topic in set(topics)}
        is_plain = all(ends.values()) and max(map(len, payloads)) <= self._payload_bytes_max
        if not is_plain or not are_plain_json(payloads, self._id_names):
            return None
        events = [*map(json_event, made_ids, map(ends.__getitem__, topics), payloads)]
        self._pending_bytes += sum(map(len, events))
        return Plain(events, packet_ids, now, self._store.session)

    def _admit(self, message: Publish | TooLarge, made_id: bytes, now: float) -> Arrival | TooLarge | Echo:
        if isinstance(message, TooLarge):
            return message._replace(request=self._request(message)) if message.request else message
        topic, payload, packet_id, dup, own_id, content_type, expiry_seconds, request = message
        end = self._ends.get(topic) or self._end(topic)
        if not end:
            self._emit(Echoed(topic))
            return Echo(packet_id)
        if request:
            request = self._request(message)
        if len(payload) > self._payload_bytes_max:
            return TooLarge(topic, packet_id, len(payload), request)
        is_json, value = parse_json(payload)
        if own_id is None or not 0 < len(own_id) <= ID_CHARACTERS_MAX:
            own_id = producer_id(value, self._id_fields) if is_json else None
        if is_json and own_id is None and b"\n" not in payload and b"\r" not in payload:  # most
            data = json_event(made_id, end, payload)
        else:
            data = event(own_id or made_id.decode(), end, tail(payload, is_json=is_json, content_type=content_type))
        expires_at = None if expiry_seconds is None else now + expiry_seconds
        self._pending_bytes += _held_bytes(data, request) if request else len(data)
        session = self._store.session
        return new_arrival((topic, own_id, made_id, data, now, packet_id, dup, session, expires_at, request))

    def _request(self, message: Publish | TooLarge) -> Request | None:
        """Return the request for a receipt if it is one that may be answered; others are counted and told of once."""
        request = message.request
        if request is None or not request.response_topic:
            return None
        fault = name_fault(request.response_topic)
        if not fault and not request.response_topic.startswith(f"{RECEIPTS_TOPIC}/"):
            fault = f"it is not under {RECEIPTS_TOPIC}/"
        if not fault and len(request.correlation) > _CORRELATION_BYTES_MAX:
            fault = f"the correlation data have more than {_CORRELATION_BYTES_MAX} bytes"
        if not fault and len(request.response_topic) > _TOPIC_CHARACTERS_MAX:
            fault = f"it has more than {_TOPIC_CHARACTERS_MAX} characters"
        if fault:
            self._emit(RequestRefused(message.topic, fault))
            return None
        return request

    def _end(self, topic: str) -> bytes:
        """Return what stands behind the id in the head of the events that came now on a topic; nothing for our own."""
        middle = self._middles.get(topic) or self._middle(topic)
        end = self._ends[topic] = head_end(middle, self._time) if middle else b""
        return end

    def _middle(self, topic: str) -> bytes:
        """Return what the events of a topic have in common; nothing for the topics that the bridge publishes to.

        The configuration subscribes to none of those. A session of before may, and so may the broker's own bridges.
        """
        if any(overlap(topic, tree) for tree in self._own_trees):
            return b""
        middle = head_middle(self._source_name, topic)
        if len(topic) <= _TOPIC_CHARACTERS_MAX:
            if len(self._middles) >= _TOPICS_MAX:
                self._middles.clear()
            self._middles[topic] = middle
        return middle

    def _close_group(self) -> None:
        if self._pending:
            group = Group(self._pending_epoch, self._pending, self._pending_bytes)
            is_large = self._pending_messages > self._group_messages_max
            self._closed_groups += _cut(group, self._group_messages_max) if is_large else [group]
            self._pending, self._pending_messages, self._pending_bytes = [], 0, 0

    def _forget_stale(self) -> None:
        """Give up groups of lost connections if too much is held: they were not confirmed, so they come again.

        What came at QoS 0 (no packet id) would not come again, so it stays, however much that is.
        """
        if self._held_bytes > _HELD_BYTES_MAX:
            kept = [group for group in map(_without_redelivery, self._closed_groups) if group.items]
            self._held_bytes -= sum(group.held_bytes for group in self._closed_groups)
            self._held_bytes += sum(group.held_bytes for group in kept)
            self._closed_groups = kept

    def _made_ids(self, count: int, now: float) -> list[bytes]:
        # One random start a process and then counted on: unique, and cheaper than 74 new random bits a message.
        ids = uuid7s(int(now * 1000), self._ids, count)
        self._ids = (self._ids + count) & ((1 << 74) - 1)
        return ids

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
            if self._pending_messages < self._settings.batch_messages:
                self._full.clear()
                await _wait_at_most(self._full, self._settings.linger_ms / 1000)
            self._close_group()
        return self._closed_groups.pop(0)

    async def _stored(self, group: Group) -> Outcome:
        """Store a group however long it takes; the group stays unconfirmed until then."""
        while True:
            try:
                outcome = await self._disk.run(lambda queue: self._store(queue, group))
            except PassingError as error:
                outcome = Outcome(blocked=error.state, reason=error.message)
            if not outcome.blocked:
                self._store.stored()
                if self._troubled:
                    self._troubled = False
                    self._emit(DiskRecovered())
                return outcome
            self._troubled = True
            self._emit(DiskTroubled(outcome.blocked, outcome.reason))
            await asyncio.sleep(_RETRY_SECONDS)

    def _confirm(self, group: Group) -> None:
        packet_ids = group.packet_ids
        if packet_ids and self.source and not self.source.confirm(packet_ids, group.epoch):
            self._emit(Withheld(len(packet_ids)))
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


def _held_bytes(data: bytes, request: Request | None) -> int:
    return len(data) + (len(request.response_topic) + len(request.correlation) if request else 0)


def _cut(group: Group, messages_max: int) -> list[Group]:
    """Divide a group into such that have at most so many messages."""
    parts: list[list[Item]] = [[]]
    room = messages_max
    for item in group.items:
        messages = len(item.events) if isinstance(item, Plain) else 1
        if messages > room:
            parts.append([])
            room = messages_max
        parts[-1].append(item)
        room -= messages
    held = [group.held_bytes, *[0] * (len(parts) - 1)][::-1]  # given back with the last part
    return [Group(group.epoch, part, held_bytes) for part, held_bytes in zip(parts, held, strict=True)]


def _without_redelivery(group: Group) -> Group:
    """Return what is left of a group if all that the broker will send again is given up."""
    left: list[Item] = [item for item in group.items if not isinstance(item, Plain) and not item.packet_id]
    held_bytes = sum(_held_bytes(item.data, item.request) for item in left if isinstance(item, Arrival))
    return Group(group.epoch, left, held_bytes)


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # not wait_for: in Python 3.11 it may swallow a cancellation
            await event.wait()
