"""The grammar of topic names and filters, against the examples of the standard and a matcher written the slow way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.topics import filter_fault, name_fault, overlap, unshared

LEGAL_FILTERS = ["#", "+", "/", "a", "a/#", "+/a/#", "/+", "a//b", "$SYS/#", "$share/g/a/#", "$share/g/+", "ä/✓", "a b"]
ILLEGAL_FILTERS = ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "$share", "$share/g", "$share//a", "$share/g/", "$share/+/a"]


@pytest.mark.parametrize("topic_filter", LEGAL_FILTERS)
def test_a_legal_filter_has_no_fault(topic_filter: str) -> None:
    assert filter_fault(topic_filter) is None


@pytest.mark.parametrize("topic_filter", [*ILLEGAL_FILTERS, "a\x00b", "a\nb", "a\ud800", "a" * 65536])
def test_an_illegal_filter_is_refused_with_a_reason(topic_filter: str) -> None:
    assert filter_fault(topic_filter)


@pytest.mark.parametrize("topic", ["a/#", "+", "", "a\x1b"])
def test_a_topic_to_publish_to_has_no_wildcard_and_no_control_character(topic: str) -> None:
    assert name_fault(topic)
    assert name_fault("edge/buffer/status") is None


def test_a_shared_subscription_gets_the_topics_of_what_stands_behind_its_group() -> None:
    assert unshared("$share/workers/edge/+/x") == "edge/+/x"
    assert unshared("edge/$share/x") == "edge/$share/x"


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a/#", "a", True),  # "sport/#" also matches the singular "sport" (4.7.1.2)
        ("a/#", "a/b/c", True),
        ("a/+", "a", False),
        ("+", "/a", False),
        ("+/+", "/a", True),
        ("#", "$SYS/x", False),  # [MQTT-4.7.2-1]
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/+/c", "a/b/+", True),
        ("a/+/c", "a/b/d", False),
        ("a/b", "a/b/#", True),
        ("a/b/c", "a/b", False),
        ("edge/#", "edge/buffer/status/#", True),
    ],
)
def test_filters_overlap_as_the_standard_says(one: str, other: str, meet: bool) -> None:
    assert overlap(one, other) is meet
    assert overlap(other, one) is meet


def _matches(topic_filter: list[str], topic: list[str]) -> bool:
    """Match by the definition, level by level."""
    if topic_filter[:1] == ["#"]:
        return True
    if not topic_filter or not topic:
        return not topic_filter and not topic
    return topic_filter[0] in {"+", topic[0]} and _matches(topic_filter[1:], topic[1:])


_levels = st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=4)
_filters = st.builds(lambda levels, tail: "/".join(levels + tail), _levels, st.sampled_from([[], ["#"]]))
_topics = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map("/".join)


@given(_filters, _filters, _topics)
def test_two_filters_that_match_one_topic_overlap(one: str, other: str, topic: str) -> None:
    levels = topic.split("/")
    if _matches(one.split("/"), levels) and _matches(other.split("/"), levels):
        assert overlap(one, other)


@given(_filters, _topics)
def test_a_filter_overlaps_a_topic_exactly_when_it_matches_it(topic_filter: str, topic: str) -> None:
    assert overlap(topic_filter, topic) is _matches(topic_filter.split("/"), topic.split("/"))
