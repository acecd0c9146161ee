"""Shell blocks of the documents that are marked `<!-- runs -->` are run, line by line, as a reader would.

A real Mosquitto, the real commands, in a folder with the shipped config/bridge.toml as in a clone, and once more beside
it. Documents for a stopped bridge come last, and are run when it is. Instead of the ports
that the text names, which may be taken here, free ones are put into the lines and that file; the bridge hears of the
broker's by BRIDGE_MQTT__PORT, the Mosquitto clients by their own configuration files. Lines that do not end by
themselves stay open, as in a terminal of their own, until all is done.
"""

from __future__ import annotations

import os
import re
import shutil
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
DOCUMENTS = ("README.md", "docs/DEPLOYMENT.md", "docs/OPERATE.md", "docs/CLIENT.md", "docs/QUEUE.md")
STOPPED_DOCUMENTS = ("docs/REPAIR.md",)
_BLOCK = re.compile(r"<!-- runs -->\n```sh\n(.*?)```", re.DOTALL)
STAYS_OPEN = {  # what does not end by itself → what it says once it is ready
    "edge-bridge receiver": "listening|http://",
    "edge-bridge run": "connected to the broker",
    "mosquitto_sub": "edge/buffer/status",
    "edge-bridge status --watch": "online",
}
SAYS = {
    "curl -s http://127.0.0.1:8088/events": '"label":"cat"',
    "check-config": "is valid",
    "doctor --json": '"lines"',
    "doctor --bundle": "wrote support.tar.gz",
    "queue stats": "delivered",
    "queue import": "stored",
    "queue verify": "sound",
    "queue repair": "nothing to repair",
    "mosquitto_rr": '"state":"',
    "/metrics": "edge_bridge_",
}


class Line(NamedTuple):
    """A line of a document, and where it stands."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Terminal(NamedTuple):
    """A line that stays open."""

    line: Line
    process: subprocess.Popen[bytes]
    output: Path


class Desk:
    """Terminals in a folder."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self._folder = folder
        self._ports = {"8088": str(free_port()), "8080": str(free_port())}
        self._open: list[Terminal] = []
        (folder / "config").mkdir()
        shipped = (REPOSITORY / "config/bridge.toml").read_text(encoding="utf-8")
        for path in ("config/bridge.toml", "bridge.toml"):
            (folder / path).write_text(self._here(shipped), encoding="utf-8")
        (folder / ".config").mkdir()
        for client in ("mosquitto_pub", "mosquitto_sub", "mosquitto_rr"):
            (folder / ".config" / client).write_text(f"-p {broker.port}\n")
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "edge-bridge").write_text(f'#!/bin/sh\nexec {sys.executable} -m bridge "$@"\n')
        (bin_folder / "edge-bridge").chmod(0o700)
        ports = {"mqtt.port": str(broker.port), "web.port": self._ports["8080"]}
        home = {"HOME": str(folder), "PATH": f"{bin_folder}:{os.environ['PATH']}", "COLUMNS": "100"}
        self._environment = child_environment(ports) | home

    def run(self, line: Line) -> None:
        command = self._here(line.text)
        stays_open = next((words for words in STAYS_OPEN if words in line.text), None)
        if stays_open:
            self._leave_open(line, command, STAYS_OPEN[stays_open])
        else:
            self._run_to_its_end(
                line, command, next((words for start, words in SAYS.items() if start in line.text), "")
            )

    def _here(self, text: str) -> str:
        """Put our ports and folder into what a document says."""
        text = text.replace("/tmp/cloud", str(self._folder / "cloud"))  # noqa: S108 - as the document has it
        for port, ours in self._ports.items():
            text = text.replace(f":{port}", f":{ours}").replace(f"--port {port}", f"--port {ours}")
        return text

    def _run_to_its_end(self, line: Line, command: str, expected: str) -> None:
        """Run it, and again while it does not say what is on its way."""
        said: list[str] = []

        def says() -> bool:
            said[:] = [self._ended(line, command)]
            return expected in said[0]

        try:
            wait_until(says, 15, expected)
        except AssertionError as error:
            raise AssertionError(f"{line}\n{error}\n{''.join(said)}") from error

    def _leave_open(self, line: Line, command: str, ready: str) -> None:
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
        try:
            wait_until(lambda: re.search(ready, output.read_text(errors="replace")), 15, ready)
        except AssertionError as error:
            raise AssertionError(f"{line}\n{error}\n{output.read_text(errors='replace')}") from error

    def _ended(self, line: Line, command: str) -> str:
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
        assert done.returncode == 0, f"{line}\nexit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """Close all terminals; none may have closed itself. What is run after that finds a stopped bridge."""
        terminals, self._open = self._open, []
        ended = [terminal for terminal in terminals if terminal.process.poll() is not None]
        for terminal in reversed(terminals):
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


def lines(document: str) -> Iterator[Line]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    blocks = list(_BLOCK.finditer(text))
    assert len(blocks) == text.count("<!-- runs -->") > 0, f"{document}: a mark without a block of sh, or none"
    for block in blocks:
        first = text.count("\n", 0, block.start(1)) + 1
        whole = re.sub(r"\\\n *", "", block[1])  # a line that ends in \ goes on in the next one
        for number, line in enumerate(whole.splitlines(), first):
            command = line.partition("  #")[0].strip()
            if command and ("| jq" not in command or shutil.which("jq")):  # the one program that is not ours to install
                yield Line(f"{document}:{number}", command)


def test_every_document_with_a_mark_is_run() -> None:
    marked = {
        path for path in ("README.md", *map(str, _documents())) if "<!-- runs -->" in (REPOSITORY / path).read_text()
    }
    assert marked == {*DOCUMENTS, *STOPPED_DOCUMENTS}


def _documents() -> Iterator[Path]:
    for folder in ("docs", "mosquitto", "examples", "benchmarks"):
        yield from (path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.md"))


@pytest.mark.timeout(300)  # thirty commands, one after the other
@pytest.mark.usefixtures("mosquitto_installed")
def test_the_marked_blocks_run_as_they_stand(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker") as broker, at_desk(tmp_path, broker) as desk:
        for document in DOCUMENTS:
            for line in lines(document):
                desk.run(line)
        desk.close()
        for document in STOPPED_DOCUMENTS:
            for line in lines(document):
                desk.run(line)
