"""What the operator selects comes in bounded pages, by an index where there is one; and the dead are bounded (I5)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, Page, Request, Selection, answer, commands, requeue_dead
from bridge.disk_queue import selection as selection_module
from bridge.disk_queue.selection import PAGE_ROWS, STATES
from bridge.errors import OperatorError
from bridge.loss import Loss, LossReason
from bridge.message import DeadRow, head, head_middle, tail


def event(name: str, payload: bytes = b"1") -> bytes:
    return head(name, head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(payload, is_json=True)


@pytest.fixture
def disk_queue(tmp_path: Path) -> Iterator[DiskQueue]:
    queue = DiskQueue(tmp_path, durability="crash")
    yield queue
    queue.close()


def put(queue: DiskQueue, count: int, payload: bytes = b"1") -> None:
    with queue.transaction():
        queue.put_rows([NewRow(event(f"m{n}", payload), 1.0, None, f"m{n}") for n in range(count)])


def kill(queue: DiskQueue, count: int, attempts: int = 1) -> None:
    with queue.transaction():
        rows = queue.take(count, 1 << 30)
        queue.reject([DeadRow(row.row_id, "refused", 422, attempts) for row in rows])


def test_a_page_looks_at_so_many_rows_whatever_is_selected(disk_queue: DiskQueue) -> None:
    put(disk_queue, PAGE_ROWS + 10)
    for selection, found in ((Selection(), PAGE_ROWS), (Selection(topic="no/such"), 0)):
        rows, after = disk_queue.select(selection, 0)
        assert (len(rows), after) == (found, PAGE_ROWS)
    rows, after = disk_queue.select(Selection(), PAGE_ROWS)
    assert (len(rows), after) == (10, None)


def test_a_page_of_large_rows_has_few_of_them(disk_queue: DiskQueue) -> None:
    put(disk_queue, 10, b'"%b"' % (b"x" * 400_000))
    rows, after = disk_queue.select(Selection(), 0)
    assert (len(rows), after) == (3, 3)


def test_one_row_among_many_is_found_by_its_producers_id_without_a_walk(disk_queue: DiskQueue) -> None:
    put(disk_queue, 5000)
    rows, after = disk_queue.select(Selection(ids=("m4999", "m17")), 0)
    assert ([row.event_id for row in rows], after) == (["m17", "m4999"], None)


def test_the_oldest_dead_rows_go_at_their_bound_and_the_ledger_knows(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.disk_queue.queue._DEAD_MAX", 10)
    put(disk_queue, 25)
    for _ in range(5):
        kill(disk_queue, 5)
    assert disk_queue.counts()[:4] == (0, 0, 0, 10)
    assert [row.row_id for row in disk_queue.dead_rows()] == list(range(16, 26))
    assert disk_queue.ledger.totals() == {"dead": 25, "dead_removed": 15}


def test_a_requeued_row_leaves_in_its_old_place_and_keeps_its_attempts(disk_queue: DiskQueue) -> None:
    put(disk_queue, 6)
    kill(disk_queue, 3, attempts=4)
    with disk_queue.transaction():
        disk_queue.requeue([1, 3])
    kill(disk_queue, 2, attempts=2)
    assert [(row.row_id, row.attempts) for row in disk_queue.dead_rows()] == [(1, 6), (2, 4), (3, 6)]
    with disk_queue.transaction():
        assert [row.row_id for row in disk_queue.take(10, 1 << 20)] == [4, 5, 6]


def test_of_the_rows_that_are_named_only_the_dead_are_requeued(disk_queue: DiskQueue) -> None:
    """The page names rows that it saw a while ago: some are alive again, some gone, some were never there."""
    put(disk_queue, 6)
    kill(disk_queue, 4)
    assert [row.row_id for row in disk_queue.dead_rows(2)] == [3, 4]
    with disk_queue.transaction():
        assert requeue_dead(disk_queue, {1, 3, 5, 99}) == 2
        assert requeue_dead(disk_queue, {1, 3}) == 0
    assert disk_queue.counts()[:4] == (4, 0, 0, 2)
    assert [row.row_id for row in disk_queue.dead_rows()] == [2, 4]


def test_why_a_row_died_is_forgotten_with_the_row(disk_queue: DiskQueue) -> None:
    put(disk_queue, 2)
    kill(disk_queue, 2)
    with disk_queue.transaction():
        disk_queue.requeue([1])
        disk_queue.ack_rows([row.row_id for row in disk_queue.take(1, 1)])
        disk_queue.tidy(0, 0)
        disk_queue.remove_dead([2])
    assert disk_queue.dead_rows() == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b'{"command":"list","selection":{"rows":[1]},"after":0}',
        b'{"command":"list","selection":{"received_before":"x"},"after":0}',
        b'{"command":"list","selection":{"states":["gone"]},"after":0}',
        b'{"command":"list","selection":{"topic":"#/a"},"after":0}',
        b'{"command":"list","selection":{},"after":"x"}',
        b'{"command":"list","selection":{},"after":-1}',
        b'{"command":"list","selection":{},"after":9223372036854775808}',
    ],
)
def test_a_request_that_makes_no_sense_never_reaches_the_disk(line: bytes) -> None:
    with pytest.raises(OperatorError):
        Request.parse(line)


def test_rows_in_flight_are_neither_discarded_nor_purged(disk_queue: DiskQueue) -> None:
    put(disk_queue, 4)
    with disk_queue.transaction():
        disk_queue.take(2, 1 << 20)
        page = answer(disk_queue, Request.of("discard", Selection(states=("ready",))))
    assert page.items == [{"rows": 2}]
    assert disk_queue.counts()[:4] == (0, 2, 0, 0)


def test_a_request_is_read_as_it_was_written() -> None:
    full = Request.of("list", Selection(("dead", "ready"), ("a", "b"), 7.5, "cam/#", "refused"), after=12)
    assert Request.parse(full.line()) == full
    empty = Request.of("discard", Selection())
    assert empty.selection == Selection(("ready", "dead")), "what it may be used on"
    assert Request.parse(empty.line()) == empty
    last = Request.of("list", Selection(), after=2**63 - 1)
    assert Request.parse(last.line()) == last, "the highest number of SQLite's"


def test_a_command_of_another_version_is_refused() -> None:
    with pytest.raises(OperatorError, match="does not know the command shred"):
        Request.of("shred", Selection())


@pytest.fixture
def mixed(disk_queue: DiskQueue) -> DiskQueue:
    """Rows 1 and 2 are delivered, 3 and 4 dead, 5 and 6 in flight, 7 to 10 ready; each received at its number."""
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(event(f"m{n}"), float(n), None, f"m{n}" if n % 2 else None) for n in range(1, 11)])
        disk_queue.ack_rows([row.row_id for row in disk_queue.take(2, 1 << 20)])
        disk_queue.reject(
            [DeadRow(row.row_id, reason, 422) for row, reason in zip(disk_queue.take(2, 1 << 20), "xy", strict=True)]
        )
        disk_queue.take(2, 1 << 20)
    return disk_queue


every_selection = pytest.mark.parametrize(
    ("selection", "row_ids"),
    [
        (Selection(), list(range(1, 11))),
        (Selection(states=STATES), list(range(1, 11))),
        (Selection(states=("ready",)), [7, 8, 9, 10]),
        (Selection(states=("taken",)), [5, 6]),
        (Selection(states=("taken", "ready")), [5, 6, 7, 8, 9, 10]),
        (Selection(states=("delivered",)), [1, 2]),
        (Selection(states=("dead",)), [3, 4]),
        (Selection(states=("dead", "ready")), [3, 4, 7, 8, 9, 10]),
        (Selection(received_before=4.0), [1, 2, 3]),
        (Selection(states=("ready",), received_before=9.0), [7, 8]),
        (Selection(ids=("m2", "m9")), [2, 9]),
        (Selection(ids=("m5", "m9"), states=("taken",)), [5]),
        (Selection(topic="t", states=("taken",)), [5, 6]),
        (Selection(topic="u"), []),
        (Selection(reason="y"), [4]),
    ],
)


@every_selection
def test_what_is_selected_is_the_same_decoded_and_as_bare_lines(
    mixed: DiskQueue, selection: Selection, row_ids: list[int]
) -> None:
    rows, following = mixed.select(selection, 0)
    assert ([row.row_id for row in rows], following) == (row_ids, None)
    assert mixed.select_bare(selection, 0) == ([event(f"m{n}") for n in row_ids], None)
    assert [row.row_id for row in mixed.select(selection, 6)[0]] == [n for n in row_ids if n > 6]
    assert mixed.select_bare(selection, 6)[0] == [event(f"m{n}") for n in row_ids if n > 6]


@every_selection
def test_columns_are_the_rows_side_by_side(mixed: DiskQueue, selection: Selection, row_ids: list[int]) -> None:
    rows, _ = mixed.select(selection, 0)
    columns, following = mixed.select_columns(selection, 0)
    assert (columns.row_ids, following) == (row_ids, None)
    assert list(zip(*columns, strict=True)) == [(*row[:5], row.data) for row in rows]
    assert mixed.select_columns(selection, 6)[0].row_ids == [n for n in row_ids if n > 6]


def test_a_row_is_shown_with_its_state_and_why_it_died(mixed: DiskQueue) -> None:
    rows, _ = mixed.select(Selection(), 0)
    assert [row.state for row in rows] == ["delivered"] * 2 + ["dead"] * 2 + ["taken"] * 2 + ["ready"] * 4
    assert [row.row_id for row in rows if row.died] == [3, 4]
    assert [row.row_id for row in rows if row.settled_at] == [1, 2, 3, 4]
    assert [row.received_at for row in rows] == [float(n) for n in range(1, 11)]


def test_pages_of_bare_lines_are_bounded_in_rows_and_bytes(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection_module, "_LINES_ROWS", 4)
    put(disk_queue, 5)
    assert [len(disk_queue.select_bare(Selection(), 0)[0]), disk_queue.select_bare(Selection(), 0)[1]] == [4, 4]
    assert [len(disk_queue.select_bare(Selection(), 4)[0]), disk_queue.select_bare(Selection(), 4)[1]] == [1, None]
    monkeypatch.setattr(selection_module, "_PAGE_BYTES", 2 * len(event("m0")))
    assert disk_queue.select_bare(Selection(), 0) == ([event("m0"), event("m1")], 2)
    assert disk_queue.select(Selection(), 0)[1] == 2
    monkeypatch.setattr(selection_module, "_PAGE_BYTES", 2 * len(event("m0")) + 1)
    assert disk_queue.select_bare(Selection(), 0)[1] == 3
    assert disk_queue.select(Selection(), 0)[1] == 3


def test_pages_of_columns_are_bounded_in_rows_and_bytes(disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_module, "_COLUMNS_ROWS", 4)
    put(disk_queue, 5)
    assert disk_queue.select_columns(Selection(), 0)[1] == 4
    columns, following = disk_queue.select_columns(Selection(), 4)
    assert (columns.event_ids, following) == (["m4"], None)
    monkeypatch.setattr(selection_module, "_PAGE_BYTES", 2 * len(event("m0")))
    columns, following = disk_queue.select_columns(Selection(states=("dead",)), 0)
    assert (columns.data, following) == ([], None)
    assert disk_queue.select_columns(Selection(), 0)[1] == 2


def test_ids_that_are_in_no_index_are_read_from_the_rows(mixed: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixed.ids_without_index(0) == (["m2", "m4", "m6", "m8", "m10"], None)
    monkeypatch.setattr(selection_module, "PAGE_ROWS", 5)
    assert mixed.ids_without_index(0) == (["m2", "m4"], 5)
    assert mixed.ids_without_index(5) == (["m6", "m8", "m10"], 10)
    assert mixed.ids_without_index(10) == ([], None)


def test_a_time_that_no_clock_says_is_shown_as_none_and_counts_as_old(disk_queue: DiskQueue) -> None:
    times = [0.0, -1.0, 253_402_300_799.0, 253_402_300_800.0]
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(event(f"m{n}"), at) for n, at in enumerate(times)])
    rows, _ = disk_queue.select(Selection(), 0)
    assert [row.received_at for row in rows] == [0.0, None, 253_402_300_799.0, None]
    assert [row.row_id for row in disk_queue.select(Selection(received_before=0.5), 0)[0]] == [1, 2, 4]


def test_what_cannot_be_decoded_is_listed_without_a_name_and_has_no_id_to_tell(disk_queue: DiskQueue) -> None:
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(data, 1.0) for data in (b"\x80", b"{}", b"[]", event("m4"))])
    rows, _ = disk_queue.select(Selection(), 0)
    assert [(row.row_id, row.event_id, row.topic) for row in rows] == [
        *((n, None, None) for n in (1, 2, 3)),
        (4, "m4", "t"),
    ]
    assert disk_queue.ids_without_index(0) == (["m4"], None)


def test_a_row_that_died_without_an_answer_is_shown_with_its_reason(disk_queue: DiskQueue) -> None:
    put(disk_queue, 1)
    with disk_queue.transaction():
        disk_queue.reject([DeadRow(row.row_id, "crc", None, 0) for row in disk_queue.take(1, 1)])
    ((row,), _) = disk_queue.select(Selection(reason="crc"), 0)
    assert row.died is not None
    assert row.died[:3] == ("crc", None, 0)


def test_what_nobody_wrote_about_a_death_counts_as_unknown(mixed: DiskQueue) -> None:
    mixed._conn.execute("UPDATE edge_dead SET status_code = 'x', attempts = 'x', at = 'x' WHERE row_id = 3")
    rows, _ = mixed.select(Selection(states=("dead",)), 0)
    assert rows[0].died == ("x", None, 0, 0.0, "")


def test_compacting_gives_all_free_pages_back_in_steps_and_says_how_much(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_STEP_PAGES", 10)
    put(disk_queue, 100, b'"%b"' % (b"x" * 2000))
    with disk_queue.transaction():
        disk_queue.discard(list(range(1, 101)))
    free, page_bytes = disk_queue.free_pages()
    assert free > 20
    told: list[tuple[int, int]] = []
    after: int | None = 0
    while after is not None:
        with disk_queue.transaction():
            page = answer(disk_queue, Request.of("compact", Selection(), after))
        (item,) = page.items
        assert item["possible"] is True
        assert after == 0 or after * page_bytes == told[-1][1]
        told.append((item["bytes"], item["left_bytes"]))
        after = page.next
    steps = [10] * (free // 10) + [free % 10] * (free % 10 > 0)
    assert [given // page_bytes for given, _ in told] == steps
    assert told[-1][1] == 0
    assert disk_queue.free_pages()[0] == 0
    with disk_queue.transaction():
        assert answer(disk_queue, Request.of("compact", Selection())).items[0]["bytes"] == 0


def test_after_compacting_the_file_is_as_small_as_it_says(
    disk_queue: DiskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step has the WAL written back: before that the file is as large as it was."""
    monkeypatch.setattr(commands, "_STEP_PAGES", 20)
    put(disk_queue, 100, b'"%b"' % (b"x" * 2000))
    with disk_queue.transaction():
        disk_queue.discard(list(range(1, 101)))
    disk_queue.checkpoint()
    before = (tmp_path / FILE_NAME).stat().st_size
    given = 0
    after: int | None = 0
    while after is not None:
        with disk_queue.transaction():
            page = answer(disk_queue, Request.of("compact", Selection(), after))
        disk_queue.bound_wal()  # as after each transaction
        given, after = given + page.items[0]["bytes"], page.next
    assert given > 0
    assert (tmp_path / FILE_NAME).stat().st_size == before - given


