"""Promise 15: a row that cannot be decoded is dead once, all others flow, and the counts are those of the table."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud import answer
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

UNDECODABLE = {
    "a pickle": pickle.dumps({"label": "crack"}),
    "half a document": b'{"label":',
    "nothing": b"",
    "no bytes at all": None,
    "text that is no JSON": "crack",
    "bytes that are not UTF-8": b'"\xff\xfe"',
}
FROM_ELSEWHERE = [b'{"label":"crack"}', '{"label":"text"}', b"[1, 2]", b"null"]  # not ours, and JSON all the same
ODD_VALUES = (
    "5, 1700000000",
    "0.5, 1700000000",
    "9e999, 1700000000",
    "CAST(x'ff7b' AS TEXT), 1700000000",  # text that is not UTF-8
    "x'7b7d', 'yesterday'",
    "x'7b7d', x'00'",
    "x'7b7d', 1e300",  # beyond all calendars
    "x'7b7d', -1e300",
    "x'7b7d', 9e999",
    "x'7b7d', NULL",
)


def insert(stage: CloudStage, *rows: object, checksums: bool) -> None:
    """Insert rows into the stopped queue as somebody with a SQLite shell would, or one who knows of our checksum."""
    with stage.database() as connection:
        connection.executemany(
            "INSERT INTO ack_queue_default (data, timestamp, status, crc) VALUES (?, 1700000000, ?, ?)",
            [
                (row, number % 2, zlib.crc32(row) if checksums and isinstance(row, bytes) else None)
                for number, row in enumerate(rows)
            ],
        )


def counts(stage: CloudStage) -> dict[int, int]:
    return dict(stage.select("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))


def queue_counts(stage: CloudStage) -> tuple[int, int, int]:
    """Delivered, dead and waiting rows as the bridge counts them."""
    queue = stage.status["queue"]
    return queue["delivered"], queue["dead"], queue["ready"] + queue["taken"]


@pytest.mark.parametrize("checksums", [False, True])
def test_rows_that_cannot_be_decoded_die_once_and_all_others_flow(
    tmp_path: Path, mosquitto: Mosquitto, checksums: bool
) -> None:
    """Also I9: the loss ledger has each of them once, over restarts too."""
    alive, dead = 20 + len(FROM_ELSEWHERE), len(UNDECODABLE)
    with on_stage(tmp_path, mosquitto, answer(401)) as stage:
        stage.publish_numbered(20)
        stage.wait_stored(20)
        stage.stop()
        insert(stage, *UNDECODABLE.values(), *FROM_ELSEWHERE, checksums=checksums)
        stage.cloud.always()
        for _ in range(2):
            stage.start()
            alive += len(stage.publish_numbered(5))
            wait_until(lambda alive=alive: queue_counts(stage) == (alive, dead, 0), what="counted")  # type: ignore[misc]
            stage.stop()
            assert counts(stage) == {5: alive, 9: dead}
        assert set(stage.tried) <= stage.cloud.stored.keys()
        assert stage.cloud.duplicates == 0
        assert stage.select("SELECT DISTINCT reason FROM edge_dead") == [("undecodable",)]
        assert stage.select("SELECT reason, SUM(messages) FROM edge_loss GROUP BY reason") == [("dead", dead)]
        kept = stage.select("SELECT data FROM ack_queue_default WHERE status = 9 ORDER BY _id")
        assert [data for (data,) in kept] == list(UNDECODABLE.values())
        others = [json.loads(data)["data"] for name, data in stage.cloud.bodies.items() if name not in stage.tried]
        assert others == [{"label": "crack"}, {"label": "text"}, [1, 2], None]


def test_no_value_of_any_column_stops_the_others(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Columns of SQLite hold what they are given. Such a row is delivered or dead, and counted as that."""
    with on_stage(tmp_path, mosquitto) as stage:
        stage.stop()
        with stage.database() as connection:
            for values in ODD_VALUES:
                connection.execute(f"INSERT INTO ack_queue_default (data, timestamp, status) VALUES ({values}, 0)")  # noqa: S608
        stage.start()
        stage.publish_numbered(3)
        wait_until(lambda: set(stage.tried) <= stage.cloud.stored.keys(), what="the others delivered")
        wait_until(lambda: queue_counts(stage)[2] == 0 and sum(queue_counts(stage)) > 3, what="settled")
        delivered, dead, _ = queue_counts(stage)
        assert delivered + dead == 3 + len(ODD_VALUES)
        stage.stop()
        assert counts(stage) == {code: number for code, number in {5: delivered, 9: dead}.items() if number}
