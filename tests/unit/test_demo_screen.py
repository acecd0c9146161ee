"""What the demo shows, and what its help promises."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from bridge.cli import demo, main
from bridge.cli.demo import Lines, Screen, report
from bridge.config import MqttSettings
from bridge.demo.acts import Act
from bridge.demo.cloud import Cloud
from bridge.demo.story import Outcome, Snapshot
from bridge.demo.tally import Tally
from bridge.demo.watch import Watch

GOOD = Tally(published=12_000, stored=12_000, delivered=12_000, duplicated=29, lost=0, unexpected=0, altered=0)
OUTCOME = Outcome(
    tally=GOOD,
    backlog_max=3_600,
    outage_seconds=6.4,
    published_in_outage=3_700,
    drain_seconds=0.5,
    kills=1,
    bridge_down_seconds=4.0,
    published_while_bridge_down=2_364,
    bridge_exit_status=0,
    accuracy=0.968,
    seconds=23.2,
)
SNAPSHOT = Snapshot(
    messages=12_000,
    published=6_000,
    stored=5_900,
    waiting=3_000,
    waiting_max=3_100,
    delivered=2_900,
    bridge_is_there=True,
    cloud_is_there=False,
    seconds=11.0,
)


def shown(outcome: Outcome) -> str:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(report(outcome))
    return capture.get()


def drawn(act: Act, snapshot: Snapshot) -> str:
    console = Console(file=io.StringIO(), width=80, height=24)
    screen = Screen(console, 20_003)
    for done in list(Act)[: list(Act).index(act)]:
        screen.begin(done)
        screen.end("x" * 40)
    screen.begin(act)
    screen.show(snapshot)
    with console.capture() as capture:
        console.print(screen._draw())
    return capture.get()


@pytest.mark.parametrize("act", Act)
def test_every_act_fits_a_terminal_of_80_by_24(act: Act) -> None:
    lines = drawn(act, SNAPSHOT).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert sum("x" * 40 in line for line in lines) == list(Act).index(act)  # no result was cut or folded


def test_the_screen_says_who_is_away_and_what_waits() -> None:
    text = drawn(Act.OUTAGE, SNAPSHOT)
    assert "■ cloud away" in text
    assert "● bridge and disk" in text
    assert re.search(r"waiting .* 3,000  at most 3,100", text)
    assert "■ bridge and disk away" in drawn(Act.KILL, replace(SNAPSHOT, bridge_is_there=False))


def test_bars_stay_in_their_place_also_beyond_the_end() -> None:
    text = drawn(Act.COUNT, replace(SNAPSHOT, stored=20_000))
    assert max(line.count("━") for line in text.splitlines()) == demo._BAR_COLUMNS


def test_without_a_terminal_each_act_is_a_line_and_its_end_another() -> None:
    console = Console(file=io.StringIO(), width=80)
    lines = Lines(console)
    with console.capture() as capture:
        lines.begin(Act.FLOW)
        lines.show(SNAPSHOT)  # too soon after the line before
        lines.end("[42] delivered")
    assert capture.get().splitlines() == [f"{Act.FLOW.title}. {Act.FLOW.words}", "  → [42] delivered"]


def test_the_report_counts_and_says_that_nothing_was_lost() -> None:
    text = shown(OUTCOME)
    assert re.search(r"published +12,000", text)
    assert re.search(r"duplicated +29", text)
    assert re.search(r"lost +0", text)
    assert "Nothing was lost." in text
    assert "unexpected" not in text


@pytest.mark.parametrize("kind", ["lost", "unexpected", "altered"])
def test_the_report_does_not_say_so_when_something_was(kind: str) -> None:
    text = shown(replace(OUTCOME, tally=replace(GOOD, **{kind: 1})))
    assert re.search(rf"{kind} +1", text)
    assert "Nothing was lost" not in text


def test_the_help_explains_each_member_of_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--help"])
    assert caught.value.code == 0
    explained = re.findall(r"^  (\w+)   ", capsys.readouterr().out.split("--json prints one object:")[1], re.MULTILINE)
    assert explained == list(OUTCOME.to_json())


@pytest.mark.parametrize("number", ["0", "199", "100001", "many", "-500"])
def test_a_number_of_messages_that_makes_no_demo_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", f"--messages={number}"]) == 2
    assert "200 to 100000" in capsys.readouterr().err


def test_the_will_says_that_the_bridge_is_gone_and_leaves_the_numbers_as_last_seen() -> None:
    watch = Watch(MqttSettings(), Cloud(1), "status")
    queue = {"ready": 5, "taken": 2, "delivered": 30, "dead": 1}
    watch.take({"state": "degraded", "broker": {"connected": True}, "cloud": {"state": "offline"}, "queue": queue})
    assert (watch.bridge_is_connected, watch.bridge_sees_cloud) == (True, False)
    assert (watch.waiting, watch.stored) == (7, 38)
    watch.take({"state": "offline", "reason": "connection lost", "version": "1", "bridge_id": "demo", "at": None})
    assert (watch.bridge_state, watch.bridge_is_connected) == ("offline", False)
    assert (watch.waiting, watch.waiting_max, watch.stored) == (7, 7, 38)


def test_the_screen_keeps_the_last_numbers_when_all_programs_are_gone() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    screen = Screen(console, 20_003)
    with screen:
        screen.end("nothing has begun yet")
        screen.begin(Act.COUNT)
        screen.show(SNAPSHOT)
        screen.end("0 lost")
    with console.capture() as capture:
        console.print(screen._draw())
    assert "its page" not in capture.get()
    assert "0 lost" in capture.get()
    assert "nothing has begun" not in capture.get()


def test_a_bridge_that_ended_badly_is_told_although_nothing_was_lost() -> None:
    assert "Nothing was lost, but the bridge ended with 1." in shown(replace(OUTCOME, bridge_exit_status=1))