def test_a_file_of_the_stock_library_cannot_be_compacted_and_the_answer_says_so(tmp_path: Path) -> None:
    table = "(_id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB, timestamp FLOAT, status INTEGER)"
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute(f"CREATE TABLE ack_queue_default {table}")
    queue = DiskQueue(tmp_path, durability="crash")
    put(queue, 100, b'"%b"' % (b"x" * 2000))
    with queue.transaction():
        queue.discard(list(range(1, 101)))
        page = answer(queue, Request.of("compact", Selection()))
    free, page_bytes = queue.free_pages()
    queue.close()
    assert free > 20
    assert page == Page([{"bytes": 0, "left_bytes": free * page_bytes, "possible": False}], None)


def test_losses_are_selected_by_id_time_topic_and_reason_in_pages(
    disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_queue.transaction():
        disk_queue.record_loss(Loss(LossReason.MAX_BYTES, 2, "t", ("a", "b"), first_at=10.0, last_at=10.0))
        disk_queue.record_loss(Loss(LossReason.EXPIRED, 1, "u", ("c",), first_at=20.0, last_at=20.0))
        disk_queue.record_loss(Loss(LossReason.EXPIRED, 1, None, ("d",), first_at=30.0, last_at=30.0))

    def found(selection: Selection, after: int = 0) -> list[int]:
        return [item["loss"] for item in answer(disk_queue, Request.of("losses", selection, after)).items]

    assert found(Selection()) == [1, 2, 3]
    assert found(Selection(ids=("b", "d"))) == [1, 3]
    assert found(Selection(received_before=20.0)) == [1]
    assert found(Selection(topic="+")) == [1, 2]
    assert found(Selection(reason="expired")) == [2, 3]
    monkeypatch.setattr(commands, "_ENTRIES", 2)
    assert answer(disk_queue, Request.of("losses", Selection())).next == 2
    assert found(Selection(), after=2) == [3]


def test_lines_that_are_no_text_are_told_as_base64() -> None:
    assert commands.ndjson([]) == b""
    assert commands.ndjson([b"{}", b"[]"]) == b"{}\n[]\n"
    assert commands.ndjson([b"{}", b"a\nb", b"\xff", b""]) == (
        b'{}\n{"data_base64":"YQpi"}\n{"data_base64":"/w=="}\n{"data_base64":""}\n'
    )
    assert commands.ndjson([b"a\nb"]) == b'{"data_base64":"YQpi"}\n'
    assert commands.ndjson([b"a\nb\nc"]) == b'{"data_base64":"YQpiCmM="}\n'


# ---- what the commands answer: docs/QUEUE.md ----


@pytest.fixture
def dated(disk_queue: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> DiskQueue:
    """Row 1 is delivered, 2 dead, 3 in flight, 4 and 5 ready; received in 1970, settled in 2001."""
    monkeypatch.setattr("time.time", lambda: 1e9)
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(event(f"m{n}"), float(n)) for n in range(1, 5)])
        disk_queue.put_rows([NewRow(b"\xff", 5.0)])
        disk_queue.ack_rows([row.row_id for row in disk_queue.take(1, 1 << 20)])
        disk_queue.reject([DeadRow(row.row_id, "refused", 422, 3, "no") for row in disk_queue.take(1, 1 << 20)])
        disk_queue.take(1, 1 << 20)
    return disk_queue


