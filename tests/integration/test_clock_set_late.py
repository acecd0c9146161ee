"""Rows that came before the clock was set: dated in small steps, unless somebody may have seen their bytes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from zlib import crc32

import orjson
import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow
from bridge.message import head, head_middle, redated, tail, time_text, unset_time_text

BOOT, BEGAN_AT = "0c2e", 1_790_000_000.0
DATED_AT = 1_780_000_000.0


class Machine:
    """A queue on a machine whose clock is set when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.boot, self.is_set = folder, BOOT, False
        self.start()

    def start(self) -> None:
        self.queue = DiskQueue(self.folder, durability="crash", redate=self._redate)

    def restart(self) -> None:
        self.queue.close()
        self.start()

    def _redate(self, stored: bytes) -> tuple[bytes, float] | None:
        return redated(stored, self.boot, BEGAN_AT) if self.is_set else None

    def put(self, *boot_seconds: float, payload: bytes = b"1") -> None:
        """Store what came so many seconds after the boot, before the clock was set."""
        rows = [
            NewRow(
                head(f"at-{seconds:g}", head_middle("edge/x", "t"), unset_time_text(seconds, self.boot, seconds))
                + tail(payload, is_json=True),
                seconds,
            )
            for seconds in boot_seconds
        ]
        with self.queue.transaction():
            self.queue.put_rows(rows)

    def put_times_right(self) -> int:
        """Do it to the end; return in how many steps."""
        self.is_set = True
        steps = 1
        while self._step():
            steps += 1
        return steps

    def _step(self) -> bool:
        with self.queue.transaction():
            return self.queue.put_times_right()

    def take(self, messages_max: int = 1000) -> list[int]:
        with self.queue.transaction():
            rows = self.queue.take(messages_max, 1 << 30)
        self.taken = {row.row_id: row.data for row in rows}
        return list(self.taken)

    def release(self, row_ids: list[int], *, sent: bool) -> None:
        with self.queue.transaction():
            self.queue.release(row_ids, sent=sent)

    def stored(self) -> list[tuple[str, str | None]]:
        """The time and the mark of every event, as they are on disk."""
        self.queue.close()
        with closing(sqlite3.connect(self.folder / FILE_NAME)) as connection:
            rows = connection.execute("SELECT data, crc, timestamp FROM ack_queue_default ORDER BY _id").fetchall()
        assert all(crc32(data) == crc for data, crc, _ in rows)
        events = [orjson.loads(data) for data, _, _ in rows]
        assert all((at < DATED_AT) == ("clockunset" in event) for event, (_, _, at) in zip(events, rows, strict=True))
        self.start()
        return [(event["time"], event.get("clockunset")) for event in events]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.queue.close()


def right(seconds: float) -> tuple[str, None]:
    return time_text(BEGAN_AT + seconds), None


def wrong(seconds: float, boot: str = BOOT) -> tuple[str, str]:
    return time_text(seconds), f"{boot}/{seconds:.6f}"


def test_waiting_rows_are_dated_once_the_clock_is_set_and_stay_so(machine: Machine) -> None:
    machine.put(5, 6)
    machine.put(7)
    assert machine.stored() == [wrong(5), wrong(6), wrong(7)]
    machine.put_times_right()
    assert machine.stored() == [right(5), right(6), right(7)]
    assert machine.put_times_right() == 1, "nothing is looked for twice"


def test_many_and_large_rows_are_dated_in_bounded_steps(machine: Machine) -> None:
    machine.put(*range(1, 1201))
    machine.put(*range(2001, 2009), payload=b'"%b"' % (b"x" * (1 << 20)))
    assert machine.put_times_right() >= 3 + 2
    assert machine.stored() == [right(at) for at in (*range(1, 1201), *range(2001, 2009))]


def test_a_restart_of_the_bridge_in_the_same_boot_changes_nothing(machine: Machine) -> None:
    machine.put(5)
    machine.restart()
    machine.put_times_right()
    assert machine.stored() == [right(5)]


def test_after_another_boot_the_time_stays_and_so_does_the_mark(machine: Machine) -> None:
    machine.put(5)
    machine.boot = "another"
    machine.put(6)
    machine.put_times_right()
    assert machine.stored() == [wrong(5), right(6)]
    assert machine.take() == [1, 2]
    assert b"clockunset" in machine.taken[1]


def test_a_row_is_dated_as_it_is_taken_if_nobody_came_by_before(machine: Machine) -> None:
    machine.put(5)
    machine.is_set = True
    machine.take()
    assert orjson.loads(machine.taken[1])["time"] == right(5)[0]
    assert machine.stored() == [right(5)]


