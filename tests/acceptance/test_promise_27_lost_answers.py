"""Promise 27: if the answer is lost after the cloud stored the batch, the same rows go again, under the same key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud import Exchange, Request, Responder, accept, cut_after_store, raw
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto


def store_and_hang() -> Responder:
    """Store everything, and never answer."""

    async def respond(exchange: Exchange) -> None:
        exchange.store()
        await exchange.writer.wait_closed()

    return respond


def store_and_say_half(piece: bytes) -> Responder:
    """Store everything, begin to answer, and cut."""
    speak = raw(piece)

    async def respond(exchange: Exchange) -> None:
        exchange.store()
        await speak(exchange)

    return respond


def assert_same(requests: Sequence[Request]) -> None:
    """All of them carried the same rows, byte for byte, under the same key."""
    assert len({request.key for request in requests}) == 1
    assert len({request.ids for request in requests}) == 1
    assert len({request.raw for request in requests}) == 1


def request_with(stage: CloudStage, event_id: str, after: int = 0) -> Request | None:
    return next((request for request in stage.cloud.requests[after:] if event_id in request.ids), None)


LOST = [
    cut_after_store(),
    store_and_say_half(b"HTTP/1.1 200 OK\r\nContent-Le"),
    store_and_say_half(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"stored":'),
]


def test_the_same_rows_go_again_under_the_same_key(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Whether nothing came back, half a head, or half a body."""
    with on_stage(tmp_path, mosquitto, upload={"linger_ms": 100}) as stage:
        stage.cloud.script(*LOST, *LOST)  # so often that smaller probes would begin if nothing had been sent
        first_ids = stage.publish_numbered(50)
        wait_until(lambda: stage.cloud.requests, what="the first request")
        stage.publish_numbered(50)  # what comes meanwhile must not travel in their company
        stage.wait_delivered()
        stage.wait_settled(100)
        again = [request for request in stage.cloud.requests if first_ids[0] in request.ids]
        assert len(again) == 1 + 2 * len(LOST)
        assert_same(again)
        assert stage.cloud.unique == 100
        assert not stage.cloud.altered
        stage.audit().assert_kept(duplicates_max=2 * len(LOST) * len(again[0].ids))


@pytest.mark.parametrize("rows_meanwhile", [0, 30], ids=["alone", "while others come"])
def test_after_a_kill_the_same_rows_go_again_under_the_same_key(
    tmp_path: Path, mosquitto: Mosquitto, rows_meanwhile: int
) -> None:
    with on_stage(tmp_path, mosquitto, store_and_hang(), upload={"linger_ms": 100}) as stage:
        first_ids = stage.publish_numbered(50)
        wait_until(lambda: stage.cloud.unique, what="stored by the cloud")
        stage.publish_numbered(rows_meanwhile)
        stage.wait_stored(50 + rows_meanwhile)
        stage.bridge.kill()
        before = len(stage.cloud.requests)
        stage.cloud.always(accept())
        stage.publish_numbered(20)  # the broker has them ready when the bridge comes back
        stage.start()
        stage.wait_delivered()
        again = request_with(stage, first_ids[0], before)
        assert again
        assert_same([stage.cloud.requests[0], again])
        stage.audit().assert_kept(duplicates_max=len(again.ids))
        assert not stage.cloud.altered


def test_after_a_stop_in_order_the_same_rows_go_again_under_the_same_key(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The grace time ends while the post is under way: its rows are released in their old company."""
    with on_stage(
        tmp_path, mosquitto, store_and_hang(), upload={"linger_ms": 100}, settings={"shutdown_grace_seconds": 0.3}
    ) as stage:
        first_ids = stage.publish_numbered(50)
        wait_until(lambda: stage.cloud.unique, what="stored by the cloud")
        stage.publish_numbered(30)
        stage.stop()
        before = len(stage.cloud.requests)
        stage.cloud.always(accept())
        stage.start()
        stage.wait_delivered()
        again = request_with(stage, first_ids[0], before)
        assert again
        assert_same([stage.cloud.requests[0], again])
        stage.audit().assert_kept(duplicates_max=len(again.ids))
