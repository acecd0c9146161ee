"""Promises 10 to 12 on the level of the disk queue: many damaged states, each opened, salvaged and counted.

Every state is made from a seed, which is in the test's id. What is claimed is held against what was stored: no row is
changed, none is waiting twice, and salvaged + reported lost = total.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow, Report, Salvager, open_queue, repair, verify, write_report
from bridge.disk_queue.aside import ASIDE_PREFIX, asides, delete_surplus, pending, set_aside
from bridge.disk_queue.pages import Pages, read_wal
from bridge.disk_queue.queue import SPAN_ROWS_MIN
from bridge.errors import QueueDamagedError, QueueUnusableError
from bridge.message import DeadRow, event_id, head, head_middle, tail

PAGE = 4096
STORED, DELIVERED, IN_FLIGHT = 600, 80, 40
GROUP = 60
PAGE_STATES, WAL_STATES = 60, 40


def event(number: int) -> bytes:
    payload = b'"%b"' % (b"x" * (9000 if number % 41 == 0 else 120))
    return head(f"m{number}", head_middle("edge/x", "t"), "2026-01-01T00:00:00Z") + tail(payload, is_json=True)


class Made(NamedTuple):
    folder: Path
    events: dict[int, bytes]  # by row id
    waiting: frozenset[int]


def fill(queue: DiskQueue, first: int, last: int) -> None:
    for start in range(first, last + 1, GROUP):
        numbers = range(start, min(start + GROUP, last + 1))
        with queue.transaction():
            queue.put_rows([NewRow(event(n), 2e9, None, f"m{n}" if n % 2 else None, 3e9 + n) for n in numbers])


def take(queue: DiskQueue, messages_max: int = 10_000) -> list[int]:
    with queue.transaction():
        return [row.row_id for row in queue.take(messages_max, 1 << 30)]


def work(queue: DiskQueue) -> None:
    """Deliver some, bury one, tidy a few pages onto the freelist, leave a batch in flight."""
    fill(queue, 1, STORED)
    taken = take(queue, DELIVERED)
    with queue.transaction():
        queue.ack_rows(taken[:-1])
        queue.reject([DeadRow(taken[-1], "because", 400, 3, "no")])
    with queue.transaction():
        queue.tidy(3600, DELIVERED // 2)
    take(queue, IN_FLIGHT)
    with queue.transaction():
        queue.write_note("written", "with the batch in flight")


def made(folder: Path, *, clean: bool) -> Made:
    """A queue that was closed, or one that was killed with all of its work in the WAL."""
    folder.mkdir()
    living = folder / "living"
    living.mkdir()
    queue = DiskQueue(living)
    work(queue)
    if clean:
        queue.close()
    shutil.copytree(living, folder / "queue")
    queue.close()
    everything = {n: event(n) for n in range(1, STORED + 1)}
    return Made(folder / "queue", everything, frozenset(range(DELIVERED + 1, STORED + 1)))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("stopped") / "made", clean=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("killed") / "made", clean=False)


def copy(of: Made, folder: Path) -> Path:
    shutil.copytree(of.folder, folder, dirs_exist_ok=True)
    return folder


def overwrite(file: Path, offset: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


def flip(file: Path, offset: int, mask: int) -> None:
    with file.open("rb") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
    overwrite(file, offset, bytes([byte ^ mask]))


def rows_of(folder: Path, condition: str = "1") -> dict[int, bytes]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return dict(connection.execute(f"SELECT _id, data FROM ack_queue_default WHERE {condition}"))  # noqa: S608


def losses_of(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return dict(connection.execute("SELECT reason, SUM(messages) FROM edge_loss GROUP BY reason"))


def check(folder: Path, of: Made, reports: list[Report]) -> int:
    """Hold a repaired queue against what was stored; return how many waiting rows it lost."""
    assert verify(folder).is_sound
    waiting = rows_of(folder, "status < 2")
    by_event = {event_id(data): data for data in waiting.values()}
    assert len(by_event) == len(waiting), "a row waits twice"
    assert all(data == of.events[int(name[1:])] for name, data in by_event.items()), "a row was changed"
    (report,) = reports
    lost = {f"m{n}" for n in of.waiting} - by_event.keys()
    assert report.lost is not None
    assert report.waiting + report.lost == report.total
    assert report.waiting == len(waiting)
    assert len(of.waiting) <= report.waiting + report.lost, "lost rows were not reported"
    ledger = losses_of(folder)
    assert ledger.get("damaged", 0) + report.altered == report.lost
    return len(lost)


# ---- damaged pages ----


@pytest.mark.parametrize("clean", [True, False])
def test_rows_that_are_only_noted_as_delivered_are_not_delivered_again(tmp_path: Path, *, clean: bool) -> None:
    living = tmp_path / "living"
    living.mkdir()
    queue = DiskQueue(living)
    fill(queue, 1, STORED)
    taken = take(queue, SPAN_ROWS_MIN)
    with queue.transaction():
        queue.ack_rows(taken)
    if clean:
        queue.close()
    folder = copy(Made(living, {}, frozenset()), tmp_path / "copy")
    queue.close()
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:  # the counts no longer fit
        connection.execute("UPDATE edge_state SET waiting = waiting + 1")
    (report,) = repair(folder)
    assert (report.waiting, report.salvaged) == (STORED - SPAN_ROWS_MIN, STORED)
    assert rows_of(folder, "status = 5").keys() == set(taken)
    assert rows_of(folder, "status < 2").keys() == set(range(SPAN_ROWS_MIN + 1, STORED + 1))


def damage_pages(seed: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        chance = random.Random(seed)
        count = file.stat().st_size // PAGE
        numbers = [1] if seed % 6 == 0 else chance.sample(range(1, count + 1), chance.randint(1, 4))
        for number in numbers:
            if chance.random() < 0.5:
                overwrite(file, (number - 1) * PAGE, bytes(PAGE))
            for _ in range(chance.randint(1, 20)):
                flip(file, (number - 1) * PAGE + chance.randrange(PAGE), 1 << chance.randrange(8))

    return damage


@pytest.mark.parametrize("seed", range(PAGE_STATES))
def test_whatever_page_is_damaged_all_other_rows_are_salvaged_unaltered(
    tmp_path: Path, stopped: Made, seed: int
) -> None:
    folder = copy(stopped, tmp_path)
    damage_pages(seed)(folder / FILE_NAME)
    damaged = (folder / FILE_NAME).read_bytes()
    if verify(folder).is_sound:
        assert rows_of(folder, "status < 2") == {n: stopped.events[n] for n in stopped.waiting}
        return
    reports = repair(folder)
    assert check(folder, stopped, reports) <= 4 * 40, "no more than what stood on the damaged pages"
    assert (folder / reports[0].file).read_bytes() == damaged, "the damaged file is kept as it was"


@pytest.mark.parametrize("page", ["first", "root", "interior"])
def test_a_destroyed_page_that_leads_to_others_loses_no_row(tmp_path: Path, stopped: Made, page: str) -> None:
    folder = copy(stopped, tmp_path)
    pages = Pages(folder / FILE_NAME)
    root = pages.roots()["ack_queue_default"]
    child = int.from_bytes(pages.page(root)[8:12], "big")
    interiors = [n for n in range(2, pages.count + 1) if pages.page(n)[0] == 5 and n != root]
    pages.close()
    number = {"first": 1, "root": root, "interior": interiors[0] if interiors else child}[page]
    overwrite(folder / FILE_NAME, (number - 1) * PAGE, bytes(PAGE))
    lost = check(folder, stopped, repair(folder))
    assert lost == 0 or (page == "interior" and not interiors)


def root_page(file: Path) -> int:
    pages = Pages(file)
    root = pages.roots()["ack_queue_default"]
    pages.close()
    return root


def test_an_older_copy_of_a_page_that_is_found_as_well_does_not_double_its_rows(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    file = folder / FILE_NAME
    root = root_page(file)
    content = file.read_bytes()
    leaf = next(n for n in range(root + 1, len(content) // PAGE) if b"m300" in content[(n - 1) * PAGE : n * PAGE])
    overwrite(file, (root - 1) * PAGE, bytes(PAGE))
    with file.open("ab") as opened:
        opened.write(content[(leaf - 1) * PAGE : leaf * PAGE])
    assert check(folder, stopped, repair(folder)) == 0


def test_rows_that_were_given_up_do_not_come_back_from_pages_that_are_free(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    file = folder / FILE_NAME
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM ack_queue_default WHERE _id <= 400")
        connection.commit()
        assert connection.execute("PRAGMA freelist_count").fetchone()[0]
    assert event(300) in file.read_bytes(), "it still stands on a free page"
    overwrite(file, (root_page(file) - 1) * PAGE, bytes(PAGE))
    repair(folder)
    assert set(rows_of(folder)) == set(range(401, STORED + 1))


def test_a_file_cut_short_gives_back_what_is_left(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    size = (folder / FILE_NAME).stat().st_size
    with (folder / FILE_NAME).open("r+b") as file:
        file.truncate(size // 2 // PAGE * PAGE + 100)
    with pytest.raises(QueueDamagedError, match="its end is missing"):
        DiskQueue(folder)
    assert pending(folder), "set aside where it was found"
    lost = check(folder, stopped, repair(folder))
    assert 0 < lost < len(stopped.waiting)


# ---- the order, the ids, the states ----


def test_salvaged_rows_keep_id_state_company_and_reason_and_new_ones_come_after_them(
    tmp_path: Path, stopped: Made
) -> None:
    """I6, I3: also the ledger is carried over."""
    folder = copy(stopped, tmp_path)
    queue = DiskQueue(folder)
    entries, totals = queue.losses(), queue.ledger.totals()
    queue.close()
    set_aside(folder)
    queue, damage, salvagers = open_queue(folder)
    assert damage is None
    assert (queue.losses(), queue.ledger.totals()) == (entries, totals), "at once"
    fill(queue, 1001, 1003)
    assert take(queue) == [], "nothing newer leaves while older rows are on their way back"
    store_all(queue, salvagers[0])
    queue.withhold(False)
    assert take(queue) == list(range(DELIVERED + 1, DELIVERED + IN_FLIGHT + 1)), "the batch in flight, as it was"
    rest = take(queue)
    assert rest[:-3] == list(range(DELIVERED + IN_FLIGHT + 1, STORED + 1))
    assert min(rest[-3:]) > STORED
    assert queue.counts()[2:4] == (DELIVERED // 2, 1)
    assert [(row.row_id, row.reason, row.status_code, row.attempts) for row in queue.dead_rows()] == [
        (DELIVERED, "because", 400, 3)
    ]
    assert (queue.losses(), queue.ledger.totals()) == (entries, totals)
    assert totals == {"dead": 1}
    expiry = dict(queue._conn.execute("SELECT _id, expires_at FROM ack_queue_default WHERE _id <= ?", (STORED,)))
    assert expiry == {n: 3e9 + n for n in expiry}
    assert queue.note("written") == "with the batch in flight"
    queue.close()


def store_all(queue: DiskQueue, salvager: Salvager, portions_max: int = 10_000) -> Report:
    with queue.transaction():
        tally = salvager.begin(queue)
    while portions_max and (portion := salvager.read(tally)):
        portions_max -= 1
        with queue.transaction():
            tally = salvager.store(queue, tally, portion)
    with queue.transaction():
        report = salvager.finish(queue, tally)
    salvager.close()
    return report


def test_a_salvage_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    set_aside(folder)
    queue, _, (salvager,) = open_queue(folder)
    with queue.transaction():
        tally = salvager.begin(queue)
    portion = salvager.read(tally)
    assert portion
    with queue.transaction():
        tally = salvager.store(queue, tally, portion)
    salvager.close()
    queue.withhold(False)
    gone = take(queue) + take(queue)
    assert gone[-1] == portion.last_id
    with queue.transaction():
        queue.ack_rows(gone)
    with queue.transaction():
        queue.tidy(0, 0)
    queue.close()
    queue, _, (salvager,) = open_queue(folder)
    report = store_all(queue, salvager)
    queue.withhold(False)
    left = take(queue) + take(queue)
    queue.close()
    assert set(gone) | set(left) == stopped.waiting
    assert not set(gone) & set(left), "what was delivered meanwhile does not come back"
    assert (report.waiting, report.lost) == (len(stopped.waiting), 0)


def test_a_message_that_came_again_before_its_row_was_back_is_there_once(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    set_aside(folder)
    queue, _, (salvager,) = open_queue(folder)
    again = DELIVERED + 101
    with queue.transaction():
        queue.put_rows([NewRow(event(again), 2.0, None, f"m{again}")])
    report = store_all(queue, salvager)
    waiting = queue.counts().ready
    queue.close()
    assert (report.waiting, report.lost, waiting) == (len(stopped.waiting), 0, len(stopped.waiting))
    assert again not in rows_of(folder)


def test_a_bounded_number_of_damaged_files_is_kept_and_none_goes_before_its_salvage(tmp_path: Path) -> None:
    """I5: the newest of each kind stay; a file without a report has rows that may still be read."""
    made: list[Path] = []
    for number in range(17):
        made.append(tmp_path / f"{ASIDE_PREFIX}202601{number:02}T000000Z")
        for suffix in ("", "-wal", "-mark"):
            Path(f"{made[-1]}{suffix}").write_bytes(b"damaged")
        lost = (0, 1, 0, None)[number % 4]
        if number > 0:
            write_report(made[-1], Report(made[-1].name, 1, 1, 0, lost, lost))
    whole, broken = made[2::2], made[1::2]
    deleted = delete_surplus(tmp_path)
    surplus = whole[:-3] + broken[:-5]  # docs/REPAIR.md
    assert [report.file for report in deleted] == [aside.name for aside in surplus]
    assert set(asides(tmp_path)) == set(made) - set(surplus)
    assert pending(tmp_path) == made[:1]
    assert not [path for aside in surplus for path in tmp_path.glob(f"{aside.name}-*")], "nor its companions"


def test_garbage_and_other_programs_files_are_refused_and_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(QueueUnusableError):
        open_queue(tmp_path)
    with pytest.raises(QueueUnusableError):
        repair(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


# ---- while running ----


@pytest.mark.parametrize("seed", range(12))
def test_damage_that_shows_while_running_is_set_aside_with_its_wal_untouched(
    tmp_path: Path, stopped: Made, seed: int
) -> None:
    """Only what SQLite meets is found; nothing altered ever leaves."""
    folder = copy(stopped, tmp_path)
    queue = DiskQueue(folder)
    fill(queue, STORED + 1, STORED + GROUP)
    damage_pages(seed * 6 + 1)(folder / FILE_NAME)
    queue._conn.execute("PRAGMA shrink_memory")
    stored = stopped.events | {n: event(n) for n in range(STORED + 1, STORED + GROUP + 1)}
    try:
        for _ in range(20):
            with queue.transaction():
                rows = queue.take(100, 1 << 30)
            assert all(row.data == stored[row.row_id] for row in rows)
    except QueueDamagedError:
        wal = (folder / f"{FILE_NAME}-wal").read_bytes()
        queue.condemn()
        queue.close()
        (aside,) = asides(folder)
        assert Path(f"{aside}-wal").read_bytes() == wal
        (report,) = repair(folder)
        assert report.total is not None
        assert rows_of(folder).keys() > set(range(STORED + 1, STORED + GROUP + 1))
    queue.close()


def test_rows_that_the_index_does_not_know_are_found_to_be_missing(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'status < 2', 'status < -1') WHERE name = 'edge_ready'"
        )
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("REINDEX edge_ready")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'status < -1', 'status < 2') WHERE name = 'edge_ready'"
        )
        connection.commit()
    queue = DiskQueue(folder)
    with pytest.raises(QueueDamagedError, match="not to be found in the index"):
        take(queue)
    queue.close()


# ---- the WAL ----


@pytest.mark.parametrize("seed", range(WAL_STATES))
def test_a_bit_flipped_anywhere_in_the_wal_is_found_or_harmless_and_ids_go_on(
    tmp_path: Path, killed: Made, seed: int
) -> None:
    folder = copy(killed, tmp_path)
    wal = folder / f"{FILE_NAME}-wal"
    chance = random.Random(seed)
    offset = chance.randrange(32) if seed % 8 == 0 else chance.randrange(wal.stat().st_size)
    flip(wal, offset, 1 << chance.randrange(8))
    queue, damage, salvagers = open_queue(folder)
    reports = [store_all(queue, salvager) for salvager in salvagers]
    queue.withhold(False)
    newest = queue.newest_id()
    fill(queue, 5001, 5001)
    assert queue.newest_id() > max(STORED, newest)
    queue.close()
    waiting = rows_of(folder, "status < 2")
    known = killed.events | {5001: event(5001)}
    assert all(data == known[int(event_id(data)[1:])] for data in waiting.values())
    lost = killed.waiting - waiting.keys()
    assert damage is not None or not lost, "rows are gone and nobody was told"
    assert len(lost) <= sum(report.lost or 0 for report in reports)
    assert len(lost) <= GROUP, "the frames behind the bad one are read"


def test_a_lost_frame_that_leads_to_others_loses_no_row(tmp_path: Path) -> None:
    """An older image of that page is there, and reads well: it does not know the leaves that came since."""
    living = tmp_path / "living"
    living.mkdir()
    queue = DiskQueue(living)
    fill(queue, 1, 30)
    fill(queue, 31, 90)  # one group, many leaves: the newest image of the table's root
    fill(queue, 91, 91)
    killed = Made(living, {n: event(n) for n in range(1, 92)}, frozenset(range(1, 92)))
    root = root_page(living / FILE_NAME)
    content = (living / f"{FILE_NAME}-wal").read_bytes()
    of_root = [at for at in range(32, len(content), 24 + PAGE) if int.from_bytes(content[at : at + 4], "big") == root]
    folder = copy(killed, tmp_path / "copy")
    queue.close()
    assert content[of_root[-1] + 24] == 5, "an interior page"
    flip(folder / f"{FILE_NAME}-wal", of_root[-1] + 24 + PAGE - 1, 1)
    repaired, damage, (salvager,) = open_queue(folder)
    store_all(repaired, salvager)
    repaired.withhold(False)
    repaired.close()
    assert damage is not None
    assert rows_of(folder, "status < 2") == killed.events


@pytest.mark.parametrize("seed", range(WAL_STATES // 2))
def test_a_wal_cut_off_anywhere_is_seen_by_the_mark_and_ids_are_never_used_again(
    tmp_path: Path, killed: Made, seed: int
) -> None:
    folder = copy(killed, tmp_path)
    wal = folder / f"{FILE_NAME}-wal"
    with wal.open("r+b") as file:
        file.truncate(random.Random(seed).randrange(wal.stat().st_size))
    queue, _, salvagers = open_queue(folder)
    for salvager in salvagers:
        store_all(queue, salvager)
    queue.withhold(False)
    gap = queue.gap
    fill(queue, 5001, 5001)
    assert queue.newest_id() > STORED
    queue.close()
    there = rows_of(folder)
    lost = {n for n in killed.waiting if n not in there}
    told = losses_of(folder)
    assert len(lost) <= told.get("damaged", 0), "rows are gone and nobody was told"
    assert gap is None or lost <= set(range(gap[0], gap[1] + 1))


def test_a_torn_end_of_the_wal_is_no_damage(tmp_path: Path, killed: Made) -> None:
    """What a power cut leaves: the last transaction without its sync, some pages of it missing."""
    folder = copy(killed, tmp_path)
    wal, mark = folder / f"{FILE_NAME}-wal", folder / f"{FILE_NAME}-mark"
    mark.unlink()  # of the moment before: never ahead of what was synced
    frame = 24 + PAGE
    frames = (wal.stat().st_size - 32) // frame
    content = wal.read_bytes()
    commits = [i for i in range(frames) if content[32 + i * frame + 4 : 32 + i * frame + 8] != bytes(4)]
    first_of_last = commits[-2] + 1
    overwrite(wal, 32 + first_of_last * frame + 24, bytes(512))
    assert read_wal(wal).bad_frames == frames - first_of_last
    assert not read_wal(wal).is_damaged
    queue, damage, salvagers = open_queue(folder)
    assert (damage, salvagers, queue.gap) == (None, (), None)
    queue.close()


def test_a_frame_header_torn_between_two_sectors_is_no_damage(tmp_path: Path) -> None:
    """Its first half may be an older frame's, and say that here something was committed."""
    queue = DiskQueue(tmp_path)
    fill(queue, 1, 30)
    with queue.transaction():
        queue.put_rows([NewRow(event(41 * n), 2e9) for n in range(1, 30)])
    wal = tmp_path / f"{FILE_NAME}-wal"
    content = wal.read_bytes()
    queue._conn.close()
    wal.write_bytes(content)
    torn = next(at for at in range(32, len(content), 24 + PAGE) if 488 < at % 512 <= 504)
    assert content[torn + 4 : torn + 8] == bytes(4), "it is in the midst of the last transaction"
    overwrite(wal, torn + 4, (147).to_bytes(4))
    assert read_wal(wal).bad_frames
    assert not read_wal(wal).is_damaged
    overwrite(wal, torn + 4, bytes(4))
    assert not read_wal(wal).bad_frames


