"""The small tables of a queue's file have no checksums: whatever a flip made of them, the bridge starts and works.

A process that dies of one value would die of it again after each restart. Rows that wait are another matter: they have
checksums (promises 10 and 11). Every value here is one that SQLite finds nothing wrong with.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from bridge.disk_queue import (
    FILE_NAME,
    DiskQueue,
    NewRow,
    Request,
    Selection,
    answer,
    open_queue,
    repair,
    requeue_dead,
    write_report,
)
from bridge.disk_queue.aside import pending, set_aside
from bridge.disk_queue.commands import COMMANDS
from bridge.loss import LossReason
from bridge.message import DeadRow, head, head_middle, tail
from bridge.message import Request as ReceiptRequest

ROWS = 40
NO_TEXT = "CAST(x'ff61' AS TEXT)"
ALTERATIONS: dict[str, tuple[str, ...]] = {  # table and column → what may stand there
    **dict.fromkeys(("edge_loss reason", "edge_loss topic", "edge_loss detail"), (NO_TEXT, "7")),
    "edge_loss event_ids": (NO_TEXT, "'{'", "'5'", "'[1, null]'", "x'5b5d'"),
    "edge_loss messages": ("'many'", "x'00'", "0.5", "-9"),
    **dict.fromkeys(("edge_loss at", "edge_loss first_at"), ("'x'", "1e300", "x'00'")),
    **dict.fromkeys(("edge_loss_total messages", "edge_loss_total told"), ("'x'", "x'00'")),
    "edge_note value": ("'x'", "'{'", "'[null]'", NO_TEXT, "x'00'"),
    **dict.fromkeys(("edge_state waiting", "edge_state delivered"), ("'x'", "-5")),
    "edge_batch last_id": ("'x'", "x'00'", "-1", "9000000000000"),
    **dict.fromkeys(("edge_delivered last_id", "edge_delivered settled_at"), ("'x'",)),
    **dict.fromkeys(("edge_dead reason", "edge_dead excerpt"), (NO_TEXT, "7")),
    **dict.fromkeys(("edge_dead attempts", "edge_dead at", "edge_dead status_code"), ("'x'",)),
    "edge_receipt correlation": ("'text'",),
    **dict.fromkeys(("edge_receipt response_topic", "edge_receipt event_id"), (NO_TEXT, "7")),
}
each_alteration = pytest.mark.parametrize(
    ("place", "value"), [(place, value) for place, values in ALTERATIONS.items() for value in values]
)


def event(number: int) -> bytes:
    return head(f"m{number}", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b'"%d"' % number, is_json=True)


def rows(first: int, count: int, received_at: float = 1.8e9) -> list[NewRow]:
    return [NewRow(event(n), received_at, n, f"m{n}") for n in range(first, first + count)]


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped queue with something in each of its tables."""
    folder = tmp_path_factory.mktemp("living")
    queue = DiskQueue(folder)
    with queue.transaction():
        queue.put_rows(rows(1, 10, received_at=5.0))  # before the clock was set
        queue.put_rows(rows(11, ROWS + 300))
        queue.drop_oldest(2, 0, LossReason.MAX_MESSAGES)
        for row_id in range(ROWS + 300, ROWS + 305):
            queue.receipts.owe(row_id, ReceiptRequest("edge/buffer/receipts/a", b"c", until_delivered=True), "m")
    with queue.transaction():
        queue.note_told([12, 13])
        queue.write_note("session_began_after_row", "3")
        queue.drop_oldest(1, 0, LossReason.MAX_BYTES)
    with queue.transaction():
        taken = [row.row_id for row in queue.take(300, 1 << 20)]
        queue.reject([DeadRow(row_id, "because", 400, 3, "no") for row_id in taken[:3]])
        queue.ack_rows(taken[3:])
    with queue.transaction():
        queue.take(10, 1 << 20)
        queue.write_note("something", "so that edge_batch is written")
    queue.close()
    return folder


def altered(living: Path, folder: Path, place: str, value: str) -> Path:
    shutil.copytree(living, folder)
    table, column = place.split()
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        changed = connection.execute(f"UPDATE {table} SET {column} = {value}")  # noqa: S608  all of it stands above
        assert changed.rowcount > 0, "nothing was altered"
    return folder


