"""docs/status.schema.json describes what is published, all of it and nothing else; docs/STATUS.md names every leaf."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from bridge import events
from bridge.status import Now, Status, object_will, topics, tree

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = orjson.loads((DOCS / "status.schema.json").read_bytes())
VALIDATOR = Draft202012Validator(SCHEMA)

START = Now(1000.0, 1_790_000_000.0)
STARTING = Status.starting("1.2.3", "press-4", START)

counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
texts = st.text(max_size=400)
any_event = st.one_of(
    st.builds(events.BrokerConnected, st.booleans(), counts),
    st.builds(events.BrokerLost, texts, st.none() | seconds),
    st.builds(events.SubscriptionRefused, texts, texts),
    st.builds(events.SubscriptionGranted, texts, st.integers(0, 1), st.integers(0, 1)),
    st.builds(events.Received, counts),
    st.builds(events.Stored, counts, counts, counts),
    st.builds(events.ConflictSeen, texts, texts),
    st.builds(events.Refused, counts, texts, texts),
    st.builds(events.Dropped, counts, texts),
    st.builds(events.DiskTroubled, st.sampled_from(["full", "stalled"]), texts),
    st.builds(events.Withheld, counts),
    st.builds(events.DiskRecovered),
    st.builds(events.Delivered, counts, seconds),
    st.builds(events.Died, counts, texts),
    st.builds(events.CloudAnswered),
    st.builds(events.CloudFailed, texts, seconds, st.booleans()),
    st.builds(events.CloudPaused, texts, seconds),
    st.builds(events.QueueCounted, counts, counts, counts, counts, counts, counts, counts, st.none() | seconds),
    st.builds(events.Stopping),
)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@given(st.lists(st.tuples(any_event, st.floats(0, 1e6)), max_size=30))
def test_whatever_happens_the_status_fits_the_schema(story: list[tuple[events.Event, float]]) -> None:
    status, now = STARTING, START
    for event, elapsed_seconds in story:
        now = Now(now.monotonic + elapsed_seconds, now.wall + elapsed_seconds)
        status = status.apply(event, now).tick(now)
    told = orjson.loads(orjson.dumps(tree(status, now)))
    assert [error.message for error in VALIDATOR.iter_errors(told)] == []
    assert (told["reason"] is None) == (told["state"] == "online")


def test_the_will_fits_the_schema() -> None:
    VALIDATOR.validate(orjson.loads(object_will("a", "1.2.3", "press-4").payload))


def test_only_an_offline_bridge_may_be_described_by_the_header_alone() -> None:
    header = orjson.loads(object_will("a", "1.2.3", "press-4").payload)
    for state in ("online", "degraded"):
        assert not VALIDATOR.is_valid(header | {"state": state, "at": "2026-10-01T08:15:00.000Z"})


def objects_in(branch: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, value in branch.items():
        if isinstance(value, dict):
            yield from objects_in(value, (*path, name))


@pytest.mark.parametrize("path", list(objects_in(tree(STARTING, START))), ids="/".join)
def test_the_schema_accepts_nothing_more_and_nothing_less(path: tuple[str, ...]) -> None:
    whole = tree(STARTING, START)
    for name in [*_at(whole, path), "stranger"]:
        changed: dict[str, Any] = copy.deepcopy(whole)
        branch = _at(changed, path)
        if name in branch:
            del branch[name]
        else:
            branch[name] = 1
        assert not VALIDATOR.is_valid(changed), f"{name} at {path}"


def test_the_docs_have_a_line_for_every_leaf_and_for_no_other() -> None:
    lines = (DOCS / "STATUS.md").read_text(encoding="utf-8").splitlines()
    documented = [line.split("`")[1] for line in lines if line.startswith("| `") and line.count(" | ") == 2]
    assert [f"a/{leaf}" for leaf in documented] == list(topics(tree(STARTING, START), "a"))


def _at(branch: Any, path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        branch = branch[name]
    assert isinstance(branch, dict)
    return branch
