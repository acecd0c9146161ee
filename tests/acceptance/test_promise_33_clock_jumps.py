"""Promise 33: the clock jumps by an hour or ten years in mid-run: no stall, no busy loop, order kept, all delivered.

libfaketime shifts what the bridge reads as the time of day; time since the start stays true, as on a real machine
whose clock is set.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.clock import Clock
from tests.harness.cloud import Cloud, answer
from tests.harness.cloud_stage import TOPIC, CloudStage, payload
from tests.harness.ledger import audit
from tests.harness.mosquitto import Mosquitto
from tests.harness.publisher import LedgerPublisher

JUMPS = ("+1h", "-1h", "+3650d", "-3650d", "+0")
AGE_BOUND = {"queue.max_age_seconds": 1800}  # shorter than any jump, and none makes a message older
STALL_SECONDS = 30.0  # a stall would last as long as the jump


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto, clock: Clock) -> Iterator[CloudStage]:
    with (
        Cloud() as cloud,
        CloudStage(tmp_path / "stage", mosquitto, cloud, variables=clock.variables, settings=AGE_BOUND) as stage,
    ):
        yield stage
        stage.stop()  # killed, it would leave libfaketime's shared memory behind


def year_of_newest(stage: CloudStage) -> int:
    events = list(stage.cloud.bodies.values())
    return int(json.loads(events[-1])["time"][:4]) if events else 0


def cpu_seconds(stage: CloudStage) -> float:
    fields = Path(f"/proc/{stage.bridge.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def numbered(number: int) -> tuple[str, bytes]:
    event_id = f"message-{number:06}"
    return event_id, payload(event_id)


def test_the_clock_jumps_in_mid_run(stage: CloudStage, mosquitto: Mosquitto, clock: Clock) -> None:
    with LedgerPublisher(mosquitto.port, TOPIC, numbered, messages_per_second=200) as publisher:
        this_year = wait_until(lambda: year_of_newest(stage), timeout_seconds=STALL_SECONDS, what="the first event")
        for jump in JUMPS:
            stage.cloud.script(answer(503), answer(500))  # so that a backoff is under way at the jump
            clock.shift(jump)
            target = stage.cloud.unique + 150
            wait_until(lambda target=target: stage.cloud.unique >= target, STALL_SECONDS, f"150 more after {jump}")  # type: ignore[misc]
            expected = this_year + {"+3650d": 10, "-3650d": -10}.get(jump, 0)
            wait_until(lambda year=expected: abs(year_of_newest(stage) - year) <= 1, STALL_SECONDS, f"{jump} is seen")  # type: ignore[misc]
        publisher.stop()
        wait_until(lambda: publisher.confirmed <= stage.cloud.stored.keys(), what="all delivered")
        result = audit(publisher.tried, publisher.confirmed, stage.cloud.arrivals)
    result.assert_kept(duplicates_max=0)
    assert stage.cloud.arrivals == sorted(stage.cloud.arrivals), "the order of arrival"


def test_a_jump_leaves_no_busy_loop_and_no_stall_behind(stage: CloudStage, clock: Clock) -> None:
    """Idle behind a cloud that fails, with every timer running: the CPU must stay idle and the next retry must come."""
    stage.cloud.always(answer(503, {"Retry-After": "1"}))
    stage.publish_numbered(10)
    for jump in ("-3650d", "+1h"):
        wait_until(lambda: stage.cloud_state == "throttled", what="waiting for the cloud")
        clock.shift(jump)
        before, cpu_before, started_at = len(stage.cloud.requests), cpu_seconds(stage), time.monotonic()
        wait_until(lambda before=before: len(stage.cloud.requests) > before + 1, STALL_SECONDS, f"retries after {jump}")  # type: ignore[misc]
        assert cpu_seconds(stage) - cpu_before < 0.75 * (time.monotonic() - started_at), jump
    stage.cloud.always()
    stage.wait_delivered()
    stage.audit().assert_kept(duplicates_max=0)
    assert stage.messages["dropped"] == 0


def test_a_start_in_another_decade_delivers_what_waits(stage: CloudStage, clock: Clock) -> None:
    """A board without a clock battery knows the year before the restart, and not after it, until NTP comes."""
    stage.cloud.always(answer(401))
    stage.publish_numbered(10)
    stage.wait_stored(10)
    stage.stop()
    clock.shift("@1971-01-01 00:00:00")
    stage.start()
    stage.publish_numbered(10)
    stage.cloud.always()
    stage.hang_up()
    stage.wait_delivered()
    assert year_of_newest(stage) == 1971
    stage.audit().assert_kept(duplicates_max=0)
    assert stage.cloud.arrivals == stage.tried
