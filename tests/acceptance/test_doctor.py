"""`edge-bridge doctor`, the real command, beside a running bridge, which does not notice."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.harness.bridge import child_environment
from tests.harness.cloud_stage import on_stage
from tests.harness.mosquitto import Mosquitto


@pytest.mark.usefixtures("mosquitto_installed")
def test_it_looks_at_a_running_bridge_and_takes_nothing_from_it(tmp_path: Path) -> None:
    shared = {"mqtt.topics": ["$share/plant/edge/predictions/#"], "queue.max_bytes": "64 MiB"}
    with Mosquitto(tmp_path / "mosquitto") as broker, on_stage(tmp_path, broker, settings=shared) as stage:
        stage.publish_numbered(5)
        stage.wait_delivered()
        bundle = tmp_path / "bundle.tar.gz"
        command = [sys.executable, "-m", "bridge", "doctor", "--json"]
        environment = child_environment(stage.settings | {"upload.url": stage.cloud.url})
        doctor = subprocess.Popen(
            [*command, "--bundle", str(bundle)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        while doctor.poll() is None:  # a guest in the bridge's own share group would take some of these
            stage.publish_numbered(20)
        assert doctor.stdout
        with doctor.stdout:
            shown = json.loads(doctor.stdout.read())
        assert doctor.returncode == 0, shown
        (queue,) = [line for line in shown["lines"] if line["check"] == "queue"]
        assert f"process {stage.bridge.pid}" in queue["found"]
        assert [line["found"] for line in shown["lines"] if line["check"] == "bridge"] == ["online, by its own status"]
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)
        assert stage.status["broker"]["reconnects"] == 0
        stage.bridge.terminate()
        assert stage.bridge.wait() == 0
        after = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        assert "bridge" not in {line["check"] for line in json.loads(after.stdout)["lines"]}, "it is meant to be off"
    with tarfile.open(bundle) as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"queue.json", "status.json", "log.txt", "files.txt", "configuration.json"} <= names
