"""`edge-bridge queue …` on a queue that a bridge holds and on one that none does: the same answers, by the same test.

The live half has the disk thread and the control socket of a bridge, without the rest of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.config import QueueSettings
from bridge.control import Control, connect
from bridge.disk_queue import FILE_NAME, SOCKET_NAME, DiskQueue, FolderLock, NewRow, Request, Selection
from bridge.disk_thread import DiskThread
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, head, head_middle, tail
from tests.harness import LoopThread
from tests.harness.command import Command, Shown

TOPIC = "edge/predictions/press"
DELIVERED, DEAD, WAITING = ["d1", "d2"], ["x1", "x2"], ["w1", "w2", "w3"]


def row(name: str, received_at: float | None = None) -> NewRow:
    event = head(name, head_middle("edge/x", TOPIC), "2026-01-01T00:00:00Z") + tail(b'{"n":1}', is_json=True)
    return NewRow(event, time.time() if received_at is None else received_at, None, name)


def fill(folder: Path) -> None:
    queue = DiskQueue(folder, durability="crash")
    with queue.transaction():
        queue.put_rows([row(name) for name in [*DELIVERED, *DEAD]])
        taken = [row.row_id for row in queue.take(4, 1 << 20)]
        queue.ack_rows(taken[:2])
        queue.reject([DeadRow(row_id, "refused", 422, 3, "bad \x1b[2J label") for row_id in taken[2:]])
        queue.put_rows([row("w1", time.time() - 7200), row("w2"), row("w3")])
        queue.record_loss(Loss(LossReason.TOO_LARGE, 1, TOPIC, detail="20000 bytes"))
    queue.close()


class Bridge:
    """What of a running bridge answers on the control socket."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._thread = folder, LoopThread("bridge")
        self._lock = FolderLock(folder)
        self._thread.run(self._start(folder))

    async def _start(self, folder: Path) -> None:
        self._disk = DiskThread(DiskQueue(folder, durability="crash"), keep_seconds=3600, keep_messages=100)
        self._control = Control(QueueSettings(path=folder), self._disk)
        await self._control.start()

    async def _stop(self) -> None:
        await self._control.stop()
        await asyncio.to_thread(self._disk.close)

    def stop(self) -> None:
        if last := connect(self._folder):  # whose answer says that all before it have begun, and can be ended
            last.ask(Request.of("stats", Selection()))
            last.close()
        self._thread.run(self._stop())
        self._thread.close()
        self._lock.release()


class Queue:
    """The command on one queue."""

    def __init__(self, edge_bridge: Command, folder: Path) -> None:
        self._edge_bridge, self.folder = edge_bridge, folder
        edge_bridge.variables["BRIDGE_QUEUE__PATH"] = str(folder)

    def __call__(self, *words: str) -> Shown:
        return self._edge_bridge("queue", *words)

    def ask(self, *words: str) -> list[dict[str, Any]]:
        shown = self(*words, "--json")
        assert (shown.exit_status, shown.stderr) == (0, "")
        return [json.loads(line) for line in shown.stdout.splitlines()]

    def ids(self, *words: str) -> list[str]:
        return [item["id"] for item in self.ask("list", *words)]


@pytest.fixture(params=["live", "offline", "live behind a long path"])
def queue(request: pytest.FixtureRequest, edge_bridge: Command, tmp_path: Path) -> Iterator[Queue]:
    folder = tmp_path / ("x" * 150) / "queue" if "long" in request.param else tmp_path / "queue"
    folder.mkdir(parents=True)
    fill(folder)
    bridge = Bridge(folder) if "live" in request.param else None
    yield Queue(edge_bridge, folder)
    if bridge:
        bridge.stop()
        assert not (folder / SOCKET_NAME).exists()


@pytest.fixture
def stopped(edge_bridge: Command, tmp_path: Path) -> Queue:
    fill(tmp_path)
    return Queue(edge_bridge, tmp_path)


