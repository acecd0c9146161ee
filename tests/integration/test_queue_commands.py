"""`edge-bridge queue …` on a running bridge and on a stopped one: the same answers, by one and the same test.

Those that only look share a scene. The command runs in this process; `tests/acceptance` has the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud_stage import TOPIC
from tests.harness.queue_scene import BAD, Scene, on_scene

KINDS = ["live", "offline"]


@pytest.fixture(params=KINDS, scope="module")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A scene that its tests leave as it is."""
    with on_scene(tmp_path_factory.mktemp("seen"), request.param) as scene:
        yield scene


@pytest.fixture(params=KINDS)
def scene(request: pytest.FixtureRequest, tmp_path: Path, mosquitto_installed: None) -> Iterator[Scene]:
    with on_scene(tmp_path, request.param) as scene:
        yield scene


def test_looking_shows_what_is_there(seen: Scene) -> None:
    (stats,) = seen.ask("stats")
    assert (stats["ready"] + stats["taken"], stats["delivered"], stats["dead"]) == (3, 5, 2)
    assert (stats["losses"], stats["lost"]) == ({"dead": 2, "too_large": 1}, 3)
    assert seen.ids() == [name for name in seen.stage.tried if name != "too-large"]
    assert seen.ids("--state", "dead") == BAD
    assert seen.ids("--reason", "refused") == BAD
    assert seen.ids("--id", "w2", "--id", "message-000002") == ["message-000002", "w2"]
    assert seen.ids("--topic", "edge/+/stage", "--state", "delivered") == [
        name for name in seen.stage.tried[:7] if name not in BAD
    ]
    assert seen.ids("--topic", "edge/other/#") == []
    assert seen.ids("--older-than", "1h") == []
    (dead,) = seen.ask("list", "--id", BAD[0])
    assert (dead["state"], dead["topic"], dead["died"]["reason"], dead["died"]["status_code"]) == (
        *("dead", TOPIC, "refused"),
        422,
    )
    assert dead["died"]["attempts"] >= 2
    shown = json.loads(seen.run("show", BAD[0]).stdout)
    assert (shown["id"], shown["event"]["data"]["event_id"]) == (BAD[0], BAD[0])


def test_the_ledger_is_listed_and_selected_from(seen: Scene) -> None:
    losses = seen.ask("losses")
    assert sum(item["messages"] for item in losses) == 3
    assert sorted(name for item in losses for name in item["ids"]) == BAD
    (refused,) = seen.ask("losses", "--reason", "too_large")
    assert (refused["messages"], refused["topic"]) == (1, TOPIC)
    table = seen.run("losses").stdout.splitlines()
    assert table[0].split() == ["loss", "until", "reason", "messages", "topic", "ids"]
    assert len(table) == len(losses) + 1


def test_what_is_exported_is_what_was_stored(seen: Scene) -> None:
    lines = seen.run("export", "--state", "delivered").stdout.encode().splitlines()
    assert lines == [seen.stage.cloud.bodies[name] for name in seen.stage.cloud.arrivals]
    table = seen.run("export", "--state", "dead", "--format", "csv").stdout.splitlines()
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
def test_a_mistake_is_one_line_and_a_hint(seen: Scene, words: list[str], error: str) -> None:
    done = seen.run(*words)
    assert done.returncode == 2
    first, hint = done.stderr.splitlines()
    assert error in first
    assert hint.startswith("hint: ")


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
