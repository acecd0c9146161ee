"""The models, the environment and the sentences for people. Files are in tests/integration/test_config_files.py."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from bridge.config import KEYS, Loaded, Settings, examine, load
from bridge.errors import ConfigError

NO_FILE = Path(os.devnull)
URL = "https://cloud.example/ingest"
GiB, MiB = 1024**3, 1024**2

# docs: the table of the public surface, key by key, written out again on purpose.
DEFAULTS: dict[str, object] = {
    "device_id": socket.gethostname(),
    "mqtt.host": "127.0.0.1",
    "mqtt.port": 1883,
    "mqtt.username": None,
    "mqtt.password": None,
    "mqtt.transport": "tcp",
    "mqtt.protocol": "5",
    "mqtt.topics": ("edge/predictions/#",),
    "mqtt.qos": 1,
    "mqtt.client_id": f"edge-bridge-{socket.gethostname()}",
    "mqtt.session_expiry_seconds": 604800,
    "mqtt.receive_maximum": 10000,
    "mqtt.tls.ca": None,
    "mqtt.tls.cert": None,
    "mqtt.tls.key": None,
    "mqtt.tls.insecure": False,
    "intake.batch_messages": 1000,
    "intake.linger_ms": 5,
    "intake.max_payload_bytes": 1048576,
    "intake.id_fields": ("prediction_id", "event_id", "message_id"),
    "queue.path": Path("./data"),
    "queue.durability": "power",
    "queue.max_bytes": GiB,
    "queue.max_messages": 0,
    "queue.max_age_seconds": 0,
    "queue.min_free_disk_bytes": 256 * MiB,
    "queue.overflow": "drop-oldest",
    "queue.keep_delivered_seconds": 3600,
    "queue.keep_delivered_messages": 10000,
    "upload.format": "cloudevents",
    "upload.token": None,
    "upload.headers": {},
    "upload.tls.ca": None,
    "upload.proxy": None,
    "upload.batch_messages": 1000,
    "upload.batch_bytes": MiB,
    "upload.linger_ms": 20,
    "upload.compression": "gzip",
    "upload.concurrency": 1,
    "upload.timeout_seconds": 30,
    "upload.retry_min_seconds": 0.5,
    "upload.retry_max_seconds": 60,
    "upload.max_attempts": 0,
    "upload.require_receipt": False,
    "upload.report_losses": True,
    "status.topic": "edge/buffer/status",
    "status.interval_seconds": 5,
    "web.host": "127.0.0.1",
    "web.port": 8080,
    "web.token": None,
    "log.level": "info",
    "log.format": "auto",
    "shutdown_grace_seconds": 10,
}


def value_at(settings: Settings, path: str) -> object:
    value: object = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def settings(tables: dict[str, Any]) -> Settings:
    """Settings from nested tables, with the one required key where it is not given."""
    return Settings.model_validate({**tables, "upload": {"url": URL, **tables.get("upload", {})}})


def problems(**variables: str) -> dict[str, str]:
    """Everything that is wrong with this environment, by key."""
    found = examine(NO_FILE, {"BRIDGE_UPLOAD__URL": URL, **variables}).problems
    assert len({problem.key for problem in found}) == len(found), "one problem a key, in these tests"
    return {problem.key: problem.text for problem in found}


def loaded(**variables: str) -> Loaded:
    return load(NO_FILE, {"BRIDGE_UPLOAD__URL": URL, **variables})


# ---- defaults ----


@pytest.mark.parametrize("path", DEFAULTS)
def test_each_default_is_the_documented_one(path: str) -> None:
    assert value_at(settings({}), path) == DEFAULTS[path]


def test_each_key_says_what_it_means() -> None:
    assert [path for path, key in KEYS.items() if not key.field.description] == []


def test_each_secret_has_a_twin_for_the_file_that_holds_it() -> None:
    secrets = [path for path, key in KEYS.items() if key.is_secret]
    assert secrets == ["mqtt.password", "upload.token", "web.token"]
    assert all(f"{path}_file" in KEYS for path in secrets)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings({}).mqtt.port = 1


def test_the_session_is_named_after_the_device_unless_it_has_a_name() -> None:
    assert settings({"device_id": "press-4"}).mqtt.client_id == "edge-bridge-press-4"
    assert settings({"device_id": "press-4", "mqtt": {"client_id": "x"}}).mqtt.client_id == "x"


def test_a_host_name_that_is_no_device_id_is_made_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "line 3/ö")
    assert settings({}).device_id == "line-3--"


def test_no_secret_shows_in_a_repr() -> None:
    secret = "canary-token"
    whole = settings(
        {
            "mqtt": {"username": "u", "password": secret},
            "web": {"token": secret},
            "upload": {"token": secret, "headers": {"X-Key": secret}, "proxy": f"http://u:{secret}@proxy:3128"},
        }
    )
    assert secret not in repr(whole) + str(whole)
    assert whole.upload.token == SecretStr(secret)


# ---- encryption to the broker ----


@pytest.mark.parametrize(
    ("mqtt", "encrypted"),
    [
        ({}, False),
        ({"tls": {}}, False),
        ({"tls": {"ca": "/ca.pem"}}, True),
        ({"tls": {"ca": "", "insecure": False}}, False),
        ({"tls": {"insecure": True}}, True),
        ({"tls": {"enabled": True}}, True),
        ({"tls": {"enabled": False, "ca": "/ca.pem"}}, False),
        ({"port": 8883}, True),
        ({"port": 8883, "tls": {"enabled": False}}, False),
    ],
)
def test_the_broker_connection_is_encrypted_where_that_is_meant(mqtt: dict[str, Any], encrypted: bool) -> None:
    assert settings({"mqtt": mqtt}).mqtt.tls.enabled is encrypted


# ---- environment ----


def test_variables_set_every_kind_of_value() -> None:
    found = loaded(
        BRIDGE_DEVICE_ID="007",
        BRIDGE_MQTT__PORT="1884",
        BRIDGE_MQTT__PROTOCOL="3.1.1",
        BRIDGE_MQTT__QOS="0",
        BRIDGE_MQTT__TOPICS='["a/#", "b"]',
        BRIDGE_MQTT__TLS__INSECURE="TRUE",
        BRIDGE_QUEUE__MAX_BYTES="2 GiB",
        BRIDGE_UPLOAD__HEADERS='{"X-Site": "north"}',
        BRIDGE_UPLOAD__RETRY_MIN_SECONDS="0.25",
        BRIDGE_LOG__LEVEL="WARNING",
    ).settings
    assert found.device_id == "007"
    assert (found.mqtt.port, found.mqtt.protocol, found.mqtt.qos) == (1884, "3.1.1", 0)
    assert found.mqtt.topics == ("a/#", "b")
    assert found.mqtt.tls.insecure is True
    assert found.queue.max_bytes == 2 * GiB
    assert found.upload.headers == {"X-Site": "north"}
    assert found.upload.retry_min_seconds == 0.25
    assert found.log.level == "warning"


def test_a_whole_table_may_be_one_variable_in_json() -> None:
    found = loaded(BRIDGE_MQTT='{"host": "broker", "tls": {"insecure": true}}', BRIDGE_MQTT__PORT="1884")
    assert (found.settings.mqtt.host, found.settings.mqtt.port) == ("broker", 1884)
    assert found.settings.mqtt.tls.insecure is True
    assert found.sources["mqtt.host"] == "BRIDGE_MQTT"


def test_every_key_can_be_set_by_a_variable_of_its_name() -> None:
    for path, key in KEYS.items():
        examined = examine(NO_FILE, {"BRIDGE_" + path.upper().replace(".", "__"): "?"})
        assert "no such setting" not in " ".join(map(str, examined.problems)), key


def test_each_value_knows_where_it_came_from() -> None:
    found = loaded(BRIDGE_WEB__PORT="0")
    assert found.sources.keys() == KEYS.keys()
    assert found.sources["web.port"] == "BRIDGE_WEB__PORT"
    assert found.sources["web.host"] == "default"


def test_an_empty_variable_counts_as_not_set_as_compose_writes_it() -> None:
    assert loaded(BRIDGE_UPLOAD__TOKEN="", BRIDGE_MQTT__PORT="").settings == loaded().settings


@pytest.mark.parametrize(
    "variables",
    [
        {"BRIDGE_DEBUG": "1", "BRIDGE_CONFIG": "/elsewhere"},
        {"BRIDGE_SERVICE_HOST": "10.0.0.1", "BRIDGE_SERVICE_PORT": "80", "BRIDGE_SERVICE_PORT_HTTP": "80"},
        {
            "BRIDGE_PORT": "tcp://10.0.0.1:80",
            "BRIDGE_PORT_80_TCP": "tcp://10.0.0.1:80",
            "BRIDGE_PORT_80_TCP_PROTO": "tcp",
        },
        {"OTHER__KEY": "x", "bridge_mqtt__port": "x"},
    ],
)
def test_variables_that_are_not_ours_are_left_alone(variables: dict[str, str]) -> None:
    assert problems(**variables) == {}


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("BRIDGE_UPLOAD_URL", "upload_url", "BRIDGE_UPLOAD__URL"),
        ("BRIDGE_PORT", "port", "BRIDGE_MQTT__PORT"),
        ("BRIDGE_BROKER__KEEPALIVE_SECONDS", "broker.keepalive_seconds", "BRIDGE_MQTT__KEEPALIVE_SECONDS"),
        ("BRIDGE_MQTT__TLS__CAFILE", "mqtt.tls.cafile", "BRIDGE_MQTT__TLS__CA"),
    ],
)
def test_an_unknown_variable_is_told_with_the_nearest_known_one(name: str, key: str, meant: str) -> None:
    assert f"did you mean {meant}?" in problems(**{name: "1"})[key]


# ---- what is wrong with one value ----


@pytest.mark.parametrize(
    ("variables", "key", "words"),
    [
        ({"BRIDGE_MQTT__PORT": "abc"}, "mqtt.port", '"abc" will not do; use a whole number from 1 to 65535'),
        ({"BRIDGE_MQTT__PORT": "70000"}, "mqtt.port", "70000 will not do"),
        ({"BRIDGE_MQTT__TOPICS": "a/#"}, "mqtt.topics", """write BRIDGE_MQTT__TOPICS='["a/#"]'"""),
        ({"BRIDGE_MQTT__TOPICS": "[]"}, "mqtt.topics", "empty list"),
        ({"BRIDGE_MQTT__TOPICS": '["a#"]'}, "mqtt.topics[0]", "a level of its own"),
        ({"BRIDGE_MQTT__QOS": "2"}, "mqtt.qos", "PUBREC"),
        ({"BRIDGE_MQTT__PROTOCOL": "4"}, "mqtt.protocol", "one of 5, 3.1.1"),
        ({"BRIDGE_MQTT__RECEIVE_MAXIMUM": "0"}, "mqtt.receive_maximum", "from 1 to 65535"),
        ({"BRIDGE_QUEUE__OVERFLOW": "drop"}, "queue.overflow", "one of drop-oldest, drop-newest, block"),
        ({"BRIDGE_QUEUE__MAX_BYTES": "much"}, "queue.max_bytes", '"64 MiB"'),
        ({"BRIDGE_UPLOAD__REQUIRE_RECEIPT": "yes"}, "upload.require_receipt", "true or false"),
        ({"BRIDGE_UPLOAD__TIMEOUT_SECONDS": "0"}, "upload.timeout_seconds", "a number of seconds, more than 0"),
        ({"BRIDGE_UPLOAD__TIMEOUT_SECONDS": "nan"}, "upload.timeout_seconds", "will not do"),
        ({"BRIDGE_UPLOAD__LINGER_MS": "0.5"}, "upload.linger_ms", "a whole number of milliseconds"),
        ({"BRIDGE_UPLOAD__PROXY": "socks5://p"}, "upload.proxy", "https:// or http://"),
        ({"BRIDGE_DEVICE_ID": "press 4"}, "device_id", "letters, digits"),
        ({"BRIDGE_STATUS__TOPIC": "edge/+"}, "status.topic", "no '#' and no '+'"),
        ({"BRIDGE_MQTT": "5"}, "mqtt", "must be a table"),
        ({"BRIDGE_DEVICE_ID": "caf\udce9"}, "device_id", "UTF-8"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(variables: dict[str, str], key: str, words: str) -> None:
    found = problems(**variables)
    assert list(found) == [key]
    assert words in found[key]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is required"),
        ("cloud.example/ingest", "https:// or http://"),
        ("ftp://cloud.example", "https:// or http://"),
        ("https://", "names no host"),
        ("https://x:99999/", "ort"),
        ("https://user:canary@cloud.example/", "upload.token"),
        ("https://cloud.example/#part", "fragment"),
        ("https://cloud.example/a b", "space"),
    ],
)
def test_an_upload_url_that_cannot_work_is_refused(url: str, words: str) -> None:
    text = problems(BRIDGE_UPLOAD__URL=url)["upload.url"]
    assert words in text
    assert "canary" not in text


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Idempotency-Key": "x"}, "set by the bridge itself"),
        ({"content-type": "x"}, "set by the bridge itself"),
        ({"Host": "x"}, "set by the bridge itself"),
        ({"X Y": "x"}, "not a header name"),
        ({"X-A": "canary\r\nX-B: y"}, "printable ASCII"),
        ({"X-A": ""}, "empty"),
        ({"X-A": "1", "x-a": "2"}, "twice"),
        ({"X-A": 1}, "a table of texts"),
    ],
)
def test_headers_that_would_break_the_request_are_refused(headers: dict[str, object], words: str) -> None:
    ((_, text),) = problems(BRIDGE_UPLOAD__HEADERS=json.dumps(headers)).items()
    assert words in text
    assert "canary" not in text


@pytest.mark.parametrize("token", ["Bearer canary", "canary\nx", "canäry"])
def test_a_token_that_cannot_stand_in_a_header_is_refused_and_not_repeated(token: str) -> None:
    text = problems(BRIDGE_UPLOAD__TOKEN=token)["upload.token"]
    assert "printable ASCII" in text
    assert "can" not in text.replace("characters", "")


# ---- what is wrong between values ----


@pytest.mark.parametrize(
    ("variables", "key", "words"),
    [
        ({"BRIDGE_MQTT__TOPICS": '["edge/#"]'}, "mqtt.topics[0]", "edge/buffer/status/#"),
        ({"BRIDGE_MQTT__TOPICS": '["x", "$share/g/+/buffer/receipts/a"]'}, "mqtt.topics[1]", "endless loop"),
        ({"BRIDGE_MQTT__TOPICS": '["s/#"]', "BRIDGE_STATUS__TOPIC": "s/t"}, "mqtt.topics[0]", "s/t/#"),
        ({"BRIDGE_MQTT__TOPICS": '["a/#", "a/b"]'}, "mqtt.topics[1]", "twice"),
        ({"BRIDGE_UPLOAD__RETRY_MIN_SECONDS": "61"}, "upload.retry_min_seconds", "upload.retry_max_seconds (60)"),
        ({"BRIDGE_MQTT__PASSWORD": "canary"}, "mqtt.username", "give both"),
        ({"BRIDGE_MQTT__TRANSPORT": "unix"}, "mqtt.host", "the path of the socket"),
        ({"BRIDGE_MQTT__HOST": "/run/m.sock"}, "mqtt.host", 'needs mqtt.transport = "unix"'),
        (
            {"BRIDGE_MQTT__TRANSPORT": "unix", "BRIDGE_MQTT__HOST": "/m", "BRIDGE_MQTT__TLS__ENABLED": "1"},
            "mqtt.tls",
            "Unix socket",
        ),
        (
            {"BRIDGE_UPLOAD__TOKEN": "canary", "BRIDGE_UPLOAD__URL": "http://cloud.example/"},
            "upload.url",
            "upload.allow_plain_http = true",
        ),
        (
            {"BRIDGE_UPLOAD__TOKEN": "canary", "BRIDGE_UPLOAD__HEADERS": '{"authorization": "Basic canary"}'},
            "upload.headers",
            "keep one",
        ),
    ],
)
def test_values_that_clash_are_told(variables: dict[str, str], key: str, words: str) -> None:
    found = problems(**variables)
    assert list(found) == [key]
    assert words in found[key]
    assert "canary" not in found[key]


@pytest.mark.parametrize(
    "variables",
    [
        {"BRIDGE_UPLOAD__URL": "http://127.0.0.1:8088/"},
        {"BRIDGE_UPLOAD__URL": "http://[::1]/"},
        {"BRIDGE_UPLOAD__URL": "http://localhost:1/"},
        {"BRIDGE_UPLOAD__URL": "https://cloud.example/"},
        {"BRIDGE_UPLOAD__URL": "http://receiver:8088/", "BRIDGE_UPLOAD__ALLOW_PLAIN_HTTP": "true"},
    ],
)
def test_a_token_may_go_where_nobody_reads_along_or_where_that_is_allowed_by_name(variables: dict[str, str]) -> None:
    assert problems(BRIDGE_UPLOAD__TOKEN="t", **variables) == {}


@pytest.mark.parametrize(
    "variables",
    [
        {"BRIDGE_MQTT__TOPICS": '["a/#", "a/b"]', "BRIDGE_MQTT__PROTOCOL": "3.1.1"},
        {"BRIDGE_MQTT__TOPICS": '["edge/predictions/#", "edge/alarms/+", "$share/g/other/#"]'},
        {"BRIDGE_MQTT__RECEIVE_MAXIMUM": "10", "BRIDGE_INTAKE__BATCH_MESSAGES": "1000"},
        {"BRIDGE_MQTT__TRANSPORT": "unix", "BRIDGE_MQTT__HOST": "/run/mosquitto.sock"},
        {"BRIDGE_QUEUE__MAX_BYTES": "0", "BRIDGE_WEB__PORT": "0", "BRIDGE_UPLOAD__LINGER_MS": "0"},
    ],
)
def test_what_is_unusual_but_right_is_accepted(variables: dict[str, str]) -> None:
    assert problems(**variables) == {}


# ---- all at once ----


def test_all_problems_of_all_kinds_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            NO_FILE,
            {
                "BRIDGE_MQTT__PORT": "x",
                "BRIDGE_MQTT__PROT": "5",
                "BRIDGE_MQTT__TOPICS": '["#"]',
                "BRIDGE_MQTT__PASSWORD_FILE": "/does/not/exist",
                "BRIDGE_UPLOAD__RETRY_MIN_SECONDS": "100",
            },
        )
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert sorted(keys) == [
        "mqtt.password_file",
        "mqtt.port",
        "mqtt.prot",
        "mqtt.topics[0]",
        "upload.retry_min_seconds",
        "upload.url",
    ]
    assert caught.value.exit_status == 2


def test_a_value_that_is_already_told_causes_no_second_problem() -> None:
    assert list(problems(BRIDGE_MQTT__USERNAME="a", BRIDGE_MQTT__PASSWORD="p", BRIDGE_UPLOAD__URL="x")) == [
        "upload.url"
    ]


def test_a_command_that_only_talks_to_the_broker_needs_no_upload_url() -> None:
    assert load(NO_FILE, {"BRIDGE_MQTT__PORT": "1884"}, needs_upload=False).settings.mqtt.port == 1884
    assert (
        load(NO_FILE, {"BRIDGE_UPLOAD__TOKEN_FILE": "/not/ours/to/read"}, needs_upload=False).settings.mqtt.port == 1883
    )
