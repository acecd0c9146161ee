"""`edge-bridge status`: what it prints, and its exit status."""

from __future__ import annotations

import argparse
import asyncio
import io
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import orjson
import pytest
from rich.console import Console

from bridge import monitor
from bridge.cli import status as command
from bridge.cli.status import count, follow, show_once, size, span, view
from bridge.config import Loaded, MqttSettings, Settings
from bridge.errors import FaultError
from bridge.events import (
    BrokerConnected,
    BrokerLost,
    CloudFailed,
    CloudPaused,
    Delivered,
    Died,
    Event,
    QueueCounted,
    Received,
    Stopping,
    Stored,
)
from bridge.monitor import parse
from bridge.status import Now, Status, Tree, object_will, tree

WHERE = "edge/buffer/status at broker.example:1883"
START = Now(1000.0, datetime(2026, 10, 1, 8, 15, tzinfo=UTC).timestamp())
CONNECTED = BrokerConnected(session_present=True, reconnects=2)


def told(*events: Event) -> Tree:
    status = Status.starting("1.2.3", "press-4", START)
    for event in events:
        status = status.apply(event, START)
    return tree(status, Now(START.monotonic + 3 * 86_400 + 7_200, START.wall))


class Publications:
    """What the broker sends: each list is one connection, an error ends it, and the last connection stays open."""

    def __init__(self, *connections: list[Tree | bytes | FaultError]) -> None:
        self._connections = list(connections)
        self.open = 0

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        self.open += 1
        try:
            for sent in self._connections.pop(0):
                if isinstance(sent, FaultError):
                    raise sent
                yield sent if isinstance(sent, bytes) else orjson.dumps(sent)
            await asyncio.Event().wait()
        finally:
            self.open -= 1


def shown(status_tree: Tree, *, later_seconds: float = 2.0, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False, highlight=False).print(
        view(status_tree, START.wall + later_seconds)
    )
    return out.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


# ---- exit status ----


