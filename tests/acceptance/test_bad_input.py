"""Bad input gets a clear error and loses nothing. What each gives is written down here: exit status, line, hint.

Exit status 2 means that the operator must change something, and comes before MQTT is touched. A broker or a cloud
that cannot be reached is no reason to end: the bridge says so in one line of its log and goes on trying.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import free_port, wait_until
from tests.harness.bridge import BridgeProcess
from tests.harness.cloud import Cloud
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

STOCK_TABLE = "CREATE TABLE ack_queue_default (_id INTEGER PRIMARY KEY, data BLOB, timestamp FLOAT, status INTEGER)"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """A configuration that is right, with nobody to talk to."""
    return {
        "device_id": "bad-input",
        "mqtt.port": free_port(),
        "upload.url": f"http://127.0.0.1:{free_port()}/",
        "queue.path": str(tmp_path / "queue"),
        "web.port": 0,
    }


def refused(folder: Path, settings: Mapping[str, object]) -> list[str]:
    """Run the bridge, which must end with status 2 and without a traceback; return its lines, the hint last."""
    bridge = BridgeProcess(folder / "run", settings)
    with bridge:
        assert bridge.wait() == 2, bridge.stderr
    assert bridge.stdout == ""
    assert "Traceback" not in bridge.stderr
    *errors, hint = bridge.stderr.splitlines()
    assert hint.startswith("hint: ")
    assert all(line.startswith("edge-bridge: error: ") for line in errors)
    return [*(line.removeprefix("edge-bridge: error: ") for line in errors), hint.removeprefix("hint: ")]


# ---- wrong configuration ----


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_made(tmp_path: Path, settings: dict[str, object]) -> None:
    wrong = {
        "mqtt.qos": 2,
        "mqtt.topics": ["edge/#/x"],
        "queue.overflow": "drop-all",
        "upload.url": "cloud.example",
        "upload.retry_min_seconds": 90,
        "upload.tokn": "x",
    }
    *errors, hint = refused(tmp_path, settings | wrong)
    assert sorted(line.partition(":")[0].partition("[")[0] for line in errors) == sorted(wrong)
    assert hint == "`edge-bridge config schema` describes every key"
    assert "did you mean" in next(line for line in errors if line.startswith("upload.tokn"))
    assert not (tmp_path / "queue").exists()


def test_a_missing_address_says_which_key(tmp_path: Path, settings: dict[str, object]) -> None:
    del settings["upload.url"]
    error, _ = refused(tmp_path, settings)
    assert error.startswith("upload.url")
    assert "https://cloud.example/ingest" in error


@pytest.mark.parametrize("section", ["upload", "mqtt"])
def test_a_certificate_that_is_none_is_named(tmp_path: Path, settings: dict[str, object], section: str) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    error, hint = refused(tmp_path, settings | {f"{section}.tls.ca": str(tmp_path / "ca.pem")})
    assert error.startswith(f"{section}.tls")
    assert "cannot be used" in error
    assert hint.startswith("check ")


# ---- a queue that cannot be used ----

FOLDER_HINT = "make it a folder that this user may write to, or set queue.path to another one"
FILE_HINT = "make it a regular file that this user may write to, or set queue.path to another folder"
ELSEWHERE_HINT = "nothing was changed; move it away, or set queue.path to another folder"
NOT_OURS_HINT = "nothing was changed; move the file away, mend its rights, or change queue.path"


def under_a_file(queue: Path) -> Path:
    queue.write_text("in the way")
    return queue / "below"


def a_file(queue: Path) -> Path:
    queue.write_text("in the way")
    return queue


def where_nobody_may_write(_queue: Path) -> Path:
    return Path("/proc/edge-bridge")  # not even root


def dangling_link(queue: Path) -> Path:
    queue.symlink_to(queue.with_name("nowhere"))
    return queue


def with_a_link_for_a_lock(queue: Path) -> Path:
    queue.mkdir()
    (queue / "bridge.lock").symlink_to(queue.with_name("victim"))
    return queue


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (under_a_file, "Not a directory"),
        (a_file, "File exists"),
        (where_nobody_may_write, "No such file or directory"),
        (dangling_link, "File exists"),
        (with_a_link_for_a_lock, "Too many levels of symbolic links"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, settings: dict[str, object], make: Callable[[Path], Path], reason: str
) -> None:
    folder = make(tmp_path / "queue")
    error, hint = refused(tmp_path, settings | {"queue.path": str(folder)})
    assert error == f"the queue folder {folder} cannot be used: {reason}"
    assert hint == FOLDER_HINT
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "victim").exists()


def another_programs_tables(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.execute("INSERT INTO recipes VALUES ('soup')")


def our_tables_name_with_other_columns(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE ack_queue_default (name TEXT)")


def a_newer_format(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(STOCK_TABLE)
        connection.execute("PRAGMA user_version = 999")


def no_database_at_all(file: Path) -> None:
    file.write_bytes(b"Dear diary, today I lost nothing. " * 200)


def a_few_bytes(file: Path) -> None:
    file.write_bytes(b"xyz")  # a single byte would be an empty database to SQLite


def a_folder(file: Path) -> None:
    file.mkdir()


def a_link(file: Path) -> None:
    file.with_name("target").write_bytes(b"somebody's")
    file.symlink_to(file.with_name("target"))


def a_pipe(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (another_programs_tables, "is a database of another program (its tables: recipes)", ELSEWHERE_HINT),
        (
            our_tables_name_with_other_columns,
            "is a database of another program (its tables: ack_queue_default)",
            ELSEWHERE_HINT,
        ),
        (
            a_newer_format,
            "was written by a newer edge-bridge (format 999, this one knows 1)",
            "nothing was changed; install that version again, or drain the queue with it first",
        ),
        (no_database_at_all, "is not a SQLite database", NOT_OURS_HINT),
        (a_few_bytes, "is not a SQLite database", NOT_OURS_HINT),
        (a_folder, "cannot be used: Is a directory", FILE_HINT),
        (a_link, "cannot be used: Too many levels of symbolic links", FILE_HINT),
        (a_pipe, "is not a regular file", "move it away, or set queue.path to another folder"),
    ],
)
def test_a_data_file_that_is_not_ours_is_refused_and_not_changed(
    tmp_path: Path, settings: dict[str, object], make: Callable[[Path], None], words: str, hint: str
) -> None:
    folder = tmp_path / "queue"
    folder.mkdir()
    make(folder / "data.db")
    before = fingerprint(folder)
    assert refused(tmp_path, settings) == [f"{folder / 'data.db'} {words}", hint]
    (folder / "bridge.lock").unlink()
    assert fingerprint(folder) == before


def fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything in a folder."""
    return {
        path.name: (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.iterdir()
    }


def test_a_view_by_the_name_of_our_table_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "queue").mkdir()
    with closing(sqlite3.connect(tmp_path / "queue" / "data.db")) as connection:
        connection.execute("CREATE VIEW ack_queue_default AS SELECT 1 AS _id, 2 AS data, 3 AS timestamp, 4 AS status")
    error, hint = refused(tmp_path, settings)
    assert error.startswith(f"{tmp_path / 'queue' / 'data.db'} is a database of another program")
    assert hint == ELSEWHERE_HINT


