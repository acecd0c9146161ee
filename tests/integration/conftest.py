"""The command within the test's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.command import Command


@pytest.fixture
def edge_bridge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `edge-bridge` in an empty folder: `edge_bridge("queue", "list", BRIDGE_QUEUE__PATH="…")`."""
    return Command(tmp_path, capsys)
