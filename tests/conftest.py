"""Shared fixtures. A missing Mosquitto or strace skips on a laptop and fails where CI is set."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.harness import figures
from tests.harness import free_port as find_free_port
from tests.harness.mosquitto import Mosquitto, program
from tests.harness.stage import Stage

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or the programs under test could not be interrupted

hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Begun first, or the last worker would be alone with one of them for a minute; longest first, as measured. Behind them
# comes the order of collection: acceptance, integration, and the unit tests, which fill what is left.
LONG_FILES = (
    "test_promise_02_power_cut.py",
    "test_promise_07_failing_disk.py",
    "test_promise_01_sigkill_at_random_moments.py",
    "test_promise_33_clock_jumps.py",
    "test_promise_38_soak.py",
    "test_client_kills.py",
    "test_promise_21_backlog_while_the_bridge_is_down.py",
    "test_supervision.py",
    "test_promise_22_bridge_restarted.py",
    "test_bench.py",
    "test_demo.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """What a test measured goes into pytest's report, from which `make promises` takes it."""
    figures.taken()
    try:
        return (yield)
    finally:
        item.user_properties += figures.taken()


@pytest.fixture
def free_port() -> int:
    return find_free_port()


@pytest.fixture
def mosquitto_installed() -> None:
    """Ask for it in every test that starts a broker of its own; `mosquitto` does already."""
    if program("mosquitto") is None:
        missing = "mosquitto is not installed: make setup"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


@pytest.fixture
def mosquitto(tmp_path: Path, mosquitto_installed: None) -> Iterator[Mosquitto]:
    """A running broker under the shipped configuration, anonymous."""
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield broker


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
        "mqtt.port": find_free_port(),
        "upload.url": f"http://127.0.0.1:{find_free_port()}/",
        "queue.path": str(tmp_path / "queue"),
        "web.port": 0,
    }


@pytest.fixture
def strace_installed() -> None:
    """Ask for it in every test that watches or delays system calls."""
    if shutil.which("strace") is None:
        missing = "strace is not installed: apt-get install strace"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
