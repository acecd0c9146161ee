"""The bridge's own state: what every event changes, and what is told about it.

Beside the way of a message, not on it: the running parts emit events (`bridge.events`), `Status.apply` folds each
into a new frozen `Status`, and `tree` turns that into the object which the announcer publishes, the web server
shows and `docs/status.schema.json` describes. `topics` is the same object the `$SYS` way, a topic a leaf.

Pure: no clock, no thread, no await; the caller brings `Now`. Everything kept is bounded (I5): error texts are cut
to one short line, latencies are the last 256. No payload or secret is in any event, so none is in here (I8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple, assert_never

import orjson

from bridge.events import (
    BrokerConnected,
    BrokerLost,
    CloudAnswered,
    CloudFailed,
    CloudPaused,
    ConflictSeen,
    Delivered,
    Died,
    DiskRecovered,
    DiskTroubled,
    Dropped,
    Echoed,
    Event,
    Hung,
    Moving,
    QueueCounted,
    QueueDamaged,
    ReceiptsGiven,
    Received,
    Refused,
    RequestRefused,
    RowsMissing,
    Salvaged,
    Salvaging,
    Stopping,
    Stored,
    SubscriptionGranted,
    SubscriptionRefused,
    Withheld,
)

Leaf = str | int | float | bool | None
Tree = dict[str, "Leaf | Tree"]

ERROR_CHARACTERS_MAX = 300
LATENCIES_MAX = 256
NEARLY_FULL = 0.9  # from this part of a bound on the queue needs somebody's attention
FORECAST_SECONDS_MAX = 30 * 86_400  # further away than this is "not heading there"
RATE_NOISE = 0.01  # rates that differ by less than this part of the larger one are the same
LOAD_WINDOWS = (("1min", 60.0), ("5min", 300.0), ("15min", 900.0))  # Mosquitto's, src/sys_tree.c
WILL_REASON = "connection lost: the bridge ended without a goodbye, or cannot reach the broker"


class Now(NamedTuple):
    """One moment on both clocks: seconds that never jump, for durations, and seconds since 1970, to show."""

    monotonic: float
    wall: float


class State(StrEnum):
    """`online`: storing, and data flows. `degraded`: something needs attention. `offline`: not storing, not running."""

    ONLINE = "online"
    DEGRADED = "degraded"
    OFFLINE = "offline"


class CloudState(StrEnum):
    """`online` until a POST says otherwise; `paused`: the destination refuses us as a whole and a human must act."""

    ONLINE = "online"
    OFFLINE = "offline"
    PAUSED = "paused"
    THROTTLED = "throttled"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The configured bounds that counts do not carry; 0 = no bound."""

    messages: int = 0
    disk_reserve_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Broker:
    """The intake connection. `grievances`: (filter, what is wrong with its subscription), never more than filters."""

    connected: bool = False
    reconnects: int = 0
    stale_confirms: int = 0
    error: str = "starting"
    grievances: tuple[tuple[str, str], ...] = ()

    def granted(self, topic_filter: str) -> Broker:
        """Return the connection with nothing held against this filter."""
        return replace(self, grievances=tuple(held for held in self.grievances if held[0] != topic_filter))

    def refused(self, topic_filter: str, why: str) -> Broker:
        """Return the connection with this held against the filter, instead of what was."""
        return replace(self, grievances=(*self.granted(topic_filter).grievances, (topic_filter, why)))


@dataclass(frozen=True, slots=True)
class Disk:
    """`state`: `fine`, or what `DiskTroubled` says."""

    state: str = "fine"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cloud:
    """The destination. Times are wall seconds; `latencies_seconds` are those of the last answers, oldest first."""

    state: CloudState = CloudState.ONLINE
    last_success_at: float | None = None
    last_error: str | None = None
    next_attempt_at: float | None = None
    latencies_seconds: tuple[float, ...] = ()

    def failed(self, state: CloudState, error: str, next_attempt_at: float) -> Cloud:
        """Return the destination after a POST that let nothing through."""
        return replace(self, state=state, last_error=_one_line(error), next_attempt_at=next_attempt_at)

    def delivered(self, latency_seconds: float, at: float) -> Cloud:
        """Return the destination after one more answer that covered rows."""
        latencies = (*self.latencies_seconds[1 - LATENCIES_MAX :], latency_seconds)
        return replace(self, last_success_at=at, latencies_seconds=latencies)


