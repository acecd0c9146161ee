"""The configurations that the demo writes for its programs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bridge.config import Settings
from bridge.demo import stage
from bridge.demo.stage import bridge_toml, mosquitto_conf
from bridge.errors import OperatorError

SHIPPED = Path(__file__).parents[2] / "mosquitto" / "mosquitto.conf"
# What a demo must have of its own; all else is the shipped file's.
OWN_KEYS = {"listener", "persistence_location", "allow_anonymous", "password_file", "acl_file", "user"}


def choices(conf: str) -> list[str]:
    lines = [line for line in conf.splitlines() if line and not line.startswith("#")]
    return sorted(line for line in lines if line.split(" ")[0] not in OWN_KEYS)


def test_the_demo_runs_its_broker_as_the_shipped_configuration_does() -> None:
    conf = mosquitto_conf(20_001, Path("/somewhere/else"))
    assert choices(conf) == choices(SHIPPED.read_text())
    assert "listener 20001 127.0.0.1" in conf
    assert "persistence_location /somewhere/else/\n" in conf


@pytest.mark.parametrize("folder", ["/plain/queue", '/with "quotes" and \\', "/with spaces/and ümläut 🦊"])
def test_the_bridge_is_configured_with_exactly_these_settings(folder: str) -> None:
    toml = bridge_toml(Path(folder), 20_001, 20_002, 20_003, keep_messages=500)
    settings = Settings.model_validate(tomllib.loads(toml))
    assert settings.queue.path == Path(folder)
    assert (settings.mqtt.port, settings.web.port) == (20_001, 20_003)
    assert settings.upload.url == "http://127.0.0.1:20002/"
    assert settings.queue.keep_delivered_messages == 500
    assert settings.queue.durability == "power"
    assert settings.status.topic == stage.STATUS_TOPIC


def test_free_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    ports = stage._free_ports(3)
    assert len(set(ports)) == 3
    assert all(1024 < port < 32_768 for port in ports)


def test_without_a_mosquitto_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(stage, "_SBIN", ())
    with pytest.raises(OperatorError) as caught:
        stage._mosquitto()
    assert "mosquitto is not installed" in caught.value.message
    assert "apt-get install mosquitto" in caught.value.hint