def test_a_folder_that_others_use_keeps_its_rights(tmp_path: Path, settings: dict[str, object]) -> None:
    """A slip like queue.path = "/home/me" must not close that folder to everybody else."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "somebody.txt").write_text("else")
    bridge = BridgeProcess(tmp_path / "run", settings | {"queue.path": str(shared)})
    with bridge:
        wait_until(lambda: not bridge.running or (shared / "data.db").exists(), what="open or refused")
    assert shared.stat().st_mode & 0o777 == 0o755


def test_a_linked_folder_and_an_empty_file_are_fine(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The other side of the line: /var/lib/edge-bridge may be a link to a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "data.db").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    with on_stage(tmp_path, mosquitto, settings={"queue.path": str(tmp_path / "linked")}) as stage:
        stage.publish_numbered(3)
        stage.wait_delivered()
    assert (tmp_path / "linked").is_symlink()


# ---- a broker or a cloud that is not there ----


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


def wait_for_line(bridge: BridgeProcess, words: str) -> str:
    def line() -> str | None:
        assert bridge.running, bridge.stderr
        return next((line for line in bridge.stderr.splitlines() if words in line), None)

    return wait_until(line, what=f"a line with: {words}") or ""


@pytest.mark.parametrize(
    ("host", "reason"),
    [("127.0.0.1", "Connection refused"), ("no-such-broker.invalid", "Name or service not known")],
)
def test_a_broker_that_cannot_be_reached_is_named_in_one_line(
    tmp_path: Path, settings: dict[str, object], host: str, reason: str
) -> None:
    bridge = BridgeProcess(tmp_path / "run", settings | {"mqtt.host": host})
    with bridge:
        where = f"{host}:{settings['mqtt.port']}"
        line = wait_for_line(bridge, "no connection to the broker")
        assert f"no connection to the broker: cannot connect to {where}: " in line
        assert reason in line or "name resolution" in line
        bridge.terminate()
        assert bridge.wait() == 0
    assert bridge.stderr.count("no connection to the broker") == 1
    assert "Traceback" not in bridge.stderr


def test_a_broker_that_comes_later_is_found(tmp_path: Path, mosquitto: Mosquitto, cloud: Cloud) -> None:
    mosquitto.stop()
    stage = CloudStage(tmp_path / "stage", mosquitto, cloud)
    with stage.bridge:
        wait_for_line(stage.bridge, "no connection to the broker")
        mosquitto.start()
        wait_for_line(stage.bridge, "connected to the broker")
        stage.publish_numbered(5)
        stage.wait_delivered()
        stage.stop()


def test_refused_credentials_are_told_and_the_queue_is_kept(
    tmp_path: Path, mosquitto_installed: None, cloud: Cloud
) -> None:
    wrong = {"mqtt.username": "edge-bridge", "mqtt.password": "wrong"}
    with Mosquitto(tmp_path / "mosquitto", users={"edge-bridge": "right"}) as broker:
        stage = CloudStage(tmp_path / "stage", broker, cloud, settings=wrong)
        with stage.bridge:
            line = wait_for_line(stage.bridge, "no connection to the broker")
            assert f"127.0.0.1:{broker.port} refused the connection: Not authorized" in line
            assert not stage.status["broker"]["connected"]
            assert stage.status["state"] == "degraded"
            assert "Not authorized" in stage.status["reason"]
            stage.stop()
    assert stage.bridge.stderr.count("refused the connection") == 1
    assert "wrong" not in stage.bridge.stderr


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unreachable_cloud_is_told_in_one_line_and_loses_nothing(
    tmp_path: Path, mosquitto: Mosquitto, cloud: Cloud, scheme: str
) -> None:
    """https: a server that does not speak TLS."""
    url = f"{scheme}://127.0.0.1:{free_port() if scheme == 'http' else cloud.port}/"
    with CloudStage(tmp_path / "stage", mosquitto, cloud, upload={"url": url, "timeout_seconds": 1.0}) as stage:
        stage.publish_numbered(20)
        stage.wait_stored(20)
        wait_until(lambda: stage.cloud_state == "offline", what="offline")
        assert stage.status["state"] == "degraded"
        assert len(stage.log("uploading fails, the queue keeps the messages")) == 1
        stage.reconfigure(url=cloud.url)
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)


def test_a_web_port_that_is_taken_keeps_nothing_from_being_delivered(
    tmp_path: Path, mosquitto: Mosquitto, cloud: Cloud
) -> None:
    stage = CloudStage(tmp_path / "stage", mosquitto, cloud, settings={"web.port": cloud.port})
    with stage.bridge:
        wait_for_line(stage.bridge, "the web page cannot listen")
        wait_for_line(stage.bridge, "connected to the broker")
        stage.publish_numbered(5)
        stage.wait_delivered()
        stage.stop()


# ---- payloads ----


def test_payloads_that_are_malformed_or_too_large_are_kept_or_refused_and_stop_nobody(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """In short; promise 16 has the long list."""
    with on_stage(tmp_path, mosquitto, settings={"intake.max_payload_bytes": 1000}) as stage:
        stage.publish([b"", b"{", b"\xff\x00", b"x" * 1001, b'"' + b"x" * 998 + b'"', b"y" * 1_000_000])
        stage.publish_ids(["the-last"])
        wait_until(lambda: "the-last" in stage.cloud.stored, what="the last one delivered")
        assert stage.cloud.unique == 5
        assert stage.messages["refused"] == 2
        line = stage.log("too large")[0]
        assert line["level"] == "warning"
        assert "refused, they are in the loss ledger: payload of 1001 bytes is too large" in line["message"]
