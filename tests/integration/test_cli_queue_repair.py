"""`edge-bridge queue verify|repair`, on a queue that was stopped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, FolderLock, NewRow
from bridge.message import head, head_middle, tail
from tests.harness.command import run_command

ROOT = Path(__file__).parents[2]
ROWS = 300


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


def edge_bridge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {"BRIDGE_QUEUE__PATH": str(folder), "BRIDGE_UPLOAD__URL": "http://127.0.0.1:1/"}
    return run_command("queue", *arguments, folder=folder.parent, variables=variables)


def destroy(folder: Path) -> None:
    with (folder / FILE_NAME).open("r+b") as file:
        file.write(bytes(4096))


def test_a_sound_queue_is_called_sound_and_left_alone(folder: Path) -> None:
    verified, repaired = edge_bridge(folder, "verify"), edge_bridge(folder, "repair")
    assert (verified.returncode, repaired.returncode) == (0, 0)
    assert f"{ROWS} waiting, 0 delivered, 0 dead" in verified.stdout
    assert repaired.stdout == "nothing to repair\n"


def test_a_damaged_queue_is_told_then_repaired_then_sound(folder: Path) -> None:
    destroy(folder)
    verified = edge_bridge(folder, "verify", "--json")
    assert verified.returncode == 1
    assert json.loads(verified.stdout)["troubles"]
    repaired = edge_bridge(folder, "repair", "--json")
    assert repaired.returncode == 0
    (report,) = json.loads(repaired.stdout)["repaired"]
    assert (report["waiting"], report["lost"], report["total"]) == (ROWS, 0, ROWS)
    after = edge_bridge(folder, "verify", "--json")
    assert after.returncode == 0
    assert json.loads(after.stdout)["rows"]["waiting"] == ROWS


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_the_queue_of_a_running_bridge_is_not_touched(folder: Path, command: str) -> None:
    destroy(folder)
    lock = FolderLock(folder)
    refused = edge_bridge(folder, command)
    lock.release()
    assert refused.returncode == 2
    assert f"process {os.getpid()}" in refused.stderr
    assert not list(folder.glob("*.damaged-*"))


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    refused = edge_bridge(tmp_path / "nowhere", "verify")
    assert refused.returncode == 2
    assert not (tmp_path / "nowhere").exists()
