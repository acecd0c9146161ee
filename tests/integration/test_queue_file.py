"""The file before it is a queue: whose it is, what its header may say, and what is made in its folder."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, Report, write_report
from bridge.disk_queue import aside as aside_module
from bridge.disk_queue.aside import look_at, report_of, set_aside
from bridge.disk_queue.file import is_ours, is_sealed, make_private
from bridge.errors import QueueDamagedError, QueueUnusableError
from bridge.message import head, head_middle, tail

EVENT = head("a", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)
STOCK = "(_id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB, timestamp FLOAT, status INTEGER)"
ASIDE = f"{FILE_NAME}.damaged-20260101T000000Z"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A queue of one row that was stopped."""
    queue = DiskQueue(tmp_path)
    with queue.transaction():
        queue.put_rows([NewRow(EVENT, 1.0)])
    queue.close()
    return tmp_path / FILE_NAME


def overwrite(file: Path, offset: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


def execute(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# ---- made ----


def test_a_new_file_is_private_and_its_name_is_on_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    before = len(list(Path("/proc/self/fd").iterdir()))
    umask = os.umask(0)
    try:
        make_private(tmp_path / "new")
        assert synced == [tmp_path]
        make_private(tmp_path / "new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert synced == [tmp_path], "once: what is there is there"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(QueueUnusableError, match="is not a regular file"):
        DiskQueue(tmp_path)


# ---- whose it is ----


def test_a_file_is_known_as_ours_by_its_header_by_its_mark_or_by_a_trace_of_the_table(file: Path) -> None:
    mark = Path(f"{file}-mark")
    assert file.read_bytes()[68:72] == b"EDGB"
    kept = mark.read_bytes()
    mark.unlink()
    assert is_sealed(file), "by its header"
    overwrite(file, 68, b"\0\0\0\0")
    assert (is_sealed(file), is_ours(file)) == (False, True), "a trace of the table"
    mark.write_bytes(kept)
    assert is_sealed(file), "by its mark"
    file.write_bytes(b"holiday pictures")
    assert is_ours(file)
    mark.unlink()
    assert not is_ours(file)


def test_the_format_is_written_into_the_file(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    execute(file, "PRAGMA user_version = 4")
    with pytest.raises(QueueUnusableError, match="newer edge-bridge"):
        DiskQueue(file.parent)


def test_a_file_of_the_stock_library_is_opened(tmp_path: Path) -> None:
    execute(tmp_path / FILE_NAME, f"CREATE TABLE ack_queue_default {STOCK}")
    queue = DiskQueue(tmp_path)
    assert queue.counts().ready == 0
    queue.close()


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE ack_queue_default (_id INTEGER, data BLOB)",),
        (f"CREATE TABLE other {STOCK}", "CREATE VIEW ack_queue_default AS SELECT * FROM other"),
    ],
    ids=["other columns", "a view"],
)
def test_a_table_that_only_has_the_name_of_ours_is_another_programs(
    tmp_path: Path, statements: tuple[str, ...]
) -> None:
    execute(tmp_path / FILE_NAME, *statements)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(QueueUnusableError, match="another program"):
        DiskQueue(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_five_tables_of_another_program_are_named_and_no_more(tmp_path: Path) -> None:
    execute(tmp_path / FILE_NAME, *(f"CREATE TABLE {name} (a)" for name in "fedcba"))
    with pytest.raises(QueueUnusableError, match=r"its tables: a, b, c, d, e\)"):
        DiskQueue(tmp_path)


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA user_version = 5000", "PRAGMA user_version = -1", "ALTER TABLE ack_queue_default RENAME TO q"],
)
def test_a_file_of_ours_whose_schema_is_not_is_damaged(file: Path, statement: str) -> None:
    execute(file, statement)
    with pytest.raises(QueueDamagedError, match="its schema is not ours"):
        DiskQueue(file.parent)


# ---- what its header may say ----


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (0, b"sQLite format 3\0"),
        (18, b"\2\1"),
        (18, b"\3\3"),
        (20, b"\1\x40\x20\x20"),
        (21, b"\x41"),
        (22, b"\x21"),
        (23, b"\x21"),
        (56, b"\1\0\0\1"),
        (59, b"\2"),  # UTF-16: never ours
        (59, b"\3"),
    ],
)
def test_a_header_that_is_not_sqlites_is_seen_before_sqlite_looks(file: Path, offset: int, content: bytes) -> None:
    overwrite(file, offset, content)
    with pytest.raises(QueueDamagedError, match="its header is not SQLite's"):
        look_at(file.parent)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4096)


def count_more_pages_than_any_card_holds(file: Path) -> None:
    """A flipped bit in the highest byte of the count."""
    overwrite(file, 28, b"\1")


def cut_where_the_count_is_old(file: Path) -> None:
    """A version of SQLite that knew no count wrote last."""
    overwrite(file, 92, b"\0\0\0\0")
    cut(file)


def cut_beside_a_wal(file: Path) -> None:
    """What is missing stands in the WAL, and so does the header that counts."""
    cut(file)
    Path(f"{file}-wal").write_bytes(b"\0")


@pytest.mark.parametrize(
    ("change", "is_damaged"),
    [
        (cut, True),
        (count_more_pages_than_any_card_holds, True),
        (cut_where_the_count_is_old, False),
        (cut_beside_a_wal, False),
    ],
)
def test_an_end_is_missed_only_where_the_header_counts_the_pages(
    file: Path, change: Callable[[Path], None], is_damaged: bool
) -> None:
    change(file)
    try:
        look_at(file.parent)
        trouble = ""
    except QueueDamagedError as error:
        trouble = str(error)
    assert ("its end is missing" in trouble) is is_damaged


@pytest.mark.parametrize(("wal_bytes", "is_damaged"), [(0, False), (32, False), (33, True)])
def test_an_empty_database_beside_a_wal_with_pages_is_damaged(tmp_path: Path, wal_bytes: int, is_damaged: bool) -> None:
    (tmp_path / FILE_NAME).touch()
    (tmp_path / f"{FILE_NAME}-wal").write_bytes(bytes(wal_bytes))
    try:
        look_at(tmp_path)
        trouble = ""
    except QueueDamagedError as error:
        trouble = str(error)
    assert ("is empty or gone" in trouble) is is_damaged


# ---- set aside ----


def test_the_new_name_is_on_the_medium(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[str]] = []
    monkeypatch.setattr(
        aside_module, "sync_folder", lambda folder: synced.append(sorted(path.name for path in folder.iterdir()))
    )
    aside = set_aside(file.parent)
    assert synced == [[aside.name, f"{aside.name}-mark"]]


def test_a_wal_that_was_left_behind_joins_the_newest_file_that_waits_for_its_salvage(tmp_path: Path) -> None:
    waiting, done = tmp_path / ASIDE, tmp_path / ASIDE.replace("0101", "0201")
    for aside in (waiting, done):
        aside.write_bytes(b"database")
    write_report(done, Report(done.name, 1, 1, 0, 0, 1))
    (tmp_path / f"{FILE_NAME}-wal").write_bytes(b"frames")
    assert set_aside(tmp_path) == waiting
    assert Path(f"{waiting}-wal").read_bytes() == b"frames"


def test_a_report_is_private_and_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report(ASIDE, 7, 5, 1, 2, 7)
    umask = os.umask(0)
    try:
        write_report(tmp_path / ASIDE, report)
    finally:
        os.umask(umask)
    assert report_of(tmp_path / ASIDE) == report
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]
