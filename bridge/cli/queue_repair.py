"""`edge-bridge queue verify|repair`: look a stopped queue through, and mend it.

Both take the queue's lock first, so never while a bridge runs; which mends its queue by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.cli.output import print_json, progress
from bridge.config import load_from_environment
from bridge.disk_queue import FolderLock, Report, Verification, delete_surplus
from bridge.disk_queue import repair as repair_queue
from bridge.disk_queue import verify as verify_queue
from bridge.errors import QueueUnusableError

_NAMES = {0: "waiting", 1: "waiting", 2: "waiting", 5: "delivered", 9: "dead"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what both take."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def verify(arguments: argparse.Namespace) -> int:
    """Print what is wrong with the queue; 0 if nothing is. Changes nothing."""
    with _folder(arguments) as folder, progress("verifying") as show:
        found = verify_queue(folder, show)
    if arguments.json:
        print_json({"sound": found.is_sound, **_verification(found)})
    else:
        for line in _lines(found):
            print(line)
    return 0 if found.is_sound else 1


def repair(arguments: argparse.Namespace) -> int:
    """Set a damaged file aside and salvage its rows; 0 if none was lost."""
    with _folder(arguments) as folder, progress("salvaging") as show:
        reports = repair_queue(folder, show)
        deleted = delete_surplus(folder)
    if arguments.json:
        print_json({"repaired": [report._asdict() for report in reports], "deleted": [old.file for old in deleted]})
    else:
        for report in reports:
            print(_sentence(report))
        if not reports:
            print("nothing to repair")
        for old in deleted:
            print(f"{old.file}: deleted, there are newer ones")
    return 0 if all(report.is_whole for report in reports) else 1


@contextmanager
def _folder(arguments: argparse.Namespace) -> Iterator[Path]:
    folder = load_from_environment(arguments.config, needs_upload=False).settings.queue.path
    if not folder.is_dir():
        raise QueueUnusableError(f"there is no queue in {folder}", "check queue.path")
    lock = FolderLock(folder)
    try:
        yield folder
    finally:
        lock.release()


def _counts(rows: dict[int, int]) -> dict[str, int]:
    counts = dict.fromkeys(("waiting", "delivered", "dead", "strange"), 0)
    for status, count in rows.items():
        counts[_NAMES.get(status, "strange")] += count
    return counts


def _verification(found: Verification) -> dict[str, object]:
    return {
        "rows": _counts(found.rows),
        "altered": found.altered,
        "troubles": list(found.troubles),
        "not_salvaged": list(found.pending),
    }


def _lines(found: Verification) -> Iterator[str]:
    counts = _counts(found.rows)
    if found.rows or found.is_sound:  # else it could not be opened, and nobody has counted
        yield ", ".join(f"{counts[name]} {name}" for name in ("waiting", "delivered", "dead"))
    yield from (f"wrong: {trouble}" for trouble in found.troubles)
    yield from (f"not salvaged yet: {name}" for name in found.pending)
    yield "the queue is sound" if found.is_sound else "`edge-bridge queue repair` salvages what can be read"


def _sentence(report: Report) -> str:
    lost = "an unknown number" if report.lost is None else report.lost
    return f"{report.file}: {report.salvaged} rows salvaged, {report.waiting} of them waiting; {lost} lost"