def test_a_wal_whose_database_is_empty_is_not_thrown_away(tmp_path: Path, killed: Made) -> None:
    """SQLite deletes it."""
    folder = copy(killed, tmp_path)
    overwrite(folder / FILE_NAME, 0, b"")
    with (folder / FILE_NAME).open("r+b") as file:
        file.truncate(0)
    queue, damage, (salvager,) = open_queue(folder)
    assert damage
    report = store_all(queue, salvager)
    queue.close()
    assert report.lost == 0
    assert set(rows_of(folder, "status < 2")) == killed.waiting


def test_a_wal_left_behind_by_a_crash_while_setting_aside_joins_its_database(tmp_path: Path, killed: Made) -> None:
    folder = copy(killed, tmp_path)
    (folder / FILE_NAME).rename(folder / f"{FILE_NAME}.damaged-20260101T000000Z")
    queue, _, (salvager,) = open_queue(folder)
    report = store_all(queue, salvager)
    queue.close()
    assert (report.waiting, report.lost) == (len(killed.waiting), 0)
    assert [path.name for path in asides(folder)] == [f"{FILE_NAME}.damaged-20260101T000000Z"]


# ---- verify ----


def test_verify_changes_nothing_and_calls_a_sound_queue_sound(tmp_path: Path, killed: Made) -> None:
    folder = copy(killed, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = verify(folder)
    assert found.is_sound
    assert found.rows == {0: len(killed.waiting), 5: DELIVERED // 2, 9: 1}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert repair(folder) == []


def test_verify_finds_an_altered_row_wrong_counts_and_a_gap(tmp_path: Path, stopped: Made) -> None:
    folder = copy(stopped, tmp_path)
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        connection.execute("UPDATE ack_queue_default SET data = x'00' WHERE _id = ?", (STORED - 1,))
        connection.execute("DELETE FROM ack_queue_default WHERE _id = ?", (STORED,))
        connection.execute("UPDATE sqlite_sequence SET seq = seq - 1")
        connection.commit()
    troubles = " / ".join(verify(folder).troubles)
    assert "1 waiting rows are not what was stored" in troubles
    assert "the counts are wrong" in troubles
    assert f"rows {STORED} to {STORED} were stored and are gone" in troubles
