"""Contract §9, receipts: MQTT 5 request/response for any client, given after the commit and once more at the end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bridge.client import GivenUpError, NotYetError, PredictionClient, State
from bridge.disk_queue.mark import read_mark
from bridge.loss import LossReason
from tests.harness import eventually, wait_until
from tests.harness.bridge import StatusReader
from tests.harness.cloud import answer
from tests.harness.mosquitto import program
from tests.harness.proxy import TcpProxy
from tests.harness.stage import TOPIC, Stage

RECEIPTS = "edge/buffer/receipts/shell"


def ask(stage: Stage, payload: str, *properties: str, response_topic: str = RECEIPTS) -> dict[str, Any]:
    """`mosquitto_rr`, as a shell script would."""
    executable = program("mosquitto_rr")
    assert executable
    command = [executable, "-p", str(stage.broker.port), "-V", "5", "-q", "1", "-t", TOPIC, "-m", payload, "-W", "10"]
    words = ["-D", "publish", "correlation-data", "c-1", *properties]
    done = subprocess.run(
        [*command, "-e", response_topic, *words, "-F", "%j"], capture_output=True, text=True, check=True
    )
    packet: dict[str, Any] = json.loads(done.stdout)
    assert packet["properties"]["correlation-data"] == "c-1"
    return dict(json.loads(packet["payload"]))


def waiting(stage: Stage) -> int | None:
    """How many rows a running bridge has in its queue, by the mark that it writes after each commit."""
    mark = read_mark(stage.queue_path / "data.db")
    return mark and mark.waiting


def client(stage: Stage, **options: Any) -> PredictionClient:
    return PredictionClient(device_id="press-4", port=stage.broker.port, **options)


def test_mosquitto_rr_gets_a_receipt_after_the_commit(stage: Stage) -> None:
    stage.launch()
    first = ask(stage, '{"prediction_id":"p-1","frame":"f"}')
    assert (first["id"], first["state"], first["reason"]) == ("p-1", "stored", None)
    again = ask(stage, '{"prediction_id":"p-1","frame":"f"}')
    assert (again["id"], again["state"]) == ("p-1", "duplicate")


async def test_delivered_comes_when_the_cloud_has_it_and_not_before(stage: Stage) -> None:
    stage.launch()
    async with client(stage) as predictions:
        receipt = await predictions.publish({"frame": "a"}, until="delivered", timeout=10)
        assert receipt.state is State.DELIVERED
        assert receipt.id in stage.cloud.stored
        stage.cloud.unreachable()
        with pytest.raises(NotYetError, match="is stored and was not delivered"):
            await predictions.publish({"frame": "b"}, until="delivered", timeout=1.5)
        stage.cloud.reachable()
        await eventually(lambda: predictions.held_messages == 0, 30, "delivered after all")


async def test_a_delivered_receipt_survives_the_restart_of_the_bridge(stage: Stage) -> None:
    bridge = stage.launch()
    stage.cloud.unreachable()
    async with client(stage, ask_again_seconds=3600) as predictions:
        asking = asyncio.create_task(predictions.publish({"frame": "a"}, until="delivered"))
        await eventually(lambda: any(o.reached == 2 for o in predictions._outbox.held()), what="stored")
        bridge.kill()
        stage.cloud.reachable()
        await asyncio.to_thread(bridge.start().wait_ready)
        async with asyncio.timeout(20):
            assert (await asking).state is State.DELIVERED


async def test_a_receipt_waits_for_the_broker_when_the_cloud_was_faster(stage: Stage) -> None:
    with TcpProxy(stage.broker.port) as proxy:
        stage.cloud.unreachable()
        stage.launch(settings={"mqtt.port": proxy.port})
        async with client(stage, ask_again_seconds=3600) as predictions:
            asking = asyncio.create_task(predictions.publish({"frame": "a"}, until="delivered"))
            await eventually(lambda: any(o.reached == 2 for o in predictions._outbox.held()), what="stored")
            proxy.refuse = True
            proxy.cut()
            stage.cloud.reachable()
            await eventually(lambda: waiting(stage) == 0, 20, "delivered")
            assert not asking.done()
            proxy.refuse = False
            async with asyncio.timeout(20):
                assert (await asking).state is State.DELIVERED


async def test_who_asks_again_for_a_delivered_message_is_answered_at_once(stage: Stage) -> None:
    stage.launch()
    async with client(stage) as predictions:
        await predictions.publish({"prediction_id": "p-1"}, until="delivered", timeout=10)
    stage.cloud.unreachable()
    async with client(stage) as another:
        receipt = await another.publish({"prediction_id": "p-1"}, until="delivered", timeout=10)
        assert receipt.state is State.DELIVERED


async def test_a_message_that_the_cloud_refuses_for_good_is_dead(stage: Stage) -> None:
    stage.cloud.always(answer(422))
    stage.launch()
    async with client(stage) as predictions:
        with pytest.raises(GivenUpError) as raised:
            await predictions.publish({"frame": "a"}, until="delivered", timeout=20)
    assert raised.value.receipt.state is State.DEAD


async def test_a_message_dropped_at_the_bound_is_told_of(tmp_path: Path, stage: Stage) -> None:
    stage.cloud.unreachable()
    stage.launch(settings={"queue.max_messages": 1, "queue.overflow": "drop-newest"})
    async with client(stage) as predictions:
        await predictions.publish({"frame": "kept"}, until="stored", timeout=10)
        with pytest.raises(GivenUpError, match="dropped"):
            await predictions.publish({"frame": "too many"}, until="stored", timeout=10)


async def test_a_message_so_large_that_it_is_not_even_read_is_told_of(stage: Stage) -> None:
    stage.launch(settings={"intake.max_payload_bytes": 1000})
    async with client(stage) as predictions:
        with pytest.raises(GivenUpError, match="dropped") as raised:
            await predictions.publish({"frame": "x" * 400_000}, until="stored", timeout=10)
    assert raised.value.receipt.reason == LossReason.TOO_LARGE.words


def test_other_response_topics_are_refused_and_counted_and_the_message_is_stored(stage: Stage) -> None:
    bridge = stage.launch()
    with pytest.raises(subprocess.CalledProcessError):
        ask_quickly(stage, "edge/elsewhere")
    wait_until(lambda: stage.cloud.unique == 1, what="the message itself goes its way")
    with StatusReader(bridge.settings) as status:
        wait_until(lambda: status.whole.get("receipts", {}).get("refused") == 1)
    assert stage.log("asks for receipts that cannot be given")


def ask_quickly(stage: Stage, response_topic: str) -> None:
    executable = program("mosquitto_rr")
    assert executable
    command = [executable, "-p", str(stage.broker.port), "-V", "5", "-t", TOPIC, "-m", '{"frame":"f"}', "-W", "1"]
    subprocess.run([*command, "-e", response_topic], capture_output=True, check=True)


async def test_receipts_at_500_messages_a_second_come_soon(stage: Stage) -> None:
    """With Nagle's algorithm on the sockets half of them took 26 ms. `benchmarks/receipts.py` has the real figures."""
    stage.launch()
    async with client(stage) as predictions:
        await predictions.publish({"frame": -1}, until="stored", timeout=10)
        for _ in range(10):  # seconds: a busy machine is slow in some of them, Nagle's algorithm in each
            latencies = await receipt_latencies(predictions, 500)
            print(f"p50 {latencies[250] * 1000:.1f} ms, p99 {latencies[495] * 1000:.1f} ms")  # noqa: T201
            if latencies[250] < 0.02:
                return
    pytest.fail("half of the receipts take more than 20 ms")


async def receipt_latencies(predictions: PredictionClient, count: int) -> list[float]:
    """Publish 500 a second; return how many seconds each receipt took, sorted."""
    latencies: list[float] = []

    async def one(number: int) -> None:
        begun = time.monotonic()
        await predictions.publish({"frame": number}, until="stored", timeout=20)
        latencies.append(time.monotonic() - begun)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
            await asyncio.sleep(0.002)
    return sorted(latencies)
