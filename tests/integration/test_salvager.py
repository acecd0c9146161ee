"""What a salvager believes of a damaged file, value by value, and what it makes of it in the new queue."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, Report, Salvager, Selection
from bridge.disk_queue import salvage as salvage_module
from bridge.disk_queue.mark import Mark, MarkFile
from bridge.disk_queue.pages import Pages
from bridge.disk_queue.rows import SavedRow
from bridge.disk_queue.salvage import Portion, Tally
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, head, head_middle, tail

SKIPPED = 1_000_000_000
NOWHERE = 2**48  # where ids go on if nothing is known
STOCK = "(_id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB, timestamp FLOAT, status INTEGER)"


def event(number: int, payload: bytes = b"1") -> bytes:
    return head(f"m{number}", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(payload, is_json=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was set aside: row 1 is delivered, 2 dead, 3 was dead once, 4 and 5 in flight, 6 to 9 ready."""
    folder = tmp_path / "old"
    folder.mkdir()
    queue = DiskQueue(folder, durability="crash")
    with queue.transaction():
        queue.put_rows([NewRow(event(n), 2e9 + n, 100 + n, f"m{n}", 3e9 + n) for n in range(1, 10)])
        queue.ack_rows([row.row_id for row in queue.take(1, 1 << 20)])
        queue.reject([DeadRow(row.row_id, f"because {row.row_id}", 422, 3, "no") for row in queue.take(2, 1 << 20)])
        queue.requeue([3])
        queue.take(1, 1 << 20)
        queue.release([3])
        queue.take(1, 1 << 20)
        queue.take(2, 1 << 20)
        queue.release([3])
    with queue.transaction():
        queue.record_loss(Loss(LossReason.TOO_LARGE, 4, "t"))
        queue.write_note("written", "by hand")
    queue.close()
    return folder / FILE_NAME


