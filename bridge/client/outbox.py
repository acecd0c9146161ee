"""The outbox: which messages are not done yet, in which order they go out, and what is known of each.

Between `publish` and the connection. A message is held from its acceptance until it has come as far as was asked;
after a loss of the connection everything that is held goes out again, in the order of acceptance, under the same id:
the bridge knows the ones it has. Bounded by its owner's `room`; sends in a window, never one round trip a message.
Knows no socket, no clock and no thread: bytes and values only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

from bridge.message import Request
from bridge.wire import publish, request_properties

_PACKET_IDS = 65_535
_PIECE_BYTES = 1 << 20  # written at once; the next piece goes with the next confirmation
_ASK_AGAIN_EXPONENT_MAX = 6  # 64 times the first wait: five minutes as shipped


class Stage(IntEnum):
    """How far a message has come. Each includes the ones before it."""

    ACCEPTED = 0
    SENT = 1
    STORED = 2
    DELIVERED = 3


class State(StrEnum):
    """What a receipt says; the last five are the bridge's words."""

    ACCEPTED = "accepted"
    SENT = "sent"
    STORED = "stored"
    DUPLICATE = "duplicate"
    DELIVERED = "delivered"
    DEAD = "dead"
    DROPPED = "dropped"


STAGES = {stage.name.lower(): stage for stage in Stage}  # the words that `until` takes
_STAGE_OF = {
    State.STORED: Stage.STORED,
    State.DUPLICATE: Stage.STORED,
    State.DELIVERED: Stage.DELIVERED,
}  # the other answers end a message


class Receipt(NamedTuple):
    """How far a message has come, and who says so when: `at` is the bridge's time, None for what it did not say."""

    id: str
    state: State
    at: str | None = None
    reason: str | None = None


@dataclass(slots=True, eq=False)
class Outgoing:
    """One message on its way out. `done` hears once: the receipt asked for, or the error that ends it."""

    message_id: str
    topic: bytes  # as wire.string
    payload: bytes
    properties: bytes
    until: Stage  # what the caller waits for
    hold: Stage  # when it may be forgotten here; never before `until`
    done: Callable[[Receipt | Exception], None] | None = None
    row_id: int = 0  # in the spool
    number: int = 0
    reached: Stage = Stage.ACCEPTED
    is_waiting: bool = False
    is_over: bool = False
    asked: int = 0
    asked_at: float = 0.0

    def tell(self, outcome: Receipt | Exception) -> None:
        """Tell whoever waits, once."""
        if self.done:
            done, self.done = self.done, None
            done(outcome)


class Outbox:
    """All messages that are held. `ended` hears of each that is done with, and how."""

    def __init__(self, response_topic: str, ended: Callable[[Outgoing, Exception | None], None]) -> None:
        self._response_topic = response_topic
        self._ended = ended
        self._held: dict[int, Outgoing] = {}  # by number, so in the order of acceptance
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._number = self._packet_id = 0

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> list[Outgoing]:
        """Return what is held, in order."""
        return list(self._held.values())

    def add(self, outgoing: Outgoing) -> None:
        """Accept a message, behind all others."""
        self._number += 1
        outgoing.number = self._number
        if outgoing.hold >= Stage.STORED:
            request = Request(
                self._response_topic, self._number.to_bytes(8), until_delivered=outgoing.hold == Stage.DELIVERED
            )
            outgoing.properties += request_properties(request)
        self._held[self._number] = outgoing
        self._wait(outgoing)

    def next_piece(self, window: int, packet_bytes_max: int, too_large: Callable[[int], Exception]) -> bytes:
        """Return the packets that may go out now, at most a window of them unconfirmed."""
        packets: list[bytes] = []
        size_bytes = 0
        while self._waiting and len(self._in_flight) < window and size_bytes < _PIECE_BYTES:
            outgoing = self._waiting.popleft()
            outgoing.is_waiting = False
            if outgoing.is_over:
                continue
            packet_id = self._next_packet_id()
            packet = publish(outgoing.topic, outgoing.payload, outgoing.properties, packet_id)
            if len(packet) > packet_bytes_max:
                self._end(outgoing, too_large(len(packet)))
                continue
            self._in_flight[packet_id] = outgoing
            packets.append(packet)
            size_bytes += len(packet)
        return b"".join(packets)

    def confirmed(self, packet_id: int, now: float, refusal: Exception | None, reason: str | None = None) -> None:
        """Note what the broker said to a publish: taken, or refused for good."""
        outgoing = self._in_flight.pop(packet_id, None)
        if outgoing is None or outgoing.is_over:
            return
        if refusal:
            self._end(outgoing, refusal)
            return
        outgoing.asked_at = now
        if outgoing.reached < Stage.SENT:
            self._reach(outgoing, Stage.SENT, Receipt(outgoing.message_id, State.SENT, None, reason))

    def answered(self, correlation: bytes, state: State, at: str | None, reason: str | None) -> Receipt | None:
        """Note a receipt of the bridge; returns it if it ends its message for good: dead, dropped."""
        outgoing = self._held.get(int.from_bytes(correlation))
        if outgoing is None:
            return None
        receipt = Receipt(outgoing.message_id, state, at, reason)
        stage = _STAGE_OF.get(state)
        if stage is None:
            return receipt
        if stage > outgoing.reached:
            self._reach(outgoing, stage, receipt)
        return None

    def give_up(self, correlation: bytes, error: Exception) -> None:
        """End a message by an error."""
        if outgoing := self._held.get(int.from_bytes(correlation)):
            self._end(outgoing, error)

    def start_over(self) -> None:
        """Queue everything held again, in order: the connection is a new one and nobody knows what the old one took."""
        self._in_flight.clear()
        self._waiting.clear()
        for outgoing in self._held.values():
            self._wait(outgoing)

    def ask_again(self, now: float, wait_seconds: float) -> int:
        """Queue again what was sent long ago and not answered for; ever more rarely. Returns how many."""
        in_flight = set(map(id, self._in_flight.values()))
        due = [
            outgoing
            for outgoing in self._held.values()
            if not outgoing.is_waiting
            and id(outgoing) not in in_flight
            and now >= outgoing.asked_at + wait_seconds * 2 ** min(outgoing.asked, _ASK_AGAIN_EXPONENT_MAX)
        ]
        for outgoing in due:
            outgoing.asked += 1
            self._wait(outgoing)
        return len(due)

    def end_all(self, error: Callable[[Outgoing], Exception]) -> None:
        """End everything that is held."""
        for outgoing in self.held():
            self._end(outgoing, error(outgoing))

    def _wait(self, outgoing: Outgoing) -> None:
        outgoing.is_waiting = True
        self._waiting.append(outgoing)

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % _PACKET_IDS + 1
            if self._packet_id not in self._in_flight:
                return self._packet_id

    def _reach(self, outgoing: Outgoing, stage: Stage, receipt: Receipt) -> None:
        outgoing.reached = stage
        if stage >= outgoing.until:
            outgoing.tell(receipt)
        if stage >= outgoing.hold:
            self._end(outgoing, None)

    def _end(self, outgoing: Outgoing, error: Exception | None) -> None:
        outgoing.is_over = True
        del self._held[outgoing.number]
        self._ended(outgoing, error)
