"""Promise 12: with a flipped or cut WAL the bridge starts, gives no row id twice, and tells of every gap it can see.

SQLite drops all that stands behind a bad checksum without a word; here those rows come back. Where the WAL was cut
off nothing is left to bring back, but the mark beside the file tells which rows are missing.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.harness import figures, wait_until
from tests.harness.stage import Stage, prediction

MESSAGES = 1500
FRAME = 24 + 4096  # of the WAL: header and page


def later(number: int) -> tuple[str, bytes]:
    return prediction(MESSAGES + number)


def highest_id(stage: Stage) -> int:
    with closing(sqlite3.connect(stage.queue_path / "data.db")) as connection:
        (newest,) = connection.execute("SELECT MAX(_id) FROM ack_queue_default").fetchone()
        return int(newest)


def end_of_last_but_one(wal: bytearray) -> int:
    """Where the last transaction begins: a flip behind that looks like a write that a power cut tore."""
    commits = [at for at in range(32, len(wal), FRAME) if wal[at + 4 : at + 8] != bytes(4)]
    return commits[-2] + FRAME


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_rows_behind_a_flipped_bit_of_the_wal_are_delivered_and_no_id_is_used_again(stage: Stage, part: float) -> None:
    publisher = stage.leave_backlog(MESSAGES, killed=True)
    wal = stage.queue_path / "data.db-wal"
    content = bytearray(wal.read_bytes())
    content[int(end_of_last_but_one(content) * part)] ^= 0x10
    wal.write_bytes(content)
    bridge = stage.launch()
    more = stage.publish(100, payload=later)
    stage.drain()
    wait_until(lambda: stage.log("salvaged"), what="salvaged")
    stage.drain()  # what was salvaged goes before what comes now
    bridge.terminate()
    assert bridge.wait() == 0
    assert stage.log("is damaged and set aside")
    assert highest_id(stage) > MESSAGES
    assert list(stage.queue_path.glob("data.db.damaged-*-wal"))
    assert set(more.confirmed) <= stage.frames()
    lost = set(publisher.confirmed) - stage.frames()
    figures.count(rows=MESSAGES, gone=len(lost), reported=sum(stage.losses().values()))
    assert len(lost) <= 50, "the flip costs no more than the page that it hit"
    assert len(lost) <= sum(stage.losses().values()), "lost rows were not reported"


@pytest.mark.parametrize("part", [0.0, 0.3, 0.97])
def test_what_a_wal_that_was_cut_off_cost_is_told_and_no_id_is_used_again(stage: Stage, part: float) -> None:
    publisher = stage.leave_backlog(MESSAGES, killed=True)
    wal = stage.queue_path / "data.db-wal"
    last_row_at = wal.read_bytes().find(prediction(MESSAGES - 1)[1])  # behind it stands what costs no row
    assert last_row_at > 0
    with wal.open("r+b") as file:
        file.truncate(int(last_row_at * part))
    bridge = stage.launch()
    more = stage.publish(100, payload=later)
    stage.drain()
    bridge.terminate()
    assert bridge.wait() == 0
    assert highest_id(stage) > MESSAGES
    assert set(more.confirmed) <= stage.frames()
    lost = set(publisher.confirmed) - stage.frames()
    figures.count(rows=MESSAGES, gone=len(lost), reported=sum(stage.losses().values()))
    assert lost, "the rest of the WAL is gone for good"
    assert sum(stage.losses().values()) >= len(lost)
    assert stage.log("are gone, they are in the loss ledger") or stage.log("could not be read")