def work(queue: DiskQueue) -> None:
    """All that the bridge does with its queue in an hour, and its operator."""
    with queue.transaction():
        queue.put_rows(rows(5000, 5))
        queue.put_rows(rows(6000, 5, received_at=5.0))
        queue.arrivals(100, queue.noted("session_began_after_row", int, 0))
        queue.put_times_right()
        queue.told_rows_wait(refused_after=0.0)
        queue.ledger.untold()
        queue.drop_oldest(2, 0, LossReason.MAX_MESSAGES)
        taken = [row.row_id for row in queue.take(20, 1 << 20)]
        queue.reject([DeadRow(row_id, "because", 400, 1, "no") for row_id in taken[:2]])
        queue.ack_rows(taken[2:])
        requeue_dead(queue, [row.row_id for row in queue.dead_rows()][:1])
        queue.note_told([queue.newest_id()])
        queue.tidy(0, 10)
    for command in COMMANDS:
        after: int | None = 0
        while after is not None:
            with queue.transaction():
                page = answer(queue, Request.of(command, Selection(), after))
            orjson.dumps(page.items)
            after = page.next
    with queue.transaction():
        queue.mark_noted()


@each_alteration
def test_no_value_of_a_small_table_keeps_the_queue_from_being_opened_and_used(
    tmp_path: Path, living: Path, place: str, value: str
) -> None:
    opened = open_queue(altered(living, tmp_path / "queue", place, value))
    for salvager in opened.salvagers:
        salvager.close()
    work(opened.queue)
    opened.queue.close()


@each_alteration
def test_no_value_of_a_small_table_keeps_its_rows_from_being_salvaged(
    tmp_path: Path, living: Path, place: str, value: str
) -> None:
    folder = altered(living, tmp_path / "queue", place, value)
    set_aside(folder)
    (report,) = repair(folder)
    assert report.waiting >= ROWS - 10
    queue = DiskQueue(folder)
    work(queue)
    queue.close()


def test_a_second_damage_in_the_middle_of_a_salvage_counts_nothing_twice(tmp_path: Path, living: Path) -> None:
    """The ledger of the first file is in the second one already, and so are its first rows."""
    folder = tmp_path / "queue"
    shutil.copytree(living, folder)
    before = DiskQueue(folder)
    totals, waiting = before.ledger.totals(), before.counts().ready
    before.close()
    set_aside(folder)
    opened = open_queue(folder)
    (salvager,) = opened.salvagers
    with opened.queue.transaction():
        tally = salvager.begin(opened.queue)
        portion = salvager.read(tally)
        assert portion
        salvager.store(opened.queue, tally, portion)
        opened.queue.drop_oldest(1, 0, LossReason.MAX_MESSAGES)
    salvager.close()
    opened.queue.condemn()
    opened.queue.close()
    assert len(pending(folder)) == 2
    reports = repair(folder)
    assert [report.lost for report in reports] == [0, 0]
    after = DiskQueue(folder)
    assert after.ledger.totals() == totals | {"max_messages": totals["max_messages"] + 1}
    assert after.counts().ready == waiting - 1
    after.close()


def test_a_gap_over_ids_that_a_salvage_skipped_is_told_by_what_waited(tmp_path: Path, living: Path) -> None:
    """A thousand million ids were never given out, so they are not lost messages."""
    folder = tmp_path / "queue"
    shutil.copytree(living, folder)
    set_aside(folder)
    opened = open_queue(folder)
    with opened.queue.transaction():
        opened.queue.put_rows(rows(7000, 20))
    for salvager in opened.salvagers:
        with opened.queue.transaction():
            report = salvager.finish(opened.queue, salvager.begin(opened.queue))
        write_report(salvager.file, report)
        salvager.close()
    waiting = opened.queue.counts().ready
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    opened.queue.close()
    (killed / f"{FILE_NAME}-wal").write_bytes(b"")
    queue = DiskQueue(killed)
    told = queue.ledger.totals()["damaged"]
    queue.close()
    assert waiting == 20
    assert told == waiting
