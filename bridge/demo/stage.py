"""The programs of the demo, as real child processes: Mosquitto, the bridge, and the receiver as the cloud.

Each runs in the demo's folder with its log beside it, on loopback and a free port, configured by files that are
written there: nothing of the user's configuration or environment reaches them. They are in sessions of their own, so
that Ctrl-C is the demo's business alone; leaving the stage ends whatever still runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from bridge.errors import FaultError, OperatorError

HOST = "127.0.0.1"
LOG_LINES_MAX = 15
STATUS_TOPIC = "edge/buffer/status"
# Below the ports that systems give to outgoing connections: the cloud's must still be free when it comes back.
_PORTS = range(20_000, 32_000)
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # where daemons are, and a user's PATH may not lead
_END_SECONDS = 5.0

# mosquitto/mosquitto.conf of the repository, with only port, paths and anonymous access changed (a test compares).
_MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_on_changes false
autosave_interval 1
max_queued_messages 1000000
max_queued_bytes 268435456
queue_qos0_messages true
upgrade_outgoing_qos true
max_inflight_messages 10000
max_packet_size 4194304
persistent_client_expiration 4w
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
log_type notice
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

_BRIDGE = """\
# Written by `edge-bridge demo`; see `edge-bridge config schema` for all there is.
device_id = "demo"

[mqtt]
host = "127.0.0.1"
port = {broker_port}

[queue]
path = {queue_folder}
min_free_disk_bytes = 16_777_216
keep_delivered_messages = {keep_messages}  # all of them: the demo looks into the file at the end

[upload]
url = "http://127.0.0.1:{cloud_port}/"
retry_max_seconds = 2  # 60 as shipped: a demo has no time

[status]
interval_seconds = 0.5

[web]
port = {web_port}
"""


class StageError(FaultError):
    """A program did not do what the demo needs; `log_lines` are the last ones it wrote."""

    def __init__(self, message: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__(message, "nothing was left running; --keep DIR keeps all the logs")
        self.log_lines = tuple(log_lines)


@dataclass(slots=True)
class Program:
    """One child process that can be started again and again; its output is appended to `log`."""

    name: str
    command: tuple[str, ...]
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _is_wanted: bool = field(init=False, default=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),  # the very package that runs this
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        self._is_wanted = True

    def send(self, number: signal.Signals) -> None:
        """Send a signal that ends it; from now on it may be gone."""
        self._is_wanted = False
        if self._process is not None:
            self._process.send_signal(number)

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll() if self._process else 0

    def check(self) -> None:
        """Raise StageError if it ended although nobody asked it to."""
        if self._is_wanted and self.exit_status is not None:
            raise StageError(f"{self.name} ended by itself with exit status {self.exit_status}", self.last_lines())

    def last_lines(self) -> list[str]:
        """Return the end of its log."""
        if not self.log.exists():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_MAX:]

    def end(self) -> None:
        """End it: kindly, then not; and wait until it is gone."""
        if self._process is None or self.exit_status is not None:
            return
        self.send(signal.SIGTERM)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Stage:
    """The three programs on free ports; `with` ends whatever runs. Raises OperatorError without a Mosquitto."""

    def __init__(self, folder: Path, messages: int) -> None:
        folder = folder.resolve()
        broker_folder = folder / "broker"
        broker_folder.mkdir(mode=0o700)
        self.queue_folder = folder / "queue"
        self.broker_port, self.cloud_port, self.web_port = _free_ports(3)
        conf, toml = folder / "mosquitto.conf", folder / "bridge.toml"
        conf.write_text(mosquitto_conf(self.broker_port, broker_folder), encoding="utf-8")
        ports = self.broker_port, self.cloud_port, self.web_port
        toml.write_text(bridge_toml(self.queue_folder, *ports, keep_messages=2 * messages), encoding="utf-8")
        itself = (sys.executable, "-P", "-m", "bridge")
        self.broker = Program("mosquitto", (_mosquitto(), "-c", str(conf)), folder)
        self.bridge = Program("bridge", (*itself, "run", "--config", str(toml)), folder)
        receiver = ("receiver", "--port", str(self.cloud_port), "--data", str(folder / "cloud"), "--allow-faults")
        self.cloud = Program("receiver", (*itself, *receiver), folder)

    @property
    def _programs(self) -> tuple[Program, ...]:
        return self.bridge, self.cloud, self.broker

    def check(self) -> None:
        """Raise StageError if a program ended although nobody asked it to."""
        for program in self._programs:
            program.check()

    def broker_answers(self) -> bool:
        """Tell whether the broker takes connections."""
        with closing(socket.socket()) as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, self.broker_port)) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in self._programs:
            program.end()


def mosquitto_conf(port: int, folder: Path) -> str:
    """Return the broker's configuration."""
    conf = _MOSQUITTO.format(port=port, folder=folder)
    return f"user root\n{conf}" if os.geteuid() == 0 else conf  # else it could not write here as user mosquitto


def bridge_toml(queue_folder: Path, broker_port: int, cloud_port: int, web_port: int, *, keep_messages: int) -> str:
    """Return the bridge's configuration."""
    return _BRIDGE.format(
        broker_port=broker_port,
        cloud_port=cloud_port,
        web_port=web_port,
        queue_folder=json.dumps(str(queue_folder), ensure_ascii=False),  # a TOML string, too
        keep_messages=keep_messages,
    )


def _mosquitto() -> str:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SBIN))
    if found is None:
        raise OperatorError(
            "mosquitto is not installed, and the demo needs a broker of its own",
            "in the repository: make setup; or on Debian and Ubuntu: sudo apt-get install mosquitto",
        )
    return found


def _free_ports(number: int) -> list[int]:
    candidates = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return list(islice(filter(_is_free, candidates), number))


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
