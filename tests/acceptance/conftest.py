"""A stage for each test, and strace where one needs it: missing, it skips on a laptop and fails where CI is set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mosquitto import Mosquitto
from tests.harness.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Stage]:
    """A running broker under the shipped configuration and a cloud; the test launches its bridges."""
    with Stage(tmp_path / "stage", mosquitto) as stage:
        yield stage


@pytest.fixture
def strace_installed() -> None:
    """Ask for it in every test that watches or delays system calls."""
    if shutil.which("strace") is None:
        missing = "strace is not installed: apt-get install strace"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
