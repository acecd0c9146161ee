"""Promise 8: others fill the disk to the last byte: nothing is confirmed, uploads and deletes go on, nothing is lost.

The queue drains to zero while the disk stays full, the status says so, and when there is room again the bridge goes
on by itself. Also for a bridge that is started while the disk is full, with the reserve of its last run or without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess, StatusReader
from tests.harness.cloud import answer
from tests.harness.publisher import LedgerPublisher
from tests.harness.small_disk import SmallDisk
from tests.harness.stage import Stage

BACKLOG, LATE = 4000, 300  # some 2 MB on the disk
SETTINGS = {
    "upload.retry_max_seconds": 0.5,
    "upload.retry_min_seconds": 0.1,
    "queue.keep_delivered_messages": 0,  # so that deletes show
    "queue.keep_delivered_seconds": 0,
}
TOPIC = "edge/predictions/late"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "small") as disk:
        yield disk


@contextmanager
def backlog(stage: Stage, disk: SmallDisk) -> Iterator[tuple[BridgeProcess, StatusReader, LedgerPublisher]]:
    """A bridge with a backlog in its queue, a cloud that is away, and a reserve that is made."""
    stage.queue_path = disk.inside / "queue"
    stage.cloud.always(answer(503))
    bridge = stage.launch(wrapper=disk.wrapper, settings=SETTINGS)
    with StatusReader(stage.settings) as status:
        wait_until(lambda: status.whole, what="a status")
        publisher = stage.publish(BACKLOG)
        wait_until(lambda: waiting(status) == BACKLOG, 15, "all stored")
        wait_until((disk.folder / "queue" / "reserve").exists, what="a reserve")
        yield bridge, status, publisher


def waiting(status: StatusReader) -> int:
    queue = status.whole["queue"]
    return int(queue["ready"] + queue["taken"])


def told_full(status: StatusReader) -> bool:
    return status.state == "degraded" and "disk full: only " in str(status.whole["reason"])


def late_messages(stage: Stage) -> LedgerPublisher:
    """Publish what must not be stored now; the broker confirms it and keeps it."""
    with LedgerPublisher(
        stage.broker.port,
        TOPIC,
        lambda n: (f"late-{n}", b'{"frame":"late-%d","prediction_id":"late-%d"}' % (n, n)),
        count=LATE,
    ) as publisher:
        publisher.finish()
    return publisher


def drained_while_full(stage: Stage, disk: SmallDisk, status: StatusReader) -> None:
    """Bring the cloud back: what waits is delivered and deleted while every byte that becomes free is taken."""

    def emptied() -> bool:
        disk.fill()
        queue = status.whole["queue"]
        return waiting(status) == 0 and queue["delivered"] == 0

    stage.cloud.always()
    wait_until(emptied, 60, "drained and deleted while full")
    assert told_full(status)
    assert stage.cloud.unique == BACKLOG, "intake took something in"


def resumed(stage: Stage, disk: SmallDisk, status: StatusReader, *publishers: LedgerPublisher) -> None:
    disk.clear()
    wait_until(lambda: status.state == "online", 15, "resumed")
    stage.drain()
    everything = publishers[0]
    for publisher in publishers[1:]:
        everything.tried |= publisher.tried
        everything.confirmed |= publisher.confirmed
    stage.audit(everything).assert_kept()
    assert len(everything.confirmed) == BACKLOG + LATE
    wait_until((disk.folder / "queue" / "reserve").exists, what="a reserve again")


def test_a_queue_drains_to_zero_on_a_disk_that_others_filled_and_goes_on_when_there_is_room(
    stage: Stage, small_disk: SmallDisk
) -> None:
    with backlog(stage, small_disk) as (bridge, status, publisher):
        small_disk.fill()
        late = late_messages(stage)
        wait_until(lambda: told_full(status), what="an alarm")
        drained_while_full(stage, small_disk, status)
        assert status.whole["messages"]["stored"] == BACKLOG
        resumed(stage, small_disk, status, publisher, late)
        assert bridge.running
        assert not stage.log(level="critical")


def test_a_bridge_that_is_started_on_a_full_disk_drains_its_queue(stage: Stage, small_disk: SmallDisk) -> None:
    with backlog(stage, small_disk) as (bridge, status, publisher):
        bridge.kill()
        small_disk.fill()
        late = late_messages(stage)
        wait_until(lambda: status.state == "offline", what="its will")
        bridge.start()
        wait_until(lambda: told_full(status), 15, "an alarm")
        drained_while_full(stage, small_disk, status)
        resumed(stage, small_disk, status, publisher, late)
        assert bridge.running


def test_without_a_reserve_it_starts_and_waits_for_room(stage: Stage, small_disk: SmallDisk) -> None:
    with backlog(stage, small_disk) as (bridge, status, publisher):
        bridge.kill()
        (small_disk.folder / "queue" / "reserve").unlink()
        small_disk.fill()
        late = late_messages(stage)
        wait_until(lambda: status.state == "offline", what="its will")
        bridge.start()
        wait_until(lambda: told_full(status), 15, "an alarm")
        stage.cloud.always()
        wait_until(lambda: stage.cloud.unique, what="an upload")
        assert bridge.running
        resumed(stage, small_disk, status, publisher, late)


def test_a_first_start_on_a_full_disk_says_so_in_a_line(stage: Stage, small_disk: SmallDisk) -> None:
    stage.queue_path = small_disk.inside / "queue"
    small_disk.fill()
    bridge = stage.bridge(wrapper=small_disk.wrapper, settings=SETTINGS | {"log.format": "text"}).start()
    assert bridge.wait() == 1
    assert bridge.stderr.splitlines() == [
        f"edge-bridge: error: no room for {stage.queue_path / 'data.db'}",
        "hint: free some space; the bridge goes on by itself",
    ]
