"""Promise 31: 401 or 403 for a day, then right: all kept, none dead, one alarm, and on again without a hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud import Cloud, Exchange, Responder, accept, answer
from tests.harness.cloud_stage import CloudStage
from tests.harness.mosquitto import Mosquitto

LOOK_SECONDS = 3.0  # how often the bridge looks at the token file while it is refused
SLACK_SECONDS = 2.0


def only(token: str, refusal: int) -> Responder:
    """Accept who shows this token, and refuse everybody else."""
    take, refuse = accept(), answer(refusal, {"WWW-Authenticate": 'Bearer realm="cloud"'})

    async def respond(exchange: Exchange) -> None:
        shown = exchange.request.headers.get("authorization")
        await (take if shown == f"Bearer {token}" else refuse)(exchange)

    return respond


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("old\n")
    return path


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto, token_file: Path) -> Iterator[CloudStage]:
    upload = {"token_file": str(token_file)}
    with Cloud() as cloud, CloudStage(tmp_path / "stage", mosquitto, cloud, upload=upload) as stage:
        yield stage


def wait_paused(stage: CloudStage) -> None:
    wait_until(lambda: stage.cloud_state == "paused", what="paused")


def assert_nothing_lost(stage: CloudStage) -> None:
    stage.wait_delivered()
    stage.wait_settled(len(stage.tried))
    assert stage.messages["dead"] == 0
    assert stage.cloud_state == "online"
    stage.audit().assert_kept(duplicates_max=0)
    stage.stop()
    assert stage.ids_with_status(5) == stage.tried


def test_a_new_token_in_the_file_is_noticed_and_everything_goes_on(stage: CloudStage, token_file: Path) -> None:
    """Also if the file is gone, then empty, for a while: somebody is writing it, or a secret is mounted anew."""
    stage.cloud.always(only("old", 401))
    stage.publish_numbered(20)
    stage.wait_delivered()
    stage.cloud.always(only("new", 401))
    stage.publish_numbered(30)
    wait_paused(stage)
    token_file.unlink()
    stage.bridge.hup()
    wait_until(lambda: stage.log("configuration not reloaded"), what="the bridge says that it cannot read it")
    token_file.write_text("")
    stage.publish_numbered(30)
    stage.wait_stored(80)
    assert {request.headers["authorization"] for request in stage.cloud.requests} == {"Bearer old"}
    refused = sum(not set(request.ids) <= stage.cloud.stored.keys() for request in stage.cloud.requests)
    assert refused == 1, "not one a message"
    token_file.write_text("new\n")
    changed_at = time.monotonic()
    stage.wait_delivered()
    assert time.monotonic() - changed_at < LOOK_SECONDS + SLACK_SECONDS
    assert_nothing_lost(stage)
    assert [line["level"] for line in stage.log("paused")] == ["error"]


def test_many_probes_of_one_fault_are_one_alarm_and_sighup_probes_at_once(stage: CloudStage, token_file: Path) -> None:
    stage.cloud.always(answer(401))
    stage.publish_numbered(30)
    wait_paused(stage)
    for _ in range(5):
        before = len(stage.cloud.requests)
        stage.hang_up()
        wait_until(lambda before=before: len(stage.cloud.requests) > before, what="a probe")  # type: ignore[misc]
        assert len(stage.cloud.requests[-1].ids) == 1, "a small probe"
    wait_paused(stage)
    assert len(stage.log("paused")) == 1
    stage.cloud.always(only("newest", 401))
    token_file.write_text("newest")
    hung_up_at = time.monotonic()
    stage.hang_up()
    stage.wait_delivered()
    assert time.monotonic() - hung_up_at < LOOK_SECONDS - 1, "sooner than the next look at the file"
    assert_nothing_lost(stage)


def test_a_cloud_that_takes_the_old_token_again_is_noticed_by_a_hang_up(stage: CloudStage) -> None:
    stage.cloud.always(answer(403))
    stage.publish_numbered(30)
    wait_paused(stage)
    stage.cloud.always()
    stage.hang_up()
    assert_nothing_lost(stage)


def test_after_a_restart_in_the_middle_all_is_still_there(stage: CloudStage, token_file: Path) -> None:
    stage.cloud.always(only("new", 401))
    stage.publish_numbered(30)
    wait_paused(stage)
    stage.bridge.kill()
    stage.start()
    wait_paused(stage)
    token_file.write_text("new")
    stage.hang_up()
    assert_nothing_lost(stage)
