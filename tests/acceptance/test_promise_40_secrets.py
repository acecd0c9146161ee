"""Promise 40, invariant I8: no secret in any output, and the files belong to the bridge's user alone.

Each secret is a canary of its own. Everything that the bridge says in good and bad hours is searched for all of them,
in the spellings in which a secret may show: as it is, in base64, percent-encoded.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.harness import REPOSITORY, figures, wait_until
from tests.harness.bridge import StatusReader, run_really
from tests.harness.cloud import Cloud, Exchange, Responder, answer, cut_after_store, redirect
from tests.harness.cloud_stage import CloudStage
from tests.harness.mosquitto import Mosquitto

CANARY = "CANARY"
PASSWORD, TOKEN, HEADER, WEB_TOKEN, PROXY = (f"{CANARY}-{name}-7f3a" for name in ("mqtt", "up", "head", "web", "proxy"))
SPELLINGS = [
    spelling
    for secret in (PASSWORD, TOKEN, HEADER, WEB_TOKEN, PROXY)
    for spelling in (secret, base64.b64encode(secret.encode())[:-4].decode(), quote(secret, safe=""), secret[::-1])
]


def assert_silent(text: str | bytes, where: str) -> None:
    shown = text if isinstance(text, str) else text.decode(errors="replace")
    assert shown, f"{where} says nothing at all"
    figures.count(outputs_searched=1)
    for spelling in (*SPELLINGS, CANARY):
        assert spelling not in shown, f"{where}: {shown[max(0, shown.find(spelling) - 200) :][:400]}"


def echo_the_request(status: int) -> Responder:
    """Answer with everything the request said: what a debugging proxy or a careless framework does."""

    async def respond(exchange: Exchange) -> None:
        said = json.dumps({"error": str(dict(exchange.request.headers)), "headers": dict(exchange.request.headers)})
        await exchange.send(status, {"Content-Type": "application/json", "X-Echo": TOKEN}, said.encode())

    return respond


@pytest.fixture
def broker(tmp_path: Path, mosquitto_installed: None) -> Iterator[Mosquitto]:
    users = {"edge-bridge": PASSWORD, "publisher": "publisher"}
    with Mosquitto(tmp_path / "mosquitto", users=users, acl="pattern readwrite #\n") as broker:
        yield broker


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


def make_stage(folder: Path, broker: Mosquitto, cloud: Cloud, **variables: str) -> CloudStage:
    """Secrets from a file, from the configuration file and from the environment; everything is logged."""
    secret_file = folder / "mqtt-password"
    secret_file.write_text(PASSWORD)
    settings = {
        "mqtt.username": "edge-bridge",
        "mqtt.password_file": str(secret_file),
        "web.token": WEB_TOKEN,
        "log.level": "debug",
    }
    upload = {"token": TOKEN, "headers": {"X-Api-Key": HEADER}}
    return CloudStage(
        folder / "stage",
        broker,
        cloud,
        upload=upload,
        settings=settings,
        wrapper=OPEN_UMASK,
        variables=variables,
        publisher=("publisher", "publisher"),
    )


# The umask of a careless start script: what is private must be so by our own doing.
OPEN_UMASK = ("sh", "-c", 'umask 000; exec "$@"', "sh")


def publish(stage: CloudStage, count: int) -> None:
    stage.publish_numbered(count)
    stage.wait_stored(len(stage.tried))


@pytest.fixture
def stage(tmp_path: Path, broker: Mosquitto, cloud: Cloud) -> Iterator[CloudStage]:
    with make_stage(tmp_path, broker, cloud, PYTHONASYNCIODEBUG="1") as stage:
        yield stage


def test_no_secret_in_log_status_web_or_metrics_in_good_and_bad_hours(
    stage: CloudStage, broker: Mosquitto, cloud: Cloud
) -> None:
    password = {"mqtt.username": "publisher", "mqtt.password": "publisher"}
    with StatusReader(stage.settings | password) as reader:
        cloud.always(echo_the_request(422))
        publish(stage, 5)
        wait_until(lambda: stage.messages["dead"] == 5, what="dead, each with an excerpt of the answer")
        for responder in (
            echo_the_request(401),
            echo_the_request(500),
            redirect(f"http://user:{TOKEN}@127.0.0.1:9/?token={TOKEN}"),
            answer(429, {"Retry-After": TOKEN}),
            cut_after_store(),
            echo_the_request(207),
            answer(200, {"Content-Type": "text/html"}, f"<html>{TOKEN} {HEADER}".encode()),
        ):
            before = len(cloud.requests)
            cloud.always(responder)
            publish(stage, 5)
            stage.hang_up()
            wait_until(lambda before=before: len(cloud.requests) > before, what="a request")  # type: ignore[misc]
        cloud.unreachable()
        wait_until(lambda: stage.cloud_state == "offline", what="offline")
        for path in ("/", "/status", "/metrics", "/livez", "/healthz", "/readyz", "/history", "/dead", "/app.js"):
            assert_silent(stage.fetch(path), path)
        cloud.always()
        cloud.reachable()
        broker.restart()
        wait_until(lambda: reader.leaves.get("state") in {"online", "degraded"}, what="status after the restart")
        stage.stop()
        wait_until(lambda: reader.leaves.get("state") == "offline", what="the farewell")
        assert_silent(json.dumps(reader.leaves), "the status topics")
    assert {request.headers.get("authorization") for request in cloud.requests} == {f"Bearer {TOKEN}"}, "it was sent"
    assert_silent(stage.bridge.stderr, "the log")
    assert CANARY not in stage.bridge.stdout
    # An answer that repeats our own request may be kept as the excerpt of a dead row.
    assert all(CANARY.encode() not in file.read_bytes() for file in stage.queue_path.iterdir())


CRASH = """
import sys
if sys.argv[:1] == ["-m"]:
    import bridge.uploader
    async def crash(self, *arguments, **more):
        headers = self._headers(arguments[0])
        settings = self._settings
        raise RuntimeError(f"simulated defect in {self!r} with {settings!r}")
    bridge.uploader.Uploader._send = crash
