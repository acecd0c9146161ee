"""What each event changes in the status, and what is told of it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest

from bridge.events import (
    BrokerConnected,
    BrokerLost,
    CloudAnswered,
    CloudFailed,
    CloudPaused,
    Delivered,
    Died,
    DiskRecovered,
    DiskTroubled,
    Dropped,
    Event,
    QueueCounted,
    QueueDamaged,
    ReceiptsGiven,
    Received,
    Refused,
    RequestRefused,
    RowsMissing,
    Salvaged,
    Salvaging,
    Stopping,
    Stored,
    SubscriptionGranted,
    SubscriptionRefused,
)
from bridge.status import (
    Bounds,
    Leaf,
    Load,
    Now,
    Status,
    Tree,
    empty_in_seconds,
    full_in_seconds,
    leaf_will,
    object_will,
    topics,
    tree,
)

WALL = datetime(2026, 10, 1, 8, 15, tzinfo=UTC).timestamp()
START = Now(1000.0, WALL)
MEBI = 2**20
UNBOUNDED = Bounds()


def status(*events: Event, bounds: Bounds = UNBOUNDED) -> Status:
    result = Status.starting("1.2.3", "press-4", START, bounds)
    for event in (BrokerConnected(session_present=True, reconnects=0), *events):
        result = result.apply(event, START)
    return result


def queue(*, ready: int = 0, delivered: int = 0, size_bytes: int = 0, limit_bytes: int = 100 * MEBI) -> QueueCounted:
    return QueueCounted(ready, 0, delivered, 0, size_bytes, limit_bytes, 1000 * MEBI, None)


def leaf(of: Status, path: str) -> Leaf:
    node: Tree | Leaf = tree(of, START)
    for name in path.split("/"):
        assert isinstance(node, dict)
        node = node[name]
    assert not isinstance(node, dict)
    return node


def running(seconds: int, received_per_second: int, delivered_per_second: int, counted: QueueCounted) -> Status:
    """A bridge that has carried this for so long, ticking every five seconds."""
    result = status(counted)
    for second in range(5, seconds + 5, 5):
        now = Now(START.monotonic + second, START.wall + second)
        for event in (Received(5 * received_per_second), Delivered(5 * delivered_per_second, 0.1)):
            result = result.apply(event, now)
        result = result.tick(now)
    return result


# ---- state and reason ----


def test_a_bridge_that_stores_and_delivers_is_online_without_a_reason() -> None:
    assert (leaf(status(), "state"), leaf(status(), "reason")) == ("online", None)


def test_a_bridge_that_has_just_started_says_that_it_waits_for_the_broker() -> None:
    starting = Status.starting("1.2.3", "press-4", START)
    assert leaf(starting, "state") == "degraded"
    assert leaf(starting, "reason") == "broker not connected: starting"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (BrokerLost("connection refused", 1.0), "broker not connected: connection refused"),
        (SubscriptionRefused("a/#", "Not authorized"), "subscription a/# refused: Not authorized"),
        (SubscriptionGranted("a/#", 0, 1), "subscription a/# granted at QoS 0 only"),
        (DiskTroubled("full", "no space left"), "disk full: no space left"),
        (CloudFailed("timed out", 2.0), "cloud offline: timed out; 0 waiting"),
        (CloudFailed("HTTP 429", 2.0, throttled=True), "cloud throttled: HTTP 429; 0 waiting"),
        (CloudPaused("HTTP 401", 60.0), "cloud paused: HTTP 401; 0 waiting"),
        (queue(size_bytes=91 * MEBI), "queue 91 % full"),
        (QueueDamaged("bad page"), "damaged queue file: set aside, a new queue is begun: bad page"),
        (Salvaging(7, "data.db.damaged-1"), "damaged queue file: salvaging data.db.damaged-1"),
    ],
)
def test_everything_that_needs_attention_degrades_the_state_and_says_why(event: Event, reason: str) -> None:
    assert leaf(status(event), "state") == "degraded"
    assert leaf(status(event), "reason") == reason


@pytest.mark.parametrize(
    ("trouble", "relief"),
    [
        (BrokerLost("gone", 1.0), BrokerConnected(session_present=True, reconnects=1)),
        (SubscriptionRefused("a/#", "no"), SubscriptionGranted("a/#", 1, 1)),
        (SubscriptionGranted("a/#", 0, 1), SubscriptionGranted("a/#", 1, 1)),
        (DiskTroubled("stalled", "fsync"), DiskRecovered()),
        (CloudFailed("timed out", 2.0), CloudAnswered()),
        (CloudPaused("HTTP 401", 60.0), CloudAnswered()),
        (queue(size_bytes=99 * MEBI), queue(size_bytes=50 * MEBI)),
        (QueueDamaged("bad page"), Salvaged("data.db.damaged-1", 7, 1)),
    ],
)
def test_every_trouble_goes_with_its_relief(trouble: Event, relief: Event) -> None:
    assert leaf(status(trouble, relief), "state") == "online"


def test_the_worst_reason_comes_first_and_none_hides_another() -> None:
    reason = leaf(status(CloudPaused("HTTP 401", 60), DiskTroubled("full", "no space")), "reason")
    assert reason == "disk full: no space; cloud paused: HTTP 401; 0 waiting"


def test_a_stopping_bridge_is_offline_whatever_else_is_true() -> None:
    stopping = status(DiskTroubled("full", "no space"), Stopping())
    assert (leaf(stopping, "state"), leaf(stopping, "reason")) == ("offline", "stopping")


def test_the_last_words_of_a_bridge_do_not_say_that_it_is_connected() -> None:
    assert leaf(status(), "broker/connected") is True
    assert leaf(status(Stopping()), "broker/connected") is False


def test_a_refused_filter_is_held_against_the_bridge_only_once() -> None:
    twice = status(SubscriptionRefused("a/#", "no"), SubscriptionRefused("a/#", "still no"))
    assert leaf(twice, "reason") == "subscription a/# refused: still no"


def test_a_queue_at_its_bound_of_messages_is_nearly_full_too() -> None:
    assert leaf(status(queue(ready=90), bounds=Bounds(messages=100)), "reason") == "queue 90 % full"
    assert leaf(status(queue(ready=89), bounds=Bounds(messages=100)), "reason") is None


def test_an_endless_error_text_stays_one_short_line() -> None:
    told = leaf(status(CloudFailed("first\nsecond\x1b[31m\t" + "x" * 10_000, 1.0)), "cloud/last_error")
    assert isinstance(told, str)
    assert told.startswith("first second [31m xxx")
    assert len(told) == 300


# ---- readiness ----


@pytest.mark.parametrize(
    ("event", "can_store", "ready"),
    [
        (CloudFailed("timed out", 2.0), True, True),
        (CloudPaused("HTTP 401", 60.0), True, True),
        (queue(size_bytes=99 * MEBI), True, True),
        (BrokerLost("gone", 1.0), True, False),
        (SubscriptionRefused("a/#", "no"), True, False),
        (DiskTroubled("stalled", "fsync"), False, False),
        (Stopping(), False, False),
    ],
)
def test_the_cloud_being_away_is_not_unready(event: Event, *, can_store: bool, ready: bool) -> None:
    troubled = status(event)
    assert troubled.can_store is can_store
    assert (troubled.unready_reason is None) is ready


# ---- counters, cloud, time ----


def test_every_counter_counts_its_own_event() -> None:
    events = (Received(9), Stored(5, 2, 1), Refused(3, "a", "large"), Dropped(4, "full"), Died(6, "bad"))
    salvage = (Salvaging(8, "aside"), Salvaged("aside", 8, 2), Salvaged("older", 0, None), RowsMissing(11, 20))
    of = status(*events, Delivered(7, 0.1), Received(1), *salvage)
    messages = tree(of, START)["messages"]
    assert messages == {
        "received": 10,
        "stored": 5,
        "delivered": 7,
        "duplicate": 2,
        "conflict": 1,
        "dead": 6,
        "dropped": 14,
        "refused": 3,
        "salvaged": 8,
    }


def test_the_last_error_is_kept_after_recovery_and_the_next_attempt_is_not() -> None:
    failed = status(CloudFailed("timed out", 2.5))
    assert leaf(failed, "cloud/next_attempt_at") == "2026-10-01T08:15:02.500Z"
    recovered = failed.apply(CloudAnswered(), START)
    assert leaf(recovered, "cloud/last_error") == "timed out"
    assert leaf(recovered, "cloud/next_attempt_at") is None


def test_an_attempt_whose_time_has_come_is_not_announced_as_the_next_one() -> None:
    failed = status(CloudFailed("timed out", 2.5))
    later = tree(failed, Now(START.monotonic + 3, START.wall + 3))
    assert topics(later, "a")["a/cloud/next_attempt_at"] == "null"


def test_the_last_success_is_when_rows_were_delivered() -> None:
    assert leaf(status(), "cloud/last_success_at") is None
    assert leaf(status(Delivered(1, 0.1)), "cloud/last_success_at") == "2026-10-01T08:15:00.000Z"


def test_latency_percentiles_are_latencies_that_occurred() -> None:
    answered = status(*(Delivered(1, milliseconds / 1000) for milliseconds in range(200, 0, -1)))
    assert (leaf(answered, "cloud/latency_ms/p50"), leaf(answered, "cloud/latency_ms/p99")) == (100.0, 198.0)
    assert leaf(status(), "cloud/latency_ms/p99") is None


def test_only_the_last_256_latencies_are_kept() -> None:
    """I5: everything is bounded."""
    answered = status(*[Delivered(1, 9.0)] * 1000, *[Delivered(1, 0.5)] * 256)
    assert len(answered.cloud.latencies_seconds) == 256
    assert leaf(answered, "cloud/latency_ms/p99") == 500.0


def test_uptime_does_not_jump_with_the_wall_clock() -> None:
    told = tree(status(), Now(START.monotonic + 61.9, 0.0))
    assert (told["uptime_seconds"], told["at"]) == (61, "1970-01-01T00:00:00.000Z")


# ---- moving averages ----


def test_a_steady_rate_approaches_itself_as_the_exponential_says() -> None:
    """The recursion of Mosquitto's sys_tree.c has a closed form at a steady rate r: r (1 - e^(-t/window))."""
    load = Load()
    for tick in range(1, 25):
        load = load.advance(counted=500 * tick, elapsed_seconds=5.0)
    assert load.averages == pytest.approx([100 * -math.expm1(-120 / window) for window in (60, 300, 900)])


