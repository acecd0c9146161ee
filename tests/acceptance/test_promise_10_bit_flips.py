"""Promise 10: a damaged database is found, set aside and salvaged while the bridge works; what is lost is counted.

A stopped bridge leaves a backlog, pages of its file are overwritten, the real command is started again. The cloud gets
nothing altered, and salvaged + reported lost = total. Many more states: tests/integration/test_salvage.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from tests.harness import figures, wait_until
from tests.harness.bridge import BridgeProcess
from tests.harness.cloud import answer
from tests.harness.stage import Stage, prediction

PAGE = 4096
BACKLOG = 3000
UP_SECONDS = 10
SIZES = {False: 60, True: 9000}  # characters of a payload; the long ones fill overflow pages


def sized(number: int) -> tuple[str, bytes]:
    name, payload = prediction(number)
    return name, orjson.dumps(orjson.loads(payload) | {"note": "n" * SIZES[number % 50 == 0]})


def overwrite(file: Path, page: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek((page - 1) * PAGE)
        opened.write(content)


def destroy_header(file: Path) -> None:
    overwrite(file, 1, bytes(PAGE))


def cut_end(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size * 3 // 4)


def damage_pages(seed: int) -> Callable[[Path], None]:
    """A twentieth of the pages, leaving out the first: zeroed, or with flipped bits."""

    def damage(file: Path) -> None:
        chance = random.Random(seed)
        content = file.read_bytes()
        for page in chance.sample(range(2, len(content) // PAGE + 1), len(content) // PAGE // 20):
            altered = bytearray(content[(page - 1) * PAGE : page * PAGE])
            for _ in range(20):
                altered[chance.randrange(PAGE)] ^= 1 << chance.randrange(8)
            overwrite(file, page, bytes(PAGE) if chance.random() < 0.5 else bytes(altered))

    return damage


def stop(bridge: BridgeProcess) -> None:
    bridge.terminate()
    assert bridge.wait() == 0


def reports(stage: Stage) -> list[dict[str, int]]:
    return [orjson.loads(path.read_bytes()) for path in sorted(stage.queue_path.glob("data.db.damaged-*-report.json"))]


def delivered_frames(stage: Stage) -> set[str]:
    """The frames of the backlog that the cloud has, each with the payload that was published."""
    wanted = dict(sized(number) for number in range(BACKLOG))
    events = [orjson.loads(arrivals[0].data) for arrivals in stage.cloud.stored.values()]
    frames = {event["data"]["frame"]: event["data"] for event in events}
    for name in frames.keys() & wanted.keys():
        assert frames[name] == orjson.loads(wanted[name])
    return frames.keys() & wanted.keys()


@pytest.mark.parametrize(
    "damage",
    [destroy_header, cut_end, damage_pages(1), damage_pages(2), damage_pages(3)],
    ids=["header", "cut", "pages-1", "pages-2", "pages-3"],
)
def test_a_bridge_with_a_damaged_file_is_up_at_once_and_salvages_or_counts_every_row(
    stage: Stage, damage: Callable[[Path], None]
) -> None:
    publisher = stage.leave_backlog(BACKLOG, sized)
    file = stage.queue_path / "data.db"
    damage(file)
    damaged = file.read_bytes()
    started_at = time.monotonic()
    bridge = stage.launch()
    up_seconds = time.monotonic() - started_at
    assert up_seconds < UP_SECONDS
    stage.drain()
    wait_until(lambda: stage.log("salvaged"), what="salvaged to the end")
    stage.drain()
    stop(bridge)
    (report,) = reports(stage)
    kept = stage.queue_path / str(report["file"])
    assert kept.stat().st_size == len(damaged), "kept aside"
    assert report["waiting"] + report["lost"] == report["total"]
    assert stage.log("is damaged and set aside")
    frames = delivered_frames(stage)
    lost = set(publisher.confirmed) - frames
    told = stage.losses()
    reported = told.get("damaged", 0) + told.get("dead", 0)
    figures.count(rows=BACKLOG, salvaged=report["waiting"], unreadable=len(lost), reported=reported)
    figures.most(up_s=up_seconds)
    assert reported >= len(lost), "lost rows were not reported"
    assert len(lost) < BACKLOG // 2
    assert not frames - set(publisher.tried)
    assert not stage.cloud.altered


def test_damage_while_running_is_set_aside_and_messages_go_on_flowing(stage: Stage) -> None:
    publisher = stage.leave_backlog(BACKLOG, sized)
    stage.cloud.always(answer(401))
    bridge = stage.bridge().start()
    wait_until(lambda: len(stage.log("subscribed to")) >= 2, what="subscribed")
    damage_pages(4)(stage.queue_path / "data.db")
    stage.cloud.always()
    bridge.hup()  # probe at once
    wait_until(lambda: stage.log("salvaged"), 20, "found and salvaged")
    stage.drain()
    assert bridge.running
    stop(bridge)
    told = stage.losses()
    lost = set(publisher.confirmed) - delivered_frames(stage)
    assert told.get("damaged", 0) + told.get("dead", 0) >= len(lost)
    assert not stage.cloud.altered
