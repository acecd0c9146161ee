"""Promise 37: a process without file descriptors or memory is short of them for a while; its queue is not "damaged".

It goes on, or ends in a line with exit status 1 for its supervisor; nothing is set aside, nothing is lost.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess
from tests.harness.cloud import answer
from tests.harness.publisher import LedgerPublisher
from tests.harness.stage import Stage

MESSAGES = 500
INTERPRETER_DESCRIPTORS = 13  # with fewer Python itself, or its event loop, does not come up
OUR_FILES = {"data.db", "data.db-wal", "data.db-mark", "bridge.lock", "control.sock", "reserve"}
OUT_OF_MEMORY = ("edge-bridge: error: no memory for ", "edge-bridge: error: no memory or no thread for ")
SETTINGS = {"upload.retry_max_seconds": 0.5, "upload.retry_min_seconds": 0.1}


def large(number: int) -> tuple[str, bytes]:
    return f"frame-{number}", b'{"frame":"frame-%d","prediction_id":"%d","pad":"%b"}' % (number, number, b"x" * 50_000)


def descriptors(bridge: BridgeProcess) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{bridge.pid}/fd"))  # noqa: PTH208  numbers, not paths


def heap_bytes(bridge: BridgeProcess) -> int:
    found = re.search(r"VmData:\s+(\d+) kB", Path(f"/proc/{bridge.pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def check_kept(stage: Stage, bridge: BridgeProcess, *publishers: LedgerPublisher) -> None:
    """Supervise: start it again if it ended, as it may; then everything must arrive from an unharmed queue."""
    text = (stage.folder / "bridge.err").read_text()
    assert not re.search("damaged|corrupt|malformed|please report", text, re.IGNORECASE), text
    stage.cloud.always()
    if not bridge.running:
        stage.launch(settings=SETTINGS)
    stage.drain()
    assert {path.name for path in stage.queue_path.iterdir()} <= OUR_FILES
    for publisher in publishers:
        assert publisher.confirmed <= arrived(stage)


def arrived(stage: Stage) -> set[str]:
    found = (re.search(rb'"frame":"([^"]+)"', arrivals[0].data) for arrivals in list(stage.cloud.stored.values()))
    return {match[1].decode() for match in found if match}


def test_a_running_bridge_without_descriptors_reconnects_when_it_has_some(stage: Stage) -> None:
    bridge = stage.launch(settings=SETTINGS)
    publisher = stage.publish(MESSAGES)
    limits = resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    stage.broker.restart()
    wait_until(lambda: not bridge.running or stage.log("Too many open files") or stage.log("descriptors"), 20)
    if bridge.running:
        resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE, limits)
    check_kept(stage, bridge, publisher)


def start_with(stage: Stage, limit: int) -> BridgeProcess:
    return stage.bridge(wrapper=("prlimit", f"--nofile={limit}:{limit}"), settings=SETTINGS).start()


def came_up(bridge: BridgeProcess) -> bool:
    """Wait until it has opened its queue or ended; tells which."""
    earlier = bridge.stderr.count("queue in")
    wait_until(lambda: not bridge.running or bridge.stderr.count("queue in") > earlier, 60)
    return bridge.running


@pytest.mark.timeout(400)  # some dozen starts, and on a busy machine each takes seconds
def test_starts_with_hardly_a_descriptor_end_in_a_line_and_leave_the_queue_alone(stage: Stage) -> None:
    stage.cloud.always(answer(503))
    stage.launch(settings=SETTINGS).kill()
    publisher = stage.publish(MESSAGES)
    starved, limit = start_with(stage, INTERPRETER_DESCRIPTORS), INTERPRETER_DESCRIPTORS
    while not came_up(starved):  # each start comes a little further
        assert starved.exit_status == 1, f"with {limit} descriptors: {starved.stderr}"
        limit += 1
        starved = start_with(stage, limit)
    assert f"Too many open files for {stage.queue_path / 'data.db'}" in starved.stderr
    starved.kill()
    check_kept(stage, starved, publisher)


@pytest.mark.parametrize("spare_bytes", [0, 4 << 20])
def test_a_bridge_without_memory_ends_in_a_line_or_goes_on_and_loses_nothing(stage: Stage, spare_bytes: int) -> None:
    stage.cloud.always(answer(503))
    bridge = stage.launch(settings=SETTINGS)
    limit = heap_bytes(bridge) + spare_bytes
    resource.prlimit(bridge.pid, resource.RLIMIT_DATA, (limit, limit))
    publisher = stage.publish(MESSAGES, payload=large)
    stage.cloud.always()
    wait_until(lambda: not bridge.running or publisher.confirmed <= arrived(stage) or stage.log("memory"), 30)
    if bridge.running:
        bridge.terminate()  # it may end by itself at any later moment: from here on a supervisor's restart serves both
    # Or hit by that in the middle of its own end; or by a library in C that does not look at what malloc says.
    if bridge.wait() not in (0, -signal.SIGTERM, -signal.SIGSEGV, -signal.SIGABRT):
        assert bridge.exit_status == 1
        assert bridge.stderr.splitlines()[-2].startswith(OUT_OF_MEMORY)
    check_kept(stage, bridge, publisher)
