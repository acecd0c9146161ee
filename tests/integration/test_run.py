"""`edge-bridge run` within the test's process: from the arguments to the orderly stop, on the loop that users have."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli import run
from tests.harness import wait_until
from tests.harness.bridge import StatusReader, environment
from tests.harness.command import Command
from tests.harness.mosquitto import Mosquitto
from tests.harness.stage import Stage


@pytest.fixture
def process_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what the command changes of its process."""
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before, mask = [signal.getsignal(number) for number in numbers], os.umask(0o022)
    root = logging.getLogger()
    logs, level = root.handlers[:], root.level
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    os.umask(mask)
    root.handlers[:], root.level = logs, level
    logging.captureWarnings(capture=False)
    gc.unfreeze()


@pytest.mark.usefixtures("process_kept")
@pytest.mark.parametrize("with_uvloop", [True, False])
def test_it_runs_until_sigterm_and_exits_0(
    edge_bridge: Command, tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, with_uvloop: bool
) -> None:
    if not with_uvloop:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    assert (run._loop_factory() is None) is not with_uvloop

    with Stage(tmp_path / "stage", mosquitto) as stage:
        seen: list[object] = []
        reloaded = threading.Event()

        def note(record: logging.LogRecord) -> bool:
            if record.msg.startswith("configuration reloaded"):
                reloaded.set()
            return True

        monkeypatch.setattr(logging.getLogger("bridge"), "filters", [note])

        def play() -> None:
            try:
                with StatusReader(stage.settings) as status:
                    wait_until(lambda: status.state == "online")
                    stage.publish(10)
                    os.kill(os.getpid(), signal.SIGHUP)
                    wait_until(lambda: stage.cloud.unique == 10)
                    seen.append((status.state, reloaded.wait(10)))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        player = threading.Thread(target=play)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # should the command not get as far as its own
        player.start()
        shown = edge_bridge("run", **environment(stage.settings))
        player.join()
    assert (shown.exit_status, shown.stdout, seen) == (0, "", [("online", True)])
    assert '"configuration reloaded"' in shown.stderr
    assert '"stopping in order"' in shown.stderr
    assert (stage.queue_path / "data.db").stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("process_kept")
def test_a_configuration_that_is_wrong_is_refused_before_anything_is_made(edge_bridge: Command, tmp_path: Path) -> None:
    shown = edge_bridge("run", BRIDGE_QUEUE__PATH=str(tmp_path / "queue"), BRIDGE_MQTT__PORT="x")
    assert shown.exit_status == 2
    assert [line.split(":")[2].strip() for line in shown.stderr.splitlines()[:-1]] == ["mqtt.port", "upload.url"]
    assert not (tmp_path / "queue").exists()
