"""Shell blocks of the documents that are marked `<!-- runs -->` are run, line by line, as a reader would.

A real Mosquitto, the real commands. Instead of the ports that the text names, which may be taken here, free ones are
put into the lines; the Mosquitto clients read theirs from their own configuration files. Lines that do not end by
themselves stay open, as in a terminal of their own, until all is done.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import REPOSITORY, free_port, wait_until
from tests.harness.bridge import child_environment
from tests.harness.mosquitto import Mosquitto

BASH = "/bin/bash"
DOCUMENTS = ("README.md", "docs/OPERATE.md")
_BLOCK = re.compile(r"<!-- runs -->\n```sh\n(.*?)```", re.DOTALL)
STAYS_OPEN = {  # what does not end by itself → what it says once it is ready
    "edge-bridge receiver": "listening|http://",
    "edge-bridge run": "connected to the broker",
    "mosquitto_sub": "edge/buffer/status",
    "edge-bridge status --watch": "online",
}
SAYS = {"curl -s http://127.0.0.1:8088/events": '"label":"cat"', "queue stats": "delivered", "/metrics": "edge_bridge_"}


class Terminal(NamedTuple):
    """A line that stays open."""

    line: str
    process: subprocess.Popen[bytes]
    output: Path


class Desk:
    """Terminals in a folder; `say` is what a line printed."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self._folder = folder
        self._ports = {"8088": str(free_port()), "8080": str(free_port())}
        self._open: list[Terminal] = []
        (folder / ".config").mkdir()
        for client in ("mosquitto_pub", "mosquitto_sub"):
            (folder / ".config" / client).write_text(f"-p {broker.port}\n")
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "edge-bridge").write_text(f'#!/bin/sh\nexec {sys.executable} -m bridge "$@"\n')
        (bin_folder / "edge-bridge").chmod(0o700)
        ports = {"mqtt.port": str(broker.port), "web.port": self._ports["8080"]}
        home = {"HOME": str(folder), "PATH": f"{bin_folder}:{os.environ['PATH']}", "COLUMNS": "100"}
        self._environment = child_environment(ports) | home

    def run(self, line: str) -> None:
        command = line.replace("/tmp/cloud", str(self._folder / "cloud"))  # noqa: S108 - as the document has it
        for port, ours in self._ports.items():
            command = command.replace(f":{port}", f":{ours}").replace(f"--port {port}", f"--port {ours}")
        stays_open = next((words for words in STAYS_OPEN if words in line), None)
        if stays_open:
            self._leave_open(line, command, STAYS_OPEN[stays_open])
        else:
            expected = next((words for start, words in SAYS.items() if start in line), "")
            wait_until(lambda: expected in self._ended(line, command), 15, f"{expected} from {line}")

    def _leave_open(self, line: str, command: str, ready: str) -> None:
        output = self._folder / f"terminal-{len(self._open)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [BASH, "-c", command],  # it becomes the one command that this is
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._open.append(Terminal(line, process, output))
        wait_until(lambda: re.search(ready, output.read_text(errors="replace")), 15, f"{ready} from {line}")

    def _ended(self, line: str, command: str) -> str:
        done = subprocess.run(
            [BASH, "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        ended = [terminal for terminal in self._open if terminal.process.poll() is not None]
        for terminal in reversed(self._open):
            terminal.process.terminate()
            terminal.process.wait(20)
        assert not ended, [f"{one.line}\n{one.output.read_text(errors='replace')}" for one in ended]


@contextmanager
def at_desk(folder: Path, broker: Mosquitto) -> Iterator[Desk]:
    desk = Desk(folder, broker)
    try:
        yield desk
    finally:
        desk.close()


def lines(document: str) -> list[str]:
    blocks = _BLOCK.findall((REPOSITORY / document).read_text(encoding="utf-8"))
    assert blocks, f"no block of {document} is marked"
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.usefixtures("mosquitto_installed")
def test_the_marked_blocks_run_as_they_stand(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker") as broker, at_desk(tmp_path, broker) as desk:
        for document in DOCUMENTS:
            for line in lines(document):
                desk.run(line)
