"""What the one connection does beside the verbs: opening what others left, room on the disk, what it remembers."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow
from bridge.disk_queue import connection as connection_module
from bridge.disk_queue.mark import Mark, MarkFile, read_mark
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.errors import DiskFullError, QueueDamagedError
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, head, head_middle, tail

STOCK = "(_id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB, timestamp FLOAT, status INTEGER)"
MEBIBYTE = 1 << 20


def event(name: str) -> bytes:
    return head(name, head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


def put(queue: DiskQueue, count: int) -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event(f"m{n}"), 2e9) for n in range(1, count + 1)])


def take(queue: DiskQueue, count: int = 1000) -> list[int]:
    with queue.transaction():
        return [row.row_id for row in queue.take(count, 1 << 20)]


def ack(queue: DiskQueue, row_ids: list[int]) -> None:
    with queue.transaction():
        queue.ack_rows(row_ids)


def execute(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def schema_of(file: Path) -> set[tuple[str, str]]:
    """What there is, and the columns of the tables; in which order they were added is nobody's business."""
    with closing(sqlite3.connect(file)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        columns = {
            (name, row[1])
            for name in names
            for row in connection.execute(f"SELECT * FROM pragma_table_info('{name}')")  # noqa: S608
        }
        return {(name, "") for name in names} | columns


def waiting_in(file: Path) -> int:
    """As the file alone has it, without its WAL."""
    alone = file.with_name("alone.db")
    alone.write_bytes(file.read_bytes())
    with closing(sqlite3.connect(f"file:{alone}?immutable=1", uri=True)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM ack_queue_default WHERE status < 2").fetchone()[0])


# ---- opening ----


def test_the_wal_gathers_four_reserves_before_it_is_written_back_and_half_of_one_on_a_full_disk(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve_bytes, page_bytes = queue._reserve.size_bytes, queue._pragma("page_size")
    queue.expect_rows(True)
    assert queue._pragma("wal_autocheckpoint") == 4 * reserve_bytes // page_bytes
    assert queue._pragma("journal_size_limit") == 8 * reserve_bytes
    put(queue, 1)
    queue.keep_reserve()
    queue.relieve()
    assert queue._pragma("wal_autocheckpoint") == reserve_bytes // 2 // page_bytes
    monkeypatch.setattr(queue, "disk_free_bytes", lambda: 0)
    queue.keep_reserve()
    assert queue._pragma("wal_autocheckpoint") == reserve_bytes // 2 // page_bytes
    monkeypatch.undo()
    queue.keep_reserve()
    assert queue._pragma("wal_autocheckpoint") == 4 * reserve_bytes // page_bytes


def test_what_is_ours_is_made_private_when_it_is_opened(tmp_path: Path) -> None:
    DiskQueue(tmp_path).close()
    theirs = tmp_path / "photo.jpg"
    theirs.touch()
    for path in (theirs, tmp_path / FILE_NAME, tmp_path / f"{FILE_NAME}-mark"):
        path.chmod(0o644)
    DiskQueue(tmp_path).close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"photo.jpg": 0o644, FILE_NAME: 0o600, f"{FILE_NAME}-mark": 0o600}


@pytest.mark.parametrize(
    "older",
    [
        ("DROP TABLE edge_delivered", "PRAGMA user_version = 2"),
        ("DROP TABLE edge_delivered", "DROP TABLE edge_receipt", "PRAGMA user_version = 1"),
        ("DROP INDEX edge_event", "ALTER TABLE ack_queue_default DROP COLUMN event_id"),
        ("ALTER TABLE edge_loss DROP COLUMN first_at", "PRAGMA user_version = 2"),
    ],
)
def test_a_file_of_an_older_bridge_gets_what_it_lacks_and_keeps_its_rows(
    tmp_path: Path, older: tuple[str, ...]
) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, 3)
    queue.close()
    wanted = schema_of(tmp_path / FILE_NAME)
    execute(tmp_path / FILE_NAME, *older)
    assert schema_of(tmp_path / FILE_NAME) < wanted
    queue = DiskQueue(tmp_path, durability="crash")
    assert queue.counts()[:4] == (3, 0, 0, 0)
    assert queue._pragma("user_version") == 3
    queue.close()
    assert schema_of(tmp_path / FILE_NAME) == wanted
    assert (tmp_path / FILE_NAME).read_bytes()[68:72] == b"EDGB"


class Watched(DiskQueue):
    """Remembers what is executed when it is opened."""

    def _prepare(self) -> None:
        self.seen: list[str] = []
        self._conn.set_trace_callback(self.seen.append)
        super()._prepare()
        self._conn.set_trace_callback(None)


@pytest.mark.parametrize(("rows", "delivered"), [(0, 0), (3, 0), (SPAN_ROWS_MIN, SPAN_ROWS_MIN)])
def test_a_file_that_lacks_nothing_is_opened_without_a_write(tmp_path: Path, rows: int, delivered: int) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, rows)
    ack(queue, take(queue, delivered) if delivered else [])
    queue.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    again = Watched(tmp_path)
    assert [sql for sql in again.seen if not sql.startswith(("SELECT", "PRAGMA"))] == []
    assert again.counts()[:4] == (rows - delivered, 0, delivered, 0)
    again.close()
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_queue_that_is_closed_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    queue = DiskQueue(tmp_path)
    put(queue, 1)
    queue.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_counted_again_is_written_down_and_what_was_noted_is_marked(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, SPAN_ROWS_MIN + 3)
    ack(queue, take(queue, SPAN_ROWS_MIN))
    queue.close()
    execute(tmp_path / FILE_NAME, "UPDATE ack_queue_default SET status = 2 WHERE _id = 258", "DELETE FROM edge_state")
    DiskQueue(tmp_path, durability="crash").close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("SELECT * FROM edge_state").fetchall() == [(1, 3, SPAN_ROWS_MIN, 0)]
        assert connection.execute("SELECT * FROM edge_delivered").fetchall() == []
        counted = connection.execute("SELECT status, COUNT(settled_at) FROM ack_queue_default GROUP BY 1").fetchall()
    assert dict(counted)[5] == SPAN_ROWS_MIN
    again = Watched(tmp_path)
    assert [sql for sql in again.seen if not sql.startswith(("SELECT", "PRAGMA"))] == []
    again.close()


