"""Damaged files: the cheap looks that find one at start, setting it aside with all that belongs to it, its report.

A damaged file is renamed, never opened for writing, and never deleted before it was salvaged to the end:
`data.db.damaged-<UTC time>` with `-wal`, `-journal` and `-mark` behind it, so that SQLite finds the WAL of the copy as
well. Its salvage (`salvage.py`) is done when `…-report.json` stands beside it. Then a bounded number is kept (I5).
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from bridge.disk_queue.file import DAMAGE_HINT, FILE_NAME, first_bytes, is_ours, sync_folder
from bridge.disk_queue.mark import MARK_SUFFIX
from bridge.disk_queue.pages import DATABASE_MAGIC, Wal, read_wal
from bridge.errors import QueueDamagedError

ASIDE_PREFIX = f"{FILE_NAME}.damaged-"
WHOLE_KEPT = 3  # of those of which every row was salvaged
BROKEN_KEPT = 5  # of those of which rows are missing: a person may want to look at the newest
REPORT_SUFFIX = "-report.json"
_COMPANIONS = ("-wal", "-journal", MARK_SUFFIX)
_WAL_HEADER_BYTES = 32


class Report(NamedTuple):
    """What became of the rows of a damaged file. `waiting` are to be uploaded; `altered` died with reason `crc`.

    `lost` and `total` count rows that were waiting; None: nothing is left that says how many there were.
    """

    file: str
    salvaged: int
    waiting: int
    altered: int
    lost: int | None
    total: int | None

    @property
    def is_whole(self) -> bool:
        return self.lost == 0


# --- looking ---------------------------------------------------------------------------------------------------


def look_at(folder: Path) -> Wal:
    """Look at the file before SQLite does, without reading much of it; raises QueueDamagedError.

    SQLite deletes a WAL whose database is empty, and forgets a WAL's rest at the first bad checksum; so the WAL, which
    is small and after a clean stop not there at all, is read to its end.
    """
    file = folder / FILE_NAME
    size_bytes, wal_bytes = _size_bytes(file), _size_bytes(Path(f"{file}-wal"))
    if not size_bytes and wal_bytes > _WAL_HEADER_BYTES:
        raise QueueDamagedError(f"{file} is empty or gone, and its -wal is not", DAMAGE_HINT)
    if size_bytes and is_ours(file) and (trouble := _header_trouble(file, size_bytes, has_wal=wal_bytes > 0)):
        raise QueueDamagedError(f"{file} is damaged: {trouble}", DAMAGE_HINT)
    wal = read_wal(Path(f"{file}-wal"))
    if wal.is_damaged:
        raise QueueDamagedError(f"{file}-wal is damaged: SQLite would forget {wal.bad_frames} pages of it", DAMAGE_HINT)
    return wal


def _header_trouble(file: Path, size_bytes: int, *, has_wal: bool) -> str:
    """Return what is wrong with a header of ours: https://sqlite.org/fileformat2.html#the_database_header."""
    start = first_bytes(file)
    page_bytes = int.from_bytes(start[16:18], "big")
    versions, fractions, encoding = start[18:20], start[20:24], int.from_bytes(start[56:60])
    is_right = versions in {b"\1\1", b"\2\2"} and fractions == b"\0\x40\x20\x20"
    if not start.startswith(DATABASE_MAGIC) or not is_right or encoding > 1:  # 0: its first table is in the WAL
        return "its header is not SQLite's"
    count_is_valid = start[24:28] == start[92:96] and not has_wal
    if count_is_valid and size_bytes < int.from_bytes(start[28:32], "big") * page_bytes:
        return "its end is missing"
    return ""


def _size_bytes(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0


# --- setting aside ---------------------------------------------------------------------------------------------


def set_aside(folder: Path) -> Path:
    """Rename the damaged file and its companions, and sync the folder. The connection may still be open.

    SQLite neither writes back nor deletes the WAL of a database that was renamed. The database goes first: without
    it a WAL that was left behind by a crash in between is found by the next look and joins it.
    """
    file = folder / FILE_NAME
    aside = _name_for(folder) if file.exists() else _widow(folder) or _name_for(folder)
    for suffix in ("", *_COMPANIONS):
        with suppress(FileNotFoundError):
            Path(f"{file}{suffix}").rename(f"{aside}{suffix}")
    sync_folder(folder)
    return aside


def _name_for(folder: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = (folder / f"{ASIDE_PREFIX}{stamp}{again}" for again in ("", *(f".{n}" for n in range(1, 1000))))
    return next(name for name in names if not any(folder.glob(f"{name.name}*")))


def _widow(folder: Path) -> Path | None:
    """Return the newest file that was set aside without its WAL."""
    alone = [aside for aside in asides(folder) if not Path(f"{aside}-wal").exists() and report_of(aside) is None]
    return alone[-1] if alone else None


def asides(folder: Path) -> list[Path]:
    """Return the files that were set aside, oldest first, also those of which only companions are left."""
    names = {str(path).partition("-wal")[0].partition(MARK_SUFFIX)[0] for path in folder.glob(f"{ASIDE_PREFIX}*")}
    return sorted({Path(name.partition("-journal")[0].partition("-report")[0]) for name in names})


def pending(folder: Path) -> list[Path]:
    """Return the files that were set aside and are not salvaged to the end."""
    return [aside for aside in asides(folder) if report_of(aside) is None]


def report_of(aside: Path) -> Report | None:
    """Return the report of a salvage that is done."""
    try:
        told: dict[str, Any] = orjson.loads(Path(f"{aside}{REPORT_SUFFIX}").read_bytes())
        return Report(**{name: told[name] for name in Report._fields})
    except (OSError, ValueError, KeyError):
        return None


def write_report(aside: Path, report: Report) -> None:
    """Write down that a file is salvaged to the end, and how that went."""
    draft = Path(f"{aside}{REPORT_SUFFIX}.new")
    draft.write_bytes(orjson.dumps(report._asdict(), option=orjson.OPT_INDENT_2) + b"\n")
    draft.chmod(0o600)
    draft.replace(f"{aside}{REPORT_SUFFIX}")


def delete_surplus(folder: Path) -> list[Report]:
    """Delete the oldest damaged files that were salvaged to the end, all but the newest few; return their reports.

    What was missing in one of them is in the loss ledger since its salvage.
    """
    reported = [(aside, report) for aside in asides(folder) if (report := report_of(aside))]
    whole = [pair for pair in reported if pair[1].is_whole]
    broken = [pair for pair in reported if not pair[1].is_whole]
    surplus = whole[:-WHOLE_KEPT] + broken[:-BROKEN_KEPT]
    for aside, _ in surplus:
        for suffix in ("", *_COMPANIONS, REPORT_SUFFIX):  # the report last: a file without one is salvaged again
            Path(f"{aside}{suffix}").unlink(missing_ok=True)
    return [report for _, report in surplus]
