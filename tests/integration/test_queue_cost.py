"""What a verb of the queue costs does not depend on how many rows wait: no statement looks at a whole table.

The statements are those that the verbs do execute, as SQLite traces them, so nothing here names one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from bridge.disk_queue import DiskQueue, NewRow, Selection
from bridge.loss import LossReason
from bridge.message import DeadRow, head, head_middle, tail

ROWS = 6000
MANY = 512  # rows that are acked as a span, and not one by one
_MIDDLE = head_middle("edge/x", "t")
_LARGE_TABLES = "ack_queue_default|edge_dead|edge_receipt|edge_loss"  # the others are bounded by what is under way

Verb = Callable[[DiskQueue], object]


def put(queue: DiskQueue, first: int, count: int) -> None:
    numbers = range(first, first + count)
    events = (head(f"m{n}", _MIDDLE, "2026-01-01T00:00:00Z") + tail(b"1", is_json=True) for n in numbers)
    queue.put_rows([NewRow(event, 1.8e9, n % 65_535 + 1, f"m{n}") for n, event in zip(numbers, events, strict=True)])


def take(queue: DiskQueue, rows: int) -> list[int]:
    return [row.row_id for row in queue.take(rows, 1 << 30)]


def take_some_again(queue: DiskQueue) -> None:
    queue.release(take(queue, 10))
    queue.ack_rows(take(queue, 10))


VERBS: dict[str, Verb] = {
    "put": lambda queue: put(queue, 10**6, 100),
    "take and ack a span": lambda queue: queue.ack_rows(take(queue, MANY)),
    "take and ack a few": lambda queue: queue.ack_rows(take(queue, 10)[::2]),
    "take, release, take": take_some_again,
    "reject": lambda queue: queue.reject([DeadRow(row_id, "refused", 422) for row_id in take(queue, 10)]),
    "tidy": lambda queue: queue.tidy(3600, 100),
    "mark what is noted": lambda queue: queue.mark_noted(),
    "tidy what is marked": lambda queue: queue.tidy(3600, 0),
    "oldest": lambda queue: queue.oldest_received_at(),
    "find events": lambda queue: queue.find_events([f"m{n}" for n in range(ROWS - 20, ROWS)]),
    "find a row": lambda queue: queue.find_row("m1500"),
    "drop oldest": lambda queue: queue.drop_oldest(10, 1, LossReason.MAX_MESSAGES),
    "drop the too old": lambda queue: queue.drop_oldest(10, 0, LossReason.MAX_AGE, received_before=1.0),
    "arrivals": lambda queue: queue.arrivals(100, 0),
    "dead rows": lambda queue: queue.dead_rows(5),
    "remove dead": lambda queue: queue.remove_oldest_dead(2),
    "a page of all": lambda queue: queue.select(Selection(), 0),
    "a page of what waits": lambda queue: queue.select(Selection(states=("ready",)), 100),
    "a page of the dead": lambda queue: queue.select(Selection(states=("dead",)), 0),
    "a page of one": lambda queue: queue.select(Selection(ids=("m1600",)), 0),
    "a page of bare rows": lambda queue: queue.select_bare(Selection(), 0),
    "ids without index": lambda queue: queue.ids_without_index(0),
    "requeue": lambda queue: queue.requeue([row.row_id for row in queue.dead_rows(2)]),
    "counts": lambda queue: queue.counts(),
    "losses": lambda queue: queue.losses(),
}


def filled(folder: Path, rows: int) -> DiskQueue:
    """A queue that was opened with so many rows waiting: none of them is in memory."""
    folder.mkdir()
    queue = DiskQueue(folder, durability="crash")
    with queue.transaction():
        put(queue, 0, rows)
    queue.close()
    return DiskQueue(folder, durability="crash")


def plans(queue: DiskQueue, statements: set[str]) -> Iterator[tuple[str, str]]:
    """Each step of each statement's plan that goes to a table which may be large."""
    for sql in statements:
        if re.match(r"SELECT|INSERT|UPDATE|DELETE", sql):
            for *_, step in queue._conn.execute(f"EXPLAIN QUERY PLAN {sql}"):
                if re.match(rf"(SCAN|SEARCH) ({_LARGE_TABLES})\b|USE TEMP", step):
                    yield sql, step


