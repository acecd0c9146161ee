"""The frame of the command and the commands on configuration, as the operator meets them."""

from __future__ import annotations

import argparse
import errno
import json
import re
import sys
import tarfile
from pathlib import Path

import jsonschema
import pytest

from bridge import __version__
from bridge.cli import check_config
from bridge.cli.output import print_table
from bridge.errors import FaultError
from tests.harness.command import Command

ROOT = Path(__file__).parents[2]
SECRET = "canary-token"


# ---- the frame ----


def test_help_lists_every_command_with_what_it_is_for(edge_bridge: Command) -> None:
    shown = edge_bridge("--help")
    assert shown.exit_status == 0
    for command in ("run", "receiver", "demo", "status", "check-config", "config", "bench", "queue"):
        assert re.search(rf"^  {command} +\w+", shown.stdout, re.MULTILINE), command


def test_version_is_the_packages(edge_bridge: Command) -> None:
    assert edge_bridge("--version").stdout == f"edge-bridge {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a command is missing"),
        (["chek-config"], "did you mean `edge-bridge check-config`?"),
        (["--config", "x", "run"], "options stand behind the command"),
        (["check-config", "--jsno"], "did you mean --json?"),
        (["check-config", "--config"], "expected one argument"),
        (["config", "shwo"], "invalid choice: 'shwo'"),
        (["config"], "required"),
    ],
)
def test_bad_arguments_are_one_line_and_a_hint_and_exit_2(
    edge_bridge: Command, arguments: list[str], words: str
) -> None:
    shown = edge_bridge(*arguments)
    assert shown.exit_status == 2
    assert shown.stdout == ""
    error, hint = shown.stderr.splitlines()
    assert error.startswith("edge-bridge: error: ")
    assert hint.startswith("hint: ")
    assert words in shown.stderr


def test_a_fault_of_ours_is_one_line_too_and_a_traceback_only_on_request(
    edge_bridge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_config, "execute", lambda _: 1 / 0)
    shown = edge_bridge("check-config")
    assert shown.exit_status == 1
    error, hint = shown.stderr.splitlines()
    assert error == "edge-bridge: error: internal error: ZeroDivisionError: division by zero"
    assert "BRIDGE_DEBUG=1" in hint
    with pytest.raises(ZeroDivisionError):
        edge_bridge("check-config", BRIDGE_DEBUG="1")


