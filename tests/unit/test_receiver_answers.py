"""What the receiver says: a sum when all is good, one result an entry when something is not."""

from __future__ import annotations

import json

from bridge.receiver.answers import compose, unnamed
from bridge.receiver.entries import BadEvent, Event

A, B, C = (Event("s", event_id, b"{}") for event_id in "abc")


def test_all_good_is_200_with_a_sum() -> None:
    answer = compose([A, B, C], [True, False, True])
    assert (answer.status_code, json.loads(answer.body)) == (200, {"stored": 2, "duplicates": 1})


def test_an_empty_batch_is_all_good() -> None:
    answer = compose([], [])
    assert (answer.status_code, json.loads(answer.body)) == (200, {"stored": 0, "duplicates": 0})


def test_one_bad_entry_makes_207_with_a_result_for_each_in_order() -> None:
    answer = compose([A, BadEvent("x", "no good"), B, BadEvent("y", "really bad", 422)], [True, False])
    assert answer.status_code == 207
    assert json.loads(answer.body)["results"] == [
        {"id": "a", "status": 201},
        {"id": "x", "status": 400, "error": "no good"},
        {"id": "b", "status": 200},
        {"id": "y", "status": 422, "error": "really bad"},
    ]


def test_a_body_of_nothing_but_nameless_bad_entries_is_refused_whole() -> None:
    refusal = unnamed([BadEvent(None, "no id"), BadEvent(None, "no id either")])
    assert refusal is not None
    assert refusal.status_code == 400
    assert "no id" in refusal.error


def test_results_are_given_as_soon_as_one_entry_has_a_name() -> None:
    assert unnamed([BadEvent(None, "no id"), BadEvent("x", "bad")]) is None
    assert unnamed([BadEvent(None, "no id"), A]) is None
    assert unnamed([]) is None
