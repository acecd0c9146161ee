"""`edge-bridge doctor` in this process, against a real Mosquitto and a scripted cloud; beside a bridge and without."""

from __future__ import annotations

import json
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import doctor
from bridge.disk_queue import FILE_NAME, DiskQueue, NewRow
from bridge.doctor.line import fail, ok
from bridge.doctor.probes import in_thread
from tests.harness import free_port
from tests.harness.authority import Authority
from tests.harness.bridge import environment
from tests.harness.cloud import Cloud, answer
from tests.harness.command import run_command
from tests.harness.mosquitto import Mosquitto

Found = dict[str, list[dict[str, Any]]]
BASE: dict[str, object] = {"device_id": "press-4", "queue.min_free_disk_bytes": 0, "queue.max_bytes": "1 MiB"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    users = {"bridge": "right-password", "producer": "other-password"}
    with Mosquitto(tmp_path_factory.mktemp("doctor") / "mosquitto", users=users, tls=True) as broker:
        yield broker


def run(folder: Path, settings: dict[str, object], *words: str) -> tuple[int, str]:
    done = run_command("doctor", *words, folder=folder, variables=environment(BASE | settings))
    assert done.stderr == ""
    return done.returncode, done.stdout


def look(folder: Path, settings: dict[str, object]) -> tuple[int, Found]:
    """Return the exit status, and the lines by check."""
    status, shown = run(folder, settings, "--json")
    found: Found = {}
    for line in json.loads(shown)["lines"]:
        found.setdefault(line["check"], []).append(line)
    return status, found


def at(broker: Mosquitto, cloud: Cloud, **more: object) -> dict[str, object]:
    named = {"mqtt.port": broker.port, "mqtt.username": "bridge", "mqtt.password": "right-password"}
    return named | {"upload.url": cloud.url} | more


@pytest.mark.usefixtures("mosquitto_installed")
def test_all_well_and_nothing_is_taken_or_left_behind(tmp_path: Path, broker: Mosquitto) -> None:
    with Cloud() as cloud:
        topics = ["edge/predictions/#", "$share/plant/edge/more/+"]
        status, found = look(tmp_path, at(broker, cloud, **{"mqtt.topics": topics, "upload.token": "a-token"}))
    assert status == 0
    assert {
        line["grade"] for check in found for line in found[check] if check not in {"disk speed", "file system"}
    } == {"ok"}
    assert [line["found"].split(" ")[0] for line in found["subscription"]] == topics
    assert "came back" in found["publish"][0]["found"]
    (request,) = cloud.requests
    assert (request.body, request.events) == (b"[]", ())
    assert request.headers["authorization"] == "Bearer a-token"
    assert not (tmp_path / "data").exists()
    assert "edge-bridge-doctor-" in broker.log
    assert "edge-bridge-press-4" not in broker.log, "the session of the bridge itself"


@pytest.mark.usefixtures("mosquitto_installed")
def test_a_wrong_password_and_what_the_acl_forbids_are_told(tmp_path: Path, broker: Mosquitto) -> None:
    with Cloud() as cloud:
        cloud.always(answer(401, {"Date": "Mon, 01 Jun 2020 12:00:00 GMT"}))
        status, found = look(tmp_path, at(broker, cloud, **{"mqtt.password": "wrong"}))
        assert status == 1
        assert "refused the connection" in found["broker"][0]["found"]
        assert found["cloud"][0]["advice"] == "check upload.token"
        assert "ahead of the cloud's" in found["clock"][0]["found"]
        cloud.always()
        named = {"mqtt.username": "producer", "mqtt.password": "other-password"}
        status, found = look(tmp_path, at(broker, cloud, **named))
    assert status == 1
    assert (found["broker"][0]["grade"], found["publish"][0]["grade"]) == ("ok", "fail")
    assert found["publish"][0]["advice"] == "let the broker's ACL say: topic readwrite edge/buffer/status/#"


@pytest.mark.usefixtures("mosquitto_installed")
def test_the_dates_of_both_certificates_are_told_also_of_an_expired_one(tmp_path: Path, broker: Mosquitto) -> None:
    authority = Authority(tmp_path)
    assert broker.certificates
    with Cloud(tls=authority.server_context(since_days=-9, until_days=-2)) as cloud:
        tls = {"mqtt.port": broker.tls_port, "mqtt.tls.ca": str(broker.certificates.ca)}
        status, found = look(tmp_path, at(broker, cloud, **tls, **{"upload.tls.ca": str(authority.file)}))
    assert status == 1
    assert found["broker"][0]["grade"] == "ok"
    assert "is good until" in found["broker TLS"][0]["found"]
    assert "certificate has expired" in found["cloud"][0]["found"]
    assert "expired 2 days ago" in found["cloud TLS"][0]["found"]


def test_with_nothing_reachable_it_ends_in_time(tmp_path: Path) -> None:
    settings: dict[str, object] = {"mqtt.host": "192.0.2.1", "upload.url": "https://nobody.invalid/ingest"}
    started_at = time.monotonic()
    status, found = look(tmp_path, settings)
    assert time.monotonic() - started_at < 10
    assert status == 1
    assert {found[check][0]["grade"] for check in ("broker", "cloud name", "cloud")} == {"fail"}


def test_what_is_wrong_in_the_configuration_is_told_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    status, found = look(tmp_path, {"mqtt.port": free_port()})
    assert status == 2
    assert "upload.url" in found["configuration"][0]["found"]
    assert found["broker"][0]["grade"] == "fail"
    assert "not tried" in found["cloud"][0]["found"]
    assert found["queue"][0]["grade"] == "ok"


def test_an_unknown_key_is_told_with_the_nearest(tmp_path: Path) -> None:
    status, found = look(tmp_path, {"upload.tokne": "x", "upload.url": "http://127.0.0.1:9/"})
    assert (status, set(found)) == (2, {"configuration"})
    assert "did you mean BRIDGE_UPLOAD__TOKEN?" in found["configuration"][0]["found"]


async def test_a_look_that_never_returns_is_left_alone() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError):
        await in_thread(never.wait, 0.05)
    never.set()
    assert await in_thread(lambda: 5, 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0, 5)


