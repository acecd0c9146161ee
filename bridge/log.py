"""The log: what happened, for the person who has to act on it. One line for one fault, not thousands.

Beside a message's life: the parts of the bridge emit events, and this is the one listener that turns them into lines.
It never changes anything and never sees a payload or a secret (I8: events have none). It is bounded (I5): what
repeats is counted and told at most every `REMIND_SECONDS`, a part that comes and goes gets `CHANGES_MAX` lines in
that time, and only so many subjects are remembered.

`FaultLog` decides which lines an event is worth, from events and a clock alone; `EventLogger` writes them; `setup`
decides how a line looks.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, TextIO, assert_never

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

REMIND_SECONDS = 600.0
CHANGES_MAX = 6
ERRORS_MAX = 8  # different errors of one fault; a text with a number that changes must not flood the log
SUBJECTS_MAX = 1000  # topics and reasons that are remembered


class Line(NamedTuple):
    """A line that is worth writing; `fields` stand beside the message in JSON."""

    level: int
    message: str
    fields: dict[str, Any]


# ---- which lines ----


@dataclass(slots=True)
class _Fault:
    """What a part suffers from now: the latest error, how often, and what the log has said about it."""

    since: float
    level: int = logging.WARNING
    message: str = ""
    times: int = 0
    told_errors: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Part:
    """Something that works or does not, and which of the two the log said last (None: nothing yet)."""

    name: str
    works: str = ""  # the sentence for it
    fault: _Fault | None = None
    broken_since: float = 0.0
    told_broken: bool | None = None
    told_at: float = float("-inf")
    told_changes: deque[float] = field(default_factory=lambda: deque(maxlen=CHANGES_MAX))


@dataclass(slots=True)
class _Tally:
    """Messages that met the same fate for the same reason, as far as they are not told yet."""

    level: int
    message: str
    told_at: float
    messages: int = 0


class FaultLog:
    """Decide which lines an event is worth. Reads nothing but the clock that it is given."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._parts: dict[str, _Part] = {}
        self._tallies: dict[str, _Tally] = {}
        self._told_once: set[str] = set()

    def lines(self, event: Event) -> Iterator[Line]:
        """Yield the lines for one event: mostly none."""
        match event:
            case BrokerConnected() | BrokerLost() | SubscriptionGranted() | SubscriptionRefused():
                yield from self._broker_lines(event)
            case CloudAnswered() | CloudFailed() | CloudPaused():
                yield from self._cloud_lines(event)
            case DiskTroubled() | DiskRecovered() | Hung() | Moving():
                yield from self._own_lines(event)
            case Withheld() | Refused() | Dropped() | Died():
                yield from self._message_lines(event)
            case ConflictSeen() | RequestRefused() | Echoed():
                yield from self._topic_lines(event)
            case QueueCounted():  # comes once a second, so it is the tick for what is due
                yield from self._due()
            case Stopping():
                yield from self._due(stopping=True)
                yield Line(logging.INFO, "stopping in order", {})
            case QueueDamaged() | RowsMissing() | Salvaged():
                yield from self._damage_lines(event)
            case Received() | Stored() | Delivered() | Salvaging() | ReceiptsGiven():
                return
            case _:
                assert_never(event)

    def _broker_lines(
        self, event: BrokerConnected | BrokerLost | SubscriptionGranted | SubscriptionRefused
    ) -> Iterator[Line]:
        match event:
            case BrokerLost(error):
                yield from self._broken("broker", logging.WARNING, "no connection to the broker", error)
            case BrokerConnected(session_present):
                session = "its session was kept" if session_present else "with a new session"
                yield from self._works("broker", f"connected to the broker, {session}")
            case SubscriptionRefused(topic_filter, reason):
                what = f'the broker refuses the filter "{topic_filter}"'
                yield from self._broken(f"filter {topic_filter}", logging.ERROR, what, reason)
            case SubscriptionGranted(topic_filter, qos, wanted_qos):
                yield from self._works(f"filter {topic_filter}", f'subscribed to "{topic_filter}"')
                if qos < wanted_qos:
                    what = f'the broker granted "{topic_filter}" with QoS {qos} instead of {wanted_qos}: '
                    yield from self._once(what + "what it sends while the bridge is away or stops is lost")
            case never:
                assert_never(never)

    def _cloud_lines(self, event: CloudAnswered | CloudFailed | CloudPaused) -> Iterator[Line]:
        match event:
            case CloudAnswered():
                yield from self._works("cloud", "the cloud takes messages")
            case CloudFailed(error):
                what = "uploading fails, the queue keeps the messages"
                yield from self._broken("cloud", logging.WARNING, what, error)
            case CloudPaused(error):
                what = "uploading is paused until the cloud accepts us, the queue keeps the messages"
                yield from self._broken("cloud", logging.ERROR, what, error)
            case never:
                assert_never(never)

    def _own_lines(self, event: DiskTroubled | DiskRecovered | Hung | Moving) -> Iterator[Line]:
        match event:
            case DiskTroubled(state, reason):
                who = "queue is at its bound" if state == "blocked" else f"disk is {state}"
                what = f"the {who}: messages are not confirmed until it takes them"
                yield from self._broken("disk", logging.ERROR, what, reason)
            case DiskRecovered():
                yield from self._works("disk", "the disk takes messages")
            case Hung(reason):
                what = "a part hangs, the watchdog is not fed until it moves"
                yield from self._broken("liveness", logging.ERROR, what, reason)
            case Moving():
                yield from self._works("liveness", "every part moves")
            case never:
                assert_never(never)

    def _topic_lines(self, event: ConflictSeen | RequestRefused | Echoed) -> Iterator[Line]:
        match event:
            case ConflictSeen(topic, event_id):
                what = f'a producer on "{topic}" uses an id for different messages, such as "{event_id}"; all are kept'
                yield from self._once(what, subject=f"conflict {topic}")
            case RequestRefused(topic, reason):
                what = f'a producer on "{topic}" asks for receipts that cannot be given: {reason}'
                yield from self._once(what, subject=f"request {topic}")
            case Echoed(topic):
                what = f'what is published on "{topic}", a topic of the bridge\'s own, comes back and is not taken: '
                why = (
                    "an old subscription in the broker's session (take another mqtt.client_id), or a bridge of brokers"
                )
                yield from self._once(what + why, subject="echo")
            case never:
                assert_never(never)

    def _message_lines(self, event: Withheld | Refused | Dropped | Died) -> Iterator[Line]:
        match event:
            case Withheld(messages):
                what = "stored, but not confirmed: their connection had ended; the broker sends them again"
                yield from self._tally(logging.WARNING, what, messages)
            case Refused(messages, topic, reason):
                what = f"refused, in the loss ledger: {reason}"
                yield from self._tally(logging.WARNING, what, messages, f', such as one on "{topic}"')
            case Dropped(messages, reason):
                yield from self._tally(logging.ERROR, f"dropped, in the loss ledger: {reason}", messages)
            case Died(messages, reason):
                yield from self._tally(logging.ERROR, f"dead, kept and in the loss ledger: {reason}", messages)
            case never:
                assert_never(never)

    def _damage_lines(self, event: QueueDamaged | RowsMissing | Salvaged) -> Iterator[Line]:
        match event:
            case QueueDamaged(reason):
                what = f"the queue's file is damaged and set aside, a new one is begun: {reason}"
                yield Line(logging.ERROR, what, {})
            case RowsMissing(first, last):
                what = f"rows {first} to {last} of the queue were stored and are gone, they are in the loss ledger"
                yield Line(logging.ERROR, what, {"messages": last - first + 1})
            case Salvaged(file, messages, missing, deleted):
                level = logging.INFO if missing == 0 else logging.ERROR
                what = f"salvaged {messages} waiting messages from {file}; {_missing(missing)}"
                yield Line(level, what, {"messages": messages, "missing": missing})
                for name, lost in deleted:
                    level = logging.INFO if lost == 0 else logging.WARNING
                    yield Line(level, f"deleted {name}: there are newer ones; {_missing(lost)}", {})
            case never:
                assert_never(never)

    def _broken(self, name: str, level: int, what: str, error: str) -> Iterator[Line]:
        part = self._parts.setdefault(name, _Part(name))
        if part.fault is None:
            part.fault = _Fault(self._monotonic())
        fault = part.fault
        fault.times += 1
        fault.level, fault.message = level, f"{what}: {error}"
        if fault.message not in fault.told_errors and len(fault.told_errors) < ERRORS_MAX:
            yield from self._tell_fault(part, fault)
        yield from self._remind(part)

    def _works(self, name: str, sentence: str) -> Iterator[Line]:
        part = self._parts.setdefault(name, _Part(name))
        part.works = sentence
        if part.fault is not None:
            part.broken_since, part.fault = part.fault.since, None
        if part.told_broken is not False:
            yield from self._tell_works(part)

    def _tell_fault(self, part: _Part, fault: _Fault) -> Iterator[Line]:
        if not self._has_room(part):
            return
        part.told_at = self._monotonic()
        fault.told_errors.add(fault.message)
        part.told_broken = True
        yield Line(fault.level, fault.message, {"part": part.name, "broken": True, "times": fault.times})

    def _tell_works(self, part: _Part) -> Iterator[Line]:
        if not self._has_room(part):
            return
        again = f" again, after {span(self._monotonic() - part.broken_since)}" if part.told_broken else ""
        part.told_broken = False
        yield Line(logging.INFO, part.works + again, {"part": part.name, "broken": False})

    def _has_room(self, part: _Part) -> bool:
        """Tell whether one more line on this part is allowed now, and count it."""
        now = self._monotonic()
        changes = part.told_changes
        if len(changes) == CHANGES_MAX and now - changes[0] < REMIND_SECONDS:
            return False
        changes.append(now)
        return True

    def _remind(self, part: _Part) -> Iterator[Line]:
        """Tell what the log does not say yet, because the part came and went too often, or said too long ago."""
        fault, now = part.fault, self._monotonic()
        if fault is None:
            if part.told_broken:
                yield from self._tell_works(part)
        elif part.told_broken is not True:
            yield from self._tell_fault(part, fault)
        elif now - part.told_at >= REMIND_SECONDS:
            part.told_at = now
            still = f"still, for {span(now - fault.since)} and {fault.times} times: {fault.message}"
            yield Line(fault.level, still, {"part": part.name, "broken": True, "times": fault.times})

    def _once(self, message: str, subject: str = "") -> Iterator[Line]:
        subject = subject or message
        if subject not in self._told_once and len(self._told_once) < SUBJECTS_MAX:
            self._told_once.add(subject)
            yield Line(logging.WARNING, message, {})

    def _tally(self, level: int, fate: str, messages: int, example: str = "") -> Iterator[Line]:
        if fate not in self._tallies and len(self._tallies) >= SUBJECTS_MAX:
            fate, example = "lost for various reasons, see the loss ledger", ""
        tally = self._tallies.setdefault(fate, _Tally(level, "", float("-inf")))
        tally.messages += messages
        tally.message = fate + example
        yield from self._tell_tally(tally)

    def _tell_tally(self, tally: _Tally, *, stopping: bool = False) -> Iterator[Line]:
        now = self._monotonic()
        if tally.messages and (stopping or now - tally.told_at >= REMIND_SECONDS):
            messages, tally.messages, tally.told_at = tally.messages, 0, now
            noun = "message" if messages == 1 else "messages"
            yield Line(tally.level, f"{messages} {noun} {tally.message}", {"messages": messages})

    def _due(self, *, stopping: bool = False) -> Iterator[Line]:
        for part in self._parts.values():
            yield from self._remind(part)
        for tally in self._tallies.values():
            yield from self._tell_tally(tally, stopping=stopping)


