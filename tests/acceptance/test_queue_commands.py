"""`edge-bridge queue …`, the real command, on a running bridge and on a stopped one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from tests.harness import wait_until
from tests.harness.queue_scene import BAD, on_scene


@pytest.mark.usefixtures("mosquitto_installed")
@pytest.mark.parametrize("kind", ["live", "offline"])
def test_dead_rows_are_found_requeued_and_delivered(tmp_path: Path, kind: Literal["live", "offline"]) -> None:
    with on_scene(tmp_path, kind) as scene:
        listed = scene.run_really("list", "--state", "dead", "--json")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == BAD
        refused = scene.run_really("discard", "--state", "dead")
        assert (refused.returncode, refused.stderr.splitlines()[-1]) == (2, "hint: add --yes to do it")
        assert json.loads(scene.run_really("requeue", "--id", BAD[0], "--json").stdout) == {"rows": 1}
        scene.deliver_all()
        wait_until(lambda: BAD[0] in scene.stage.cloud.stored, what="delivered after all")
