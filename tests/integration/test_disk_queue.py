"""The disk queue's format and its door: pragmas, rights, indexes, other people's files, damaged rows."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, FolderLock, NewRow, holder_of, serializer, verify
from bridge.disk_queue import lock as lock_module
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.errors import DiskFullError, QueueDamagedError, QueueInUseError, QueueUnusableError
from bridge.message import DeadRow, event_id, head, head_middle, tail


def event(name: str) -> bytes:
    return head(name, head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


@pytest.fixture
def disk_queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path)
    yield queue
    queue.close()


def put(queue: DiskQueue, *names: str) -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event(name), 1.0) for name in names])


def take(queue: DiskQueue, messages_max: int = 1000) -> list[int]:
    with queue.transaction():
        return [row.row_id for row in queue.take(messages_max, 1 << 20)]


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("crash", 1)])
def test_the_pragmas_that_the_promises_stand_on_are_in_force(tmp_path: Path, durability: str, synchronous: int) -> None:
    queue = DiskQueue(tmp_path, durability=durability)  # type: ignore[arg-type] # one of the two
    answers = {
        name: queue._conn.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode", "auto_vacuum")
    }
    queue.close()
    assert answers == {"journal_mode": "wal", "synchronous": synchronous, "locking_mode": "exclusive", "auto_vacuum": 2}


def test_a_pragma_that_does_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect

    def connect_to_memory(*_: object, **more: object) -> sqlite3.Connection:
        return real(":memory:", isolation_level=None, check_same_thread=False)  # cannot do WAL

    monkeypatch.setattr(sqlite3, "connect", connect_to_memory)
    with pytest.raises(QueueUnusableError, match="cannot set journal_mode to WAL"):
        DiskQueue(tmp_path)


def test_files_are_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "queue"
        lock = FolderLock(folder)
        queue = DiskQueue(folder)
        put(queue, "a")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes == dict.fromkeys((FILE_NAME, FILE_NAME + "-wal", FILE_NAME + "-mark", "bridge.lock"), 384)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        queue.close()
        lock.release()
    finally:
        os.umask(before)


def test_a_second_lock_on_the_folder_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(QueueInUseError) as refused:
        FolderLock(tmp_path)
    assert refused.value.pid == os.getpid()
    lock.release()
    FolderLock(tmp_path).release()


def test_a_lock_file_that_was_there_before_is_made_private_and_says_only_who_holds_it_now(tmp_path: Path) -> None:
    file = tmp_path / "bridge.lock"
    file.write_text("12345678901234567890 and more of an older story\n")
    file.chmod(0o644)
    lock = FolderLock(tmp_path)
    assert file.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert holder_of(tmp_path) == os.getpid()
    lock.release()


def test_a_refused_lock_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(QueueInUseError):
        FolderLock(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    lock.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("user", "owner"), [(65_534, (65_534, 65_534)), (0, (0, os.getegid()))])
def test_root_leaves_its_lock_to_a_user_whose_folder_it_is_and_holds_nothing_open(
    tmp_path: Path, user: int, owner: tuple[int, int]
) -> None:
    os.chown(tmp_path, user, 65_534)
    before = len(list(Path("/proc/self/fd").iterdir()))
    FolderLock(tmp_path).release()
    found = (tmp_path / "bridge.lock").stat()
    assert (found.st_uid, found.st_gid) == owner
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_that_cannot_be_made_is_the_operators_business(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QueueUnusableError, match=r"the queue folder .*/file/queue cannot be used: Not a directory"):
        FolderLock(tmp_path / "file" / "queue")


def test_every_folder_that_is_made_is_on_the_medium_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(lock_module, "sync_folder", synced.append)
    FolderLock(tmp_path / "a" / "b").release()
    assert sorted(synced) == [tmp_path, tmp_path / "a"]
    FolderLock(tmp_path / "a" / "b").release()
    assert len(synced) == 2, "what was there was there"


def test_taking_uses_the_partial_index_and_so_does_finding_an_event(disk_queue: DiskQueue) -> None:
    seen: list[str] = []
    disk_queue._conn.set_trace_callback(seen.append)
    put(disk_queue, *"abc")
    take(disk_queue)
    disk_queue.find_events(["a", "b"])
    disk_queue.oldest_received_at()
    disk_queue._conn.set_trace_callback(None)
    reads = [
        sql
        for sql in seen
        if sql.startswith("SELECT _id, CAST") or "event_id IN" in sql or "SELECT CAST(timestamp" in sql
    ]
    assert len(reads) == 3
    for sql in reads:
        plan = " ".join(str(row[3]) for row in disk_queue._conn.execute("EXPLAIN QUERY PLAN " + sql))
        assert "edge_ready" in plan or "edge_event" in plan
        assert "SCAN ack_queue_default USING INDEX edge_ready" in plan or "SEARCH" in plan
        assert "TEMP B-TREE" not in plan


def test_opening_reads_no_more_of_a_large_queue_than_of_a_small_one(tmp_path: Path) -> None:
    def rows_read_at_start(rows: int) -> int:
        folder = tmp_path / str(rows)
        folder.mkdir()
        queue = DiskQueue(folder, durability="crash")
        put(queue, *[f"m{n}" for n in range(rows)])
        queue.close()
        steps = 0

        def count_step() -> int:
            nonlocal steps
            steps += 1
            return 0

        class Watched(DiskQueue):
            def _prepare(self) -> None:
                self._conn.set_progress_handler(count_step, 10)
                super()._prepare()
                self._conn.set_progress_handler(None, 0)

        reopened = Watched(folder, durability="crash")
        assert reopened.counts().ready == rows
        reopened.close()
        return steps

    assert rows_read_at_start(20_000) <= rows_read_at_start(20) + 5


def as_after_a_kill(queue: DiskQueue, folder: Path) -> Path:
    folder.mkdir()
    for name in (FILE_NAME, FILE_NAME + "-wal"):
        shutil.copy(queue.folder / name, folder / name)
    return folder


def statuses(folder: Path) -> dict[int, int]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return dict(connection.execute("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status").fetchall())


MANY = 3 * SPAN_ROWS_MIN


def deliver(queue: DiskQueue, but: int = 0) -> None:
    """Take all and ack all but the last so many."""
    with queue.transaction():
        ids = [row.row_id for row in queue.take(MANY, 1 << 20)]
        queue.ack_rows(ids[: len(ids) - but])


def test_many_delivered_rows_are_noted_as_a_span_and_known_after_a_kill(disk_queue: DiskQueue, tmp_path: Path) -> None:
    put(disk_queue, *map(str, range(MANY)))
    deliver(disk_queue)
    killed = as_after_a_kill(disk_queue, tmp_path / "killed")
    assert statuses(killed) == {0: MANY}
    assert (verify(killed).troubles, verify(killed).rows) == ((), {5: MANY})
    again = DiskQueue(killed)
    assert again.counts()[:4] == (0, 0, MANY, 0)
    assert take(again) == []
    assert again.is_delivered(7)
    with again.transaction():
        again.mark_noted()
    again.close()
    assert statuses(killed) == {5: MANY}


def test_of_a_batch_that_was_covered_in_part_the_rest_is_taken_again(disk_queue: DiskQueue, tmp_path: Path) -> None:
    put(disk_queue, *map(str, range(MANY)))
    ids = take(disk_queue)
    covered, rest = ids[:SPAN_ROWS_MIN] + ids[-SPAN_ROWS_MIN:], ids[SPAN_ROWS_MIN:-SPAN_ROWS_MIN]
    with disk_queue.transaction():
        disk_queue.ack_rows(covered)
        disk_queue.release(rest)
    again = DiskQueue(as_after_a_kill(disk_queue, tmp_path / "killed"))
    assert take(disk_queue) == take(again) == rest
    again.close()


def test_noted_rows_beyond_those_that_are_kept_are_deleted_unmarked(disk_queue: DiskQueue) -> None:
    put(disk_queue, *map(str, range(MANY)))
    deliver(disk_queue)
    with disk_queue.transaction():
        while disk_queue.tidy(3600, 10):
            pass
    assert disk_queue.counts()[:4] == (0, 0, 10, 0)
    assert disk_queue.row_range() == (MANY - 9, MANY)


def test_on_a_full_disk_noted_rows_are_deleted_instead_of_marked(disk_queue: DiskQueue) -> None:
    put(disk_queue, *map(str, range(MANY)))
    deliver(disk_queue, but=5)
    disk_queue._reserve.spent = True
    with disk_queue.transaction():
        disk_queue.mark_noted()
    assert disk_queue.counts()[:4] == (0, 5, 0, 0)
    assert disk_queue.row_range() == (MANY - 4, MANY)


def test_what_another_program_settled_after_a_kill_is_counted(disk_queue: DiskQueue, tmp_path: Path) -> None:
    put(disk_queue, *map(str, range(MANY)))
    deliver(disk_queue, but=5)
    killed = as_after_a_kill(disk_queue, tmp_path / "killed")
    with closing(sqlite3.connect(killed / FILE_NAME)) as connection, connection:  # as the stock library's ack
        connection.execute("UPDATE ack_queue_default SET status = 5 WHERE _id IN (3, ?)", (MANY,))
    again = DiskQueue(killed)
    assert again.counts()[:4] == (4, 0, MANY - 4, 0)
    again.close()


def test_a_row_whose_checksum_became_a_text_that_is_none_is_dead(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path)
    put(queue, *"ab")
    queue.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE ack_queue_default SET crc = CAST(x'ff81' AS TEXT) WHERE _id = 1")
    assert verify(tmp_path).altered == 1
    queue = DiskQueue(tmp_path)
    assert take(queue) == [2]
    assert queue.dead_rows() == [DeadRow(1, "crc")]
    queue.close()


def test_a_flipped_byte_is_dead_and_never_taken(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path)
    put(queue, *"abc")
    queue.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        (data,) = connection.execute("SELECT data FROM ack_queue_default WHERE _id = 2").fetchone()
        connection.execute("UPDATE ack_queue_default SET data = ? WHERE _id = 2", (data.replace(b'"b"', b'"B"'),))
    connection.close()
    queue = DiskQueue(tmp_path)
    assert take(queue) == [1, 3]
    assert queue.dead_rows() == [DeadRow(2, "crc")]
    assert queue.counts()[:4] == (0, 2, 0, 1)
    assert [loss.reason for loss in queue.losses()] == ["dead"]
    queue.close()


def test_settling_a_row_twice_is_noticed_and_undone(disk_queue: DiskQueue) -> None:
    put(disk_queue, *"ab")
    rows = take(disk_queue)
    with disk_queue.transaction():
        disk_queue.ack_rows(rows[:1])
    with (
        pytest.raises(QueueDamagedError, match="2 rows were to be settled but 1 were waiting"),
        disk_queue.transaction(),
    ):
        disk_queue.ack_rows(rows)
    assert disk_queue.counts()[:4] == (0, 1, 1, 0)


def test_a_full_database_stores_nothing_of_the_group_and_goes_on_when_there_is_room(disk_queue: DiskQueue) -> None:
    pages = disk_queue._pragma("page_count")
    disk_queue._conn.execute(f"PRAGMA max_page_count = {pages + 3}").fetchall()
    with pytest.raises(DiskFullError, match="no room"):
        put(disk_queue, *[f"m{n}" for n in range(1000)])
    assert disk_queue.counts()[:4] == (0, 0, 0, 0)
    disk_queue._conn.execute("PRAGMA max_page_count = 100000").fetchall()
    put(disk_queue, "a")
    assert len(take(disk_queue)) == 1


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(QueueUnusableError, match="another program \\(its tables: photos\\)"):
        DiskQueue(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"holiday pictures" * 1000)
    with pytest.raises(QueueUnusableError, match="is not a SQLite database"):
        DiskQueue(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == b"holiday pictures" * 1000


def test_a_newer_bridges_file_is_left_alone(tmp_path: Path) -> None:
    DiskQueue(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(QueueUnusableError, match="newer edge-bridge \\(format 99"):
        DiskQueue(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "symlink"])
def test_a_queue_file_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / FILE_NAME).mkdir()
    else:
        (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(QueueUnusableError):
        DiskQueue(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_another_program_has_open_is_refused(tmp_path: Path) -> None:
    DiskQueue(tmp_path).close()
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(QueueUnusableError, match="in use by another program"):
        DiskQueue(tmp_path)
    other.close()


def test_free_pages_are_given_back_to_the_file_system(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, *[f"m{n}" for n in range(20_000)])
    with queue.transaction():
        queue.ack_rows([row.row_id for row in queue.take(20_000, 1 << 30)])
    with queue.transaction():
        while queue.tidy(3600, 0):
            pass
    before = queue._pragma("page_count")
    for _ in range(100):
        with queue.transaction():
            queue.shrink()
    assert queue._pragma("page_count") < before / 2
    queue.close()


def test_the_serializer_is_json_and_never_pickle() -> None:
    assert serializer.dumps({"a": 1}) == b'{"a":1}'
    assert serializer.dumps(b"as it is") == b"as it is"
    assert serializer.loads(b'{"a":1}') == {"a": 1}
    with pytest.raises(orjson.JSONDecodeError):
        serializer.loads(b"\x80\x04N.")
    file = io.BytesIO()
    serializer.dump([1], file)
    file.seek(0)
    assert serializer.load(file) == [1]


def test_rows_of_another_program_become_events_or_are_dead_once(tmp_path: Path) -> None:
    """What the stock library stored has no checksum: it is adopted when it is taken, and has one from then on."""
    DiskQueue(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        put_raw = "INSERT INTO ack_queue_default (data, timestamp, status) VALUES (?, ?, 1)"
        connection.executemany(put_raw, [(b'{"a":1}', 5.0), (b"\x80\x04pickle", 5.0), (None, 5.0), (b"[2]", -1e300)])
        connection.commit()
    asked: list[tuple[bytes, float]] = []

    def adopt_json(data: bytes, at: float) -> bytes | None:
        asked.append((data, at))
        return None if data[:1] == b"\x80" else event(f"adopted-{len(asked)}")

    queue = DiskQueue(tmp_path, adopt=adopt_json)
    with queue.transaction():
        assert [event_id(row.data) for row in queue.take(10, 1 << 20)] == ["adopted-1", "adopted-3"]
    assert asked == [(b'{"a":1}', 5.0), (b"\x80\x04pickle", 5.0), (b"[2]", 0.0)]
    assert [row.reason for row in queue.dead_rows()] == ["undecodable", "undecodable"]
    queue.close()
    again = DiskQueue(tmp_path, adopt=adopt_json)
    assert len(take(again)) == 2
    assert len(asked) == 3, "adopted once"
    again.close()


def test_a_group_that_is_too_large_for_what_is_free_waits(disk_queue: DiskQueue) -> None:
    assert disk_queue.full_reason(0, 1000) == ""
    assert "too little for" in disk_queue.full_reason(0, 1 << 60)


def test_a_folder_with_other_things_in_it_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "photo.jpg").touch()
    FolderLock(tmp_path).release()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    (tmp_path / "photo.jpg").unlink()
    FolderLock(tmp_path).release()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_delivery_is_no_longer_noted_once_it_is_marked(tmp_path: Path) -> None:
    """A note that stayed would make every start count the whole table."""
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, *[f"m{n}" for n in range(MANY)])
    deliver(queue)
    queue.close()
    assert notes_in(tmp_path) == [(1, MANY)]
    queue = DiskQueue(tmp_path, durability="crash")
    with queue.transaction():
        queue.mark_noted()
    queue.close()
    assert notes_in(tmp_path) == []


def notes_in(folder: Path) -> list[tuple[int, int]]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return connection.execute("SELECT first_id, last_id FROM edge_delivered ORDER BY first_id").fetchall()


def test_a_dead_event_is_found_only_by_whoever_asks_for_the_dead_too(disk_queue: DiskQueue) -> None:
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(event("a"), 1.0, None, "a"), NewRow(event("b"), 1.0, None, "b")])
        disk_queue.reject([DeadRow(disk_queue.take(1, 1 << 20)[0].row_id, "refused", 422)])
    assert disk_queue.find_events(["a", "b"]) == {"b": event("b")}
    assert disk_queue.find_events(["a", "b"], dead_too=True) == {"a": event("a"), "b": event("b")}
