"""Promise 25, the cloud's half: a connection that is open and dead is found within the time-out, and nothing is lost.

(The broker's half has a file of its own.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud import Cloud, black_hole
from tests.harness.cloud_stage import CloudStage
from tests.harness.mosquitto import Mosquitto
from tests.harness.proxy import TcpProxy

TIMEOUT_SECONDS = 1.0
SLACK_SECONDS = 2.0  # for a machine that does other things as well


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


@pytest.fixture
def proxy(cloud: Cloud) -> Iterator[TcpProxy]:
    with TcpProxy(cloud.port) as proxy:
        yield proxy


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto, cloud: Cloud, proxy: TcpProxy) -> Iterator[CloudStage]:
    upload = {"url": f"http://127.0.0.1:{proxy.port}/", "timeout_seconds": TIMEOUT_SECONDS}
    with CloudStage(tmp_path / "stage", mosquitto, cloud, upload=upload) as stage:
        yield stage


def seconds_until_offline(stage: CloudStage) -> float:
    started_at = time.monotonic()
    wait_until(lambda: stage.cloud_state == "offline", 10, "the dead connection is found")
    return time.monotonic() - started_at


def test_a_network_that_goes_dead_is_found_within_the_time_out_and_nothing_is_lost(
    stage: CloudStage, proxy: TcpProxy
) -> None:
    stage.publish_numbered(100)
    stage.wait_delivered()
    proxy.black_hole = True
    stage.publish_numbered(100)
    assert seconds_until_offline(stage) < TIMEOUT_SECONDS + SLACK_SECONDS
    assert stage.status["cloud"]["last_error"] == "no whole answer within 1 s"
    stage.publish_numbered(100)
    proxy.black_hole = False
    stage.wait_delivered()
    stage.wait_settled(300)
    stage.audit().assert_kept()
    assert not stage.cloud.altered


def test_connections_that_die_while_idle_cost_no_message(stage: CloudStage, proxy: TcpProxy) -> None:
    """A firewall that forgot the connection: the next post finds out, and goes again."""
    for _ in range(3):
        stage.publish_numbered(10)
        stage.wait_delivered()
        proxy.cut()
    stage.publish_numbered(10)
    stage.wait_delivered()
    stage.audit().assert_kept()


def test_a_cloud_that_accepts_and_never_answers_is_given_up_at_the_time_out(stage: CloudStage) -> None:
    """Each post ends; the same rows go again under the same key, as nobody knows what became of them."""
    stage.cloud.always(black_hole())
    published_at = time.monotonic()
    stage.publish_numbered(10)
    wait_until(lambda: len(stage.cloud.requests) == 3, 10, "a third try")
    first, second, third = stage.cloud.requests
    assert first.key == second.key == third.key
    for tries, earlier, later in ((1, first, second), (2, second, third)):
        assert later.at - published_at > tries * TIMEOUT_SECONDS  # the time-out begins before the cloud has read it all
        assert later.at - earlier.at < TIMEOUT_SECONDS + SLACK_SECONDS
    stage.cloud.always()
    stage.wait_delivered()
    stage.audit().assert_kept(duplicates_max=0)
