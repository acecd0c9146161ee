"""A process that has the bridge imported and forks one when asked; the suite starts some hundreds.

Most of a bridge's start is its imports. Everything from `bridge.cli.main` on is the same as in `python -m bridge run`;
what is measured, limited, traced or loaded otherwise is started as a process of its own (`BridgeProcess` decides). Each
pytest worker has one zygote, which ends with it. Its words, each a packet on a socket pair: JSON of what to run, with
the two outputs as descriptors → the process id; a process id → its exit status, or "running".
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness import REPOSITORY

_PACKET_BYTES = 1 << 17
_POLL_SECONDS = 0.005


class Zygote:
    """The worker's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.zygote", str(theirs.fileno())],
                cwd=REPOSITORY,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def fork(
        self, words: Sequence[str], folder: Path, variables: Mapping[str, str], outputs: tuple[int, int]
    ) -> Forked:
        """Run `edge-bridge WORDS` in that folder, under exactly these variables."""
        order = json.dumps({"words": list(words), "folder": str(folder), "variables": dict(variables)})
        with self._lock:
            socket.send_fds(self._socket, [order.encode()], outputs)
            return Forked(self, int(self._socket.recv(_PACKET_BYTES)))

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)

    def exit_status(self, pid: int) -> int | None:
        with self._lock:
            self._socket.send(str(pid).encode())
            answer = self._socket.recv(_PACKET_BYTES)
        return int(answer) if answer != b"running" else None


class Forked:
    """A bridge that a zygote forked, with what `BridgeProcess` wants of a `Popen`."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.exit_status(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("bridge", timeout)
            time.sleep(_POLL_SECONDS)
        return status


def serve(asked: socket.socket) -> None:
    """Fork and tell until the worker is gone."""
    while True:
        packet, descriptors, *_ = socket.recv_fds(asked, _PACKET_BYTES, 2)
        if not packet:
            return
        if not descriptors:
            pid, status = os.waitpid(int(packet), os.WNOHANG)
            asked.send(str(os.waitstatus_to_exitcode(status)).encode() if pid else b"running")
        elif pid := os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            asked.send(str(pid).encode())
        else:
            asked.close()
            become(json.loads(packet), descriptors)


def become(order: Mapping[str, object], descriptors: Sequence[int]) -> None:
    """Be the bridge; never returns."""
    from bridge.cli import main

    os.setsid()
    for target, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *descriptors]):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(str(order["folder"]))
    os.environ.clear()
    os.environ.update(order["variables"])  # type: ignore[call-overload] # strings, as they were sent
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = order["words"]
    assert isinstance(words, list)
    sys.argv = ["bridge", *words]
    raise SystemExit(main(words))


def preload() -> None:
    for module in ("bridge.cli.run", "bridge.service", "uvloop"):  # by name: a checker takes unused imports away
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    gc.freeze()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as mine:
        preload()
        serve(mine)
