"""`edge-bridge queue …` on a running bridge and on a stopped one: the same answers, by one and the same test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import wait_until
from tests.harness.bridge import REPOSITORY, environment
from tests.harness.cloud import answer, reject_ids
from tests.harness.cloud_stage import TOPIC, CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

BAD = ["message-000002", "message-000005"]


class Scene:
    """Five delivered, two dead, one refused, three waiting; `live` says whether the bridge still runs."""

    def __init__(self, stage: CloudStage, live: bool) -> None:
        self.stage, self.live = stage, live
        stage.cloud.always(reject_ids(BAD))
        stage.publish_numbered(7)
        stage.publish_ids(["too-large"], filler="x" * 20_000)
        stage.wait_settled(7)
        wait_until(lambda: stage.messages["refused"] == 1, what="refused")
        stage.cloud.always(answer(503))
        stage.publish_ids(["w1", "w2", "w3"])
        wait_until(lambda: stage.status["cloud"]["state"] == "offline", what="away")
        stage.wait_stored(10)
        if not live:
            stage.stop()

    def run(self, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
        return subprocess.run(
            [sys.executable, "-m", "bridge", "queue", *words],
            env=own | {"PYTHONPATH": str(REPOSITORY)} | environment(self.stage.settings),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def ask(self, *words: str) -> list[dict[str, Any]]:
        done = self.run(*words, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def ids(self, *words: str) -> list[str]:
        return [item["id"] for item in self.ask("list", *words)]

    def deliver_all(self) -> None:
        self.stage.cloud.always()
        if not self.live:
            self.stage.start()


@pytest.fixture(params=["live", "offline"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Scene]:
    settings = {"intake.max_payload_bytes": 10_000}
    with on_stage(tmp_path, mosquitto, settings=settings) as stage:
        yield Scene(stage, request.param == "live")


def test_looking_shows_what_is_there(scene: Scene) -> None:
    (stats,) = scene.ask("stats")
    assert (stats["ready"] + stats["taken"], stats["delivered"], stats["dead"]) == (3, 5, 2)
    assert (stats["losses"], stats["lost"]) == ({"dead": 2, "too_large": 1}, 3)
    assert scene.ids() == [name for name in scene.stage.tried if name != "too-large"]
    assert scene.ids("--state", "dead") == BAD
    assert scene.ids("--reason", "refused") == BAD
    assert scene.ids("--id", "w2", "--id", "message-000002") == ["message-000002", "w2"]
    assert scene.ids("--topic", "edge/+/stage", "--state", "delivered") == [
        name for name in scene.stage.tried[:7] if name not in BAD
    ]
    assert scene.ids("--topic", "edge/other/#") == []
    assert scene.ids("--older-than", "1h") == []
    (dead,) = scene.ask("list", "--id", BAD[0])
    assert (dead["state"], dead["topic"], dead["died"]["reason"], dead["died"]["status_code"]) == (
        *("dead", TOPIC, "refused"),
        422,
    )
    assert dead["died"]["attempts"] >= 2
    shown = json.loads(scene.run("show", BAD[0]).stdout)
    assert (shown["id"], shown["event"]["data"]["event_id"]) == (BAD[0], BAD[0])


def test_the_ledger_is_listed_and_selected_from(scene: Scene) -> None:
    losses = scene.ask("losses")
    assert sum(item["messages"] for item in losses) == 3
    assert sorted(name for item in losses for name in item["ids"]) == BAD
    (refused,) = scene.ask("losses", "--reason", "too_large")
    assert (refused["messages"], refused["topic"]) == (1, TOPIC)
    table = scene.run("losses").stdout.splitlines()
    assert table[0].split() == ["loss", "until", "reason", "messages", "topic", "ids"]
    assert len(table) == len(losses) + 1


def test_requeued_rows_are_delivered_and_every_count_is_right(scene: Scene) -> None:
    assert scene.ask("requeue", "--id", BAD[0]) == [{"rows": 1}]
    (stats,) = scene.ask("stats")
    assert (stats["ready"] + stats["taken"], stats["dead"]) == (4, 1)
    scene.deliver_all()
    wait_until(lambda: BAD[0] in scene.stage.cloud.stored, what="delivered after all")
    wait_until(lambda: scene.stage.status["queue"]["delivered"] == 9, what="counted")
    assert BAD[1] not in scene.stage.cloud.stored
    (row,) = scene.ask("list", "--id", BAD[0])
    assert (row["state"], row["died"]["reason"]) == ("delivered", "refused"), "its history is kept"
    scene.stage.stop()
    statuses = dict(scene.stage.select("SELECT status, COUNT(*) FROM ack_queue_default GROUP BY status"))
    assert statuses == {5: 9, 9: 1}


def test_what_destroys_needs_a_yes_and_writes_the_ledger(scene: Scene) -> None:
    refused = scene.run("discard", "--state", "dead")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == "hint: add --yes to do it"
    assert scene.ids("--state", "dead") == BAD
    assert scene.run("discard", "--yes").returncode == 2, "without a selection"
    assert scene.ask("discard", "--id", BAD[0], "--yes") == [{"rows": 1}]
    assert scene.ask("purge", "--state", "delivered", "--yes") == [{"rows": 5}]
    assert scene.ids("--state", "dead", "--state", "delivered") == [BAD[1]]
    (stats,) = scene.ask("stats")
    assert (stats["delivered"], stats["dead"], stats["lost"]) == (0, 1, 3)
    assert stats["losses"]["dead_removed"] == 1


def test_discarded_messages_never_leave_and_are_counted(scene: Scene) -> None:
    ready = scene.ids("--state", "ready")
    scene.ask("discard", "--state", "ready", "--yes")
    assert scene.ids("--state", "ready") == []
    if scene.live:
        wait_until(lambda: scene.stage.messages["dropped"] == len(ready), what="counted")
    named = [name for item in scene.ask("losses", "--reason", "discarded") for name in item["ids"]]
    assert named == ready
    scene.deliver_all()
    scene.stage.publish_ids(["after"])
    wait_until(lambda: "after" in scene.stage.cloud.stored, what="delivered")
    assert not set(ready) & scene.stage.cloud.stored.keys()


def test_what_is_exported_is_what_was_stored(scene: Scene) -> None:
    lines = scene.run("export", "--state", "delivered").stdout.encode().splitlines()
    assert lines == [scene.stage.cloud.bodies[name] for name in scene.stage.cloud.arrivals]
    table = scene.run("export", "--state", "dead", "--format", "csv").stdout.splitlines()
    assert table[0] == "row,id,state,topic,received_at,event,event_base64"
    assert [line.split(",")[1] for line in table[1:]] == BAD


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["list", "--older-than", "soon"], "'soon' is no age"),
        (["list", "--topic", "a/#/b"], "'#' must be a level of its own"),
        (["requeue", "--state", "delivered"], "requeue is not for delivered rows"),
        (["show", "nobody"], "no row has the id 'nobody'"),
        (["lsit"], "invalid choice"),
    ],
)
def test_a_mistake_is_one_line_and_a_hint(scene: Scene, words: list[str], error: str) -> None:
    done = scene.run(*words)
    assert done.returncode == 2
    first, hint = done.stderr.splitlines()
    assert error in first
    assert hint.startswith("hint: ")
