"""A queue with something of everything in it, live or left behind, for the tests of `edge-bridge queue …`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.harness import wait_until
from tests.harness.bridge import environment, run_really
from tests.harness.cloud import answer, reject_ids
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.command import run_command
from tests.harness.mosquitto import Mosquitto

BAD = ["message-000002", "message-000005"]


class Scene:
    """Five delivered, two dead, one refused, three waiting; `live` says whether the bridge still runs."""

    def __init__(self, stage: CloudStage, live: bool) -> None:
        self.stage, self.live = stage, live
        stage.cloud.always(reject_ids(BAD))
        stage.publish_numbered(7)
        stage.publish_ids(["too-large"], filler="x" * 20_000)
        stage.wait_settled(7)
        wait_until(lambda: stage.messages["refused"] == 1, what="refused")
        stage.cloud.always(answer(503))
        stage.publish_ids(["w1", "w2", "w3"])
        wait_until(lambda: stage.status["cloud"]["state"] == "offline", what="away")
        stage.wait_stored(10)
        if not live:
            stage.stop()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`edge-bridge queue WORDS`, in this process."""
        variables = environment(self.stage.settings)
        return run_command("queue", *words, folder=self.stage.queue_path.parent, variables=variables)

    def run_really(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`edge-bridge queue WORDS`, as an operator runs it."""
        return run_really("queue", *words, settings=self.stage.settings)

    def ask(self, *words: str) -> list[dict[str, Any]]:
        done = self.run(*words, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def ids(self, *words: str) -> list[str]:
        return [item["id"] for item in self.ask("list", *words)]

    def deliver_all(self) -> None:
        self.stage.cloud.always()
        if not self.live:
            self.stage.start()


@contextmanager
def on_scene(folder: Path, kind: Literal["live", "offline"]) -> Iterator[Scene]:
    """Set the scene with a broker of its own."""
    settings = {"intake.max_payload_bytes": 10_000}
    with Mosquitto(folder / "mosquitto") as broker, on_stage(folder, broker, settings=settings) as stage:
        yield Scene(stage, kind == "live")
