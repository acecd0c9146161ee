"""The whole service on the test's own loop, a real broker before it and a scripted cloud behind: its ways and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge import service as service_module
from bridge.announcer import Announcer
from bridge.client import GivenUpError, PredictionClient
from bridge.config import Supervision
from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow
from bridge.disk_queue.mark import Mark, MarkFile
from bridge.errors import (
    BridgeError,
    DiskFailedError,
    FaultError,
    QueueDamagedError,
    QueueInUseError,
    ShortageError,
    TaskDiedError,
)
from bridge.status import CloudState, State
from tests.harness import eventually, free_port
from tests.harness.bridge import StatusReader
from tests.harness.cloud import Cloud, answer
from tests.harness.mosquitto import Mosquitto
from tests.harness.publisher import publish_many
from tests.harness.service import ServiceHere
from tests.harness.stage import TOPIC, Stage, readiness

WATCHDOG_SECONDS = 0.4


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Stage]:
    with Stage(tmp_path / "stage", mosquitto, upload__retry_max_seconds=0.5) as stage:
        yield stage


@pytest.fixture
def nobody(tmp_path: Path) -> dict[str, object]:
    """A configuration that is right, with nobody to talk to."""
    return {
        "mqtt.port": free_port(),
        "upload.url": f"http://127.0.0.1:{free_port()}/",
        "queue.path": str(tmp_path / "queue"),
        "web.port": 0,
    }


class ServiceManager:
    """The end of sd_notify(3) that listens."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self._lines: list[str] = []

    @property
    def lines(self) -> list[str]:
        """All that was told so far."""
        while True:
            try:
                self._lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._lines

    def forget(self) -> None:
        self.lines.clear()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path)
    yield manager
    manager._socket.close()


async def publish(stage: Stage, count: int) -> None:
    await publish_many(stage.broker.port, TOPIC, [b'{"frame":%d}' % number for number in range(count)])