def test_a_burst_decays_to_a_half_in_each_windows_half_life() -> None:
    burst = Load().advance(counted=6000, elapsed_seconds=1.0)
    for index, window in enumerate((60, 300, 900)):
        later = burst.advance(counted=6000, elapsed_seconds=window * math.log(2))
        assert later.averages[index] == pytest.approx(burst.averages[index] / 2)


def test_uneven_ticks_give_the_same_as_even_ones() -> None:
    even, uneven, counted = Load(), Load(), 0
    for seconds in (3.0, 17.0, 0.5, 39.5):
        counted += int(10 * seconds)
        uneven = uneven.advance(counted, seconds)
    for tick in range(1, 13):
        even = even.advance(50 * tick, 5.0)
    assert uneven.averages == pytest.approx(even.averages)


def test_a_tick_without_time_between_changes_nothing() -> None:
    of = status(Received(5))
    assert of.tick(START) == of


# ---- forecasts ----


def test_a_queue_that_grows_says_when_it_meets_its_bound() -> None:
    # 90 messages a second more than leave, 1 KiB each: the 80 MiB left take 81,920 / 90 = 910.2 s
    outage = running(1800, 100, 10, queue(ready=10 * 1024, delivered=10 * 1024, size_bytes=20 * MEBI))
    assert full_in_seconds(outage) == pytest.approx(911, abs=1)
    assert empty_in_seconds(outage) is None


