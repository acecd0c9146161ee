"""The shipped systemd unit: systemd itself reads it without a complaint, and it agrees with what the bridge does."""

from __future__ import annotations

import os
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from bridge.config.load import supervision
from bridge.config.settings import Settings
from bridge.errors import OperatorError
from bridge.liveness import GRACE_SECONDS

UNIT = Path(__file__).parents[2] / "config/systemd/edge-bridge.service"
PROGRAM = "/opt/edge-bridge/bin/edge-bridge"


def test_systemd_has_nothing_to_complain_about(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd here")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))  # it looks whether the program is there
    verify = [analyze, "verify", "--man=no", str(copy)]
    verdict = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in verdict.stderr.splitlines() if UNIT.name in line]
    assert (verdict.returncode, complaints) == (0, [])


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
