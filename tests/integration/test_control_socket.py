"""The control socket: for this user alone, put in the place of a dead one, reachable however long its path."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, wait_until
from tests.harness.bridge import environment
from tests.harness.mosquitto import Mosquitto
from tests.harness.stage import Stage


def stats(stage: Stage) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)} | environment(stage.settings)
    command = [sys.executable, "-m", "bridge", "queue", "stats"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("length", [0, 150], ids=["short path", "longer than a socket's address"])
def test_it_is_there_while_the_bridge_runs_and_after_a_sigkill_replaced(
    tmp_path: Path, mosquitto: Mosquitto, length: int
) -> None:
    folder = tmp_path / ("x" * length) if length else tmp_path
    with Stage(folder, mosquitto) as stage:
        bridge = stage.launch()
        path = stage.queue_path / "control.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stats(stage).returncode == 0
        bridge.kill()
        assert path.exists()
        offline = stats(stage)
        assert (offline.returncode, offline.stderr) == (0, ""), "a dead socket is nobody"
        bridge.start().wait_ready()
        assert stats(stage).returncode == 0
        assert stat.S_IMODE(stage.queue_path.stat().st_mode) == 0o700
        bridge.terminate()
        assert bridge.wait() == 0
        assert not path.exists()


def test_nonsense_is_answered_and_disturbs_nobody(stage: Stage) -> None:
    bridge = stage.launch()
    for line in (b"\n", b"{}\n", b'{"command":"drop","selection":{},"after":0}\n', b"[" * 100_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(stage.queue_path / "control.sock"))
            connection.sendall(line)
            assert b'"error"' in connection.recv(65536)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(stage.queue_path / "control.sock"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # too long a line ends the conversation
            connection.sendall(b"x" * (16 << 20))
    publisher = stage.publish(100)
    stage.drain()
    stage.audit(publisher).assert_kept()
    assert bridge.running


def test_a_long_list_comes_whole_while_messages_flow(stage: Stage) -> None:
    stage.cloud.unreachable()
    bridge = stage.launch(settings={"queue.keep_delivered_messages": 50_000})
    stage.publish(20_000, window=2000)
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)} | environment(stage.settings)
    command = [sys.executable, "-m", "bridge", "queue", "list", "--json"]
    wait_until(lambda: stats(stage).stdout.startswith("waiting    20,000"), what="all stored")
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) as listing:
        assert listing.stdout
        listing.stdout.readline()
        stage.cloud.reachable()
        stage.drain()
        assert sum(1 for _ in listing.stdout) >= 19_999
    assert bridge.running


def test_where_there_is_no_queue_it_says_so_and_makes_none(stage: Stage) -> None:
    done = stats(stage)
    assert done.returncode == 2
    assert f"there is no queue in {stage.queue_path}" in done.stderr
    assert not stage.queue_path.exists()