def execute(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def mark(file: Path, newest: int, waiting: int) -> None:
    noted = MarkFile(file)
    noted.write(Mark(newest, waiting))
    noted.close()


def next_id_of(file: Path) -> int:
    with closing(Salvager(file)) as salvager:
        return salvager.next_id


def rows_of(file: Path) -> dict[int | None, SavedRow]:
    with closing(Salvager(file)) as salvager:
        portion = salvager.read(Tally())
        assert portion is not None
        assert salvager.read(Tally()) is None
        return {row.row_id: row for row in portion.rows}


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[DiskQueue]:
    """The new one."""
    (tmp_path / "new").mkdir()
    queue = DiskQueue(tmp_path / "new", durability="crash")
    yield queue
    queue.close()


def salvaged(file: Path, queue: DiskQueue) -> Report:
    with closing(Salvager(file)) as salvager, queue.transaction():
        tally = salvager.begin(queue)
        while portion := salvager.read(tally):
            tally = salvager.store(queue, tally, portion)
        return salvager.finish(queue, tally)


# ---- how far the ids had come, and how many were waiting ----


def test_new_ids_begin_far_above_the_highest_that_the_file_or_its_mark_knows(file: Path) -> None:
    assert next_id_of(file) == 9 + SKIPPED
    mark(file, 5, 7)
    assert next_id_of(file) == 9 + SKIPPED
    mark(file, 12, 7)
    assert next_id_of(file) == 12 + SKIPPED
    Path(f"{file}-mark").unlink()
    assert next_id_of(file) == 9 + SKIPPED
    file.write_bytes(bytes(4096))
    assert next_id_of(file) == NOWHERE
    mark(file, 12, 7)
    assert next_id_of(file) == 12 + SKIPPED


@pytest.mark.parametrize(
    ("sequence", "next_id"),
    [
        ("0", SKIPPED),
        (f"{2**56 - 1}", 2**56 - 1 + SKIPPED),
        (f"{2**56}", NOWHERE),  # no queue lives as long as that
        ("-1", NOWHERE),
        ("'x'", NOWHERE),
    ],
)
def test_a_sequence_that_no_queue_reaches_is_not_believed(file: Path, sequence: str, next_id: int) -> None:
    Path(f"{file}-mark").unlink()
    execute(file, f"UPDATE sqlite_sequence SET seq = {sequence} WHERE name = 'ack_queue_default'")  # noqa: S608
    assert next_id_of(file) == next_id


def test_only_the_sequence_of_the_rows_counts(file: Path) -> None:
    execute(file, "UPDATE sqlite_sequence SET seq = 500 WHERE name = 'edge_loss'")
    assert next_id_of(file) == 9 + SKIPPED


@pytest.mark.parametrize(
    ("marked", "in_file", "total"),
    [
        (None, 17, 17),
        (Mark(9, 18), 17, 17),  # as new as the file: the file is exact
        (Mark(8, 18), 17, 17),
        (Mark(10, 18), 17, 18),  # newer
        (Mark(9, 18), None, 18),  # all that is left
        (Mark(9, 18), "'x'", 18),
        (None, "'x'", None),
        (Mark(9, 2), None, 7),  # seven were found
        (None, None, None),
    ],
)
def test_how_many_were_waiting_is_known_by_whatever_knows_more(
    file: Path, queue: DiskQueue, marked: Mark | None, in_file: int | str | None, total: int | None
) -> None:
    Path(f"{file}-mark").unlink()
    if marked:
        mark(file, *marked)
    execute(file, "DELETE FROM edge_state" if in_file is None else f"UPDATE edge_state SET waiting = {in_file}")  # noqa: S608
    lost = None if total is None else total - 7
    assert salvaged(file, queue) == Report(FILE_NAME, 9, 7, 0, lost, total)
    assert queue.ledger.totals() == {"dead": 2, "too_large": 4} | ({"damaged": lost} if lost else {})


def test_a_salvager_that_is_closed_leaves_no_descriptor_open(file: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    salvager = Salvager(file)
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    salvager.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- a row ----

SIX = SavedRow(6, event(6), 2e9 + 6, 0, zlib.crc32(event(6)), 106, "m6", None, 3e9 + 6)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ("status = 0", SIX),
        ("status = 1", SIX),
        ("status = 2", SIX),
        ("status = 5, settled_at = 4.0", SIX._replace(status=5, settled_at=4.0)),
        ("status = 9, settled_at = 4", SIX._replace(status=9, settled_at=4.0)),
        ("status = 5", SIX),  # settled only if it says since when
        ("status = 5, settled_at = 'x'", SIX),
        ("settled_at = 4.0", SIX),
        ("status = 3", None),
        ("status = 'x'", None),
        ("data = CAST(data AS TEXT)", SIX),
        ("data = 'ü', event_id = NULL", SIX._replace(data="ü".encode(), event_id=None)),
        ("data = NULL", SIX._replace(data=None, event_id=None)),
        ("data = 7", SIX._replace(data=None, event_id=None)),
        ("data = x'80'", SIX._replace(data=b"\x80", event_id=None)),
        ("event_id = NULL", SIX._replace(event_id=None)),
        ("event_id = 'other'", SIX),  # the checksum proves the data, not this column
        ("timestamp = 7", SIX._replace(received_at=7.0)),
        ("timestamp = 'x'", SIX._replace(received_at=0.0)),
        ("crc = NULL", SIX._replace(crc=None)),
        ("crc = 0", SIX._replace(crc=0)),
        ("crc = -1", SIX._replace(crc=None)),
        ("crc = 'x'", SIX._replace(crc=None)),
        ("packet_id = 'x'", SIX._replace(packet_id=None)),
        ("expires_at = 7", SIX._replace(expires_at=7.0)),
        ("expires_at = 'x'", SIX._replace(expires_at=None)),
    ],
)
def test_of_a_row_is_believed_what_can_be_true(file: Path, change: str, row: SavedRow | None) -> None:
    execute(file, f"UPDATE ack_queue_default SET {change} WHERE _id = 6")  # noqa: S608 - of this file
    rows = rows_of(file)
    assert rows.get(6) == row
    assert rows.keys() - {6} == set(range(1, 10)) - {6}


@pytest.mark.parametrize(
    ("row_id", "kept"), [(1_000, 1_000), (8 + SKIPPED, 8 + SKIPPED), (9 + SKIPPED, None), (0, None), (-3, None)]
)
def test_an_id_that_was_never_given_out_is_dropped(file: Path, row_id: int, kept: int | None) -> None:
    execute(file, f"UPDATE ack_queue_default SET _id = {row_id} WHERE _id = 6")  # noqa: S608
    assert rows_of(file)[kept] == SIX._replace(row_id=kept)


