"""Promise 11: a byte that flipped inside a payload on disk is never delivered as good; the row is dead, reason `crc`.

SQLite finds nothing wrong with such a file: there are no checksums in it but ours.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import orjson

from tests.harness import figures
from tests.harness.stage import Stage, prediction

BACKLOG = 200
FLIPPED = (7, 8, 150)


def flip(file: Path, number: int) -> None:
    """Flip one bit of the label wherever this payload stands: where a row has moved away, its old bytes are left."""
    payload = prediction(number)[1]
    content = file.read_bytes()
    assert payload in content
    file.write_bytes(content.replace(payload, payload.replace(b"crack", b"craco")))


def test_rows_whose_bytes_flipped_are_dead_with_reason_crc_and_all_others_flow(stage: Stage) -> None:
    publisher = stage.leave_backlog(BACKLOG)
    file = stage.queue_path / "data.db"
    for number in FLIPPED:
        flip(file, number)
    bridge = stage.launch()
    stage.drain()
    bridge.terminate()
    assert bridge.wait() == 0
    names = {prediction(number)[0] for number in FLIPPED}
    assert stage.audit(publisher).lost == names
    bodies = [orjson.loads(arrivals[0].data)["data"] for arrivals in stage.cloud.stored.values()]
    assert {body["label"] for body in bodies if "label" in body} == {"crack"}
    with closing(sqlite3.connect(file)) as connection:
        dead = connection.execute(
            "SELECT data, reason FROM ack_queue_default JOIN edge_dead ON _id = row_id WHERE status = 9"
        ).fetchall()
    assert {orjson.loads(data)["data"]["frame"] for data, _ in dead} == names
    assert {reason for _, reason in dead} == {"crc"}
    assert stage.losses() == {"dead": len(FLIPPED)}
    figures.count(flipped=len(FLIPPED), delivered_altered=0)
    assert not list(stage.queue_path.glob("*.damaged-*")), "the file itself is sound"