def test_what_the_stock_library_left_is_counted_given_back_and_dated(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    execute(file, f"CREATE TABLE ack_queue_default {STOCK}")
    rows = [(event(f"m{n}"), 2e9, status) for n, status in enumerate((0, 1, 1, 2, 5, 5, 5, 9))]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany("INSERT INTO ack_queue_default (data, timestamp, status) VALUES (?, ?, ?)", rows)
    queue = DiskQueue(tmp_path)
    assert queue.counts()[:4] == (4, 0, 3, 1)
    undated = "SELECT COUNT(*) FROM ack_queue_default WHERE (settled_at IS NULL) = (status > 2)"
    assert queue._conn.execute(undated).fetchone() == (0,)
    assert take(queue) == [1, 2, 3, 4]
    queue.close()
    execute(file, "UPDATE ack_queue_default SET crc = 1 WHERE crc IS NULL")
    queue = DiskQueue(tmp_path)
    assert queue.counts()[:4] == (4, 0, 3, 1), "as it was written, not counted again"
    queue.close()


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("DELETE FROM ack_queue_default WHERE status = 5", (2, 0, 0, 1)),
        ("DELETE FROM ack_queue_default WHERE status = 9", (2, 0, 1, 0)),
        ("DELETE FROM edge_state", (2, 0, 1, 1)),
        ("UPDATE ack_queue_default SET status = 9 WHERE _id = 4", (1, 0, 1, 2)),
    ],
)
def test_a_file_that_somebody_else_changed_is_counted_again(
    tmp_path: Path, change: str, counts: tuple[int, ...]
) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, 4)
    ack(queue, take(queue, 1))
    with queue.transaction():
        queue.reject([DeadRow(row.row_id, "refused") for row in queue.take(1, 1 << 20)])
    queue.close()
    execute(tmp_path / FILE_NAME, change)
    queue = DiskQueue(tmp_path, durability="crash")
    assert queue.counts()[:4] == counts
    queue.close()


class FullAtFirst(DiskQueue):
    """A disk without room for what opening must write."""

    opened = 0

    def _open(self, max_bytes: int) -> None:
        self.opened += 1
        super()._open(max_bytes)
        if self.opened == 1:
            raise DiskFullError(FILE_NAME, "no room")


