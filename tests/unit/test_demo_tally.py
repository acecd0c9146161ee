"""The demo's count: a message that is missing anywhere shows, and makes the demo fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from bridge.demo.story import Outcome
from bridge.demo.tally import Ledgers, Tally, count

PAYLOADS = {"a": b"1", "b": b"2", "c": b"3"}
ALL_FINE = Ledgers(PAYLOADS, set(PAYLOADS), set(PAYLOADS), PAYLOADS, deliveries=3)


def outcome(tally: Tally, bridge_exit_status: int = 0) -> Outcome:
    return Outcome(
        tally=tally,
        backlog_max=1,
        outage_seconds=1.0,
        published_in_outage=1,
        drain_seconds=1.0,
        kills=1,
        bridge_down_seconds=1.0,
        published_while_bridge_down=1,
        bridge_exit_status=bridge_exit_status,
        accuracy=0.9,
        seconds=1.0,
    )


def without(payloads: Mapping[str, bytes], missing: str) -> dict[str, bytes]:
    return {known: payload for known, payload in payloads.items() if known != missing}


def test_everything_there_once_is_sound() -> None:
    tally = count(ALL_FINE)
    assert tally == Tally(published=3, stored=3, delivered=3, duplicated=0, lost=0, unexpected=0, altered=0)
    assert tally.is_sound


def test_an_id_that_the_cloud_does_not_have_is_lost() -> None:
    tally = count(replace(ALL_FINE, delivered=without(PAYLOADS, "b"), deliveries=2))
    assert (tally.lost, tally.delivered, tally.is_sound) == (1, 2, False)


def test_a_loss_is_not_hidden_by_something_that_nobody_published() -> None:
    tally = count(replace(ALL_FINE, delivered={**without(PAYLOADS, "b"), "x": b"9"}))
    assert (tally.lost, tally.unexpected, tally.delivered) == (1, 1, 3)
    assert not tally.is_sound


def test_a_loss_is_not_hidden_by_duplicates() -> None:
    tally = count(replace(ALL_FINE, delivered=without(PAYLOADS, "b"), deliveries=3))
    assert (tally.lost, tally.duplicated) == (1, 1)


def test_a_changed_payload_is_seen() -> None:
    tally = count(replace(ALL_FINE, delivered={**PAYLOADS, "a": b"one"}))
    assert (tally.lost, tally.altered, tally.is_sound) == (0, 1, False)


def test_what_was_sent_twice_is_counted_and_does_no_harm() -> None:
    tally = count(replace(ALL_FINE, deliveries=5))
    assert (tally.duplicated, tally.is_sound) == (2, True)


def test_a_message_that_the_broker_never_confirmed_may_arrive_or_not() -> None:
    unconfirmed = replace(ALL_FINE, confirmed={"a", "b"})
    assert count(unconfirmed).is_sound
    assert count(replace(unconfirmed, delivered=without(PAYLOADS, "c"), deliveries=2)).is_sound


def test_nothing_published_proves_nothing() -> None:
    assert not count(Ledgers({}, set(), set(), {}, 0)).is_sound


@given(
    tried=some.dictionaries(some.integers(0, 20).map(str), some.binary(max_size=2)),
    delivered=some.dictionaries(some.integers(0, 20).map(str), some.binary(max_size=2)),
    data=some.data(),
)
def test_sound_means_that_each_confirmed_message_is_at_the_cloud_as_it_was(
    tried: dict[str, bytes], delivered: dict[str, bytes], data: some.DataObject
) -> None:
    confirmed = data.draw(some.sets(some.sampled_from(sorted(tried)))) if tried else set()
    sound = count(Ledgers(tried, confirmed, set(), delivered, len(delivered))).is_sound
    complete = all(delivered.get(known) == tried[known] for known in confirmed)
    honest = all(tried.get(known) == payload for known, payload in delivered.items())
    assert sound == (complete and honest and bool(confirmed))


@pytest.mark.parametrize(
    ("ledgers", "bridge_exit_status", "is_good"),
    [
        pytest.param(ALL_FINE, 0, True, id="all fine"),
        pytest.param(replace(ALL_FINE, delivered=without(PAYLOADS, "c")), 0, False, id="one lost"),
        pytest.param(ALL_FINE, 1, False, id="the bridge failed to stop"),
        pytest.param(ALL_FINE, -9, False, id="the bridge had to be killed"),
    ],
)
def test_the_demo_is_good_only_without_loss_and_with_an_orderly_stop(
    ledgers: Ledgers, bridge_exit_status: int, *, is_good: bool
) -> None:
    result = outcome(count(ledgers), bridge_exit_status)
    assert result.is_good == is_good
    assert result.to_json()["ok"] == is_good
