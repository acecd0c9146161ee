"""Promise 7: any of the first hundred writes and syncs fails, once or for good: nothing confirmed is lost or stuck.

The real disk queue and disk thread go through every case in children of their own: EIO and ENOSPC, at each write and
each sync of the opening and at each of the first hundred behind it. The whole bridge with a real broker goes through
some, and through all of them in the long tests. What ends the process says so in one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPOSITORY, figures, wait_until
from tests.harness.bridge import StatusReader
from tests.harness.disk_worker import COUNT, GAVE_UP, IDLE_NAME
from tests.harness.stage import Stage
from tests.harness.strace import failing, injected

FIRST = 100
WRITE, SYNC = "pwrite64", "fdatasync"  # SQLite's own calls
ONCE, FOR_GOOD = "", "+"
OPENING = {WRITE: 80, SYNC: 16}  # more than an opening makes, and less than twice as many
OUR_FILES = {"data.db", "data.db-mark", "bridge.lock", "reserve"}
QUEUE_FILES = ("data.db", "data.db-wal", "data.db-journal", IDLE_NAME)
MEMORY = Path("/dev/shm")  # noqa: S108  a folder of a name of its own is made there
MESSAGES_PER_SECOND = 400  # so that there are many groups

pytestmark = pytest.mark.usefixtures("strace_installed")


def every_fault(test: Callable[..., None]) -> Callable[..., None]:
    for name, values in {
        "call": {"write": WRITE, "sync": SYNC},
        "error": {"EIO": "EIO", "ENOSPC": "ENOSPC"},
        "lasting": {"once": ONCE, "for-good": FOR_GOOD},
    }.items():
        test = pytest.mark.parametrize(name, values.values(), ids=values.keys())(test)
    return test


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """Where real syncs cost nothing: only those that fail count here."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


def run_cases(folder: Path, fault: tuple[str, str, str], phase: str, cases: int) -> tuple[list[dict[str, Any]], int]:
    """Go through the cases 1, 2, …; return what became of each, and how many calls were made to fail in all."""
    call, error, lasting = fault
    log = folder / "strace.log"
    files = [folder / "queue" / name for name in QUEUE_FILES]
    command = [
        *failing(call, error, f"{COUNT}{lasting}", files, log),
        *(sys.executable, "-m", "tests.harness.disk_worker", str(folder), call, phase, str(cases)),
    ]
    own = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, check=True)
    figures.count(failed_calls=injected(log))
    return [json.loads(line) for line in done.stdout.splitlines()], injected(log)


def check_cases(cases: list[dict[str, Any]]) -> None:
    stuck = [case for case in cases if case["statuses"][1] != 0]
    figures.count(cases=len(cases), lost=sum(len(case["lost"]) for case in cases), stuck=len(stuck))
    assert [case for case in cases if case["lost"]] == []
    assert stuck == [], "stuck after the restart"
    assert {name for case in cases for name in case["files"]} <= {*OUR_FILES, IDLE_NAME}


def end_of(fault: tuple[str, str, str]) -> int:
    """How the life that meets the fault ends: a full disk is no end while it works, and somebody waits for room."""
    if fault[:2] != (WRITE, "ENOSPC"):
        return 1
    return 0 if fault[2] == ONCE else GAVE_UP


@every_fault
def test_no_failing_write_or_sync_of_the_first_hundred_loses_or_holds_up_a_message(
    quick_folder: Path, call: str, error: str, lasting: str
) -> None:
    fault = (call, error, lasting)
    cases, failed = run_cases(quick_folder, fault, "working", FIRST)
    assert [case["number"] for case in cases] == list(range(1, FIRST + 1))
    check_cases(cases)
    assert {case["statuses"][0] for case in cases} == {end_of(fault)}
    assert failed == FIRST if lasting == ONCE else failed >= FIRST, "each met its fault"


@every_fault
def test_no_failing_write_or_sync_of_the_opening_leaves_a_queue_that_cannot_be_opened(
    quick_folder: Path, call: str, error: str, lasting: str
) -> None:
    cases, failed = run_cases(quick_folder, (call, error, lasting), "opening", OPENING[call])
    check_cases(cases)
    ends = [case["statuses"][0] for case in cases]
    ended = ends.count(1)
    assert ends == [1] * ended + [0] * (OPENING[call] - ended), "every call of the opening, and no call is passed over"
    assert OPENING[call] / 2 < ended < OPENING[call]
    assert failed == ended if lasting == ONCE else failed >= ended


def fail_and_restart(stage: Stage, folder: Path, fault: tuple[str, str, str], messages: int) -> None:
    """A bridge that meets the fault under load, and a sound one that drains what it left."""
    stage.launch().kill()  # once in peace: without a session nothing is kept for it
    log = folder / "strace.log"
    wrapper = failing(*fault, [stage.queue_path / name for name in QUEUE_FILES], log)
    bridge = stage.bridge(wrapper=wrapper).start()
    wait_until(lambda: not bridge.running or len(stage.log("connected to the broker")) > 1, 15)
    publisher = stage.publish(messages, messages_per_second=MESSAGES_PER_SECOND)
    with StatusReader(stage.settings) as status:
        wait_until(lambda: not bridge.running or stage.cloud.unique == messages or "disk full" in reason(status), 20)
    if bridge.running:
        bridge.kill()  # as somebody does who turns the machine off and on again
    else:
        assert bridge.exit_status == 1
        *_, last, hint = stage_errors(stage)
        assert last.startswith(
            f"edge-bridge: error: the disk failed under {stage.queue_path / 'data.db'}: SQLITE_IOERR_"
        )
        assert hint == "hint: check the medium; the last batch was not confirmed"
    failed = injected(log)
    figures.count(cases=1, failed_calls=failed)
    assert failed, "the fault never came"
    assert "Traceback" not in (stage.folder / "bridge.err").read_text()
    stage.launch()
    stage.drain()
    stage.audit(publisher).assert_kept()


def reason(status: StatusReader) -> str:
    return str(status.whole.get("reason"))


def stage_errors(stage: Stage) -> list[str]:
    return [line for line in (stage.folder / "bridge.err").read_text().splitlines() if line[:1] != "{"]


@pytest.mark.parametrize(
    ("call", "error", "when"),
    [(WRITE, "EIO", "40"), (WRITE, "ENOSPC", "40+"), (SYNC, "EIO", "4"), (SYNC, "ENOSPC", "2+")],
)
def test_the_whole_bridge_ends_in_a_line_or_waits_and_confirms_nothing_that_is_not_on_disk(
    stage: Stage, tmp_path: Path, call: str, error: str, when: str
) -> None:
    fail_and_restart(stage, tmp_path, (call, error, when), 600)


@pytest.mark.soak
@pytest.mark.parametrize("call", [WRITE, SYNC])
@pytest.mark.parametrize("number", range(1, FIRST + 1))
def test_the_whole_bridge_at_each_of_the_first_hundred(stage: Stage, tmp_path: Path, call: str, number: int) -> None:
    fail_and_restart(stage, tmp_path, (call, "EIO", f"{number}+"), 1800)
