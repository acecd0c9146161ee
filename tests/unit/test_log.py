"""One line for one fault (I5), nothing foreign that steers a terminal, one line a record."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

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
    Stopping,
    Stored,
    SubscriptionGranted,
    SubscriptionRefused,
    Withheld,
)
from bridge.log import REMIND_SECONDS, EventLogger, FaultLog, JsonLines, Line, TextLines, printable, setup, span

TICK = QueueCounted(0, 0, 0, 0, 0, 0, 0, None)
FAILED = CloudFailed("HTTP 503", 1.0)


@dataclass
class Recorder:
    """A fault log, a clock that moves by hand, and every line so far."""

    now: float = 0.0
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._log = FaultLog(lambda: self.now)

    def see(self, *events: Event, times: int = 1, every_seconds: float = 0.0) -> list[Line]:
        """Feed the events in turn and return the new lines."""
        before = len(self.lines)
        for _ in range(times):
            for event in events:
                self.lines += self._log.lines(event)
            self.now += every_seconds
        return self.lines[before:]


# ---- faults ----


def test_a_fault_that_repeats_a_thousand_times_is_one_line_and_its_end_another() -> None:
    log = Recorder()
    assert [line.level for line in log.see(FAILED, times=1000, every_seconds=0.5)] == [logging.WARNING]
    (end,) = log.see(CloudAnswered(), times=100)
    assert end.level == logging.INFO
    assert "again, after 8 min" in end.message


def test_a_fault_that_lasts_is_remembered_with_how_long_and_how_often() -> None:
    log = Recorder()
    log.see(FAILED)
    log.now = REMIND_SECONDS + 1
    (reminder,) = log.see(TICK, FAILED, TICK)
    assert reminder.message.startswith("still, for 10 min and 1 times: uploading fails")
    assert "HTTP 503" in reminder.message


def test_a_new_error_of_the_same_part_is_a_new_line_but_two_that_take_turns_are_not() -> None:
    log = Recorder()
    paused = CloudPaused("HTTP 401", 60)
    assert [line.level for line in log.see(FAILED, paused)] == [logging.WARNING, logging.ERROR]
    assert log.see(FAILED, paused, times=500) == []


def test_an_error_text_with_a_number_that_changes_does_not_flood_the_log() -> None:
    log = Recorder()
    for port in range(5000):
        log.see(BrokerLost(f"refused from port {port}", 1.0), every_seconds=1)
    assert len(log.lines) <= 8 + 5000 / REMIND_SECONDS + 1


def test_a_link_that_comes_and_goes_every_second_gets_few_lines_an_hour() -> None:
    log = Recorder()
    hour = log.see(BrokerLost("reset", 1.0), TICK, BrokerConnected(True, 1), TICK, times=3600, every_seconds=1)
    assert 2 <= len(hour) <= 6 * 7


@pytest.mark.parametrize("ends_broken", [True, False])
def test_the_log_says_in_the_end_how_it_is_even_after_a_flood(ends_broken: bool) -> None:
    log = Recorder()
    log.see(BrokerLost("reset", 1.0), BrokerConnected(True, 1), times=50, every_seconds=1)
    if ends_broken:
        log.see(BrokerLost("reset", 1.0))
    log.see(TICK, times=200, every_seconds=5)
    assert log.lines[-1].fields["broken"] is ends_broken


def test_no_reminder_comes_before_its_time_however_quickly_a_link_comes_and_goes() -> None:
    log = Recorder()
    lines = log.see(BrokerConnected(True, 1), BrokerLost("reset", 1.0), times=100)
    assert [line.message for line in lines if line.message.startswith("still")] == []


def test_parts_fail_independently() -> None:
    log = Recorder()
    lines = log.see(BrokerLost("x", 1.0), FAILED, DiskTroubled("full", "no space"), SubscriptionRefused("a/#", "acl"))
    assert [line.fields["part"] for line in lines] == ["broker", "cloud", "disk", "filter a/#"]
    assert "a/#" in lines[-1].message
    assert [line.fields["part"] for line in log.see(DiskRecovered(), SubscriptionGranted("a/#", 1, 1))] == [
        "disk",
        "filter a/#",
    ]


def test_what_works_from_the_start_is_told_once() -> None:
    log = Recorder()
    healthy = (BrokerConnected(False, 0), SubscriptionGranted("a", 1, 1), CloudAnswered())
    assert [line.level for line in log.see(*healthy)] == [logging.INFO] * 3
    assert log.see(*healthy, times=10) == []


def test_a_part_that_hangs_is_an_error_until_it_moves() -> None:
    late, well = Recorder().see(Hung("the disk thread has not answered for 130 s"), Moving(), Moving())
    assert (late.level, late.fields["part"], well.level) == (logging.ERROR, "liveness", logging.INFO)
    assert "every part moves" in well.message


def test_a_damage_is_told_from_its_finding_to_the_last_row() -> None:
    found, gone, partly, whole, deleted, with_rows = Recorder().see(
        QueueDamaged("its header is not SQLite's"),
        RowsMissing(5, 9),
        Salvaged("data.db.damaged-1", 7, None),
        Salvaged("data.db.damaged-2", 7, 0, (("data.db.damaged-0", 0), ("data.db.damaged-1", 3))),
    )
    assert "its header is not SQLite's" in found.message
    assert (gone.level, gone.fields) == (logging.ERROR, {"messages": 5})
    assert (partly.level, "an unknown number could not be read" in partly.message) == (logging.ERROR, True)
    assert (whole.level, whole.fields) == (logging.INFO, {"messages": 7, "missing": 0})
    assert (deleted.level, "data.db.damaged-0" in deleted.message) == (logging.INFO, True)
    assert (with_rows.level, "3 could not be read" in with_rows.message) == (logging.WARNING, True)


def test_the_flow_of_messages_is_not_worth_a_line() -> None:
    assert Recorder().see(Received(5), Stored(5, 1, 0), Delivered(5, 0.1), TICK, times=100) == []


def test_a_lower_qos_than_asked_for_is_a_warning_once() -> None:
    lines = Recorder().see(SubscriptionGranted("a", 0, 1), times=3)
    assert [line.level for line in lines] == [logging.INFO, logging.WARNING]


# ---- messages ----


def test_a_conflict_is_warned_about_once_a_topic() -> None:
    log = Recorder()
    assert len(log.see(ConflictSeen("a", "1"), ConflictSeen("a", "2"), ConflictSeen("b", "1"), times=10)) == 2


def test_a_request_that_cannot_be_answered_is_told_once_a_topic_and_an_echo_once() -> None:
    log = Recorder()
    fault = "it is not under edge/buffer/receipts/"
    told = log.see(RequestRefused("a", fault), RequestRefused("b", fault), Echoed("s/state"), Echoed("s/at"), times=5)
    assert [line.level for line in told] == [logging.WARNING] * 3
    assert fault in told[0].message
    assert '"s/state"' in told[2].message


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (Withheld(3), logging.WARNING, "the broker sends them again"),
        (Refused(3, "a/b", "too large"), logging.WARNING, 'too large, such as one on "a/b"'),
        (Dropped(3, "max_bytes"), logging.ERROR, "dropped, in the loss ledger: max_bytes"),
        (Died(3, "schema (HTTP 422)"), logging.ERROR, "schema (HTTP 422)"),
    ],
)
def test_messages_with_the_same_fate_are_told_at_once_and_then_summed_up(event: Event, level: int, words: str) -> None:
    log = Recorder()
    (first,) = log.see(event, times=1000)
    assert (first.level, first.fields) == (level, {"messages": 3})
    assert words in first.message
    log.now += REMIND_SECONDS
    assert [line.fields for line in log.see(TICK, TICK)] == [{"messages": 2997}]
    log.see(event)
    rest, stopping = log.see(Stopping())
    assert rest.fields == {"messages": 3}
    assert stopping.message == "stopping in order"


def test_ever_new_topics_and_reasons_do_not_fill_the_memory_or_the_log() -> None:
    log = Recorder()
    for number in range(3000):
        log.see(ConflictSeen(f"t{number}", "1"), Died(1, f"reason {number}"))
    assert len(log.lines) <= 2001
    assert len(log._log._tallies) <= 1001
    log.now += REMIND_SECONDS
    assert (
        sum(line.fields["messages"] for line in [*log.lines, *log.see(Stopping())] if "messages" in line.fields) == 3000
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.4 s"), (59, "59 s"), (61, "1 min"), (3600, "1 h 0 min"), (19200, "5 h 20 min"), (187200, "2 d 4 h")],
)
def test_a_length_of_time_is_written_for_people(seconds: float, words: str) -> None:
    assert span(seconds) == words


# ---- lines ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.getLogger("bridge").setLevel(logging.NOTSET)  # whatever came before
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def record(message: str, *, failing: bool = False, **extra: object) -> logging.LogRecord:
    error = None
    if failing:
        try:
            raise ValueError("first\nsecond")  # noqa: TRY301
        except ValueError:
            error = sys.exc_info()
    made = logging.LogRecord("bridge.broker", logging.WARNING, __file__, 1, "%s", (message,), error)
    vars(made).update(extra)
    return made


FORGED = "topic\nERROR forged \x1b[2J\r\x85\u2028\u202e\ud800"


@pytest.mark.parametrize("formatter", [TextLines(tracebacks=False), JsonLines()])
def test_a_record_is_one_line_whatever_is_in_it(formatter: logging.Formatter) -> None:
    line = formatter.format(record(FORGED, failing=True))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()


def test_a_text_line_names_an_exception_and_where_it_was_raised() -> None:
    line = TextLines(tracebacks=False).format(record("x", failing=True))
    assert r"(ValueError: first\nsecond at test_log.py:" in line
    assert "Traceback" in TextLines(tracebacks=True).format(record("x", failing=True))


def test_a_json_line_has_the_fields_and_the_whole_traceback_in_one_of_them() -> None:
    line = json.loads(JsonLines().format(record("x", failing=True, part="cloud", level="forged")))
    assert list(line) == ["at", "level", "logger", "message", "part", "exception"]
    assert line["at"].endswith("Z")
    assert (line["level"], line["logger"], line["message"], line["part"]) == ("warning", "bridge.broker", "x", "cloud")
    assert line["exception"].startswith("Traceback")


def test_printable_text_stays_as_it_is() -> None:
    assert printable("Prüfung ✓ 検査") == "Prüfung ✓ 検査"


def test_a_terminal_gets_text_and_everything_else_json(untouched_logging: None) -> None:
    for stream, form, is_json in (
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "text", False),
    ):
        setup("info", form, stream)  # type: ignore[arg-type]
        EventLogger(lambda: 0.0)(FAILED)
        assert stream.getvalue().startswith("{") is is_json
        assert "HTTP 503" in stream.getvalue()
        assert stream.getvalue().count("\n") == 1


def test_the_level_decides_what_is_written(untouched_logging: None) -> None:
    stream = io.StringIO()
    setup("error", "text", stream)
    listen = EventLogger(lambda: 0.0)
    listen(FAILED)
    listen(DiskTroubled("full", "no space"))
    assert stream.getvalue().count("\n") == 1
    assert "no space" in stream.getvalue()


def test_what_is_counted_elsewhere_makes_no_line() -> None:
    assert Recorder().see(Received(1), Stored(1, 0, 0), Delivered(1, 0.1), ReceiptsGiven(1, 0), times=3) == []


def test_at_debug_also_the_looks_at_the_page_are_written(untouched_logging: None) -> None:
    access = logging.getLogger("aiohttp.access")
    access.setLevel(logging.NOTSET)
    setup("debug", "text", io.StringIO())
    assert access.isEnabledFor(logging.INFO)
    setup("info", "text", io.StringIO())
    assert not access.isEnabledFor(logging.INFO)
