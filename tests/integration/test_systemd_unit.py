"""The shipped systemd unit: systemd itself reads it without a complaint, and it agrees with what the bridge does."""

from __future__ import annotations

import os
import subprocess
from configparser import ConfigParser
from pathlib import Path

from bridge.config.load import load, supervision
from bridge.config.settings import Settings
from bridge.errors import OperatorError
from bridge.liveness import GRACE_SECONDS
from tests.harness.programs import require

UNIT = Path(__file__).parents[2] / "config/systemd/edge-bridge.service"
EXPOSURE_MAX = 2.0  # of 10
PROGRAM = "/opt/edge-bridge/bin/edge-bridge"


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    systemd_analyze = require("systemd-analyze", "apt-get install systemd")
    return subprocess.run([systemd_analyze, *words], capture_output=True, text=True, check=False, timeout=60)


def test_systemd_has_nothing_to_complain_about(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))  # it looks whether the program is there
    verdict = analyze("verify", "--man=no", str(copy))
    complaints = [line for line in verdict.stderr.splitlines() if UNIT.name in line]
    assert (verdict.returncode, complaints) == (0, [])


def test_it_may_do_no_more_than_it_needs() -> None:
    verdict = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}", str(UNIT))
    assert verdict.returncode == 0, verdict.stdout


def test_its_environment_is_a_valid_configuration_beside_a_file_with_the_rest(tmp_path: Path) -> None:
    for credential in ("upload.token", "mqtt.password"):
        (tmp_path / credential).write_text("secret")
    file = tmp_path / "bridge.toml"
    file.write_text('mqtt.username = "bridge"\nupload.url = "https://cloud.example/"\n')
    lines = [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith("Environment=")]
    environment = dict(line.replace("%d", str(tmp_path)).replace("%S", "/var/lib").split("=", 1) for line in lines)
    settings = load(file, environment).settings
    assert settings.queue.path == Path("/var/lib/edge-bridge")
    assert settings.upload.token is not None
    assert settings.mqtt.password is not None


def test_the_unit_agrees_with_the_bridge() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["RestartPreventExitStatus"]) == OperatorError.exit_status
    assert int(service["WatchdogSec"]) == GRACE_SECONDS
    grace_seconds = Settings.model_fields["shutdown_grace_seconds"].default
    assert int(service["TimeoutStopSec"]) > grace_seconds


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    ours = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}
    assert supervision(ours, os.getpid()) == ("/run/notify", 120.0)
    assert supervision(ours | {"WATCHDOG_PID": "1"}, os.getpid()) == ("/run/notify", None)
    assert supervision({"WATCHDOG_USEC": "soon"}, os.getpid()) == (None, None)
    assert supervision({}, os.getpid()) == (None, None)
