"""`edge-bridge bench` with its real processes and few messages. No figure is asserted here.

Figures depend on the machine; that every message is accounted for, that the document is whole, and that nothing is
left behind does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bridge.bench import measure, programs
from bridge.bench.contenders import Bridge, NullSubscriber, Surroundings
from bridge.bench.programs import Program
from tests.harness import wait_until
from tests.harness.command import run_command

ROOT = Path(__file__).parents[2]
QUICK = ("--runs", "1", "--messages", "3000", "--latency-seconds", "1", "--latency-rate", "200", "--idle-seconds", "1")

pytestmark = pytest.mark.usefixtures("mosquitto_installed")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bridge", "bench", "--folder", str(folder), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "BRIDGE_QUEUE__PATH": "/nowhere"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bench(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run it in this process; its own programs are processes of course."""
    with mock.patch.dict(programs.ENVIRONMENT, {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}):
        done = run_command("bench", "--folder", str(folder), *arguments, folder=folder)
    return done.returncode, done.stdout, done.stderr


def processes_in(folder: Path) -> list[str]:
    """The command lines of all processes whose working directory is in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").readlink().is_relative_to(folder)
            found += [(process / "cmdline").read_text()] if inside else []
        except OSError:
            continue
    return found


def test_every_mode_is_measured_and_every_message_accounted_for(tmp_path: Path) -> None:
    status, stdout, stderr = bench(tmp_path, *QUICK, "--compression", "zstd", "--json", "-")
    assert status == 0, stderr
    document: dict[str, Any] = json.loads(stdout)
    assert document["missing"] == 0
    assert [mode["title"] for mode in document["modes"]] == ["ceiling: null subscriber", "bridge: power, zstd"]
    ceiling, bridge = (mode["runs"][0] for mode in document["modes"])
    assert (ceiling["messages"], ceiling["missing"], ceiling["latency"]) == (3000, 0, None)
    assert (bridge["messages"], bridge["missing"]) == (3000, 0)
    assert bridge["latency"]["samples"] == 200
    assert 0 < bridge["latency"]["p50_ms"] <= bridge["latency"]["p99_ms"] <= bridge["latency"]["max_ms"]
    assert bridge["cpu_us_per_message"] > 0
    assert bridge["rss_peak_bytes"] >= bridge["idle_rss_bytes"] > 10 << 20
    assert document["environment"]["mosquitto"].startswith("2.")
    assert document["alone"]["sink"]["zstd"]["messages_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


def test_without_a_terminal_it_prints_a_plain_table_and_can_write_the_runs_to_a_file(tmp_path: Path) -> None:
    options = ("--compression", "none", "--durability", "crash", "--latency-seconds", "0", "--idle-seconds", "0")
    status, stdout, stderr = bench(tmp_path, *QUICK, *options, "--json", "runs.json")
    assert status == 0, stderr
    assert "\x1b" not in stdout + stderr
    row = next(line for line in stdout.splitlines() if "bridge: crash, none" in line)
    document = json.loads((tmp_path / "runs.json").read_text())
    assert f"{document['modes'][1]['runs'][0]['messages_per_second']:,}" in row
    assert document["modes"][1]["runs"][0]["latency"] is None


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds what is left over in /proc")
@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals, exit_status: int) -> None:
    with start(tmp_path, *QUICK, "--compression", "none", "--idle-seconds", "60") as process:
        try:
            wait_until(lambda: any("bridge\0run" in line for line in processes_in(tmp_path)), 60, "the bridge runs")
        finally:
            process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == exit_status
    assert processes_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True, slots=True)
class LosingBridge(Bridge):
    """Gives up whatever it cannot keep in three rows."""

    def program(self, around: Surroundings) -> Program:
        program = Bridge.program(self, around)  # super() does not work in a class with slots
        toml = around.folder / "bridge.toml"
        toml.write_text(toml.read_text().replace('overflow = "block"', 'overflow = "drop-newest"\nmax_messages = 3'))
        return program


def test_messages_that_a_contender_loses_are_missing_from_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_STALL_SECONDS", 2.0)
    contenders = (NullSubscriber(), LosingBridge("crash", "none"))
    plan = measure.Plan(contenders, 2000, 200, 1, latency_rate=1, latency_seconds=0, idle_seconds=0, folder=tmp_path)
    ceiling, losing = asyncio.run(measure.measure(plan, lambda *_: None, lambda: None))
    assert ceiling.runs[0].missing == 0
    assert 0 < losing.runs[0].missing < 2000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--payload-bytes", "10"), "too small"),
        (("--messages", "100000000"), "memory"),
        (("--messages", "none"), "not a number"),
        (("--compression", "lzma"), "lzma"),
        (("--folder", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    status, stdout, stderr = bench(tmp_path, *arguments)
    assert (status, stdout) == (2, "")
    assert complaint in stderr
    assert "hint: " in stderr
