"""scripts/with-engine.sh: an engine of its own is begun only where none answers, and always ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import REPOSITORY

SCRIPT = REPOSITORY / "scripts/with-engine.sh"
DOCKER = """#!/bin/sh
case "$1 ${DOCKER_HOST:-none}" in
    "info none") exit ANSWER ;;
esac
"""
ENGINE = """#!/bin/sh
echo "$1" >> "$LOG"
if [ "$1" = all ]; then mkdir -p "$D"; fi
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "engine.sh").write_text(ENGINE)
    return tmp_path


def run(folder: Path, command: str, *, answers: bool, engine: str = "engine.sh") -> subprocess.CompletedProcess[str]:
    docker = folder / "bin/docker"
    docker.write_text(DOCKER.replace("ANSWER", "0" if answers else "1"))
    docker.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")} | {
        "PATH": f"{docker.parent}:{os.environ['PATH']}",
        "TMPDIR": str(folder),
        "ENGINE": str(folder / engine),
        "LOG": str(folder / "log"),
    }
    words = [str(SCRIPT), "sh", "-c", f"echo command >> $LOG; {command}"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=30)


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().split() if (folder / "log").exists() else []


def test_an_engine_that_answers_is_used(folder: Path) -> None:
    assert run(folder, "exit 3", answers=True).returncode == 3
    assert log(folder) == ["command"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("status", [0, 1])
def test_one_of_its_own_is_ended_whatever_the_command_does(folder: Path, status: int) -> None:
    ran = run(folder, f"test -d $D && exit {status}", answers=False)
    assert ran.returncode == status
    assert log(folder) == ["all", "command", "down"]
    assert list(folder.glob("edge-engine.*")) == []


def test_without_any_it_says_so_and_does_nothing(folder: Path) -> None:
    ran = run(folder, "true", answers=False, engine="nothing.sh")
    assert (ran.returncode, log(folder)) == (0, [])
    assert ran.stdout.startswith("engine: no Docker engine answers")
    assert ran.stdout.count("\n") == 1