def looks_at_everything(sql: str, step: str) -> bool:
    """A scan in the order of the rows is none if it ends early: by LIMIT, or at the first row that is enough."""
    if step.startswith("SEARCH"):
        return False
    is_of_what_waits = "USING INDEX edge_ready" in step and "ORDER BY _id" in sql  # read until it is enough
    is_of_what_is_kept = "edge_settled" in step  # delivered and dead rows are bounded
    return not (is_of_what_waits or is_of_what_is_kept or " LIMIT " in sql)


def test_each_statement_of_each_verb_finds_its_rows_by_an_index(tmp_path: Path) -> None:
    queue = filled(tmp_path / "queue", ROWS)
    seen: dict[str, str] = {}
    for name, verb in VERBS.items():
        queue._conn.set_trace_callback(lambda sql, name=name: seen.setdefault(sql, name))  # type: ignore[misc]
        with queue.transaction():
            verb(queue)
        queue._conn.set_trace_callback(None)
    found = list(plans(queue, set(seen)))
    wrong = [f"{seen[sql]}: {step}: {sql[:200]}" for sql, step in found if looks_at_everything(sql, step)]
    queue.close()
    assert len(found) > 20
    assert wrong == []


def test_a_plan_that_looks_at_everything_is_found(tmp_path: Path) -> None:
    queue = filled(tmp_path / "queue", 10)
    wrong = {
        "SELECT COUNT(*) FROM ack_queue_default",
        "SELECT _id FROM ack_queue_default WHERE data = 'x' ORDER BY timestamp",
        "DELETE FROM ack_queue_default WHERE timestamp < 5",
        "UPDATE edge_dead SET reason = '' WHERE attempts = 3",
    }
    caught = {sql for sql, step in plans(queue, wrong) if looks_at_everything(sql, step)}
    queue.close()
    assert caught == wrong


def steps(folder: Path, rows: int) -> dict[str, int]:
    """How many steps SQLite's machine does for each verb, on a queue of so many rows."""
    queue = filled(folder, rows)
    found = dict.fromkeys(VERBS, 0)
    for name, verb in VERBS.items():

        def count(name: str = name) -> int:
            found[name] += 10
            return 0

        queue._conn.set_progress_handler(count, 10)
        with queue.transaction():
            verb(queue)
        queue._conn.set_progress_handler(None, 0)
    queue.close()
    return found


def test_a_verb_costs_no_more_on_ten_times_the_rows(tmp_path: Path) -> None:
    few, many = steps(tmp_path / "few", ROWS), steps(tmp_path / "many", 10 * ROWS)
    dearer = {name: (few[name], many[name]) for name in VERBS if many[name] > few[name] * 1.05 + 100}
    assert dearer == {}


def test_opening_counts_nothing_but_what_is_kept(tmp_path: Path) -> None:
    seen: set[str] = set()

    class Watched(DiskQueue):
        def _prepare(self) -> None:
            self._conn.set_trace_callback(seen.add)
            super()._prepare()
            self._conn.set_trace_callback(None)

    queue = filled(tmp_path / "queue", ROWS)
    with queue.transaction():
        queue.ack_rows(take(queue, 10))
    queue.close()
    reopened = Watched(tmp_path / "queue", durability="crash")
    assert reopened.counts().ready == ROWS - 10
    wrong = [(sql, step) for sql, step in plans(reopened, seen) if looks_at_everything(sql, step)]
    counting = [sql for sql in seen if "COUNT(" in sql and "edge_settled" not in sql]
    reopened.close()
    assert wrong == [("SELECT EXISTS (SELECT 1 FROM edge_receipt)", "SCAN edge_receipt")], "that ends at the first"
    assert counting == []