@pytest.mark.parametrize(
    ("events", "exit_status"),
    [
        ([CONNECTED], 0),
        ([CONNECTED, CloudFailed("timed out", 1.0)], 1),
        ([CONNECTED, Stopping()], 1),
        ([BrokerLost("gone", 1.0)], 1),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
async def test_the_exit_status_says_whether_the_bridge_is_online(
    events: list[Event], exit_status: int, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    assert await show_once(Publications([told(*events)]), WHERE, as_json=as_json) == exit_status
    assert "press-4" in capsys.readouterr().out


async def test_the_will_is_shown_too_and_is_not_online(capsys: pytest.CaptureFixture[str]) -> None:
    will = object_will("a", "1.2.3", "press-4")
    assert await show_once(Publications([will.payload]), WHERE, as_json=False) == 1
    out = capsys.readouterr().out
    assert "offline" in out
    assert "connection lost" in out
    assert "queue" not in out


async def test_nothing_retained_is_said_with_the_broker_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "ANSWER_SECONDS", 0.01)
    publications = Publications([])
    with pytest.raises(FaultError, match=f"no status is retained on {WHERE}") as caught:
        await show_once(publications, WHERE, as_json=False)
    assert "is a bridge running" in caught.value.hint
    assert publications.open == 0


async def test_the_connection_is_closed_after_the_first_answer(capsys: pytest.CaptureFixture[str]) -> None:
    publications = Publications([told(CONNECTED), told(CONNECTED)])
    await show_once(publications, WHERE, as_json=True)
    assert publications.open == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("payload", [b"hello", b"42", b"[]", b"{}", b'{"state":1}', b"\xff\xfe", b'{"state":"online"'])
def test_what_another_program_put_there_is_not_taken_for_a_status(payload: bytes) -> None:
    with pytest.raises(FaultError, match="not a bridge's status"):
        parse(payload, WHERE)


# ---- what it prints ----


async def test_json_is_the_object_as_it_was_published(capsys: pytest.CaptureFixture[str]) -> None:
    published = told(CONNECTED, QueueCounted(42, 1, 9, 0, 5, 2**53, 7, 1.5))
    await show_once(Publications([published]), WHERE, as_json=True)
    assert capsys.readouterr().out.encode() == orjson.dumps(published) + b"\n"


def test_the_table_has_what_an_operator_looks_for() -> None:
    counted = QueueCounted(1234, 100, 10_000, 3, 768 * 2**20, 2**30, 12 * 2**30, 732.0)
    events = (
        CONNECTED,
        Received(123_456),
        Stored(123_400, 4, 1),
        Delivered(120_000, 0.012),
        Died(3, "bad"),
        counted,
    )
    text = words(shown(told(*events, CloudPaused("HTTP 401", 60.0))))
    for expected in (
        "degraded press-4 edge-bridge 1.2.3, up 3 d 2 h",
        "2 s ago",
        "cloud paused: HTTP 401; 1334 waiting",
        "broker connected · 2 reconnects",
        "cloud paused · next attempt in 58 s · last success 2 s ago",
        "12.0 ms (p50)",
        "1,334 waiting · 100 of them on their way · the oldest for 12 min 12 s",
        "10,000 delivered and kept · 3 dead",
        "75 % · 768.0 MiB of 1.0 GiB",
        "12.0 GiB free on the disk",
        "received 123,456",
        "conflict 1",
    ):
        assert expected in text


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal_and_keeps_every_number(width: int) -> None:
    largest = QueueCounted(10**9, 10**6, 10**9, 10**6, 10**15, 2 * 10**15, 10**15, 10**8)
    text = shown(
        told(CONNECTED, Received(10**10), Stored(10**10, 10**9, 10**9), Delivered(10**10, 1000.0), largest), width=width
    )
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("10,000,000,000") == 3


def test_an_old_status_says_how_old_it_is() -> None:
    assert "3 h 20 min ago" in shown(told(CONNECTED), later_seconds=12_000)


def test_a_status_without_a_bound_shows_no_bar() -> None:
    text = words(shown(told(CONNECTED, QueueCounted(0, 0, 0, 0, 5 * 2**20, 0, 2**30, None))))
    assert "5.0 MiB · no bound" in text
    assert "━" not in text


def test_text_from_the_topic_can_neither_steer_the_terminal_nor_the_markup() -> None:
    hostile = told(CONNECTED) | {"reason": "\x1b]0;owned\x07[red]x[/]\x9b31m", "bridge_id": "a\x1b[2Jb"}
    text = shown(hostile)
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "[red]x[/]" in text


def test_a_status_of_another_version_is_shown_as_far_as_it_goes() -> None:
    strange: Tree = {
        "state": "asleep",
        "reason": 5,
        "queue": {"ready": "many"},
        "cloud": {},
        "load": {},
        "extra": {"x": 1},
    }
    text = shown(strange)
    assert "asleep" in text
    assert "– waiting" in text


# ---- watching ----


async def watch_until(
    text: str, publications: Publications, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> str:
    """Follow until the text was printed on either stream, then stop as Ctrl-C does; returns all that was printed."""
    following = asyncio.create_task(follow(publications, WHERE, as_json=as_json))
    printed = ""
    async with asyncio.timeout(5):
        while text not in printed:
            await asyncio.sleep(0)
            captured = capsys.readouterr()
            printed += captured.out + captured.err
            if following.done():
                following.result()
    following.cancel()
    await asyncio.wait([following])
    return printed


async def test_watching_prints_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    states = [told(CONNECTED), told(CONNECTED, CloudFailed("timed out", 1.0)), told(CONNECTED, Stopping())]
    publications = Publications([*states])
    printed = await watch_until('"stopping"', publications, capsys, as_json=True)
    assert [orjson.loads(line) for line in printed.splitlines()] == states
    assert publications.open == 0


async def test_watching_goes_on_when_the_broker_comes_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RETRY_SECONDS", 0.0)
    lost, still_lost = FaultError("connection to the broker lost"), FaultError("connection refused")
    publications = Publications([told(CONNECTED), lost], [still_lost], [told(CONNECTED, Stopping())])
    printed = await watch_until("stopping", publications, capsys, as_json=False)
    assert "connection to the broker lost; trying again" in printed
    assert "connection refused; trying again" in printed
    assert printed.index("online") < printed.index("lost; trying") < printed.index("stopping")


async def test_on_a_terminal_the_view_is_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RETRY_SECONDS", 60.0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal = io.StringIO()
    monkeypatch.setattr(command, "_console", lambda: Console(file=terminal, width=80, force_terminal=True))
    lost = FaultError("connection to the broker lost")
    following = asyncio.create_task(follow(Publications([told(CONNECTED), lost]), WHERE, as_json=False))
    async with asyncio.timeout(5):
        while "trying again" not in terminal.getvalue():  # noqa: ASYNC110 - a screen has no event
            await asyncio.sleep(0)
    following.cancel()
    await asyncio.wait([following])
    drawn = terminal.getvalue()
    assert "press-4" in drawn
    assert "\x1b[1A" in drawn, "the cursor goes up to draw over what was there"
    assert drawn.endswith("\x1b[?25h"), "the cursor is shown again"


async def test_watching_a_broker_that_is_not_there_ends_at_once() -> None:
    with pytest.raises(FaultError, match="connection refused"):
        await follow(Publications([FaultError("connection refused")]), WHERE, as_json=True)


async def test_a_cleared_topic_does_not_end_the_watch(capsys: pytest.CaptureFixture[str]) -> None:
    printed = await watch_until("press-4", Publications([b"", told(CONNECTED)]), capsys, as_json=True)
    assert printed.count("\n") == 1


def test_the_command_line_is_as_the_contract_says() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert vars(parser.parse_args(["--watch", "--json"])) == {"watch": True, "json": True}
    assert vars(parser.parse_args([])) == {"watch": False, "json": False}


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    settings = Settings.model_validate(
        {"device_id": "press-4", "mqtt": {"host": "broker.example"}, "upload": {"url": "https://cloud.example/in"}}
    )
    loaded = Loaded(settings=settings, sources={}, file=None)
    monkeypatch.setattr("bridge.config.load_from_environment", lambda _path, **_more: loaded)
    return argparse.Namespace(config=None, watch=False, json=True)


def test_the_command_asks_the_configured_broker_for_the_configured_topic(
    configured: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def watch_topic(mqtt: MqttSettings, topic: str) -> AsyncGenerator[bytes, None]:
        asked.append((mqtt.host, topic))
        return Publications([told(CONNECTED)])()

    monkeypatch.setattr("bridge.broker.watch_topic", watch_topic)
    assert command.execute(configured) == 0
    assert asked == [("broker.example", "edge/buffer/status")]
    assert "press-4" in capsys.readouterr().out


def test_ctrl_c_is_the_normal_end_of_a_watch(configured: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch_topic(_mqtt: MqttSettings, _topic: str) -> AsyncGenerator[bytes, None]:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge.broker.watch_topic", watch_topic)
    configured.watch = True
    assert command.execute(configured) == 0


# ---- words ----


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (3601, "1 h"),
        (12_000, "3 h 20 min"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
        (1000 * 86_400, "1000 d"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("byte_count", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 2**20, "1.5 GiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_a_size_is_told_in_binary_units(byte_count: float | None, text: str) -> None:
    assert size(byte_count) == text


def test_a_count_has_separators_and_an_unknown_one_is_a_dash() -> None:
    assert (count(1_234_567), count(0), count(None)) == ("1,234,567", "0", "–")
