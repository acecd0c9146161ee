"""Promise 1: SIGKILL at random moments loses nothing that was confirmed; at most B+W duplicates a kill, the same ids.

Tries to break I1, I3 and I4: the bridge is killed while it starts, connects, stores, confirms, uploads and acks. The
checker is tested too: it must find the loss of a bridge that confirms before it commits. To see a failure again:
`EDGE_BRIDGE_SOAK_SEED=… make test ARGS="-k kills"`.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.harness import figures, wait_until
from tests.harness.ledger import Audit
from tests.harness.stage import Stage

BATCH_MESSAGES, WINDOW_MESSAGES = 200, 500
SETTINGS = {
    "upload.batch_messages": BATCH_MESSAGES,
    "mqtt.receive_maximum": WINDOW_MESSAGES,
    "log.level": "warning",
}
MESSAGES_PER_SECOND = 1500
START_SECONDS_MAX, WORK_SECONDS_MAX = 1.2, 0.8  # from the start, and every other kill from its work


def kill_loop(stage: Stage, cycles: int, seed: int, sabotage: str = "") -> Audit:
    """Kill a bridge under load again and again, then let a sound one drain everything, and count."""
    moments = random.Random(seed)
    bridge = stage.launch(sabotage, settings=SETTINGS)  # once in peace: without a session nothing is kept for it
    bridge.kill()
    duplicates = 0
    with stage.publisher(messages_per_second=MESSAGES_PER_SECOND) as publisher:
        for cycle in range(cycles):
            arrived = stage.cloud.unique
            bridge.start()
            at_work = cycle % 2 == 1 or bool(sabotage)
            if at_work:
                wait_until(lambda arrived=arrived: stage.cloud.unique > arrived, 20, "work")  # type: ignore[misc]
            # Not a wait: the moment is the fault.
            time.sleep(moments.uniform(0, WORK_SECONDS_MAX if at_work else START_SECONDS_MAX))
            assert bridge.running, f"cycle {cycle}: ended with {bridge.exit_status}\n{bridge.stderr}"
            bridge.kill()
            stage.check_database()
            before, duplicates = duplicates, stage.cloud.duplicates
            assert duplicates - before <= BATCH_MESSAGES + WINDOW_MESSAGES, f"cycle {cycle}: {duplicates - before}"
    stage.launch(settings=SETTINGS)
    stage.drain(timeout_seconds=60)
    return stage.audit(publisher)


def check_kill_loop(stage: Stage, cycles: int) -> None:
    seed = int(os.environ.get("EDGE_BRIDGE_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"kill loop with seed {seed}")  # noqa: T201  pytest shows it when the test fails
    counted = kill_loop(stage, cycles, seed)
    figures.count(kills=cycles)
    counted.assert_kept(duplicates_max=cycles * (BATCH_MESSAGES + WINDOW_MESSAGES))
    assert len(stage.cloud.stored) > cycles * 100, "hardly anything passed, so hardly anything was tried"


@pytest.mark.timeout(400)  # thirty starts, and on a busy machine each takes seconds
def test_thirty_kills_at_random_moments_lose_nothing(stage: Stage) -> None:
    check_kill_loop(stage, 30)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_five_hundred_kills_at_random_moments_lose_nothing(stage: Stage) -> None:
    check_kill_loop(stage, 500)


def test_the_same_loop_finds_the_loss_of_a_bridge_that_confirms_before_it_commits(stage: Stage) -> None:
    assert kill_loop(stage, 6, seed=1, sabotage="confirm-before-commit").lost
