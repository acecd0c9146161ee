"""What `verify` says of each state of a stopped queue's files; and `repair` does nothing where all is well."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, Report, Verification, repair, verify
from bridge.disk_queue.aside import asides, set_aside
from bridge.disk_queue.mark import Mark, MarkFile
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, head, head_middle, tail

STOCK = "(_id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB, timestamp FLOAT, status INTEGER)"


def event(number: int) -> bytes:
    return head(f"m{number}", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


def put(queue: DiskQueue, count: int) -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event(n), 2e9) for n in range(1, count + 1)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stopped queue: row 1 is delivered, 2 dead, 3 to 10 ready."""
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, 10)
    with queue.transaction():
        queue.ack_rows([row.row_id for row in queue.take(1, 1 << 20)])
        queue.reject([DeadRow(row.row_id, "refused") for row in queue.take(1, 1 << 20)])
        queue.record_loss(Loss(LossReason.TOO_LARGE, 3, "t"))
    queue.close()
    return tmp_path


def execute(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def insert(folder: Path, columns: str, rows: Sequence[Sequence[object]]) -> None:
    marks = ",".join("?" * len(rows[0]))
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.executemany(f"INSERT INTO ack_queue_default ({columns}) VALUES ({marks})", rows)  # noqa: S608


SOUND = Verification({0: 8, 5: 1, 9: 1}, 0, (), (), {"dead": 1, "too_large": 3})


def test_a_sound_queue_is_counted_and_nothing_is_said_against_it(folder: Path) -> None:
    assert verify(folder) == SOUND
    assert SOUND.is_sound
    assert repair(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME, f"{FILE_NAME}-mark"]


def test_where_there_is_no_file_nothing_is_repaired_and_none_is_made(tmp_path: Path) -> None:
    assert verify(tmp_path) == Verification({}, 0, (f"there is no {tmp_path / FILE_NAME}",), ())
    assert repair(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_files_that_wait_for_their_salvage_are_named_and_salvaged(folder: Path) -> None:
    aside = set_aside(folder)
    DiskQueue(folder).close()
    assert verify(folder) == Verification({}, 0, (), (aside.name,))
    assert not verify(folder).is_sound
    assert repair(folder) == [Report(aside.name, 10, 8, 0, 0, 8)]
    assert verify(folder) == SOUND


def test_a_file_of_the_stock_library_is_sound_whatever_it_left_behind(tmp_path: Path) -> None:
    execute(tmp_path, f"CREATE TABLE ack_queue_default {STOCK}")
    insert(tmp_path, "data, status", [("{}", status) for status in (0, 1, 1, 2, 5, 9)])
    assert verify(tmp_path) == Verification({0: 1, 1: 2, 2: 1, 5: 1, 9: 1}, 0, (), ())


def test_an_altered_row_counts_where_it_waits(folder: Path) -> None:
    execute(folder, "UPDATE ack_queue_default SET data = 'x' WHERE _id = 1")
    assert verify(folder) == SOUND, "it is delivered, and was right when it left"
    execute(folder, "UPDATE ack_queue_default SET data = NULL WHERE _id IN (5, 6)")
    found = verify(folder)
    assert (found.altered, found.troubles) == (2, ("2 waiting rows are not what was stored (checksum)",))
    assert (found.rows, found.is_sound) == (SOUND.rows, False)


def test_rows_that_are_only_noted_as_delivered_count_as_delivered(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, SPAN_ROWS_MIN + 5)
    with queue.transaction():
        queue.ack_rows([row.row_id for row in queue.take(SPAN_ROWS_MIN, 1 << 20)])
    queue.close()
    execute(
        tmp_path,
        "UPDATE ack_queue_default SET status = 0, settled_at = NULL",
        "DELETE FROM edge_delivered",
        "INSERT INTO edge_delivered VALUES (1, (SELECT delivered FROM edge_state), 1.0)",
    )
    assert verify(tmp_path) == Verification({5: SPAN_ROWS_MIN, 0: 5}, 0, (), ())


@pytest.mark.parametrize("column", ["waiting", "delivered", "dead"])
def test_counts_that_are_not_those_of_the_rows_are_told_with_the_right_ones(folder: Path, column: str) -> None:
    execute(folder, f"UPDATE edge_state SET {column} = {column} + 1")  # noqa: S608 - one of the three
    noted = tuple(count + (column == its) for its, count in (("waiting", 8), ("delivered", 1), ("dead", 1)))
    assert verify(folder).troubles == (f"the counts are wrong: noted {noted}, there are (8, 1, 1)",)


def test_rows_wait_under_each_status_that_the_stock_library_gives_to_waiting_ones(folder: Path) -> None:
    execute(
        folder,
        "UPDATE ack_queue_default SET status = 1 WHERE _id = 4",
        "UPDATE ack_queue_default SET status = 2 WHERE _id BETWEEN 5 AND 7",
    )
    assert verify(folder) == SOUND._replace(rows={0: 4, 1: 1, 2: 3, 5: 1, 9: 1})


def test_a_status_that_there_is_not_is_told_also_where_it_is_no_number(folder: Path) -> None:
    execute(
        folder,
        "UPDATE ack_queue_default SET status = 7 WHERE _id = 3",
        "UPDATE ack_queue_default SET status = 'ready' WHERE _id = 4",
        "UPDATE edge_state SET waiting = 6",
    )
    found = verify(folder)
    assert found.rows == {0: 6, 5: 1, 9: 1, 7: 1, -1: 1}
    assert found.troubles == ("rows with a status that there is not: {7: 1, -1: 1}",)


@pytest.mark.parametrize(("newest", "said"), [(10, ()), (11, (11, 11)), (15, (11, 15))])
def test_rows_that_only_the_mark_knows_are_told(folder: Path, newest: int, said: tuple[int, ...]) -> None:
    mark = MarkFile(folder / FILE_NAME)
    mark.write(Mark(newest, 8))
    mark.close()
    assert verify(folder).troubles == (("rows {} to {} were stored and are gone".format(*said),) if said else ())


def test_a_queue_that_never_held_a_row_may_have_lost_its_first_ones(tmp_path: Path) -> None:
    DiskQueue(tmp_path).close()
    assert verify(tmp_path).is_sound
    mark = MarkFile(tmp_path / FILE_NAME)
    mark.write(Mark(3, 3))
    mark.close()
    assert verify(tmp_path).troubles == ("rows 1 to 3 were stored and are gone",)


def test_a_schema_that_is_not_ours_in_a_file_of_ours_is_damage(folder: Path) -> None:
    execute(folder, "ALTER TABLE ack_queue_default RENAME TO q")
    assert verify(folder).troubles == (f"{folder / FILE_NAME} is damaged: its schema is not ours",)


def test_a_damaged_wal_is_told_although_sqlite_reads_past_it(tmp_path: Path) -> None:
    living, folder = tmp_path / "living", tmp_path / "copy"
    living.mkdir()
    folder.mkdir()
    queue = DiskQueue(living, durability="crash")
    put(queue, 3)
    put(queue, 3)
    for path in living.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    queue.close()
    wal = folder / f"{FILE_NAME}-wal"
    content = bytearray(wal.read_bytes())
    content[32 + 24 + 100] ^= 1
    wal.write_bytes(content)
    (trouble,) = [trouble for trouble in verify(folder).troubles if "-wal is damaged" in trouble]
    assert trouble.startswith(f"{wal} is damaged")


def test_what_sqlite_finds_wrong_is_told_in_at_most_twenty_lines(folder: Path) -> None:
    """The index of the ready rows is emptied behind the back of SQLite."""
    insert(folder, "data, status", [("{}", 0)] * 50)
    execute(
        folder,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'status < 2', 'status < -1') WHERE name = 'edge_ready'",
        "PRAGMA writable_schema = RESET",
        "REINDEX edge_ready",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'status < -1', 'status < 2') WHERE name = 'edge_ready'",
    )
    troubles = verify(folder).troubles
    assert len(troubles) == 20
    assert troubles[0] == "row 3 missing from index edge_ready"
    (report,) = repair(folder)
    assert [aside.name for aside in asides(folder)] == [report.file]
    assert verify(folder).is_sound


def test_progress_is_told_every_thousand_rows_of_those_between_the_oldest_and_the_newest(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, 2500)
    with queue.transaction():
        queue.discard(list(range(1, 301)))
    queue.close()
    told: list[tuple[int, int]] = []
    verify(tmp_path, lambda done, of: told.append((done, of)))
    assert told == [(0, 2200), (1000, 2200), (2000, 2200)]


def test_what_others_have_open_beside_the_file_stays(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as other:
        other.execute("SELECT * FROM edge_state").fetchall()
        before = {path.name for path in folder.iterdir()}
        assert before > {f"{FILE_NAME}-shm", f"{FILE_NAME}-wal"}
        assert verify(folder) == SOUND
        assert {path.name for path in folder.iterdir()} == before
