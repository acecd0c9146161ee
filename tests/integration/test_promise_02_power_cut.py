"""Promise 2: a power cut at any system call loses nothing that was confirmed, and the queue opens within 5 seconds.

Tries to break I1's half on disk, I3, I4 and I9: lives of a process with the real queue are recorded, thousands of
states that a cut may leave are rebuilt from the record, and each is opened with the real queue. What is found must be
exactly what was confirmed at that moment, or that and the whole transaction under way. The checker is tested too: it
must find the loss when the log is not synced at each commit (durability `crash`), and when confirming comes first.
To see a failure again: `EDGE_BRIDGE_SOAK_SEED=… make test ARGS="-k power_cut"`.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from bridge.disk_queue import FILE_NAME, DiskQueue, FolderLock, NewRow
from bridge.errors import BridgeError, QueueDamagedError
from tests.harness import figures
from tests.harness.powercut import Disk, Mark, Operation, Remove, Resize, State, Write, cuts, operations
from tests.harness.powercut_life import NOTHING_YET, Account, Held, Picture, account_of, digest, event
from tests.harness.strace import calls, recording_files

OPEN_SECONDS_MAX = 5
LIVES = (("--dies",), (), ("--dies",), ())  # how each ends: in the middle of a transaction, or in order
STEPS = 30  # transactions of a life
STATUSES = {"stored": (0, 5), "delivered": (5,)}  # what a receipt says → the row's status then


@dataclass(frozen=True, slots=True)
class Record:
    """What the lives did, and the folder (of that time) that all of it happened in."""

    operations: list[Operation]
    root: str


def record(
    folder: Path, *options: str, lives: Sequence[tuple[str, ...]] = LIVES, program: str = "powercut_life"
) -> Record:
    """Let some lives pass one after the other under strace; options are for all of them."""
    root, marks = folder / "disk", folder / "marks"
    root.mkdir()
    done: list[Operation] = []
    for number, ending in enumerate(lives):
        log = folder / f"{number}.log"
        life = [sys.executable, "-m", f"tests.harness.{program}", str(root / "queue"), str(marks)]
        subprocess.run(
            [*recording_files(log), *life, "--seed", str(number), "--steps", str(STEPS), *ending, *options], check=True
        )
        done += operations(calls(log), str(root), str(marks))
        log.unlink()
    assert replayed(done, str(root)) == {str(path): content(path) for path in root.rglob("*")}, "not all was recorded"
    return Record(done, str(root))


def replayed(done: list[Operation], root: str) -> State:
    disk = Disk(root)
    for operation in done:
        disk.apply(operation)
    return disk.now()


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def lay_out(state: State, root: str, folder: Path) -> None:
    """Write the state's files below `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in state.items():
        target = folder / path.removeprefix(f"{root}/")
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)


def faults(folder: Path, account: Account) -> Iterator[str]:
    """Open what a cut left, as the bridge does at its start; yield what is wrong, its kind first."""
    started_at = time.monotonic()
    lock = FolderLock(folder)
    try:
        disk_queue = DiskQueue(folder)
        figures.most(open_s=(open_seconds := time.monotonic() - started_at))
        if open_seconds > OPEN_SECONDS_MAX:
            yield f"slow: opened after {open_seconds:.1f} s"
        try:
            yield from faults_of(disk_queue, account)
        finally:
            disk_queue.close()
    except (BridgeError, sqlite3.Error) as error:
        yield f"error: {error}"
    finally:
        lock.release()


def faults_of(disk_queue: DiskQueue, account: Account) -> Iterator[str]:
    integrity = disk_queue._conn.execute("PRAGMA integrity_check").fetchall()
    if integrity != [("ok",)]:
        yield f"integrity: {integrity}"
    found = picture_of(disk_queue)
    if found not in (account.confirmed, account.tried):
        yield f"rows: {difference(account.confirmed, found)}"
    statuses = Counter(held.status for held in found.rows.values())
    counted = disk_queue.counts()[:4]
    if counted != (statuses[0], 0, statuses[5], statuses[9]):
        yield f"counts: {counted} of {statuses}"
    if {row.row_id for row in disk_queue.dead_rows()} != {i for i, held in found.rows.items() if held.status == 9}:
        yield "counts: the dead rows are others than those with a reason"
    yield from use(disk_queue, found)
    if disk_queue.newest_id() <= account.confirmed.newest_id:
        yield f"ids: {disk_queue.newest_id()} was given out twice"


def picture_of(disk_queue: DiskQueue) -> Picture:
    with disk_queue.transaction():
        disk_queue.mark_noted()  # a row may be noted as delivered and not marked yet
    rows = disk_queue._conn.execute("SELECT _id, status, data FROM ack_queue_default").fetchall()
    held = {row_id: Held(status, digest(data)) for row_id, status, data in rows}
    return Picture(held, sum(loss.messages for loss in disk_queue.losses()), disk_queue.newest_id())


def difference(expected: Picture, found: Picture) -> str:
    lost = expected.rows.keys() - found.rows.keys()
    more = found.rows.keys() - expected.rows.keys()
    other = {i for i in expected.rows.keys() & found.rows.keys() if expected.rows[i] != found.rows[i]}
    return (
        f"lost {sorted(lost)[:5]}, not confirmed {sorted(more)[:5]}, other bytes or state {sorted(other)[:5]}, "
        f"ledger {found.losses} for {expected.losses}, newest id {found.newest_id} for {expected.newest_id}"
    )


