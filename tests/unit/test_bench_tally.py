"""Counting what arrived: each number once, the time of the last new one, and latencies from when each was due."""

from __future__ import annotations

import pytest

from bridge.bench.predictions import STAMP_AT, Phase, payloads, stamp
from bridge.bench.tally import Tally

SENT = list(payloads(Phase.THROUGHPUT, 5, 200))


def counting(phase: Phase) -> Tally:
    tally = Tally()
    tally.expect(phase)
    return tally


def stamped(ns: int) -> bytes:
    (payload,) = payloads(Phase.LATENCY, 1, 200)
    digits = stamp(ns)
    return payload[:STAMP_AT] + digits + payload[STAMP_AT + len(digits) :]


def test_a_message_that_comes_twice_is_one_message_and_one_duplicate() -> None:
    tally = counting(Phase.THROUGHPUT)
    tally.count(b",".join(SENT[:3]), at_ns=10)
    tally.count(b",".join(SENT[2:5]), at_ns=20)
    assert tally.report() == {"unique": 5, "duplicates": 1, "last_ns": 20}


def test_a_message_that_did_not_come_is_not_made_up_by_duplicates_of_others() -> None:
    tally = counting(Phase.THROUGHPUT)
    tally.count(b",".join([*SENT[:4], SENT[0]]), at_ns=10)
    assert tally.report()["unique"] == 4


def test_the_clock_stops_at_the_last_new_message_not_at_a_later_duplicate() -> None:
    tally = counting(Phase.THROUGHPUT)
    tally.count(SENT[0], at_ns=10)
    tally.count(SENT[0], at_ns=99)
    assert tally.report()["last_ns"] == 10


def test_late_messages_of_an_earlier_phase_do_not_count() -> None:
    tally = counting(Phase.THROUGHPUT)
    tally.count(b",".join([*payloads(Phase.PROBE, 3, 200), stamped(1)]), at_ns=10)
    assert tally.report() == {"unique": 0, "duplicates": 0, "last_ns": 0}


def test_a_latency_is_from_when_the_message_was_due_and_taken_once() -> None:
    tally = counting(Phase.LATENCY)
    tally.count(stamped(1_000), at_ns=4_500)
    tally.count(stamped(1_000), at_ns=9_000)
    assert tally.answer({"do": "latencies"}) == {"latencies_ns": [3_500]}


def test_expecting_another_phase_begins_anew() -> None:
    tally = counting(Phase.THROUGHPUT)
    tally.count(SENT[0], at_ns=10)
    assert tally.answer({"do": "expect", "phase": 3}) == {}
    assert tally.answer({"do": "report"}) == {"unique": 0, "duplicates": 0, "last_ns": 0}


def test_the_curve_has_a_point_for_each_time_that_new_ones_came() -> None:
    tally = counting(Phase.THROUGHPUT)
    tally.count(b",".join(SENT[:3]), at_ns=10)
    tally.count(SENT[0], at_ns=15)
    tally.count(b",".join(SENT[3:]), at_ns=20)
    assert tally.answer({"do": "curve"}) == {"curve": [(10, 3), (20, 5)]}


def test_a_command_that_it_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="sing"):
        Tally().answer({"do": "sing"})
