"""What the contenders are started with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bridge.bench.contenders import Bridge, Hindered, MqBridge, SideBySide, Surroundings, compiled_rivals
from bridge.config import Settings


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path, broker_port=1, sink_port=2, web_ports=(3, 4), payload_bytes=300)


def settings(toml: Path) -> Settings:
    return Settings.model_validate(tomllib.loads(toml.read_text()))


def test_a_bridge_has_its_defaults_but_for_what_is_said(around: Surroundings) -> None:
    Bridge("power", "none", (("upload.concurrency", 8),)).program(around)
    made = settings(around.folder / "bridge.toml")
    assert (made.queue.durability, made.upload.compression, made.upload.concurrency) == ("power", "none", 8)
    assert made.queue.overflow == "block"
    assert made.upload.batch_messages == 1000


def test_two_bridges_share_the_messages_and_nothing_else(around: Surroundings) -> None:
    SideBySide("power", "none").program(around)
    one, two = (settings(around.folder / f"bridge-{number}.toml") for number in range(2))
    assert one.mqtt.topics == two.mqtt.topics == ("$share/bench/edge/predictions/#",)
    assert one.mqtt.client_id != two.mqtt.client_id
    assert one.queue.path != two.queue.path
    assert (one.web.port, two.web.port) == (3, 4)


def test_a_backlog_is_copied_not_used_up(around: Surroundings, tmp_path: Path) -> None:
    backlog = tmp_path / "backlog"
    backlog.mkdir()
    (backlog / "data.db").write_text("rows")
    Bridge("power", "none", backlog=backlog).program(around)
    assert (around.folder / "bridge" / "data.db").read_text() == "rows"
    assert (backlog / "data.db").exists()


def test_who_is_hindered_is_himself_but_in_name_and_in_the_answers_that_he_gets() -> None:
    bridge = Bridge("power", "none")
    slow = Hindered(bridge, "20 ms", answer_after_ms=20)
    assert slow.title == "bridge: power, none; 20 ms"
    assert (slow.delivers, slow.bridges, slow.messages_max) == (True, 1, bridge.messages_max)
    assert slow.settings == {**bridge.settings, "hindered": "20 ms"}
    assert (slow.answer_after_ms, bridge.answer_after_ms) == (20, 0)


def test_without_a_python_that_has_it_there_is_no_compiled_rival() -> None:
    assert compiled_rivals(None) == ()
    assert [rival.title for rival in compiled_rivals("python")] == ["mq-bridge, direct", "mq-bridge, file queue"]


@pytest.mark.parametrize("through_file", [False, True])
def test_mq_bridge_keeps_its_session_and_confirms_after_it_has_passed_a_message_on(
    around: Surroundings, *, through_file: bool
) -> None:
    MqBridge("python", through_file=through_file).program(around)
    routes = json.loads((around.folder / "routes.json").read_text())
    first = routes["store" if through_file else "direct"]
    mqtt = first["input"]["mqtt"]
    assert mqtt["url"] == "tcp://127.0.0.1:1"
    assert (mqtt["qos"], mqtt["clean_session"], mqtt.get("delayed_ack", False)) == (1, False, False)
    last = routes["forward" if through_file else "direct"]
    assert last["output"]["http_bulk"]["url"] == "http://127.0.0.1:2"
    assert last["output"]["http_bulk"]["upsert"]["format"] == "json_array"
    if through_file:
        assert first["output"]["file"]["fsync"] == "batch"
        assert first["output"]["file"]["path"] == last["input"]["file"]["path"]
