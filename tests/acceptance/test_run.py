"""`edge-bridge run` from outside: what its death looks like on MQTT, and what SIGHUP changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import orjson

from tests.harness import wait_until
from tests.harness.bridge import BridgeProcess, StatusReader
from tests.harness.cloud import Cloud
from tests.harness.mosquitto import program
from tests.harness.stage import TOPIC, Stage, identified

OFFLINE_SECONDS = 5


def test_sigkill_turns_the_state_offline_on_both_topics(stage: Stage) -> None:
    bridge = stage.launch()
    with StatusReader(stage.settings) as status:
        wait_until(lambda: (status.state, status.whole.get("state")) == ("online", "online"))
        bridge.kill()
        wait_until(lambda: (status.state, status.whole.get("state")) == ("offline", "offline"), OFFLINE_SECONDS)
    with StatusReader(stage.settings) as late:  # retained, so for who comes later too
        wait_until(lambda: (late.state, late.whole.get("state")) == ("offline", "offline"))


def test_a_subscription_that_an_older_configuration_left_in_the_session_makes_no_loop(stage: Stage) -> None:
    client_id = "edge-bridge-stage"
    old = [program("mosquitto_sub") or "", "-p", str(stage.broker.port), "-V", "5", "-i", client_id, "-c", "-q", "1"]
    subprocess.run([*old, "-x", "3600", "-t", "edge/#", "-E"], check=True, timeout=20)
    bridge = stage.launch(settings={"status.interval_seconds": 0.2})
    wait_until(lambda: stage.log("comes back and is not taken"))
    publisher = stage.publish(200, payload=identified)
    stage.drain()
    bridge.terminate()
    assert bridge.wait() == 0
    stage.audit(publisher).assert_kept()
    topics = {orjson.loads(arrivals[0].data)["subject"] for arrivals in stage.cloud.stored.values()}
    assert topics == {TOPIC}


class Configured:
    """A bridge on stage whose `[upload]` and `[log]` stand in a file that can be changed."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage, self._file = stage, folder / "bridge.toml"
        self.token_file = folder / "token"
        settings = {key: value for key, value in stage.settings.items() if not key.startswith("upload.")}
        self.bridge = BridgeProcess(stage.folder, settings, command=("run", "--config", str(self._file)))

    def write(self, text: str) -> None:
        self._file.write_text(text)

    def hang_up(self, words: str) -> None:
        """SIGHUP, and wait for the line that says what came of it."""
        before = len(self._stage.log(words))
        self.bridge.hup()
        wait_until(lambda: len(self._stage.log(words)) > before, what=words)


def test_sighup_moves_the_upload_to_another_place_and_keeps_what_is_wrong_out(stage: Stage, tmp_path: Path) -> None:
    configured = Configured(stage, tmp_path)
    with Cloud() as elsewhere, configured.bridge as bridge:
        configured.write(f'[upload]\nurl = "{stage.cloud.url}"\n')
        bridge.wait_ready()
        publisher = stage.publish(100)
        stage.drain()
        configured.write('[upload]\nurl = "ftp://nowhere"\n')
        configured.hang_up("configuration not reloaded")
        stage.drain()
        configured.write(f'[intake]\nlinger_ms = 7\n[upload]\nurl = "{elsewhere.url}"\n')
        configured.hang_up("configuration reloaded; only a restart changes intake")
        arrived = stage.cloud.unique
        stage.publish(1, payload=lambda _: identified(1000))
        wait_until(lambda: elsewhere.unique == 1)
        assert stage.cloud.unique == arrived
        bridge.terminate()
        assert bridge.wait() == 0
    stage.audit(publisher).assert_kept(duplicates_max=0)


def test_sighup_reads_the_token_file_again(stage: Stage, tmp_path: Path) -> None:
    configured = Configured(stage, tmp_path)
    configured.token_file.write_text("first")
    configured.write(f'[upload]\nurl = "{stage.cloud.url}"\ntoken_file = "{configured.token_file}"\n')
    with configured.bridge as bridge:
        bridge.wait_ready()
        stage.drain()
        configured.token_file.write_text("second")
        configured.hang_up("configuration reloaded")
        stage.drain()
    tokens = [request.headers["authorization"] for request in stage.cloud.requests]
    assert tokens == ["Bearer first", "Bearer second"]