def use(disk_queue: DiskQueue, found: Picture) -> Iterator[str]:
    """The queue works: a new row is stored, and with it every ready row can be taken."""
    with disk_queue.transaction():
        disk_queue.put_rows([NewRow(event(0, 100), 1.0)])
        taken: set[int] = set()
        while rows := disk_queue.take(1000, 1 << 30):
            taken.update(row.row_id for row in rows)
    ready = {row_id for row_id, held in found.rows.items() if held.status == 0}
    if taken != ready | {disk_queue.newest_id()}:
        yield f"take: {len(taken)} rows of {len(ready) + 1}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A cut after which not all was as it must be."""

    number: int
    moment: int
    fault: str

    @property
    def kind(self) -> str:
        return self.fault.partition(":")[0]


def findings(recorded: Record, folder: Path, states: int, seed: int) -> list[Finding]:
    """Rebuild so many states and look at each."""
    found: list[Finding] = []
    account = NOTHING_YET
    for number, cut in enumerate(cuts(recorded.operations, recorded.root, states, seed)):
        account = account_of(cut.marks, account)
        lay_out(cut.state, recorded.root, folder)
        found += [Finding(number, cut.moment, fault) for fault in faults(folder / "queue", account)]
    return found


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has such: thousands of files of some megabytes are written and synced."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def check(folder: Path, memory_folder: Path, states: int) -> None:
    """Cut so often. The lives are always the same, call by call, so the seed alone brings a finding back."""
    seed = int(os.environ.get("EDGE_BRIDGE_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"power cuts with seed {seed}")  # noqa: T201  pytest shows it when the test fails
    recorded = record(folder)
    assert_worth_cutting(recorded.operations)
    found = findings(recorded, memory_folder / "state", states, seed)
    figures.count(states=states, losses=len(found))
    assert found == []


def assert_worth_cutting(done: list[Operation]) -> None:
    """The lives did what is delicate: began the log anew, cut log and database off, made and removed the log."""
    of_log = [each for each in done if not isinstance(each, Mark) and each.path.endswith("-wal")]
    sizes = [each.size for each in done if isinstance(each, Resize) and each.path.endswith(FILE_NAME)]
    assert sum(isinstance(each, Write) and each.offset == 0 for each in of_log) > 10
    assert sum(isinstance(each, Resize) for each in of_log) > 5
    assert sum(isinstance(each, Remove) for each in of_log) == LIVES.count(())
    assert min(sizes) * 2 < max(sizes)


@pytest.mark.timeout(400)  # half a minute of processor time and, on a busy machine, minutes
def test_two_thousand_power_cuts_lose_nothing_that_was_confirmed(
    tmp_path: Path, memory_folder: Path, strace_installed: None
) -> None:
    check(tmp_path, memory_folder, 2000)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_thousand_power_cuts_lose_nothing_that_was_confirmed(
    tmp_path: Path, memory_folder: Path, strace_installed: None
) -> None:
    check(tmp_path, memory_folder, 10_000)


@pytest.mark.parametrize(
    ("mistake", "kinds"),
    [
        pytest.param(("--durability", "crash"), {"rows", "ids"}, id="is-synced-at-checkpoints-only"),
        pytest.param(("--confirms-early",), {"rows", "ids"}, id="confirms-before-it-commits"),
        pytest.param(("--pragma", "synchronous = OFF"), {"rows", "error"}, id="is-never-synced"),
    ],
)
def test_the_same_cuts_find_the_loss_of_a_queue_that(
    mistake: tuple[str, ...], kinds: set[str], tmp_path: Path, memory_folder: Path, strace_installed: None
) -> None:
    recorded = record(tmp_path, *mistake, lives=LIVES[:2])
    found = findings(recorded, memory_folder / "state", 200, seed=1)
    assert len({finding.number for finding in found if finding.kind == "rows"}) > 20
    assert kinds <= {finding.kind for finding in found}


# ---- receipts ----


def statuses(folder: Path) -> dict[str, int]:
    """What became of each message; none is there if the file is damaged."""
    try:
        disk_queue = DiskQueue(folder)
    except QueueDamagedError:
        return {}
    try:
        with disk_queue.transaction():
            disk_queue.mark_noted()
        return dict(disk_queue._conn.execute("SELECT event_id, status FROM ack_queue_default").fetchall())
    finally:
        disk_queue.close()


def untrue_receipts(recorded: Record, folder: Path, states: int) -> tuple[int, set[str]]:
    """Rebuild so many states; return how many receipts had been given at last, and which some state makes a lie."""
    told: dict[str, str] = {}
    untrue: set[str] = set()
    for cut in cuts(recorded.operations, recorded.root, states, seed=2):
        for mark in cut.marks:
            told.update(orjson.loads(mark))
        lay_out(cut.state, recorded.root, folder)
        there = statuses(folder / "queue")
        untrue |= {name for name, state in told.items() if there.get(name) not in STATUSES[state]}
    return len(told), untrue


def test_no_power_cut_makes_a_receipt_that_was_given_untrue(
    tmp_path: Path, memory_folder: Path, strace_installed: None
) -> None:
    recorded = record(tmp_path, lives=[(), ()], program="receipt_life")
    given, untrue = untrue_receipts(recorded, memory_folder / "state", 200)
    assert given > 500
    assert not untrue


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(("--durability", "crash"), id="is-synced-at-checkpoints-only"),
        pytest.param(("--tells-early",), id="gives-them-before-it-commits"),
    ],
)
def test_the_same_cuts_find_the_untrue_receipts_of_a_queue_that(
    mistake: tuple[str, ...], tmp_path: Path, memory_folder: Path, strace_installed: None
) -> None:
    recorded = record(tmp_path, *mistake, lives=[()], program="receipt_life")
    _, untrue = untrue_receipts(recorded, memory_folder / "state", 100)
    assert len(untrue) > 20
