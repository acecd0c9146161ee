"""What happened, as frozen values.

Each running part reports by calling `emit(event)`; it never logs and never touches the status itself. Listeners
(the status board, the logger, the metrics) get every event in order, on the event loop. Events are per group,
never per message, so that they cost nothing at full speed. No payload, header or secret is ever part of one (I8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BrokerConnected:
    """The intake connection stands and every filter was answered for."""

    session_present: bool
    reconnects: int


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The intake connection ended or could not be made; `retry_seconds` until the next try (None: none planned)."""

    error: str
    retry_seconds: float | None


@dataclass(frozen=True, slots=True)
class SubscriptionRefused:
    """The broker refused one filter in its SUBACK."""

    topic_filter: str
    reason: str


@dataclass(frozen=True, slots=True)
class SubscriptionGranted:
    """The broker granted one filter; `qos` is what it granted, `wanted_qos` what was asked."""

    topic_filter: str
    qos: int
    wanted_qos: int


@dataclass(frozen=True, slots=True)
class Received:
    """Publishes were read from the broker."""

    messages: int
    payload_bytes: int = 0  # of those that are not too large


@dataclass(frozen=True, slots=True)
class Stored:
    """One group was committed. `messages` new rows; redeliveries and copies not stored again; conflicts (stored)."""

    messages: int
    duplicates: int
    conflicts: int


@dataclass(frozen=True, slots=True)
class ConflictSeen:
    """A producer used an id twice for different payloads: warned about once a topic."""

    topic: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Withheld:
    """Messages were stored and not confirmed, for the connection they came on had ended: they come again."""

    messages: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Publishes were not taken (too large, ...), confirmed and written in the loss ledger."""

    messages: int
    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptsGiven:
    """Receipts were published; `unsent` others are given up for want of a connection: who asks again is answered."""

    receipts: int
    unsent: int


@dataclass(frozen=True, slots=True)
class Echoed:
    """What the bridge itself publishes came back to it; it is confirmed and goes no further."""

    topic: str


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A message asked for a receipt that will not be given; the message itself goes its way."""

    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Messages were given up (at a bound, expired, by hand), after the loss ledger had them."""

    messages: int
    reason: str


@dataclass(frozen=True, slots=True)
class DiskTroubled:
    """Intake does not confirm until `DiskRecovered`. `state`: `full`, `stalled`, or `blocked` by a bound."""

    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class DiskRecovered:
    """The disk takes writes again."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """An answer of the cloud covered these rows and they were acked. `latency_seconds`: of that one POST."""

    messages: int
    latency_seconds: float


@dataclass(frozen=True, slots=True)
class Died:
    """Rows were refused for good and set aside as dead; `reason` with the HTTP status, if there was one."""

    messages: int
    reason: str


@dataclass(frozen=True, slots=True)
class CloudAnswered:
    """An answer came that let rows through, or refused some of them for good: the destination is online."""


@dataclass(frozen=True, slots=True)
class CloudFailed:
    """A POST failed in a passing way (no answer, 5xx, broken answer, 429); the next one in `retry_seconds`."""

    error: str
    retry_seconds: float
    throttled: bool = False


@dataclass(frozen=True, slots=True)
class CloudPaused:
    """The destination refuses us as a whole (401, redirect, ...): rows are kept, one probe in `retry_seconds`."""

    error: str
    retry_seconds: float


@dataclass(frozen=True, slots=True)
class QueueCounted:
    """A count of the queue, taken once a second."""

    ready: int
    taken: int
    delivered: int
    dead: int
    size_bytes: int
    limit_bytes: int
    disk_free_bytes: int
    oldest_age_seconds: float | None
    commits: int = 0  # transactions written since the start
    written_bytes: int | None = None  # by the whole process since its start; None where nobody tells


@dataclass(frozen=True, slots=True)
class Hung:
    """A part of the bridge is late, by its own word: the watchdog is not fed until `Moving`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Moving:
    """Every part moves again."""


@dataclass(frozen=True, slots=True)
class QueueDamaged:
    """The queue's file is damaged: it is set aside, and a new one is begun."""

    reason: str


@dataclass(frozen=True, slots=True)
class RowsMissing:
    """Rows that were stored once are not in the file, and nothing of them is left; they are in the loss ledger."""

    first_id: int
    last_id: int


@dataclass(frozen=True, slots=True)
class Salvaging:
    """Some more rows of a damaged file are back in the queue; `messages` of them wait to be uploaded."""

    messages: int
    file: str


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A damaged file is read to its end. `missing`: waiting rows that could not be read, None if nobody can tell.

    `deleted`: older damaged files that went because there are newer ones, and how many rows were missing in each.
    """

    file: str
    messages: int
    missing: int | None
    deleted: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Stopping:
    """The service is shutting down in order."""


Event = (
    BrokerConnected
    | BrokerLost
    | SubscriptionRefused
    | SubscriptionGranted
    | Received
    | Stored
    | ConflictSeen
    | Withheld
    | Refused
    | ReceiptsGiven
    | RequestRefused
    | Echoed
    | Dropped
    | DiskTroubled
    | DiskRecovered
    | Delivered
    | Died
    | CloudAnswered
    | CloudFailed
    | CloudPaused
    | QueueCounted
    | Hung
    | Moving
    | QueueDamaged
    | RowsMissing
    | Salvaging
    | Salvaged
    | Stopping
)

Emit = Callable[[Event], None]
