"""A board without a clock battery: messages come before NTP does, and their time is put right as far as can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.harness import wait_until
from tests.harness.authority import Authority
from tests.harness.clock import Clock
from tests.harness.cloud import Cloud, answer
from tests.harness.cloud_stage import CloudStage
from tests.harness.mosquitto import Mosquitto

SLACK = timedelta(minutes=2)
DRAIN_SECONDS = 30


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    clock = Clock(tmp_path)
    clock.shift("@1970-01-01 00:10:00")
    return clock


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto, clock: Clock) -> Iterator[CloudStage]:
    with Cloud() as cloud, CloudStage(tmp_path / "stage", mosquitto, cloud, variables=clock.variables) as stage:
        yield stage
        stage.stop()


def events(stage: CloudStage) -> list[dict[str, Any]]:
    return [json.loads(body) for body in stage.cloud.bodies.values()]


def is_dated(event: dict[str, Any]) -> bool:
    """Whether it came just now, by the time that it says, and without a mark."""
    age = datetime.now(UTC) - datetime.fromisoformat(event["time"])
    return "clockunset" not in event and timedelta(0) <= age < SLACK


def set_clock(stage: CloudStage, clock: Clock) -> None:
    clock.shift("+0")
    wait_until(lambda: str(stage.status["at"]) > "2024", what="the clock is set")


def wait_tried_since(stage: CloudStage) -> None:
    """Wait for a try that began under the right clock: one from before may still be about to connect."""
    wait_until(lambda: (stage.status["cloud"]["next_attempt_at"] or "") > "2024", what="tried since")


def test_uploading_does_not_wait_for_the_clock_and_says_that_it_was_not_set(stage: CloudStage) -> None:
    stage.publish_numbered(10)
    stage.wait_delivered(DRAIN_SECONDS)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for event in events(stage):
        assert event["time"].startswith("1970-01-01")
        assert event["clockunset"].startswith(f"{boot}/")
    stage.audit().assert_kept(duplicates_max=0)


def test_behind_a_cloud_that_cannot_be_reached_all_are_dated(stage: CloudStage, clock: Clock) -> None:
    stage.cloud.unreachable()
    stage.publish_numbered(10)
    wait_until(lambda: stage.cloud_state == "offline", what="it was tried")
    stage.publish_numbered(10)
    stage.wait_stored(20)
    set_clock(stage, clock)
    wait_tried_since(stage)
    stage.cloud.reachable()
    stage.wait_delivered(DRAIN_SECONDS)
    assert all(map(is_dated, events(stage)))
    stage.audit().assert_kept(duplicates_max=0)


def test_what_the_cloud_refused_before_keeps_its_key_and_the_others_are_dated(stage: CloudStage, clock: Clock) -> None:
    stage.cloud.always(answer(503))
    first = stage.publish_numbered(1)
    wait_until(lambda: stage.cloud.requests, what="it was tried")
    stage.publish_numbered(10)
    stage.wait_stored(11)
    set_clock(stage, clock)
    stage.cloud.always()
    stage.wait_delivered(DRAIN_SECONDS)
    undated = {event["id"] for event in events(stage) if not is_dated(event)}
    assert undated == set(first)
    assert len({request.key for request in stage.cloud.requests if set(first) & set(request.ids)}) == 1
    stage.audit().assert_kept(duplicates_max=0)


def test_where_tls_forces_it_to_wait_nothing_goes_out_undated(
    tmp_path: Path, mosquitto: Mosquitto, clock: Clock
) -> None:
    authority = Authority(tmp_path)
    upload = {"tls": {"ca": str(authority.file)}}
    with (
        Cloud(tls=authority.server_context()) as cloud,
        CloudStage(tmp_path / "stage", mosquitto, cloud, upload=upload, variables=clock.variables) as stage,
    ):
        stage.publish_numbered(50)
        wait_until(lambda: "not yet valid" in str(stage.status["cloud"]["last_error"]), what="it was tried")
        cloud.unreachable()  # or a handshake could begin in one year and be judged in another
        set_clock(stage, clock)
        wait_tried_since(stage)
        cloud.reachable()
        stage.wait_delivered(DRAIN_SECONDS)
        assert all(map(is_dated, events(stage)))
        stage.audit().assert_kept(duplicates_max=0)
        stage.stop()
