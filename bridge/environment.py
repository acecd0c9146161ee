"""The broker's address for those who come without a configuration: the client library and `bridge.monitor`.

Beside `bridge.config` the only reader of the environment: the same `BRIDGE_MQTT__…` variables, but without files,
models or pydantic, because a producer must be able to import it in a moment. Its defaults are those of
`MqttSettings`, and a test holds them together. Never shows a password (I8).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bridge.errors import OperatorError

_PREFIX = "BRIDGE_MQTT__"
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_SECURE_MQTT = 8883  # IANA
_PORT_MAX = 65_535

Transport = Literal["tcp", "unix", "websockets"]


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that no repr shows."""

    _text: str = field(repr=False)

    def get_secret_value(self) -> str:
        """Return the text, as pydantic's SecretStr does."""
        return self._text


@dataclass(frozen=True, slots=True)
class Tls:
    """How the connection to the broker is encrypted; as it stands, with the system's authorities. Files are PEM."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """What a connection needs to know; named as in `MqttSettings`, whose place it takes. Speaks MQTT 5."""

    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password: Secret | None = None
    tls: Tls = Tls(enabled=False)
    transport: Transport = "tcp"
    keepalive_seconds: int = 60
    protocol: Literal["5"] = "5"
    qos: Literal[1] = 1
    receive_maximum: int = 10_000
    session_expiry_seconds: int = 0

    def __str__(self) -> str:
        return self.host if self.transport == "unix" else f"{self.host}:{self.port}"


_DEFAULT = BrokerAddress()


def broker_address(
    host: str | None = None,
    port: int | None = None,
    username: str | None = None,
    password: str | None = None,
    tls: Tls | str | Path | bool | None = None,  # noqa: FBT001 - `tls=True`, as it is written in a call
    *,
    environ: Mapping[str, str] = os.environ,
) -> BrokerAddress:
    """Return where the broker is: what is given, else `BRIDGE_MQTT__…`, else the default. Raises OperatorError.

    `tls`: True (the system's authorities), a file with a CA, a `Tls`, or False.
    """
    variables = {
        name.removeprefix(_PREFIX): text for name, text in environ.items() if name.startswith(_PREFIX) and text
    }
    if (transport := variables.get("TRANSPORT", "tcp").lower()) not in ("tcp", "unix", "websockets"):
        raise OperatorError(f"{_PREFIX}TRANSPORT is {transport!r}", "tcp, unix or websockets")
    chosen_port = _port(variables.get("PORT", _DEFAULT.port) if port is None else port)
    secret = password if password is not None else _password(variables)
    return BrokerAddress(
        host=host or variables.get("HOST") or _DEFAULT.host,
        port=chosen_port,
        username=username or variables.get("USERNAME"),
        password=Secret(secret) if secret else None,
        tls=_tls(tls, variables, secure_port=chosen_port == _SECURE_MQTT and transport != "unix"),
        transport=transport,  # type: ignore[arg-type] # one of the three
    )


def environment_device_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return `BRIDGE_DEVICE_ID`, if it is set."""
    return environ.get("BRIDGE_DEVICE_ID") or None


def _port(given: Any) -> int:
    try:
        port = int(given)
    except (TypeError, ValueError):
        port = 0
    if not 0 < port <= _PORT_MAX:
        raise OperatorError(f"{given!r} is not a port", f"a number from 1 to {_PORT_MAX}; the usual one is 1883")
    return port


def _password(variables: Mapping[str, str]) -> str | None:
    if "PASSWORD" in variables or "PASSWORD_FILE" not in variables:
        return variables.get("PASSWORD")
    path = Path(variables["PASSWORD_FILE"])
    try:
        return path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise OperatorError(f"{path} cannot be read: {why}", f"see {_PREFIX}PASSWORD_FILE") from error


def _tls(given: Tls | str | Path | bool | None, variables: Mapping[str, str], *, secure_port: bool) -> Tls:  # noqa: FBT001
    if isinstance(given, Tls):
        return given
    if isinstance(given, bool):
        return Tls(enabled=given)
    if given is not None:
        return Tls(ca=Path(given))
    files = {name: Path(text) for name in ("ca", "cert", "key") if (text := variables.get(f"TLS__{name.upper()}"))}
    insecure, enabled = _flag(variables, "TLS__INSECURE"), _flag(variables, "TLS__ENABLED")
    meant = bool(files or insecure or secure_port)
    return Tls(**files, insecure=bool(insecure), enabled=meant if enabled is None else enabled)


def _flag(variables: Mapping[str, str], name: str) -> bool | None:
    text = variables.get(name)
    if text is None:
        return None
    if text.lower() not in _TRUTH:
        raise OperatorError(f"{_PREFIX}{name} is {text!r}", "true or false")
    return _TRUTH[text.lower()]