@pytest.mark.parametrize(
    ("error", "exit_status", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "edge-bridge: error: no memory for the process"),
        (ExceptionGroup("lanes", [MemoryError()]), 1, "edge-bridge: error: no memory for the process"),
        (RuntimeError("can't start new thread"), 1, "edge-bridge: error: no memory or no thread for the process"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "edge-bridge: error: Too many open files for the process"),
        (FaultError("the broker is gone"), 1, "edge-bridge: error: the broker is gone"),
    ],
)
def test_the_exit_status_says_who_must_act(
    edge_bridge: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_status: int,
    words: str,
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(check_config, "execute", fail)
    shown = edge_bridge("check-config")
    assert (shown.exit_status, shown.stdout) == (exit_status, "")
    assert "".join(shown.stderr.splitlines()[:1]) == words


def test_titles_are_bold_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(("KEY", "VALUE"), [("a", "1"), ("long", "\x1b[2J")])
    assert capsys.readouterr().out.splitlines() == ["\x1b[1mKEY   VALUE\x1b[0m", "a     1", "long  \\x1b[2J"]


# ---- check-config ----


def test_a_valid_configuration_is_said_to_be_valid(edge_bridge: Command) -> None:
    shown = edge_bridge("check-config", "--config", str(ROOT / "config" / "bridge.toml"))
    assert (shown.exit_status, shown.stderr) == (0, "")
    assert "is valid" in shown.stdout
    assert "bridge.toml" in shown.stdout


def test_all_problems_are_told_on_standard_error_with_one_hint(edge_bridge: Command) -> None:
    shown = edge_bridge("check-config", BRIDGE_MQTT__PORT="x", BRIDGE_MQTT__HSOT="x", BRIDGE_WEB__PORT="99999")
    assert shown.exit_status == 2
    assert shown.stdout == ""
    *errors, hint = shown.stderr.splitlines()
    assert len(errors) == 4
    assert all(line.startswith("edge-bridge: error: ") for line in errors)
    assert [key for key in ("mqtt.port:", "mqtt.hsot:", "web.port:", "upload.url:") if key not in shown.stderr] == []
    assert hint.startswith("hint: ")


def test_check_config_json_has_a_stable_shape(edge_bridge: Command, tmp_path: Path) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text('[upload]\nurl = "https://x/"\n', encoding="utf-8")
    good = edge_bridge("check-config", "--json", "--config", str(file))
    assert good.exit_status == 0
    assert json.loads(good.stdout) == {"valid": True, "file": str(file), "problems": []}
    bad = edge_bridge("check-config", "--json", BRIDGE_LOG__LEVEL="loud", BRIDGE_UPLOAD__URL="https://x/")
    assert bad.exit_status == 2
    document = json.loads(bad.stdout)
    assert (document["valid"], document["file"]) == (False, None)
    assert [set(problem) for problem in document["problems"]] == [{"key", "problem"}]
    assert document["problems"][0]["key"] == "log.level"


def test_a_named_file_that_is_missing_is_exit_2(edge_bridge: Command) -> None:
    shown = edge_bridge("check-config", "--config", "nope.toml")
    assert shown.exit_status == 2
    assert "nope.toml" in shown.stderr


# ---- config schema, config show ----


def test_the_schema_accepts_a_right_configuration_and_refuses_a_wrong_one(edge_bridge: Command) -> None:
    schema = json.loads(edge_bridge("config", "schema").stdout)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    right = {"upload": {"url": "https://x/", "batch_bytes": "2 MiB"}, "mqtt": {"protocol": 5, "topics": ["a"]}}
    assert list(validator.iter_errors(right)) == []
    for wrong in ({}, {"upload": {"url": "https://x/", "ulr": 1}}, {**right, "mqtt": {"port": "1883"}}):
        assert list(validator.iter_errors(wrong))
    assert "broker" in schema["$defs"]["MqttSettings"]["properties"]["port"]["description"]


def test_show_lists_each_key_with_its_value_and_source_and_masks_what_is_secret(
    edge_bridge: Command, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(SECRET, encoding="utf-8")
    variables = {
        "BRIDGE_UPLOAD__URL": "https://x/",
        "BRIDGE_UPLOAD__TOKEN": SECRET,
        "BRIDGE_UPLOAD__HEADERS": json.dumps({"X-Key": SECRET}),
        "BRIDGE_UPLOAD__PROXY": f"http://user:{SECRET}@proxy:3128",
        "BRIDGE_MQTT__USERNAME": "bridge",
        "BRIDGE_MQTT__PASSWORD_FILE": str(password),
    }
    as_text = edge_bridge("config", "show", **variables).stdout
    as_json = edge_bridge("config", "show", "--json", **variables).stdout
    assert SECRET not in as_text + as_json
    assert re.search(r"^upload\.token +\*+ +BRIDGE_UPLOAD__TOKEN$", as_text, re.MULTILINE)
    assert "\x1b" not in as_text
    document = json.loads(as_json)
    assert document["upload.token"] == {"value": "********", "source": "BRIDGE_UPLOAD__TOKEN"}
    assert document["mqtt.password"]["value"] == "********"
    assert str(password) in document["mqtt.password"]["source"]
    assert document["upload.headers"]["value"] == {"X-Key": "********"}
    assert document["upload.proxy"]["value"] == "http://********@proxy:3128"
    assert document["mqtt.topics"] == {"value": ["edge/predictions/#"], "source": "default"}
    assert document["web.token"] == {"value": None, "source": "default"}


def test_no_secret_shows_in_any_problem(edge_bridge: Command) -> None:
    shown = edge_bridge(
        "check-config",
        BRIDGE_UPLOAD__URL=f"http://user:{SECRET}@x/",
        BRIDGE_UPLOAD__TOKEN=f"Bearer {SECRET}",
        BRIDGE_UPLOAD__HEADERS=f"X-Key: {SECRET}",
        BRIDGE_UPLOAD__PROXY=f"user:{SECRET}@proxy",
        BRIDGE_MQTT__PASSWORD=SECRET,
        BRIDGE_WEB__TOKEN=f"{SECRET} {SECRET}",
    )
    assert shown.exit_status == 2
    assert len(shown.stderr.splitlines()) == 7
    assert SECRET not in shown.stderr + shown.stdout


def test_a_receiver_whose_token_is_empty_takes_nobody_in(edge_bridge: Command, tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    for option, value, words in (
        ("--token-file", str(empty), "the token is empty"),
        ("--token-file", str(tmp_path / "nowhere"), "can not be read"),
        ("--port", "99999", "is not a port number"),
    ):
        shown = edge_bridge("receiver", "--port", "1", "--data", str(tmp_path / "cloud"), option, value)
        assert shown.exit_status == 2
        assert words in shown.stderr


def test_doctor_says_the_same_to_programs_and_to_people_and_packs_it_for_support(
    edge_bridge: Command, free_port: int, tmp_path: Path
) -> None:
    variables = {
        "BRIDGE_UPLOAD__URL": f"http://127.0.0.1:{free_port}/",
        "BRIDGE_MQTT__PORT": str(free_port),
        "BRIDGE_QUEUE__PATH": str(tmp_path / "queue"),
        "BRIDGE_WEB__PORT": "0",
    }
    as_json = edge_bridge("doctor", "--json", **variables)
    document = json.loads(as_json.stdout)
    assert (as_json.exit_status, document["healthy"]) == (1, False)
    as_text = edge_bridge("doctor", "--bundle", "support.tar.gz", **variables)
    assert as_text.exit_status == 1
    same = [line for line in document["lines"] if line["check"] != "disk speed"]  # measured anew, it may differ
    assert [f"{line['grade']:<4}  {line['check']}" in as_text.stdout for line in same].count(False) == 0
    assert "wrote support.tar.gz" in as_text.stdout
    with tarfile.open(tmp_path / "support.tar.gz") as bundle:
        assert any(name.endswith("configuration.json") for name in bundle.getnames())


def test_doctor_of_a_configuration_that_is_wrong_says_so_first_and_packs_what_there_is(
    edge_bridge: Command, tmp_path: Path
) -> None:
    shown = edge_bridge("doctor", "--bundle", "support.tar.gz", BRIDGE_MQTT__TOPICS="5", BRIDGE_QUEUE__PATH="queue")
    assert shown.exit_status == 2
    assert "a list of texts, as in" in shown.stdout
    with tarfile.open(tmp_path / "support.tar.gz") as bundle:
        assert not any(name.endswith("configuration.json") for name in bundle.getnames())