def test_a_queue_that_drains_says_when_nothing_waits_any_more() -> None:
    draining = running(1800, 10, 110, queue(ready=50_000, size_bytes=50 * MEBI))
    assert empty_in_seconds(draining) == pytest.approx(500, abs=1)
    assert full_in_seconds(draining) is None


def test_without_a_bound_of_its_own_the_disk_is_the_bound() -> None:
    bounds = Bounds(disk_reserve_bytes=900 * MEBI)
    outage = running(1800, 100, 0, queue(ready=1024, size_bytes=MEBI, limit_bytes=0))
    # 100 MiB above the reserve, 1 KiB each, 100 a second
    assert full_in_seconds(replace(outage, bounds=bounds)) == pytest.approx(1024, abs=1)


def test_a_bound_of_messages_is_met_first_where_it_is_nearer() -> None:
    outage = running(1800, 100, 0, queue(ready=1000, size_bytes=MEBI))
    assert full_in_seconds(replace(outage, bounds=Bounds(messages=3000))) == pytest.approx(20, abs=1)


@pytest.mark.parametrize(("received", "delivered"), [(0, 0), (1000, 1000), (1000, 995)])
def test_a_queue_in_balance_heads_nowhere(received: int, delivered: int) -> None:
    balanced = running(600, received, delivered, queue(ready=500, size_bytes=MEBI))
    assert (full_in_seconds(balanced), empty_in_seconds(balanced)) == (None, None)