@dataclass(frozen=True, slots=True)
class Messages:
    """Counters since the process started."""

    received: int = 0
    stored: int = 0
    delivered: int = 0
    duplicate: int = 0
    conflict: int = 0
    dead: int = 0
    dropped: int = 0
    refused: int = 0
    salvaged: int = 0


@dataclass(frozen=True, slots=True)
class Receipts:
    """Receipts that producers asked for, since the process started; `refused`: requests that may not be answered."""

    given: int = 0
    unsent: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Moving averages of one counter, in messages a second, over `LOAD_WINDOWS`; `counted` is where it stood."""

    counted: int = 0
    averages: tuple[float, ...] = (0.0,) * len(LOAD_WINDOWS)

    def advance(self, counted: int, elapsed_seconds: float) -> Load:
        """Return the averages `elapsed_seconds` later, as Mosquitto computes `$SYS/broker/load` (there: a minute)."""
        rate = (counted - self.counted) / elapsed_seconds
        averages = zip(self.averages, LOAD_WINDOWS, strict=True)
        return Load(counted, tuple(rate + math.exp(-elapsed_seconds / span) * (a - rate) for a, (_, span) in averages))


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that is known of the running bridge. `ticked` is when the moving averages were last advanced."""

    version: str
    bridge_id: str
    started: Now
    ticked: float
    bounds: Bounds = Bounds()
    stopping: bool = False
    hung: str = ""
    broker: Broker = Broker()
    disk: Disk = Disk()
    salvaging: str = ""  # what is being done about a damaged file
    cloud: Cloud = Cloud()
    queue: QueueCounted = field(default_factory=lambda: QueueCounted(0, 0, 0, 0, 0, 0, 0, None))
    messages: Messages = Messages()
    payload_bytes: int = 0  # read from the broker
    receipts: Receipts = Receipts()
    received_load: Load = Load()
    delivered_load: Load = Load()

    @classmethod
    def starting(cls, version: str, bridge_id: str, now: Now, bounds: Bounds = Bounds()) -> Status:
        """Return the status of a bridge that has just started and knows nothing yet."""
        return cls(version=version, bridge_id=bridge_id, started=now, ticked=now.monotonic, bounds=bounds)

    # one total table, a line or two an event: longer than a function should be, and easier to read than its parts
    def apply(self, event: Event, now: Now) -> Status:  # noqa: C901, PLR0911, PLR0912
        """Return the status after this event."""
        match event:
            case BrokerConnected(reconnects=reconnects):
                return replace(self, broker=replace(self.broker, connected=True, reconnects=reconnects, error=""))
            case BrokerLost(error=error):
                # grievances go with the connection: each filter is answered for again on the next one
                return replace(
                    self, broker=replace(self.broker, connected=False, error=_one_line(error), grievances=())
                )
            case SubscriptionRefused(topic_filter=topic_filter, reason=reason):
                return replace(self, broker=self.broker.refused(topic_filter, f"refused: {_one_line(reason)}"))
            case SubscriptionGranted(topic_filter=topic_filter, qos=qos, wanted_qos=wanted) if qos < wanted:
                return replace(self, broker=self.broker.refused(topic_filter, f"granted at QoS {qos} only"))
            case SubscriptionGranted(topic_filter=topic_filter):
                return replace(self, broker=self.broker.granted(topic_filter))
            case DiskTroubled(state=state, reason=reason):
                return replace(self, disk=Disk(state, _one_line(reason)))
            case DiskRecovered():
                return replace(self, disk=Disk())
            case CloudAnswered():
                return replace(self, cloud=replace(self.cloud, state=CloudState.ONLINE, next_attempt_at=None))
            case CloudFailed(error=error, retry_seconds=retry_seconds, throttled=throttled):
                state = CloudState.THROTTLED if throttled else CloudState.OFFLINE
                return replace(self, cloud=self.cloud.failed(state, error, now.wall + retry_seconds))
            case CloudPaused(error=error, retry_seconds=retry_seconds):
                return replace(self, cloud=self.cloud.failed(CloudState.PAUSED, error, now.wall + retry_seconds))
            case Delivered(messages=delivered, latency_seconds=latency_seconds):
                return self._count(delivered=delivered, cloud=self.cloud.delivered(latency_seconds, now.wall))
            case Received(messages=received, payload_bytes=payload_bytes):
                return replace(self._count(received=received), payload_bytes=self.payload_bytes + payload_bytes)
            case Stored(messages=stored, duplicates=duplicates, conflicts=conflicts):
                return self._count(stored=stored, duplicate=duplicates, conflict=conflicts)
            case Died(messages=dead):
                return self._count(dead=dead)
            case Dropped(messages=dropped):
                return self._count(dropped=dropped)
            case Withheld(messages=messages):
                stale_confirms = self.broker.stale_confirms + messages
                return replace(self, broker=replace(self.broker, stale_confirms=stale_confirms))
            case Refused(messages=refused):
                return self._count(refused=refused)
            case ReceiptsGiven(receipts=given, unsent=unsent):
                before = self.receipts
                return replace(
                    self, receipts=replace(before, given=before.given + given, unsent=before.unsent + unsent)
                )
            case RequestRefused():
                return replace(self, receipts=replace(self.receipts, refused=self.receipts.refused + 1))
            case ConflictSeen() | Echoed():
                return self  # counted by Stored, or not a message at all; these are for the log
            case QueueCounted():
                return replace(self, queue=event)
            case Hung(reason=reason):
                return replace(self, hung=reason)
            case Moving():
                return replace(self, hung="")
            case QueueDamaged(reason=reason):
                return replace(self, salvaging=f"set aside, a new queue is begun: {_one_line(reason)}")
            case Salvaging(messages=salvaged, file=file):
                return replace(self._count(salvaged=salvaged), salvaging=f"salvaging {file}")
            case Salvaged():
                return replace(self, salvaging="")
            case RowsMissing(first_id=first, last_id=last):
                return self._count(dropped=last - first + 1)
            case Stopping():
                return replace(self, stopping=True)
            case _:
                assert_never(event)

    def _count(self, *, cloud: Cloud | None = None, **more: int) -> Status:
        sums = {name: getattr(self.messages, name) + count for name, count in more.items()}
        return replace(self, messages=replace(self.messages, **sums), cloud=cloud or self.cloud)

    def tick(self, now: Now) -> Status:
        """Return the status with its moving averages advanced to now; as it is while no time has passed."""
        elapsed_seconds = now.monotonic - self.ticked
        if elapsed_seconds <= 0:
            return self
        return replace(
            self,
            ticked=now.monotonic,
            received_load=self.received_load.advance(self.messages.received, elapsed_seconds),
            delivered_load=self.delivered_load.advance(self.messages.delivered, elapsed_seconds),
        )

    @property
    def state(self) -> State:
        """What to tell somebody who has time for one word."""
        if self.stopping:
            return State.OFFLINE
        return State.DEGRADED if self.reason else State.ONLINE

    @property
    def reason(self) -> str | None:
        """Why the state is not `online`, the worst first."""
        if self.stopping:
            return "stopping"
        waiting = self.queue.ready + self.queue.taken
        stuck = () if self.cloud.state is CloudState.ONLINE else (f"{waiting} waiting",)
        return "; ".join((*self.troubles, *stuck)) or None

    @property
    def troubles(self) -> tuple[str, ...]:
        """All that needs attention, a sentence each, the worst first."""
        return (*_storing_troubles(self), *_flow_troubles(self))

    @property
    def unready_reason(self) -> str | None:
        """Why broker or disk are not fine, None when they are: the answer of /readyz. The cloud may well be away."""
        if self.stopping:
            return "stopping"
        return "; ".join(_storing_troubles(self)) or None

    @property
    def can_store(self) -> bool:
        """Whether a message that came now would be stored."""
        # A queue that a bound blocks is as it is meant to be.
        return self.disk.state in ("fine", "blocked") and not self.stopping and not self.hung

    @property
    def headline(self) -> tuple[object, ...]:
        """All that a change of state shows in: it is announced at once, while numbers wait for the next interval."""
        nearly_full = _fullness(self) >= NEARLY_FULL
        return (
            self.stopping,
            bool(self.hung),
            self.disk.state,
            self.broker.connected,
            self.broker.grievances,
            nearly_full,
            bool(self.salvaging),
            self.cloud.state,
        )


