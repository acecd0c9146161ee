"""Where a producer's broker is: what is given, then the environment, then the defaults of the bridge."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config import MqttSettings
from bridge.environment import Secret, Tls, broker_address
from bridge.errors import OperatorError


def test_the_defaults_are_those_of_the_bridge() -> None:
    address, settings = broker_address(environ={}), MqttSettings()
    for name in ("host", "port", "username", "password", "transport", "protocol", "qos", "keepalive_seconds"):
        assert getattr(address, name) == getattr(settings, name), name
    for name in ("ca", "cert", "key", "insecure", "enabled"):
        assert getattr(address.tls, name) == getattr(settings.tls, name), name


def test_what_is_given_comes_before_the_environment() -> None:
    environ = {"BRIDGE_MQTT__HOST": "broker", "BRIDGE_MQTT__PORT": "1884", "BRIDGE_MQTT__USERNAME": "press-4"}
    address = broker_address(port=2000, environ=environ)
    assert (address.host, address.port, address.username) == ("broker", 2000, "press-4")


def test_a_password_comes_from_its_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary\n")
    address = broker_address(environ={"BRIDGE_MQTT__PASSWORD_FILE": str(tmp_path / "secret")})
    assert address.password == Secret("canary")
    assert "canary" not in repr(address)


@pytest.mark.parametrize(
    "environ",
    [{"BRIDGE_MQTT__PORT": "8883"}, {"BRIDGE_MQTT__TLS__CA": "ca.pem"}, {"BRIDGE_MQTT__TLS__ENABLED": "true"}],
)
def test_encryption_is_on_where_it_is_meant(environ: dict[str, str]) -> None:
    assert broker_address(environ=environ).tls.enabled
    assert not broker_address(tls=False, environ=environ).tls.enabled


def test_tls_may_be_a_flag_a_file_or_all_of_it() -> None:
    assert broker_address(tls=True, environ={}).tls == Tls()
    assert broker_address(tls="ca.pem", environ={}).tls == Tls(ca=Path("ca.pem"))
    assert broker_address(tls=Tls(insecure=True), environ={}).tls.insecure


@pytest.mark.parametrize(
    "environ",
    [
        {"BRIDGE_MQTT__PORT": "mqtt"},
        {"BRIDGE_MQTT__PORT": "70000"},
        {"BRIDGE_MQTT__TRANSPORT": "carrier pigeon"},
        {"BRIDGE_MQTT__TLS__ENABLED": "perhaps"},
        {"BRIDGE_MQTT__PASSWORD_FILE": "/nonexistent"},
    ],
)
def test_a_wrong_variable_is_an_error_for_people(environ: dict[str, str]) -> None:
    with pytest.raises(OperatorError) as raised:
        broker_address(environ=environ)
    assert raised.value.hint
