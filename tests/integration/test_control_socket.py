"""The control socket: for this user alone, put in the place of a dead one, reachable however long its path."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.config import Settings
from bridge.control import Control
from bridge.disk_queue import DiskQueue
from tests.harness import REPOSITORY, wait_until
from tests.harness.bridge import environment
from tests.harness.mosquitto import Mosquitto
from tests.harness.stage import Stage

FLOOD = 200


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


def ask(stage: Stage, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(stage.queue_path / "control.sock"))
        connection.sendall(line)
        return connection.makefile("rb").readline()


@pytest.mark.parametrize(
    "after", ["1e30", "1e999", "-1e30", "9223372036854775808", "18446744073709551615", "[]", "null"]
)
def test_a_number_that_sqlite_cannot_take_is_refused_before_it_undoes_what_others_store(
    stage: Stage, after: str
) -> None:
    bridge = stage.launch()
    with stage.publisher(messages_per_second=2000) as publisher:
        for command in ("list", "losses", "compact", "ids"):
            assert b'"error"' in ask(
                stage, b'{"command":"%b","selection":{},"after":%b}\n' % (command.encode(), after.encode())
            )
    assert bridge.running
    stage.drain()
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_a_flood_of_half_requests_takes_a_bounded_number_of_descriptors_and_ends_with_it(stage: Stage) -> None:
    bridge = stage.launch()
    before = len(list(Path(f"/proc/{bridge.pid}/fd").iterdir()))
    with contextlib.ExitStack() as stack:
        for _ in range(FLOOD):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(stage.queue_path / "control.sock"))
            with contextlib.suppress(BrokenPipeError):  # those beyond the bound are told so and left
                connection.sendall(b'{"import": 17000000}\nhalf a li')
        refused = stats(stage)
        assert refused.returncode == 1
        assert refused.stderr.startswith("edge-bridge: error: the bridge talks to 32 others already")
        wait_until(lambda: len(list(Path(f"/proc/{bridge.pid}/fd").iterdir())) < before + FLOOD // 2, what="bounded")
        publisher = stage.publish(1000)
        stage.drain()
    wait_until(lambda: stats(stage).returncode == 0, what="there is room again")
    stage.audit(publisher).assert_kept(duplicates_max=0)
    assert bridge.running


@pytest.mark.parametrize("steps", range(4))
async def test_a_conversation_that_begins_while_it_stops_is_ended_too(tmp_path: Path, steps: int) -> None:
    """Its task has not run yet when the others are ended, and it must not ask a disk thread that is closed."""
    bounds = Settings.model_validate({"upload": {"url": "http://127.0.0.1:1/"}, "queue": {"path": tmp_path}}).queue
    asked: list[object] = []

    class Disk:
        def run(self, verb: Callable[[DiskQueue], Any]) -> asyncio.Future[Any]:
            asked.append(verb)
            return asyncio.get_running_loop().create_future()

        def wake(self) -> None: ...

    control = Control(bounds, Disk())
    await control.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
    writer.write(b'{"command":"stats","selection":{},"after":0}\n')
    for _ in range(steps):
        await asyncio.sleep(0)
    await control.stop()
    assert b"items" not in await asyncio.wait_for(reader.read(), 5)
    assert control._talks == set()
    assert steps > 2 or asked == []
    writer.close()


def test_a_long_list_comes_whole_while_messages_flow(stage: Stage) -> None:
    stage.cloud.unreachable()
    bridge = stage.launch(settings={"queue.keep_delivered_messages": 50_000, "upload.retry_max_seconds": 0.5})
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