def test_an_empty_queue_makes_no_forecast() -> None:
    assert (full_in_seconds(status()), empty_in_seconds(status())) == (None, None)
    assert full_in_seconds(running(60, 100, 0, queue())) is None


# ---- topics and wills ----


def test_every_leaf_is_a_topic_with_plain_text() -> None:
    branch: Tree = {"state": "online", "reason": None, "queue": {"ready": 42, "deep": {"p50": 12.5, "yes": True}}}
    assert topics(branch, "a/b") == {
        "a/b/state": "online",
        "a/b/reason": "null",
        "a/b/queue/ready": "42",
        "a/b/queue/deep/p50": "12.5",
        "a/b/queue/deep/yes": "true",
    }


def test_the_two_wills_say_offline_on_the_object_and_on_the_leaf() -> None:
    topic, payload = object_will("a/b", "1.2.3", "press-4")
    told = orjson.loads(payload)
    assert topic == "a/b"
    assert (told["state"], told["version"], told["bridge_id"]) == ("offline", "1.2.3", "press-4")
    assert told["reason"].startswith("connection lost")
    assert leaf_will("a/b") == ("a/b/state", b"offline")


def test_receipts_are_counted_by_what_became_of_them() -> None:
    now = status()
    for event in (ReceiptsGiven(3, 0), ReceiptsGiven(0, 2), RequestRefused("t", "no"), RequestRefused("t", "no")):
        now = now.apply(event, Now(1.0, 1.0))
    assert (now.receipts.given, now.receipts.unsent, now.receipts.refused) == (3, 2, 2)


def test_bytes_written_are_told_for_each_byte_of_payload_where_the_system_tells_them() -> None:
    def disk(*events: Event) -> Tree | Leaf:
        return tree(status(*events), START)["disk"]

    counted = QueueCounted(0, 0, 0, 0, 0, 0, 0, None, commits=7, written_bytes=3000)
    assert disk(counted) == {
        "commits": 7,
        "written_bytes": 3000,
        "payload_bytes": 0,
        "written_per_payload_byte": None,
    }
    told = disk(Received(2, 400), Received(3, 800), counted)
    assert isinstance(told, dict)
    assert (told["payload_bytes"], told["written_per_payload_byte"]) == (1200, 2.5)
    untold = disk(Received(2, 400), replace(counted, written_bytes=None))
    assert isinstance(untold, dict)
    assert (untold["written_bytes"], untold["written_per_payload_byte"]) == (None, None)
