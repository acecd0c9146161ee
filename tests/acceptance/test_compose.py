"""`docker compose up`: what the file says, always; and the whole of it for real where a Docker engine answers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import load
from tests.harness import free_port, wait_until
from tests.harness.publisher import LedgerPublisher

ROOT = Path(__file__).parents[2]
TOPIC = "edge/predictions"
DOCKER = shutil.which("docker") or "false"
IMAGE_BYTES_MAX = 70_000_000  # on top of its base image
UP_SECONDS = 300
MESSAGES, MESSAGES_PER_SECOND = 5000, 1000
STAYING = ("mosquitto", "bridge")
OWN = (*STAYING, "receiver")


def compose_file() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


SERVICES: dict[str, dict[str, Any]] = compose_file()["services"]
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


# ---- what stands in the files ----


@each_service
def test_every_service_is_bounded_and_has_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_a_clean_clone_starts_broker_bridge_and_receiver_and_a_site_leaves_the_receiver_out() -> None:
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line and line[0] != "#"]
    assert lines == ["COMPOSE_PROFILES=demo"]
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert {name for name, asked in profiles.items() if not asked} == set(STAYING)
    assert {name for name, asked in profiles.items() if asked in ([], ["demo"])} == set(OWN)


def test_the_bridge_in_it_has_a_valid_configuration(tmp_path: Path) -> None:
    environment = dict(SERVICES["bridge"]["environment"])
    (tmp_path / "password").write_text("secret")
    environment["BRIDGE_MQTT__PASSWORD_FILE"] = str(tmp_path / "password")
    settings = load(None, {name: _unset(value) for name, value in environment.items()}).settings
    assert settings.upload.url == "http://receiver:8088/"
    assert SERVICES["bridge"]["stop_grace_period"] == f"{2 * settings.shutdown_grace_seconds:g}s"
    (target,) = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert target["static_configs"][0]["targets"] == [f"bridge:{settings.web.port}"]


def _unset(text: str) -> str:
    """Fill a value in as compose does where no variable is set: `${NAME:-default}`, `${NAME:+alternative}`."""
    if not text.startswith("${"):
        return text
    return text.removesuffix("}").partition(":-")[2]


def test_what_the_image_is_built_from_is_let_through_and_nothing_else() -> None:
    allowed = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        word
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == allowed


def test_the_label_says_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f'description="{project["description"]}"' in dockerfile
    assert f'licenses="{project["license"]}"' in dockerfile


# ---- for real ----


class Compose:
    """The shipped file under a name and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.ports: dict[str, int] = {}
        override = folder / "override.yml"
        # Some engines build without a network of their own.
        override.write_text(yaml.safe_dump({"services": {name: {"build": {"network": "host"}} for name in OWN}}))
        self._project = f"edge-bridge-test-{os.getpid()}"
        self._words = ["compose", "-p", self._project, "-f", str(ROOT / "docker-compose.yml"), "-f", str(override)]

    def start(self) -> None:
        """Build and start all of it, and wait until it is healthy."""
        self("build", "bridge", timeout_seconds=UP_SECONDS)  # the receiver, which is the same, comes from its layers
        self("build", timeout_seconds=UP_SECONDS)
        # Not before: a port is free for a moment, not for a build.
        self.ports = {name: free_port() for name in ("MQTT_PORT", "WEB_PORT", "RECEIVER_PORT")}
        self("up", "--detach", "--wait", timeout_seconds=UP_SECONDS)

    def __call__(self, *words: str, timeout_seconds: float = 60) -> str:
        """Run a command of docker compose and return what it prints."""
        return docker(*self._words, *words, timeout_seconds=timeout_seconds, **self.ports)

    def inspect(self, service: str, template: str) -> str:
        return docker("inspect", "-f", template, f"{self._project}-{service}-1").strip()

    def kill(self, service: str) -> None:
        docker("kill", f"{self._project}-{service}-1")

    def forget_images(self) -> None:
        """Remove what was built, one after the other: an engine fails at two at once that share their layers."""
        for name in docker("image", "ls", "--format", "{{.Repository}}", f"{self._project}-*").split():
            docker("image", "rm", name)

    def image_bytes(self, image: str = "") -> int:
        return int(docker("image", "inspect", "-f", "{{.Size}}", image or f"{self._project}-bridge"))

    def publisher(self, count: int, messages_per_second: float) -> LedgerPublisher:
        """Return one that publishes so many predictions, each with an id of its own."""
        password = self("exec", "-T", "mosquitto", "cat", "/credentials/producer").strip()
        return LedgerPublisher(
            self.ports["MQTT_PORT"],
            TOPIC,
            lambda number: (str(number), b'{"prediction_id":"%d"}' % number),
            count=count,
            messages_per_second=messages_per_second,
            username="producer",
            password=password,
        )

    def wait_stored(self, count: int) -> None:
        """Wait until the receiver has so many."""
        wait_until(lambda: self.stored() >= count, 60, f"{count} at the receiver")

    def stored(self) -> int:
        """Ask the receiver how many different predictions it has."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['RECEIVER_PORT']}/stats", timeout=5) as answer:
            return int(json.load(answer)["unique"])


def docker(*words: str, timeout_seconds: float = 60, **variables: object) -> str:
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    ran = subprocess.run(
        [DOCKER, *words], env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    assert ran.returncode == 0, f"docker {' '.join(words)}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """All of it, built, started and healthy; gone afterwards with its volumes and images."""
    for question in ("info", "compose version"):
        if subprocess.run([DOCKER, *question.split()], capture_output=True, check=False).returncode:
            pytest.skip(f"no Docker engine here: `docker {question}` fails")
    compose = Compose(tmp_path_factory.mktemp("compose"))
    try:
        compose.start()
        yield compose
    finally:
        with contextlib.suppress(AssertionError):  # an engine may need a moment to give up what was just killed
            compose("down", "--volumes")
        compose("down", "--volumes", timeout_seconds=UP_SECONDS)
        compose.forget_images()


@pytest.mark.timeout(2 * UP_SECONDS)
def test_predictions_go_through_and_a_killed_container_loses_none(compose: Compose) -> None:
    """I1, I2, I4: killed in the middle of a stream, which goes on meanwhile."""
    with compose.publisher(MESSAGES, MESSAGES_PER_SECOND) as predictions:
        compose.wait_stored(MESSAGES // 10)
        compose.kill("bridge")
        assert compose.stored() < MESSAGES
        wait_until(lambda: len(predictions.confirmed) > MESSAGES // 2, 60, "the broker goes on")
        compose("start", "bridge")
        predictions.finish()
    compose.wait_stored(MESSAGES)
    assert compose.stored() == MESSAGES


@pytest.mark.timeout(2 * UP_SECONDS)
def test_a_bridge_that_dies_is_started_again(compose: Compose) -> None:
    # The child of the container's init; nothing is in there to kill it with but Python, which may go down with it.
    with contextlib.suppress(AssertionError):
        compose("exec", "-T", "bridge", "python", "-c", KILL_CHILD_OF_INIT)
    wait_until(lambda: compose.inspect("bridge", "{{.RestartCount}} {{.State.Health.Status}}") == "1 healthy", 60)


KILL_CHILD_OF_INIT = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*/stat"):
    if process.read_text().rpartition(")")[2].split()[1] == "1" and int(process.parent.name) != os.getpid():
        os.kill(int(process.parent.name), 9)
"""


@pytest.mark.timeout(2 * UP_SECONDS)
@pytest.mark.parametrize("service", ["bridge", "receiver"])
def test_it_is_not_root_and_cannot_change_its_image(compose: Compose, service: str) -> None:
    assert compose("exec", "-T", service, "python", "-c", "import os; print(os.getuid())").strip() == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        compose("exec", "-T", service, "python", "-c", "open('/opt/edge-bridge/x', 'w')")


@pytest.mark.timeout(2 * UP_SECONDS)
def test_the_image_is_small(compose: Compose) -> None:
    base = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2].splitlines()[0]
    assert compose.image_bytes() - compose.image_bytes(base) <= IMAGE_BYTES_MAX


@pytest.mark.timeout(2 * UP_SECONDS)
def test_it_stops_in_order(compose: Compose) -> None:
    compose("stop", "bridge")
    assert compose.inspect("bridge", "{{.State.ExitCode}}") == "0"
