"""Opening a queue whatever state its file is in; and, while no bridge runs, looking it through and repairing it."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from bridge.disk_queue.aside import Report, look_at, pending, set_aside, write_report
from bridge.disk_queue.faults import mapped
from bridge.disk_queue.file import FILE_NAME, is_sealed, readable
from bridge.disk_queue.mark import read_mark
from bridge.disk_queue.queue import DiskQueue
from bridge.disk_queue.rows import DEAD, DELIVERED
from bridge.disk_queue.salvage import Salvager, Tally
from bridge.errors import QueueDamagedError, QueueUnusableError

Progress = Callable[[int, int], None]  # how much is done of how much

_TROUBLES_MAX = 20  # lines of a report; the counts are complete


class Opened(NamedTuple):
    """A queue that can be worked with. `damage`: why the file before it was set aside just now."""

    queue: DiskQueue
    damage: QueueDamagedError | None
    salvagers: tuple[Salvager, ...]  # files whose rows are on their way back, oldest first; the queue holds meanwhile


def open_queue(folder: Path, make: Callable[[Path], DiskQueue] = DiskQueue) -> Opened:
    """Open the queue; a damaged file is set aside and a new one begun, above all ids it can have given out.

    What the damaged file knew beside its rows is taken over at once; the rows are the salvagers'.
    """
    damage = None
    try:
        queue = make(folder)
    except QueueDamagedError as error:
        damage = error
        queue = make(folder)
    salvagers = tuple(Salvager(aside) for aside in pending(folder))
    if salvagers:
        queue.withhold(True)
        with queue.transaction():
            queue.skip_ids(max(salvager.next_id for salvager in salvagers) - 1)
            for salvager in reversed(salvagers):
                salvager.begin(queue)
    return Opened(queue, damage, salvagers)


class Verification(NamedTuple):
    """What `verify` found. `troubles` are for people, at most 20 of them; empty: the queue is sound."""

    rows: dict[int, int]  # by status code, as counted
    altered: int
    troubles: tuple[str, ...]
    pending: tuple[str, ...]  # files set aside that are not salvaged to the end
    losses: Mapping[str, int] = MappingProxyType({})  # messages ever lost, by reason

    @property
    def is_sound(self) -> bool:
        return not self.troubles and not self.pending


def verify(folder: Path, progress: Progress = lambda _done, _of: None) -> Verification:
    """Read the whole queue of a stopped bridge and change nothing: structure, checksums, counts, WAL, mark."""
    unsalvaged = tuple(aside.name for aside in pending(folder))
    if not (folder / FILE_NAME).exists():
        return Verification({}, 0, (f"there is no {folder / FILE_NAME}",), unsalvaged)
    rows: Counter[int] = Counter()
    altered = 0
    troubles: list[str] = []
    losses: dict[str, int] = {}
    try:
        with mapped(folder):
            look_at(folder)
            with _read_only(folder / FILE_NAME) as connection:
                _refuse_foreign(connection, folder / FILE_NAME)
                troubles += _structure(connection)
                for number, (status, is_sound) in enumerate(_rows(connection)):
                    rows[status] += 1
                    altered += not is_sound and status < DELIVERED
                    if number % 1000 == 0:
                        progress(number, _newest_row(connection))
                troubles += _counts(connection, rows, folder / FILE_NAME)
                losses = _losses(connection)
    except QueueDamagedError as error:
        troubles.append(error.message)
    if altered:
        troubles.append(f"{altered} waiting rows are not what was stored (checksum)")
    return Verification(dict(rows), altered, tuple(dict.fromkeys(troubles))[:_TROUBLES_MAX], unsalvaged, losses)


@contextmanager
def _read_only(file: Path) -> Iterator[sqlite3.Connection]:
    beside = [Path(f"{file}{suffix}") for suffix in ("-shm", "-wal")]
    made = [path for path in beside if not path.exists()]
    try:
        # A reader neither writes the WAL back nor deletes it, but makes an empty one where there is none.
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
            connection.text_factory = readable
            yield connection
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _refuse_foreign(connection: sqlite3.Connection, file: Path) -> None:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ack_queue_default'").fetchone():
        return
    if is_sealed(file):
        raise QueueDamagedError(f"{file} is damaged: its schema is not ours", "")
    raise QueueUnusableError(f"{file} is a database of another program", "nothing was changed; check queue.path")


def _structure(connection: sqlite3.Connection) -> list[str]:
    found = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_TROUBLES_MAX})")]
    return [] if found == ["ok"] else [line for text in found for line in text.splitlines()]


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, bool]]:
    has_crc = any(row[1] == "crc" for row in connection.execute("PRAGMA table_info(ack_queue_default)"))
    column = "crc" if has_crc else "NULL"
    has_noted = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'edge_delivered'").fetchone()
    is_noted = "EXISTS (SELECT 1 FROM edge_delivered WHERE _id BETWEEN first_id AND last_id)" if has_noted else "0"
    status = f"CASE WHEN status < 2 AND {is_noted} THEN {DELIVERED} ELSE status END"
    rows = connection.execute(f"SELECT {status}, CAST(data AS BLOB), {column} FROM ack_queue_default NOT INDEXED")
    for status, data, crc in rows:
        yield status if isinstance(status, int) else -1, crc is None or zlib.crc32(data or b"") == crc


def _newest_row(connection: sqlite3.Connection) -> int:
    newest, oldest = connection.execute(
        "SELECT (SELECT MAX(_id) FROM ack_queue_default), (SELECT MIN(_id) FROM ack_queue_default)"
    ).fetchone()
    return int(newest - oldest + 1)


def _counts(connection: sqlite3.Connection, rows: Counter[int], file: Path) -> Iterator[str]:
    waiting = rows[0] + rows[1] + rows[2]
    if strange := {status: count for status, count in rows.items() if status not in {0, 1, 2, DELIVERED, DEAD}}:
        yield f"rows with a status that there is not: {strange}"
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'edge_state'").fetchone():
        noted = connection.execute("SELECT waiting, delivered, dead FROM edge_state").fetchone()
        if noted is not None and noted != (waiting, rows[DELIVERED], rows[DEAD]):
            yield f"the counts are wrong: noted {noted}, there are {(waiting, rows[DELIVERED], rows[DEAD])}"
    newest = connection.execute("SELECT MAX(seq) FROM sqlite_sequence WHERE name = 'ack_queue_default'").fetchone()[0]
    mark = read_mark(file)
    if mark and mark.newest > (newest or 0):
        yield f"rows {(newest or 0) + 1} to {mark.newest} were stored and are gone"


def _losses(connection: sqlite3.Connection) -> dict[str, int]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'edge_loss_total'").fetchone():
        return {}
    return dict(connection.execute("SELECT reason, messages FROM edge_loss_total ORDER BY reason"))


def repair(folder: Path, progress: Progress = lambda _done, _of: None) -> list[Report]:
    """Set the file of a stopped bridge aside if it is not sound, and salvage all that waits for it, to the end."""
    found = verify(folder)
    if found.troubles and (folder / FILE_NAME).exists():
        with mapped(folder):
            set_aside(folder)
    if not pending(folder):
        return []
    opened = open_queue(folder)
    try:
        return [_salvage(opened.queue, salvager, progress) for salvager in opened.salvagers]
    finally:
        opened.queue.close()


def _salvage(queue: DiskQueue, salvager: Salvager, progress: Progress) -> Report:
    with closing(salvager):
        with queue.transaction():
            tally: Tally = salvager.begin(queue)
        while portion := salvager.read(tally):
            with queue.transaction():
                tally = salvager.store(queue, tally, portion)
            progress(tally.places, salvager.places)
        with queue.transaction():
            report = salvager.finish(queue, tally)
        write_report(salvager.file, report)
        return report