def test_on_a_full_disk_the_reserve_opens_the_queue_and_without_it_nothing_does(tmp_path: Path) -> None:
    queue = DiskQueue(tmp_path)
    queue.keep_reserve()
    queue.close()
    opened = FullAtFirst(tmp_path)
    assert (opened.opened, opened._reserve.spent, opened._reserve.held) == (2, True, False)
    put(opened, 1)
    opened.close()
    with pytest.raises(DiskFullError):
        FullAtFirst(tmp_path)


# ---- what the mark knows ----


@pytest.mark.parametrize(("newest", "gap"), [(2, None), (3, None), (4, (4, 4)), (9, (4, 9))])
def test_rows_that_only_the_mark_knows_are_a_gap_that_is_told_and_never_filled(
    tmp_path: Path, newest: int, gap: tuple[int, int] | None
) -> None:
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, 3)
    queue.close()
    mark = MarkFile(tmp_path / FILE_NAME)
    mark.write(Mark(newest, 3))
    mark.close()
    queue = DiskQueue(tmp_path, durability="crash")
    assert queue.gap == gap
    assert queue.ledger.totals() == ({"damaged": gap[1] - gap[0] + 1} if gap else {})
    assert read_mark(tmp_path / FILE_NAME) == Mark(max(3, newest), 3)
    put(queue, 1)
    assert take(queue) == [1, 2, 3, max(3, newest) + 1]
    queue.close()


def test_a_gap_beside_a_wal_with_bad_frames_is_damage(tmp_path: Path) -> None:
    """A torn end alone is none; but the mark says that it was whole once."""
    living, killed = tmp_path / "living", tmp_path / "killed"
    living.mkdir()
    killed.mkdir()
    queue = DiskQueue(living)
    put(queue, 3)
    put(queue, 3)
    for path in living.iterdir():
        (killed / path.name).write_bytes(path.read_bytes())
    queue.close()
    wal = killed / f"{FILE_NAME}-wal"
    content = bytearray(wal.read_bytes())
    content[-1] ^= 1
    wal.write_bytes(content)
    with pytest.raises(QueueDamagedError, match="-wal is damaged: rows 4 to 6 are missing"):
        DiskQueue(killed)


# ---- the transaction ----


def store_and_fail(queue: DiskQueue) -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event("x"), 2e9)])
        queue.record_loss(Loss(LossReason.TOO_LARGE, 1, "t"))
        queue.ack_rows([99])


def test_what_is_undone_is_undone_in_memory_too(queue: DiskQueue, tmp_path: Path) -> None:
    put(queue, 2)
    with pytest.raises(QueueDamagedError, match="were to be settled"):
        store_and_fail(queue)
    assert queue.counts()[:4] == (2, 0, 0, 0)
    assert queue.ledger.totals() == {}
    assert take(queue) == [1, 2]
    assert read_mark(tmp_path / FILE_NAME) == Mark(2, 2)


def test_each_transaction_hands_on_its_own_losses(queue: DiskQueue) -> None:
    with queue.transaction():
        queue.record_loss(Loss(LossReason.TOO_LARGE, 1, "t"))
    assert len(queue.ledger.recent) == 1
    with queue.transaction():
        assert (queue.ledger.recent, queue.receipts.recent) == ([], [])


def test_a_loss_alone_is_reason_enough_to_write_down_what_is_in_flight(queue: DiskQueue) -> None:
    put(queue, 3)
    take(queue, 2)
    assert queue._conn.execute("SELECT * FROM edge_batch").fetchall() == []
    with queue.transaction():
        queue.record_loss(Loss(LossReason.TOO_LARGE, 1, "t"))
    assert queue._conn.execute("SELECT * FROM edge_batch").fetchall() == [(1, 2)]


def test_transactions_are_counted_that_wrote_something(queue: DiskQueue) -> None:
    assert queue.commits == 0
    put(queue, 3)
    ack(queue, take(queue, 2))
    with pytest.raises(QueueDamagedError):
        store_and_fail(queue)
    assert queue.commits == 2
    with queue.transaction():
        queue.record_loss(Loss(LossReason.TOO_LARGE, 1, "t"))
    assert queue.commits == 3


# ---- room on the disk ----


