"""`edge-bridge …` within the test's process: what it prints, and its exit status. Tests of the process take a child."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple
from unittest import mock

import pytest

from bridge.cli import main


class Shown(NamedTuple):
    """What a command left behind."""

    exit_status: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def _in(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """In a folder of its own, under no BRIDGE_ variables but the given ones."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    with contextlib.chdir(folder), mock.patch.dict(os.environ, clear=True, **(own | dict(variables))):
        yield


class Command:
    """Runs `main`; what it prints is what capsys sees."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}  # of every call
        self._capsys = capsys

    def __call__(self, *arguments: str, **variables: str) -> Shown:
        self._capsys.readouterr()
        with _in(self.folder, self.variables | variables):
            exit_status = main(arguments)
        return Shown(exit_status, *self._capsys.readouterr())


def run_command(*words: str, folder: Path, variables: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run it for fixtures that outlive a test, where capsys cannot help."""
    stdout, stderr = _stream(), _stream()
    with (
        _in(folder, variables or {}),
        Path(os.devnull).open() as nothing,
        mock.patch("sys.stdin", nothing),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        status = main(words)
    return CompletedProcess(words, status, _text(stdout), _text(stderr))


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # with a buffer, as the real ones


def _text(stream: io.TextIOWrapper) -> str:
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode()
