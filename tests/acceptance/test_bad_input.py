"""Bad input gets a clear error and loses nothing. What each gives is written down here: exit status, line, hint.

Exit status 2 means that the operator must change something, and comes before MQTT is touched. A broker or a cloud
that cannot be reached is no reason to end: the bridge says so in one line of its log and goes on trying.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import free_port, wait_until
from tests.harness.bridge import BridgeProcess, refused
from tests.harness.cloud import Cloud
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

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
        assert "refused, in the loss ledger: payload of 1001 bytes is too large" in line["message"]
