"""Promise 39: any sequence of queue operations, with crash and reopen, leaves the queue equal to a reference model.

Attacks I3 (a row is in exactly one state), I4 (after a restart every taken row is ready) and the counts.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.disk_queue import FILE_NAME, STATES, Counts, DiskQueue, NewRow, Selection, queue
from bridge.errors import QueueDamagedError
from bridge.loss import LossReason
from bridge.message import DeadRow, head, head_middle, tail
from tests.harness import figures

SPAN_ROWS_MIN, WAY_ROWS, BURST_ROWS = 5, 4, 12  # so that a model's few rows meet what many would: noted and marked, …
AS_SHIPPED = queue.SPAN_ROWS_MIN, queue._WAY_ROWS, queue._TIDY_ROWS


def event(number: int) -> bytes:
    return head(f"m{number}", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(b'"%d"' % number, is_json=True)


class QueueModel(RuleBasedStateMachine):
    """The disk queue beside an in-memory twin: `ready`, `taken`, `delivered`, `dead` by row id, in order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        queue.SPAN_ROWS_MIN, queue._WAY_ROWS, queue._TIDY_ROWS = SPAN_ROWS_MIN, WAY_ROWS, BURST_ROWS
        self.folder = Path(tempfile.mkdtemp(prefix="queue-model-"))
        self.disk_queue = DiskQueue(self.folder, durability="crash")
        self.rows: dict[int, bytes] = {}
        self.ready: set[int] = set()
        self.batches: list[tuple[int, ...]] = []
        self.delivered: set[int] = set()
        self.dead: set[int] = set()
        self.lost: list[str] = []
        self.next_id = 1

    @initialize()
    def start_empty(self) -> None:
        assert self.disk_queue.counts()[:4] == (0, 0, 0, 0)

    @rule(count=st.integers(1, 70), received_at=st.sampled_from([1.0, 1.8e9]))  # before, and after the clock was set
    def put(self, count: int, received_at: float) -> None:
        new = range(self.next_id, self.next_id + count)
        with self.disk_queue.transaction():
            self.disk_queue.put_rows([NewRow(event(n), received_at, n % 65536, f"m{n}") for n in new])
        self.rows |= {n: event(n) for n in new}
        self.ready |= set(new)
        self.next_id += count

    @rule(messages_max=st.integers(1, 40), bytes_max=st.integers(1, 5000))
    def take(self, messages_max: int, bytes_max: int) -> None:
        with self.disk_queue.transaction():
            rows = self.disk_queue.take(messages_max, bytes_max)
        ids = [row.row_id for row in rows]
        assert len(rows) <= messages_max
        assert len(rows) <= 1 or sum(len(row.data) for row in rows) <= bytes_max
        assert ids == sorted(ids)
        assert set(ids) <= self.ready
        assert bool(ids) == bool(self.ready)
        assert all(self.rows[row.row_id] == row.data for row in rows)
        if ids:
            assert ids[0] == min(self.ready), "the oldest ready row leaves first"
        self.ready -= set(ids)
        if ids:
            self.batches.append(tuple(ids))

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        fate = data.draw(st.lists(st.sampled_from("adrk"), min_size=len(batch), max_size=len(batch)))
        acked, dead, released = ([i for i, f in zip(batch, fate, strict=True) if f == kind] for kind in "adr")
        with self.disk_queue.transaction():
            self.disk_queue.ack_rows(acked)
            self.disk_queue.reject([DeadRow(i, "because", 400, 1, "no") for i in dead])
            self.disk_queue.release(released)
        self.delivered |= set(acked)
        self.dead |= set(dead)
        self.ready |= set(released)
        self.batches.remove(batch)
        if kept := tuple(i for i, f in zip(batch, fate, strict=True) if f == "k"):
            self.batches.append(kept)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def fail_in_the_middle(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        try:
            with self.disk_queue.transaction():
                self.disk_queue.put_rows([NewRow(event(0), 1.0)])
                self.disk_queue.ack_rows(batch)
                self.disk_queue.take(5, 5000)
                self.disk_queue.ack_rows(batch)
        except QueueDamagedError:
            return
        raise AssertionError("acking twice must be noticed")

    @rule(keep=st.integers(0, 30))
    def tidy(self, keep: int) -> None:
        with self.disk_queue.transaction():
            while self.disk_queue.tidy(3600, keep):
                pass
        excess = len(self.delivered) - keep
        self.delivered -= set(sorted(self.delivered)[: max(0, excess)])

    @rule(rows=st.integers(0, 20), keep=st.integers(0, 30))
    def make_way(self, rows: int, keep: int) -> None:
        with self.disk_queue.transaction():
            self.disk_queue.make_way(rows, keep)
        excess = len(self.delivered) - keep
        more = math.ceil(rows / 8) if excess > BURST_ROWS else 0
        gone = min(max(rows + more, WAY_ROWS), excess) if excess >= WAY_ROWS else 0
        self.delivered -= set(sorted(self.delivered)[:gone])

    @rule()
    def mark_noted(self) -> None:
        with self.disk_queue.transaction():
            self.disk_queue.mark_noted()

    @rule(count=st.integers(1, 20))
    def drop_oldest(self, count: int) -> None:
        with self.disk_queue.transaction():
            dropped, _ = self.disk_queue.drop_oldest(count, 0, LossReason.MAX_MESSAGES)
        victims = sorted(self.ready)[:count]
        assert dropped == len(victims)
        if victims:
            self.lost += [f"m{n}" for n in victims]
            ids = [
                own_id
                for loss in self.disk_queue.losses()
                if loss.reason == "max_messages"
                for own_id in loss.event_ids
            ]
            assert ids == self.lost
        self.ready -= set(victims)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.dead)), min_size=1))
        with self.disk_queue.transaction():
            self.disk_queue.requeue(sorted(chosen))
        self.dead -= chosen
        self.ready |= chosen

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def remove_dead(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.dead)), min_size=1))
        with self.disk_queue.transaction():
            self.disk_queue.remove_dead(sorted(chosen))
        self.dead -= chosen

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.ready)), min_size=1))
        with self.disk_queue.transaction():
            self.disk_queue.discard(sorted(chosen))
        self.ready -= chosen

    @rule(state=st.sampled_from([None, *STATES]))
    def select(self, state: str | None) -> None:
        taken = {i for batch in self.batches for i in batch}
        by_state = {"ready": self.ready, "taken": taken, "delivered": self.delivered, "dead": self.dead}
        wanted = set().union(*by_state.values()) if state is None else by_state[state]
        found: list[int] = []
        after: int | None = 0
        while after is not None:
            with self.disk_queue.transaction():
                rows, after = self.disk_queue.select(Selection(states=(state,) if state else ()), after)
            assert all(row.row_id in by_state[row.state] for row in rows)
            found += [row.row_id for row in rows]
        assert found == sorted(wanted)

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        if crash:
            copy = Path(tempfile.mkdtemp(prefix="queue-model-"))
            for name in (FILE_NAME, FILE_NAME + "-wal"):
                if (self.folder / name).exists():
                    shutil.copy(self.folder / name, copy / name)
            self.disk_queue.close()
            shutil.rmtree(self.folder)
            self.folder = copy
        else:
            self.disk_queue.close()
        self.disk_queue = DiskQueue(self.folder, durability="crash")
        self.ready |= {i for batch in self.batches for i in batch}
        self.batches = []

    @invariant()
    def counts_are_right(self) -> None:
        taken = sum(map(len, self.batches))
        counts = self.disk_queue.counts()
        assert counts == Counts(len(self.ready), taken, len(self.delivered), len(self.dead), counts.size_bytes)
        assert self.disk_queue.newest_id() == self.next_id - 1 or not self.rows

    def teardown(self) -> None:
        figures.count(sequences=1)
        queue.SPAN_ROWS_MIN, queue._WAY_ROWS, queue._TIDY_ROWS = AS_SHIPPED
        with self.disk_queue.transaction():
            self.disk_queue.mark_noted()
        self.disk_queue.close()
        connection = sqlite3.connect(self.folder / FILE_NAME)
        by_status = dict(connection.execute("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))
        taken = sum(map(len, self.batches))
        assert by_status.get(0, 0) + by_status.get(1, 0) == len(self.ready) + taken
        assert (by_status.get(5, 0), by_status.get(9, 0)) == (len(self.delivered), len(self.dead))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        shutil.rmtree(self.folder)


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
