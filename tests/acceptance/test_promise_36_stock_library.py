"""Promise 36: persist-queue's own SQLiteAckQueue and the bridge use one file, in both directions, and lose no row."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from persistqueue import Empty, SQLiteAckQueue

from bridge.disk_queue import serializer
from tests.harness import wait_until
from tests.harness.cloud import Cloud, answer
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

PAYLOADS: list[Any] = [
    {"label": "crack", "score": 0.97},
    {"pqid": 3},
    {"nested": [1, None, {"a": "ä 例"}]},
    [1, 2, 3],
    "a text",
    17,
]


@contextmanager
def stock_queue(folder: Path, **options: Any) -> Iterator[SQLiteAckQueue]:
    """Open the queue the way any program with persist-queue would."""
    queue = SQLiteAckQueue(str(folder), **options)
    try:
        yield queue
    finally:
        queue.close()


def modes(folder: Path) -> set[int]:
    return {file.stat().st_mode & 0o777 for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[CloudStage]:
    """A bridge that has not been started yet; its queue folder is not there either."""
    with Cloud() as cloud:
        stage = CloudStage(tmp_path / "stage", mosquitto, cloud)
        try:
            yield stage
        finally:
            stage.__exit__(None, None, None)


def delivered_payloads(stage: CloudStage) -> list[Any]:
    return [json.loads(data)["data"] for data in stage.cloud.bodies.values()]


def test_rows_of_the_stock_library_are_delivered_with_equal_payloads(stage: CloudStage) -> None:
    with stock_queue(stage.queue_path, serializer=serializer) as queue:
        for one in PAYLOADS:
            queue.put(one)
        queue.put(b'{"score": 0.10000000000000000555}')
    stage.start()
    wait_until(lambda: stage.cloud.unique == len(PAYLOADS) + 1, what="all delivered")
    assert delivered_payloads(stage)[:-1] == PAYLOADS
    assert list(stage.cloud.bodies.values())[-1].endswith(b'"data":{"score": 0.10000000000000000555}}')
    stage.publish_ids(["from-the-broker"])
    wait_until(lambda: stage.cloud.arrivals[-1] == "from-the-broker", what="new messages flow")
    assert modes(stage.queue_path) <= {0o600}, "what persist-queue creates is readable by all"
    assert stage.cloud.duplicates == 0


def test_what_the_stock_library_had_taken_or_acked_is_taken_up_or_left(stage: CloudStage) -> None:
    """It died between get and ack: status 2 is ready again. What it acked is not delivered twice."""
    with stock_queue(stage.queue_path, serializer=serializer) as queue:
        for number in range(6):
            queue.put({"n": number})
        first, second, _taken = queue.get(), queue.get(), queue.get()
        queue.ack(first)
        queue.ack_failed(second)
    stage.start()
    wait_until(lambda: stage.cloud.unique == 4, what="all delivered")
    assert delivered_payloads(stage) == [{"n": number} for number in range(2, 6)]
    wait_until(lambda: stage.status["queue"]["delivered"] == 5, what="counted")
    assert stage.status["queue"]["dead"] == 1
    stage.stop()
    counts = dict(stage.select("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))
    assert counts == {5: 5, 9: 1}


def test_pickled_rows_are_kept_and_never_unpickled(stage: CloudStage, tmp_path: Path) -> None:
    """The library's default serializer; a pickle may run anything, so it is dead with its bytes kept."""
    trap = tmp_path / "unpickled"
    with stock_queue(stage.queue_path) as queue:
        queue.put({"label": "crack"})
        queue.put(Trap(str(trap)))
    stage.start()
    stage.publish_ids(["from-the-broker"])
    wait_until(lambda: stage.cloud.arrivals == ["from-the-broker"], what="the others flow")
    wait_until(lambda: stage.status["queue"]["dead"] == 2, what="dead")
    stage.stop()
    assert not trap.exists()
    rows = stage.select(
        "SELECT reason, data FROM ack_queue_default JOIN edge_dead ON row_id = _id WHERE status = 9 ORDER BY _id"
    )
    assert [reason for reason, _ in rows] == ["undecodable"] * 2
    assert pickle.loads(rows[0][1]) == {"label": "crack"}  # noqa: S301 - we wrote it ourselves a moment ago


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self._path, "w")


def test_bytes_that_are_no_json_are_kept(stage: CloudStage) -> None:
    with stock_queue(stage.queue_path, serializer=serializer) as queue:
        queue.put(b"\x00\xff")
    stage.start()
    wait_until(lambda: stage.status["queue"]["dead"] == 1, what="dead")
    stage.stop()
    assert stage.select("SELECT data, status FROM ack_queue_default") == [(b"\x00\xff", 9)]


def test_the_stock_library_gets_acks_and_counts_in_the_file_of_a_stopped_bridge(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    with on_stage(tmp_path, mosquitto) as stage:
        delivered = stage.publish_numbered(3)
        stage.wait_settled(3)
        stage.cloud.always(answer(401))
        waiting = stage.publish_numbered(10)
        stage.wait_stored(13)
        stage.stop()
        with stock_queue(stage.queue_path, serializer=serializer) as queue:
            assert (queue.qsize(), queue.acked_count(), queue.ack_failed_count()) == (10, 3, 0)
            got = [queue.get(block=False, raw=True) for _ in range(10)]
            assert [item["data"]["id"] for item in got] == waiting
            with pytest.raises(Empty):
                queue.get(block=False)
            for item in got[:4]:
                queue.ack(id=item["pqid"])
            queue.nack(id=got[4]["pqid"])
            queue.ack_failed(id=got[5]["pqid"])
            queue.put({"event_id": "by-the-library"})
            assert queue.acked_count() == 7
        stage.cloud.always()
        stage.start()
        wait_until(lambda: stage.cloud.unique == 3 + 5 + 1, what="the rest delivered")
        assert stage.cloud.arrivals[:8] == [*delivered, waiting[4], *waiting[6:]]
        assert delivered_payloads(stage)[-1] == {"event_id": "by-the-library"}
        wait_until(lambda: stage.status["queue"]["delivered"] == 3 + 4 + 5 + 1, what="counted")
        stage.stop()
        counts = dict(stage.select("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))
        assert counts == {5: 13, 9: 1}


def test_the_library_may_clean_up_and_the_bridge_goes_on_rightly(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with on_stage(tmp_path, mosquitto) as stage:
        stage.publish_numbered(20)
        stage.wait_settled(20)
        stage.stop()
        with stock_queue(stage.queue_path, serializer=serializer) as queue:
            queue.clear_acked_data(keep_latest=5)
            queue.shrink_disk_usage()
        stage.start()
        stage.publish_numbered(5)
        stage.wait_delivered()
        wait_until(lambda: stage.status["queue"]["delivered"] == 10, what="counted")
        stage.stop()
        assert len(stage.ids_with_status(5)) == 10
        stage.audit().assert_kept(duplicates_max=0)
