"""The mark beside a queue's file: written after each commit, believed only if it is whole."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bridge.disk_queue.mark import Mark, MarkFile, read_mark


def test_a_mark_says_what_was_written_last(tmp_path: Path) -> None:
    file = tmp_path / "data.db"
    assert read_mark(file) is None
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    mark = MarkFile(file)
    mark.write(Mark(7, 3))
    mark.write(Mark(123456, 0))
    assert read_mark(file) == Mark(123456, 0)
    mark.close()
    mark.close()
    mark.write(Mark(9, 9))  # too late, and no fault
    assert read_mark(file) == Mark(123456, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert stat.S_IMODE((tmp_path / "data.db-mark").stat().st_mode) == 0o600


def test_the_same_mark_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "data.db"
    mark = MarkFile(file)
    mark.write(Mark(7, 3))
    Path(f"{file}-mark").write_bytes(b"")
    mark.write(Mark(7, 3))
    assert read_mark(file) is None
    mark.write(Mark(8, 4))
    assert read_mark(file) == Mark(8, 4)
    mark.close()


@pytest.mark.parametrize("at", [24, 57, 78])
def test_a_mark_with_a_wrong_digit_says_nothing(tmp_path: Path, at: int) -> None:
    file = tmp_path / "data.db"
    mark = MarkFile(file)
    mark.write(Mark(7, 3))
    mark.close()
    line = bytearray(Path(f"{file}-mark").read_bytes())
    line[at] = ord("1") if line[at] != ord("1") else ord("2")
    Path(f"{file}-mark").write_bytes(line)
    assert read_mark(file) is None