def test_the_queue_that_a_bridge_left_is_read_and_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    queue = DiskQueue(folder)
    with queue.transaction():
        queue.put_rows([NewRow(b'{"id":"%d"}' % n, 1.0) for n in range(3)])
    queue.close()
    before = (folder / FILE_NAME).read_bytes()
    settings: dict[str, object] = {"mqtt.port": free_port(), "upload.url": "http://127.0.0.1:9/"}
    _, found = look(tmp_path, settings)
    assert "3 waiting" in found["queue"][0]["found"]
    assert (folder / FILE_NAME).read_bytes() == before
    with (folder / FILE_NAME).open("r+b") as file:
        file.write(bytes(4096))
    _, found = look(tmp_path, settings)
    assert (found["queue"][0]["grade"], "repair" in found["queue"][0]["advice"]) == ("fail", True)
    assert [path.name for path in folder.glob("*damaged*")] == [], "setting aside is not the doctor's business"


def test_the_bundle_holds_no_secret(tmp_path: Path) -> None:
    secrets = {
        "mqtt.password": "CANARY-mqtt",
        "upload.token": "CANARY-token",
        "web.token": "CANARY-web",
        "upload.headers": {"X-Api-Key": "CANARY-header"},
        "upload.proxy": f"http://user:CANARY-proxy@127.0.0.1:{free_port()}",
    }
    settings: dict[str, object] = {"mqtt.username": "b", "mqtt.port": free_port(), "upload.url": "http://127.0.0.1:9/"}
    bundle = tmp_path / "bundle.tar.gz"
    run(tmp_path, settings | secrets, "--bundle", str(bundle))
    with tarfile.open(bundle) as tar:
        members = {Path(name.name).name: tar.extractfile(name).read() for name in tar.getmembers()}  # type: ignore[union-attr]
    assert set(members) == {"doctor.txt", "doctor.json", "configuration.json", "versions.json"}
    assert json.loads(members["configuration.json"])["mqtt.username"]["value"] == "b"
    assert b"CANARY" not in b"".join(members.values())
    assert bundle.stat().st_mode & 0o777 == 0o600
    again = run_command("doctor", "--bundle", str(bundle), folder=tmp_path, variables=environment(settings))
    assert (again.returncode, "File exists" in again.stderr) == (2, True)


def test_on_a_terminal_the_list_is_coloured_and_nothing_in_it_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    doctor._print([ok("disk speed", "0.9 ms a sync"), fail("broker", "says \x1b[2J", "look at its log")])
    shown = capsys.readouterr().out
    assert "0.9 ms a sync" in shown
    assert "→ look at its log" in shown
    assert "1 failed, 0 to look at, 1 fine" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[" in shown


def test_a_bundle_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    variables = environment({"upload.url": "http://127.0.0.1:9/", "mqtt.port": free_port()})
    done = run_command("doctor", "--bundle", "/nowhere/bundle.tar.gz", folder=tmp_path, variables=variables)
    assert done.returncode == 2
    assert "/nowhere/bundle.tar.gz" in done.stderr
