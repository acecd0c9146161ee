"""`edge-bridge demo` within the test's process: that its count can fail, and how its programs are told of."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bridge.cli import main
from bridge.cli.demo import Lines
from bridge.demo import stage, story
from bridge.demo.classifier import Classifier
from bridge.demo.cloud import Cloud
from bridge.demo.stage import LOG_LINES_MAX, Program, StageError
from bridge.demo.tally import Tally
from bridge.errors import FaultError, OperatorError
from tests.harness import wait_until
from tests.harness.cloud import Cloud as FakeCloud
from tests.harness.cloud import answer
from tests.harness.command import Command

pytestmark = pytest.mark.usefixtures("mosquitto_installed")


def test_a_lost_message_makes_it_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The checker, checked: with one event missing at the cloud the count must find it."""
    payloads = Cloud.payloads
    monkeypatch.setattr(Cloud, "payloads", lambda self: dict(list(payloads(self).items())[1:]))
    assert main(["demo", "--messages", "200", "--json", "--keep", str(tmp_path / "kept")]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["ok"], result["lost"], result["delivered"]) == (False, 1, 199)
    assert (tmp_path / "kept" / "bridge.log").exists()


def test_a_program_that_ended_by_itself_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = Program("bridge", ("/bin/sh", "-c", "seq 100; echo no luck >&2; exit 3"), tmp_path)
    program.start()
    wait_until(lambda: program.exit_status is not None)
    with pytest.raises(StageError, match="bridge ended by itself with exit status 3") as caught:
        program.check()
    assert caught.value.log_lines[-1] == "no luck"
    assert len(caught.value.log_lines) == LOG_LINES_MAX


def test_a_bridge_that_does_not_start_is_told_with_its_log(
    edge_bridge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "bridge_toml", lambda *_, **__: "nonsense = 1\n")
    shown = edge_bridge("demo", "--messages", "200")
    assert shown.exit_status == 1
    assert any(line.startswith("  | edge-bridge: error: nonsense") for line in shown.stderr.splitlines())
    assert "bridge ended by itself with exit status 2" in shown.stderr


def test_a_signal_ends_it_as_shells_expect(edge_bridge: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    async def be_told_to_end(_: story.Story) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(30)

    monkeypatch.setattr(story.Story, "run", be_told_to_end)
    assert edge_bridge("demo").exit_status == 130


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("--messages", "5"), "'5' is not a whole number from 200 to"), (("--keep", "."), "cannot be made: File exists")],
)
def test_what_it_cannot_do_is_refused(edge_bridge: Command, arguments: tuple[str, ...], complaint: str) -> None:
    shown = edge_bridge("demo", *arguments)
    assert (shown.exit_status, shown.stdout) == (2, "")
    assert complaint in shown.stderr


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(OperatorError, match="needs scikit-learn"):
        Classifier.train(1)


def test_a_cloud_that_refuses_or_is_away_is_told() -> None:
    with FakeCloud() as there:
        there.always(answer(404))
        with pytest.raises(FaultError, match="the cloud answered PUT /faults with 404"):
            Cloud(there.port).lose_an_answer()
    assert Cloud(there.port).stats() is None


async def test_what_never_comes_ends_the_wait_with_the_log_of_whom_it_depends_on(tmp_path: Path) -> None:
    playing = story.Story(stage.Stage(tmp_path, 200), 200, 1, Lines(Console()))
    with pytest.raises(StageError, match="waited 0 s in vain for good news") as raised:
        await playing._until(lambda: False, "good news", Program("bridge", (), tmp_path), 0.05)
    assert raised.value.log_lines == ()


def test_a_program_that_does_not_end_kindly_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_END_SECONDS", 0.2)
    program = Program("deaf", ("/bin/sh", "-c", "trap '' TERM; echo begun; while :; do sleep 1; done"), tmp_path)
    assert program.last_lines() == []
    program.start()
    wait_until(lambda: program.last_lines() == ["begun"])
    program.end()
    assert program.exit_status == -signal.SIGKILL


@pytest.mark.parametrize("lost", [0, 1])
def test_people_get_a_table_and_nothing_is_kept_unless_asked_for(
    edge_bridge: Command, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    tally = Tally(published=9, stored=9, delivered=9 - lost, duplicated=0, lost=lost, unexpected=0, altered=0)

    async def run(_: story.Story) -> story.Outcome:
        return story.Outcome(tally, 5, 1.0, 2, 0.5, 1, 1.0, 3, 0, 0.97, 9.0)

    monkeypatch.setattr(story.Story, "run", run)
    shown = edge_bridge("demo")
    assert shown.exit_status == lost
    assert ("Nothing was lost." in shown.stdout) is not bool(lost)
    assert "Kept in" not in shown.stdout
