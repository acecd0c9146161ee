"""`edge-bridge …` within the test's process: what it prints, and its exit status. Tests of the process take a child."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
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


class Command:
    """Runs `main` in a folder of its own, under no BRIDGE_ variables but the given ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}  # of every call
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, **variables: str) -> Shown:
        with self._monkeypatch.context() as patch:
            patch.chdir(self.folder)
            for name in [name for name in os.environ if name.startswith("BRIDGE_")]:
                patch.delenv(name)
            for name, value in (self.variables | variables).items():
                patch.setenv(name, value)
            self._capsys.readouterr()
            exit_status = main(arguments)
        return Shown(exit_status, *self._capsys.readouterr())


def run_command(*words: str, folder: Path, variables: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run it for fixtures that outlive a test, where capsys cannot help; no BRIDGE_ variables but the given ones."""
    stdout, stderr = _stream(), _stream()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, clear=True, **{"PATH": os.environ["PATH"], **(variables or {})}),
        Path(os.devnull).open() as nothing,
        mock.patch("sys.stdin", nothing),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            status = main(words)
        except SystemExit as end:  # argparse's --help
            status = int(end.code or 0)
    return CompletedProcess(words, status, _text(stdout), _text(stderr))


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # with a buffer, as the real ones


def _text(stream: io.TextIOWrapper) -> str:
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode()