def test_what_may_have_been_posted_keeps_its_bytes(machine: Machine) -> None:
    """Other bytes would be another idempotency key for the same rows."""
    machine.put(5, 6)
    assert machine.take(1) == [1]
    posted = machine.taken[1]
    machine.put_times_right()
    machine.release([1], sent=True)
    machine.put_times_right()
    assert machine.take(1) == [1]
    assert machine.taken[1] == posted
    assert machine.stored() == [wrong(5), right(6)]


def test_what_was_posted_before_a_restart_keeps_its_bytes(machine: Machine) -> None:
    machine.put(5)
    machine.take()
    machine.put(6)  # writes down who is in flight
    machine.restart()
    machine.put_times_right()
    machine.take()
    assert machine.stored() == [wrong(5), right(6)]


def test_what_was_taken_and_never_posted_is_dated_when_it_is_taken_again(machine: Machine) -> None:
    machine.put(5, 6, 7)
    assert (machine.take(2), machine.take(1)) == ([1, 2], [3])
    machine.is_set = True
    machine.release([3], sent=True)
    machine.release([1, 2], sent=False)
    assert machine.take() == [1, 2]
    machine.release([1, 2], sent=True)
    assert machine.take() == [1, 2]
    assert machine.stored() == [right(5), right(6), wrong(7)]


def test_every_batch_that_was_never_posted_is_dated_also_after_another_one_left(machine: Machine) -> None:
    machine.put(5, 6, 7, 8)
    assert (machine.take(2), machine.take(2)) == ([1, 2], [3, 4])
    machine.release([1, 2], sent=False)
    machine.release([3, 4], sent=False)
    machine.is_set = True
    assert (machine.take(), machine.take()) == ([1, 2], [3, 4])
    assert machine.stored() == [right(5), right(6), right(7), right(8)]


@pytest.mark.parametrize("count", [1, 2])
def test_what_left_again_before_the_clock_was_set_may_have_been_posted(machine: Machine, count: int) -> None:
    machine.put(*range(5, 5 + count))
    machine.take()
    machine.release(list(range(1, count + 1)), sent=False)
    assert machine.take(1) == [1]
    machine.release([1], sent=True)
    machine.is_set = True
    assert machine.take(1) == [1]
    assert machine.stored()[0] == wrong(5)


def test_what_is_altered_or_empty_is_not_dated_and_so_not_made_to_look_sound(machine: Machine) -> None:
    machine.put(5, 6, 7)
    change = "UPDATE ack_queue_default SET data = {} WHERE _id = {}"
    machine.queue._conn.execute(change.format("NULL", 1))
    machine.queue._conn.execute(change.format("CAST(replace(CAST(data AS TEXT), 'at-6', 'at-9') AS BLOB)", 2))
    machine.put_times_right()
    assert machine.take() == [3]
    assert [(row.row_id, row.reason) for row in machine.queue.dead_rows()] == [(1, "undecodable"), (2, "crc")]


def test_the_note_is_gone_once_all_is_dated_and_one_that_is_nonsense_is_from_the_first_row_on(machine: Machine) -> None:
    machine.put(5)
    with machine.queue.transaction():
        machine.queue.write_note("clock_unset_from_row", "nonsense")
    machine.put_times_right()
    assert machine.queue.note("clock_unset_from_row") is None
    assert machine.stored() == [right(5)]


def in_flight(machine: Machine) -> list[tuple[int, int]]:
    return machine.queue._conn.execute("SELECT * FROM edge_batch").fetchall()


def test_dating_is_a_change_with_which_is_written_what_is_in_flight(machine: Machine) -> None:
    machine.put(5, 6)
    assert (machine.take(1), in_flight(machine)) == ([1], [])
    machine.is_set = True
    assert machine.take(1) == [2]
    assert in_flight(machine) == [(1, 1), (2, 2)]


def test_so_is_finding_that_nothing_is_left_to_date(machine: Machine) -> None:
    machine.put(5, 6)
    assert (machine.take(), in_flight(machine)) == ([1, 2], [])
    machine.put_times_right()
    assert in_flight(machine) == [(1, 2)]


def test_a_rolled_back_step_changed_nothing(machine: Machine) -> None:
    machine.put(5)
    machine.is_set = True
    with contextlib.suppress(ZeroDivisionError), machine.queue.transaction():
        assert machine.queue.put_times_right()
        raise ZeroDivisionError
    assert machine.stored() == [wrong(5)]
    machine.put_times_right()
    assert machine.stored() == [right(5)]
