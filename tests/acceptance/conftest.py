"""A stage for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import free_port
from tests.harness.mosquitto import Mosquitto
from tests.harness.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Stage]:
    """A running broker under the shipped configuration and a cloud; the test launches its bridges."""
    with Stage(tmp_path / "stage", mosquitto) as stage:
        yield stage


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """A configuration that is right, with nobody to talk to."""
    return {
        "device_id": "refused",
        "mqtt.port": free_port(),
        "upload.url": f"http://127.0.0.1:{free_port()}/",
        "queue.path": str(tmp_path / "queue"),
        "web.port": 0,
    }
