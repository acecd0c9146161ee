"""What is lost of a message: why, which, and how that is told.

At the sad end of a message's life: whoever gives messages up (admission, the disk queue, the operator) says so with a
`Loss`, the loss ledger (`bridge.disk_queue.ledger`) keeps it, and the bridge's counters are made of nothing but these
values, so they equal the ledger.

Pure: no clock, no disk. Never decides that something is given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum, StrEnum, auto
from typing import NamedTuple, assert_never

from bridge.events import Died, Dropped, Event, Refused


class Fate(Enum):
    """Which counter of the status a loss belongs to."""

    REFUSED = auto()
    DROPPED = auto()
    DEAD = auto()
    COUNTED = auto()  # in an earlier entry: this one only says that what was kept of it is gone too


class LossReason(StrEnum):
    """Why messages are gone; the closed set that the ledger, `--reason` and `edge.loss.v1` use."""

    TOO_LARGE = "too_large"
    MAX_MESSAGES = "max_messages"
    MAX_BYTES = "max_bytes"
    MAX_AGE = "max_age"
    EXPIRED = "expired"
    DAMAGED = "damaged"
    DISCARDED = "discarded"
    DEAD = "dead"
    DEAD_REMOVED = "dead_removed"

    @property
    def words(self) -> str:
        """Say it to people."""
        return _WORDS[self]

    @property
    def fate(self) -> Fate:
        """Return the counter it belongs to."""
        match self:
            case LossReason.TOO_LARGE:
                return Fate.REFUSED
            case LossReason.DEAD:
                return Fate.DEAD
            case LossReason.DEAD_REMOVED:
                return Fate.COUNTED
            case _:
                return Fate.DROPPED


_WORDS = {
    LossReason.TOO_LARGE: "too large (intake.max_payload_bytes)",
    LossReason.MAX_MESSAGES: "queue.max_messages reached",
    LossReason.MAX_BYTES: "queue.max_bytes reached",
    LossReason.MAX_AGE: "queue.max_age_seconds reached",
    LossReason.EXPIRED: "its MQTT message expiry passed while it waited",
    LossReason.DAMAGED: "it stood in a damaged part of the file",
    LossReason.DISCARDED: "discarded by hand",
    LossReason.DEAD: "refused by the cloud for good",
    LossReason.DEAD_REMOVED: "a dead row was removed",
}


class Gone(NamedTuple):
    """One message that is given up; what is not known of it is None."""

    event_id: str | None
    topic: str | None
    received_at: float | None


class Loss(NamedTuple):
    """Messages of one topic given up together. `messages` is exact; `event_ids` are those that are known.

    `first_at`, `last_at`: when the first and the last of them was received; None: now.
    """

    reason: LossReason
    messages: int
    topic: str | None
    event_ids: tuple[str, ...] = ()
    detail: str = ""
    first_at: float | None = None
    last_at: float | None = None


def by_topic(reason: LossReason, gone: Iterable[Gone], detail: str = "") -> list[Loss]:
    """Return one loss a topic, the ids in the given order."""
    topics: dict[str | None, list[Gone]] = {}
    for message in gone:
        topics.setdefault(message.topic, []).append(message)
    return [_together(reason, topic, messages, detail) for topic, messages in topics.items()]


def _together(reason: LossReason, topic: str | None, gone: list[Gone], detail: str) -> Loss:
    times = [message.received_at for message in gone if message.received_at is not None]
    event_ids = tuple(message.event_id for message in gone if message.event_id is not None)
    return Loss(reason, len(gone), topic, event_ids, detail, min(times, default=None), max(times, default=None))


def events_of(losses: Iterable[Loss]) -> list[Event]:
    """Return what the status and the log are told of these losses: nothing for what was counted before."""
    numbers: Counter[tuple[LossReason, str]] = Counter()
    topics: dict[tuple[LossReason, str], str] = {}
    for loss in losses:
        numbers[loss.reason, loss.detail] += loss.messages
        topics.setdefault((loss.reason, loss.detail), loss.topic or "")
    events: list[Event] = []
    for (reason, detail), messages in numbers.items():
        match reason.fate:
            case Fate.REFUSED:
                events.append(Refused(messages, topics[reason, detail], f"payload of {detail} is {reason.words}"))
            case Fate.DROPPED:
                events.append(Dropped(messages, reason.words))
            case Fate.DEAD:
                events.append(Died(messages, detail))
            case Fate.COUNTED:
                pass
            case never:
                assert_never(never)
    return events
