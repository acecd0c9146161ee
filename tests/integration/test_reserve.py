"""The reserve on a real file system that says what a test wants it to say (I5; promise 8 fills a real disk)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.disk_queue import reserve
from bridge.disk_queue.reserve import RESERVE_NAME, Reserve

MEBIBYTE = 1 << 20


def reserve_of_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, disk_bytes: int) -> Reserve:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=disk_bytes // 4096, f_frsize=4096))
    return Reserve(folder)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("disk_bytes", "size_bytes"),
    [
        (4 * MEBIBYTE, MEBIBYTE),
        (80 * MEBIBYTE, 10 * MEBIBYTE),
        (1 << 40, 16 * MEBIBYTE),
    ],
)
def test_the_reserve_is_an_eighth_of_a_small_disk_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_bytes: int, size_bytes: int
) -> None:
    assert reserve_of_disk(tmp_path, monkeypatch, disk_bytes).size_bytes == size_bytes


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reserve:
    """One mebibyte."""
    return reserve_of_disk(tmp_path, monkeypatch, MEBIBYTE)


def test_it_is_made_once_there_is_twice_its_room_and_not_before(small: Reserve, tmp_path: Path) -> None:
    file = tmp_path / RESERVE_NAME
    small.keep(2 * MEBIBYTE - 1)
    assert (small.spent, small.held, file.exists()) == (True, False, False)
    open_before = descriptors()
    small.keep(2 * MEBIBYTE)
    assert (small.spent, small.held) == (False, True)
    found = file.stat()
    assert (found.st_size, found.st_blocks * 512 >= MEBIBYTE) == (MEBIBYTE, True), "real blocks"
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert descriptors() == open_before
    small.keep(0)
    assert (small.spent, small.held) == (False, True), "what is there stays there"


def test_half_a_reserve_that_a_kill_left_is_made_anew(small: Reserve, tmp_path: Path) -> None:
    (tmp_path / RESERVE_NAME).write_bytes(b"half")
    assert not small.held
    small.keep(1 << 40)
    assert small.held


def test_its_room_is_given_back_once(small: Reserve, tmp_path: Path) -> None:
    small.keep(1 << 40)
    assert small.release() is True
    assert (small.spent, (tmp_path / RESERVE_NAME).exists()) == (True, False)
    assert small.release() is False


def test_the_database_grows_and_the_wal_takes_half_of_its_room_and_both_keep_what_they_have(
    small: Reserve, tmp_path: Path
) -> None:
    wal, database = tmp_path / "wal", tmp_path / "database"
    wal.write_bytes(b"frames")
    database.write_bytes(b"pages")
    small.keep(1 << 40)
    open_before = descriptors()
    with database.open("r+b") as opened:
        small.release_into(opened.fileno(), 81920, wal)
        assert (wal.stat().st_size, wal.read_bytes()[:6]) == (MEBIBYTE // 2, b"frames")
        assert (database.stat().st_size, database.read_bytes()[:5]) == (81920, b"pages")
        assert database.stat().st_blocks * 512 >= 81920, "real blocks"
        wal.write_bytes(b"frames")
        small.release_into(opened.fileno(), MEBIBYTE, wal)
        assert (wal.stat().st_size, database.stat().st_size) == (6, 81920), "there was nothing left to give"
    assert descriptors() == open_before


def test_a_database_that_is_long_enough_is_left_as_it_is_and_want_of_room_is_no_error(
    small: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "others were faster")

    wal, database = tmp_path / "wal", tmp_path / "database"
    wal.write_bytes(b"frames")
    database.write_bytes(b"pages")
    small.keep(1 << 40)
    with database.open("r+b") as opened:
        small.release_into(opened.fileno(), 5, wal)
        assert database.stat().st_size == 5
        small.keep(1 << 40)
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        small.release_into(opened.fileno(), 81920, wal)
    assert (database.stat().st_size, small.held) == (5, False)


@pytest.mark.parametrize(
    ("number", "spent"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)], ids=os.strerror
)
def test_a_reserve_that_cannot_be_made_leaves_nothing_and_only_want_of_room_counts_as_a_full_disk(
    small: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, spent: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    if not spent:  # else nothing is to be written
        monkeypatch.setattr(os, "pwrite", refuse)
    small.keep(1 << 40)
    assert (small.spent, list(tmp_path.iterdir())) == (spent, [])


def test_a_reserve_of_which_not_even_the_name_finds_room_is_spent(
    small: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    assert not small.spent
    monkeypatch.setattr(os, "open", refuse)
    small.keep(1 << 40)
    assert small.spent


def test_where_blocks_cannot_be_set_aside_they_are_written_full_of_what_cannot_be_packed(
    small: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not on this file system")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(reserve, "_CHUNK_BYTES", MEBIBYTE // 4)
    small.keep(1 << 40)
    assert small.held
    content = (tmp_path / RESERVE_NAME).read_bytes()
    assert len(content) == MEBIBYTE
    assert all(len(set(content[at : at + 65536])) == 256 for at in range(0, MEBIBYTE, 65536))
