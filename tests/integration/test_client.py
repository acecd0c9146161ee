"""The client library against a real Mosquitto, without a bridge: what "sent" means, and what bad use says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from bridge.broker import Broker, Producer
from bridge.client import (
    BacklogFullError,
    ClosedError,
    NotJsonError,
    NotYetError,
    PredictionClient,
    RefusedError,
    Stage,
    UnsentError,
    UsageError,
)
from bridge.disk_queue import DiskQueue
from bridge.environment import broker_address
from bridge.errors import DiskFullError, OperatorError, QueueInUseError
from bridge.events import SubscriptionRefused
from bridge.message import Publish
from bridge.wire import TooLarge, string
from tests.harness import eventually
from tests.harness.mosquitto import Mosquitto

TOPIC = "edge/predictions/press-4"
LIGHT = ["aiohttp", "pydantic", "persistqueue", "sqlite3", "rich", "zstandard", "uvloop"]


@asynccontextmanager
async def listening(port: int) -> AsyncIterator[list[Publish]]:
    """Collect every publish under edge/predictions."""
    arrived: list[Publish] = []

    def sink(messages: Sequence[Publish | TooLarge], epoch: int) -> None:
        arrived.extend(message for message in messages if isinstance(message, Publish))
        broker.confirm([message.packet_id for message in messages], epoch)

    broker = Broker(
        broker_address(port=port, environ={}),
        client_id="listener",
        sink=sink,
        emit=lambda _event: None,
        random=lambda: 0.1,
        filters=["edge/predictions/#"],
    )
    running = asyncio.create_task(broker.run())
    try:
        await eventually(broker.subscribed.is_set)
        yield arrived
    finally:
        await broker.farewell()
        await running


def client(port: int, **options: Any) -> PredictionClient:
    return PredictionClient(device_id="press-4", port=port, **options)


async def test_a_message_is_sent_when_the_broker_has_it_and_each_has_an_id(mosquitto: Mosquitto) -> None:
    async with listening(mosquitto.port) as arrived, client(mosquitto.port) as predictions:
        receipt = await predictions.publish({"label": "crack"})
        own = await predictions.publish({"prediction_id": "p-1"}, topic="edge/predictions/other")
        given = await predictions.publish([1], message_id="mine")
        await eventually(lambda: len(arrived) == 3)
    assert receipt.state == "sent"
    assert [(publish.topic, publish.user_id) for publish in arrived] == [
        (TOPIC, receipt.id),
        ("edge/predictions/other", "p-1"),
        (TOPIC, "mine"),
    ]
    assert (own.id, given.id) == ("p-1", "mine")
    assert orjson.loads(arrived[0].payload) == {"label": "crack"}


async def test_order_is_kept_across_an_outage_and_nothing_accepted_is_forgotten(mosquitto: Mosquitto) -> None:
    async with client(mosquitto.port, messages_max=500) as predictions:
        await predictions.publish({"frame": -1})
        mosquitto.stop()
        await eventually(lambda: not predictions.connected)
        waiting = [asyncio.create_task(predictions.publish({"frame": frame})) for frame in range(1500)]
        await eventually(lambda: predictions.held_messages == 500)
        assert not any(task.done() for task in waiting)
        mosquitto.start()
        async with listening(mosquitto.port) as arrived, asyncio.timeout(40):
            await asyncio.gather(*waiting)
            await eventually(lambda: any(publish.payload == b'{"frame":1499}' for publish in arrived))
    firsts = list(dict.fromkeys(orjson.loads(publish.payload)["frame"] for publish in arrived))
    assert firsts == sorted(firsts)


async def test_at_the_bound_it_raises_if_asked_to(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    predictions = client(mosquitto.port, messages_max=2, when_full="raise", close_timeout_seconds=0.1)
    await predictions.__aenter__()
    accepted = [await predictions.publish({"n": n}, until="accepted") for n in range(2)]
    with pytest.raises(BacklogFullError):
        await predictions.publish({"n": 2}, until="accepted")
    with pytest.raises(UnsentError) as unsent:
        await predictions.close()
    assert unsent.value.message_ids == [receipt.id for receipt in accepted]


async def test_when_time_is_up_it_says_what_is_known(mosquitto: Mosquitto) -> None:
    async with client(mosquitto.port) as predictions:
        await eventually(lambda: predictions.connected)
        with pytest.raises(NotYetError, match="is sent and was not stored within") as raised:  # there is no bridge
            await predictions.publish({"label": "crack"}, until="stored", timeout=0.5)
        assert raised.value.reached == Stage.SENT
        mosquitto.stop()
        await eventually(lambda: not predictions.connected)
        with pytest.raises(TimeoutError) as early:
            await predictions.publish({"label": "crack"}, timeout=0.2)
        assert isinstance(early.value, NotYetError)
        assert early.value.reached == Stage.ACCEPTED
        mosquitto.start()
        await eventually(lambda: predictions.held_messages == 1, 30, "the one that was not sent in time goes on")
        predictions._outbox.end_all(lambda _: ClosedError("the one that nobody will store"))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: p.publish(object()), NotJsonError, "of type object is not JSON"),
        (lambda p: p.publish(b"{"), NotJsonError, "not JSON"),
        (lambda p: p.publish("x" * 2000), UsageError, "2002 bytes, 1000 are allowed"),
        (lambda p: p.publish(1, topic="edge/+/x"), UsageError, "has no '#' and no"),
        (lambda p: p.publish(1, until="received"), UsageError, "until='received' is not known"),
        (lambda p: p.publish(1, message_id=""), UsageError, "message_id"),
    ],
)
async def test_bad_use_gets_a_clear_error(
    mosquitto: Mosquitto, call: Callable[[PredictionClient], Any], error: type[UsageError], words: str
) -> None:
    async with client(mosquitto.port, payload_bytes_max=1000) as predictions:
        with pytest.raises(error, match=words) as raised:
            await call(predictions)
        assert raised.value.hint
        assert predictions.held_messages == 0


async def test_a_client_that_is_not_open_says_so(mosquitto: Mosquitto) -> None:
    predictions = client(mosquitto.port)
    with pytest.raises(ClosedError):
        await predictions.publish(1)
    async with predictions:
        pass
    with pytest.raises(ClosedError):
        await predictions.publish(1)
    with pytest.raises(UsageError, match="no device_id"):
        PredictionClient(port=mosquitto.port)


async def test_what_the_broker_refuses_is_an_error_and_not_tried_again(
    tmp_path: Path, mosquitto_installed: None
) -> None:
    with Mosquitto(tmp_path / "mosquitto", acl="topic read #\n") as broker:
        async with client(broker.port) as predictions:
            with pytest.raises(RefusedError, match="0x87: not authorized, its ACL"):
                await predictions.publish({"label": "crack"})
            await predictions.publish({"label": "crack"}, until="accepted")
            with pytest.raises(RefusedError):  # nobody waited for it, so flush tells
                await predictions.flush(5)


async def test_a_packet_above_the_brokers_limit_is_refused_and_the_others_go_on(
    tmp_path: Path, mosquitto_installed: None
) -> None:
    with Mosquitto(tmp_path / "mosquitto", options={"max_packet_size": "2000"}) as broker:
        async with client(broker.port) as predictions:
            await predictions.publish(1)
            with pytest.raises(RefusedError, match="takes no packet of"):
                await predictions.publish("x" * 3000)
            await predictions.publish(2, timeout=5)


async def test_many_go_in_a_window_and_come_back_in_order(mosquitto: Mosquitto) -> None:
    async with listening(mosquitto.port) as arrived, client(mosquitto.port, messages_max=100) as predictions:
        receipts = await predictions.publish_many({"message_id": f"m-{n}"} for n in range(3000))
        await eventually(lambda: len(arrived) == 3000)
    assert [receipt.id for receipt in receipts] == [f"m-{n}" for n in range(3000)]
    assert [publish.user_id for publish in arrived] == [f"m-{n}" for n in range(3000)]


def test_the_blocking_twin_has_the_same_names_and_errors(mosquitto: Mosquitto) -> None:
    blocking = PredictionClient.blocking(device_id="press-4", port=mosquitto.port)
    with pytest.raises(ClosedError):
        blocking.publish(1)
    with blocking as predictions:
        assert predictions.publish({"label": "crack"}, timeout=5).state == "sent"
        assert len(predictions.publish_many([1, 2, 3])) == 3
        predictions.flush(5)
        with pytest.raises(NotJsonError):
            predictions.publish(object())
        assert predictions.connected
        assert predictions.held_messages == 0
    with pytest.raises(ClosedError):
        blocking.publish(1)


async def test_the_names_of_the_async_client_are_those_of_its_twin() -> None:
    from bridge.client import BlockingPredictionClient

    def names(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")} - {"blocking"}

    assert names(PredictionClient) == names(BlockingPredictionClient)


async def test_a_payload_that_comes_back_as_a_receipt_but_is_none_is_ignored(mosquitto: Mosquitto) -> None:
    async with client(mosquitto.port) as predictions, client(mosquitto.port) as stranger:
        await predictions.publish(1)
        for nonsense in (b"[]", b'{"state":"lost"}', b"7"):
            await stranger.publish(nonsense, topic=predictions._receipts_topic)
        assert (await predictions.publish(2, timeout=5)).state == "sent"


def test_importing_the_client_loads_nothing_of_the_server() -> None:
    program = "import sys, bridge.client, bridge.broker; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it loads sqlite3
    command = [sys.executable, "-c", program, *LIGHT]
    found = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


async def test_with_paho_and_orjson_alone_it_connects_and_publishes(mosquitto: Mosquitto) -> None:
    program = """
