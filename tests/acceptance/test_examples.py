"""Each example is run as its users run it, against a real Mosquitto and a real bridge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, wait_until
from tests.harness.stage import Stage

EXAMPLES = REPOSITORY / "examples"
RUN_SECONDS = 60


def start(stage: Stage, *words: str) -> subprocess.Popen[str]:
    variables = {"PYTHONPATH": str(REPOSITORY), "BRIDGE_MQTT__PORT": str(stage.broker.port)}
    return subprocess.Popen(words, env=os.environ | variables, cwd=stage.folder, stdout=subprocess.PIPE, text=True)


def run(stage: Stage, name: str, *words: str) -> str:
    """Run an example to its end and return what it printed."""
    process = start(stage, sys.executable, str(EXAMPLES / name), *words)
    output, _ = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0
    return output


def frames(stage: Stage) -> list[object]:
    return [json.loads(arrivals[0].data)["data"].get("frame") for arrivals in list(stage.cloud.stored.values())]


def test_the_classifier_publishes_every_frame(stage: Stage) -> None:
    pytest.importorskip("sklearn")
    stage.launch()
    run(stage, "classifier_service.py", "--frames", "100", "--per-second", "500")
    wait_until(lambda: sorted(map(str, frames(stage))) == sorted(map(str, range(100))), 20)


def test_the_camera_loop_waits_for_its_alarms(stage: Stage) -> None:
    stage.launch()
    output = run(stage, "camera_loop.py", "--frames", "200")
    wait_until(lambda: sorted(frames(stage), key=str) == sorted(range(200), key=str), 20)
    cracks = [arrivals for arrivals in list(stage.cloud.stored.values()) if b'"label":"crack"' in arrivals[0].data]
    assert output.count("alarm is delivered") == len(cracks)


def test_offline_first_works_without_a_broker_and_catches_up(stage: Stage) -> None:
    stage.launch()
    stage.broker.stop()
    script = str(EXAMPLES / "offline_first.py")
    with start(stage, sys.executable, "-u", script, "--spool", "spool", "--frames", "100") as process:
        assert process.stdout
        next(line for line in process.stdout if line == "100 in the spool, broker away\n")
        process.kill()
    stage.broker.start()
    assert "100 left from last time" in run(stage, "offline_first.py", "--spool", "spool", "--frames", "0")
    wait_until(lambda: sorted(frames(stage), key=str) == sorted(range(100), key=str), 20)


def wait_running(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    next(line for line in process.stdout if "Running on" in line)


def test_the_cloud_end_takes_what_the_bridge_posts(stage: Stage, free_port: int) -> None:
    process = start(stage, sys.executable, "-u", str(EXAMPLES / "cloud_end.py"), "--port", str(free_port))
    try:
        wait_running(process)
        stage.launch(settings={"upload.url": f"http://127.0.0.1:{free_port}/events"})
        stage.publish(300)

        def stored() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/count", timeout=5) as answer:
                return int(answer.read())

        wait_until(lambda: stored() == 300, 20)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("body", [b"{", b"{}", b'[{"id":"a","data":1},{"id":"b"}]'])
def test_the_cloud_end_says_what_is_bad(stage: Stage, free_port: int, body: bytes) -> None:
    process = start(stage, sys.executable, "-u", str(EXAMPLES / "cloud_end.py"), "--port", str(free_port))
    try:
        wait_running(process)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/events", body, timeout=5) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
            error.close()
    finally:
        process.kill()
        process.communicate()
    if body.startswith(b"["):
        assert (status, [result["status"] for result in json.loads(text)["results"]]) == (207, [201, 422])
    else:
        assert status == 400


def test_the_shell_script_gets_its_receipt(stage: Stage) -> None:
    stage.launch()
    with start(stage, "sh", str(EXAMPLES / "producer.sh")) as process:
        output, _ = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0
    assert json.loads(output)["state"] == "stored"
    wait_until(lambda: stage.cloud.unique == 4, 20)


def test_every_example_is_short_and_in_the_list() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    files = [path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh"}]
    assert len(files) == 5
    for path in files:
        assert f"({path.name})" in listed
        assert len(Path(path).read_text().splitlines()) <= 65