def test_rows_of_the_stock_library_have_the_columns_that_they_have(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    execute(
        file,
        f"CREATE TABLE ack_queue_default {STOCK}",
        "INSERT INTO ack_queue_default VALUES (1, '{}', 7.5, 1), (2, x'80', 7.5, 5)",
    )
    nothing = (None, None, None, None, None)
    assert rows_of(file) == {1: SavedRow(1, b"{}", 7.5, 0, *nothing), 2: SavedRow(2, b"\x80", 7.5, 0, *nothing)}


def test_columns_that_came_later_than_ours_are_not_ours(file: Path) -> None:
    execute(file, "ALTER TABLE ack_queue_default ADD COLUMN more TEXT", "UPDATE ack_queue_default SET more = 'x'")
    assert rows_of(file)[6] == SIX


@pytest.mark.parametrize(
    ("span", "delivered"),
    [
        ("6, 8, 4.0", {6, 7, 8}),
        ("6, 6, 4", {6}),
        ("6, 'x', 4.0", set()),
        ("6, 8, 'x'", set()),
    ],
)
def test_rows_that_are_noted_as_delivered_are_delivered(file: Path, span: str, delivered: set[int]) -> None:
    execute(file, f"INSERT INTO edge_delivered VALUES ({span})")  # noqa: S608
    rows = rows_of(file)
    assert {n for n in range(3, 10) if rows[n].status == 5} == delivered
    assert {rows[n].settled_at for n in range(3, 10)} == ({4.0} if delivered else set()) | {None}
    assert rows[1].status == 5
    assert rows[1].settled_at != 4.0


def test_what_is_dead_stays_dead_when_it_is_noted_as_delivered_too(file: Path) -> None:
    execute(file, "INSERT INTO edge_delivered VALUES (1, 9, 4.0)")
    assert rows_of(file)[2].status == 9


# ---- pages that no tree leads to any more ----


def with_a_leaf_elsewhere(folder: Path, payload_bytes: int, row_id: int, altered: bytes = b"") -> Path:
    """A file of nine rows, of which a leaf is destroyed, and a copy of it stands where no tree leads to."""
    queue = DiskQueue(folder, durability="crash")
    payload = b'"%b"' % (b"x" * payload_bytes)
    with queue.transaction():
        queue.put_rows([NewRow(event(n, payload), 2e9) for n in range(1, 10)])
    queue.close()
    file = folder / FILE_NAME
    pages = Pages(file)
    places = pages.places(pages.roots()["ack_queue_default"])
    (leaf,) = (place.page for place in places if place.after < row_id <= place.last)
    content = bytes(pages.page(leaf))
    pages.close()
    with file.open("r+b") as opened:
        opened.seek((leaf - 1) * len(content))
        opened.write(bytes(len(content)))
        opened.seek(0, 2)
        opened.write(content.replace(altered, altered.upper()) if altered else content)
    return file


@pytest.mark.parametrize("payload_bytes", [3000, 800])
def test_rows_of_a_lost_leaf_come_from_wherever_it_stands(tmp_path: Path, payload_bytes: int) -> None:
    """One row a leaf, or some."""
    rows = rows_of(with_a_leaf_elsewhere(tmp_path, payload_bytes, 5))
    assert list(rows) == list(range(1, 10))
    assert all(row.is_sound for row in rows.values())


def test_what_no_tree_leads_to_is_believed_only_if_its_checksum_is_right(tmp_path: Path) -> None:
    assert list(rows_of(with_a_leaf_elsewhere(tmp_path, 800, 5, b'"m5"'))) == [1, 2, 3, 4, 6, 7, 8, 9]


# ---- in portions ----


def portions_of(file: Path, tally: Tally) -> list[Portion]:
    with closing(Salvager(file)) as salvager:
        assert salvager.places == 0
        found = list(iter(lambda: salvager.read(tally), None))
        assert salvager.places == 1
        return found


@pytest.mark.parametrize("bound", ["rows", "bytes"])
def test_a_portion_is_bounded_in_rows_and_in_bytes(file: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(salvage_module, "_PORTION_ROWS", 4 if bound == "rows" else 100)
    monkeypatch.setattr(salvage_module, "_PORTION_BYTES", 1 << 20 if bound == "rows" else 4 * len(event(1)))
    found = portions_of(file, Tally())
    assert [[row.row_id for row in portion.rows] for portion in found] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert [portion[1:] for portion in found] == [(0, 4), (0, 8), (1, 0)]
    again = portions_of(file, Tally(0, 4))
    assert [[row.row_id for row in portion.rows] for portion in again] == [[5, 6, 7, 8], [9]]


def test_the_bytes_of_each_portion_are_counted_from_its_first_row(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salvage_module, "_PORTION_BYTES", 4 * len(event(1)) + 1)
    found = portions_of(file, Tally())
    assert [[row.row_id for row in portion.rows] for portion in found] == [[1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_a_portion_that_ends_with_a_row_without_an_id_passes_over_none_that_has_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salvage_module, "_PORTION_ROWS", 1)
    execute(file, "UPDATE ack_queue_default SET _id = -3 WHERE _id = 6")
    found = portions_of(file, Tally())
    assert [portion.last_id for portion in found] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 0]
    assert 1 in {row.row_id for portion in portions_of(file, Tally(0, 0)) for row in portion.rows}


def test_what_is_read_to_the_end_is_not_read_again(file: Path) -> None:
    assert portions_of(file, Tally(1, 0)) == [Portion((), 1, 0)]


# ---- what is stored ----


def test_rows_are_stored_as_they_were_with_the_reason_of_their_death(file: Path, queue: DiskQueue) -> None:
    assert salvaged(file, queue) == Report(FILE_NAME, 9, 7, 0, 0, 7)
    assert queue.counts()[:4] == (7, 0, 1, 1)
    assert queue.dead_rows() == [DeadRow(2, "because 2", 422, 3, "no")]
    rows, _ = queue.select(Selection(), 0)
    assert {row.row_id: row.died.reason for row in rows if row.died} == {2: "because 2", 3: "because 3"}


def test_a_dead_row_whose_reason_cannot_be_read_says_so(file: Path, queue: DiskQueue) -> None:
    execute(file, "DELETE FROM edge_dead")
    salvaged(file, queue)
    assert queue.dead_rows() == [DeadRow(2, "salvaged; the reason was unreadable", None, 0, "")]
    (died_at,) = queue._conn.execute("SELECT at FROM edge_dead").fetchone()
    (settled_at,) = queue._conn.execute("SELECT settled_at FROM ack_queue_default WHERE _id = 2").fetchone()
    assert died_at == settled_at


def test_an_altered_row_dies_if_it_was_waiting_and_stays_as_it_is_if_it_was_settled(
    file: Path, queue: DiskQueue
) -> None:
    execute(file, "UPDATE ack_queue_default SET data = x'00' WHERE _id IN (1, 2, 6, 7)")
    assert salvaged(file, queue) == Report(FILE_NAME, 7, 5, 2, 2, 7)
    assert [row.row_id for row in queue.dead_rows() if row.reason == "crc"] == [6, 7]
    assert queue.counts()[:4] == (5, 0, 1, 3)
    assert queue.ledger.totals() == {"dead": 4, "too_large": 4}, "nothing is counted twice"


def test_altered_rows_were_waiting_too_however_few_the_file_says(file: Path, queue: DiskQueue) -> None:
    execute(file, "UPDATE ack_queue_default SET data = x'00' WHERE _id IN (6, 7)", "UPDATE edge_state SET waiting = 1")
    assert salvaged(file, queue) == Report(FILE_NAME, 7, 5, 2, 2, 7)
    assert "damaged" not in queue.ledger.totals()


def test_what_is_missing_is_in_the_ledger_once_however_often_it_is_finished(file: Path, queue: DiskQueue) -> None:
    """I9: a stop between the end of a salvage and its report has the next start do it again."""
    execute(file, "DELETE FROM ack_queue_default WHERE _id IN (6, 7)")
    report = Report(FILE_NAME, 7, 5, 0, 2, 7)
    assert salvaged(file, queue) == report
    assert salvaged(file, queue) == report
    (entry,) = [entry for entry in queue.losses() if entry.reason == "damaged"]
    assert (entry.messages, entry.topic, entry.detail) == (2, None, f"unreadable in {FILE_NAME}")


def test_the_batches_in_flight_leave_together_again(file: Path, queue: DiskQueue) -> None:
    salvaged(file, queue)
    with queue.transaction():
        taken = [[row.row_id for row in queue.take(100, 1 << 20)] for _ in range(3)]
    assert taken == [[3], [4, 5], [6, 7, 8, 9]]


def salvaged_behind_a_hold(file: Path, queue: DiskQueue) -> list[list[int]]:
    """Salvage while nothing leaves; return what leaves together afterwards."""
    queue.withhold(True)
    salvaged(file, queue)
    queue.withhold(False)
    with queue.transaction():
        return [[row.row_id for row in queue.take(100, 1 << 20)] for _ in range(3)]


def test_they_do_so_too_if_nothing_left_before_all_were_back(file: Path, queue: DiskQueue) -> None:
    assert salvaged_behind_a_hold(file, queue) == [[3], [4, 5], [6, 7, 8, 9]]


def test_a_waiting_row_of_which_no_batch_knows_leaves_in_its_old_place(file: Path, queue: DiskQueue) -> None:
    execute(file, "DELETE FROM edge_batch WHERE first_id = 3")
    assert salvaged_behind_a_hold(file, queue) == [[3], [4, 5], [6, 7, 8, 9]]


@pytest.mark.parametrize("last", ["NULL", "'x'", "-1", "5", f"{9 + SKIPPED}"])
def test_a_batch_that_cannot_be_is_not_taken_over(tmp_path: Path, file: Path, queue: DiskQueue, last: str) -> None:
    execute(
        file,
        "DROP TABLE edge_batch",
        "CREATE TABLE edge_batch (first_id INTEGER PRIMARY KEY, last_id)",
        f"INSERT INTO edge_batch VALUES (4, 5), (6, {last})",  # noqa: S608 - named above
        "INSERT INTO edge_batch VALUES (7, 7)",
    )
    with closing(Salvager(file)) as salvager, queue.transaction():
        salvager.begin(queue)
    assert queue._state.returned == ((4, 5), (7, 7))


def test_the_longest_batch_that_can_be_is_taken_over(file: Path, queue: DiskQueue) -> None:
    execute(file, "DELETE FROM edge_batch", f"INSERT INTO edge_batch VALUES (6, {8 + SKIPPED})")  # noqa: S608
    with closing(Salvager(file)) as salvager, queue.transaction():
        salvager.begin(queue)
    assert queue._state.returned == ((6, 8 + SKIPPED),)


def test_notes_are_taken_over_with_those_of_other_salvages(file: Path, queue: DiskQueue) -> None:
    execute(
        file, "INSERT INTO edge_note VALUES ('salvage of x', 'old'), (7, 'no text'), ('a', 8)", "DELETE FROM edge_batch"
    )
    with closing(Salvager(file)) as salvager, queue.transaction():
        assert salvager.begin(queue) == Tally()
    notes = dict(queue._conn.execute("SELECT key, value FROM edge_note").fetchall())
    assert notes.pop(f"salvage of {FILE_NAME}")
    assert notes == {"written": "by hand", "7": "no text", "a": "8", "salvage of x": "old"}


def test_the_ledger_is_taken_over_with_what_the_cloud_was_told(file: Path, queue: DiskQueue) -> None:
    execute(file, "UPDATE edge_loss_total SET told = 1 WHERE reason = 'dead'")
    with closing(sqlite3.connect(file)) as connection:
        entries = connection.execute("SELECT * FROM edge_loss").fetchall()
    salvaged(file, queue)
    assert queue._conn.execute("SELECT * FROM edge_loss").fetchall() == entries
    totals = queue._conn.execute("SELECT reason, messages, told FROM edge_loss_total").fetchall()
    assert totals == [("dead", 2, 1), ("too_large", 4, 0)]


def without_totals(file: Path) -> None:
    execute(file, "DROP TABLE edge_loss_total")


def with_totals_that_are_none(file: Path) -> None:
    execute(
        file,
        "DROP TABLE edge_loss_total",
        "CREATE TABLE edge_loss_total (reason PRIMARY KEY, messages, told) WITHOUT ROWID",
        "INSERT INTO edge_loss_total VALUES ('dead', 'x', 0), (x'00', 1, 0), ('too_large', 1, NULL)",
    )


@pytest.mark.parametrize("damage", [without_totals, with_totals_that_are_none])
def test_totals_that_cannot_be_read_are_those_of_the_entries_and_count_as_told(
    file: Path, queue: DiskQueue, damage: Callable[[Path], None]
) -> None:
    execute(file, "INSERT INTO edge_loss VALUES (90, 1.0, 'dead', 5, 't', '[]', '', NULL, NULL)")
    damage(file)
    salvaged(file, queue)
    totals = queue._conn.execute("SELECT reason, messages, told FROM edge_loss_total").fetchall()
    assert totals == [("dead", 7, 7), ("too_large", 4, 4)]
