"""The real command as a child process, configured by nothing but the environment."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.harness import REPOSITORY, wait_until
from tests.harness.zygote import Forked, Zygote

READY_SECONDS = 15
STOP_SECONDS = 20
REFUSE_SECONDS = 10  # promise 13


@functools.cache
def _zygote() -> Zygote:
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Turn `{"upload.url": "…", "mqtt.topics": ["a/#"]}` into BRIDGE_ variables; lists and tables become JSON."""
    return {
        "BRIDGE_" + key.upper().replace(".", "__"): value if isinstance(value, str) else json.dumps(value)
        for key, value in settings.items()
    }


def child_environment(settings: Mapping[str, object] | None = None) -> dict[str, str]:
    """What a child of the tests sees: our variables without the bridge's, this checkout, and these settings."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
    return own | {"PYTHONPATH": str(REPOSITORY)} | environment(settings or {})


def run_really(
    *words: str, settings: Mapping[str, object], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`edge-bridge WORDS` as an operator runs it: a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bridge", *words],
        cwd=folder,
        env=child_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class BridgeProcess:
    """`python -m bridge run` (or another command) in a process group of its own, its output kept in files.

    `settings` are dotted keys as in the configuration. `wrapper` goes before the command (strace, faketime, prlimit);
    signals go to the bridge itself, not to its wrapper. `module` runs in the place of `bridge` (a saboteur). Start it
    as often as you like: output is appended.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        *,
        command: Sequence[str] = ("run",),
        wrapper: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        module: str = "bridge",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = dict(settings)
        self._module = module
        self._command = [*wrapper, sys.executable, "-m", module, *command]
        self._wrapped = bool(wrapper)
        self._words = tuple(command)
        # What is wrapped, broken on purpose, or given something that Python itself reads has a start of its own; so has
        # what is measured for its coverage.
        plain = not wrapper and module == "bridge" and all(name.startswith("BRIDGE_") for name in variables or {})
        self._may_be_forked = plain and command[:1] == ("run",) and "COVERAGE_PROCESS_CONFIG" not in os.environ
        self._variables = dict(variables or {})
        self._stdout_path, self._stderr_path = folder / "bridge.out", folder / "bridge.err"
        self._process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def stdout(self) -> str:
        return self._stdout_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The exit status of the last run; None while it runs, negative for the signal that ended it."""
        return self._child.poll()

    @property
    def pid(self) -> int:
        """The bridge's own process id, also behind a wrapper."""
        return self._inner_pid() if self._wrapped else self._child.pid

    def start(self) -> Self:
        assert not self.running
        variables = child_environment(self.settings) | self._variables
        # In its own folder, so that no ./data and no config/bridge.toml of the repository is found.
        with self._stdout_path.open("ab") as stdout, self._stderr_path.open("ab") as stderr:
            if self._may_be_forked:
                outputs = stdout.fileno(), stderr.fileno()
                self._process = _zygote().fork(self._words, self.folder, variables, outputs)
            else:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=self.folder,
                    env=variables,
                    start_new_session=True,
                )
        return self

    def wait_ready(self, timeout_seconds: float = READY_SECONDS) -> Self:
        """Wait until its status says online: broker connected and every filter granted."""
        with StatusReader(self.settings) as status:
            wait_until(lambda: self._alive() and status.state == "online", timeout_seconds, "status online")
        return self

    async def ready(self, timeout_seconds: float = READY_SECONDS) -> Self:
        """`wait_ready` that leaves the event loop free, for a test whose cloud lives on it."""
        return await asyncio.to_thread(self.wait_ready, timeout_seconds)

    def wait(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Wait for the end and return the exit status."""
        return self._child.wait(timeout_seconds)

    async def ended(self, timeout_seconds: float = STOP_SECONDS) -> int:
        return await asyncio.to_thread(self.wait, timeout_seconds)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def hup(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def kill(self) -> None:
        """SIGKILL for the whole group, and wait until the bridge has let go of its files, also behind a wrapper."""
        with contextlib.suppress(ProcessLookupError):
            pid = self.pid
            try:
                os.killpg(self._child.pid, signal.SIGKILL)
            except ProcessLookupError:  # forked a moment ago, and in its zygote's group still
                os.kill(self._child.pid, signal.SIGKILL)
            wait_until(lambda: _is_gone(pid), STOP_SECONDS, "killed")
        self._child.wait(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.kill()

    @property
    def _child(self) -> subprocess.Popen[bytes] | Forked:
        assert self._process is not None, "not started"
        return self._process

    def _alive(self) -> bool:
        assert self.running, f"the bridge ended with {self.exit_status}:\n{self.stderr}"
        return True

    def _inner_pid(self) -> int:
        """The one process of the group that runs the module and is not the wrapper."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                pid = int(process.name)
                if words[1:3] == [b"-m", self._module.encode()] and os.getpgid(pid) == self._child.pid:
                    return pid
        raise ProcessLookupError("the wrapped bridge does not run")


def refused(folder: Path, settings: Mapping[str, object], *, wrapper: Sequence[str] = ()) -> list[str]:
    """Run the bridge, which must end soon, with status 2 and no traceback; return its lines, the hint last."""
    bridge = BridgeProcess(folder / "run", settings, wrapper=wrapper)
    with bridge:
        assert bridge.wait(REFUSE_SECONDS) == 2, bridge.stderr
    assert bridge.stdout == ""
    assert "Traceback" not in bridge.stderr
    *errors, hint = bridge.stderr.splitlines()
    assert hint.startswith("hint: ")
    assert all(line.startswith("edge-bridge: error: ") for line in errors)
    return [*(line.removeprefix("edge-bridge: error: ") for line in errors), hint.removeprefix("hint: ")]


def _is_gone(pid: int) -> bool:
    """Say whether a process has closed its files: when it is a zombie, or no more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


class StatusReader:
    """Subscribes to the status tree with the bridge's own credentials; `leaves` holds the last value of each topic."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.leaves: dict[str, str] = {}
        self._topic = str(settings.get("status.topic", "edge/buffer/status"))
        self._settings = settings
        unix = settings.get("mqtt.transport") == "unix"
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, transport="unix" if unix else "tcp"
        )
        if username := settings.get("mqtt.username"):
            self._paho.username_pw_set(str(username), str(settings.get("mqtt.password", "")))
        self._paho.on_connect = self._on_connect
        self._paho.on_message = self._on_message

    @property
    def state(self) -> str | None:
        return self.leaves.get("state")

    @property
    def whole(self) -> dict[str, Any]:
        """The retained JSON object; empty before the first one came."""
        return dict(json.loads(self.leaves.get("", "{}")))

    def __enter__(self) -> Self:
        host, port = str(self._settings.get("mqtt.host", "127.0.0.1")), int(str(self._settings.get("mqtt.port", 1883)))
        self._paho.connect_async(host, port)
        self._paho.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()

    def _on_connect(self, *_: object) -> None:
        self._paho.subscribe(self._topic + "/#", 1)

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        leaf = message.topic.removeprefix(self._topic).removeprefix("/")
        self.leaves[leaf] = message.payload.decode()