def asked(queue: DiskQueue, command: str, selection: Selection | None = None, after: int = 0) -> Page:
    with queue.transaction():
        return answer(queue, Request.of(command, selection or Selection(), after))


DIED = {"reason": "refused", "status_code": 422, "attempts": 3, "at": "2001-09-09T01:46:40.000Z", "excerpt": "no"}
SHOWN = [
    {
        "row": number,
        "id": None if number == 5 else f"m{number}",
        "state": state,
        "topic": None if number == 5 else "t",
        "received_at": f"1970-01-01T00:00:0{number}.000Z",
        "settled_at": "2001-09-09T01:46:40.000Z" if number < 3 else None,
        "bytes": 1 if number == 5 else len(event("m1")),
        "died": DIED if number == 2 else None,
    }
    for number, state in enumerate(("delivered", "dead", "taken", "ready", "ready"), start=1)
]


def test_rows_are_listed_with_all_that_is_known_of_them_and_exported_with_their_events(dated: DiskQueue) -> None:
    assert asked(dated, "list") == Page(SHOWN, None)
    events = [*({"event": event(f"m{n}").decode()} for n in range(1, 5)), {"event_base64": "/w=="}]
    assert asked(dated, "export") == Page([row | its for row, its in zip(SHOWN, events, strict=True)], None)
    lines = b"".join(event(f"m{n}") + b"\n" for n in range(1, 5)) + b'{"data_base64":"/w=="}\n'
    assert asked(dated, "lines") == Page([], None, lines)
    assert asked(dated, "ids") == Page([{"ids": ["m1", "m2", "m3", "m4"]}], None)