import sys
allowed = {"paho", "orjson", "bridge"} | sys.stdlib_module_names
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
from bridge.client import PredictionClient
with PredictionClient.blocking(device_id="press-4", port=int(sys.argv[1])) as predictions:
    print(predictions.publish({"label": "crack"}, timeout=20).state)
"""
    arguments = [sys.executable, "-c", program, str(mosquitto.port)]
    child = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    assert output.split() == [b"sent"]


async def test_a_spool_keeps_what_was_accepted_in_order_across_clients(mosquitto: Mosquitto, tmp_path: Path) -> None:
    mosquitto.stop()
    async with client(mosquitto.port, spool=tmp_path / "spool") as predictions:
        for frame in range(50):
            await predictions.publish({"frame": frame}, until="accepted")
        last = asyncio.create_task(predictions.publish({"frame": 50}))
        await eventually(lambda: predictions.held_messages == 51)
    with pytest.raises(NotYetError, match="before the client was closed") as raised:
        await last
    assert raised.value.reached == Stage.ACCEPTED
    mosquitto.start()
    async with listening(mosquitto.port) as arrived, client(mosquitto.port, spool=tmp_path / "spool") as predictions:
        assert predictions.held_messages == 51
        await predictions.publish({"frame": 51})
        await eventually(lambda: len(arrived) >= 52, 20)
    assert [orjson.loads(publish.payload)["frame"] for publish in arrived][:52] == list(range(52))
    assert all(publish.user_id and publish.request for publish in arrived)


async def test_who_closes_while_others_wait_lets_them_hear(free_port: int, tmp_path: Path) -> None:
    for spool in (None, tmp_path / "spool"):
        predictions = client(free_port, spool=spool, close_timeout_seconds=0.1, messages_max=1)
        await predictions.__aenter__()
        waiting = [asyncio.create_task(predictions.publish(number)) for number in range(3)]
        await eventually(lambda: predictions.held_messages)  # noqa: B023 - called at once
        with suppress(UnsentError):
            await predictions.close()
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, NotYetError | ClosedError) for outcome in outcomes), outcomes


async def test_two_clients_on_one_spool_are_refused(free_port: int, tmp_path: Path) -> None:
    async with client(free_port, spool=tmp_path / "spool"):
        with pytest.raises(QueueInUseError):
            await client(free_port, spool=tmp_path / "spool").__aenter__()


async def test_a_full_spool_raises_if_asked_to(free_port: int, tmp_path: Path) -> None:
    options = {"spool": tmp_path / "spool", "spool_bytes_max": 100_000, "when_full": "raise"}
    async with client(free_port, **options) as predictions:
        with pytest.raises(BacklogFullError):
            await predictions.publish_many(["x" * 1000] * 200, until="accepted")


async def test_closing_twice_is_fine(free_port: int) -> None:
    async with client(free_port) as predictions:
        await predictions.close()
    await predictions.close()


@pytest.mark.parametrize("wrong", [{"window": 0}, {"messages_max": 0}, {"when_full": "forget"}])
async def test_bounds_that_cannot_be_kept_are_refused(free_port: int, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not usable"):
        client(free_port, **wrong)


async def test_a_client_is_opened_once(free_port: int) -> None:
    async with client(free_port) as predictions:
        with pytest.raises(ClosedError, match="was opened before"):
            await predictions.__aenter__()


async def test_what_is_no_receipt_is_told_of_and_not_taken_for_one(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with client(free_port, close_timeout_seconds=0.0) as predictions:
        for strange in (b"", b"[]", b'{"state":"eaten"}', b'{"id":"x"}'):
            predictions._on_receipt(b"\0\0\0\0\0\0\0\1", strange)
        predictions._on_event(SubscriptionRefused("edge/buffer/receipts/x", "not authorized"))
    assert caplog.text.count("is not a receipt") == 4
    assert "receipts cannot be had, the broker refused" in caplog.text


async def test_a_client_whose_connection_dies_says_so_to_all_who_wait(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_: Producer) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Producer, "run", die)
    async with client(free_port, close_timeout_seconds=0.1) as predictions:
        with pytest.raises(NotYetError, match="before the client died"):
            await predictions.publish({"n": 1})
        with pytest.raises(ClosedError, match="a defect"):
            await predictions.publish({"n": 2})


async def test_an_error_under_way_is_not_hidden_by_what_was_not_sent(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_meanwhile() -> None:
        async with client(free_port, close_timeout_seconds=0.1) as predictions:
            await predictions.publish({"n": 1}, until="accepted")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_meanwhile()
    assert "never reached the broker" in caplog.text


async def test_who_waits_for_room_in_vain_hears_that_the_message_is_not_held(free_port: int) -> None:
    async with client(free_port, messages_max=1, close_timeout_seconds=0.0) as predictions:
        kept = await predictions.publish({"n": 1}, until="accepted")
        with pytest.raises(NotYetError, match="not accepted within") as raised:
            await predictions.publish({"n": 2}, until="accepted", timeout=0.1)
        assert raised.value.reached is None
        assert [outgoing.message_id for outgoing in predictions._outbox.held()] == [kept.id]
        with pytest.raises(UnsentError):
            await predictions.close()


async def test_what_the_spool_cannot_write_is_not_accepted(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DiskFullError("no space left on the device")

    async with client(free_port, spool=tmp_path / "spool") as predictions:
        await predictions.publish({"n": 1}, until="accepted")
        with monkeypatch.context() as patch:
            patch.setattr(DiskQueue, "put_rows", fail)
            with pytest.raises(DiskFullError):
                await predictions.publish({"n": 2}, until="accepted")
        assert predictions.held_messages == 1


async def test_topics_are_remembered_up_to_a_bound(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.client.session._TOPICS_MAX", 3)
    predictions = client(free_port)
    for number in range(10):
        assert predictions._topic_bytes(f"t/{number}") == string(f"t/{number}".encode())
        assert len(predictions._topics) <= 3


async def test_an_unknown_version_of_paho_is_refused(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.broker.lane_fits", lambda: False)
    with pytest.raises(OperatorError, match="paho-mqtt is not known"):
        await client(free_port).__aenter__()
