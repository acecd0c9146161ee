"""Promise 28, invariant I2: nothing is acked that an answer does not cover."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud import Responder, answer, html, results
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

JSON = {"Content-Type": "application/json"}
UNCOVERED = {
    "a captive portal": html(),
    "a captive portal that does not say so": answer(200, {"Content-Type": "text/plain"}, b"\n<HTML><body>Sign in"),
    "a page without a type": answer(200, {}, b"<!DOCTYPE html><p>hello"),
    "207 without results": answer(207, JSON, b"{}"),
    "results that name nobody": answer(200, JSON, b'{"results":[]}'),
    "results that name strangers": answer(207, JSON, b'{"results":[{"id":"somebody","status":201}]}'),
    "results that are none": answer(200, JSON, b'{"results":"all fine"}'),
    "results without a status": answer(200, JSON, b'{"results":[{"id":"message-000000"}]}'),
    "broken JSON": answer(200, JSON, b'{"results":[{"id":'),
}


def odd(event_id: str) -> bool:
    return int(event_id.rpartition("-")[2]) % 2 == 1


def wait_for_requests(stage: CloudStage, more: int) -> None:
    before = len(stage.cloud.requests)
    wait_until(lambda: len(stage.cloud.requests) >= before + more, what=f"{more} more requests")


def test_answers_that_cover_no_row_ack_no_row(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """One after the other, each seen at least twice: its first one has been judged when the second request comes."""
    with on_stage(tmp_path, mosquitto, html()) as stage:
        stage.publish_numbered(20)
        for name, responder in UNCOVERED.items():
            stage.cloud.always(responder)
            wait_for_requests(stage, 3)
            assert stage.messages["delivered"] == 0, name
            assert stage.messages["dead"] == 0, name
        stage.stop()
        assert stage.ids_with_status(0, 1) == stage.tried
        stage.cloud.always()
        stage.start()
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)


def name_only_odd(event_id: str) -> int | None:
    return 201 if odd(event_id) else None


@pytest.mark.parametrize(
    "responder",
    [results(name_only_odd, status=200), results(lambda name: 201 if odd(name) else 503)],
    ids=["200", "207, the others later"],
)
def test_only_the_rows_that_an_answer_names_as_stored_are_acked(
    tmp_path: Path, mosquitto: Mosquitto, responder: Responder
) -> None:
    with on_stage(tmp_path, mosquitto, responder, settings={"shutdown_grace_seconds": 1.0}) as stage:
        stage.publish_numbered(20)
        stage.wait_settled(10)
        wait_for_requests(stage, 2)
        stage.stop()
        assert stage.ids_with_status(5) == [name for name in stage.tried if odd(name)]
        assert stage.ids_with_status(0, 1) == [name for name in stage.tried if not odd(name)]
        stage.cloud.always()
        stage.start()
        stage.wait_delivered()
        stage.wait_settled(10)
        stage.audit().assert_kept(duplicates_max=0)


def test_with_require_receipt_a_bare_200_acks_nothing(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with on_stage(tmp_path, mosquitto, answer(200, JSON, b"{}"), upload={"require_receipt": True}) as stage:
        stage.publish_numbered(5)
        wait_for_requests(stage, 2)
        stage.cloud.always(answer(200, {"Idempotency-Key": '"another"'}))
        wait_for_requests(stage, 2)
        assert stage.messages["delivered"] == 0
        stage.cloud.always()  # echoes the key
        stage.wait_settled(5)
        stage.audit().assert_kept(duplicates_max=0)
