"""Promise 30: one bad row among B is found alone in 2·log2(B) + 1 requests at most; the dead are the refused ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from pathlib import Path

import pytest

from tests.harness import figures, wait_until
from tests.harness.cloud import Cloud, Request, reject_ids, results
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

B = 64
WHOLE = {"batch_messages": B, "linger_ms": 400}  # B messages published at once travel as one batch


def publish_batch(stage: CloudStage) -> list[str]:
    """Publish one batch's worth of messages; return the ids."""
    return stage.publish_numbered(B)


def requests_with(cloud: Cloud, ids: Sequence[str]) -> list[Request]:
    wanted = set(ids)
    return [request for request in cloud.requests if wanted.intersection(request.ids)]


def settle(stage: CloudStage, bad: Sequence[str]) -> None:
    """Wait until every message so far is delivered or dead, and see that the refused ones, only they, are not there."""
    stage.wait_settled(len(stage.tried))
    assert not stage.cloud.stored.keys() & set(bad)


def dead_rows(stage: CloudStage) -> list[tuple[object, ...]]:
    return stage.select("SELECT reason, status_code, attempts FROM edge_dead ORDER BY row_id")


def test_one_bad_row_is_alone_after_few_requests_wherever_it_stands(tmp_path: Path, mosquitto: Mosquitto) -> None:
    refused: list[str] = []
    with on_stage(tmp_path, mosquitto, upload=WHOLE) as stage:
        for place in (0, B // 2 - 1, B // 2, B - 1):
            refused.append(f"message-{len(stage.tried) + place:06}")
            stage.cloud.always(reject_ids(refused))
            ids = publish_batch(stage)
            settle(stage, refused)
            requests = requests_with(stage.cloud, ids)
            assert requests[0].ids == tuple(ids), "one batch"
            figures.most(requests_of_B_64=len(requests))
            assert len(requests) <= 2 * log2(B) + 1, f"place {place}"
        stage.stop()
        assert stage.ids_with_status(9) == refused
        assert stage.ids_with_status(5) == [name for name in stage.tried if name not in refused]
        attempts = [len(requests_with(stage.cloud, [name])) for name in refused]
        assert dead_rows(stage) == [("refused", 422, times) for times in attempts]
        assert stage.select("SELECT SUM(messages) FROM edge_loss") == [(len(refused),)]


@pytest.mark.parametrize("places", [(0, 31, 32, 63), tuple(range(16))])
def test_several_bad_rows_die_and_no_other(tmp_path: Path, mosquitto: Mosquitto, places: tuple[int, ...]) -> None:
    bad = [f"message-{place:06}" for place in places]
    with on_stage(tmp_path, mosquitto, reject_ids(bad), upload=WHOLE) as stage:
        publish_batch(stage)
        settle(stage, bad)
        assert len(stage.cloud.requests) <= min(len(places) * (2 * log2(B) + 1), 2 * B)
        stage.stop()
        assert stage.ids_with_status(9) == bad
        assert stage.ids_with_status(5) == [name for name in stage.tried if name not in bad]
        assert stage.cloud.duplicates == 0


def test_a_cloud_that_answers_row_by_row_needs_one_request(tmp_path: Path, mosquitto: Mosquitto) -> None:
    bad = [f"message-{place:06}" for place in (1, 30, 63)]
    with on_stage(tmp_path, mosquitto, results(dict.fromkeys(bad, 422)), upload=WHOLE) as stage:
        publish_batch(stage)
        settle(stage, bad)
        assert len(stage.cloud.requests) == 1
        stage.stop()
        assert stage.ids_with_status(9) == bad
        assert {(reason, code) for reason, code, _ in dead_rows(stage)} == {("refused", 422)}


def test_a_kill_in_the_middle_of_the_search_changes_nothing_of_its_result(tmp_path: Path, mosquitto: Mosquitto) -> None:
    bad = [f"message-{place:06}" for place in (5, 40)]
    with on_stage(tmp_path, mosquitto, reject_ids(bad), upload=WHOLE) as stage:
        publish_batch(stage)
        wait_until(lambda: len(stage.cloud.requests) >= 6, what="the search has begun")
        stage.bridge.kill()
        stage.start()
        wait_until(lambda: stage.cloud.unique == B - len(bad), what="all others delivered")
        wait_until(lambda: stage.status["queue"]["dead"] == len(bad), what="the bad ones are dead")
        stage.stop()
        assert stage.ids_with_status(9) == bad
        assert not stage.ids_with_status(0, 1, 2)
