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


def test_a_rolled_back_step_changed_nothing(machine: Machine) -> None:
    machine.put(5)
    machine.is_set = True
    with contextlib.suppress(ZeroDivisionError), machine.queue.transaction():
        assert machine.queue.put_times_right()
        raise ZeroDivisionError
    assert machine.stored() == [wrong(5)]
    machine.put_times_right()
    assert machine.stored() == [right(5)]
