"""`edge-bridge queue verify|repair`, as the operator meets them, on a queue that was stopped."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from bridge.cli import output
from bridge.disk_queue import FILE_NAME, DiskQueue, FolderLock, NewRow
from bridge.message import head, head_middle, tail
from tests.harness.command import Command, Shown

ROWS = 300
USER = 65_534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "queue"
    folder.mkdir()
    queue = DiskQueue(folder)
    middle = head_middle("edge/x", "t")
    with queue.transaction():
        events = (head(f"m{n}", middle, "2026-01-01T00:00:00Z") + tail(b"1", is_json=True) for n in range(ROWS))
        queue.put_rows([NewRow(event, 1.0) for event in events])
    queue.close()
    return folder


@pytest.fixture
def queue(edge_bridge: Command, folder: Path) -> Callable[..., Shown]:
    """Run `edge-bridge queue …` on the folder."""
    edge_bridge.variables["BRIDGE_QUEUE__PATH"] = str(folder)
    return partial(edge_bridge, "queue")


def destroy(folder: Path) -> None:
    with (folder / FILE_NAME).open("r+b") as file:
        file.write(bytes(4096))


def test_a_sound_queue_is_called_sound_and_left_alone(queue: Callable[..., Shown], folder: Path) -> None:
    verified, repaired = queue("verify"), queue("repair")
    assert (verified.exit_status, repaired.exit_status) == (0, 0)
    assert f"{ROWS} waiting, 0 delivered, 0 dead" in verified.stdout
    assert repaired.stdout == "nothing to repair\n"


def test_a_damaged_queue_is_told_then_repaired_then_sound(queue: Callable[..., Shown], folder: Path) -> None:
    destroy(folder)
    verified = queue("verify", "--json")
    assert verified.exit_status == 1
    assert json.loads(verified.stdout)["troubles"]
    repaired = queue("repair", "--json")
    assert repaired.exit_status == 0
    (report,) = json.loads(repaired.stdout)["repaired"]
    assert (report["waiting"], report["lost"], report["total"]) == (ROWS, 0, ROWS)
    after = queue("verify", "--json")
    assert after.exit_status == 0
    assert json.loads(after.stdout)["rows"]["waiting"] == ROWS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_belongs_to_the_bridges_user(queue: Callable[..., Shown], folder: Path, tmp_path: Path) -> None:
    """Or the bridge could not open its own queue after `sudo edge-bridge queue repair`."""
    destroy(folder)
    foreign = tmp_path / "root's own"
    foreign.touch()
    (folder / "data.db-link").hardlink_to(foreign)  # what a user may do to have root give away a file
    for path in (folder, folder / FILE_NAME):
        os.chown(path, USER, USER)
    queue("repair")
    owners = {path.name: path.stat().st_uid for path in folder.iterdir()}
    assert owners.pop("data.db-link") == 0
    assert {FILE_NAME, "bridge.lock"} < owners.keys()
    assert set(owners.values()) == {USER}


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_the_queue_of_a_running_bridge_is_not_touched(queue: Callable[..., Shown], folder: Path, command: str) -> None:
    destroy(folder)
    lock = FolderLock(folder)
    refused = queue(command)
    lock.release()
    assert refused.exit_status == 2
    assert f"process {os.getpid()}" in refused.stderr
    assert not list(folder.glob("*.damaged-*"))


def test_a_folder_that_is_not_there_is_not_made(edge_bridge: Command, tmp_path: Path) -> None:
    refused = edge_bridge("queue", "verify", BRIDGE_QUEUE__PATH=str(tmp_path / "nowhere"))
    assert refused.exit_status == 2
    assert not (tmp_path / "nowhere").exists()


def test_for_people_it_says_what_is_wrong_what_to_do_and_what_was_saved(
    queue: Callable[..., Shown], folder: Path
) -> None:
    destroy(folder)
    verified = queue("verify")
    assert verified.exit_status == 1
    *_, wrong, advice = verified.stdout.splitlines()
    assert wrong.startswith("wrong: ")
    assert "queue repair" in advice
    repaired = queue("repair")
    assert repaired.exit_status == 0
    assert f"{ROWS} rows salvaged, {ROWS} of them waiting; 0 lost" in repaired.stdout
    assert queue("verify").stdout.splitlines()[-1] == "the queue is sound"


def test_a_status_that_there_is_not_is_wrong_and_counted(queue: Callable[..., Shown], folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        connection.execute("UPDATE ack_queue_default SET status = 7 WHERE _id <= 2")
        connection.commit()
    verified = queue("verify", "--json")
    assert verified.exit_status == 1
    document = json.loads(verified.stdout)
    assert document["rows"] == {"waiting": ROWS - 2, "delivered": 0, "dead": 0, "strange": 2}
    assert any("a status that there is not: {7: 2}" in trouble for trouble in document["troubles"])


@pytest.mark.parametrize("content", ["CREATE TABLE notes (n)", "CREATE TABLE notes (n); PRAGMA user_version = 3"])
def test_the_database_of_another_program_is_neither_called_sound_nor_touched(
    edge_bridge: Command, tmp_path: Path, content: str
) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.executescript(content)
    before = (tmp_path / FILE_NAME).read_bytes()
    for command in ("verify", "repair"):
        refused = edge_bridge("queue", command, BRIDGE_QUEUE__PATH=str(tmp_path))
        assert refused.exit_status == 2, refused
        assert "another program" in refused.stderr
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_on_a_terminal_a_bar_shows_how_far_it_is(
    queue: Callable[..., Shown], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PROGRESS_AFTER_SECONDS", -1.0)
    destroy(folder)
    assert queue("verify").stderr == "", "not into a file"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert re.search(r"salvaging .*100%", queue("repair").stderr, re.DOTALL)
