"""Kill the broker, the bridge and the client, in every order, thirty times by a seed.

Nothing that was reported stored is missing at the cloud, and nothing that was accepted is forgotten.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, wait_until
from tests.harness.stage import Stage

ROUNDS = 30
MORE = 20  # messages told of between two kills
SEED = int(os.environ.get("BRIDGE_TEST_SEED", "6"))


class Producer:
    """`tests.harness.spooling_client` as a child process on one spool, started again after each kill."""

    def __init__(self, folder: Path, port: int) -> None:
        self._spool, self._port = folder / "spool", port
        self._output = folder / "told"
        self._output.touch()
        self._starts = 0

    def start(self, name: str = "") -> None:
        self._starts += 1
        command = [sys.executable, "-m", "tests.harness.spooling_client", str(self._port), str(self._spool)]
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, name or f"life-{self._starts}"],
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def told(self, *words: str) -> set[str]:
        lines = self._output.read_text().splitlines()
        return {line.split(" ")[1] for line in lines if line.split(" ")[0] in words}


@pytest.fixture
def producer(stage: Stage) -> Iterator[Producer]:
    producer = Producer(stage.folder, stage.broker.port)
    producer.start()
    yield producer
    producer.kill()


def test_nothing_stored_is_missing_and_nothing_accepted_is_forgotten(stage: Stage, producer: Producer) -> None:
    chance = random.Random(SEED)
    bridge = stage.launch()
    for number in range(ROUNDS):
        # Accepting goes on while broker and bridge are away; every third round waits for both.
        word = "accepted" if number % 3 else "stored"
        wanted = len(producer.told(word)) + MORE
        wait_until(lambda: len(producer.told(word)) >= wanted, 30, f"round {number}, seed {SEED}: {word}")  # noqa: B023
        victims = chance.sample(["broker", "bridge", "client"], chance.choice([1, 1, 2, 3]))
        for victim in victims:
            {"broker": stage.broker.kill, "bridge": bridge.kill, "client": producer.kill}[victim]()
        for victim in chance.sample(victims, len(victims)):
            {"broker": stage.broker.start, "bridge": bridge.start, "client": producer.start}[victim]()
    producer.kill()
    producer.start("--drain")
    assert producer.process.wait(90) == 0, producer._output.read_text()[-2000:]
    stored, accepted = producer.told("stored"), producer.told("accepted")
    assert min(len(stored), len(accepted)) > ROUNDS
    wait_until(lambda: accepted | stored <= set(stage.cloud.stored), 60, "all that was promised is at the cloud")
    assert not stage.cloud.altered