def rows(stage: Stage) -> dict[int, int]:
    with closing(sqlite3.connect(stage.queue_path / FILE_NAME)) as connection:
        return dict(connection.execute("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))


# ---- from the start to the orderly stop ----


async def test_it_carries_messages_and_stops_in_order_at_sigterm(stage: Stage, manager: ServiceManager) -> None:
    """I1, I2: at the end the file has every message as delivered, and everybody was told."""
    async with ServiceHere(stage.folder, stage.settings, Supervision(manager.address, None)) as bridge:
        assert manager.lines[0] == "READY=1"
        await publish(stage, 200)
        await eventually(lambda: stage.cloud.unique == 200)
        await eventually(lambda: bridge.status.queue.delivered == 200)
        assert "WATCHDOG=1" in manager.lines
        await bridge.terminate()
    assert "STOPPING=1" in manager.lines
    assert rows(stage) == {5: 200}
    assert not (stage.queue_path / "control.sock").exists()
    with StatusReader(stage.settings) as status:
        await eventually(lambda: (status.state, status.whole.get("state")) == ("offline", "offline"))


async def test_what_an_earlier_run_left_goes_out_first(stage: Stage) -> None:
    stage.cloud.always(answer(503))
    async with ServiceHere(stage.folder, stage.settings) as bridge:
        await publish(stage, 5)
        await eventually(lambda: bridge.status.messages.stored == 5)
        await eventually(lambda: bridge.status.cloud.state is CloudState.OFFLINE)
    assert rows(stage) == {0: 5}
    stage.cloud.always()
    async with ServiceHere(stage.folder, stage.settings):
        await eventually(lambda: stage.cloud.unique == 5)


async def test_a_second_bridge_on_the_same_queue_is_refused_and_the_first_goes_on(stage: Stage) -> None:
    async with ServiceHere(stage.folder, stage.settings) as bridge:
        with pytest.raises(QueueInUseError, match="in use by process"):
            await ServiceHere(stage.folder, stage.settings).start().ended()
        await publish(stage, 1)
        await eventually(lambda: stage.cloud.unique == 1)
        assert not bridge.has_ended


# ---- SIGHUP ----


async def test_sighup_applies_what_can_be_changed_and_keeps_what_is_wrong_out(
    stage: Stage, manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bridge")
    url = stage.settings["upload.url"]
    settings = {key: value for key, value in stage.settings.items() if key not in {"upload.url", "log.format"}}
    (stage.folder / "bridge.toml").write_text(f'[upload]\nurl = "{url}"\n')
    with Cloud() as elsewhere:
        async with ServiceHere(stage.folder, settings, Supervision(manager.address, None)) as bridge:
            bridge.file.write_text('[upload]\nurl = "ftp://nowhere"\n')
            bridge.hup()
            await eventually(lambda: "configuration not reloaded" in caplog.text)
            manager.forget()
            bridge.file.write_text(
                f'[intake]\nlinger_ms = 7\n[upload]\nurl = "{elsewhere.url}"\n[log]\nformat = "text"\n'
            )
            bridge.hup()
            await eventually(lambda: "configuration reloaded; only a restart changes intake, log" in caplog.text)
            await eventually(lambda: "READY=1" in manager.lines)
            assert any(line.startswith("RELOADING=1") for line in manager.lines)
            await publish(stage, 1)
            await eventually(lambda: elsewhere.unique == 1)
    assert stage.cloud.unique == 0


# ---- receipts ----


async def test_a_client_hears_what_became_of_each_message(stage: Stage, tmp_path: Path) -> None:
    async with (
        ServiceHere(stage.folder, stage.settings) as bridge,
        PredictionClient(device_id="press-4", port=stage.broker.port, spool=tmp_path / "spool") as predictions,
    ):
        first = await predictions.publish({"frame": 1}, until="delivered", timeout=10)
        assert first.id in stage.cloud.stored
        again = await predictions.publish({"frame": 1}, message_id=first.id, until="stored", timeout=10)
        assert again.state == "duplicate"
        known = await predictions.publish({"frame": 1}, message_id=first.id, until="delivered", timeout=10)
        assert known.state == "delivered", "at once, from what the queue keeps"
        kept = await predictions.publish({"frame": 2}, until="accepted")
        await predictions.flush(timeout=10)
        await eventually(lambda: kept.id in stage.cloud.stored)
        stage.cloud.always(answer(422))
        with pytest.raises(GivenUpError, match="dead"):
            await predictions.publish({"frame": 3}, until="delivered", timeout=20)
        assert predictions.held_messages == 0
        # stored and delivered; duplicate and, at once, delivered; stored; stored and dead
        assert bridge.status.receipts.given >= 6
        assert (bridge.status.receipts.unsent, bridge.status.receipts.refused) == (0, 0)


async def test_at_its_bound_the_client_hears_that_its_message_was_dropped(stage: Stage) -> None:
    stage.cloud.always(answer(503))
    bounds = {"queue.max_messages": 1, "queue.overflow": "drop-newest"}
    async with (
        ServiceHere(stage.folder, stage.settings | bounds) as bridge,
        PredictionClient(device_id="press-4", port=stage.broker.port) as predictions,
    ):
        await predictions.publish({"frame": "kept"}, until="stored", timeout=10)
        with pytest.raises(GivenUpError, match="dropped"):
            await predictions.publish({"frame": "too many"}, until="stored", timeout=10)
        await eventually(lambda: bridge.status.messages.dropped == 1)


async def test_messages_that_waited_too_long_are_dropped_and_written_down(stage: Stage) -> None:
    """I9: the counter is what the ledger got."""
    stage.cloud.always(answer(503))
    async with ServiceHere(
        stage.folder, stage.settings | {"queue.max_age_seconds": 1, "upload.batch_messages": 1}
    ) as bridge:
        await publish(stage, 5)
        await eventually(lambda: bridge.status.messages.stored == 5)
        await eventually(lambda: bridge.status.messages.dropped >= 3)  # what is in flight is not touched
    assert stage.losses()["max_age"] == bridge.status.messages.dropped


async def test_the_cloud_is_told_what_it_will_never_get(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.loss_teller.INTERVAL_SECONDS", 0.1)
    settings = {"upload.report_losses": True, "intake.max_payload_bytes": 1000}
    async with (
        ServiceHere(stage.folder, stage.settings | settings) as bridge,
        PredictionClient(device_id="press-4", port=stage.broker.port) as predictions,
    ):
        with pytest.raises(GivenUpError, match="dropped"):
            await predictions.publish({"frame": "x" * 2000}, until="stored", timeout=10)
        assert bridge.status.messages.refused == 1
        (event,) = await eventually(lambda: [json.loads(body) for body in stage.cloud.bodies.values()])
    assert (event["type"], event["data"]["reason"], event["data"]["messages"]) == ("edge.loss.v1", "too_large", 1)


async def test_what_came_before_the_clock_was_set_is_dated_once_it_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=lambda: 1000.0, monotonic=time.monotonic)
    monkeypatch.setattr(service_module, "time", clock)
    monkeypatch.setattr(service_module, "_TICK_SECONDS", 0.1)
    stage.cloud.unreachable()
    settings = {"upload.batch_messages": 1}
    async with ServiceHere(stage.folder, stage.settings | settings) as bridge:
        await publish(stage, 3)
        await eventually(lambda: bridge.status.messages.stored == 3)
        before = time.time()
        clock.time = time.time
        await eventually(lambda: bridge.status.queue.oldest_age_seconds is not None)
        stage.cloud.reachable()
        await eventually(lambda: stage.cloud.unique == 3)
    times = [datetime.fromisoformat(json.loads(body)["time"]).timestamp() for body in stage.cloud.bodies.values()]
    assert sum(abs(before - at) < 60 for at in times) >= 2, "one was posted before, and stays as it was"


# ---- what does not work is told, and the rest goes on ----


async def test_the_page_shows_and_requeues_and_readyz_follows_the_state(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bridge")
    port = free_port()
    stage.cloud.always(answer(422))
    async with ServiceHere(stage.folder, stage.settings | {"web.port": port, "web.token": "t"}) as bridge:
        assert (await asyncio.to_thread(readiness, port))[0] == 200
        await publish(stage, 2)
        await eventually(lambda: bridge.status.messages.dead == 2)
        stage.cloud.always()
        assert await asyncio.to_thread(requeue, port, [1, 2, 3]) == {"requeued": 2}
        await eventually(lambda: stage.cloud.unique == 2)
    assert "2 dead rows requeued" in caplog.text


def requeue(port: int, ids: Sequence[int]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/dead/requeue",
        json.dumps({"ids": list(ids)}).encode(),
        {"Authorization": "Bearer t", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as done:  # noqa: S310 - our own page
        return json.load(done)


async def test_a_port_that_is_taken_and_a_folder_without_sockets_keep_no_message_from_the_disk(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (stage.queue_path / "control.sock").mkdir(parents=True)  # what cannot be replaced
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with ServiceHere(stage.folder, stage.settings | {"web.port": taken.getsockname()[1]}):
            await publish(stage, 3)
            await eventually(lambda: stage.cloud.unique == 3)
    assert caplog.text.count("going on without it") == 2


async def test_a_full_disk_is_a_state_that_is_told_and_that_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """I1: what came meanwhile was not confirmed, and comes as soon as there is room."""
    free_bytes = 1 << 40
    monkeypatch.setattr(DiskQueue, "disk_free_bytes", lambda _: free_bytes)
    monkeypatch.setattr(service_module, "_TICK_SECONDS", 0.1)
    async with ServiceHere(stage.folder, stage.settings | {"queue.min_free_disk_bytes": 1 << 20}) as bridge:
        free_bytes = 0
        await eventually(lambda: bridge.status.disk.state == "full")
        await publish(stage, 3)
        await eventually(lambda: bridge.status.messages.received == 3)
        assert bridge.status.messages.stored == 0
        free_bytes = 1 << 40
        await eventually(lambda: stage.cloud.unique == 3)
        await eventually(lambda: bridge.status.state is State.ONLINE)


async def test_a_disk_that_stalls_is_told_the_watchdog_is_not_fed_and_all_comes_back(
    stage: Stage, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, put_rows = threading.Event(), DiskQueue.put_rows

    def put_slowly(self: DiskQueue, rows: Sequence[NewRow]) -> None:
        assert gate.wait(30)
        put_rows(self, rows)

    monkeypatch.setattr(DiskQueue, "put_rows", put_slowly)
    monkeypatch.setattr(service_module, "_STALL_SECONDS", 0.2)
    monkeypatch.setattr(service_module, "_TICK_SECONDS", 0.1)
    async with ServiceHere(stage.folder, stage.settings, Supervision(manager.address, WATCHDOG_SECONDS)) as bridge:
        try:
            await publish(stage, 3)
            await eventually(lambda: bridge.status.disk.state == "stalled")
            await eventually(lambda: "disk thread" in bridge.status.hung)
            manager.forget()
            await eventually(lambda: len(manager.lines) >= 3)
            assert "WATCHDOG=1" not in manager.lines
            assert all("has not moved" in line for line in manager.lines)
        finally:
            gate.set()
        await eventually(lambda: not bridge.status.hung and bridge.status.disk.state == "fine")
        await eventually(lambda: "WATCHDOG=1" in manager.lines)
        await eventually(lambda: stage.cloud.unique == 3)


async def test_a_status_that_cannot_be_published_is_one_line_and_messages_flow(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with ServiceHere(stage.folder, stage.settings) as bridge:
        # Whoever takes its client id throws the status connection out; the other one stays.
        await publish_many(stage.broker.port, "elsewhere", [b"x"], client_id="edge-bridge-stage-status")
        await eventually(lambda: "the status cannot be published, messages flow" in caplog.text)
        await publish(stage, 1)
        await eventually(lambda: stage.cloud.unique == 1)
        assert bridge.status.broker.reconnects == 0


# ---- a damaged file, a failing disk, a part that dies ----


def failing_puts(error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Let the first puts fail like this, before they write anything."""
    put_rows, left = DiskQueue.put_rows, iter(range(times))

    def put(self: DiskQueue, rows: Sequence[NewRow]) -> None:
        if next(left, None) is not None:
            raise error()
        put_rows(self, rows)

    monkeypatch.setattr(DiskQueue, "put_rows", put)


async def test_a_file_that_turns_out_damaged_is_set_aside_and_its_rows_arrive(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the page is there again: whatever the first round held has been given back."""
    stage.cloud.always(answer(503))
    port = free_port()
    async with ServiceHere(stage.folder, stage.settings | {"web.port": port}) as bridge:
        await publish(stage, 20)
        await eventually(lambda: bridge.status.messages.stored == 20)
        failing_puts(lambda: QueueDamagedError("a page is not what it was"), monkeypatch)
        await publish(stage, 1)
        await eventually(lambda: "set aside, a new one is begun" in caplog.text)
        stage.cloud.always()
        await eventually(lambda: stage.cloud.unique == 21, 30)
        await bridge.online()
        assert (await asyncio.to_thread(readiness, port))[0] == 200
        assert "going on without it" not in caplog.text
    assert len(list(stage.queue_path.glob("*.damaged-*-report.json"))) == 1


async def test_a_file_found_damaged_at_the_start_is_told_of_and_salvaged(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.cloud.always(answer(503))
    async with ServiceHere(stage.folder, stage.settings) as bridge:
        await publish(stage, 20)
        await eventually(lambda: bridge.status.messages.stored == 20)
    with (stage.queue_path / FILE_NAME).open("r+b") as file:
        file.write(bytes(4096))
    stage.cloud.always()
    async with ServiceHere(stage.folder, stage.settings) as bridge:
        await eventually(lambda: stage.cloud.unique == 20)
        await eventually(lambda: bridge.status.messages.salvaged == 20)
    assert "set aside, a new one is begun" in caplog.text


async def test_confirmed_rows_that_are_gone_are_told_of(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """I9: SQLite finds nothing wrong with a file that lost its last commits; the mark beside it does."""
    async with ServiceHere(stage.folder, stage.settings) as bridge:
        await publish(stage, 2)
        await eventually(lambda: bridge.status.queue.delivered == 2)
    with closing(MarkFile(stage.queue_path / FILE_NAME)) as mark:
        mark.write(Mark(5, 0))
    async with ServiceHere(stage.folder, stage.settings):
        pass
    assert "rows 3 to 5 of the queue were stored and are gone" in caplog.text
    assert stage.losses() == {"damaged": 3}


async def test_a_medium_that_damages_every_file_ends_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_DAMAGES_MAX", 1)
    failing_puts(lambda: QueueDamagedError("a page is not what it was"), monkeypatch)
    bridge = ServiceHere(stage.folder, stage.settings).start()
    await bridge.online()
    await publish(stage, 1)
    with pytest.raises(QueueDamagedError, match="a page"):
        await bridge.ended()
    assert stage.cloud.unique == 0, "and it was not confirmed: it comes to who starts next"


async def test_a_disk_that_fails_a_sync_ends_it_and_nothing_was_confirmed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_puts(lambda: DiskFailedError("the disk failed: input/output error"), monkeypatch)
    bridge = ServiceHere(stage.folder, stage.settings).start()
    await bridge.online()
    await publish(stage, 1)
    with pytest.raises(DiskFailedError):
        await bridge.ended()
    async with ServiceHere(stage.folder, stage.settings):
        await eventually(lambda: stage.cloud.unique == 1, what="the broker kept it")


def group_of(error: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("tasks of its own", [ExceptionGroup("deeper", [error])])


@pytest.mark.parametrize(
    ("death", "kind", "words"),
    [
        (RuntimeError("oh"), TaskDiedError, r"task announcer died: RuntimeError\('oh'\)"),
        (MemoryError(), ShortageError, "no memory for task announcer"),
        (group_of(FaultError("the cloud is gone")), FaultError, "the cloud is gone"),
        (group_of(RuntimeError("oh")), TaskDiedError, "task announcer died"),
        (None, TaskDiedError, "task announcer ended although nobody stopped it"),
    ],
)
async def test_a_task_that_ends_by_itself_ends_the_service_by_name(
    tmp_path: Path,
    nobody: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    death: Exception | None,
    kind: type[BridgeError],
    words: str,
) -> None:
    async def die(_: Announcer) -> None:
        if death:
            raise death

    monkeypatch.setattr(Announcer, "run", die)
    with pytest.raises(kind, match=words) as raised:
        await ServiceHere(tmp_path, nobody).start().ended()
    assert raised.value.exit_status == 1


async def test_without_a_broker_it_waits_and_stops_within_its_grace_time(
    tmp_path: Path, nobody: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    bridge = ServiceHere(tmp_path, nobody).start()
    await eventually(lambda: "no connection to the broker" in caplog.text)
    assert bridge.status.state is State.DEGRADED
    await bridge.terminate()
