"""The command as a process: how fast it comes up, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_help_loads_none_of_the_libraries() -> None:
    """So that it answers at once on a slow machine; counted in modules, not in seconds."""
    program = "import sys; from bridge.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    assert not {"pydantic", "aiohttp", "asyncio", "rich", "paho", "sqlite3", "orjson"} & set(loaded.split())


def test_a_reader_that_goes_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    shown = subprocess.run(
        [sys.executable, "-m", "bridge", "config", "schema"],
        cwd=ROOT,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert shown.stderr == ""
    assert shown.returncode == 141