def test_the_pages_of_every_listing_go_on_where_the_last_one_ended(
    dated: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection_module, "PAGE_ROWS", 3)
    monkeypatch.setattr(selection_module, "_LINES_ROWS", 3)
    monkeypatch.setattr(selection_module, "_COLUMNS_ROWS", 3)
    for command in ("list", "export", "columns", "lines", "ids"):
        assert asked(dated, command).next == 3
        assert asked(dated, command, after=3).next is None
    monkeypatch.setattr(selection_module, "PAGE_ROWS", 1)
    assert asked(dated, "requeue").next == 2, "the only dead row"
    assert asked(dated, "requeue", after=2).next is None
    assert asked(dated, "purge").next == 1, "the only delivered row"


def test_the_stats_count_states_losses_and_bytes(dated: DiskQueue) -> None:
    assert asked(dated, "stats").items == [
        {
            "ready": 2,
            "taken": 1,
            "delivered": 1,
            "dead": 1,
            "bytes": dated.counts().size_bytes,
            "oldest_at": "1970-01-01T00:00:03.000Z",
            "first_row": 1,
            "last_row": 5,
            "losses": {"dead": 1},
            "lost": 1,
        }
    ]
    assert asked(dated, "purge") == Page([{"rows": 2}], None)
    (stats,) = asked(dated, "stats").items
    assert (stats["losses"], stats["lost"]) == ({"dead": 1, "dead_removed": 1}, 1), "lost once"
    assert (stats["first_row"], stats["delivered"], stats["dead"]) == (3, 0, 0)


def test_requeued_rows_are_counted_and_keep_why_they_died(dated: DiskQueue) -> None:
    assert asked(dated, "requeue") == Page([{"rows": 1}], None)
    assert asked(dated, "requeue") == Page([{"rows": 0}], None)
    (row,) = asked(dated, "list", Selection(ids=("m2",))).items
    assert (row["state"], row["settled_at"], row["died"]) == ("ready", None, DIED)


def test_an_entry_of_the_ledger_is_told_with_all_its_parts(dated: DiskQueue) -> None:
    assert asked(dated, "losses") == Page(
        [
            {
                "loss": 1,
                "at": "2001-09-09T01:46:40.000Z",
                "reason": "dead",
                "messages": 1,
                "topic": "t",
                "first_at": "1970-01-01T00:00:02.000Z",
                "last_at": "1970-01-01T00:00:02.000Z",
                "detail": "refused (HTTP 422)",
                "ids": ("m2",),
            }
        ],
        None,
    )


def test_times_that_no_calendar_has_are_none() -> None:
    assert [commands.rfc3339(at) for at in (None, 0.0, 1e18, float("nan"), float("inf"))] == [
        None,
        "1970-01-01T00:00:00.000Z",
        *(None, None, None),
    ]