def _missing(rows: int | None) -> str:
    return f"{'an unknown number' if rows is None else rows} could not be read"


def span(seconds: float) -> str:
    """Write a length of time for people: 0.4 s, 12 s, 3 min, 5 h 20 min, 2 d 4 h."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if not minutes:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004  two digits are enough
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


class EventLogger:
    """The listener: call it with each event."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._faults = FaultLog(monotonic)
        self._logger = logging.getLogger("bridge")

    def __call__(self, event: Event) -> None:
        """Write the lines that the event is worth."""
        for line in self._faults.lines(event):
            self._logger.log(line.level, "%s", line.message, extra=line.fields)


# ---- how a line looks ----

# Whatever could end a line, move the cursor, or turn the direction of writing: topics and server answers are foreign.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def printable(text: str) -> str:
    """Write control characters as escapes, so that nothing foreign can forge a line or steer a terminal."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def setup(level: str, form: Literal["auto", "text", "json"], stream: TextIO | None = None) -> None:
    """Send all log lines of the process to the stream (standard error): from this level on, in this form."""
    stream = stream or sys.stderr
    as_text = form == "text" or (form == "auto" and stream.isatty())
    to_stream = logging.StreamHandler(stream)
    to_stream.setFormatter(TextLines(tracebacks=level == "debug") if as_text else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[to_stream], force=True)
    logging.captureWarnings(capture=True)
    if level != "debug":
        logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a line for each look at /healthz


class TextLines(logging.Formatter):
    """One line a record, for people; the whole traceback only if asked for."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Write the record."""
        line = f"{_time(record)} {record.levelname.lower():<7} {printable(record.getMessage())}"
        if record.name != "bridge":
            line += f"  [{record.name}]"
        if not record.exc_info or record.exc_info[1] is None:
            return line
        if self._tracebacks:
            return f"{line}\n{self.formatException(record.exc_info)}"
        return f"{line}  ({_in_one_line(record.exc_info[1])})"


class JsonLines(logging.Formatter):
    """One JSON object a record: at, level, logger, message, then what the record carries beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record. In ASCII, so that every reader agrees on where a line ends."""
        line: dict[str, Any] = {
            "at": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES | line.keys()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_one_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return printable(f"{type(error).__name__}: {error}{place}")