def test_nothing_changed_is_not_called_a_loss(queue: Queue) -> None:
    told = queue("discard", "--id", "nobody", "--yes").stdout
    assert told == "no row was changed; what is on its way to the cloud is never touched\n"
    assert queue("discard", "--id", "w1", "--yes").stdout == "1 row discarded and in the loss ledger\n"


# ---- looking ----


def test_what_is_there_is_counted_and_selected(queue: Queue) -> None:
    (stats,) = queue.ask("stats")
    assert (stats["ready"], stats["taken"], stats["delivered"], stats["dead"]) == (3, 0, 2, 2)
    assert (stats["losses"], stats["lost"]) == ({"dead": 2, "too_large": 1}, 3)
    assert queue.ids() == [*DELIVERED, *DEAD, *WAITING]
    assert queue.ids("--state", "dead") == queue.ids("--reason", "refused") == DEAD
    assert queue.ids("--older-than", "1h") == ["w1"]
    assert (queue.ids("--limit", "0"), queue.ids("--limit", "2")) == ([], DELIVERED)
    assert len(queue.ids("--limit", "1" + 30 * "0")) == 7, "more than there can be"
    assert queue.ids("--topic", "edge/+/press", "--state", "ready") == WAITING
    assert queue.ids("--id", "w2", "--id", "nobody") == ["w2"]
    (dead,) = queue.ask("list", "--id", "x1")
    assert (dead["died"]["reason"], dead["died"]["status_code"], dead["died"]["attempts"]) == ("refused", 422, 3)


def test_for_people_it_prints_tables_that_steer_no_terminal(queue: Queue) -> None:
    stats = queue("stats").stdout.splitlines()
    assert stats[0].startswith("waiting    3 (0 on their way), the oldest since ")
    assert [line.split()[:2] for line in stats[1:3]] == [["delivered", "2"], ["dead", "2"]]
    assert stats[4:] == ["lost       3 ever", "           2 dead", "           1 too_large"]
    titles, *lines = queue("list").stdout.splitlines()
    assert titles.split() == ["row", "state", "received", "bytes", "id", "topic"]
    assert [line.split()[1] for line in lines] == ["delivered"] * 2 + ["dead"] * 2 + ["ready"] * 3
    assert lines[2].endswith("(refused)")
    titles, *lines = queue("losses").stdout.splitlines()
    assert titles.split() == ["loss", "until", "reason", "messages", "topic", "ids"]
    assert [line.split()[2] for line in lines] == ["dead", "too_large"]
    assert lines[0].endswith("x1, x2")
    assert "\x1b" not in "".join(stats + lines)


def test_one_row_is_shown_with_its_event_and_why_it_died(queue: Queue) -> None:
    shown = json.loads(queue("show", "x1").stdout)
    assert (shown["id"], shown["event"]["data"], shown["died"]["reason"]) == ("x1", {"n": 1}, "refused")


def test_the_ledger_is_selected_from(queue: Queue) -> None:
    assert [item["ids"] for item in queue.ask("losses", "--id", "x2")] == [DEAD]
    assert [item["reason"] for item in queue.ask("losses", "--reason", "too_large")] == ["too_large"]
    assert queue.ask("losses", "--older-than", "1h") == queue.ask("losses", "--topic", "edge/other") == []
    assert len(queue.ask("losses", "--topic", "edge/#")) == 2


def test_what_is_exported_is_what_was_stored(queue: Queue) -> None:
    lines = queue("export", "--state", "ready").stdout.encode().splitlines()
    assert lines == [row(name).data for name in WAITING]
    titles, *lines = queue("export", "--state", "dead", "--format", "csv").stdout.encode().splitlines()
    assert titles == b"row,id,state,topic,received_at,event,event_base64"
    assert [line.split(b",")[1].decode() for line in lines] == DEAD


