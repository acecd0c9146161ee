"""Faults are read with clear complaints and strike as asked, the same way for the same seed."""

from __future__ import annotations

import json

import pytest

from bridge.receiver.faults import Cut, FaultInjector, Faults, parse


def strikes(faults: Faults, requests: int) -> list[bool]:
    injector = FaultInjector()
    injector.replace(faults)
    return [injector.draw() is not None for _ in range(requests)]


def test_everything_that_can_go_wrong_can_be_asked_for() -> None:
    wanted = {"status": 503, "share": 0.5, "delay_seconds": 2, "retry_after": 7, "cut": "after", "count": 3,
              "reject_ids": ["a"], "reject_status": 400, "seed": 1}  # fmt: skip
    assert parse(json.dumps(wanted).encode()) == Faults(
        status=503, share=0.5, delay_seconds=2, retry_after=7, cut=Cut.AFTER, count=3, reject_ids=frozenset("a"),
        reject_status=400, seed=1,
    )  # fmt: skip


def test_nothing_asked_for_is_nothing_wrong() -> None:
    assert parse(b"{}") == Faults()
    assert Faults().status is None
    assert Faults().cut is None


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (b'{"status":99}', "status"),
        (b'{"status":"x"}', "status"),
        (b'{"share":1.1}', "share"),
        (b'{"share":-1}', "share"),
        (b'{"delay_seconds":-1}', "delay_seconds"),
        (b'{"cut":"sometimes"}', "cut"),
        (b'{"count":-1}', "count"),
        (b'{"retry_after":-5}', "retry_after"),
        (b'{"stauts":503}', "stauts"),
        (b"[]", "object"),
        (b"rubbish", "JSON"),
    ],
)
def test_a_mistake_is_named(document: bytes, named: str) -> None:
    complaint = parse(document)
    assert isinstance(complaint, str)
    assert named in complaint


def test_all_mistakes_are_named_at_once() -> None:
    complaint = parse(b'{"status":1,"share":2}')
    assert isinstance(complaint, str)
    assert "status" in complaint
    assert "share" in complaint


def test_a_share_of_all_strikes_all_and_of_none_strikes_none() -> None:
    assert all(strikes(Faults(status=503), 50))
    assert not any(strikes(Faults(status=503, share=0), 50))


def test_a_share_strikes_about_that_many_and_the_same_ones_for_the_same_seed() -> None:
    struck = strikes(Faults(status=503, share=0.25, seed=5), 1000)
    assert 200 < sum(struck) < 300
    assert struck == strikes(Faults(status=503, share=0.25, seed=5), 1000)
    assert struck != strikes(Faults(status=503, share=0.25, seed=6), 1000)


def test_a_count_ends_by_itself_and_counts_only_what_it_struck() -> None:
    assert strikes(Faults(status=503, count=2), 4) == [True, True, False, False]
    assert sum(strikes(Faults(status=503, count=2, share=0.5), 100)) == 2


def test_the_strikes_that_are_left_are_shown() -> None:
    injector = FaultInjector()
    injector.replace(Faults(status=503, count=2))
    injector.draw()
    assert json.loads(injector.to_json())["count"] == 1