"""


@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_secret_in_the_text_of_a_crash(tmp_path: Path, broker: Mosquitto, cloud: Cloud, level: str) -> None:
    """A defect is simulated whose message shows the settings; the traceback must not show them either."""
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "sitecustomize.py").write_text(CRASH)
    stage = make_stage(
        tmp_path, broker, cloud, PYTHONPATH=f"{tmp_path / 'crash'}:{REPOSITORY}", BRIDGE_LOG__LEVEL=level
    )
    with stage:
        stage.publish_numbered(5)
        assert stage.bridge.wait() == 1
    assert "simulated defect" in stage.bridge.stderr
    assert "Traceback" in stage.bridge.stderr
    assert_silent(stage.bridge.stderr, "the crash")


def run(folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return run_really(*arguments, settings={key.replace("__", "."): settings[key] for key in settings}, folder=folder)


def test_no_secret_in_what_the_commands_show_of_the_configuration(tmp_path: Path) -> None:
    good = {
        "upload__url": "https://cloud.example/ingest",
        "upload__token": TOKEN,
        "upload__headers": {"X-Api-Key": HEADER},
        "upload__proxy": f"http://user:{PROXY}@proxy.example:3128",
        "mqtt__username": "edge-bridge",
        "mqtt__password": PASSWORD,
        "web__token": WEB_TOKEN,
    }
    for arguments in (["config", "show"], ["config", "show", "--json"], ["check-config"], ["check-config", "--json"]):
        shown = run(tmp_path, *arguments, **good)
        assert shown.returncode == 0, shown.stderr
        assert_silent(shown.stdout + shown.stderr, " ".join(arguments))


def test_no_secret_in_what_is_said_about_a_wrong_configuration(tmp_path: Path) -> None:
    wrong = {
        "upload__url": f"https://user:{TOKEN}@cloud.example/ingest",
        "upload__token": f"Bearer {TOKEN}",
        "upload__headers": {"X Api Key": HEADER, "X-Other": f"{HEADER}\n"},
        "upload__proxy": f"ftp://user:{PROXY}@proxy.example",
        "mqtt__password": PASSWORD,
        "web__token": f"{WEB_TOKEN} {WEB_TOKEN}",
    }
    for arguments in (["run"], ["check-config"], ["check-config", "--json"], ["config", "show"]):
        shown = run(tmp_path, *arguments, **wrong)
        assert shown.returncode == 2
        assert_silent(shown.stdout + shown.stderr, " ".join(arguments))
    (tmp_path / "headers.toml").write_text(f'[upload]\nurl = "https://c.example"\nheaders = "X-Api-Key: {HEADER}"\n')
    shown = run(tmp_path, "check-config", "--config", "headers.toml")
    assert shown.returncode == 2
    assert_silent(shown.stdout + shown.stderr, "headers of the wrong kind")


def test_files_are_0600_and_folders_0700_whatever_the_umask(stage: CloudStage, cloud: Cloud) -> None:
    cloud.always(answer(401))
    publish(stage, 20)
    names = {path.name for path in stage.queue_path.iterdir()}
    assert {"data.db", "data.db-wal", "bridge.lock"} <= names
    everything = [stage.queue_path, *stage.queue_path.rglob("*")]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in everything} == {
        path.name: "0o700" if path.is_dir() else "0o600" for path in everything
    }


def test_files_that_were_open_to_all_are_closed_at_the_start(stage: CloudStage) -> None:
    stage.stop()
    stage.queue_path.chmod(0o755)
    for file in stage.queue_path.iterdir():
        file.chmod(0o644)
    stage.start()
    assert stage.queue_path.stat().st_mode & 0o777 == 0o700
    assert {oct(file.stat().st_mode & 0o777) for file in stage.queue_path.iterdir()} == {"0o600"}
