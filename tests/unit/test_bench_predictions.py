"""What the bench's generator publishes: equal in size, numbered, stamped, and found again in whatever carries it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.bench.predictions import PAYLOAD_BYTES_MIN, STAMP_AT, Phase, pattern, payloads, stamp, stamped_ns
from bridge.message import head, head_middle, parse_json, producer_id, tail


@given(st.integers(PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_MIN + 500), st.integers(1, 20))
def test_payloads_are_json_of_exactly_the_size_asked_for(payload_bytes: int, count: int) -> None:
    made = list(payloads(Phase.PROBE, count, payload_bytes))
    assert [len(payload) for payload in made] == [payload_bytes] * count
    assert all(isinstance(json.loads(payload)["probabilities"][-1], float) for payload in made)


def test_every_number_occurs_once_and_in_order_and_no_two_phases_share_one() -> None:
    numbers = {phase: [json.loads(payload)["n"] for payload in payloads(phase, 300, 120)] for phase in Phase}
    assert all(found == list(range(found[0], found[0] + 300)) for found in numbers.values())
    assert len(set().union(*numbers.values())) == 300 * len(Phase)


def test_two_generators_publish_the_same_so_that_runs_compare() -> None:
    assert list(payloads(Phase.THROUGHPUT, 50, 300)) == list(payloads(Phase.THROUGHPUT, 50, 300))


def test_payloads_next_to_each_other_do_not_repeat_their_digits() -> None:
    first, second = payloads(Phase.THROUGHPUT, 2, 300)
    assert json.loads(first)["probabilities"] != json.loads(second)["probabilities"]


def test_a_payload_carries_no_id_that_the_bridge_would_take_for_the_messages_own() -> None:
    (payload,) = payloads(Phase.PROBE, 1, 300)
    is_json, value = parse_json(payload)
    assert is_json
    assert producer_id(value, ("prediction_id", "event_id", "message_id")) is None


@pytest.mark.parametrize("ns", [0, 1, 123_456_789_012_345, 10**17])
def test_a_stamp_fits_where_it_belongs_and_says_its_time(ns: int) -> None:
    (plain,) = payloads(Phase.LATENCY, 1, 300)
    payload = bytearray(plain)
    payload[STAMP_AT : STAMP_AT + len(stamp(ns))] = stamp(ns)
    assert len(payload) == 300
    ((_, found),) = pattern(Phase.LATENCY).findall(payload)
    assert stamped_ns(found) == ns


@pytest.mark.parametrize("phase", Phase)
def test_each_prediction_of_a_phase_is_found_in_a_batch_of_stored_events_and_no_other(phase: Phase) -> None:
    middle = head_middle("edge/bench", "edge/predictions/bench")
    events = [
        head("1", middle, "2026-01-01T00:00:00Z") + tail(payload, is_json=True)
        for one in Phase
        for payload in payloads(one, 10, 200)
    ]
    found = pattern(phase).findall(b"[" + b",".join(events) + b"]")
    numbers = [int(one[0] if isinstance(one, tuple) else one) for one in found]
    assert numbers == [json.loads(payload)["n"] for payload in payloads(phase, 10, 200)]