def test_it_looks_again_and_again_until_it_is_interrupted(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", wait)
    watched = queue("stats", "--watch", "--json")
    assert watched.exit_status == 130
    assert len(watched.stdout.splitlines()) == len(looks) == 2


# ---- changing ----


def test_the_dead_are_ready_again_in_their_old_place(queue: Queue) -> None:
    assert queue("requeue", "--id", "x1").stdout == "1 row ready again\n"
    assert queue.ids("--state", "ready") == ["x1", *WAITING]
    assert queue.ask("requeue", "--reason", "refused") == [{"rows": 1}]
    assert queue.ids("--state", "dead") == []
    assert queue.ask("requeue", "--id", "x1") == [{"rows": 0}]


def test_what_is_discarded_or_purged_is_gone_and_what_was_lost_by_it_is_in_the_ledger(queue: Queue) -> None:
    assert queue("discard", "--state", "ready", "--older-than", "1h", "--yes").stdout.startswith("1 row discarded")
    assert queue.ask("discard", "--id", "x1", "--yes") == [{"rows": 1}]
    assert queue.ask("purge", "--state", "delivered", "--yes") == [{"rows": 2}]
    assert queue.ids() == ["x2", "w2", "w3"]
    (stats,) = queue.ask("stats")
    assert stats["losses"] == {"dead": 2, "dead_removed": 1, "discarded": 1, "too_large": 1}
    assert stats["lost"] == 4, "a dead row that is removed was lost before"


@pytest.mark.parametrize(("said", "left"), [("y\n", 0), ("\n", 3)])
def test_at_a_terminal_what_destroys_asks_first(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, said: str, left: int
) -> None:
    terminal = io.StringIO(said)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    shown = queue("discard", "--state", "ready")
    assert shown.stdout.startswith("discard 3 rows (ready)? [y/N] ")
    assert shown.exit_status == (1 if left else 0)
    assert len(queue.ids("--state", "ready")) == left


def test_where_nobody_can_be_asked_nothing_is_destroyed(queue: Queue) -> None:
    refused = queue("purge")
    assert (refused.exit_status, refused.stderr.splitlines()[-1]) == (2, "hint: add --yes to do it")
    assert len(queue.ids()) == 7


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["list", "--older-than", "soon"], "'soon' is no age"),
        (["purge", "--older-than", 400 * "9" + "d", "--yes"], "is no age"),
        (["list", "--limit", "-1"], "'-1' is no number of rows"),
        (["list", "--limit", "ten"], "'ten' is no number of rows"),
        (["list", "--topic", "a/#/b"], "'#' must be a level of its own"),
        (["requeue", "--state", "delivered"], "requeue is not for delivered rows"),
        (["discard", "--yes"], "discard wants to know which rows"),
        (["show", "nobody"], "no row has the id 'nobody'"),
        (["lsit"], "invalid choice"),
    ],
)
def test_a_mistake_is_one_line_and_a_hint(queue: Queue, words: list[str], error: str) -> None:
    shown = queue(*words)
    assert (shown.exit_status, shown.stdout) == (2, "")
    first, hint = shown.stderr.splitlines()
    assert error in first
    assert hint.startswith("hint: ")


def test_where_there_is_no_queue_none_is_made(edge_bridge: Command, tmp_path: Path) -> None:
    refused = edge_bridge("queue", "stats", BRIDGE_QUEUE__PATH=str(tmp_path / "nowhere"))
    assert refused.exit_status == 2
    assert "there is no queue in" in refused.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_queue_whose_holder_does_not_answer_is_left_alone(stopped: Queue) -> None:
    lock = FolderLock(stopped.folder)
    refused = stopped("stats")
    lock.release()
    assert refused.exit_status == 2
    assert "does not answer on its control socket" in refused.stderr


# ---- rows that are odd ----


