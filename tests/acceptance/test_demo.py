"""`edge-bridge demo`, as people run it: the real command with all its programs, an outage and a SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess

pytestmark = pytest.mark.usefixtures("mosquitto_installed")


class Demo(BridgeProcess):
    """The command, with a temporary folder of its own and a user whose configuration is all wrong."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "config").mkdir()
        (folder / "config" / "bridge.toml").write_text("this is no configuration")
        variables = {"TMPDIR": str(self.temporary), "BRIDGE_MQTT__PORT": "nonsense", "BRIDGE_NO__SUCH_KEY": "1"}
        super().__init__(folder, {}, command=("demo", *options), variables=variables)

    def assert_left_nothing(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert self.children() == []

    def children(self) -> list[bytes]:
        """The command lines of programs that work in our temporary folder."""
        commands = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                commands.append((process / "cmdline").read_bytes())
        return [command for command in commands if bytes(self.temporary) in command]


def test_an_outage_and_a_sigkill_lose_nothing(tmp_path: Path) -> None:
    with Demo(tmp_path, "--messages", "1000", "--json") as demo:
        assert demo.wait(90) == 0, demo.stderr
    result = json.loads(demo.stdout)
    assert result["ok"] is True
    assert result["published"] == result["stored"] == result["delivered"] == 1000
    assert (result["lost"], result["unexpected"], result["altered"]) == (0, 0, 0)
    assert result["backlog_max"] > 0
    assert result["outage_seconds"] > 0
    assert result["published_in_outage"] > 0
    assert result["kills"] == 1
    assert result["published_while_bridge_down"] > 0
    assert result["duplicated"] > 0  # the answer that got lost
    assert result["bridge_exit_status"] == 0
    assert result["accuracy"] > 0.9
    assert "The cloud goes away" in demo.stderr
    demo.assert_left_nothing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_interrupts_it_finds_nothing_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    with Demo(tmp_path) as demo:
        wait_until(lambda: "Steady flow" in demo.stdout, 60, "the flow")
        assert len(demo.children()) == 3
        os.kill(demo.pid, number)
        assert demo.wait(60) == 130  # a story that plays on instead ends before that, with 0
    assert demo.stderr == ""
    demo.assert_left_nothing()
