"""Promise 29: a redirect is never followed; neither body nor token reach an address that nobody configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.harness.cloud import Cloud, answer, html, redirect
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto

TOKEN = "canary-of-promise-29"
STATUSES = (300, 301, 302, 303, 305, 307, 308)


@pytest.fixture
def elsewhere() -> Iterator[Cloud]:
    """Another origin: whatever reaches it should not have."""
    with Cloud() as cloud:
        yield cloud


@pytest.fixture
def stage(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[CloudStage]:
    with on_stage(tmp_path, mosquitto, upload={"token": TOKEN, "headers": {"X-Site": TOKEN}}) as stage:
        yield stage


def wait_paused(stage: CloudStage, status_code: int) -> None:
    def says_so() -> bool:
        cloud = stage.status["cloud"]
        return cloud["state"] == "paused" and str(cloud["last_error"]).startswith(str(status_code))

    wait_until(says_so, what=f"paused by {status_code}")


def test_no_redirect_is_followed_to_another_origin_and_none_loses_a_row(stage: CloudStage, elsewhere: Cloud) -> None:
    stage.cloud.always(redirect(elsewhere.url + "collect?token=", STATUSES[0]))
    stage.publish_numbered(10)
    wait_paused(stage, STATUSES[0])
    for status_code in STATUSES[1:]:
        stage.cloud.always(redirect(elsewhere.url + "collect?token=", status_code))
        stage.hang_up()  # a probe at once
        wait_paused(stage, status_code)
    assert elsewhere.connections == 0
    stage.cloud.always()
    stage.hang_up()
    stage.wait_delivered()
    assert elsewhere.connections == 0
    assert stage.messages["dead"] == 0
    stage.audit().assert_kept(duplicates_max=0)


def test_no_redirect_is_followed_on_the_same_origin_either(stage: CloudStage) -> None:
    """The POST would become a GET, whose 200 says nothing about the rows."""
    stage.cloud.always(redirect("/login", 302))
    stage.publish_numbered(10)
    wait_paused(stage, 302)
    stage.cloud.always(redirect("login", 307))
    stage.hang_up()
    wait_paused(stage, 307)
    assert {(request.method, request.target) for request in stage.cloud.requests} == {("POST", "/")}
    assert stage.messages["delivered"] == 0


def test_a_captive_portal_that_sends_away_and_then_answers_itself_takes_nothing(
    stage: CloudStage, elsewhere: Cloud
) -> None:
    stage.cloud.always(html())
    stage.cloud.script(redirect(elsewhere.url, 302))
    stage.publish_numbered(10)
    wait_paused(stage, 302)
    stage.hang_up()
    wait_until(lambda: len(stage.cloud.requests) >= 4, what="answered by pages")
    assert stage.messages["delivered"] == 0
    stage.cloud.always()
    stage.wait_delivered()
    assert elsewhere.connections == 0
    stage.audit().assert_kept(duplicates_max=0)


def test_other_ways_to_be_sent_elsewhere_lead_nowhere(stage: CloudStage, elsewhere: Cloud) -> None:
    """Refresh, Content-Location, Alt-Svc and cookies of an answer change nothing about the next request."""
    ways = {
        "Refresh": f"0; url={elsewhere.url}",
        "Content-Location": elsewhere.url,
        "Alt-Svc": f'h2="127.0.0.1:{elsewhere.port}"',
        "Set-Cookie": "session=stolen",
        "Location": elsewhere.url,
    }
    stage.cloud.script(answer(503, ways), answer(201, ways, store=True))
    stage.publish_numbered(10)
    stage.wait_delivered()
    stage.publish_numbered(10)
    stage.wait_delivered()
    assert elsewhere.connections == 0
    assert all("cookie" not in request.headers for request in stage.cloud.requests)
    assert {request.headers["authorization"] for request in stage.cloud.requests} == {f"Bearer {TOKEN}"}
