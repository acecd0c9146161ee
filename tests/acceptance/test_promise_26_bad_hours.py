"""Promise 26, in short: 500, 429, 503 with Retry-After and time-outs lose nothing, and the cloud is not stormed.

The hours are in the unit tests, where time is turned off; here the same sequence goes through real HTTP.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

from tests.harness import figures, wait_until
from tests.harness.cloud import Responder, answer, black_hole, cut_before_store
from tests.harness.cloud_stage import CloudStage, on_stage
from tests.harness.mosquitto import Mosquitto


def gaps_seconds(stage: CloudStage) -> list[float]:
    """How long after each request the next one came."""
    return [later.at - earlier.at for earlier, later in pairwise(list(stage.cloud.requests))]


def test_a_bad_hour_loses_nothing_and_takes_one_request_for_each_refusal(tmp_path: Path, mosquitto: Mosquitto) -> None:
    bad_hour: list[Responder] = [
        answer(500),
        answer(502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"),
        answer(429, {"Retry-After": "1"}),
        cut_before_store(),
        answer(503, {"Retry-After": "1"}),
        black_hole(),
        answer(504),
    ]
    with on_stage(tmp_path, mosquitto, upload={"timeout_seconds": 0.5, "linger_ms": 100}) as stage:
        stage.cloud.script(*bad_hour)
        stage.publish_numbered(50)
        stage.wait_delivered(20)
        stage.wait_settled(50)
        stage.audit().assert_kept(duplicates_max=0)
        assert stage.messages["dead"] == 0
        assert stage.cloud_state == "online"
        gaps = gaps_seconds(stage)
        assert gaps[2] >= 1.0, "Retry-After of 429"
        assert gaps[4] >= 1.0, "Retry-After of 503"
        assert gaps[4] + gaps[5] >= 1.0 + 0.5, "and the time-out: it began before the cloud had read the request"
        # One row goes as a probe in a long outage, and a batch may have been cut in two by the linger.
        assert len(stage.cloud.requests) <= len(bad_hour) + 3


def test_retry_after_as_a_date_is_a_floor_too(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with on_stage(tmp_path, mosquitto) as stage:
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
        stage.cloud.script(answer(503, {"Retry-After": format_datetime(at, usegmt=True)}))
        stage.publish_numbered(5)
        wait_until(lambda: stage.cloud_state == "throttled", what="throttled")
        stage.wait_delivered()
        delivered_at = datetime.now(UTC)
        assert delivered_at >= at
        stage.audit().assert_kept(duplicates_max=0)


def test_the_floor_holds_for_the_whole_destination_and_for_rows_that_come_meanwhile(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    upload = {"concurrency": 4, "batch_messages": 5, "linger_ms": 0}
    with on_stage(tmp_path, mosquitto, upload=upload) as stage:
        stage.cloud.always(answer(429, {"Retry-After": "1"}))
        stage.publish_numbered(20)
        wait_until(lambda: stage.cloud_state == "throttled", what="throttled")
        told_at = stage.cloud.requests[0].at
        stage.publish_numbered(20)
        # Four lanes may each have had a post under way when the first answer came; nobody begins another one.
        wait_until(lambda: stage.cloud.requests[-1].at > told_at + 0.9, what="the next request")
        assert sum(request.at < told_at + 0.9 for request in stage.cloud.requests) <= 4
        stage.cloud.always()
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)


def test_a_cloud_that_fails_for_long_is_asked_at_the_pace_of_the_backoff(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Full jitter up to 0.4 s: that twelve requests come within 0.4 s is as likely as one in 250,000."""
    upload = {"retry_min_seconds": 0.1, "retry_max_seconds": 0.4}
    with on_stage(tmp_path, mosquitto, answer(500), upload=upload) as stage:
        stage.publish_numbered(50)
        wait_until(lambda: len(stage.cloud.requests) >= 12, 20, "twelve requests")
        assert sum(gaps_seconds(stage)[:11]) >= 0.4
        assert len(stage.log("uploading fails")) == 1, "one line for one fault"
        stage.cloud.always()
        stage.wait_delivered()
        stage.audit().assert_kept(duplicates_max=0)


def test_memory_stays_flat_while_messages_come_and_none_can_go(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The queue is on disk: what comes behind a cloud that fails does not stay in memory."""
    small = {"mqtt.receive_maximum": 1000}  # messages in hand at a time, so that they do not blur the picture
    with on_stage(tmp_path, mosquitto, answer(503), upload={"batch_bytes": 65_536}, settings=small) as stage:
        stage.publish_ids([f"warm-{number}" for number in range(9000)], "x" * 1000)  # fills SQLite's cache, too
        stage.wait_stored(9000)
        before = rss_kib(stage)
        stage.publish_ids([f"more-{number}" for number in range(21_000)], "x" * 1000)
        stage.wait_stored(30_000)
        # What is kept would be 26 MB and its overhead. What is in use stays flat (27 MB after 25,000 messages and after
        # 350,000, by mallinfo2); the allocator's free lists grew the process by up to 12 MiB.
        growth_kib = rss_kib(stage) - before
        figures.most(growth_MiB=growth_kib / 1024)
        assert growth_kib < 20 * 1024, "KiB, of 26 MB"
        stage.stop()
        assert stage.select("SELECT COUNT(*) FROM ack_queue_default WHERE status < 2") == [(30_000,)]


def rss_kib(stage: CloudStage) -> int:
    status = Path(f"/proc/{stage.bridge.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