def test_rows_that_are_no_text_or_no_event_or_of_no_time_are_shown_too(stopped: Queue) -> None:
    with contextlib.closing(sqlite3.connect(stopped.folder / FILE_NAME)) as connection:
        for row_id, data, at in ((5, b"\xff\xfe", 1e300), (6, b"no event", None), (7, b"[1]", float("nan"))):
            words = "UPDATE ack_queue_default SET data = ?, timestamp = ? WHERE _id = ?"
            connection.execute(words, (data, at, row_id))
        connection.commit()
    shown = {item["row"]: item for item in stopped.ask("list", "--state", "ready")}
    assert {row_id: (item["id"], item["received_at"]) for row_id, item in shown.items()} == dict.fromkeys(
        (5, 6, 7), (None, None)
    )
    assert stopped("export", "--state", "ready").stdout.splitlines() == [
        '{"data_base64":"//4="}',
        "no event",
        "[1]",
    ]
    assert stopped("list").stdout.splitlines()[-1].split()[-2:] == ["–", "–"]


def test_an_event_that_is_no_json_any_more_is_shown_as_it_is(stopped: Queue) -> None:
    flipped = row("w2").data.replace(b'{"n":1}', b'{"n":}')
    with contextlib.closing(sqlite3.connect(stopped.folder / FILE_NAME)) as connection:
        connection.execute("UPDATE ack_queue_default SET data = ? WHERE _id = 6", (flipped,))
        connection.commit()
    assert json.loads(stopped("show", "w2").stdout)["event"] == flipped.decode()


# ---- the control socket ----


class Peer:
    """A bridge that is not quite right: it says this, and then no more."""

    def __init__(self, folder: Path, says: bytes) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(folder / SOCKET_NAME))
        self._server.listen()
        self._thread = LoopThread("peer")
        self._says = says
        self._answering = self._thread.spawn(asyncio.to_thread(self._answer))

    def _answer(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(self._says)

    def close(self) -> None:
        self._answering.result(10)
        self._server.close()
        self._thread.close()


@pytest.mark.parametrize(
    ("says", "exit_status", "words"),
    [
        (b"", 1, "the bridge ended the conversation"),
        (b'{"error":"the disk failed","hint":"","exit_status":1}\n', 1, "the disk failed"),
        (b'{"error":"not known","hint":"upgrade","exit_status":2}\n', 2, "not known"),
    ],
)
def test_what_a_bridge_says_is_wrong_comes_through(stopped: Queue, says: bytes, exit_status: int, words: str) -> None:
    peer = Peer(stopped.folder, says)
    refused = stopped("stats")
    peer.close()
    assert refused.exit_status == exit_status
    assert words in refused.stderr


def test_the_socket_of_a_killed_bridge_is_nobody(stopped: Queue) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stopped.folder / SOCKET_NAME))
    assert stopped.ids("--state", "dead") == DEAD


def test_what_is_no_socket_at_all_is_told(stopped: Queue) -> None:
    (stopped.folder / SOCKET_NAME).symlink_to(SOCKET_NAME)
    refused = stopped("stats")
    assert refused.exit_status == 2
    assert "cannot be reached" in refused.stderr


def test_nonsense_on_the_socket_is_answered_and_ends_at_a_line_too_long(stopped: Queue) -> None:
    bridge = Bridge(stopped.folder)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(stopped.folder / SOCKET_NAME))
        for line in (b"\n", b"{}\n", b'{"command":"drop","selection":{},"after":0}\n'):
            connection.sendall(line)
            assert b'"error"' in connection.recv(65536)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * (4 << 20))
            assert connection.recv(1) == b""
    assert stopped.ids("--state", "dead") == DEAD
    bridge.stop()


def test_a_bridge_that_ends_lets_nobody_wait(stopped: Queue) -> None:
    bridge = Bridge(stopped.folder)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(stopped.folder / SOCKET_NAME))
        connection.sendall(b"{}\n")
        assert b'"error"' in connection.recv(65536)
        bridge.stop()
        assert connection.recv(1) == b""


def test_a_bridge_that_does_not_answer_is_told(stopped: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.control._ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(stopped.folder / SOCKET_NAME))
        mute.listen()
        refused = stopped("stats")
    assert refused.exit_status == 1
    assert "the bridge does not answer: timed out" in refused.stderr
