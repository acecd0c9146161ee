"""A command of ours run here and now, in this process: what it prints and how it ends, without an interpreter's start.

That the real process does the same is shown by the acceptance tests.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from bridge.cli import main


def run_command(*words: str, folder: Path, variables: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run `edge-bridge WORDS` in that folder with nothing of BRIDGE_ in the environment but these variables."""
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
