"""A client with a spool and a bridge: rows leave the spool when the bridge has them, and only then."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from bridge.client import PredictionClient, State
from bridge.disk_queue import DiskQueue
from bridge.errors import QueueUnusableError
from tests.harness import eventually
from tests.harness.stage import Stage


def client(stage: Stage, folder: Path) -> PredictionClient:
    return PredictionClient(
        device_id="press-4", port=stage.broker.port, spool=folder, ask_again_seconds=1, close_timeout_seconds=1
    )


async def test_the_spool_is_emptied_by_the_bridges_receipts_alone(stage: Stage, tmp_path: Path) -> None:
    bridge = stage.launch()
    bridge.terminate()
    await bridge.ended()
    async with client(stage, tmp_path / "spool") as predictions:
        receipts = await predictions.publish_many([{"frame": str(n)} for n in range(300)], until="sent", timeout=20)
        assert {receipt.state for receipt in receipts} == {State.SENT}
        assert predictions.held_messages == 300  # the broker has them; that is not enough
    queue = DiskQueue(tmp_path / "spool")
    assert queue.counts().ready == 300
    queue.close()
    bridge.start()
    async with client(stage, tmp_path / "spool") as predictions:
        await eventually(lambda: predictions.held_messages == 0, 30, "all are stored")
        receipt = await predictions.publish({"frame": "300"}, until="delivered", timeout=20)
        assert receipt.state is State.DELIVERED
    frames = [orjson.loads(arrivals[0].data)["data"]["frame"] for arrivals in stage.cloud.stored.values()]
    assert frames == [str(n) for n in range(301)]


async def test_a_spool_that_cannot_be_made_is_told_as_a_bridges_queue_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "spool"):
        with pytest.raises(QueueUnusableError, match="cannot be used") as told:
            async with PredictionClient(device_id="press-4", spool=folder):
                pass
        assert told.value.hint