def _storing_troubles(status: Status) -> Iterator[str]:
    if status.hung:
        yield status.hung
    if status.disk.state != "fine":
        yield f"disk {status.disk.state}: {status.disk.reason}"
    if not status.broker.connected:
        yield f"broker not connected: {status.broker.error}"
    for topic_filter, why in status.broker.grievances:
        yield f"subscription {topic_filter} {why}"


def _flow_troubles(status: Status) -> Iterator[str]:
    if status.salvaging:
        yield f"damaged queue file: {status.salvaging}"
    if (fullness := _fullness(status)) >= NEARLY_FULL:
        yield f"queue {math.floor(100 * fullness)} % full"
    if status.cloud.state is not CloudState.ONLINE:
        yield f"cloud {status.cloud.state}: {status.cloud.last_error}"


def _fullness(status: Status) -> float:
    """Return how much of its tighter bound the queue has used, 0 to 1 (and more where a bound was lowered)."""
    queue, bounds = status.queue, status.bounds
    by_bytes = queue.size_bytes / queue.limit_bytes if queue.limit_bytes else 0.0
    by_messages = (queue.ready + queue.taken) / bounds.messages if bounds.messages else 0.0
    return max(by_bytes, by_messages)


def tree(status: Status, now: Now) -> Tree:
    """Return the status object: exactly what docs/status.schema.json describes, in the order it is shown."""
    return {
        **_header(status, now),
        "broker": {
            "connected": status.broker.connected and not status.stopping,  # the last that is retained says so for long
            "reconnects": status.broker.reconnects,
            "stale_confirms": status.broker.stale_confirms,
        },
        "cloud": _cloud_tree(status.cloud, now),
        "queue": _queue_tree(status),
        "disk": _disk_tree(status),
        "messages": {name: getattr(status.messages, name) for name in Messages.__slots__},
        "receipts": {name: getattr(status.receipts, name) for name in Receipts.__slots__},
        "load": {"received": _load_tree(status.received_load), "delivered": _load_tree(status.delivered_load)},
    }