@pytest.mark.parametrize(
    ("free_bytes", "kept_bytes", "incoming_bytes", "spent", "reason"),
    [
        (3 * MEBIBYTE // 2, 2 * MEBIBYTE, 0, False, "only 1.5 MiB free on the disk, 2 MiB are kept"),
        (2 * MEBIBYTE, 2 * MEBIBYTE, 0, False, ""),
        (2 * MEBIBYTE, 0, 0, True, "only 2.0 MiB free on the disk, the reserve is in use; 32 MiB are needed"),
        (3 * MEBIBYTE, 0, MEBIBYTE, False, ""),
        (3 * MEBIBYTE - 1, 0, MEBIBYTE, False, "only 3.0 MiB free on the disk, too little for 1.0 MiB of messages"),
    ],
)
def test_why_the_disk_is_full_is_told_in_mebibytes(
    queue: DiskQueue,
    monkeypatch: pytest.MonkeyPatch,
    free_bytes: int,
    kept_bytes: int,
    incoming_bytes: int,
    spent: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(queue, "disk_free_bytes", lambda: free_bytes)
    queue._reserve.size_bytes = 16 * MEBIBYTE
    queue._reserve.spent = spent
    assert queue.full_reason(kept_bytes, incoming_bytes) == reason


def test_a_wal_is_written_back_once_it_has_outgrown_its_bound(
    queue: DiskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / FILE_NAME
    queue.checkpoint()
    assert waiting_in(file) == 0
    put(queue, 10)
    wal_bytes = (tmp_path / f"{FILE_NAME}-wal").stat().st_size
    for bound, waiting in ((64 << 20, 0), (wal_bytes, 0), (wal_bytes - 1, 10)):
        monkeypatch.setattr(connection_module, "_WAL_BYTES_MAX", bound)
        queue.bound_wal()
        assert waiting_in(file) == waiting


def test_a_wal_that_makes_the_file_grow_by_half_a_reserve_is_written_back(queue: DiskQueue, tmp_path: Path) -> None:
    queue.checkpoint()
    before = (tmp_path / FILE_NAME).stat().st_size
    put(queue, 500)
    growth_bytes = queue._pragma("page_count") * queue._pragma("page_size") - before
    assert growth_bytes > 0
    for reserve_bytes, waiting in ((2 * growth_bytes, 0), (2 * growth_bytes - 2, 500)):
        queue._reserve.size_bytes = reserve_bytes
        queue.bound_wal()
        assert waiting_in(tmp_path / FILE_NAME) == waiting


def test_a_small_wal_is_written_back_once_if_it_was_asked_for(queue: DiskQueue, tmp_path: Path) -> None:
    queue.checkpoint()
    put(queue, 10)
    queue.write_back_soon()
    queue.bound_wal()
    assert waiting_in(tmp_path / FILE_NAME) == 10
    put(queue, 1)
    queue.bound_wal()
    assert waiting_in(tmp_path / FILE_NAME) == 10


def test_on_a_full_disk_half_the_reserve_is_the_wals_and_what_it_holds_is_written_back(
    queue: DiskQueue, tmp_path: Path
) -> None:
    queue.keep_reserve()
    put(queue, 10)
    queue.relieve()
    assert (queue._reserve.spent, queue._reserve.held) == (True, False)
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size >= queue._reserve.size_bytes // 2
    assert waiting_in(tmp_path / FILE_NAME) == 10
    queue.keep_reserve()
    assert (queue._reserve.spent, queue._reserve.held) == (False, True)


def test_on_a_full_disk_the_database_has_its_room_before_the_wal_is_written_back_and_keeps_its_locks(
    queue: DiskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> None:
        length.append((tmp_path / FILE_NAME).stat().st_size)

    length: list[int] = []
    queue.keep_reserve()
    put(queue, 200)
    before = (tmp_path / FILE_NAME).stat().st_size
    wanted = queue._pragma("page_count") * queue._pragma("page_size")
    monkeypatch.setattr(queue, "checkpoint", look)
    queue.relieve()
    assert before < wanted == length[0]
    assert queue._conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    reading = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM edge_state')"
    command = [sys.executable, "-c", reading, str(tmp_path / FILE_NAME)]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "database is locked" in other.stderr


# ---- what it remembers ----


def test_ids_that_are_skipped_are_never_given_out_and_the_past_is_not_skipped_into(
    queue: DiskQueue, tmp_path: Path
) -> None:
    put(queue, 2)
    with queue.transaction():
        queue.skip_ids(2)
        queue.skip_ids(1)
    assert queue.newest_id() == 2
    with queue.transaction():
        queue.skip_ids(7)
    assert (queue.newest_id(), read_mark(tmp_path / FILE_NAME)) == (7, Mark(7, 2))
    put(queue, 1)
    assert take(queue) == [1, 2, 8]


def test_a_new_queue_gave_out_no_id_and_has_no_note(queue: DiskQueue) -> None:
    assert (queue.newest_id(), queue.note("x")) == (0, None)
    with queue.transaction():
        queue.write_note("x", "1")
        queue.write_note("x", "2")
    assert queue.note("x") == "2"


def notes_in(queue: DiskQueue) -> list[tuple[int, int]]:
    return queue._conn.execute("SELECT first_id, last_id FROM edge_delivered ORDER BY first_id").fetchall()


@pytest.mark.parametrize(("settled_before", "marked"), [(1e9, 0), (1e9 + 1, 1), (1e9 + 10, 1), (1e9 + 11, 2)])
def test_noted_deliveries_are_marked_when_they_are_old_enough(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, settled_before: float, marked: int
) -> None:
    put(queue, 2 * SPAN_ROWS_MIN)
    for now in (1e9, 1e9 + 10):
        monkeypatch.setattr("time.time", lambda now=now: now)
        ack(queue, take(queue, SPAN_ROWS_MIN))
    spans = [(1, SPAN_ROWS_MIN), (SPAN_ROWS_MIN + 1, 2 * SPAN_ROWS_MIN)]
    assert notes_in(queue) == spans
    with queue.transaction():
        queue.mark_noted(settled_before)
    assert notes_in(queue) == spans[marked:]
    settled = queue._conn.execute(
        "SELECT settled_at, COUNT(*) FROM ack_queue_default WHERE status = 5 GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert settled == [(1e9, SPAN_ROWS_MIN), (1e9 + 10, SPAN_ROWS_MIN)][:marked]
    assert queue.counts()[:4] == (0, 0, 2 * SPAN_ROWS_MIN, 0)


def test_on_a_full_disk_only_those_old_enough_are_deleted_and_no_longer_counted(
    queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(queue, 2 * SPAN_ROWS_MIN)
    for now in (1e9, 1e9 + 10):
        monkeypatch.setattr("time.time", lambda now=now: now)
        ack(queue, take(queue, SPAN_ROWS_MIN))
    queue._reserve.spent = True
    with queue.transaction():
        queue.mark_noted(1e9 + 1)
    assert queue.counts()[:4] == (0, 0, SPAN_ROWS_MIN, 0)
    assert queue.row_range() == (SPAN_ROWS_MIN + 1, 2 * SPAN_ROWS_MIN)
    assert notes_in(queue) == [(SPAN_ROWS_MIN + 1, 2 * SPAN_ROWS_MIN)]


def test_a_note_is_a_change_with_which_is_written_what_is_in_flight(queue: DiskQueue) -> None:
    put(queue, 2)
    take(queue)
    with queue.transaction():
        queue.write_note("x", "1")
    assert queue._conn.execute("SELECT * FROM edge_batch").fetchall() == [(1, 2)]


def test_marking_what_was_noted_writes_down_what_is_in_flight(queue: DiskQueue) -> None:
    """It is a change like any other: after it, the rows that left together are known to have."""
    put(queue, SPAN_ROWS_MIN + 3)
    ack(queue, take(queue, SPAN_ROWS_MIN))
    taken = take(queue, 2)
    with queue.transaction():
        queue.mark_noted()
    assert queue._conn.execute("SELECT * FROM edge_batch").fetchall() == [(taken[0], taken[1])]


def test_a_condemned_file_is_set_aside_once_it_is_closed(queue: DiskQueue, tmp_path: Path) -> None:
    put(queue, 1)
    queue.condemn()
    queue.close()
    assert not (tmp_path / FILE_NAME).exists()
    (tmp_path / FILE_NAME).write_bytes(b"another one")
    queue.close()
    assert (tmp_path / FILE_NAME).read_bytes() == b"another one"
