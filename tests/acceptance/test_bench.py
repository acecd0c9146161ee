"""`edge-bridge bench`, the real command and its real processes, with few messages. No figure is asserted here.

Figures depend on the machine; that every message is accounted for, that the document is whole, and that nothing is
left behind does not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import wait_until

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
    with start(folder, *arguments) as process:
        stdout, stderr = process.communicate(timeout=100)
    return process.returncode, stdout, stderr


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
    assert bridge["stored"]["samples"] == 200
    assert 0 < bridge["stored"]["p50_ms"] <= bridge["stored"]["max_ms"]
    assert bridge["cpu_us_per_message"] > 0
    syncs = document["modes"][1]["syncs_per_message"]
    assert 0 < syncs < 0.1 if shutil.which("strace") else syncs is None
    assert document["modes"][0]["syncs_per_message"] is None
    assert bridge["rss_peak_bytes"] >= bridge["idle_rss_bytes"] > 10 << 20
    assert document["environment"]["mosquitto"].startswith("2.")
    assert document["alone"]["sink"]["zstd"]["messages_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


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