def _header(status: Status, now: Now) -> Tree:
    return {
        "state": status.state.value,
        "reason": status.reason,
        "version": status.version,
        "bridge_id": status.bridge_id,
        "uptime_seconds": int(now.monotonic - status.started.monotonic),
        "at": timestamp(now.wall),
    }


def _cloud_tree(cloud: Cloud, now: Now) -> Tree:
    latencies = sorted(cloud.latencies_seconds)
    next_attempt_at = cloud.next_attempt_at
    if next_attempt_at is not None and next_attempt_at <= now.wall:
        next_attempt_at = None  # it is under way
    return {
        "state": cloud.state.value,
        "last_success_at": None if cloud.last_success_at is None else timestamp(cloud.last_success_at),
        "last_error": cloud.last_error,
        "next_attempt_at": None if next_attempt_at is None else timestamp(next_attempt_at),
        "latency_ms": {"p50": _percentile_ms(latencies, 50), "p99": _percentile_ms(latencies, 99)},
    }


def _queue_tree(status: Status) -> Tree:
    queue = status.queue
    return {
        "ready": queue.ready,
        "taken": queue.taken,
        "delivered": queue.delivered,
        "dead": queue.dead,
        "bytes": queue.size_bytes,
        "limit_bytes": queue.limit_bytes,
        "disk_free_bytes": queue.disk_free_bytes,
        "oldest_age_seconds": None if queue.oldest_age_seconds is None else round(queue.oldest_age_seconds, 1),
        "full_in_seconds": full_in_seconds(status),
        "empty_in_seconds": empty_in_seconds(status),
    }


