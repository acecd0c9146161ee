"""Files of the configuration: which one is read, what may be wrong with it, and secrets in files of their own."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bridge.config import KEYS, Settings, examine, load, reread_secrets
from bridge.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "config" / "bridge.toml"
MINIMAL = '[upload]\nurl = "https://cloud.example/"\n'


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path, **variables: str) -> dict[str, str]:
    return {problem.key: problem.text for problem in examine(path, variables).problems}


# ---- the shipped file ----


def leaves(prefix: str, table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{prefix}{name}"
        flat |= leaves(f"{path}.", value) if isinstance(value, dict) and path not in KEYS else {path: value}
    return flat


def test_the_shipped_file_shows_every_key_with_its_default() -> None:
    uncommented = re.sub(r"(?m)^#(?=\w+ = )", "", SHIPPED.read_text(encoding="utf-8"))
    tables = tomllib.loads(uncommented)
    assert leaves("", tables).keys() == KEYS.keys()
    assert Settings.model_validate(tables) == Settings.model_validate({"upload": {"url": tables["upload"]["url"]}})


def test_the_shipped_file_is_valid_and_sets_only_what_has_no_default() -> None:
    sources = load(SHIPPED, {}).sources
    assert [path for path, source in sources.items() if source != "default"] == ["upload.url"]


# ---- which file ----


def test_the_first_file_of_argument_variable_and_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_argument = written(tmp_path / "a.toml", MINIMAL + "concurrency = 2\n")
    by_variable = written(tmp_path / "b.toml", MINIMAL + "concurrency = 3\n")
    by_folder = written(tmp_path / "config" / "bridge.toml", MINIMAL + "concurrency = 4\n")
    environ = {"BRIDGE_CONFIG": str(by_variable)}
    assert load(by_argument, environ).settings.upload.concurrency == 2
    assert load(None, environ).settings.upload.concurrency == 3
    assert load(None, {}).settings.upload.concurrency == 4
    by_folder.unlink()
    assert load(None, {"BRIDGE_UPLOAD__URL": "https://x/"}).file in {None, Path("/etc/edge-bridge/bridge.toml")}


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "b.toml", MINIMAL + "[upload.headers]\nX-A = '1'\nX-B = '2'\n")
    found = load(file, {"BRIDGE_UPLOAD__HEADERS": '{"X-C": "3"}'})
    assert found.settings.upload.headers == {"X-C": "3"}
    assert found.sources["upload.url"] == str(file)
    assert found.sources["upload.headers"] == "BRIDGE_UPLOAD__HEADERS"


def test_a_named_file_that_is_not_there_is_the_operators_to_mend(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert "cannot be read: No such file" in problems_of(missing)[str(missing)]
    assert "cannot be read" in problems_of(tmp_path)[str(tmp_path)]


def test_a_default_file_that_is_there_but_cannot_be_looked_at_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "config" / "other.toml", MINIMAL)
    (tmp_path / "config" / "bridge.toml").symlink_to("bridge.toml")  # a loop; root may look at everything else
    assert list({problem.key for problem in examine(None, {}).problems}) == ["config/bridge.toml"]


# ---- what is wrong in it ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[mqtt]\nport = = 3\n", "line 2"),
        (b"[mqtt]\nport = 3\nport = 4\n", "line 3"),
        (b'[mqtt]\n\nhost = "', "line 3"),
        (b"host = '\xff'\n", "utf-8"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
    ],
)
def test_broken_toml_is_told_with_its_line_and_nothing_that_follows_from_it(
    tmp_path: Path, text: bytes, words: str
) -> None:
    file = tmp_path / "b.toml"
    file.write_bytes(text)
    found = problems_of(file)
    assert list(found) == [str(file)]
    assert words in found[str(file)]


def test_a_byte_order_mark_as_windows_writes_it_is_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(file, {}).settings.upload.url == "https://cloud.example/"


def test_unknown_keys_are_told_with_the_nearest_known_name(tmp_path: Path) -> None:
    file = written(tmp_path / "b.toml", MINIMAL + "tokn = 'x'\n[mqtt]\nurl = 'x'\n[uplaod]\nx = 1\n[web]\nzzz = 1\n")
    found = problems_of(file)
    assert "did you mean upload.token?" in found["upload.tokn"]
    assert "did you mean upload.url?" in found["mqtt.url"]
    assert "did you mean upload?" in found["uplaod"]
    assert "config schema" in found["web.zzz"]
    assert len(found) == 4


def test_a_value_of_another_type_is_not_guessed_at(tmp_path: Path) -> None:
    file = written(tmp_path / "b.toml", MINIMAL + "[mqtt]\nport = '1883'\nkeepalive_seconds = true\nhost = 5\n")
    assert problems_of(file).keys() == {"mqtt.port", "mqtt.keepalive_seconds", "mqtt.host"}


def test_a_table_that_is_none_is_told(tmp_path: Path) -> None:
    found = problems_of(written(tmp_path / "b.toml", "mqtt = 5\n[upload]\nurl = 'https://x/'\n"))
    assert found == {"mqtt": "must be a table, [mqtt], not 5"}


def test_certificates_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    file = written(tmp_path / "b.toml", MINIMAL + f"tls.ca = '{tmp_path}/ca.pem'\n[mqtt.tls]\ncert = '{tmp_path}'\n")
    found = problems_of(file)
    assert found.keys() == {"upload.tls.ca", "mqtt.tls.cert"}
    assert "No such file" in found["upload.tls.ca"]


# ---- secrets in files ----


def test_a_secret_comes_from_its_file_without_the_lines_end(tmp_path: Path) -> None:
    token = written(tmp_path / "token", "s3cret\n")
    found = load(written(tmp_path / "b.toml", MINIMAL + f"token_file = '{token}'\n"), {})
    assert found.settings.upload.token is not None
    assert found.settings.upload.token.get_secret_value() == "s3cret"
    assert found.settings.upload.token_file == token
    assert str(token) in found.sources["upload.token"]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("", "is empty"), ("\n", "is empty"), ("a\nb\n", "one line")]
)
def test_a_secret_file_that_holds_no_secret_is_told(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        written(path, content)
    found = problems_of(Path(os.devnull), BRIDGE_UPLOAD__URL="https://x/", BRIDGE_MQTT__PASSWORD_FILE=str(path))
    assert list(found) == ["mqtt.password_file"]
    assert words in found["mqtt.password_file"]


def test_an_endless_secret_file_is_not_read_to_its_end() -> None:
    found = problems_of(Path(os.devnull), BRIDGE_UPLOAD__URL="https://x/", BRIDGE_WEB__TOKEN_FILE="/dev/zero")
    assert list(found) == ["web.token_file"]


def test_a_token_in_a_file_is_judged_like_any_other_and_not_repeated(tmp_path: Path) -> None:
    token = written(tmp_path / "token", "Bearer canary\n")
    found = problems_of(Path(os.devnull), BRIDGE_UPLOAD__URL="https://x/", BRIDGE_UPLOAD__TOKEN_FILE=str(token))
    assert list(found) == ["upload.token"]
    assert "canary" not in found["upload.token"]


def test_a_secret_given_in_both_ways_at_once_is_refused(tmp_path: Path) -> None:
    token = written(tmp_path / "token", "t\n")
    file = written(tmp_path / "b.toml", MINIMAL + f"token = 'x'\ntoken_file = '{token}'\n")
    assert "keep one of them" in problems_of(file)["upload.token"]


@pytest.mark.parametrize(("in_file", "in_environment"), [("token", "TOKEN_FILE"), ("token_file", "TOKEN")])
def test_a_secret_of_a_later_layer_replaces_either_form_of_an_earlier_one(
    tmp_path: Path, in_file: str, in_environment: str
) -> None:
    values = {"token": "low", "token_file": str(written(tmp_path / "low", "low"))}
    higher = {"TOKEN": "high", "TOKEN_FILE": str(written(tmp_path / "high", "high"))}
    file = written(tmp_path / "b.toml", MINIMAL + f"{in_file} = '{values[in_file]}'\n")
    upload = load(file, {f"BRIDGE_UPLOAD__{in_environment}": higher[in_environment]}).settings.upload
    assert upload.token is not None
    assert upload.token.get_secret_value() == "high"


def test_secrets_are_read_again_from_their_files_and_nothing_else_changes(tmp_path: Path) -> None:
    token = written(tmp_path / "token", "old")
    environ = {"BRIDGE_UPLOAD__URL": "https://x/", "BRIDGE_UPLOAD__TOKEN_FILE": str(token), "BRIDGE_WEB__TOKEN": "w"}
    former = load(Path(os.devnull), environ).settings
    written(token, "new\n")
    assert reread_secrets(former) == load(Path(os.devnull), environ).settings != former
    written(token, "")
    with pytest.raises(ConfigError, match="is empty"):
        reread_secrets(former)
    written(token, "Bearer new")
    with pytest.raises(ConfigError, match="printable ASCII"):
        reread_secrets(former)
