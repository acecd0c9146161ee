"""I9 and I5 on a real queue: the loss ledger names the messages while it can, counts all of them, is bounded."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow
from bridge.disk_queue import ledger as ledger_module
from bridge.disk_queue.ledger import Entry, Untold, entries_max
from bridge.errors import QueueDamagedError
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, event_id, head, head_middle, tail


def event(name: str, topic: str = "t") -> bytes:
    return head(name, head_middle("edge/x", topic), "2026-01-01T00:00:00Z") + tail(b"1", is_json=True)


@pytest.fixture
def disk_queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


def record(queue: DiskQueue, *losses: Loss) -> None:
    with queue.transaction():
        for loss in losses:
            queue.record_loss(loss)


def lost(names: list[str], reason: LossReason = LossReason.MAX_BYTES, topic: str | None = "t") -> Loss:
    return Loss(reason, len(names), topic, tuple(names))


def test_a_drop_names_every_message_by_topic_with_the_time_it_came(disk_queue: DiskQueue) -> None:
    names = [f"m{number:03}" for number in range(250)]
    rows = [NewRow(event(name, f"cam/{n % 2}"), 1_700_000_000.0 + n) for n, name in enumerate(names)]
    with disk_queue.transaction():
        disk_queue.put_rows(rows)
        disk_queue.drop_oldest(240, 0, LossReason.MAX_MESSAGES)
    entries = disk_queue.losses()
    for camera in (0, 1):
        mine = [entry for entry in entries if entry.topic == f"cam/{camera}"]
        assert [name for entry in mine for name in entry.event_ids] == names[camera:240:2]
        assert sum(entry.messages for entry in mine) == 120
        assert min(entry.first_at or 0 for entry in mine) == 1_700_000_000.0 + camera
        assert max(entry.last_at or 0 for entry in mine) == 1_700_000_000.0 + 238 + camera
    assert all(time.time() - 60 < entry.at <= time.time() for entry in entries)


def test_losses_that_follow_each_other_share_an_entry_up_to_its_bound(disk_queue: DiskQueue) -> None:
    for number in range(250):
        record(disk_queue, lost([f"m{number}"]))
    entries = disk_queue.losses()
    assert [len(entry.event_ids) for entry in entries] == [100, 100, 50]
    assert [name for entry in entries for name in entry.event_ids] == [f"m{number}" for number in range(250)]


def test_losses_of_another_kind_have_an_entry_of_their_own(disk_queue: DiskQueue) -> None:
    record(disk_queue, lost(["a"]), lost(["b"], topic=None), lost(["c"], LossReason.EXPIRED), lost(["d"]))
    assert [(entry.reason, entry.topic, entry.event_ids) for entry in disk_queue.losses()] == [
        ("max_bytes", "t", ("a", "d")),
        ("max_bytes", None, ("b",)),
        ("expired", "t", ("c",)),
    ]


@pytest.mark.parametrize(("seconds", "entries"), [(59.9, 1), (60.0, 2), (-59.9, 1), (-60.0, 2)])
def test_losses_within_a_minute_share_an_entry_also_if_the_clock_is_put_back(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, seconds: float, entries: int
) -> None:
    for now in (1.8e9, 1.8e9 + seconds):
        monkeypatch.setattr("time.time", lambda now=now: now)
        record(disk_queue, lost(["a"]))
    assert len(disk_queue.losses()) == entries
    assert disk_queue.losses()[-1].at == 1.8e9 + seconds


@pytest.mark.parametrize(("others", "shared"), [(63, True), (64, False)])
def test_losses_share_an_entry_that_is_among_the_last_sixty_four(
    disk_queue: DiskQueue, others: int, shared: bool
) -> None:
    record(disk_queue, lost(["a"]), *(lost(["x"], topic=f"t/{n}") for n in range(others)), lost(["b"]))
    assert (disk_queue.losses()[0].event_ids == ("a", "b")) is shared
    assert len(disk_queue.losses()) == 1 + others + (not shared)


def test_an_entry_is_bounded_in_bytes_however_long_the_ids(disk_queue: DiskQueue) -> None:
    names = [f"{number:03}" + "ä\\" * 250 for number in range(40)]
    record(disk_queue, lost(names))
    stored = disk_queue._conn.execute("SELECT LENGTH(CAST(event_ids AS BLOB)) FROM edge_loss").fetchall()
    assert max(size for (size,) in stored) <= 4096
    assert [name for entry in disk_queue.losses() for name in entry.event_ids] == names


def test_messages_without_an_id_are_counted_all_the_same(disk_queue: DiskQueue) -> None:
    record(disk_queue, Loss(LossReason.MAX_BYTES, 250, "t", tuple(f"m{n}" for n in range(120))))
    assert [(entry.messages, len(entry.event_ids)) for entry in disk_queue.losses()] == [(100, 100), (150, 20)]


def test_what_is_trimmed_stays_counted_over_restarts(tmp_path: Path) -> None:
    """The ledger of a small queue is small; the totals never forget."""
    for start in range(3):
        queue = DiskQueue(tmp_path, durability="crash", max_bytes=1_000_000)
        for number in range(40):
            record(queue, lost([f"{start}-{number}-{n}" for n in range(100)]))
        assert len(queue.losses()) == entries_max(1_000_000) == 16
        assert queue.losses()[-1].event_ids[-1] == f"{start}-39-99"
        assert queue.ledger.totals() == {"max_bytes": 4000 * (start + 1)}
        queue.close()


@pytest.mark.parametrize(("max_bytes", "entries"), [(0, 10_000), (1 << 40, 10_000), (10_000_000, 152), (1, 16)])
def test_the_ledger_takes_a_small_part_of_the_queue(max_bytes: int, entries: int) -> None:
    assert entries_max(max_bytes) == entries


def test_a_loss_that_was_undone_is_neither_written_nor_told(disk_queue: DiskQueue) -> None:
    def fail() -> None:
        with disk_queue.transaction():
            disk_queue.record_loss(lost(["a"]))
            disk_queue.ack_rows([99])

    with pytest.raises(QueueDamagedError):
        fail()
    record(disk_queue, lost(["b"]))
    assert disk_queue.ledger.recent == [lost(["b"])]
    assert disk_queue.ledger.totals() == {"max_bytes": 1}
    assert [entry.event_ids for entry in disk_queue.losses()] == [("b",)]


def test_dead_rows_are_told_with_reason_and_status(disk_queue: DiskQueue) -> None:
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(event(name), 1.0) for name in "abcd"])
        rows = disk_queue.take(10, 1 << 20)
        kinds = (("refused", 422), ("too_large", 413), ("refused", 422), ("crc", None))
        disk_queue.reject([DeadRow(row.row_id, *kind) for row, kind in zip(rows, kinds, strict=True)])
    assert [(entry.reason, entry.detail, entry.event_ids) for entry in disk_queue.losses()] == [
        ("dead", "refused (HTTP 422)", ("a", "c")),
        ("dead", "too_large (HTTP 413)", ("b",)),
        ("dead", "crc", ("d",)),
    ]


def test_the_ledger_of_an_earlier_bridge_is_kept(tmp_path: Path) -> None:
    """Its table had fewer columns."""
    queue = DiskQueue(tmp_path, durability="crash")
    queue.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.executescript(
            "DROP TABLE edge_loss; DROP TABLE edge_loss_total; PRAGMA user_version = 0;"
            "CREATE TABLE edge_loss (loss_id INTEGER PRIMARY KEY AUTOINCREMENT, at FLOAT NOT NULL,"
            " reason TEXT NOT NULL, messages INTEGER NOT NULL, topic TEXT,"
            " event_ids TEXT NOT NULL, detail TEXT NOT NULL);"
            "INSERT INTO edge_loss VALUES (7, 1.0, 'too large', 1, 't', '[]', '9 bytes');"
        )
    connection.close()
    queue = DiskQueue(tmp_path, durability="crash")
    record(queue, lost(["a"]))
    assert [(entry.loss_id, entry.reason, entry.first_at is None) for entry in queue.losses()] == [
        (7, "too large", True),
        (8, "max_bytes", False),
    ]
    queue.close()


NOW = time.time()


def put_expiring(queue: DiskQueue, *expiries: float | None, received_at: float = NOW - 60) -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event(f"m{n}"), received_at, expires_at=at) for n, at in enumerate(expiries)])


def take(queue: DiskQueue, messages_max: int = 1000) -> list[str]:
    with queue.transaction():
        return [event_id(row.data) for row in queue.take(messages_max, 1 << 20)]


def test_what_expired_while_it_waited_is_given_up_when_its_turn_comes(disk_queue: DiskQueue) -> None:
    put_expiring(disk_queue, None, NOW - 1, NOW + 3600, NOW - 30, None)
    assert take(disk_queue) == ["m0", "m2", "m4"]
    assert [(entry.reason, entry.event_ids) for entry in disk_queue.losses()] == [("expired", ("m1", "m3"))]
    assert disk_queue.counts()[:4] == (0, 3, 0, 0)


def test_what_was_under_way_in_time_never_expires(tmp_path: Path) -> None:
    """The cloud may have it: it must come again under the same key, and is not lost."""
    queue = DiskQueue(tmp_path, durability="crash")
    put_expiring(queue, NOW + 3600, NOW + 3600)
    assert take(queue) == ["m0", "m1"]
    put_expiring(queue, NOW + 3600)  # what is under way is noted with the next change
    with queue.transaction():
        queue._conn.execute("UPDATE ack_queue_default SET expires_at = ?", (NOW - 1,))
    queue.close()
    queue = DiskQueue(tmp_path, durability="crash")
    assert take(queue) == ["m0", "m1"]
    assert take(queue) == []
    assert queue.ledger.totals() == {"expired": 1}
    queue.close()


@pytest.mark.parametrize("received_at", [1000.0, NOW], ids=["as it came", "once its time was put right"])
def test_a_message_from_before_the_clock_was_set_does_not_expire(disk_queue: DiskQueue, received_at: float) -> None:
    """Its expiry was counted from what the clock said then."""
    put_expiring(disk_queue, 1060.0, received_at=received_at)
    assert take(disk_queue) == ["m0"]


def test_many_expired_rows_are_given_up_in_bounded_steps(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.disk_queue.queue._EXPIRED_MAX", 10)
    put_expiring(disk_queue, *[NOW - 1] * 25, None)
    for expired in (10, 20):
        assert [take(disk_queue), disk_queue.has_ready] == [[], True]
        assert disk_queue.ledger.totals() == {"expired": expired}
    assert [take(disk_queue), disk_queue.has_ready] == [["m25"], False]
    assert disk_queue.ledger.totals() == {"expired": 25}


@pytest.mark.parametrize("jump_seconds", [60.0, 3600.0, 3650 * 86400.0])
def test_a_clock_that_is_put_forward_expires_nothing_and_makes_nothing_too_old(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch, jump_seconds: float
) -> None:
    now = time.time()
    put_expiring(disk_queue, now + 30, None, now + 30, received_at=now - 5)
    monkeypatch.setattr("time.time", lambda: now + jump_seconds)
    with disk_queue.transaction():
        assert disk_queue.drop_oldest(10, 0, LossReason.MAX_AGE, time.time() - 30) == (0, 0)
    put_expiring(disk_queue, now + jump_seconds - 1, received_at=now + jump_seconds)  # it came after, and is too late
    assert take(disk_queue)[:3] == ["m0", "m1", "m2"]
    assert disk_queue.ledger.totals() == {"expired": 1}


def test_nothing_expires_either_if_it_is_taken_first_after_the_clock_was_put_forward(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    put_expiring(disk_queue, now + 30, received_at=now - 5)
    monkeypatch.setattr("time.time", lambda: now + 3600)
    assert take(disk_queue) == ["m0"]


# ---- what the cloud is told -----------------------------------------------------------------------------------------


def test_what_is_untold_is_one_a_reason_with_topics_ids_and_times(disk_queue: DiskQueue) -> None:
    record(
        disk_queue,
        Loss(LossReason.MAX_BYTES, 2, "t", ("a", "b"), first_at=10.0, last_at=11.0),
        Loss(LossReason.MAX_BYTES, 3, "u", ("c", "d", "e"), first_at=5.0, last_at=20.0),
        Loss(LossReason.MAX_BYTES, 4, None, ("f",), first_at=30.0, last_at=31.0),
        Loss(LossReason.EXPIRED, 1, "t", ("x",), first_at=0.5, last_at=2.0),
        Loss(LossReason.DEAD_REMOVED, 1, "t", ("y",), first_at=1.0, last_at=2.0),
    )
    assert disk_queue.ledger.untold() == [
        Untold("expired", 1, {"t": 1}, ["x"], 0.5, 2.0, (4, 4)),
        Untold("max_bytes", 9, {"t": 2, "u": 3}, ["a", "b", "c", "d", "e", "f"], 5.0, 31.0, (1, 3)),
    ]


def test_what_was_told_is_not_told_again_and_later_losses_have_an_entry_of_their_own(disk_queue: DiskQueue) -> None:
    record(disk_queue, lost(["a"]))
    with disk_queue.transaction():
        disk_queue.ledger.mark_told()
    assert disk_queue.ledger.untold() == []
    record(disk_queue, lost(["b"]))
    (untold,) = disk_queue.ledger.untold()
    assert (untold.messages, untold.event_ids, untold.loss_ids) == (1, ["b"], (2, 2))


def test_a_telling_is_bounded_in_entries_topics_and_bytes_of_ids_and_its_number_is_exact(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(
        disk_queue, lost(["aa"], topic="1"), lost(["bb"], topic="2"), lost(["cc"], topic="3"), lost(["dd"], topic="4")
    )
    bounds = {"_UNTOLD_ENTRIES_MAX": 3, "_UNTOLD_TOPICS_MAX": 2, "_UNTOLD_IDS_BYTES_MAX": 10}
    for name, bound in bounds.items():
        monkeypatch.setattr(ledger_module, name, bound)
    (untold,) = disk_queue.ledger.untold()
    assert untold[1:4] == (4, {"1": 1, "2": 1}, ["aa", "bb"])
    assert untold.loss_ids == (1, 3)


def test_a_topic_that_is_in_the_telling_already_is_counted_on_beyond_the_bound(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(disk_queue, *(lost([f"{topic}{n}"], topic=topic) for n in range(150) for topic in ("t", "u")))
    monkeypatch.setattr(ledger_module, "_UNTOLD_TOPICS_MAX", 1)
    assert disk_queue.ledger.untold()[0].topics == {"t": 150}


def test_a_loss_whose_entries_are_trimmed_is_told_by_its_number(disk_queue: DiskQueue) -> None:
    record(disk_queue, lost(["a"]))
    with disk_queue.transaction():
        disk_queue._conn.execute("DELETE FROM edge_loss")
    assert disk_queue.ledger.untold() == [Untold("max_bytes", 1, {}, [], None, None, None)]


def test_a_note_of_what_was_told_that_is_none_makes_everything_untold(disk_queue: DiskQueue) -> None:
    record(disk_queue, lost(["a"]), lost(["b"], topic="u"))
    with disk_queue.transaction():
        disk_queue.write_note("losses_told_to", "\x01")
    assert disk_queue.ledger.untold()[0][1:4] == (2, {"t": 1, "u": 1}, ["a", "b"])


@pytest.mark.parametrize(("messages", "at"), [("-9", "'x'"), ("x'00'", "-1"), ("'many'", "253402300800")])
def test_what_nobody_wrote_into_an_entry_counts_as_unknown(disk_queue: DiskQueue, messages: str, at: str) -> None:
    record(disk_queue, Loss(LossReason.MAX_BYTES, 2, "t", ("a", "b"), first_at=10.0, last_at=11.0))
    columns = f"messages = {messages}, at = {at}, first_at = {at}, last_at = {at}, topic = x'74', event_ids = '{{'"
    disk_queue._conn.execute(f"UPDATE edge_loss SET {columns}")  # noqa: S608  all of it stands above
    (entry,) = disk_queue.losses()
    assert entry == Entry(1, 0.0, "max_bytes", 0, None, (), "", None, None)


def test_the_ledger_of_a_damaged_file_is_added_and_nothing_of_it_is_new(disk_queue: DiskQueue) -> None:
    record(disk_queue, lost(["new"]))
    with disk_queue.transaction():
        disk_queue.ledger.inherit(
            [(7, 1.0, "max_bytes", 1, "t", '["old"]', "", 1.0, 1.0), (1, 1.0, "crc", 1, "t", "[]", "", 1.0, 1.0)],
            [("max_bytes", 5, 4), ("crc", 2, 2)],
        )
    assert [(entry.loss_id, entry.event_ids) for entry in disk_queue.losses()] == [(1, ("new",)), (7, ("old",))]
    assert disk_queue.ledger.totals() == {"crc": 2, "max_bytes": 6}
    assert [(untold.reason, untold.messages) for untold in disk_queue.ledger.untold()] == [("max_bytes", 2)]


def test_the_ids_of_an_entry_fill_its_bytes_to_the_last(disk_queue: DiskQueue) -> None:
    """Brackets, quotes and commas are counted: what just fits is one entry, a byte more are two."""
    exact = ["x" * 2000, "y" * (4096 - 2000 - len('["",""]'))]
    record(disk_queue, lost(exact))
    assert [entry.event_ids for entry in disk_queue.losses()] == [tuple(exact)]
    record(disk_queue, lost([exact[0], exact[1] + "y"], LossReason.EXPIRED))
    assert [len(entry.event_ids) for entry in disk_queue.losses()] == [2, 1, 1]