def _disk_tree(status: Status) -> Tree:
    written_bytes, payload_bytes = status.queue.written_bytes, status.payload_bytes
    return {
        "commits": status.queue.commits,
        "written_bytes": written_bytes,
        "payload_bytes": payload_bytes,
        "written_per_payload_byte": round(written_bytes / payload_bytes, 2)
        if written_bytes and payload_bytes
        else None,
    }


def _load_tree(load: Load) -> Tree:
    return {name: round(average, 2) for (name, _), average in zip(LOAD_WINDOWS, load.averages, strict=True)}


def full_in_seconds(status: Status) -> int | None:
    """Return when the queue meets its nearest bound if the last minute goes on; None if it is not heading there."""
    queue, bounds = status.queue, status.bounds
    rows = queue.ready + queue.taken + queue.delivered + queue.dead
    row_bytes = queue.size_bytes / rows if rows else 0.0
    disk_room_bytes = queue.disk_free_bytes - bounds.disk_reserve_bytes
    room_bytes = min(queue.limit_bytes - queue.size_bytes, disk_room_bytes) if queue.limit_bytes else disk_room_bytes
    room_messages = [room_bytes / row_bytes] if row_bytes else []
    if bounds.messages:
        room_messages.append(bounds.messages - queue.ready - queue.taken)
    return _seconds(min(room_messages), _growth_per_second(status)) if room_messages else None


def empty_in_seconds(status: Status) -> int | None:
    """Return when nothing waits any more if the last minute goes on; None if it is not heading there, or is there."""
    waiting = status.queue.ready + status.queue.taken
    return _seconds(waiting, -_growth_per_second(status)) if waiting else None


def _growth_per_second(status: Status) -> float:
    received, delivered = status.received_load.averages[0], status.delivered_load.averages[0]
    growth = received - delivered
    return growth if abs(growth) > RATE_NOISE * max(received, delivered) else 0.0


def _seconds(distance: float, per_second: float) -> int | None:
    if per_second <= 0 or distance > per_second * FORECAST_SECONDS_MAX:
        return None
    return max(0, math.ceil(distance / per_second))


def topics(branch: Tree, prefix: str) -> dict[str, str]:
    """Return every leaf as a topic and its text: the JSON value, strings without quotes.

    A null is the word `null`: an empty retained payload would delete the topic, and nobody could tell "none" from
    "never published".
    """
    texts: dict[str, str] = {}
    for name, value in branch.items():
        if isinstance(value, dict):
            texts |= topics(value, f"{prefix}/{name}")
        else:
            texts[f"{prefix}/{name}"] = value if isinstance(value, str) else orjson.dumps(value).decode()
    return texts


class Will(NamedTuple):
    """What the broker publishes, retained, when a connection ends without a goodbye."""

    topic: str
    payload: bytes


def object_will(prefix: str, version: str, bridge_id: str) -> Will:
    """Return the will of the intake connection: the object, reduced to its header.

    A connection carries one will only, so the leaf `state` is the will of the announcer's own connection
    (`leaf_will`). `at` is null: the broker publishes this when it notices, which nobody can know beforehand.
    """
    header = {
        "state": State.OFFLINE.value,
        "reason": WILL_REASON,
        "version": version,
        "bridge_id": bridge_id,
        "at": None,
    }
    return Will(prefix, orjson.dumps(header))


def leaf_will(prefix: str) -> Will:
    """Return the will of the announcer's connection: the leaf `state`."""
    return Will(f"{prefix}/state", State.OFFLINE.value.encode())


def timestamp(wall_seconds: float) -> str:
    """Return RFC 3339 in UTC with milliseconds, as in `2026-10-01T08:15:00.250Z`."""
    moment = datetime.fromtimestamp(wall_seconds, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _percentile_ms(ordered_seconds: list[float], percent: int) -> float | None:
    """Return the nearest-rank percentile: a latency that did occur, in milliseconds."""
    if not ordered_seconds:
        return None
    rank = math.ceil(percent * len(ordered_seconds) / 100)
    return round(1000 * ordered_seconds[rank - 1], 1)


def _one_line(text: str) -> str:
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= ERROR_CHARACTERS_MAX else f"{line[: ERROR_CHARACTERS_MAX - 1]}…"
